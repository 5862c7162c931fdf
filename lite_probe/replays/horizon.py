"""How far the quadratic model at θ₀ holds: its loss beside the true one, after steps 1, 2, 4, … of a run."""

import math

import torch
from torch import Tensor

from lite_probe.errors import NumericsError
from lite_probe.operators.hessian import HessianOperator
from lite_probe.replays.allocation import ROUNDINGS, Point
from lite_probe.task import Split, Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.reductions import dots, norm

WITHOUT = "replay without --horizon"  # the way out where there are no products
_LARGEST = 1e300  # of a loss that is predicted; what overflows is as far off as that


def logged_steps(steps: int) -> tuple[int, ...]:
    """Return the completed steps after which the model is asked: 1, 2, 4, 8, … and the last."""
    return tuple(step for step in range(1, steps + 1) if step == steps or step & (step - 1) == 0)


class QuadraticModel:
    """L̂(θ) = L₀ + g₀·δ + ½δᵀH₀δ with δ = θ − θ₀, on a set of batches.

    Args:
        task: Its parameters are at θ₀ during a product alone.
        layout: All parameters.
        start: θ₀, (N,).
        point: L₀ and g₀, on the batches of `split`.
        split: Whose loss it is.
    """

    def __init__(self, task: Task, layout: ParameterLayout, start: Tensor, point: Point, split: Split) -> None:
        self.layout = layout
        self.start = start
        self.point = point
        self.hessian = HessianOperator(task, layout, count=point.count, split=split)

    @property
    def noise(self) -> float:
        """What a loss carries of roundings, nats; a model that misses by less does not miss."""
        return ROUNDINGS * torch.finfo(self.start.dtype).eps * abs(self.point.loss)

    def loss_at(self, where: Tensor) -> float:
        """Return L̂ at θ, where the parameters end, bitwise.

        Args:
            where: θ, (N,).

        Raises:
            NumericsError: If the product at θ₀ is not finite.

        Cost: one product, its graphs built anew; three vectors of N.
        """
        direction = where - self.start
        length = norm(direction)
        if length == 0.0:
            return self.point.loss
        direction /= length  # the squares of a long way overflow in float32
        self.layout.write(self.start)
        try:
            image = self.hessian.matvec(direction)
        finally:
            self.layout.write(where)
        slope, curvature = dots([(self.point.gradient, direction), (direction, image)])
        if not math.isfinite(curvature):
            raise NumericsError(f"expected a finite Hessian product at the start, got {curvature}", WITHOUT)
        predicted = self.point.loss + length * slope + 0.5 * length * length * curvature
        return max(-_LARGEST, min(predicted, _LARGEST))
