"""Where a replay stands, a row per optimizer: from events to plain text, no drawing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lite_probe.reports.numbers import format_number, format_share, terse

if TYPE_CHECKING:
    from lite_probe.measurements.replay_session import ReplayStep

HEADER = ("optimizer", "", "lr", "step", "loss", "change", "flat", "left")
_PHASES = {"warm": "warming", "sweep": "sweeping", "replay": "replaying"}
_ABLATIONS = ("none", "dominant", "bulk")  # in the order they are run on each seed


@dataclass(slots=True)
class _Row:
    """One optimizer."""

    phase: str = "waiting"
    lr: float | None = None
    run: int = 0  # 1, 2, … in the order they are made; 0 before the first
    step: int = 0  # completed, of the run or of the rate that is tried
    loss: float | None = None
    flat_share: float | None = None
    total_steps: int = 0  # of all runs
    began: tuple[float, int] | None = None  # when the first step seen here ended, and which of all it was
    has_diverged: bool = False


class ReplayBoard:
    """Collects the events of a replay.

    A replay that continues says nothing of what an earlier process finished, so that runs are counted by their place
    and optimizers before the one at work are done. A run that ends early says nothing either: the next event tells.

    Args:
        optimizers: In the order of the rows.
        steps: Of a segment.
        seeds: Segments of each optimizer.
        ablations: Whether every segment is run with projected updates too.
        start_loss: On the evaluation set at θ₀.
        clock: Seconds.
    """

    def __init__(
        self,
        optimizers: Sequence[str],
        *,
        steps: int,
        seeds: int,
        ablations: bool,
        start_loss: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows = {name: _Row() for name in optimizers}
        self._steps = steps
        self._per_seed = len(_ABLATIONS) if ablations else 1
        self._runs = seeds * self._per_seed
        self._start_loss = start_loss
        self._clock = clock
        self.words = ""

    def on_step(self, event: "ReplayStep") -> None:
        """Take in one event."""
        for name, other in self._rows.items():
            if name == event.optimizer:
                break
            self._settle(other)
        row = self._rows[event.optimizer]
        row.phase, row.lr = _PHASES[event.phase], event.lr
        if event.phase == "replay":
            run = event.seed * self._per_seed + _ABLATIONS.index(event.ablation) + 1
            row.has_diverged |= 0 < row.run != run and row.step < self._steps
            row.run, row.loss, row.flat_share = run, event.loss, event.flat_share
            row.total_steps = (run - 1) * self._steps + event.step
            row.began = row.began or (self._clock(), row.total_steps)
        row.step = event.step

    def _settle(self, row: _Row) -> None:
        """Say how an optimizer ended, now that the next one is at work."""
        if row.phase == "waiting":
            row.phase = "done"  # in an earlier process
        elif row.phase in _PHASES.values():
            is_short = row.run == 0 or row.step < self._steps
            row.phase = "diverged" if row.has_diverged or is_short else "done"

    def on_progress(self, done: int, total: int, label: str) -> None:
        """Take in how far everything is."""
        self.words = f"{done:,}/{total:,} gradients · {label}"

    def rows(self) -> list[list[str]]:
        """Return the table as it stands."""
        return [self._cells(name, row) for name, row in self._rows.items()]

    def _cells(self, name: str, row: _Row) -> list[str]:
        step = "–"
        if row.phase == "sweeping":
            step = f"{row.step}/{self._steps}"
        elif row.run:
            step = f"{row.step}/{self._steps} · {row.run}/{self._runs}"
        return [
            name,
            row.phase,
            terse(format_number(row.lr, 2)),
            step,
            format_number(row.loss),
            terse(format_number(None if row.loss is None else row.loss - self._start_loss, 2)),
            # Where one part of a step raised the loss the other is no share of it.
            format_share(row.flat_share) if row.flat_share is not None and 0.0 <= row.flat_share <= 1.0 else "–",
            self._left(row),
        ]

    def _left(self, row: _Row) -> str:
        """Return the time that an optimizer's runs still take, at the pace of those behind it."""
        if row.phase != "replaying" or row.began is None or row.total_steps <= row.began[1]:
            return "–"
        pace = (self._clock() - row.began[0]) / (row.total_steps - row.began[1])
        seconds = int(pace * (self._runs * self._steps - row.total_steps))
        return f"{seconds // 60}:{seconds % 60:02d}"
