"""Where methods end: SPARKLE at the solution, D-SOBA beside it by as much as its steps are long, and noise as 1/n."""

import math
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch

from lite_probe import bilevel
from lite_probe.bilevel import STRATEGIES, QuadraticProblem
from lite_probe.bilevel.solve import MethodName
from lite_probe.errors import NumericsError

RING = bilevel.mixing_matrix("ring", 5)  # its smallest eigenvalue is 1/3 + 2/3 cos(144°) = −0.21


def problem_of_five() -> QuadraticProblem:
    """Nodes that differ by half of what they share; ρ = 1 makes the upper level as curved as the lower."""
    return replace(QuadraticProblem.random(5, 2, 3, spread=0.5, seed=0), rho=1.0)


def distance(run: bilevel.BilevelRun, problem: QuadraticProblem) -> float:
    """Return how far the farthest node's x is from x*."""
    return float((run.x - problem.solution()[0]).norm(dim=1).max())


def test_the_solution_is_a_stationary_point_of_the_whole_problem() -> None:
    """x* by nested central differences of F(x) = mean f(x, y*(x)), which knows no inverse-Hessian product."""
    problem = problem_of_five()
    x, y = problem.solution()
    inverse = torch.linalg.inv(problem.A.mean(dim=0))

    def loss(at: torch.Tensor) -> float:
        lower = inverse @ (problem.B.mean(dim=0) @ at + problem.b.mean(dim=0))
        return float(problem.upper_loss(at.expand(5, 2), lower.expand(5, 3)).mean())

    assert float((inverse @ (problem.B.mean(dim=0) @ x + problem.b.mean(dim=0)) - y).abs().max()) <= 1e-14
    reach = 1e-3 * torch.eye(2, dtype=torch.float64)
    # A quadratic's central difference is exact but for rounding: ε|F|/reach = 1e-12.
    slopes = [(loss(x + along) - loss(x - along)) / 2e-3 for along in reach]
    assert max(map(abs, slopes)) <= 1e-11
    assert min(loss(x + along) for along in (*reach, *-reach)) > loss(x)


@pytest.mark.parametrize(("upper", "lower"), list(product([name for name in STRATEGIES if name != "atc-gt"], repeat=2)))
def test_every_pair_of_strategies_reaches_the_solution(upper: str, lower: str) -> None:
    problem = problem_of_five()
    run = bilevel.solve(
        problem, RING, upper=upper, lower=lower, step_sizes=(0.05, 0.1, 0.1), theta=0.5, steps=600, record_every=300
    )
    assert distance(run, problem) <= 1e-9
    assert float((run.y - problem.solution()[1]).norm(dim=1).max()) <= 1e-9
    inverse_product = torch.linalg.solve(
        problem.A.mean(dim=0), torch.einsum("nij,nj->i", problem.D, problem.solution()[1] - problem.c) / 5
    )
    assert float((run.z - inverse_product).norm(dim=1).max()) <= 1e-9


@pytest.mark.slow
def test_the_example_of_the_design_reaches_the_solution() -> None:
    problem = QuadraticProblem.random(8, 4, 6, seed=1)
    W = bilevel.mixing_matrix("ring", 8)
    run = bilevel.solve(problem, W, upper="gt", lower="ed", step_sizes=(0.02, 0.1, 0.1), theta=0.2, steps=6000)
    assert distance(run, problem) <= 1e-9


@pytest.mark.parametrize("method", ["dsoba-so", "dsoba-fo"])
def test_d_soba_stops_at_a_bias_in_proportion_to_its_steps(method: MethodName) -> None:
    problem, found = problem_of_five(), []
    for shorter in (1, 2, 4):
        size = 0.1 / shorter
        run = bilevel.solve(problem, RING, method=method, step_sizes=(size, size, size), theta=0.5, steps=250 * shorter)
        found.append(float((run.x.mean(dim=0) - problem.solution()[0]).norm()))
    # Bias c α + c' α²: a ratio is ½ (1 − α c'/2c + …), so what it misses ½ by halves with α. Seen: 0.015, 0.007.
    misses = [after / before - 0.5 for before, after in pairwise(found)]
    assert all(0.0 < abs(miss) <= 0.02 for miss in misses)
    assert 0.35 <= misses[1] / misses[0] <= 0.65
    assert found[-1] > 1e-3


def test_nodes_that_are_equal_leave_no_bias() -> None:
    problem = replace(QuadraticProblem.random(5, 2, 3, spread=0.0, seed=0), rho=1.0)
    run = bilevel.solve(problem, RING, method="dsoba-so", step_sizes=(0.05, 0.1, 0.1), theta=0.5, steps=800)
    assert distance(run, problem) <= 1e-9


def test_noise_in_the_mean_falls_as_one_over_n() -> None:
    """32 problems of one dimension in one: y* = x, and ½(y − 1)² + ½x² is lowest at x = ½."""
    size = 32
    variances = []
    for num_nodes in (2, 8, 32):
        eye = torch.eye(size, dtype=torch.float64).expand(num_nodes, size, size)
        ones = torch.ones(num_nodes, size, dtype=torch.float64)
        problem = QuadraticProblem(A=eye, B=eye, b=0.0 * ones, D=eye, c=ones, rho=1.0, noise=0.3)
        assert float((problem.solution()[0] - 0.5).abs().max()) <= 1e-15
        W = bilevel.mixing_matrix("complete", num_nodes)
        ends = [
            bilevel.solve(problem, W, step_sizes=(0.05, 0.1, 0.1), theta=0.5, steps=200, seed=seed).x.mean(dim=0)
            for seed in range(4)
        ]
        assert not torch.equal(ends[0], ends[1])
        variances.append(float((torch.stack(ends) - 0.5).square().mean()))
    # All is linear in the nodes' mean noise, whose variance is σ²/n: the slope is −1 exactly. By 128 draws a variance
    # is known to √(2/128) = 0.125, the slope between the ends, 2 ln 4 apart, to 0.125 √2 / 2.77 = 0.064: four times.
    slope = (math.log(variances[2]) - math.log(variances[0])) / (2 * math.log(4))
    assert abs(slope + 1.0) <= 0.26
    assert variances[0] > variances[1] > variances[2] > 0.0


@pytest.mark.parametrize(("upper", "lower"), [("gt", "ed"), ("non-atc-gt", "extra")])
def test_rounding_does_not_accumulate(upper: str, lower: str) -> None:
    """In float32, where a drift of one rounding a step would pass 1e-3 within these steps."""
    problem = problem_of_five()
    single = replace(problem, **{name: getattr(problem, name).float() for name in "ABbDc"})
    start = tuple(torch.zeros(1, dim) for dim in (2, 3, 3))
    run = bilevel.solve(
        single,
        RING,
        upper=upper,
        lower=lower,
        step_sizes=(0.05, 0.1, 0.1),
        theta=0.5,
        steps=1500,
        start=(start[0], start[1], start[2]),
        record_every=500,
        measure=lambda x, y: {"distance": float((x - problem.solution()[0]).norm(dim=1).max())},
    )
    assert run.x.dtype == torch.float32
    # A step below half a rounding of s, ε|s|/2, is lost: d stalls at ε|s|/2a, x at 1/curvature of it; 6e-7 × a few.
    after = run.history.measured["distance"][1:]
    assert after.max() <= 2e-5
    assert after[-1] <= 2.0 * after[0] + 1e-6


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_adaptive_steps_of_any_scale_bring_the_loss_down(spread: float, scale: float) -> None:
    problem = QuadraticProblem.random(8, 4, 6, spread=spread, seed=1)
    W = bilevel.mixing_matrix("exponential", 8)
    run = bilevel.solve(problem, W, step_sizes=bilevel.Adaptive(scale, scale, scale), steps=400)
    x, y = problem.solution()
    best = float(problem.upper_loss(x.expand(8, 4), y.expand(8, 6)).mean())
    losses = run.history.upper_loss
    assert losses is not None
    assert np.isfinite(losses).all()
    # 1e-1 is too short to arrive: lengths fall as 1/√t. Larger ones leave a tenth at most of what there is to gain.
    left = (losses[-1] - best) / (losses[0] - best)
    assert left <= (0.6 if scale < 1.0 else 0.1)


def test_fixed_steps_of_such_scales_diverge() -> None:
    problem = QuadraticProblem.random(8, 4, 6, seed=1)
    with pytest.raises(NumericsError, match=r'not within the first [\d,]+ steps; lower the step sizes, or take "adapt'):
        bilevel.solve(problem, bilevel.mixing_matrix("exponential", 8), step_sizes=(1.0, 1.0, 1.0), steps=1000)
