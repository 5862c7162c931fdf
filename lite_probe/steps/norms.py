"""Sharpness in the norm that an optimizer steps in: S = max dᵀHd over ‖d‖ = 1 (arXiv 2603.05002).

λ₁ is the largest curvature among steps of one Euclidean length. An optimizer whose steps have one length in another
norm meets another curvature, and becomes unstable at another learning rate.

Its unit ball holds the steps that it could make at learning rate 1, its steepest one being argmax ⟨−g, d⟩ over it:

* Muon's matrices: singular values up to the matrix's own step scale; the steepest is −scale·UVᵀ of g = UΣVᵀ.
* AdamW's parameters, Muon's embedding, head and vectors among them: entries up to 1, the limit in which m/√v is the
  gradient's sign. Steps of noisy gradients are shorter.
* SOAP's matrices: the same in its eigenbasis.
* Gradient descent: Euclidean norm up to 1, of all parameters together; its steps are ‖g‖ times as long.

Pieces move all at once: the ball of several is their product, ‖d‖ is the largest of their norms, and the dual norm
‖g‖_* = max ⟨g, d⟩ the sum of theirs. A variant of LITE has the ball of its base optimizer.

The maximum of a quadratic form over such a ball is out of reach, for entries as hard as the largest cut of a graph:
what is found is a lower bound.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lite_probe.errors import InputError
from lite_probe.operators.base import SymmetricOperator
from lite_probe.optim import Directions, Frame, LiteOptimizer, msign
from lite_probe.optim.msign import step_scale
from lite_probe.results.subspace import NormSharpness
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.reductions import dot, norm

_MSIGN_STEPS = 12  # singular values down to 1e-5 of a matrix's norm come to 1
_ENTRYWISE, _SPECTRAL, _EUCLIDEAN = ("diagonal", "kronecker"), ("orthogonal",), ("euclidean",)  # names of geometries


class UnitBall(Protocol):
    """Steps of length 1 at most, in the norm of an optimizer."""

    @property
    def norm(self) -> str:
        """The norm in words."""

    @property
    def is_normalised(self) -> bool:
        """Whether a step at learning rate 1 has length 1 however large the gradient is, and not ‖g‖_*."""

    def steepest(self, vector: Tensor) -> Tensor:
        """Return argmax ⟨x, d⟩ over the ball, (N,) → (N,); ⟨x, d⟩ is then the dual norm of x."""


class EuclideanBall:
    """‖d‖₂ ≤ 1, all parameters together."""

    norm = "Euclidean"
    is_normalised = False

    def steepest(self, vector: Tensor) -> Tensor:
        """Return x/‖x‖, zero for zero."""
        length = norm(vector)
        return vector / length if length > 0.0 else torch.zeros_like(vector)


class ProductBall:
    """A ball for every piece: singular values of a matrix up to its scale, or entries in its coordinates up to 1.

    Args:
        layout: Of the vectors.
        frames: Pieces that partition the parameters; where entries count, they do in their coordinates.
        scales: For each, the largest singular value that its matrices may have; None where entries count.
    """

    is_normalised = True

    def __init__(self, layout: ParameterLayout, frames: Sequence[Frame], scales: Sequence[float | None]) -> None:
        self._layout = layout
        self._pieces = list(zip(frames, scales, strict=True))
        self._index = {name: place for place, name in enumerate(layout.names)}

    @property
    def norm(self) -> str:
        """The norm in words."""
        entrywise = [one for one, scale in self._pieces if scale is None]
        is_rotated = any(one.left is not None or one.right is not None for one in entrywise)
        entries = "largest entry in its eigenbases" if is_rotated else "largest entry"
        if not entrywise:
            return "largest singular value of matrices"
        return entries if len(entrywise) == len(self._pieces) else f"largest singular value of matrices, else {entries}"

    def steepest(self, vector: Tensor) -> Tensor:
        """Return scale·UVᵀ of each matrix UΣVᵀ, or the signs of entries.

        msign of 12 steps stands for UVᵀ: singular directions below 1e-5 of a matrix's norm come out shorter.
        """
        result = torch.empty_like(vector)
        sources, targets = self._layout.views(vector), self._layout.views(result)
        for one, scale in self._pieces:
            index = self._index[one.piece.name]
            source = one.piece.view(sources[index])
            if scale is None:
                found = one.rotate_back(one.rotate(source).sign())
            else:
                precise = source.to(torch.promote_types(source.dtype, torch.float32))
                found = msign(precise, steps=_MSIGN_STEPS).mul_(scale)
            place = one.piece.place(targets[index])
            place.copy_(found.reshape(place.shape))
        return result


def unit_ball(optimizer: LiteOptimizer, layout: ParameterLayout, directions: Sequence[Directions]) -> UnitBall:
    """Return the ball of an optimizer's steps at learning rate 1.

    Args:
        optimizer: Knows the scale of each matrix's step.
        layout: Of the parameters.
        directions: The optimizer's own.

    Raises:
        InputError: If a geometry makes steps of which no norm is known, or gradient descent is one of several.
    """
    kinds = {one.piece.geometry.name for one in directions}
    if kinds == {*_EUCLIDEAN}:
        return EuclideanBall()
    if not kinds <= {*_ENTRYWISE, *_SPECTRAL}:
        raise InputError(
            f"expected steps of a known norm, by geometries among {', '.join((*_ENTRYWISE, *_SPECTRAL))}, or by "
            f"{', '.join(_EUCLIDEAN)} alone, got {', '.join(sorted(kinds))}",
            "measure without the sharpness in the optimizer's own norm",
        )
    groups = {id(one): group for group in optimizer.param_groups for one in group["params"]}
    scales: list[float | None] = []
    for one in directions:
        if one.piece.geometry.name in _SPECTRAL:
            rows, columns = one.piece.shape[1:]
            scales.append(step_scale(rows, columns, groups[id(one.piece.parameter)]["lr_scale"]))
        else:
            scales.append(None)
    return ProductBall(layout, [one.frame for one in directions], scales)


def sharpness_in_norm(
    operator: SymmetricOperator,
    ball: UnitBall,
    *,
    gradient: Tensor,
    starts: Iterable[Tensor],
    max_products: int = 5,
    tolerance: float = 1e-2,
    on_product: Callable[[], None] | None = None,
) -> NormSharpness:
    """Bound S = max dᵀHd over ‖d‖ = 1 from below, by Frank–Wolfe from several starts.

    From d an ascent goes towards argmax ⟨Hd, e⟩ over the ball, as far as dᵀHd rises. How far that is follows from the
    product with e − d, for an indefinite H too; on a positive semidefinite one it is all the way, which makes a power
    iteration in the norm. Every d lies in the ball and dᵀHd never falls, so that each value is a lower bound of S; it
    approaches a stationary point, and nothing says that this is the highest. A small part of the values agreeing, or
    ascents that still rise when their products are spent, are a reason to ask for more of them.

    Args:
        operator: H.
        ball: The steps of length 1 at most.
        gradient: g, (N,). Its steepest step is the first start; its dual norm is returned with S.
        starts: Further ones, (N,) each, drawn one after the other; an ascent begins at their steepest steps.
        max_products: From each start.
        tolerance: Relative increase by one product below which an ascent ends.
        on_product: Called after each product.

    Returns:
        A value for each start, the gradient's first.

    Cost: up to `max_products` products from each start, and as many steepest steps; beside H, six vectors.
    Reference: arXiv 2603.05002.
    """
    before = operator.num_products
    first = ball.steepest(gradient)
    dual_norm = dot(gradient, first)

    def ascend(start: Tensor) -> float:
        return _ascend(operator, ball, start, max_products, tolerance, on_product)

    values = [ascend(first), *(ascend(ball.steepest(start)) for start in starts)]
    return NormSharpness(
        norm=ball.norm,
        is_normalised=ball.is_normalised,
        values=np.array(values),
        gradient_norm=dual_norm,
        num_hvps=operator.num_products - before,
    )


def _ascend(
    operator: SymmetricOperator,
    ball: UnitBall,
    place: Tensor,
    max_products: int,
    tolerance: float,
    on_product: Callable[[], None] | None,
) -> float:
    """Return the largest dᵀHd on the way up from a place in the ball, which is moved."""

    def product(vector: Tensor) -> Tensor:
        image = operator @ vector
        if on_product is not None:
            on_product()
        return image

    image = product(place)
    value = dot(place, image)
    for _ in range(max_products - 1):
        towards = ball.steepest(image).sub_(place)  # e − d
        slope = dot(towards, image)  # half of how fast dᵀHd rises along it
        if slope <= 0.0:
            break
        change = product(towards)
        bend = dot(towards, change)
        share = 1.0 if slope + bend >= 0.0 else -slope / bend
        place.add_(towards, alpha=share)
        image.add_(change, alpha=share)
        rise = share * (2.0 * slope + share * bend)
        value += rise
        if rise <= tolerance * abs(value):
            break
    return value
