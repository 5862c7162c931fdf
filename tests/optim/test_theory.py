"""What theory.py predicts for a direction is what the optimizers do to it, and its limits are where roots leave 1."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lite_probe.errors import UsageError
from lite_probe.optim import (
    LinearRecipe,
    LiteOptimizer,
    linear_recipes,
    make_optimizer,
    predicted_rate,
    stability_limit,
)
from tests.oracles import orthogonal

RECIPES = [
    LinearRecipe(lr=lr, momentum=theta, damping=beta, lr_ratio=chi)
    for lr, chi in ((0.3, 1.0), (0.02, 2.5))
    for theta in (0.0, 0.5, 0.9, 0.95)
    for beta in (-0.9, -0.3, -0.04, 0.0, 0.05, 0.5, 1.0, 6.0)
]


# -- formulas ----------------------------------------------------------------------------------------------------


def rate_by_iteration_matrix(recipe: LinearRecipe, curvature: float) -> float:
    """The spectral radius of one step on (w, m), written as a matrix."""
    step, theta = recipe.lr * recipe.lr_ratio, recipe.momentum
    momentum = np.array([(1.0 - theta) * curvature, theta])
    weight = np.array([1.0 - step * recipe.damping * curvature, 0.0]) - step * momentum
    return float(np.abs(np.linalg.eigvals(np.stack([weight, momentum]))).max())


# A double root is found to the square root of float64's rounding by either side.
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_rate_is_the_spectral_radius_of_a_step(recipe: LinearRecipe) -> None:
    curvatures = np.concatenate([-np.logspace(1, -4, 12), [0.0], np.logspace(-4, 4, 60)]) / recipe.lr
    expected = [rate_by_iteration_matrix(recipe, curvature) for curvature in curvatures]
    np.testing.assert_allclose(predicted_rate(recipe, curvatures), expected, rtol=1e-7)


def test_rates_have_the_shape_of_the_curvatures() -> None:
    recipe = LinearRecipe(lr=0.5)
    np.testing.assert_array_equal(predicted_rate(recipe, [[0.0, 1.0], [3.0, 6.0]]), [[1.0, 0.5], [0.5, 2.0]])
    assert predicted_rate(recipe, 1.0).shape == ()


def test_negative_curvature_grows() -> None:
    assert all(bool((predicted_rate(recipe, [-3.0, -0.01]) > 1.0).all()) for recipe in RECIPES)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_limit_is_where_bisection_finds_it(recipe: LinearRecipe) -> None:
    # Stable curvatures are an interval: each Jury condition is linear in λ.
    low, high = 1e-3 / recipe.lr, 1e6 / recipe.lr
    assert rate_by_iteration_matrix(recipe, low) < 1.0 < rate_by_iteration_matrix(recipe, high)
    for _ in range(80):
        middle = 0.5 * (low + high)
        if rate_by_iteration_matrix(recipe, middle) < 1.0:
            low = middle
        else:
            high = middle
    # Eigenvalues are exact to 1e-15 and cross 1 with a slope of at least 0.01 per relative change of λ.
    assert stability_limit(recipe) == pytest.approx(low, rel=1e-12)


def test_known_limits() -> None:
    assert stability_limit(LinearRecipe(lr=0.25)) == 8.0
    adam = linear_recipes("adamw", (3,), block="norm", lr=1e-3, adamw_beta1=0.9)
    assert stability_limit(adam.sharp) == pytest.approx(38_000, rel=1e-12)
    assert stability_limit(LinearRecipe(lr=0.25, damping=-1.0)) == 0.0
    assert stability_limit(LinearRecipe(lr=0.0, damping=0.5)) == math.inf


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": -1.0}, r"expected lr to be finite and at least 0, got -1.0"),
        ({"lr": 1.0, "lr_ratio": math.inf}, r"expected lr_ratio to be finite and at least 0, got inf"),
        ({"lr": 1.0, "momentum": 1.0}, r"expected momentum in \[0, 1\), got 1.0"),
        ({"lr": 1.0, "damping": math.nan}, r"expected a finite damping, got nan"),
    ],
)
def test_a_recipe_refuses_numbers_out_of_range(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LinearRecipe(**wrong)


# -- by name -----------------------------------------------------------------------------------------------------

LITE = {"beta1": -0.2, "beta2": 0.5, "flat_lr_ratio": {"ffn": 3.0, "emb": 5.0}}
MUON_LR = 0.2 * 0.1 * 3.0  # √max(4, 9) = 3


# (lr, θ, β, χ) of sharp and flat directions of a (4, 9) matrix, by the formulas of MATH 2.3 to 2.5.
@pytest.mark.parametrize(
    ("name", "block", "hyperparameters", "sharp", "flat"),
    [
        ("sgd", "ffn", {"momentum": 0.8}, (0.1, 0.8, 0.0, 1.0), (0.1, 0.8, 0.0, 1.0)),
        ("adamw", "ffn", {}, (0.1, 0.9, 0.0, 1.0), (0.1, 0.9, 0.0, 1.0)),
        ("adamw-lite", "ffn", LITE, (0.1, 0.9, -0.2, 1.0), (0.1, 0.9, 0.5, 3.0)),
        ("adamw-lite", "emb", {**LITE, "adamw_damping": False}, (0.1, 0.9, 0.0, 1.0), (0.1, 0.9, 0.0, 5.0)),
        ("soap", "ffn", {"betas": (0.8, 0.9)}, (0.1, 0.8, 0.0, 1.0), (0.1, 0.8, 0.0, 1.0)),
        ("soap-lite", "ffn", {**LITE, "betas": (0.8, 0.9)}, (0.1, 0.8, -0.2, 1.0), (0.1, 0.8, 0.5, 3.0)),
        ("muon", "ffn", {"momentum": 0.8}, (MUON_LR, 0.8, 0.25, 1.0), (MUON_LR, 0.8, 0.25, 1.0)),
        ("muon", "ffn", {"momentum": 0.0}, (MUON_LR, 0.0, 0.0, 1.0), (MUON_LR, 0.0, 0.0, 1.0)),
        ("muon-lite", "ffn", {**LITE, "momentum": 0.8}, (MUON_LR, 0.8, 0.0, 1.0), (MUON_LR, 0.8, 0.875, 3.0)),
        ("muon-lite", "emb", LITE, (0.1, 0.9, 0.0, 1.0), (0.1, 0.9, 0.0, 5.0)),
    ],
)
def test_recipes_by_name(
    name: str, block: str, hyperparameters: Mapping[str, Any], sharp: Sequence[float], flat: Sequence[float]
) -> None:
    recipes = linear_recipes(name, (4, 9), block=block, lr=0.1, **hyperparameters)
    for recipe, expected in ((recipes.sharp, sharp), (recipes.flat, flat)):
        found = (recipe.lr, recipe.momentum, recipe.damping, recipe.lr_ratio)
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("block", ["emb", "qk", "ffn", "norm", "out", "other"])
@pytest.mark.parametrize("shape", [(6,), (3, 5), (1, 5), (2, 3, 5)])
def test_muon_is_what_the_optimizer_makes_of_it(shape: tuple[int, ...], block: str) -> None:
    weight = nn.Parameter(torch.ones(shape))
    weight.grad = torch.ones(shape)
    optimizer = make_optimizer("muon", [("weight", weight)], lr=0.1, blocks={"weight": block})
    optimizer.step()
    momentum = 0.95 if "momentum" in optimizer.state[weight] else 0.9
    assert linear_recipes("muon", shape, block=block, lr=0.1).sharp.momentum == momentum


def test_refusals_are_those_of_make_optimizer() -> None:
    with pytest.raises(UsageError, match="expected an optimizer among adamw, "):
        linear_recipes("adam", (3,), block="norm", lr=0.1)
    with pytest.raises(UsageError, match="expected hyperparameters of sgd among lr, "):
        linear_recipes("sgd", (3,), block="norm", lr=0.1, beta1=0.5)


# -- measured ----------------------------------------------------------------------------------------------------

STEPS = 60


class Quadratic:
    """½wᵀHw + bᵀw for H = V diag(h) Vᵀ, and an optimizer on it.

    Args:
        directions: V, orthonormal columns (N, k).
        curvatures: h (k,).
        slope: b (N,), orthogonal to V; None: 0.
    """

    def __init__(
        self,
        optimizer: LiteOptimizer,
        weight: nn.Parameter,
        directions: Tensor,
        curvatures: Tensor,
        slope: Tensor | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.weight = weight
        self.directions = directions
        self.curvatures = curvatures
        self.slope = torch.zeros(weight.numel(), dtype=weight.dtype) if slope is None else slope

    def run(self, steps: int, start: float = 1.0) -> NDArray[np.float64]:
        """Start at the same distance along every direction; return the coordinates Vᵀw, (steps + 1, k)."""
        with torch.no_grad():
            self.weight.copy_((self.directions.sum(dim=1) * start).view_as(self.weight))
        path = [self.coordinates()]
        for _ in range(steps):
            gradient = self.directions @ (self.curvatures * path[-1]) + self.slope
            self.weight.grad = gradient.view_as(self.weight)
            self.optimizer.step()
            path.append(self.coordinates())
        return torch.stack(path).numpy()

    def coordinates(self) -> Tensor:
        return self.directions.T @ self.weight.detach().flatten()


def measured_rates(path: NDArray[np.float64]) -> list[float]:
    """The factor per step by which each direction shrinks over a run.

    One momentum makes c_t a linear recurrence of order two, whatever its coefficients: the Hankel matrices
    X_t = [[c_t, c_{t+1}], [c_{t+1}, c_{t+2}]] obey X_{t+n} = AⁿX_t. The spectral radius of X_n X_0⁺ is that of Aⁿ,
    exactly, for roots that oscillate as for those that do not; without momentum X_0 has rank one.
    """
    steps = len(path) - 3
    rates = []
    for c in path.T:
        first, last = (np.array([[c[t], c[t + 1]], [c[t + 1], c[t + 2]]]) for t in (0, steps))
        radius = np.abs(np.linalg.eigvals(last @ np.linalg.pinv(first, rcond=1e-10))).max()
        rates.append(float(radius ** (1.0 / steps)))
    return rates


def test_the_measure_reads_roots_off_a_path() -> None:
    t = np.arange(STEPS + 1)
    path = np.stack([0.9**t * np.cos(0.7 * t + 0.3), 0.97**t - 3.0 * (-0.8) ** t, (-1.04) ** t], axis=1)
    # 0.8⁶⁰ is 1e-5 of 0.97⁶⁰: what is left of the second root; all else is rounding.
    np.testing.assert_allclose(measured_rates(path), [0.9, 0.97, 1.04], rtol=1e-12)


def assert_agree(path: NDArray[np.float64], predicted: NDArray[np.float64]) -> None:
    """Compare logarithms of rates, in which 0.999 and 0.998 are a factor of two apart.

    Rates are above 0.65: after 60 steps a coordinate is 1e-11 of the largest, whose rounding it shares where H is not
    diagonal, magnified by up to 100 where F is smaller in its direction: 1e-3 of it, a 60th of that in the logarithm.
    """
    np.testing.assert_allclose(np.log(measured_rates(path)), np.log(predicted), rtol=1e-3)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float64))


def make(name: str, weight: nn.Parameter, **hyperparameters: Any) -> LiteOptimizer:
    return make_optimizer(name, [("weight", weight)], blocks={"weight": "ffn"}, **hyperparameters)


def freeze(optimizer: LiteOptimizer, weight: nn.Parameter, **state: Tensor) -> None:
    """Give the optimizer a state so late in a run that no bias correction is left."""
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    saved = optimizer.state_dict()
    for name, value in state.items():
        assert saved["state"][0][name].shape == value.shape
        saved["state"][0][name] = value
    saved["state"][0]["step"] = 10**17 + 1
    optimizer.load_state_dict(saved)


# Scaled curvatures ηλ, overdamped, oscillating, near the limit and negative; 1.99 and 37.99 of 2 and 38.
@pytest.mark.parametrize(
    ("theta", "scaled"),
    [(0.0, [-0.02, 1e-3, 0.03, 0.2, 0.3, 1.7, 1.9, 1.99]), (0.9, [-0.1, 1e-3, 0.02, 0.1, 3.0, 20.0, 37.0, 37.99])],
)
def test_sgd_contracts_as_predicted(theta: float, scaled: list[float]) -> None:
    hyperparameters = {"lr": 0.05, "momentum": theta}
    curvatures = torch.tensor(scaled, dtype=torch.float64) / 0.05
    weight = parameter(8)
    path = Quadratic(make("sgd", weight, **hyperparameters), weight, orthogonal(8, seed=3), curvatures).run(STEPS)
    recipe = linear_recipes("sgd", (8,), block="ffn", **hyperparameters).sharp
    assert_agree(path, predicted_rate(recipe, curvatures))


# The frozen geometries: v is 1 on six sharp coordinates and 1e-6 on six flat ones. LITE's thresholds start at 0.5 and 1
# times the mean of v and fall by 5% a step, to 0.02 of it, far above 1e-6: the mask is 1 and 0 throughout.
EPS = 0.01
SECOND = torch.tensor([1.0] * 6 + [1e-6] * 6, dtype=torch.float64)
METRIC = SECOND.sqrt() + EPS
STAYS = 1.0 - 2.0**-50  # b₂: 10¹⁷ steps bring b₂ᵏ to 1e-39, 60 more move v by 1e-13 of g² at most
FROZEN = {"lr": 0.02, "eps": EPS, "weight_decay": 0.0}
LITE_ON = {"beta1": -0.03, "beta2": 0.4, "flat_lr_ratio": 2.5}
# ηλ at θ = 0.9; with β₁ < 0 a pair of roots leaves at 3.7, between the last two sharp ones.
SHARP, FLAT = [-0.1, 1e-3, 0.05, 2.0, 3.6, 3.8], [-0.03, 1e-3, 0.02, 0.3, 1.1, 1.25]
VARIANTS = pytest.mark.parametrize("lite", [{}, {**LITE_ON, "sharp_ratio": 0.5}], ids=["base", "lite"])


def prediction(
    name: str, shape: Sequence[int], hyperparameters: Mapping[str, Any]
) -> tuple[Tensor, NDArray[np.float64]]:
    """The curvatures λ in the metric of F of six sharp and six flat directions, and their rates."""
    recipes = linear_recipes(name, shape, block="ffn", **hyperparameters)
    sharp, flat = np.array(SHARP) / recipes.sharp.lr, np.array(FLAT) / recipes.flat.lr
    rates = [predicted_rate(recipes.sharp, sharp), predicted_rate(recipes.flat, flat)]
    return torch.from_numpy(np.concatenate([sharp, flat])), np.concatenate(rates)


@VARIANTS
def test_a_frozen_adamw_contracts_as_predicted(lite: dict[str, Any]) -> None:
    name, weight = "adamw-lite" if lite else "adamw", parameter(12)
    hyperparameters = {**FROZEN, "adamw_beta1": 0.9, "adamw_beta2": STAYS, **lite}
    optimizer = make(name, weight, **hyperparameters)
    freeze(optimizer, weight, exp_avg_sq=SECOND)
    curvatures, rates = prediction(name, weight.shape, hyperparameters)
    identity = torch.eye(12, dtype=torch.float64)
    assert_agree(Quadratic(optimizer, weight, identity, curvatures * METRIC).run(STEPS, start=1e-3), rates)


@pytest.mark.parametrize(("ratio", "part"), [(0.0, "flat"), (1.0, "sharp")])
def test_all_flat_and_all_sharp(ratio: float, part: str) -> None:
    hyperparameters = {**FROZEN, **LITE_ON, "adamw_beta2": STAYS, "sharp_ratio": ratio}
    weight, second = parameter(6), torch.logspace(-4, 0, 6, dtype=torch.float64)
    optimizer = make("adamw-lite", weight, **hyperparameters)
    freeze(optimizer, weight, exp_avg_sq=second)
    curvatures = torch.tensor(FLAT if part == "flat" else SHARP, dtype=torch.float64) / FROZEN["lr"]
    problem = Quadratic(optimizer, weight, torch.eye(6, dtype=torch.float64), curvatures * (second.sqrt() + EPS))
    recipe = getattr(linear_recipes("adamw-lite", (6,), block="ffn", **hyperparameters), part)
    assert_agree(problem.run(STEPS, start=1e-3), predicted_rate(recipe, curvatures))


@VARIANTS
def test_a_frozen_soap_contracts_as_predicted(lite: dict[str, Any]) -> None:
    # Directions are the coordinates of QₗᵀWQᵣ: columns of Qₗ ⊗ Qᵣ. No step of the stretch renews the bases.
    name, weight = "soap-lite" if lite else "soap", parameter(3, 4)
    hyperparameters = {**FROZEN, "betas": (0.9, STAYS), "precondition_frequency": 10**9, **lite}
    left, right = orthogonal(3, seed=1), orthogonal(4, seed=2)
    optimizer = make(name, weight, **hyperparameters)
    freeze(optimizer, weight, exp_avg_sq=SECOND.view(3, 4), basis_left=left, basis_right=right)
    curvatures, rates = prediction(name, weight.shape, hyperparameters)
    problem = Quadratic(optimizer, weight, torch.kron(left, right), curvatures * METRIC)
    assert_agree(problem.run(STEPS, start=1e-3), rates)


@VARIANTS
def test_what_turns_a_steady_gradient_contracts_under_muon_as_predicted(lite: dict[str, Any]) -> None:
    # The gradient is S + A with S = diag(1, 1, 1, 1, s, s, s, s) and a small antisymmetric A in each of the two blocks,
    # where msign(S + A) is I + A and I + A/s up to the square of A/s. The momentum starts at S: M = F = S/θ.
    # ‖S‖ is 2 and τ starts at 0.4, between the singular values 1/2 and s/2 of S/‖S‖. It falls to 0.02 and stays
    # between them, since ⌊0.5·8⌋ + 1 = 5 directions may be sharp and 4 are. 15 Newton–Schulz steps reach rounding.
    name, weight, theta, s = "muon-lite" if lite else "muon", parameter(8, 8), 0.9, 0.01
    hyperparameters = {"lr": 0.02, "momentum": theta, "weight_decay": 0.0, "ns_steps": 15, **lite}
    steady = torch.tensor([1.0] * 4 + [s] * 4, dtype=torch.float64)
    pairs = [pair for block in (range(4), range(4, 8)) for pair in combinations(block, 2)]
    turns = torch.zeros(8, 8, 12, dtype=torch.float64)
    for index, (i, j) in enumerate(pairs):
        turns[i, j, index], turns[j, i, index] = 0.5**0.5, -(0.5**0.5)
    metric = torch.tensor([1.0] * 6 + [s] * 6, dtype=torch.float64) / theta
    optimizer = make(name, weight, **hyperparameters)
    threshold = {"threshold": torch.full((1, 1), 0.4, dtype=torch.float64)} if lite else {}
    freeze(optimizer, weight, momentum=steady.diag(), **threshold)
    curvatures, rates = prediction(name, weight.shape, hyperparameters)
    problem = Quadratic(optimizer, weight, turns.flatten(0, 1), curvatures * metric, steady.diag().flatten())
    assert_agree(problem.run(STEPS, start=1e-7), rates)


# -- the limit ---------------------------------------------------------------------------------------------------


# A pair of roots on its way out, at β < 0, is the slowest: 3% off the limit its rate is 3% of ½(1 − θ) off 1, a factor
# of e³ in 2000 steps. The others are quicker.
@pytest.mark.parametrize(
    ("name", "hyperparameters", "part", "steps"),
    [
        ("sgd", {"lr": 0.02}, "sharp", 100),
        ("sgd", {"lr": 0.02, "momentum": 0.9}, "sharp", 100),
        ("adamw", {**FROZEN, "adamw_beta2": STAYS}, "sharp", 100),
        ("adamw-lite", {**FROZEN, **LITE_ON, "adamw_beta2": STAYS, "sharp_ratio": 1.0}, "sharp", 2000),
        ("adamw-lite", {**FROZEN, **LITE_ON, "adamw_beta2": STAYS, "sharp_ratio": 0.0}, "flat", 100),
    ],
)
def test_it_contracts_below_the_limit_and_blows_up_above(
    name: str, hyperparameters: dict[str, Any], part: str, steps: int
) -> None:
    limit = stability_limit(getattr(linear_recipes(name, (2,), block="ffn", **hyperparameters), part))
    weight = parameter(2)
    optimizer = make(name, weight, **hyperparameters)
    metric = 1.0
    if name != "sgd":
        freeze(optimizer, weight, exp_avg_sq=torch.ones(2, dtype=torch.float64))
        metric = 1.0 + EPS
    curvatures = torch.tensor([0.97, 1.03], dtype=torch.float64) * limit * metric
    # So near the minimum that there is room to grow before v feels it.
    path = Quadratic(optimizer, weight, torch.eye(2, dtype=torch.float64), curvatures).run(steps, start=1e-50)
    below, above = np.abs(path[-20:]).max(axis=0)
    assert below < 1e-51
    assert above > 1e-49
