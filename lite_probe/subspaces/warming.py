"""Optimizer states at a fixed θ₀: what an optimizer knows of a landscape that it has looked at without moving."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lite_probe.errors import InputError, NumericsError
from lite_probe.operators.precision import multiplying_large
from lite_probe.optim import LiteOptimizer, make_optimizer
from lite_probe.optim.interface import Replayable, make_step
from lite_probe.task import Batch, Task
from lite_probe.vectors.layout import ParameterLayout, require_whole


def optimizer_of(
    task: Task, name: str, hyperparameters: Mapping[str, Any] = {}, *, device: str | None = None
) -> LiteOptimizer:
    """Make an optimizer of a task's parameters, in the blocks the task knows; its learning rate is 1 until it is set.

    Args:
        task: Whose parameters.
        name: Of the optimizer.
        hyperparameters: Those not at their defaults.
        device: Of copies of the parameters that it is made of, "meta" for what it would hold; None: of themselves.

    Raises:
        UsageError, InputError: As `make_optimizer`.
    """
    config = getattr(task.model, "config", None)
    named = list(task.model.named_parameters())
    if device is not None:
        named = [
            (key, nn.Parameter(parameter.detach().to(device), requires_grad=parameter.requires_grad))
            for key, parameter in named
        ]
    return make_optimizer(name, named, lr=1.0, blocks=task.blocks, config=config, **hyperparameters)


def can_take(name: str, task: Task) -> bool:
    """Return whether an optimizer can be made of a task's parameters; a convolution's are no matrices."""
    try:
        optimizer_of(task, name)
    except InputError:
        return False
    return True


def warm(
    task: Task,
    optimizers: Sequence[Replayable],
    batches: Sequence[Batch],
    *,
    on_batch: Callable[[int], None] | None = None,
    on_gradient: Callable[[Tensor], None] | None = None,
) -> None:
    """Feed every batch's gradient at θ₀ to some optimizers, at learning rate 0.

    Averages fill, bases turn and thresholds settle as they would in training, while the parameters stay. To be called
    inside `preserve_state`.

    Args:
        task: Its parameters come back bitwise, and so does their `grad`.
        optimizers: Of the task's parameters. Their learning rates are as before.
        batches: Each is one step.
        on_batch: Told the index of each batch.
        on_gradient: Told its gradient before that, (N,) in `ParameterLayout`'s order; not to be kept.

    Raises:
        NumericsError: If a batch's loss or gradient is not finite; the batch is named.

    Cost: one gradient per batch, and one step of each optimizer.
    """
    layout = ParameterLayout(list(task.model.named_parameters()))
    first = layout.parameters[0]
    flat = first.new_zeros(layout.size if on_gradient is not None else 0, requires_grad=False)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    with own_gradients(layout.parameters), unmoved(layout.parameters):
        try:
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = 0.0
            for index, batch in enumerate(batches):
                set_gradients(task, layout.parameters, batch, f"warm-up batch {index}")
                for optimizer in optimizers:
                    make_step(optimizer)
                if on_gradient is not None:
                    flat.zero_()
                    layout.accumulate(flat, [parameter.grad for parameter in layout.parameters], 1.0)
                    on_gradient(flat)
                if on_batch is not None:
                    on_batch(index)
        finally:
            groups = (group for optimizer in optimizers for group in optimizer.param_groups)
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate


def set_gradients(task: Task, parameters: Sequence[nn.Parameter], batch: Batch, name: str) -> float:
    """Give each parameter the gradient of one batch's mean loss as its `grad`; return that loss.

    Raises:
        InputError: If a parameter is sharded.
        NumericsError: If the loss is not finite; `name` says whose it is.

    Cost: one gradient of the batch; what was in `grad` is gone before.
    """
    require_whole(parameters)
    drop_gradients(parameters)
    with multiplying_large(task.model, batch):
        total, count = task.loss(batch)
        if count == 0:
            raise NumericsError(f"expected counted tokens in {name}, got none", "check the data")
        loss = total / count
        value = float(loss.detach())
        if value != value or abs(value) == float("inf"):
            raise NumericsError(
                f"expected a finite loss, got {value} on {name}", "check the checkpoint (diverged?) and the data"
            )
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return value


def drop_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Let go of each parameter's `grad`, which is as large as the parameter."""
    for parameter in parameters:
        parameter.grad = None


@contextmanager
def own_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Lend the parameters' `grad`: what was there comes back."""
    found = [parameter.grad for parameter in parameters]
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient


@contextmanager
def unmoved(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Put the parameters back bitwise at the end. Cost: one copy of them."""
    found = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, found, strict=True):
                parameter.copy_(value)
