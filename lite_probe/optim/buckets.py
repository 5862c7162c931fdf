"""Parameters that step together: pieces of one shape, stacked, with their state.

A piece is a parameter, one of the matrices that were fused into it (q, k and v), or a stack of matrices (experts). The
state of a bucket is stacked once; `optimizer.state[parameter]` holds views of it, so that it saves like any other.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lite_probe.optim.geometry import Geometry, State, sharp_rank
from lite_probe.results.blocks import BlockPart
from lite_probe.vectors.layout import narrow

_LARGEST_STACK = 2**24  # entries: each temporary of a step is as large as its stack
_LOW_PRECISION = (torch.bfloat16, torch.float16)
MASTER = "master"  # float32 weights of a parameter of lower precision


@dataclass(frozen=True, slots=True)
class Piece:
    """What one geometry sees of a parameter: all of it, or a part of it."""

    parameter: nn.Parameter
    name: str
    block: str
    geometry: Geometry
    part: BlockPart | None = None  # None: all of it
    transposed: bool = False  # stored as (in, out)
    is_table: bool = False  # no linear map: a vector, whatever its dimensions
    suffix: str = ""  # of its names in the parameter's state, where a parameter has several pieces

    def place(self, tensor: Tensor) -> Tensor:
        """Return where the piece lies in the parameter, or in its gradient, as a view that can be written to.

        Of `shape`, but for one more dimension where its rows come in every period, and all those of a table.
        """
        part = self.part
        if self.transposed:
            tensor, part = tensor.mT, part and replace(part, dim=1 - part.dim)
        if part is not None:
            tensor = narrow(tensor, part)
        if self.is_stack:
            return tensor
        return tensor.unsqueeze(0) if tensor.ndim else tensor.reshape(1, 1)

    def view(self, tensor: Tensor) -> Tensor:
        """Return the piece of the parameter, or of its gradient: (count, out, in) or (1, …); to be read.

        A view, or a copy where its rows come in every period.
        """
        return self.place(tensor).reshape(self.shape)

    @property
    def shape(self) -> torch.Size:
        """As the geometry sees it: (count, out, in) or (1, …)."""
        shape = list(self.parameter.shape if self.part is None else self.part.shape_in(self.parameter.shape))
        if self.is_table:
            shape = [math.prod(shape)]
        if self.transposed:
            shape[-2:] = reversed(shape[-2:])
        return torch.Size(shape if self.is_stack else [1, *(shape or [1])])

    def new_state(self, count: int, group: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> State:
        """Return the state of a stack of pieces like this one before its first step; `count` is its length."""
        shape = torch.Size([count, *self.shape[1:]])
        state = self.geometry.new_state(shape, group, dtype, device)
        rank = sharp_rank(group, self.block)
        return {**state, **self.geometry.rank_state(shape, rank, dtype, device)} if rank else state

    @property
    def is_stack(self) -> bool:
        """Whether the parameter is a stack of matrices already."""
        return self.parameter.ndim == 3 and self.geometry.sees_stacks and not self.is_table

    @property
    def is_hidden_matrix(self) -> bool:
        """See the function of that name."""
        return is_hidden_matrix(self.shape, self.block)


@dataclass(slots=True)
class Bucket:
    """Pieces of one shape, block, geometry and step count."""

    geometry: Geometry
    group: Mapping[str, Any]  # hyperparameters; the optimizer's own dict, so that schedulers reach it
    pieces: list[Piece]
    step: int  # completed updates of these parameters
    state: State = field(default_factory=dict)

    def gradient(self, gate: Tensor | None) -> Tensor:
        """Return the gradients (stack, …) in the state's precision; zero behind a closed gate."""
        views = [piece.view(piece.parameter.grad) for piece in self.pieces if piece.parameter.grad is not None]
        stacked = (views[0] if len(views) == 1 else torch.cat(views)).to(state_dtype(views[0].dtype))
        return stacked if gate is None else torch.where(gate > 0, stacked, 0.0)

    def weights(self) -> Tensor:
        """Return the weights (stack, …) in the state's precision; to be read, not written."""
        views = self._views()
        if MASTER not in self.state:
            return views[0] if len(views) == 1 else torch.cat(views)
        master, shown = self.state[MASTER], torch.cat(views)
        # Where somebody else has written to the parameter, theirs is the truth.
        return master.copy_(torch.where(shown == master.to(shown.dtype), master, shown.to(master.dtype)))

    def move(
        self,
        change: Tensor,
        divisor: Tensor | None = None,
        *,
        keep_before: float = 1.0,
        scale: float = 1.0,
        keep_after: float = 1.0,
    ) -> None:
        """Set w ← keep_after·(keep_before·w − scale·change/divisor)."""
        targets = [self.weights()] if MASTER in self.state else self._places()
        if keep_before != 1.0:
            torch._foreach_mul_(targets, keep_before)
        if divisor is None:
            torch._foreach_add_(targets, _split_like(change, targets), alpha=-scale)
        else:
            torch._foreach_addcdiv_(targets, _split_like(change, targets), _split_like(divisor, targets), value=-scale)
        if keep_after != 1.0:
            torch._foreach_mul_(targets, keep_after)
        if MASTER in self.state:
            places = self._places()
            torch._foreach_copy_(places, _split_like(targets[0], places))

    def _views(self) -> list[Tensor]:
        return [piece.view(piece.parameter.detach()) for piece in self.pieces]

    def _places(self) -> list[Tensor]:
        return [piece.place(piece.parameter.detach()) for piece in self.pieces]


def _split_like(stack: Tensor, places: Sequence[Tensor]) -> list[Tensor]:
    """Divide a stack among its pieces, each shaped as its place is."""
    parts = stack.split_with_sizes([len(place) for place in places])
    return [part.reshape(place.shape) for part, place in zip(parts, places, strict=True)]


def is_hidden_matrix(shape: Sequence[int], block: str) -> bool:
    """Return whether a shape is that of matrices other than embedding and head; one row or one column is a vector."""
    return len(shape) >= 2 and min(shape[-2:]) > 1 and block not in ("emb", "out")


def stays_with_base(shape: Sequence[int], block: str) -> bool:
    """Return whether a parameter is left to the base optimizer whatever LITE's settings are.

    In the published runs biases of hidden matrices are, and what has one row or column, as a shared expert's gate.
    """
    return block not in ("emb", "norm", "out") and not is_hidden_matrix(shape, block)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of the state and of all arithmetic: float32 for anything below it."""
    return torch.float32 if dtype in _LOW_PRECISION else dtype


def build_buckets(
    pieces: Sequence[tuple[Piece, Mapping[str, Any]]],
    states: Mapping[Tensor, dict[str, Any]],
) -> list[Bucket]:
    """Sort pieces into buckets, take over the state they have and point `states` at the stacked tensors.

    Args:
        pieces: With the parameter group each belongs to.
        states: Parameter → its state: "step", and tensors by name; new ones are added.

    Cost: one copy of the state of every bucket with more than one piece.
    """
    sorted_pieces: dict[tuple[Any, ...], list[tuple[Piece, Mapping[str, Any]]]] = {}
    for piece, group in pieces:
        kept = piece.parameter
        step = states[kept].setdefault("step", 0)
        alone = None if piece.geometry.stacked_on_cpu or kept.is_cuda else (piece.name, piece.suffix)
        key = (id(group), piece.geometry.name, piece.block, piece.shape[1:], kept.dtype, kept.device, step, alone)
        sorted_pieces.setdefault(key, []).append((piece, group))
    buckets = []
    for members in sorted_pieces.values():
        for chunk in _chunks(members):
            bucket = Bucket(
                geometry=chunk[0][0].geometry,
                group=chunk[0][1],
                pieces=[piece for piece, _ in chunk],
                step=states[chunk[0][0].parameter]["step"],
            )
            _adopt_state(bucket, states)
            buckets.append(bucket)
    return buckets


def _chunks(members: list[tuple[Piece, Mapping[str, Any]]]) -> list[list[tuple[Piece, Mapping[str, Any]]]]:
    """Divide a bucket whose stack would be large."""
    entries = members[0][0].shape.numel()
    length = max(1, _LARGEST_STACK // max(entries, 1))
    return [members[start : start + length] for start in range(0, len(members), length)]


def _adopt_state(bucket: Bucket, states: Mapping[Tensor, dict[str, Any]]) -> None:
    views = [piece.view(piece.parameter.detach()) for piece in bucket.pieces]
    count = sum(len(view) for view in views)
    precision = state_dtype(views[0].dtype)
    bucket.state = bucket.pieces[0].new_state(count, bucket.group, precision, views[0].device)
    if views[0].dtype in _LOW_PRECISION:
        bucket.state[MASTER] = torch.cat(views).to(precision)
    start = 0
    for piece, view in zip(bucket.pieces, views, strict=True):
        own, part = states[piece.parameter], slice(start, start + len(view))
        to_renew = False
        for name, stacked in bucket.state.items():
            slot = stacked[part] if piece.is_stack else stacked[start]
            kept = own.get(name + piece.suffix)
            # What can be renewed may have another shape: hyperparameters decide on it.
            if kept is not None and (name not in piece.geometry.renewable or kept.shape == slot.shape):
                slot.copy_(kept)
            else:
                to_renew = to_renew or name in piece.geometry.renewable
            own[name + piece.suffix] = slot
        for name in piece.geometry.renewable:
            if name not in bucket.state:
                own.pop(name + piece.suffix, None)
        if to_renew and bucket.step:
            piece.geometry.renew({name: stacked[part] for name, stacked in bucket.state.items()})
        start += len(view)
