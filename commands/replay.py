"""`lite-probe replay`: a short training segment under several optimizers, and who lowers the loss where."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lite_probe.commands.measuring import Watch
from lite_probe.commands.optimizers import OptimizersMeasuring
from lite_probe.commands.replay_board import HEADER, ReplayBoard
from lite_probe.errors import ReplayError

if TYPE_CHECKING:
    from lite_probe.results.replay import Replay


class ReplayMeasuring(OptimizersMeasuring):
    """Replay a short training segment from a checkpoint under several optimizers.

    All see the same batches. Per step and direction it says who lowers the evaluation loss: along the sharp
    eigenvectors, along everything flat, in every band of every block, each with its error. Starts from the spectrum in
    the run directory, or measures it. Killed or interrupted, the same command continues.
    """

    kind = "replay"
    examples = (
        "replay runs/gpt/ckpt.pt --data val.bin --optimizers muon,muon-lite,soap,soap-lite",
        "replay runs/gpt/ckpt.pt --data val.bin --lr muon=0.002,muon-lite=0.002 --optimizers muon,muon-lite",
        "replay runs/gpt/ckpt.pt --data val.bin --optimizers muon-lite,torch.AdamW,mine.py:make_mine",
    )

    @contextmanager
    def watching(self, plan: Any) -> Iterator[Watch]:
        """Show a row per optimizer."""
        board = ReplayBoard(
            self.request.names,
            steps=self.request.steps,
            seeds=self.request.seeds,
            ablations=self.request.ablations,
            start_loss=plan.start_loss,
        )
        with self.terminal.live(HEADER) as show:

            def on_event(event: Any) -> None:
                board.on_step(event)
                show(board.rows(), board.words)

            def on_progress(done: int, total: int, label: str) -> None:
                board.on_progress(done, total, label)
                show(board.rows(), board.words)

            yield on_progress, on_event

    @classmethod
    def require_success(cls, result: "Replay | None") -> None:
        """Fail a replay of which no run reached the end."""
        if result is not None:
            require_some_finished(result)


def require_some_finished(result: "Replay") -> None:
    """Fail a replay of which no run reached the end.

    Raises:
        ReplayError: If every run of every optimizer diverged.
    """
    if not any(result.runs_of(name) for name in result.optimizers):
        steps = [run.diverged_at for run in result.runs if run.diverged_at is not None]
        raise ReplayError(
            f"expected some run to reach its end, got all {len(steps)} diverged, the first at step {min(steps)}",
            "replay with smaller learning rates, or --lr sweep",
        )


command = ReplayMeasuring.command()
