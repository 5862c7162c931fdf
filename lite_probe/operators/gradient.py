"""Loss and gradient of a task, in the layout of its parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lite_probe.errors import InputError, NumericsError
from lite_probe.operators.layout import ParameterLayout
from lite_probe.operators.reductions import norm
from lite_probe.task import Task

Split = Literal["evaluation", "train"]


@dataclass(frozen=True, slots=True)
class LossAndGradient:
    """The loss over all batches of a split and its gradient."""

    loss: float  # nats per counted token, or loss per sample
    gradient: Tensor  # (N,)
    count: int  # tokens or samples
    unused: tuple[str, ...]  # parameters that no batch's loss depends on


def loss_and_gradient(
    task: Task,
    layout: ParameterLayout,
    split: Split,
    on_batch: Callable[[int], None] | None = None,
) -> LossAndGradient:
    """Compute the mean loss over all counted tokens of a split and its gradient.

    Raises:
        InputError: If the split has no batches or counts nothing.
        NumericsError: If a batch's loss is not finite; the batch is named.

    Cost: one gradient.
    """
    batches = task.batches(split)
    if not batches:
        raise InputError(f"expected at least one {split} batch, got none", f"give the task {split} batches")
    first = layout.parameters[0]
    gradient = torch.zeros(layout.size, dtype=first.dtype, device=first.device)
    used = [False] * len(layout.parameters)
    total, count = 0.0, 0
    for index, batch in enumerate(batches):
        loss, batch_count = task.loss(batch)
        value = float(loss.detach())
        if value != value or abs(value) == float("inf"):
            raise NumericsError(
                f"expected a finite loss, got {value} on {split} batch {index}",
                "check the checkpoint (diverged?) and the data",
            )
        total += value
        count += batch_count
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, layout.parameters, allow_unused=True)
            layout.accumulate(gradient, grads, 1.0)
            used = [was or grad is not None for was, grad in zip(used, grads, strict=True)]
        if on_batch is not None:
            on_batch(index)
    if count == 0:
        raise InputError(f"expected counted tokens in the {split} batches, got none")
    gradient /= count
    unused = tuple(name for name, was in zip(layout.names, used, strict=True) if not was)
    return LossAndGradient(total / count, gradient, count, unused)


def require_deterministic(
    task: Task, layout: ParameterLayout, split: Split, on_batch: Callable[[int], None] | None = None
) -> LossAndGradient:
    """Return loss and gradient after two passes gave the same, up to rounding.

    A Lanczos run on a loss that changes between products converges to nothing; dropout or shuffling is
    caught here in two gradients instead.

    Raises:
        NumericsError: If the passes differ, or the gradient is not finite.

    Cost: two gradients.
    """
    first = loss_and_gradient(task, layout, split, on_batch)
    second = loss_and_gradient(task, layout, split, on_batch)
    scale = norm(first.gradient)
    if scale != scale or scale == float("inf"):
        raise NumericsError("expected a finite gradient, got NaN or infinity", "check the weights")
    apart = norm(first.gradient - second.gradient)
    # Atomics on an accelerator reorder sums: differences of a few hundred roundings are not randomness.
    tolerance = 1e3 * torch.finfo(first.gradient.dtype).eps
    if abs(first.loss - second.loss) > tolerance * abs(first.loss) or apart > tolerance * scale:
        raise NumericsError(
            f"expected the same loss and gradient twice, got losses {first.loss:.9g} and {second.loss:.9g} "
            f"and gradients {apart / scale if scale else apart:.1e} apart",
            "switch off dropout and other randomness in the task's predict and criterion",
        )
    return first
