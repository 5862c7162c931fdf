"""Measurements during a run of Lightning's `Trainer`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lite_probe.callbacks.recorder import Recorder, learning_rate_of
from lite_probe.task import Task

# The library has two names; a run's trainer and its callbacks come from one.
if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from pytorch_lightning import Callback
else:
    from lightning.pytorch import Callback

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class LightningProbeCallback(Callback):  # type: ignore[misc]
    """Measures critical step, λ₁ and gradient share while a `Trainer` trains, and leaves its training as it is.

    Only the first process of several measures. Where the trainer resumes from a checkpoint so does the record. A step
    is one of Lightning's `global_step`: of an optimizer, where a module has several.

    Args:
        task: Whose loss and evaluation batches are used; the model measured is the trainer's.
        every: Steps between two points.
        folder: Where `training.json` goes; `lite-probe report FOLDER` shows it.
        model_of: Returns what `task.predict` takes of the `LightningModule`; by default the module itself.
        options: Further arguments of `Recorder`: early, budget, top, tolerance, max_products, seed.

    Raises:
        UsageError, InputError: As `Recorder`.
    """

    def __init__(
        self,
        task: Task,
        every: int = 100,
        folder: str | Path = "probe/run",
        *,
        model_of: "Callable[[LightningModule], nn.Module]" = lambda module: module,
        **options: Any,
    ) -> None:
        self.recorder = Recorder(task, every=every, folder=folder, **options)
        self.model_of = model_of

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Start, or go on from the step that the trainer resumes at."""
        if trainer.is_global_zero:
            self.recorder.begin(self.model_of(pl_module), trainer.global_step)

    def on_before_optimizer_step(self, trainer: "Trainer", pl_module: "LightningModule", optimizer: Any) -> None:
        """Keep the parameters, where they are to be measured."""
        if trainer.is_global_zero:
            self.recorder.before_update(trainer.global_step, learning_rate_of(optimizer))

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure."""
        self.recorder.after_update()

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Save the record."""
        self.recorder.end()
