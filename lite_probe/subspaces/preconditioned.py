"""Curvature in an optimizer's own metric: F^(-1/2) H F^(-1/2), to see how far its geometry evens it out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lite_probe.operators.base import SymmetricOperator
from lite_probe.optim import Directions
from lite_probe.subspaces.cuts import stretches
from lite_probe.vectors.layout import ParameterLayout


class PreconditionedOperator(SymmetricOperator):
    """F^(-1/2) A F^(-1/2) for a symmetric A and an F that is diagonal in each piece's directions.

    F² is bounded from below by its mean over the piece, divided by the number of batches it was averaged over: an
    average cannot tell less from what the next batch alone would bring. Without the bound one rare token, which other
    batches happen to hold, is all there is to λ₁: where they do not, its row of the embedding is divided by next to
    nothing.

    Args:
        operator: A, on all parameters.
        layout: Of its vectors.
        directions: F in their coordinates; they partition the parameters.
        num_batches: Behind F, W.

    Cost of a product: one of A, and four rotations.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        layout: ParameterLayout,
        directions: Sequence[Directions],
        *,
        num_batches: int,
    ) -> None:
        super().__init__(operator.size, device=operator.device, dtype=operator.dtype)
        self.vectors_per_pass = operator.vectors_per_pass
        self.operator = operator
        self._layout = layout
        self._directions = directions
        self._index = {name: place for place, name in enumerate(layout.names)}
        squares = torch.stack([_mean_square(one.divisor) for one in directions])
        self._least: list[float] = (squares / num_batches).sqrt().tolist()

    @property
    def bounded_share(self) -> float:
        """Share of the parameters whose F had to be bounded."""
        below = [(one.divisor < least).sum() for one, least in zip(self._directions, self._least, strict=True)]
        shares = [
            found / one.divisor.numel()
            for found, one in zip(torch.stack(below).tolist(), self._directions, strict=True)
        ]
        sizes = [one.piece.shape.numel() for one in self._directions]
        return sum(size * share for size, share in zip(sizes, shares, strict=True)) / sum(sizes)

    def _products(self, rows: Tensor) -> Tensor:
        scaled = torch.empty_like(rows)
        for row, target in zip(rows, scaled, strict=True):
            self._scale(row, target)
        images = self.operator.matmat(scaled.T).T.contiguous()
        del scaled
        for image in images:
            self._scale(image, image)
        return images

    def _scale(self, vector: Tensor, result: Tensor) -> None:
        """Write F^(-1/2) x into a vector, which may be x."""
        sources, targets = self._layout.views(vector), self._layout.views(result)
        for one, least in zip(self._directions, self._least, strict=True):
            index = self._index[one.piece.name]
            scaled = one.rotate(one.piece.view(sources[index])) * one.divisor.clamp(min=least).rsqrt_()
            place = one.piece.place(targets[index])
            place.copy_(one.rotate_back(scaled).reshape(place.shape))


def _mean_square(divisor: Tensor) -> Tensor:
    """Return the mean of F² in float64, of a stretch at a time."""
    parts = [part.double().square().sum() for part in stretches(divisor)]
    return torch.stack(parts).sum() / divisor.numel()
