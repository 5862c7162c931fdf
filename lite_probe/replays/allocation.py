"""Loss change along one step, by quadrature: ∫₀¹ ∇L(θ + sd) ds, which every allocation is an inner product with.

A_P = (P ḡ)·d for the averaged gradient ḡ = ∫₀¹ ∇L(θ + sd) ds, so one vector per step serves all subspaces. Simpson's
rule takes ∇L at 0, ½ and 1, of which 1 is the next step's 0. Where the allocations miss the true change by more than a
tolerance the rule is halved: the gradients it has stay in use.

Reference: Loss Change Allocation, Lan et al. 2019, arXiv 1909.01440.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lite_probe.errors import NumericsError
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.task import Split, Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.reductions import dot, dots

Rule = Literal["simpson", "trapezoid"]

MOST_GRADIENTS = 64  # of a step, after five halvings; what is still open then is not smooth enough for any rule
# A loss carries roundings of its own size, which no rule sees: closure errors below are not looked into.
ROUNDINGS = 32.0


@dataclass(frozen=True, slots=True)
class Point:
    """The loss on a set of batches and its gradient somewhere."""

    loss: float
    gradient: Tensor  # (N,)
    count: int  # tokens or samples behind it


@dataclass(frozen=True, slots=True)
class StepChange:
    """What one step did to the loss."""

    mean_gradient: Tensor  # (N,) ḡ by the rule
    end: Point  # at the step's end
    slope: float  # g·d at its start
    curvature: float  # dᵀHd there, from slopes along the step
    allocation: float  # ḡ·d
    closure_error: float  # allocation − (L₁ − L₀)
    gradients: int  # evaluated for this step, the start's left out


def evaluate(task: Task, layout: ParameterLayout, split: Split = "evaluation") -> Point:
    """Return loss and gradient on a set of batches where the parameters are.

    Raises:
        NumericsError: If either is not finite.

    Cost: one gradient.
    """
    found = loss_and_gradient(task, layout, split)
    if not math.isfinite(float(found.gradient.abs().max())):
        raise NumericsError("expected a finite evaluation gradient, got NaN or infinity", "the replay diverged")
    return Point(found.loss, found.gradient, found.count)


def integrate_step(
    task: Task,
    layout: ParameterLayout,
    start: Point,
    before: Tensor,
    after: Tensor,
    update: Tensor,
    *,
    rule: Rule,
    tolerance: float,
    scale: float,
    split: Split = "evaluation",
) -> StepChange:
    """Integrate the gradient on a set of batches along one step.

    dᵀHd at the start comes free: with φ(s) = L(θ + sd), φ″(0) = −3φ′(0) + 4φ′(½) − φ′(1) up to φ⁗/12 under Simpson's
    rule, φ′(1) − φ′(0) up to φ‴/2 under the trapezoid's.

    Args:
        task: Its parameters are at `after`, and come back to it bitwise.
        layout: All parameters.
        start: At `before`.
        before: θ_t, (N,).
        after: θ_{t+1}.
        update: d = after − before.
        rule: "simpson", refined where needed, or "trapezoid".
        tolerance: A step is refined while |closure error| > tolerance·max(|ΔL|, scale).
        scale: A typical |ΔL| of the steps before.
        split: Whose loss it is.

    Raises:
        NumericsError: If loss or gradient are not finite on the way.

    Cost: one gradient under the trapezoid rule, two under Simpson's, 2ʰ more for the h-th halving; four vectors of N.
    """
    end = evaluate(task, layout, split)
    change = end.loss - start.loss
    if rule == "trapezoid":
        slope, end_slope = dots([(start.gradient, update), (end.gradient, update)])
        mean = torch.add(start.gradient, end.gradient).mul_(0.5)
        allocation = 0.5 * (slope + end_slope)
        return StepChange(mean, end, slope, end_slope - slope, allocation, allocation - change, 1)
    odd = _gradients_at(task, layout, split, before, after, [0.5])
    slope, end_slope, middle_slope = dots((one, update) for one in (start.gradient, end.gradient, odd))
    curvature = -3.0 * slope + 4.0 * middle_slope - end_slope
    allowed = max(tolerance * max(abs(change), scale), ROUNDINGS * torch.finfo(update.dtype).eps * abs(start.loss))
    even: Tensor | None = None
    intervals, even_slope, odd_slope, used = 2, 0.0, middle_slope, 2
    while True:
        allocation = (slope + end_slope + 4.0 * odd_slope + 2.0 * even_slope) / (3.0 * intervals)
        if abs(allocation - change) <= allowed or used >= MOST_GRADIENTS:
            break
        even = odd if even is None else even.add_(odd)
        even_slope += odd_slope
        intervals *= 2
        places = [(2 * i + 1) / intervals for i in range(intervals // 2)]
        odd = _gradients_at(task, layout, split, before, after, places)
        odd_slope = dot(odd, update)
        used += intervals // 2
    mean = odd.mul_(4.0).add_(start.gradient).add_(end.gradient)
    if even is not None:
        mean.add_(even, alpha=2.0)
    mean.div_(3.0 * intervals)
    return StepChange(mean, end, slope, curvature, allocation, allocation - change, used)


def _gradients_at(
    task: Task, layout: ParameterLayout, split: Split, before: Tensor, after: Tensor, places: list[float]
) -> Tensor:
    """Return Σ_s ∇L at (1 − s)·before + s·after; the parameters end at `after`, bitwise."""
    total: Tensor | None = None
    try:
        for place in places:
            layout.write(torch.lerp(before, after, place))
            gradient = evaluate(task, layout, split).gradient
            total = gradient if total is None else total.add_(gradient)
    finally:
        layout.write(after)
    if total is None:
        raise ValueError("expected at least one place, got none")
    return total
