"""Where a replay stands, a row per optimizer: from events to plain text, no drawing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lite_probe.commands.wording import number, percent

if TYPE_CHECKING:
    from lite_probe.replays import ReplayStep

HEADER = ("optimizer", "", "lr", "step", "loss", "change", "flat", "left")


@dataclass(slots=True)
class _Row:
    """One optimizer."""

    phase: str = "waiting"
    lr: float | None = None
    run: int = 0  # runs begun
    step: int = 0  # of the run
    loss: float | None = None
    flat_share: float | None = None
    began: tuple[float, int] | None = None  # when its first measured step ended, and which of all it was
    total_steps: int = 0
    keys: list[tuple[str, int]] = field(default_factory=list)  # runs, in the order they came


class ReplayBoard:
    """Collects the events of a replay.

    Args:
        optimizers: In the order of the rows.
        steps: Of a segment.
        runs: Segments of each optimizer, ablations included.
        start_loss: On the evaluation set at θ₀.
        clock: Seconds.
    """

    def __init__(
        self,
        optimizers: Sequence[str],
        *,
        steps: int,
        runs: int,
        start_loss: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rows = {name: _Row() for name in optimizers}
        self._steps = steps
        self._runs = runs
        self._start_loss = start_loss
        self._clock = clock
        self.words = ""

    def on_step(self, event: "ReplayStep") -> None:
        """Take in one event."""
        for name, other in self._rows.items():
            if name != event.optimizer and other.phase in ("warming", "sweeping", "replaying"):
                other.phase = "done"
        row = self._rows[event.optimizer]
        row.phase = {"warm": "warming", "sweep": "sweeping", "replay": "replaying"}[event.phase]
        row.lr, row.step = event.lr, event.step
        if event.phase != "replay":
            return
        row.loss, row.flat_share = event.loss, event.flat_share
        key = (event.ablation, event.seed)
        if key not in row.keys:
            row.keys.append(key)
        row.run = len(row.keys)
        row.total_steps = (row.run - 1) * self._steps + event.step
        row.began = row.began or (self._clock(), row.total_steps)

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
            number(row.lr, 2),
            step,
            number(row.loss),
            number(None if row.loss is None else row.loss - self._start_loss, 2),
            "–" if row.flat_share is None else percent(row.flat_share),
            self._left(row),
        ]

    def _left(self, row: _Row) -> str:
        """Return the time that an optimizer's runs still take, at the pace of those behind it."""
        if row.phase != "replaying" or row.began is None or row.total_steps <= row.began[1]:
            return "–"
        pace = (self._clock() - row.began[0]) / (row.total_steps - row.began[1])
        seconds = int(pace * (self._runs * self._steps - row.total_steps))
        return f"{seconds // 60}:{seconds % 60:02d}"
