"""Which parameters make up a block.

A parameter belongs to one block, or its rows (or columns) are divided among several: a fused qkv weight, all queries
first or head by head.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

BLOCK_NAMES = ("emb", "qk", "vo", "ffn", "router", "norm", "out", "other")


def order_blocks(names: Iterable[str]) -> list[str]:
    """Put blocks in the order of `BLOCK_NAMES`, others after them, each once."""
    present = set(names)
    known = [name for name in BLOCK_NAMES if name in present]
    return known + sorted(present - set(known))


@dataclass(frozen=True, slots=True)
class BlockPart:
    """The part of one parameter that belongs to one block: `parameter.narrow(dim, start, stop − start)`.

    With a period these rows are taken of each `period` rows: the queries of a weight [heads, (q, k, v), …].
    """

    block: str  # one of BLOCK_NAMES
    dim: int = 0
    start: int = 0
    stop: int | None = None  # None: to the end
    period: int | None = None  # None: the rows come once

    def shape_in(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of this part of a parameter, the rows of all periods one below the other."""
        if self == BlockPart(self.block):
            return tuple(shape)  # all of it, also where a scalar has no dimension to divide
        length = shape[self.dim] if self.period is None else self.period
        rows = (length if self.stop is None else self.stop) - self.start
        return (*shape[: self.dim], shape[self.dim] // max(length, 1) * rows, *shape[self.dim + 1 :])


# Parameter name → its parts, which partition it.
BlockMap = Mapping[str, tuple[BlockPart, ...]]
