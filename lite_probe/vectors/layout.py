"""How parameters lie in one flat vector, whole or restricted to a block."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lite_probe.errors import InputError
from lite_probe.results.blocks import BlockMap, BlockPart


@dataclass(frozen=True, slots=True)
class Piece:
    """One stretch of the flat vector: a parameter, or rows or columns of it."""

    parameter: int  # index into `ParameterLayout.parameters`
    shape: torch.Size  # of the piece
    offset: int  # into the flat vector
    part: BlockPart | None  # None: the whole parameter

    @property
    def numel(self) -> int:
        """Entries of the piece."""
        return self.shape.numel()


class ParameterLayout:
    """θ ∈ R^N, trainable parameters in `named_parameters()` order, tied weights once.

    Args:
        named_parameters: (name, parameter) pairs; those that need no gradient are left out.
        block: Restrict to one block of `block_map`.
        block_map: Name → parts; needed with `block`.

    Attributes:
        size: N.
        whole_size: Of the vector that this one is a slice of, where several ranks hold the model in shards; else N.

    Raises:
        InputError: If a parameter is sharded: autograd returns no gradient for it, without an error.
    """

    def __init__(
        self,
        named_parameters: Sequence[tuple[str, nn.Parameter]],
        *,
        block: str | None = None,
        block_map: BlockMap | None = None,
    ) -> None:
        self.names: list[str] = []
        self.parameters: list[nn.Parameter] = []
        self.pieces: list[Piece] = []
        offset = 0
        require_whole(parameter for _, parameter in named_parameters)
        for name, parameter in named_parameters:
            if not parameter.requires_grad:
                continue
            shapes = _shapes_in_block(name, parameter, block, block_map)
            if not shapes:
                continue
            self.names.append(name)
            self.parameters.append(parameter)
            for part, shape in shapes:
                self.pieces.append(Piece(len(self.parameters) - 1, shape, offset, part))
                offset += shape.numel()
        self.size = self.whole_size = offset

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the pieces of a flat (N,) vector as views of it, without a copy."""
        return [flat[p.offset : p.offset + p.numel].view(p.shape) for p in self.pieces]

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """Return one tensor per parameter, of its shape; entries outside the block are zero."""
        result: list[Tensor | None] = [None] * len(self.parameters)
        for piece, view in zip(self.pieces, self.views(flat), strict=True):
            if piece.part is None:
                result[piece.parameter] = view
                continue
            padded = result[piece.parameter]
            if padded is None:
                padded = torch.zeros_like(self.parameters[piece.parameter], requires_grad=False)
                result[piece.parameter] = padded
            narrow(padded, piece.part).copy_(view)
        return [tensor for tensor in result if tensor is not None]

    @torch.no_grad()
    def read(self, out: Tensor | None = None) -> Tensor:
        """Return the parameters as one flat vector, in `out` where it is given."""
        first = self.parameters[0]
        flat = torch.empty(self.size, dtype=first.dtype, device=first.device) if out is None else out
        for piece, view in zip(self.pieces, self.views(flat), strict=True):
            parameter = self.parameters[piece.parameter]
            view.copy_(parameter if piece.part is None else narrow(parameter, piece.part))
        return flat

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """Set the parameters, or the block's part of them, to a flat vector."""
        for piece, view in zip(self.pieces, self.views(flat), strict=True):
            parameter = self.parameters[piece.parameter]
            (parameter if piece.part is None else narrow(parameter, piece.part)).copy_(view)

    def accumulate(self, flat: Tensor, tensors: Sequence[Tensor | None], weight: float) -> None:
        """Add `weight` times one tensor per parameter to a flat vector; None counts as zero."""
        for piece, view in zip(self.pieces, self.views(flat), strict=True):
            tensor = tensors[piece.parameter]
            if tensor is not None:
                source = tensor if piece.part is None else narrow(tensor, piece.part)
                view.add_(source, alpha=weight)


def is_sharded(parameter: Tensor) -> bool:
    """Whether a parameter is a DTensor of torch.distributed, which need not be loaded to tell."""
    return hasattr(parameter, "device_mesh")


def require_whole(parameters: Iterable[Tensor]) -> None:
    """Refuse parameters of which this process holds a shard: `torch.autograd.grad` has no gradient for them.

    Raises:
        InputError: If one is a DTensor, as of FSDP2.
    """
    found = [is_sharded(parameter) for parameter in parameters]
    if any(found):
        raise InputError(
            f"expected whole parameters on every rank, got {sum(found)} of {len(found)} as shards (DTensor)",
            "load the whole model on every rank; for a spectrum by finite differences, let "
            "lite_probe.operators.sharding.shard_task cut it",
        )


def narrow(tensor: Tensor, part: BlockPart) -> Tensor:
    """Return the rows or columns of a tensor that a part names, as a view.

    Where they come in every period, the dimension becomes two: (periods, rows of each).
    """
    dim = part.dim
    if part.period is not None:
        tensor = tensor.view(*tensor.shape[:dim], -1, part.period, *tensor.shape[dim + 1 :])
        dim += 1
    stop = tensor.shape[dim] if part.stop is None else part.stop
    return tensor.narrow(dim, part.start, stop - part.start)


def _shapes_in_block(
    name: str, parameter: Tensor, block: str | None, block_map: BlockMap | None
) -> list[tuple[BlockPart | None, torch.Size]]:
    """Return the parts of one parameter that lie in the block, with their shapes."""
    if block is None or block_map is None:
        return [(None, parameter.shape)]
    inside = [part for part in block_map[name] if part.block == block]
    if len(inside) == len(block_map[name]):
        return [(None, parameter.shape)]
    return [(part, narrow(parameter, part).shape) for part in _merged(inside)]


def _merged(parts: Sequence[BlockPart]) -> list[BlockPart]:
    """Join parts that follow one another: the query and key rows of a fused weight are one stretch."""
    merged: list[BlockPart] = []
    for part in parts:
        if merged and replace(merged[-1], start=part.start, stop=part.stop) == part and merged[-1].stop == part.start:
            merged[-1] = replace(merged[-1], stop=part.stop)
        else:
            merged.append(part)
    return merged
