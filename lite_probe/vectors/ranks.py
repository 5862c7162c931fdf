"""The processes that measure one thing together, and what each of them holds.

Batches are dealt in turn, vectors are cut into slices, everything else is the same everywhere. Here is the one process
that has no others: it holds all batches and whole vectors, and every exchange is the identity.
`lite_probe.operators.ranks` has several.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from lite_probe.errors import InputError
from lite_probe.vectors.reductions import CHUNK

Value = TypeVar("Value")


class Ranks:
    """One process, rank 0 of 1.

    What several ranks do together, all of them call in the same order.

    Attributes:
        rank: Of this process.
        count: Ranks.
        on_host: Ranks that share this one's host, and its memory.
        is_sharded: Whether each holds a shard of the model, and not all of it.
    """

    rank: int = 0
    count: int = 1
    on_host: int = 1
    is_sharded: bool = False

    @property
    def name(self) -> str:
        """The name of a folder for what is this rank's alone."""
        return f"rank-{self.rank}-of-{self.count}"

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which decides, prints and writes."""
        return self.rank == 0

    def shares(self, items: Sequence[Value]) -> list[list[Value]]:
        """Deal items in turn: return those of every rank."""
        return [[items[place] for place in range(rank, len(items), self.count)] for rank in range(self.count)]

    def own(self, items: Sequence[Value]) -> list[tuple[int, Value]]:
        """Return this rank's items, each with its place among all."""
        return [(place, items[place]) for place in range(self.rank, len(items), self.count)]

    def part(self, size: int) -> slice:
        """Return which entries of a vector (size,) this rank holds: whole chunks, the last ranks fewer or none."""
        width = self.width(size)
        return slice(min(self.rank * width, size), min((self.rank + 1) * width, size))

    def width(self, size: int) -> int:
        """Return how many entries of a vector (size,) the ranks hold that hold most."""
        if self.count == 1:
            return size
        return -(-size // (CHUNK * self.count)) * CHUNK

    def total(self, own: float) -> float:
        """Return the sum of every rank's number."""
        return own if self.count == 1 else float(self.add_up(torch.tensor([own], dtype=torch.float64)))

    def hypot(self, own: float) -> float:
        """Return the norm of a vector whose slices have these norms; it neither overflows nor vanishes on the way."""
        if self.count == 1:
            return own
        norms = torch.zeros(self.count, dtype=torch.float64)
        norms[self.rank] = own
        return math.hypot(*self.add_up(norms).tolist())

    def once(self, compute: Callable[[], Value]) -> Value:
        """Return what rank 0 computes; what it refuses, all refuse."""
        return compute()

    def together(self, compute: Callable[[], Value]) -> Value:
        """Return what rank 0 computes where no rank can do so alone: all of them go through it."""
        return compute()

    def from_every(self, value: Value) -> list[Value]:
        """Return every rank's value, by rank."""
        return [value]

    def require_same(self, fingerprint: str) -> None:
        """Refuse ranks that do not measure the same: what they find together would belong to none of them.

        Args:
            fingerprint: Of what this rank measures.

        Raises:
            InputError: If another rank has another one, on every rank.
        """
        first, *others = self.from_every(fingerprint)
        for rank, other in enumerate(others, start=1):
            if other != first:
                raise InputError(
                    "expected the same weights, batches and options on every rank, got fingerprint "
                    f"{first[:12]} on rank 0 and {other[:12]} on rank {rank}",
                    "let every rank read the same checkpoint and the same data; seed what a task file draws",
                )

    def add_up(self, tensor: Tensor) -> Tensor:
        """Add the tensors of all ranks up, in place; return the sum."""
        return tensor

    def whole(self, rows: Tensor, size: int) -> Tensor:
        """Return vectors (b, size) from this rank's slices of them, (b, entries of `part`)."""
        return rows

    def collected(self, row: Tensor, size: int) -> Tensor | None:
        """Return a vector (size,), by the model's parameters, on the CPU of rank 0 from every rank's slice of it."""
        whole = self.whole(row.unsqueeze(0), size)[0]
        return whole.cpu() if self.is_first else None

    def gather(self, stack: Tensor) -> Tensor:
        """Return the rows of all ranks, one after another."""
        return stack

    def least(self, own: int) -> int:
        """Return the smallest of every rank's number."""
        return min(self.from_every(own))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ranks":
        """Return itself: a copy of a task is measured by the same processes."""
        return self


ALONE = Ranks()
