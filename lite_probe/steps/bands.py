"""The bands of a step: each optimizer's own directions, the leading ones by rank, the rest by share.

Where a geometry's directions are singular vectors (Muon) the first eight of every matrix are bands of their own: 1, 2–4
and 5–8. Where they are coordinates (AdamW's entries, SOAP's rotated ones) the leading thousandth of a block's is.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.optim import Directions
from lite_probe.results import replay
from lite_probe.results.blocks import BLOCK_NAMES
from lite_probe.results.steps import FIRST_RANK, StepBands
from lite_probe.subspaces.bands import Bands, Labelled, order_of, renumbered
from lite_probe.subspaces.cuts import stretches
from lite_probe.vectors.layout import ParameterLayout

_RANKS = (1, 4, 8)  # singular directions of every matrix up to which there are bands of their own
_SHARES = (0.001, 0.01, 0.1, 0.4, 1.0)  # of a block's ordered directions
_NAMES = (FIRST_RANK, "ranks 2–4", "ranks 5–8", "to 0.1%", "to 1%", "1–10%", "10–40%", "40–100%", "unordered")
_PARTS = ("sharp",) * 6 + ("middle", "flat", "flat")
_RANKED_TO = 0.1  # share of a matrix's directions beyond which ranks are not told apart
_BY_SHARE, _UNORDERED = len(_RANKS), len(_NAMES) - 1


class BlockBands:
    """The bands of one block under one optimizer, on the parameters that have a part in the block.

    Args:
        block: Its name.
        layout: Of those parameters, whole.
        bands: In that layout.
        first: Index of the first band among those of all blocks.
    """

    def __init__(self, block: str, layout: ParameterLayout, bands: Bands, first: int) -> None:
        self.block = block
        self.layout = layout
        self.bands = bands
        self.places = range(first, first + len(bands))


def cut_step_bands(
    named_parameters: Sequence[tuple[str, torch.nn.Parameter]], directions: Sequence[Directions], *, optimizer: str
) -> tuple[list[BlockBands], StepBands]:
    """Order the directions of each block by the optimizer's proxy and cut them into bands.

    Singular directions are ordered within their matrix, coordinates within their block; those whose proxy is 0 have no
    order and are the last band. Bands without a direction are left out.

    Args:
        named_parameters: All of the model.
        directions: From the optimizer's state; they partition the parameters.
        optimizer: Its name.

    Cost: a few passes over N numbers; beside the labels, of two bytes each, a stretch of them.
    """
    found: list[BlockBands] = []
    present: list[int] = []  # of every band, its index into `_NAMES`
    for block in BLOCK_NAMES:
        members = [one for one in directions if one.piece.block == block]
        if not members:
            continue
        names = {one.piece.name for one in members}
        layout = ParameterLayout([(name, parameter) for name, parameter in named_parameters if name in names])
        keys = _keys(members)
        counted = _dimensions(members, keys)
        own = np.flatnonzero(counted)
        sizes = counted[own]
        edges = np.concatenate([[0.0], np.cumsum(sizes) / sizes.sum()])
        table = replay.Bands(
            optimizer=optimizer, blocks=(block,) * len(own), low=edges[:-1], high=edges[1:], dimensions=sizes
        )
        bands = Bands(layout, _labelled(layout, members, keys, own), table, np.zeros(len(own)), {})
        found.append(BlockBands(block, layout, bands, first=len(present)))
        present += own.tolist()
    tables = [one.bands.table for one in found]
    return found, StepBands(
        blocks=tuple(block for table in tables for block in table.blocks),
        names=tuple(_NAMES[key] for key in present),
        parts=tuple(_PARTS[key] for key in present),
        low=np.concatenate([table.low for table in tables]),
        high=np.concatenate([table.high for table in tables]),
        dimensions=np.concatenate([table.dimensions for table in tables]),
    )


def _labelled(
    layout: ParameterLayout, members: Sequence[Directions], keys: Sequence[Tensor], present: NDArray[np.intp]
) -> list[Labelled]:
    """Return the pieces of a block with their bands; keys become their places among those present."""
    index = {name: place for place, name in enumerate(layout.names)}
    return [
        Labelled(
            frame=one.frame,
            parameter=index[one.piece.name],
            labels=renumbered(key.view(-1), present, 0).view(key.shape),
            is_column=key.numel() < one.piece.shape.numel(),
        )
        for one, key in zip(members, keys, strict=True)
    ]


def _keys(members: Sequence[Directions]) -> list[Tensor]:
    """Return, per piece, the index into `_NAMES` of each direction's band."""
    shared = iter(_by_share([one for one in members if not _is_ranked(one)]))
    return [_by_rank(one.proxy) if _is_ranked(one) else next(shared) for one in members]


def _is_ranked(one: Directions) -> bool:
    """Whether a direction stands for a column: a singular vector."""
    return 1 < one.proxy.numel() < one.piece.shape.numel()


def _by_rank(proxy: Tensor) -> Tensor:
    """Label singular directions, (count, 1, n), within their matrix."""
    flat = proxy.flatten(1)
    rank = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
    seen = (flat > 0).sum(dim=1, keepdim=True).clamp(min=1)
    label = _shares((rank + 0.5) / seen)
    band = torch.bucketize(rank, torch.tensor(_RANKS, device=rank.device), right=True)
    is_leading = (rank < _RANKS[-1]) & ((rank == 0) | ((rank + 1) / seen <= _RANKED_TO))
    label = torch.where(is_leading, band, label)
    return torch.where(flat > 0, label, _UNORDERED).to(torch.int16).view(proxy.shape)


def _by_share(members: Sequence[Directions]) -> list[Tensor]:
    """Label coordinates within their block."""
    if not members:
        return []
    places = order_of(members).places(_SHARES[:-1], of_seen=True)
    # Behind the last edge comes the last of the shares, and what has no order is the band behind it.
    return [place.add_(_BY_SHARE).view(one.piece.shape) for place, one in zip(places, members, strict=True)]


def _shares(shares: Tensor) -> Tensor:
    edges = torch.tensor(_SHARES[:-1], dtype=shares.dtype, device=shares.device)
    return torch.bucketize(shares, edges, right=True) + _BY_SHARE


def _dimensions(members: Sequence[Directions], keys: Sequence[Tensor]) -> NDArray[np.int64]:
    """Return the dimensions of every band of `_NAMES`."""
    counted = torch.zeros(len(_NAMES), dtype=torch.int64, device=keys[0].device)
    for one, own in zip(members, keys, strict=True):
        depth = one.piece.shape.numel() // own.numel()
        for part in stretches(own):
            counted += depth * torch.bincount(part, minlength=len(_NAMES))
    found: NDArray[np.int64] = counted.cpu().numpy()
    return found
