"""One point of a training run: loss, λ₁, the gradient's share and the critical step, all at the same weights."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lite_probe.errors import LiteProbeError, NumericsError
from lite_probe.operators.gradient import LossAndGradient, loss_and_gradient, require_deterministic
from lite_probe.operators.hessian import HessianOperator
from lite_probe.operators.precision import multiplying_large
from lite_probe.replays.allocation import ROUNDINGS
from lite_probe.seeds import derive_seed
from lite_probe.spectra.lanczos import check_residuals, lanczos
from lite_probe.steps.critical import CriticalStep, critical_step
from lite_probe.task import Task
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.reductions import norm, project

_SPARE = 8  # Krylov vectors beside the wanted pairs: more cost memory that the training may need


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRequest:
    """What is measured at a point.

    Attributes:
        top: Leading eigenpairs, k.
        tolerance: A pair has converged when ‖Hv − λv‖ ≤ tolerance·|λ|.
        max_products: Stop looking for pairs there.
        seed: Of the start vector, the same at every point.
    """

    top: int
    tolerance: float
    max_products: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Curvature:
    """Leading eigenpairs, and how much of the gradient is along them."""

    eigenvalues: tuple[float, ...]  # (k,) descending, loss/param²
    residual_norms: tuple[float, ...]  # (k,)
    gradient_share: float | None  # ‖Vᵀg‖²/‖g‖²; None where the gradient is zero
    num_hvps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured at a point, and why the rest was not."""

    loss: float
    gradient_norm: float
    count: int  # tokens or samples behind the loss
    update_norm: float | None  # None where the update is not finite
    curvature: Curvature | None
    critical: CriticalStep | None  # None where the optimizer did not move
    problems: tuple[str, ...]


def measure_point(
    task: Task, layout: ParameterLayout, start: Tensor, end: Tensor, request: PointRequest, *, is_first: bool
) -> Measured:
    """Measure where the optimizer made a step: at its start, and along it.

    The step is d = θ_{s+1} − θ_s, decay included. λ₁, gradient and share are those of θ_s, and the critical step is
    min{c > 0 : L(θ_s + c d) > L(θ_s)}, all on the task's evaluation batches.

    Args:
        task: Its model is left at other parameters.
        layout: Of the trainable parameters.
        start: θ_s, (N,).
        end: θ_{s+1}, (N,).
        request: What is measured.
        is_first: Whether to test that the loss is deterministic, and depends on the parameters.

    Raises:
        InputError: If the batches count nothing.
        NumericsError: If the loss is not finite, or not deterministic.

    Cost: a gradient (at first two), some 10 to 20 Hessian products through rebuilt graphs, five to seven forward passes
    over the evaluation batches; four vectors of N beside the k + 8 of the basis.
    """
    layout.write(start)
    evaluate = require_deterministic if is_first else loss_and_gradient
    evaluated = evaluate(task, layout, "evaluation")
    length = norm(evaluated.gradient)
    if not math.isfinite(length):
        raise NumericsError("expected a finite gradient, got NaN or infinity", "the training diverged")
    problems = []
    curvature = None
    try:
        curvature = _measure_curvature(task, layout, evaluated, request)
    except LiteProbeError as error:
        problems.append(f"no curvature: {error.message}")
    update = end - start
    moved = norm(update)
    critical = None
    if not math.isfinite(moved):
        problems.append("no critical step: expected a finite update, got NaN or infinity")
    elif moved > 0.0:
        rounding = ROUNDINGS * torch.finfo(update.dtype).eps * abs(evaluated.loss)
        loss_at = partial(_loss_at, task, layout, start, update, torch.empty_like(start))
        critical = critical_step(loss_at, evaluated.loss, rounding=rounding)
    return Measured(
        loss=evaluated.loss,
        gradient_norm=length,
        count=evaluated.count,
        update_norm=moved if math.isfinite(moved) else None,
        curvature=curvature,
        critical=critical,
        problems=tuple(problems),
    )


def _measure_curvature(
    task: Task, layout: ParameterLayout, evaluated: LossAndGradient, request: PointRequest
) -> Curvature:
    """Find the leading eigenpairs where the parameters are. Cost: `max_products` + 1 products at most."""
    operator = HessianOperator(task, layout, count=evaluated.count, vectors_per_pass=1)
    capacity = min(operator.size, request.max_products + 1, request.top + _SPARE)
    basis = KrylovBasis(operator.size, capacity, dtype=operator.dtype, device=operator.device)
    run, _ = lanczos(
        operator,
        top=request.top,
        tolerance=request.tolerance,
        max_products=request.max_products,
        basis=basis,
        seed=derive_seed(request.seed, "training"),
    )
    pairs = run.rotate_to_ritz()
    check = check_residuals(run, pairs, seed=derive_seed(request.seed, "check"))
    rows, gradient = run.basis.rows[: len(pairs.values)], evaluated.gradient
    length = norm(gradient)
    share = None
    if length > 0.0:
        share = float(project(rows, gradient.div(length).unsqueeze(0)).square().sum())
    return Curvature(
        eigenvalues=tuple(pairs.values.tolist()),
        residual_norms=tuple(math.hypot(residual, check) for residual in pairs.residual_norms.tolist()),
        gradient_share=None if share is None else min(share, 1.0),
        num_hvps=operator.num_products,
    )


@torch.no_grad()
def _loss_at(
    task: Task, layout: ParameterLayout, start: Tensor, update: Tensor, place: Tensor, multiple: float
) -> float:
    """Return L(θ_s + c d) on the evaluation batches."""
    torch.add(start, update, alpha=multiple, out=place)
    layout.write(place)
    sums, counts = zip(*(_summed(task, batch) for batch in task.evaluation), strict=True)
    return float(sum(sums) / sum(counts))


def _summed(task: Task, batch: object) -> tuple[float, int]:
    with multiplying_large(task.model, batch):
        loss, count = task.loss(batch)
    return float(loss), count
