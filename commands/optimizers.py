"""What commands share that measure with optimizers: the state that a checkpoint brought along."""

from dataclasses import replace
from typing import Any

from lite_probe.commands.measuring import Measuring
from lite_probe.commands.task import Opened


class OptimizersMeasuring(Measuring):
    """A measurement whose optimizers may go on from where the checkpoint's stood."""

    def prepared(self, opened: Opened) -> Any:
        """Return the request with the optimizer state that the checkpoint brought, where `--state` may take it."""
        from lite_probe.replays import SavedOptimizer

        found = opened.checkpoint
        if found is None or found.optimizer is None or self.request.state not in ("auto", "checkpoint"):
            return self.request
        saved = SavedOptimizer(states=found.optimizer_states(), step=found.step, read_schedule=found.schedule)
        return replace(self.request, saved=saved)
