"""Products where every rank holds a shard of the model: differences of gradients, shard by shard.

Autograd sees no shard: `torch.autograd.grad` returns None for each. But `backward` leaves a shard's gradient in its
`grad`, summed over the ranks, and shards can be moved. A flat vector has rank 0's shards of all parameters first, then
rank 1's: a rank's slice is one stretch, its own shards in `named_parameters()` order. Nothing ever gathers a vector,
but for those that are saved, one by one on rank 0.

`lite_probe.operators.sharding` shards models; here is what is done with them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lite_probe.errors import LiteProbeError
from lite_probe.operators.finite_difference import FiniteDifferenceOperator
from lite_probe.operators.gradient import LossAndGradient, finite_sum, require_batches, require_count, require_finite
from lite_probe.task import Split, Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.ranks import Ranks, Value


class ShardRanks(Ranks):
    """Ranks that each hold a shard of the model: slices of a vector are what belongs to their shards.

    Args:
        ranks: The processes.
        sizes: For each trainable parameter, in `named_parameters()` order, the entries that every rank holds.
    """

    is_sharded = True

    def __init__(self, ranks: Ranks, sizes: Sequence[Sequence[int]]) -> None:
        self._ranks = ranks
        self._sizes = sizes
        self.rank, self.count, self.on_host = ranks.rank, ranks.count, ranks.on_host
        self._widths: list[int] = [sum(own) for own in zip(*sizes, strict=True)]

    def part(self, size: int) -> slice:
        """Return which entries of a vector over all parameters this rank holds.

        Raises:
            ValueError: If there are more or fewer parameters than that.
        """
        if size != sum(self._widths):
            raise ValueError(f"expected a vector of {sum(self._widths)} entries, got {size}")
        start = sum(self._widths[: self.rank])
        return slice(start, start + self._widths[self.rank])

    def width(self, size: int) -> int:
        """Return how many entries of a vector the rank holds that holds most."""
        return max(self._widths)

    def whole(self, rows: Tensor, size: int) -> Tensor:
        """Refuse to put vectors together on every rank, which has no room for them."""
        raise TypeError("expected vectors of a sharded model to stay in slices")

    def collected(self, row: Tensor, size: int) -> Tensor | None:
        """Return a vector (size,), by the model's parameters, on the CPU of rank 0 from every rank's slice of it.

        Raises:
            PeerError: If some rank's slice does not come within the timeout.

        Cost: a message of its size from each rank, one for every parameter.
        """
        whole = torch.empty(size, dtype=row.dtype) if self.is_first else None
        own, place = torch.split(row, [sizes[self.rank] for sizes in self._sizes]), 0
        for shard, sizes in zip(own, self._sizes, strict=True):
            padded = row.new_zeros(1, max(sizes))
            padded[0, : len(shard)] = shard
            shards = self._ranks.gather(padded)
            if whole is not None:
                joined = torch.cat([one[:count] for one, count in zip(shards, sizes, strict=True)])
                whole[place : place + len(joined)] = joined
                place += len(joined)
        return whole

    def once(self, compute: Callable[[], Value]) -> Value:
        """Return what rank 0 computes."""
        return self._ranks.once(compute)

    def together(self, compute: Callable[[], Value]) -> Value:
        """Return what rank 0 computes where no rank can do so alone; what it refuses, all refuse."""
        own, refusal = None, None
        try:
            own = compute()
        except LiteProbeError as error:
            refusal = error

        def told() -> Value:
            if refusal is not None:
                raise refusal
            return own  # type: ignore[return-value]

        return self._ranks.once(told)

    def from_every(self, value: Value) -> list[Value]:
        """Return every rank's value, by rank."""
        return self._ranks.from_every(value)

    def add_up(self, tensor: Tensor) -> Tensor:
        """Add the tensors of all ranks up, in place; return the sum."""
        return self._ranks.add_up(tensor)

    def gather(self, stack: Tensor) -> Tensor:
        """Return the rows of all ranks, one after another."""
        return self._ranks.gather(stack)


class ShardLayout(ParameterLayout):
    """This rank's shards of θ in its slice of the flat vector.

    Attributes:
        parameters: The shards; to move them moves the model.
        shared: The parameters that they are of, as the model has them.
    """

    def __init__(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        super().__init__([(name, local(parameter)) for name, parameter in named_parameters])
        self.shared = [parameter for _, parameter in named_parameters if parameter.requires_grad]
        self.whole_size = sum(parameter.numel() for parameter in self.shared)


def layout_of(task: Task) -> ParameterLayout:
    """Return how a task's parameters, or this rank's shards of them, lie in a flat vector."""
    named = list(task.model.named_parameters())
    return ShardLayout(named) if task.ranks.is_sharded else ParameterLayout(named)


def local(parameter: nn.Parameter) -> nn.Parameter:
    """Return a rank's shard of a parameter, in the same memory."""
    shard: Any = parameter.detach()
    return nn.Parameter(shard.to_local(), requires_grad=parameter.requires_grad)


def sharded_loss_and_gradient(
    task: Task, layout: ParameterLayout, split: Split, on_batch: Callable[[int], None] | None = None
) -> LossAndGradient:
    """Compute the mean loss over all counted tokens of a split, and this rank's slice of its gradient.

    The batches are dealt to the ranks. Each takes part in every pass, since it has its shards to give: one that has run
    out of batches goes through another's with weight 0. The parameters' `grad` is lent.

    Raises:
        InputError: If the split has no batches or counts nothing.
        NumericsError: If a batch's loss is not finite; the batch is named.

    Cost: one gradient; every pass gathers the model once forward and once backward, a layer at a time.
    """
    if not isinstance(layout, ShardLayout):
        raise TypeError("expected the layout of a sharded model")
    require_batches(task, split)
    own = task.own_batches(split)
    turns = len(task.ranks.shares(task.batches(split))[0])  # of rank 0, which has most
    losses: list[tuple[int, Tensor]] = []
    own_count = 0
    with _gathering(task.model, layout):
        for turn in range(turns):
            has_own = turn < len(own)
            index, batch = own[turn] if has_own else (0, task.batches(split)[0])
            loss, batch_count = task.loss(batch)
            if has_own:
                losses.append((index, loss.detach().reshape(())))
                own_count += batch_count
            if loss.requires_grad:
                (loss if has_own else 0.0 * loss).backward()  # type: ignore[no-untyped-call]
            if on_batch is not None:
                on_batch(index)
        gradient, used = _taken(layout)
    own_total, bad = finite_sum(losses)
    require_finite(task.ranks.from_every(bad), split)
    sums = task.ranks.add_up(torch.tensor([own_total, own_count, *used], dtype=torch.float64)).tolist()
    total, count = sums[0], int(sums[1])
    require_count(count, split)
    unused = tuple(name for name, was in zip(layout.names, sums[2:], strict=True) if not was)
    return LossAndGradient(total / count, gradient.div_(count), count, unused)


@contextmanager
def _gathering(model: nn.Module, layout: ShardLayout) -> Iterator[None]:
    """Lend the parameters' `grad`, and let go of gathered layers at the end, also after an error."""
    found = [parameter.grad for parameter in layout.shared]
    try:
        for parameter in layout.shared:
            parameter.grad = None
        yield
    finally:
        for module in model.modules():
            let_go = getattr(module, "reshard", None)
            if let_go is not None:
                let_go()
        for parameter, gradient in zip(layout.shared, found, strict=True):
            parameter.grad = gradient


def _taken(layout: ShardLayout) -> tuple[Tensor, list[bool]]:
    """Return this rank's slice of the gradient, and which shards have one that is not zero.

    FSDP2 gives zeros for what no rank used: unused and zero look the same.
    """
    first = layout.parameters[0]
    gradient = torch.zeros(layout.size, dtype=first.dtype, device=first.device)
    shards: list[Tensor | None] = []
    for parameter in layout.shared:
        whole: Any = parameter.grad
        shards.append(None if whole is None else whole.to_local())
    layout.accumulate(gradient, shards, 1.0)
    any_entries = [first.new_zeros((), dtype=torch.bool) if shard is None else shard.any() for shard in shards]
    return gradient, torch.stack(any_entries).tolist()


class ShardedDifferenceOperator(FiniteDifferenceOperator):
    """H by central differences, on slices: each rank moves its shards, and restores them bitwise.

    Cost of a product: two gradients; the first one ten.
    """

    def _length(self, *vectors: Tensor) -> float:
        """Return the norm of vectors that this rank has slices of."""
        return self.task.ranks.hypot(super()._length(*vectors))

    def _read(self) -> Tensor:
        """Return this rank's slice of the gradient, at the weights as they stand."""
        return sharded_loss_and_gradient(self.task, self.layout, self.split).gradient
