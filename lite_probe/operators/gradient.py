"""Loss and gradient of a task, in the layout of its parameters."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lite_probe.errors import InputError, NumericsError
from lite_probe.operators.guards import KEPT_GRAPH, explain_autograd_error
from lite_probe.operators.precision import multiplying_large
from lite_probe.seeds import derive_seed
from lite_probe.task import Split, Task
from lite_probe.task.batches import in_rows
from lite_probe.vectors.layout import ParameterLayout, require_whole
from lite_probe.vectors.reductions import norm

_NUDGE = 0.01  # of a parameter's root mean square, by which it is moved to see whether the loss depends on it
_SHOWN = 5  # parameters that an error names


@dataclass(frozen=True, slots=True)
class LossAndGradient:
    """The loss over all batches of a split and its gradient."""

    loss: float  # nats per counted token, or loss per sample
    gradient: Tensor  # (N,), or this rank's slice of it where the model is sharded
    count: int  # tokens or samples
    unused: tuple[str, ...]  # parameters that no batch's loss depends on


def loss_and_gradient(
    task: Task,
    layout: ParameterLayout,
    split: Split,
    on_batch: Callable[[int], None] | None = None,
) -> LossAndGradient:
    """Compute the mean loss over all counted tokens of a split and its gradient, the batches dealt to the ranks.

    The device is waited for once, at the end.

    Raises:
        InputError: If the split has no batches or counts nothing, or parameters are shards.
        NumericsError: If a batch's loss is not finite; the batch is named.

    Cost: one gradient.
    """
    require_whole(task.model.parameters())
    require_batches(task, split)
    first = layout.parameters[0]
    gradient = torch.zeros(layout.size, dtype=first.dtype, device=first.device)
    used = [False] * len(layout.parameters)
    losses: list[tuple[int, Tensor]] = []
    own_count = 0
    for index, batch in task.own_batches(split):
        for part in in_rows(batch, task.rows):
            with multiplying_large(task.model, part):
                loss, part_count = task.loss(part)
                grads = _gradients(loss, layout) if loss.requires_grad else None
            losses.append((index, loss.detach().reshape(())))
            own_count += part_count
            if grads is not None:
                layout.accumulate(gradient, grads, 1.0)
                used = [was or grad is not None for was, grad in zip(used, grads, strict=True)]
                del grads  # before the next part's graph is built
        if on_batch is not None:
            on_batch(index)
    own_total, bad = finite_sum(losses)
    require_finite(task.ranks.from_every(bad), split)
    sums = task.ranks.add_up(torch.tensor([own_total, own_count, *used], dtype=torch.float64)).tolist()
    total, count, used = sums[0], int(sums[1]), [bool(was) for was in sums[2:]]
    require_count(count, split)
    task.ranks.add_up(gradient)
    gradient /= count
    unused = tuple(name for name, was in zip(layout.names, used, strict=True) if not was)
    return LossAndGradient(total / count, gradient, count, unused)


def require_batches(task: Task, split: Split) -> None:
    """Refuse a split without batches.

    Raises:
        InputError: If it has none.
    """
    if not task.batches(split):
        raise InputError(f"expected at least one {split} batch, got none", f"give the task {split} batches")


def require_count(count: int, split: Split) -> None:
    """Refuse batches that count nothing.

    Raises:
        InputError: If they do not.
    """
    if count == 0:
        raise InputError(f"expected counted tokens in the {split} batches, got none")


def finite_sum(losses: Sequence[tuple[int, Tensor]]) -> tuple[float, tuple[int, float] | None]:
    """Add up losses, each with the number of its batch; return the first that is not finite beside the sum.

    Cost: one wait for the device.
    """
    total = 0.0
    values = torch.stack([loss for _, loss in losses]).cpu().tolist() if losses else []
    for (index, _), value in zip(losses, values, strict=True):
        if not math.isfinite(value):
            return total, (index, value)
        total += value
    return total, None


def require_finite(found: Sequence[tuple[int, float] | None], split: Split) -> None:
    """Refuse losses that are not finite.

    Args:
        found: Place and loss of the first such batch of every rank.
        split: Of the batches.

    Raises:
        NumericsError: It names the first of them, on every rank.
    """
    if bad := [one for one in found if one is not None]:
        index, value = min(bad)
        raise NumericsError(
            f"expected a finite loss, got {value} on {split} batch {index}",
            "check the checkpoint (diverged?) and the data",
        )


def _gradients(loss: Tensor, layout: ParameterLayout) -> Sequence[Tensor | None]:
    try:
        return torch.autograd.grad(loss, layout.parameters, allow_unused=True)
    except RuntimeError as error:
        explained = explain_autograd_error(error)
        if explained is None:
            raise
        raise explained from error


def require_deterministic(
    task: Task,
    layout: ParameterLayout,
    split: Split,
    on_batch: Callable[[int], None] | None = None,
    evaluate: Callable[..., LossAndGradient] = loss_and_gradient,
) -> LossAndGradient:
    """Return loss and gradient after two passes gave the same, up to rounding, and gradients reach what they should.

    A Lanczos run on a loss that changes between products converges to nothing; dropout or shuffling is
    caught here in two gradients instead.

    Raises:
        NumericsError: If the passes differ, the gradient is not finite, or parameters have none that the loss depends
            on.

    Cost: two gradients; where parameters have no gradient, a forward pass more.
    """
    first = evaluate(task, layout, split, on_batch)
    second = evaluate(task, layout, split, on_batch)
    _require_connected(task, layout, split, first, evaluate)
    scale = gradient_norm(task, first)
    if scale != scale or scale == float("inf"):
        raise NumericsError("expected a finite gradient, got NaN or infinity", "check the weights")
    apart = gradient_norm(task, replace(first, gradient=first.gradient - second.gradient))
    if not _same_loss(first.loss, second.loss, layout) or apart > _rounding(layout) * scale:
        raise NumericsError(
            f"expected the same loss and gradient twice, got losses {first.loss:.9g} and {second.loss:.9g} "
            f"and gradients {apart / scale if scale else apart:.1e} apart",
            "switch off dropout and other randomness in the task's predict and criterion",
        )
    return first


def gradient_norm(task: Task, evaluated: LossAndGradient) -> float:
    """Return the norm of a gradient, of which each rank may hold a slice."""
    own = norm(evaluated.gradient)
    return task.ranks.hypot(own) if task.ranks.is_sharded else own


def _rounding(layout: ParameterLayout) -> float:
    """Return what two passes may differ by: an accelerator's atomics reorder sums, by a few hundred roundings."""
    return 1e3 * torch.finfo(layout.parameters[0].dtype).eps


def _same_loss(first: float, second: float, layout: ParameterLayout) -> bool:
    return abs(first - second) <= _rounding(layout) * abs(first)


def _require_connected(
    task: Task,
    layout: ParameterLayout,
    split: Split,
    evaluated: LossAndGradient,
    evaluate: Callable[..., LossAndGradient],
) -> None:
    """Refuse parameters whose gradient is cut off: they would count as zero curvature, as if without influence.

    Whether the loss depends on a parameter is seen by moving it.

    Raises:
        NumericsError: If no parameter has a gradient, or one has none and moving it changes the loss.

    Cost: a forward pass where some have none; one more for each in the error's case.
    """
    if len(evaluated.unused) == len(layout.parameters):
        raise NumericsError(
            f"expected a loss with a gradient, got none for any of the {len(layout.parameters)} parameters",
            "let predict and criterion keep the graph: no detach, no torch.no_grad, and no checkpointing but "
            f"{KEPT_GRAPH}",
        )
    named = dict(zip(layout.names, layout.parameters, strict=True))
    idle = {name: named[name] for name in evaluated.unused}

    def matter(moved: Sequence[nn.Parameter]) -> bool:
        with torch.no_grad(), _nudged(moved):
            return not _same_loss(evaluated.loss, evaluate(task, layout, split).loss, layout)

    if not idle or not matter([*idle.values()]):
        return
    cut = [name for name, parameter in idle.items() if matter([parameter])] or [*idle]
    shown = ", ".join(cut[:_SHOWN]) + (f" and {len(cut) - _SHOWN} more" if len(cut) > _SHOWN else "")
    raise NumericsError(
        f"expected a gradient for every parameter that the loss depends on, got none for {len(cut)}: {shown}",
        "let the graph reach them (no detach, no torch.no_grad, no reentrant checkpointing), or freeze them with "
        "requires_grad_(False)",
    )


@contextmanager
def _nudged(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Move some parameters a little at random for a while; they come back bitwise."""
    saved = [parameter.clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(derive_seed(0, "nudge"))
    try:
        for parameter in parameters:
            size = float(parameter.double().square().mean().sqrt()) or 1.0
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter)
            parameter.add_(noise, alpha=_NUDGE * size)
        yield
    finally:
        for parameter, value in zip(parameters, saved, strict=True):
            parameter.copy_(value)
