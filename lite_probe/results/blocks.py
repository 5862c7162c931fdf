"""Which parameters make up a block.

A parameter belongs to one block, or its rows (or columns) are divided among several: a fused qkv weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass

BLOCK_NAMES = ("emb", "qk", "vo", "ffn", "router", "norm", "out", "other")


@dataclass(frozen=True, slots=True)
class BlockPart:
    """The part of one parameter that belongs to one block: `parameter.narrow(dim, start, stop − start)`."""

    block: str  # one of BLOCK_NAMES
    dim: int = 0
    start: int = 0
    stop: int | None = None  # None: to the end


# Parameter name → its parts, which partition it.
BlockMap = Mapping[str, tuple[BlockPart, ...]]
