"""The landscape problem: gradients against autograd, the pooled solution against a grid, and what nodes agree on."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lite_probe.bilevel import mixing_matrix, solve
from lite_probe.bilevel.landscape import LandscapeProblem
from lite_probe.bilevel.problem import BilevelProblem

NODES, GROUPS = 4, 3


def models(seed: int, shift: float = 0.0) -> dict[str, Any]:
    """Draw models of nodes that differ; with a shift some curvatures are negative."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(2, NODES, GROUPS, GROUPS)) * 0.3 + np.diag([1.5, 0.8, 0.4])
    curvatures = roots @ roots.swapaxes(-1, -2) - shift * np.eye(GROUPS)
    gains = 1.0 + 0.3 * rng.normal(size=(2, NODES, GROUPS))
    names = ("gains", "curvatures", "validation_gains", "validation_curvatures")
    return dict(zip(names, (gains[0], curvatures[0], gains[1], curvatures[1]), strict=True))


def lower(problem: LandscapeProblem, x: Tensor, y: Tensor) -> Tensor:
    """Return g of every node, (n,), as the docstring has it."""
    bent = 0.5 * torch.einsum("ni,nij,nj->n", y, problem.curvatures, y)
    damped = 0.5 * ((x.exp() + problem.ridge) * y.square()).sum(dim=1)
    return bent + damped - (problem.gains * y).sum(dim=1)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_gradients_and_products_are_those_of_the_losses(shift: float) -> None:
    problem = LandscapeProblem(**models(0, shift), ridge=0.1)
    generator = torch.Generator().manual_seed(0)
    x, y, z = (torch.randn(NODES, GROUPS, generator=generator, dtype=torch.float64) for _ in range(3))
    x.requires_grad_()
    y.requires_grad_()
    by_x, by_y = torch.autograd.grad(lower(problem, x, y).sum(), (x, y), create_graph=True)
    cross, curved = torch.autograd.grad((by_y * z).sum(), (x, y))
    upper = torch.autograd.grad(problem.upper_loss(x, y).sum(), y)[0]
    with torch.no_grad():
        found = problem.lower_gradients(x, y)
        assert torch.allclose(found[0], by_x, rtol=1e-12)
        assert torch.allclose(found[1], by_y, rtol=1e-12)
        assert torch.allclose(problem.lower_hessian_product(x, y, z), curved, rtol=1e-12, atol=1e-14)
        assert torch.allclose(problem.cross_product(x, y, z), cross, rtol=1e-12)
        assert torch.allclose(problem.upper_gradients(x, y)[1], upper, rtol=1e-12)
        assert torch.equal(problem.upper_gradients(x, y)[0], torch.zeros_like(x))


def test_negative_curvature_leaves_a_step_that_ends() -> None:
    problem = LandscapeProblem(**models(0, shift=1.0), ridge=0.1)
    assert float(np.linalg.eigvalsh(models(0, shift=1.0)["curvatures"]).min()) < 0.0
    assert float(torch.linalg.eigvalsh(problem.curvatures).min()) > -1e-12
    # δ bounds the step: ‖y‖ ≤ ‖b̄‖/δ.
    y = problem.agreed(torch.full((GROUPS,), -20.0, dtype=torch.float64))
    assert float(y.norm()) <= float(problem.gains.mean(dim=0).norm()) / 0.1


def test_the_pooled_damping_is_no_worse_than_any_of_a_grid() -> None:
    problem = LandscapeProblem(**models(1), ridge=0.1)
    best = problem.value(problem.pooled())
    axis = torch.linspace(-6.0, 6.0, 9, dtype=torch.float64)
    grid = [problem.value(torch.stack([a, b, c])) for a in axis for b in axis for c in axis]
    assert best <= min(grid) + 1e-9
    assert min(grid) < problem.value(torch.zeros(GROUPS, dtype=torch.float64))


def test_nodes_agree_on_what_all_data_in_one_place_would_have() -> None:
    problem = LandscapeProblem(**models(1), ridge=0.1)
    step = float(problem.step_size.min())
    run = solve(problem, mixing_matrix("ring", NODES), step_sizes=(1.0, step, step), steps=2000)
    agreed, pooled = run.x.mean(dim=0), problem.pooled()
    assert run.history.consensus["x"][-1] < 1e-8
    assert torch.allclose(run.y.mean(dim=0), problem.agreed(agreed), rtol=1e-4)  # x moves on
    start, end, best = (problem.value(one) for one in (torch.zeros_like(agreed), agreed, pooled))
    # The damping of some groups goes to none, ever more slowly: the loss is there long before.
    assert 0.0 <= end - best < 0.02 * (start - best)


def test_a_node_alone_has_its_own_rows() -> None:
    problem: BilevelProblem = LandscapeProblem(**models(2), ridge=0.1)
    assert isinstance(problem, LandscapeProblem)
    own = problem.of_node(2)
    x, y = torch.zeros(1, GROUPS, dtype=torch.float64), torch.ones(1, GROUPS, dtype=torch.float64)
    whole = problem.lower_gradient(x.expand(NODES, -1), y.expand(NODES, -1))
    assert own.num_nodes == 1
    assert torch.equal(own.lower_gradient(x, y), whole[2:3])
    assert problem.of_node(None) is problem
