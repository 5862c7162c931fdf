"""Muon's edge of stability: in the norm that it steps in training sharpens a network to 2/η, while λ₁ stays far below.

    python examples/muon_edge.py

A tanh network without biases fits two Chebyshev polynomials, all points in every step. Each matrix G = UΣVᵀ of the
gradient moves its weights along UVᵀ: a step is steepest in the norm ‖d‖ = the largest singular value of any matrix, and
the gradient's length in its dual, ‖g‖_*, is the sum of all singular values. There the curvature is
S = max dᵀHd over ‖d‖ = 1, and a quadratic along the sharpest step becomes unstable, in terms of

* steepest descent, W ← W − η‖g‖_* UVᵀ, where S exceeds 2/η;
* Muon without momentum, W ← W − ηUVᵀ, where S/‖g‖_* exceeds 2/η: its steps do not shrink with the gradient.

Both get there and stay around or above (Islamov et al. 2026, arXiv 2603.05002), as gradient descent does with λ₁ for S.
λ₁ in the place of S, over the same 2/η, would say that all is far from unstable. What is known of S is a lower bound,
the best of four ascents; 41 ascents of 200 products found no more than 4% on top of it. That S/‖g‖_* comes to 2/η under
Muon says less than that S does under steepest descent: steps of one length end in an oscillation across a valley, where
any quadratic has the ratio 1.

It takes half a minute of one core and prints, with the seed it has,

    steepest descent, S against 2/η = 100.0, η = 0.02
      step      loss         S  ratio        λ₁  ratio
       100  4.47e-01      10.1  0.101       2.9  0.029
       300  2.88e-01      23.2  0.232       5.1  0.051
       600  1.05e-01      51.0  0.510      10.8  0.108
       900  5.08e-02      91.3  0.913      19.3  0.193
      1200  2.42e-02      98.2  0.982      20.2  0.202
      1500  3.41e-02     108.2  1.082      22.4  0.224
      1800  1.38e-02     112.7  1.127      23.4  0.234
    last third: S at 1.094 of the limit (known: around or above), λ₁ at 0.232 of it, loss at 0.584 of before

    Muon, S/‖g‖_* against 2/η = 1,000.0, η = 0.002
      step      loss   S/‖g‖_*  ratio  λ₁/‖g‖_*  ratio
       100  4.57e-01      70.7  0.071      22.0  0.022
       300  4.05e-01      80.8  0.081      21.0  0.021
       600  2.52e-01      92.6  0.093      19.2  0.019
       900  1.34e-01     310.2  0.310      62.6  0.063
      1200  6.94e-02     754.3  0.754     158.6  0.159
      1500  3.21e-02     842.3  0.842     171.2  0.171
      1800  1.28e-02     943.8  0.944     189.4  0.189
    last third: S at 0.919 of the limit (known: around or above), λ₁ at 0.185 of it, loss at 0.191 of before

where each ratio is over the limit, and the loss its median over that of the third before. The exit status is 1 where S
is not where it is known to be, or λ₁ not far below.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lite_probe.criteria import squared_error
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.hessian import HessianOperator
from lite_probe.optim import LiteOptimizer, make_optimizer
from lite_probe.seeds import derive_seed
from lite_probe.spectra.lanczos import lanczos
from lite_probe.steps.norms import sharpness_in_norm, unit_ball
from lite_probe.task import Batch, Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.random import random_vector

WIDTH, POINTS = 25, 40  # at a width of 25 Muon's scale 0.2√max(m, n) is 1 for every matrix here
DEGREES = (3, 4)
RANDOM_STARTS, PRODUCTS, TOLERANCE = 3, 15, 1e-3  # of the ascents to S
TABLE_ROWS = 6
KNOWN = (0.85, 1.3)  # S over its limit: around or above
FAR_BELOW = 0.5  # λ₁ over the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A way to take the steepest step."""

    title: str
    lr: float
    is_normalised: bool  # whether a step has one length however large the gradient is


CASES: Mapping[str, Case] = {
    "steepest-descent": Case(title="steepest descent, S against 2/η", lr=0.02, is_normalised=False),
    "muon": Case(title="Muon, S/‖g‖_* against 2/η", lr=0.002, is_normalised=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is measured after some steps."""

    step: int  # completed updates
    loss: float  # mean of ½(u − y)², both outputs together
    sharpness: float  # S, or S/‖g‖_* of normalised steps, 1/lr
    eigenvalue: float  # λ₁, or λ₁/‖g‖_*
    limit: float  # 2/η

    @property
    def ratio(self) -> float:
        """S over its limit."""
        return self.sharpness / self.limit

    @property
    def eigenvalue_ratio(self) -> float:
        """λ₁ over the same."""
        return self.eigenvalue / self.limit


def make_task(seed: int) -> Task:
    """Return a network of 725 parameters, not trained, that has to learn Chebyshev polynomials on [−1, 1].

    A constant second input stands for the biases of the first layer.
    """
    torch.manual_seed(seed)
    x = torch.linspace(-1.0, 1.0, POINTS, dtype=torch.float64)
    y = torch.stack([torch.cos(degree * torch.acos(x)) for degree in DEGREES], dim=1)
    sizes = ((2, WIDTH), (WIDTH, WIDTH), (WIDTH, len(DEGREES)))
    first, second, third = (nn.Linear(*size, bias=False) for size in sizes)
    model = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), third).to(torch.float64)
    inputs = torch.stack([x, torch.ones_like(x)], dim=1)
    return Task(model=model, predict=predict, criterion=squared_error, evaluation=[(inputs, y)])


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """Apply the network to the points of a batch."""
    outputs: Tensor = model(batch[0])
    return outputs


def measure(case: Case, task: Task, optimizer: LiteOptimizer, step: int, seed: int) -> Moment:
    """Return S and λ₁ as the network is."""
    layout = ParameterLayout(list(task.model.named_parameters()))
    evaluated = loss_and_gradient(task, layout, "evaluation")
    hessian = HessianOperator(task, layout, count=evaluated.count)
    ball = unit_ball(optimizer, layout, optimizer.directions())
    seeds = [derive_seed(seed, "start", step, index) for index in range(RANDOM_STARTS)]
    gradient = evaluated.gradient
    found = sharpness_in_norm(
        hessian,
        ball,
        gradient=gradient,
        starts=(random_vector(layout.size, seed=one, dtype=gradient.dtype, device=gradient.device) for one in seeds),
        max_products=PRODUCTS,
        tolerance=TOLERANCE,
    )
    run, _ = lanczos(hessian, top=1, tolerance=1e-2)
    scale = found.gradient_norm if case.is_normalised else 1.0
    return Moment(
        step=step,
        loss=evaluated.loss,
        sharpness=found.value / scale,
        eigenvalue=float(run.ritz_pairs().values[0]) / scale,
        limit=2.0 / case.lr,
    )


def train(case: Case, *, steps: int, every: int, seed: int = 0) -> Iterator[Moment]:
    """Train on all points, and yield what is measured every few steps."""
    task = make_task(seed)
    named = dict(task.model.named_parameters())
    blocks = dict.fromkeys(named, "ffn")
    optimizer = make_optimizer("muon", named.items(), lr=case.lr, blocks=blocks, momentum=0.0, weight_decay=0.0)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss, count = task.loss(task.evaluation[0])
        (loss / count).backward()
        if not case.is_normalised:
            nuclear = [torch.linalg.matrix_norm(one.grad, "nuc") for one in named.values() if one.grad is not None]
            for group in optimizer.param_groups:
                group["lr"] = case.lr * float(sum(nuclear))
        optimizer.step()
        if step % every == 0:
            yield measure(case, task, optimizer, step, seed)


def last_third(moments: Sequence[Moment]) -> tuple[float, float, float]:
    """Return the mean ratios of S and λ₁ over the last third, and the median loss over that of the third before."""
    third = max(1, len(moments) // 3)
    before, last = moments[-2 * third : -third] or moments, moments[-third:]
    losses = [float(np.median([moment.loss for moment in part])) for part in (before, last)]
    ratios = [[moment.ratio for moment in last], [moment.eigenvalue_ratio for moment in last]]
    return float(np.mean(ratios[0])), float(np.mean(ratios[1])), losses[1] / losses[0]


def report(case: Case, *, steps: int, every: int, seed: int) -> bool:
    """Print a table while a case trains, and what came of it; return whether that is what is known."""
    limit, sign = 2.0 / case.lr, "/‖g‖_*" if case.is_normalised else ""
    print(f"{case.title} = {limit:,.1f}, η = {case.lr}")
    print(f"{'step':>6} {'loss':>9} {'S' + sign:>9} {'ratio':>6} {'λ₁' + sign:>9} {'ratio':>6}")
    shown = max(every, steps // TABLE_ROWS // every * every)
    moments = []
    for one in train(case, steps=steps, every=every, seed=seed):
        moments.append(one)
        if one.step == every or one.step % shown == 0:
            print(
                f"{one.step:>6} {one.loss:>9.2e} {one.sharpness:>9,.1f} {one.ratio:>6.3f} {one.eigenvalue:>9,.1f} "
                f"{one.eigenvalue_ratio:>6.3f}",
                flush=True,
            )
    (ratio, eigenvalue, progress), (low, high) = last_third(moments), KNOWN
    print(
        f"last third: S at {ratio:.3f} of the limit (known: around or above), λ₁ at {eigenvalue:.3f} of it, "
        f"loss at {progress:.3f} of before\n"
    )
    return low <= ratio <= high and eigenvalue <= FAR_BELOW and progress < 1.0


def main() -> int:
    """Read the command line and report the cases."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--case", choices=CASES, action="append", help="by default both")
    parser.add_argument("--steps", type=int, default=2000, help="updates per case, %(default)s")
    parser.add_argument("--every", type=int, default=100, help="steps between measurements, %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, %(default)s")
    asked = parser.parse_args()
    if not 1 <= asked.every <= asked.steps:
        parser.error(f"expected --every in [1, {asked.steps}], got {asked.every}")
    torch.set_num_threads(1)  # so small a model gains nothing by a second one
    chosen = [CASES[name] for name in asked.case or CASES]
    results = [report(case, steps=asked.steps, every=asked.every, seed=asked.seed) for case in chosen]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
