"""Ranks for tests of one process."""

from typing import Any

from lite_probe.vectors.ranks import Ranks


class OneOfTwo(Ranks):
    """A rank of two, the other of which says the same, and adds nothing to sums."""

    count = 2

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def from_every(self, value: Any) -> list[Any]:
        """Return what both say."""
        return [value, value]
