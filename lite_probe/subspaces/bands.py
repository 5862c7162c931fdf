"""Bands: the directions of each block, ordered by an optimizer's proxy of sharpness and cut by share.

The orthogonal projectors on the bands sum to I, since in its rotated coordinates every direction has one label. A band
is never materialised: what is wanted of it are inner products and energies, sums over the coordinates of its label.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.optim import Directions, Frame
from lite_probe.results import replay
from lite_probe.results.blocks import BLOCK_NAMES
from lite_probe.subspaces.cuts import STRETCH, Order, sums_by_label
from lite_probe.vectors.layout import ParameterLayout

EDGES = (0.0, 0.01, *(tenth / 10 for tenth in range(1, 11)))  # of a block's dimensions: the top 1%, then to deciles


@dataclass(frozen=True, slots=True)
class Labelled:
    """One piece of a parameter and the band of each of its directions."""

    frame: Frame
    parameter: int  # index into the layout's parameters
    labels: Tensor  # int16, of the proxy's shape: (count, m, n), or (count, 1, n) where a column is one direction
    is_column: bool  # rows of a column share a label

    def rows(self, x: Tensor) -> Tensor:
        """Return a piece so that stretches of it are ranges of rows; what is not rotated has rows of one entry."""
        return x.reshape(-1, 1) if self._is_flat else x

    def stretches(self, shape: Sequence[int]) -> Iterator[slice]:
        """Yield ranges of rows that can be rotated by themselves; where columns are rotated all come at once."""
        count = shape[-2]
        length = count if self.frame.left is not None else max(1, STRETCH * count // max(math.prod(shape), 1))
        for start in range(0, count, length):
            yield slice(start, min(start + length, count))

    def labels_of(self, part: slice) -> Tensor:
        """Return the bands of some rows."""
        return self.labels if self.is_column else self.rows(self.labels)[..., part, :]

    @property
    def _is_flat(self) -> bool:
        return self.frame.left is None and self.frame.right is None and not self.is_column


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
        self._own = {block: slice(places[0], places[-1] + 1) for block, places in table.places.items()}

    def __len__(self) -> int:
        """Return B."""
        return len(self.table.blocks)

    @property
    def num_bytes(self) -> int:
        """What labels and bases hold; bases may be views of an optimizer's state."""
        tensors = [
            tensor
            for one in self._labelled
            for tensor in (one.labels, one.frame.left, one.frame.right)
            if tensor is not None
        ]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def products_of(self, vectors: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> Tensor:
        """Return xᵀP_b y for some pairs of vectors and every band, (p, B) float64.

        Args:
            vectors: Each (N,).
            pairs: Which of them to multiply, by index.

        Cost: a rotation of each vector and a pass for each pair, by stretches of a piece where its rows can be rotated
        by themselves, else piece by piece: no copy of a vector is made.
        """
        views = [self._layout.views(vector) for vector in vectors]
        total = torch.zeros(len(pairs), len(self), dtype=torch.float64, device=vectors[0].device)
        for one in self._labelled:
            own = self._own[one.frame.piece.block]
            sources = [one.rows(one.frame.piece.view(view[one.parameter])) for view in views]
            for part in one.stretches(sources[0].shape):
                rotated = [one.frame.rotate(source[..., part, :]) for source in sources]
                labels = one.labels_of(part).flatten() - own.start
                for row, (first, second) in enumerate(pairs):
                    product = (rotated[first] * rotated[second]).double()
                    if one.is_column:
                        product = product.sum(dim=-2, keepdim=True)
                    total[row, own] += sums_by_label(product.flatten(), labels, own.stop - own.start)
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
            piece = one.frame.piece
            place = piece.place(targets[one.parameter])
            is_whole = place.shape == piece.shape and place.is_contiguous()
            kept = place if is_whole else vector.new_empty(piece.shape)
            source, target = one.rows(piece.view(views[one.parameter])), one.rows(kept)
            for part in one.stretches(source.shape):
                rotated = one.frame.rotate(source[..., part, :])
                target[..., part, :] = one.frame.rotate_back(rotated * weights[one.labels_of(part).long()])
            if not is_whole:
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

    Cost: a few passes over N numbers; beside the labels, of two bytes each, a stretch of them.
    """
    index = {name: place for place, name in enumerate(layout.names)}
    blocks = [one for one in BLOCK_NAMES if any(part.piece.block == one for part in directions)]
    labels: dict[int, Tensor] = {}
    rows: list[tuple[str, float, float, int, float]] = []
    unseen = {}
    for block in blocks:
        members = [part for part in directions if part.piece.block == block]
        own, block_rows, unseen[block] = _cut(members, first=len(rows))
        rows += [(block, *row) for row in block_rows]
        labels |= {id(part): one for part, one in zip(members, own, strict=True)}
    labelled = [
        Labelled(
            frame=part.frame,
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


def _cut(
    members: Sequence[Directions], *, first: int
) -> tuple[list[Tensor], list[tuple[float, float, int, float]], float]:
    """Cut one block: return labels of each piece, (low, high, dimensions, mean proxy) per band, and the unseen share.

    Args:
        members: The block's pieces.
        first: Label of the block's first band.
    """
    order = order_of(members)
    places = order.places(EDGES[1:-1])
    sizes, means = order.tally(places, len(EDGES))
    present = np.flatnonzero(sizes)
    unseen = float(sizes[-1]) / order.size
    bounds = [1.0 - unseen if place == len(EDGES) - 1 else EDGES[place] for place in present.tolist()] + [1.0]
    bounds[0] = 0.0
    rows = [(bounds[row], bounds[row + 1], int(sizes[place]), float(means[place])) for row, place in enumerate(present)]
    labels = [
        renumbered(own, present, first).view(_shape_of_labels(part)) for part, own in zip(members, places, strict=True)
    ]
    return labels, rows, unseen


def order_of(members: Sequence[Directions]) -> Order:
    """Return some pieces' directions in the order of their proxy; a single number stands for every entry of a piece."""
    counts = [_shape_of_labels(one).numel() for one in members]
    depths = [_size(one) // count for one, count in zip(members, counts, strict=True)]
    return Order([one.proxy for one in members], counts, depths)


def renumbered(labels: Tensor, present: NDArray[np.integer], first: int) -> Tensor:
    """Replace labels by their places among those present, counted from `first`, in place."""
    table = torch.zeros(int(present.max()) + 1, dtype=torch.int16)
    table[torch.from_numpy(present)] = torch.arange(first, first + len(present), dtype=torch.int16)
    table = table.to(labels.device)
    for start in range(0, labels.numel(), STRETCH):
        part = slice(start, start + STRETCH)
        labels[part] = table[labels[part].long()]
    return labels


def _shape_of_labels(part: Directions) -> torch.Size:
    return part.proxy.shape if part.proxy.ndim else part.piece.shape
