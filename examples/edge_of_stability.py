"""The edge of stability: training sharpens a network until the linear theory says stop, and goes on learning there.

    python examples/edge_of_stability.py

A tanh network fits a Chebyshev polynomial, all points in every step. Gradient descent is unstable on a quadratic whose
curvature exceeds 2/η; the leading eigenvalue λ₁ of the network's Hessian rises to that and stays, while the loss falls
on (Cohen et al. 2021, arXiv 2103.00065). Adam with b₁ = 0.9 does the same at 38/η with the Hessian in its own metric,
P^{-½}HP^{-½} (Cohen et al. 2022, arXiv 2207.14484). Both limits are `stability_limit` of the optimizer's linear recipe.

Of gradient descent there is the critical sharpness too, which needs forward passes only: λ_c = 2/η_c, η_c being the
shortest step along the update after which the loss is above where it was (arXiv 2601.16979). To second order it is
gᵀHg/‖g‖², the curvature that the gradient sees: where that is the unstable direction's, λ_c is at 2/η, and not above.
In so small a network the oscillation along it comes in bursts, which damp themselves; in between the gradient lies
along flat directions, and λ_c far below λ₁. So it is the largest λ_c that comes to 2/η here, not the usual one.

It takes ten seconds and prints, with the seed it has,

    gradient descent, λ₁ of H against 2/η = 25.0, η = 0.08
      step      loss          λ₁  ratio
        50  2.47e-01         8.8  0.351
      1000  7.19e-02        13.2  0.529
      2000  1.83e-02        22.5  0.901
      3000  5.49e-03        25.0  1.000
      4000  1.82e-03        24.9  0.998
      5000  7.03e-04        24.4  0.978
      6000  2.74e-04        25.5  1.022
    last third: λ_c up to 1.033 of 25.0 (known: 1), its median 0.000
    last third: λ₁ at 1.003 of 25.0 (known: 0.95 to 1.1), loss at 0.121 of before

    Adam, λ₁ of P^{-½}HP^{-½} against 38/η = 380,000.0, η = 0.0001
      step      loss          λ₁  ratio
        50  2.63e-01       992.5  0.003
      1000  2.38e-01   104,253.3  0.274
      2000  9.69e-02   210,175.2  0.553
      3000  5.73e-02   395,372.7  1.040
      4000  3.15e-02   386,434.6  1.017
      5000  1.28e-02   382,602.5  1.007
      6000  1.26e-03   337,316.5  0.888
    last third: λ₁ at 0.984 of 380,000.0 (known: 0.9 to 1.1), loss at 0.221 of before

where the ratio is λ₁ over its limit, and the loss its median over that of the third before. The exit status is 1 where
λ₁, or the largest λ_c, is not where it is known to be.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lite_probe.criteria import squared_error
from lite_probe.operators.base import SymmetricOperator
from lite_probe.operators.hessian import HessianOperator
from lite_probe.optim import LiteOptimizer, linear_recipes, make_optimizer, stability_limit
from lite_probe.spectra.lanczos import lanczos
from lite_probe.steps.critical import critical_step
from lite_probe.task import Batch, Task
from lite_probe.vectors.layout import ParameterLayout

WIDTH, POINTS = 50, 40
TABLE_ROWS = 6
KNOWN_CRITICAL = (0.9, 1.2)  # the largest λ_c over 2/η, which a step's own cubic term moves a little


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An optimizer, what it learns, and where λ₁ is known to settle."""

    title: str
    optimizer: str
    lr: float
    degree: int  # of the polynomial: the harder, the longer there is something to learn
    known: tuple[float, float]  # λ₁ over the limit
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


CASES: Mapping[str, Case] = {
    "gradient-descent": Case(
        title="gradient descent, λ₁ of H against 2/η", optimizer="sgd", lr=0.08, degree=4, known=(0.95, 1.1)
    ),
    "adam": Case(
        title="Adam, λ₁ of P^{-½}HP^{-½} against 38/η",
        optimizer="adamw",
        lr=1e-4,
        degree=6,
        known=(0.9, 1.1),
        hyperparameters={"adamw_beta1": 0.9, "adamw_beta2": 0.99, "weight_decay": 0.0},
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is measured after some steps."""

    step: int  # completed updates
    loss: float  # mean of ½(u − y)²
    curvature: float  # λ₁ in the optimizer's metric, 1/lr
    ratio: float  # of it to the limit
    critical_ratio: float | None  # λ_c of the last step to 2/η, which is η/η_c; None unless it is gradient descent's


class PreconditionedHessian(SymmetricOperator):
    """P^{-½}HP^{-½} for a diagonal P, whose eigenvalues are those of P⁻¹H."""

    def __init__(self, hessian: SymmetricOperator, preconditioner: Tensor) -> None:
        super().__init__(hessian.size, device=hessian.device, dtype=hessian.dtype)
        self.hessian = hessian
        self.inverse_root = preconditioner.rsqrt()

    def _products(self, rows: Tensor) -> Tensor:
        return self.hessian.matmat((rows * self.inverse_root).T).T * self.inverse_root


def make_task(degree: int, seed: int) -> Task:
    """Return a network of 2,701 parameters, not trained, that has to learn a Chebyshev polynomial on [−1, 1]."""
    torch.manual_seed(seed)
    x = torch.linspace(-1.0, 1.0, POINTS, dtype=torch.float64).unsqueeze(1)
    y = torch.cos(degree * torch.acos(x))
    layers = (nn.Linear(1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    return Task(
        model=nn.Sequential(*layers).to(torch.float64), predict=predict, criterion=squared_error, evaluation=[(x, y)]
    )


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """Apply the network to the points of a batch."""
    outputs: Tensor = model(batch[0])
    return outputs


def adam_preconditioner(optimizer: LiteOptimizer, layout: ParameterLayout) -> Tensor:
    """Return the diagonal of P, with which Adam's update is ηP⁻¹m.

    P = (√v + ε)(1 − b₁ᵗ)/√(1 − b₂ᵗ) with both bias corrections, m's as well as v's.
    """
    (group,) = optimizer.param_groups
    second = torch.cat([optimizer.state[parameter]["exp_avg_sq"].flatten() for parameter in layout.parameters])
    corrections = (1.0 - group["adamw_beta1"] ** group["step"]) / (1.0 - group["adamw_beta2"] ** group["step"]) ** 0.5
    return (second.sqrt() + group["eps"]) * corrections


def leading_curvature(task: Task, optimizer: LiteOptimizer) -> float:
    """Return λ₁ of the Hessian in the optimizer's metric."""
    layout = ParameterLayout(list(task.model.named_parameters()))
    operator: SymmetricOperator = HessianOperator(task, layout, count=POINTS)
    if optimizer.param_groups[0]["optimizer"] == "adamw":
        operator = PreconditionedHessian(operator, adam_preconditioner(optimizer, layout))
    run, _ = lanczos(operator, top=1, tolerance=1e-2)
    return float(run.ritz_pairs().values[0])


@torch.no_grad()
def critical_ratio(task: Task, before: Tensor) -> float:
    """Return η/η_c of the step that led from `before` to where the network is; it comes back bitwise."""
    layout = ParameterLayout(list(task.model.named_parameters()))
    after = layout.read()

    def loss_at(multiple: float) -> float:
        layout.write(before + multiple * (after - before))
        loss, count = task.loss(task.evaluation[0])
        return float(loss) / count

    found = critical_step(loss_at, loss_at(0.0))
    layout.write(after)
    return float((found.low * found.high) ** -0.5)


def predicted_limit(case: Case) -> float:
    """Return the curvature at which the optimizer's linear recipe becomes unstable."""
    recipes = linear_recipes(case.optimizer, (WIDTH, WIDTH), block="other", lr=case.lr, **case.hyperparameters)
    return stability_limit(recipes.sharp)


def train(case: Case, *, steps: int, every: int, seed: int = 0) -> Iterator[Moment]:
    """Train on all points, and yield what is measured every few steps."""
    task, limit = make_task(case.degree, seed), predicted_limit(case)
    optimizer = make_optimizer(case.optimizer, task.model.named_parameters(), lr=case.lr, **case.hyperparameters)
    layout = ParameterLayout(list(task.model.named_parameters()))
    for step in range(1, steps + 1):
        before = layout.read() if step % every == 0 else None
        optimizer.zero_grad()
        loss, count = task.loss(task.evaluation[0])
        (loss / count).backward()
        optimizer.step()
        if before is not None:
            loss, count = task.loss(task.evaluation[0])
            curvature = leading_curvature(task, optimizer)
            yield Moment(
                step=step,
                loss=float(loss.detach()) / count,
                curvature=curvature,
                ratio=curvature / limit,
                critical_ratio=critical_ratio(task, before) if case.optimizer == "sgd" else None,
            )


def last_third(moments: Sequence[Moment]) -> tuple[float, float]:
    """Return the mean ratio over the last third, and the median loss there over that of the third before."""
    third = max(1, len(moments) // 3)
    before, last = moments[-2 * third : -third] or moments, moments[-third:]
    losses = [float(np.median([moment.loss for moment in part])) for part in (before, last)]
    return float(np.mean([moment.ratio for moment in last])), losses[1] / losses[0]


def report(case: Case, *, steps: int, every: int, seed: int) -> bool:
    """Print a table while a case trains, and what came of it; return whether that is what is known."""
    limit = predicted_limit(case)
    print(f"{case.title} = {limit:,.1f}, η = {case.lr}")
    print(f"{'step':>6} {'loss':>9} {'λ₁':>11} {'ratio':>6}")
    shown = max(every, steps // TABLE_ROWS // every * every)
    moments = []
    for moment in train(case, steps=steps, every=every, seed=seed):
        moments.append(moment)
        if moment.step == every or moment.step % shown == 0:
            print(f"{moment.step:>6} {moment.loss:>9.2e} {moment.curvature:>11,.1f} {moment.ratio:>6.3f}", flush=True)
    critical = [one.critical_ratio for one in moments[-max(1, len(moments) // 3) :] if one.critical_ratio is not None]
    if critical:
        largest, usual = max(critical), float(np.median(critical))
        print(f"last third: λ_c up to {largest:.3f} of {limit:,.1f} (known: 1), its median {usual:.3f}")
    (ratio, progress), (low, high) = last_third(moments), case.known
    print(f"last third: λ₁ at {ratio:.3f} of {limit:,.1f} (known: {low} to {high}), loss at {progress:.3f} of before\n")
    is_known = low <= ratio <= high and progress < 1.0
    return is_known and (not critical or KNOWN_CRITICAL[0] <= max(critical) <= KNOWN_CRITICAL[1])


def main() -> int:
    """Read the command line and report the cases."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--case", choices=CASES, action="append", help="by default both")
    parser.add_argument("--steps", type=int, default=6000, help="updates per case, %(default)s")
    parser.add_argument("--every", type=int, default=50, help="steps between measurements, %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, %(default)s")
    asked = parser.parse_args()
    if not 1 <= asked.every <= asked.steps:
        parser.error(f"expected --every in [1, {asked.steps}], got {asked.every}")
    chosen = [CASES[name] for name in asked.case or CASES]
    results = [report(case, steps=asked.steps, every=asked.every, seed=asked.seed) for case in chosen]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
