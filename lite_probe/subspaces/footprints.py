"""What an optimizer will hold and how long its steps will take, told before any state of it is made.

Bytes are those of the same optimizer on tensors without storage. Seconds are those of one matrix of each shape, times
how many there are: no state of the whole model is made, and no more than a few matrices are decomposed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lite_probe.optim import Directions, make_optimizer
from lite_probe.optim.buckets import Piece, state_dtype
from lite_probe.runtime.timing import timed
from lite_probe.subspaces.warming import optimizer_of
from lite_probe.task import Task

_LABEL_BYTES = 2  # of a direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What an optimizer's state and what it says of directions take.

    Attributes:
        state_bytes: Of its state, once it has made steps.
        direction_bytes: Of all that its directions hold, once the state is gone.
        beside_state_bytes: Of that, what is not part of the state.
        proxy_bytes: Of that, what nothing but proxies are part of: it goes once bands are cut.
        band_bytes: Of bases and labels, which bands keep.
        label_bytes: Of labels alone.
    """

    state_bytes: int
    direction_bytes: int = 0
    beside_state_bytes: int = 0
    proxy_bytes: int = 0
    band_bytes: int = 0
    label_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """How long an optimizer's steps take.

    Attributes:
        first: Its first, which may make bases.
        usual: Any other, those that renew something counted as often as they come.
    """

    first: float
    usual: float


def footprint_of(task: Task, name: str, hyperparameters: Mapping[str, Any] = {}) -> Footprint:
    """Return what one of our optimizers will hold of a task's parameters.

    Raises:
        UsageError, InputError: As `make_optimizer`.

    Cost: a few calls a parameter; nothing of a parameter's size.
    """
    optimizer = optimizer_of(task, name, hyperparameters, device="meta")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["step"] = 1
    directions = optimizer.directions()
    state = _storages(value for own in optimizer.state.values() for value in own.values())
    frames = _storages(side for one in directions for side in (one.left, one.right))
    kept = {**frames, **_storages(side for one in directions for side in (one.divisor, one.flat))}
    proxies = _storages(one.proxy for one in directions)
    held = {**kept, **proxies}
    labels = sum(_LABEL_BYTES * _labels_of(one) for one in directions)
    return Footprint(
        state_bytes=sum(state.values()),
        direction_bytes=sum(held.values()),
        beside_state_bytes=sum(size for key, size in held.items() if key not in state),
        proxy_bytes=sum(size for key, size in proxies.items() if key not in kept),
        band_bytes=sum(frames.values()) + labels,
        label_bytes=labels,
    )


def time_steps(
    task: Task, name: str, hyperparameters: Mapping[str, Any] = {}, *, on_sample: Callable[[], None] | None = None
) -> StepSeconds:
    """Time the steps of one of our optimizers on a task's parameters.

    Args:
        task: On whose device it steps.
        name: Of the optimizer.
        hyperparameters: As of `optimizer_of`.
        on_sample: Told of each shape.

    Cost: two or three steps on one matrix of each shape and block.
    """
    optimizer = optimizer_of(task, name, hyperparameters, device="meta")
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    kinds: dict[tuple[Any, ...], tuple[Piece, int]] = {}
    for piece in optimizer.pieces:
        key = (piece.geometry.name, piece.block, piece.shape[1:])
        kinds[key] = (piece, (kinds[key][1] if key in kinds else 0) + piece.shape[0])
    first = usual = 0.0
    for piece, count in kinds.values():
        shape = piece.geometry.sample(piece.shape[1:], groups[piece.parameter])
        share = count * piece.shape[1:].numel() / max(torch.Size(shape).numel(), 1)
        seconds = _time_sample(task, name, hyperparameters, torch.Size(shape), piece)
        first += share * seconds.first
        usual += share * seconds.usual
        if on_sample is not None:
            on_sample()
    return StepSeconds(first=first, usual=usual)


def _time_sample(
    task: Task, name: str, hyperparameters: Mapping[str, Any], shape: torch.Size, piece: Piece
) -> StepSeconds:
    """Time an optimizer of one parameter, of a shape and of a piece's block."""
    dtype = piece.parameter.dtype
    weight = nn.Parameter(torch.zeros(shape, dtype=dtype, device=task.device))
    optimizer = make_optimizer(name, [("weight", weight)], lr=1.0, blocks={"weight": piece.block}, **hyperparameters)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(shape, dtype=state_dtype(dtype), generator=generator)
    weight.grad = drawn.to(device=task.device, dtype=dtype)
    first, usual = (timed(task.device, optimizer.step) for _ in range(2))
    (group,) = optimizer.param_groups
    period = optimizer.pieces[0].geometry.period
    if period in group and group[period] > 1:
        often, group[period] = group[period], 1
        usual += max(timed(task.device, optimizer.step) - usual, 0.0) / often
    return StepSeconds(first=first, usual=usual)


def _labels_of(one: Directions) -> int:
    return one.proxy.numel() if one.proxy.ndim else one.piece.shape.numel()


def _storages(values: Iterable[object]) -> dict[int, int]:
    """Return the bytes of each storage behind some tensors."""
    storages = [value.untyped_storage() for value in values if isinstance(value, Tensor)]
    return {one._cdata: one.nbytes() for one in storages}
