"""Curvature in an optimizer's own metric: F^(-1/2) H F^(-1/2), to see how far its geometry evens it out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lite_probe.operators.base import SymmetricOperator
from lite_probe.optim import Directions
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
        self._least = [_least_divisor(one.divisor, num_batches) for one in directions]
        self._scales = [
            one.divisor.clamp(min=least).rsqrt() for one, least in zip(directions, self._least, strict=True)
        ]

    @property
    def bounded_share(self) -> float:
        """Share of the parameters whose F had to be bounded."""
        bounded = total = 0.0
        for one, least in zip(self._directions, self._least, strict=True):
            size = one.piece.shape.numel()
            total += size
            bounded += size * float((one.divisor < least).double().mean())
        return bounded / total

    def _products(self, rows: Tensor) -> Tensor:
        scaled = torch.stack([self._scale(row) for row in rows])
        return torch.stack([self._scale(row) for row in self.operator.matmat(scaled.T).T.contiguous()])

    def _scale(self, vector: Tensor) -> Tensor:
        """Return F^(-1/2) x."""
        result = torch.empty_like(vector)
        sources, targets = self._layout.views(vector), self._layout.views(result)
        for one, scale in zip(self._directions, self._scales, strict=True):
            index = self._index[one.piece.name]
            rotated = one.rotate(one.piece.view(sources[index]))
            place = one.piece.place(targets[index])
            place.copy_(one.rotate_back(rotated * scale).reshape(place.shape))
        return result


def _least_divisor(divisor: Tensor, num_batches: int) -> float:
    return float((divisor.double().square().mean() / num_batches).sqrt())
