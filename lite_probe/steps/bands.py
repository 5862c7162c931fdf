"""The bands of a step: each optimizer's own directions, the leading ones by rank, the rest by share.

Where a geometry's directions are singular vectors (Muon) the first eight of every matrix are bands of their own: 1, 2–4
and 5–8. Where they are coordinates (AdamW's entries, SOAP's rotated ones) the leading thousandth of a block's is.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lite_probe.optim import Directions
from lite_probe.results import replay
from lite_probe.results.blocks import BLOCK_NAMES
from lite_probe.results.steps import FIRST_RANK, StepBands
from lite_probe.subspaces.bands import Bands, Labelled
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

    Cost: a sort of N numbers.
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
        own = sorted({int(key) for one in keys for key in torch.unique(one).tolist()})
        sizes = np.array([_dimensions(members, keys, key) for key in own], dtype=np.int64)
        edges = np.concatenate([[0.0], np.cumsum(sizes) / sizes.sum()])
        table = replay.Bands(
            optimizer=optimizer, blocks=(block,) * len(own), low=edges[:-1], high=edges[1:], dimensions=sizes
        )
        bands = Bands(layout, _labelled(layout, members, keys, own), table, np.zeros(len(own)), {})
        found.append(BlockBands(block, layout, bands, first=len(present)))
        present += own
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
    layout: ParameterLayout, members: Sequence[Directions], keys: Sequence[Tensor], present: Sequence[int]
) -> list[Labelled]:
    """Return the pieces of a block with their bands; keys become their places among those present."""
    index = {name: place for place, name in enumerate(layout.names)}
    known = torch.tensor(present, dtype=torch.int16)
    return [
        Labelled(
            directions=one,
            parameter=index[one.piece.name],
            labels=torch.bucketize(key, known.to(key.device)).to(torch.int16),
            is_column=key.numel() < one.piece.shape.numel(),
        )
        for one, key in zip(members, keys, strict=True)
    ]


def _keys(members: Sequence[Directions]) -> list[Tensor]:
    """Return, per piece, the index into `_NAMES` of each direction's band."""
    alone = [one for one in members if not _is_ranked(one)]
    shared = iter(_by_share([_expanded(one) for one in alone]))
    return [_by_rank(one.proxy) if _is_ranked(one) else next(shared) for one in members]


def _is_ranked(one: Directions) -> bool:
    """Whether a direction stands for a column: a singular vector."""
    return 1 < one.proxy.numel() < one.piece.shape.numel()


def _expanded(one: Directions) -> Tensor:
    return one.proxy if one.proxy.ndim else one.proxy.expand(one.piece.shape)


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


def _by_share(proxies: Sequence[Tensor]) -> list[Tensor]:
    """Label coordinates within their block."""
    if not proxies:
        return []
    values = torch.cat([proxy.flatten() for proxy in proxies])
    order = values.argsort(descending=True, stable=True)
    seen = int((values > 0).sum())
    shares = (torch.arange(len(values), device=values.device, dtype=torch.float64) + 0.5) / max(seen, 1)
    labels = torch.empty(len(values), dtype=torch.int16, device=values.device)
    labels[order] = _shares(shares).to(torch.int16)
    labels[values <= 0] = _UNORDERED
    parts = labels.split_with_sizes([proxy.numel() for proxy in proxies])
    return [part.view(proxy.shape) for part, proxy in zip(parts, proxies, strict=True)]


def _shares(shares: Tensor) -> Tensor:
    edges = torch.tensor(_SHARES[:-1], dtype=shares.dtype, device=shares.device)
    return torch.bucketize(shares, edges, right=True) + _BY_SHARE


def _dimensions(members: Sequence[Directions], keys: Sequence[Tensor], key: int) -> int:
    """Return the dimensions of one band."""
    pairs = zip(members, keys, strict=True)
    return sum(int((own == key).sum()) * (one.piece.shape.numel() // own.numel()) for one, own in pairs)
