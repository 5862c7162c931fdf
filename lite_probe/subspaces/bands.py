"""Bands: the directions of each block, ordered by an optimizer's proxy of sharpness and cut by share.

The orthogonal projectors on the bands sum to I, since in its rotated coordinates every direction has one label. A band
is never materialised: what is wanted of it are inner products and energies, sums over the coordinates of its label.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.optim import Directions
from lite_probe.results import replay
from lite_probe.results.blocks import BLOCK_NAMES
from lite_probe.vectors.layout import ParameterLayout

EDGES = (0.0, 0.01, *(tenth / 10 for tenth in range(1, 11)))  # of a block's dimensions: the top 1%, then to deciles


@dataclass(frozen=True, slots=True)
class Labelled:
    """One piece of a parameter and the band of each of its directions."""

    directions: Directions
    parameter: int  # index into the layout's parameters
    labels: Tensor  # int16, of the proxy's shape: (count, m, n), or (count, 1, n) where a column is one direction
    is_column: bool  # rows of a column share a label


class Bands:
    """The bands of all blocks, B of them; blocks in their usual order, in each the sharpest first.

    Args:
        layout: Of the flat vectors that come, all parameters.
        labelled: Pieces that partition the parameters.
        table: Block, edges and dimensions of every band.
        proxies: (B,) mean proxy of each.
        unseen: Block → share of its dimensions whose proxy is 0.
    """

    def __init__(
        self,
        layout: ParameterLayout,
        labelled: Sequence[Labelled],
        table: replay.Bands,
        proxies: NDArray[np.float64],
        unseen: dict[str, float],
    ) -> None:
        self._layout = layout
        self._labelled = labelled
        self.table = table
        self.proxies = proxies
        self.unseen = unseen

    def __len__(self) -> int:
        """Return B."""
        return len(self.table.blocks)

    @property
    def num_bytes(self) -> int:
        """What labels and bases hold; bases may be views of an optimizer's state."""
        tensors = [
            tensor
            for one in self._labelled
            for tensor in (one.labels, one.directions.left, one.directions.right)
            if tensor is not None
        ]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def products_of(self, vectors: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> Tensor:
        """Return xᵀP_b y for some pairs of vectors and every band, (p, B) float64.

        Args:
            vectors: Each (N,).
            pairs: Which of them to multiply, by index.

        Cost: a rotation of each vector and a pass for each pair, piece by piece: no copy of a vector is made.
        """
        views = [self._layout.views(vector) for vector in vectors]
        total = torch.zeros(len(pairs), len(self), dtype=torch.float64, device=vectors[0].device)
        for one in self._labelled:
            rotated = [one.directions.rotate(one.directions.piece.view(view[one.parameter])) for view in views]
            for row, (first, second) in enumerate(pairs):
                product = (rotated[first] * rotated[second]).double()
                if one.is_column:
                    product = product.sum(dim=-2, keepdim=True)
                total[row] += torch.bincount(one.labels.flatten(), weights=product.flatten(), minlength=len(self))
        return total

    def products(self, x: Tensor, y: Tensor) -> Tensor:
        """Return xᵀP_b y for every band, (N,) × (N,) → (B,) float64."""
        return self.products_of([x, y], [(0, 1)])[0]

    def project(self, vector: Tensor, chosen: Sequence[int]) -> Tensor:
        """Return Σ_b P_b x over the chosen bands, (N,) → (N,). Cost: a rotation there and back."""
        weights = torch.zeros(len(self), dtype=vector.dtype, device=vector.device)
        weights[list(chosen)] = 1.0
        return self.weighted(vector, weights)

    def weighted(self, vector: Tensor, weights: Tensor) -> Tensor:
        """Return Σ_b w_b P_b x, (N,) and (B,) → (N,). Cost: a rotation there and back."""
        result = torch.zeros_like(vector)
        targets = self._layout.views(result)
        views = self._layout.views(vector)
        for one in self._labelled:
            rotated = one.directions.rotate(one.directions.piece.view(views[one.parameter]))
            kept = one.directions.rotate_back(rotated * weights[one.labels.long()])
            place = one.directions.piece.place(targets[one.parameter])
            place.copy_(kept.reshape(place.shape))
        return result


def cut_bands(layout: ParameterLayout, directions: Sequence[Directions], *, optimizer: str) -> Bands:
    """Order the directions of each block by the proxy and cut them into bands: the top 1%, to 10%, then deciles.

    A direction of several dimensions (a singular vector stands for a column of the matrix) is in one band, that of its
    middle. Directions whose proxy is 0 have no order: they are one band, the last. Bands without a direction are left
    out.

    Args:
        layout: All parameters.
        directions: From an optimizer's state; they partition the parameters.
        optimizer: Its name, for the record.

    Cost: a sort of N numbers.
    """
    index = {name: place for place, name in enumerate(layout.names)}
    blocks = [one for one in BLOCK_NAMES if any(part.piece.block == one for part in directions)]
    labels: dict[int, Tensor] = {}
    rows: list[tuple[str, float, float, int, float]] = []
    unseen = {}
    for block in blocks:
        members = [part for part in directions if part.piece.block == block]
        proxies = [_expanded(part) for part in members]
        depths = [_size(part) // proxy.numel() for part, proxy in zip(members, proxies, strict=True)]
        own, block_rows, unseen[block] = _cut(proxies, depths, first=len(rows))
        rows += [(block, *row) for row in block_rows]
        labels |= {id(part): one for part, one in zip(members, own, strict=True)}
    labelled = [
        Labelled(
            directions=part,
            parameter=index[part.piece.name],
            labels=labels[id(part)],
            is_column=labels[id(part)].numel() < _size(part),
        )
        for part in directions
    ]
    table = replay.Bands(
        optimizer=optimizer,
        blocks=tuple(row[0] for row in rows),
        low=np.array([row[1] for row in rows]),
        high=np.array([row[2] for row in rows]),
        dimensions=np.array([row[3] for row in rows], dtype=np.int64),
    )
    return Bands(layout, labelled, table, np.array([row[4] for row in rows]), unseen)


def _size(part: Directions) -> int:
    return part.piece.shape.numel()


def _expanded(part: Directions) -> Tensor:
    """Return a proxy with one entry per direction; where one number stands for all, it is spread over the piece."""
    if part.proxy.ndim:
        return part.proxy
    return part.proxy.to(part.piece.parameter.detach()).expand(part.piece.shape)


def _cut(
    proxies: Sequence[Tensor], depths: Sequence[int], *, first: int
) -> tuple[list[Tensor], list[tuple[float, float, int, float]], float]:
    """Cut one block: return labels of each piece, (low, high, dimensions, mean proxy) per band, and the unseen share.

    Args:
        proxies: Per piece, one entry per direction.
        depths: Dimensions of each direction of a piece.
        first: Label of the block's first band.
    """
    values = torch.cat([proxy.flatten() for proxy in proxies]).double()
    sizes = torch.cat([torch.full((p.numel(),), d, device=p.device) for p, d in zip(proxies, depths, strict=True)])
    order = values.argsort(descending=True, stable=True)
    ordered = sizes[order].double()
    total = float(ordered.sum())
    middles = (ordered.cumsum(0) - 0.5 * ordered) / total
    edges = torch.tensor(EDGES[1:-1], dtype=torch.float64, device=values.device)
    places = torch.bucketize(middles, edges, right=True)
    is_unseen = values[order] <= 0
    unseen = float(ordered[is_unseen].sum()) / total
    places[is_unseen] = len(EDGES)  # behind all others
    found, dense = torch.unique(places, return_inverse=True)
    count = len(found)
    dimensions = torch.bincount(dense, weights=ordered, minlength=count)
    means = torch.bincount(dense, weights=ordered * values[order], minlength=count) / dimensions
    bounds = [1.0 - unseen if place == len(EDGES) else EDGES[place] for place in found.tolist()] + [1.0]
    bounds[0] = 0.0
    rows = [(bounds[place], bounds[place + 1], int(dimensions[place]), float(means[place])) for place in range(count)]
    labels = torch.empty(len(values), dtype=torch.int16, device=values.device)
    labels[order] = (dense + first).to(torch.int16)
    parts = labels.split_with_sizes([proxy.numel() for proxy in proxies])
    return [part.view(proxy.shape) for part, proxy in zip(parts, proxies, strict=True)], rows, unseen
