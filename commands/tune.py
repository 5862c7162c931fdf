"""`lite-probe tune`: what LITE's settings should be, learned over data shards that stay where they are."""

import os
from pathlib import Path
from typing import Any

from lite_probe.commands.console import Terminal
from lite_probe.commands.measuring import Measuring
from lite_probe.commands.optimizers import OptimizersMeasuring
from lite_probe.commands.task import Opened


class TuneMeasuring(OptimizersMeasuring):
    """Learn LITE's settings from the landscape, over data that stays where it is.

    Each node holds a shard of the data and measures on it, and no other, how far the loss tolerates steps along each
    group of directions. By decentralized bilevel optimization the nodes agree on χ and β₂; a replay with paired seeds
    then says whether that pays. Killed or interrupted, the same command continues. Under torchrun every rank holds a
    node, and rank 0 replays and writes.
    """

    kind = "tuning"
    examples = (
        "tune runs/gpt/ckpt.pt --data val.bin --nodes 8 --topology ring --method sparkle --upper gt --lower ed",
    )

    @classmethod
    def main(cls, terminal: Terminal, given: dict[str, Any]) -> None:
        """Tune; a rank above 0 measures its node, and leaves the replay and all output to rank 0."""
        if not _rank():
            super().main(terminal, given)
            return
        terminal.verbosity = -1
        one = cls.asked_for(terminal, {**given, "replay_steps": 0})
        opened = one.open()
        one.go(opened, one.folder_for(opened))

    def folder_for(self, opened: Opened) -> Path:
        """Return the run directory; that of a rank above 0 is in it."""
        folder = super().folder_for(opened)
        return folder / f"rank-{_rank()}" if _rank() else folder

    def find_spectrum(self, opened: Opened, folder: Path) -> Measuring | None:
        """Start from a spectrum where there is a replay, which needs one."""
        return super().find_spectrum(opened, folder) if self.request.replay_steps else None


def _rank() -> int:
    """Return the rank that `torchrun` gave this process, 0 where it gave none."""
    return int(os.environ.get("RANK", "0"))


command = TuneMeasuring.command()
