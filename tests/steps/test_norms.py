"""S against matrices whose maximum is known: an eigenvalue, every sign vector, every orthogonal matrix."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lite_probe.errors import InputError
from lite_probe.operators.base import MatrixOperator
from lite_probe.optim import LiteOptimizer, make_optimizer
from lite_probe.optim.euclidean import Euclidean
from lite_probe.results.subspace import NormSharpness
from lite_probe.steps.norms import UnitBall, sharpness_in_norm, unit_ball
from lite_probe.vectors.layout import ParameterLayout
from tests import oracles

FloatArray = NDArray[np.float64]
Shapes = Mapping[str, tuple[int, ...]]
LONG: dict[str, Any] = {"max_products": 200, "tolerance": 1e-12}


class _Point(nn.Module):
    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, dtype=torch.float64)))


def optimizer_of(name: str, shapes: Shapes, **hyperparameters: Any) -> tuple[LiteOptimizer, ParameterLayout]:
    """An optimizer that has seen three gradients: "emb" is an embedding, all else hidden."""
    model = _Point(shapes)
    blocks = {key: "emb" if key == "emb" else "ffn" for key in shapes}
    optimizer = make_optimizer(name, model.named_parameters(), lr=0.0, blocks=blocks, **hyperparameters)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    return optimizer, ParameterLayout(list(model.named_parameters()))


def ball_of(name: str, shapes: Shapes, **hyperparameters: Any) -> UnitBall:
    optimizer, layout = optimizer_of(name, shapes, **hyperparameters)
    return unit_ball(optimizer, layout, optimizer.directions())


def random(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def found_on(matrix: Tensor, ball: UnitBall, *, starts: int = 20, seed: int = 0, **asked: Any) -> NormSharpness:
    size = len(matrix)
    return sharpness_in_norm(
        MatrixOperator(matrix),
        ball,
        gradient=random(size, 1000 + seed),
        starts=(random(size, 100 * seed + index) for index in range(starts)),
        **{**LONG, **asked},
    )


def with_positive_diagonal(size: int, seed: int) -> Tensor:
    """Indefinite, and convex along each coordinate: its maximum over a cube is at a corner."""
    matrix = oracles.matrix_with(np.linspace(-2.0, 2.2, size), seed=seed)
    matrix = matrix - torch.diag(matrix.diagonal()) + 0.1 * torch.eye(size, dtype=torch.float64)
    assert float(torch.linalg.eigvalsh(matrix)[0]) < -1.0
    return matrix


def largest_over_signs(matrix: FloatArray) -> float:
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(matrix))))
    return float(np.einsum("si,ij,sj->s", signs, matrix, signs, optimize=True).max())


# -- Euclidean -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [0.1, -6.0])
def test_of_gradient_descent_it_is_the_leading_eigenvalue(least: float) -> None:
    """Also where the most negative eigenvalue is the larger one, to which powers of H would lead."""
    values = np.append(np.linspace(least, 2.0, 29), 5.0)
    ball = ball_of("sgd", {"a": (5, 4), "b": (10,)})
    found = found_on(oracles.matrix_with(values, seed=1), ball, starts=3, max_products=2000)
    assert found.value == pytest.approx(5.0, rel=1e-6)
    assert found.value <= 5.0 * (1 + 1e-12)
    assert found.norm == "Euclidean"
    assert found.gradient_norm == pytest.approx(float(random(30, 1000).norm()))
    assert not found.is_normalised
    assert found.edge_lr == pytest.approx(2.0 / 5.0, rel=1e-6)


# -- entries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["positive", "indefinite"])
def test_of_adam_it_is_the_largest_over_all_signs(kind: str, seed: int) -> None:
    size = 12
    positive = oracles.matrix_with(np.geomspace(0.01, 3.0, size), seed=seed)
    matrix = positive if kind == "positive" else with_positive_diagonal(size, seed)
    # Indefinite ones have more local maxima: at worst 10 of 400 starts led to the highest.
    found = found_on(matrix, ball_of("adamw", {"a": (2, 3), "b": (6,)}), starts=300, seed=seed)
    assert found.value == pytest.approx(largest_over_signs(matrix.numpy()), rel=1e-9)
    assert found.norm == "largest entry"
    assert found.gradient_norm == pytest.approx(float(random(size, 1000 + seed).abs().sum()))


def test_of_soap_entries_count_in_its_eigenbases() -> None:
    shapes = {"a": (3, 4)}
    optimizer, layout = optimizer_of("soap", shapes)
    directions = optimizer.directions()
    ball = unit_ball(optimizer, layout, directions)
    (one,) = directions
    assert one.left is not None
    assert one.right is not None
    basis = torch.kron(one.left[0], one.right[0])  # vec(Q_L X' Q_Rᵀ), row by row
    matrix = oracles.matrix_with(np.geomspace(0.01, 3.0, 12), seed=3)
    found = found_on(matrix, ball)
    assert found.value == pytest.approx(largest_over_signs((basis.T @ matrix @ basis).numpy()), rel=1e-9)
    assert abs(found.value / largest_over_signs(matrix.numpy()) - 1.0) > 0.01
    assert found.gradient_norm == pytest.approx(float((basis.T @ random(12, 1000)).abs().sum()))
    assert found.norm == "largest entry in its eigenbases"


# -- singular values -------------------------------------------------------------------------------------------------


def _polar(matrix: FloatArray) -> FloatArray:
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(left @ right)


def largest_over_orthogonal(matrix: FloatArray, shapes: Shapes, scales: Mapping[str, float]) -> float:
    """The best of 400 random products of partial isometries, each led uphill; H must be positive semidefinite."""
    generator, best = np.random.default_rng(0), 0.0
    cuts = np.cumsum([np.prod(shape) for shape in shapes.values()])[:-1]

    def project(vector: FloatArray) -> FloatArray:
        parts = zip(shapes.items(), np.split(vector, cuts), strict=True)
        return np.concatenate([scales[name] * _polar(part.reshape(shape)).ravel() for (name, shape), part in parts])

    for _ in range(400):
        place = project(generator.standard_normal(len(matrix)))
        for _ in range(10):
            place = project(matrix @ place)
        best = max(best, float(place @ matrix @ place))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_of_one_matrix_it_is_the_largest_over_all_orthogonal_ones(seed: int) -> None:
    """Rotations and reflections of the plane are one circle each: all of them are tried."""
    matrix = oracles.matrix_with(np.array([0.05, 0.4, 1.0, 3.0]), seed=seed).numpy()
    angles = np.linspace(0.0, 2.0 * np.pi, 20_001)
    cosine, sine = np.cos(angles), np.sin(angles)
    tried = np.concatenate([np.stack([cosine, -s * sine, sine, s * cosine], axis=1) for s in (1.0, -1.0)])
    expected = np.einsum("ai,ij,aj->a", tried, matrix, tried, optimize=True).max()
    found = found_on(torch.from_numpy(matrix), ball_of("muon", {"a": (2, 2)}, lr_scale="original"), seed=seed)
    # A grid of 3e-4 misses a maximum by half the second derivative, a few times 3, times its square.
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.norm == "largest singular value of matrices"


@pytest.mark.parametrize("rule", ["original", "match-rms-adamw"])
def test_of_several_matrices_each_has_the_scale_of_its_step(rule: str) -> None:
    shapes = {"a": (3, 2), "b": (2, 4), "c": (2, 2)}
    scales = {
        name: 0.2 * max(shape) ** 0.5 if rule == "match-rms-adamw" else max(1.0, shape[0] / shape[1]) ** 0.5
        for name, shape in shapes.items()
    }
    matrix = oracles.matrix_with(np.geomspace(0.01, 3.0, 18), seed=5)
    found = found_on(matrix, ball_of("muon", shapes, lr_scale=rule))
    assert found.value == pytest.approx(largest_over_orthogonal(matrix.numpy(), shapes, scales), rel=1e-6)
    parts = random(18, 1000).numpy()
    nuclear = [
        scales[name] * np.linalg.svd(part.reshape(shapes[name]), compute_uv=False).sum()
        for name, part in zip(shapes, np.split(parts, [6, 14]), strict=True)
    ]
    assert found.gradient_norm == pytest.approx(sum(nuclear), rel=1e-4)


def test_of_a_composite_optimizer_all_parts_step_at_once() -> None:
    """dᵀd of the longest step: scale²·min(m, n) of every matrix, of a stack's each, and 1 of every other entry."""
    shapes = {"emb": (5, 3), "a": (4, 3), "stack": (2, 3, 6), "gain": (7,)}
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    found = found_on(torch.eye(size, dtype=torch.float64), ball_of("muon", shapes), starts=2)
    expected = 5 * 3 + 0.04 * 4 * 3 + 2 * 0.04 * 6 * 3 + 7
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert found.num_agreeing == 3
    assert found.norm == "largest singular value of matrices, else largest entry"


# -- what is guaranteed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shapes"), [("adamw", {"a": (12,)}), ("muon", {"a": (3, 4)})])
def test_more_products_never_lower_the_bound(name: str, shapes: Shapes) -> None:
    matrix, ball = with_positive_diagonal(12, seed=7), ball_of(name, shapes)
    values = np.array([found_on(matrix, ball, starts=4, max_products=count).values for count in range(1, 12)])
    assert np.all(np.diff(values, axis=0) >= -1e-12)
    assert np.all(values[-1] > values[0])


def test_products_are_counted_and_end_with_the_increase() -> None:
    matrix, ball = oracles.matrix_with(np.geomspace(0.01, 3.0, 12), seed=2), ball_of("adamw", {"a": (12,)})
    told = []
    operator = MatrixOperator(matrix)
    starts = [random(12, seed) for seed in range(3)]
    found = sharpness_in_norm(
        operator, ball, gradient=random(12, 9), starts=starts, max_products=3, on_product=lambda: told.append(1)
    )
    assert found.num_hvps == operator.num_products == len(told) <= 4 * 3
    patient = found_on(matrix, ball, starts=3, max_products=10_000, tolerance=1e-2)
    assert 4 * 2 <= patient.num_hvps < 4 * 12  # 2¹² corners: an ascent that never falls is soon at its end


def test_starts_that_end_lower_by_more_than_a_percent_do_not_agree() -> None:
    found = NormSharpness(
        norm="largest entry", is_normalised=True, values=np.array([4.0, 3.99, 2.0]), gradient_norm=6.0, num_hvps=9
    )
    assert (found.value, found.num_agreeing) == (4.0, 2)
    assert found.edge_lr == pytest.approx(3.0)
    assert replace(found, values=np.array([-1.0, 0.0])).edge_lr is None
    with pytest.raises(ValueError, match="one value per start"):
        replace(found, values=np.array([]))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_edge_is_where_the_worst_steepest_step_stops_lowering_the_loss(name: str) -> None:
    """A gradient whose steepest step is the sharpest one: L(d) = g·d + ½dᵀHd changes its sign at 2‖g‖_*/S."""
    matrix, ball = oracles.matrix_with(np.geomspace(0.01, 3.0, 12), seed=4), ball_of(name, {"a": (3, 4)})
    place = ball.steepest(random(12, 0))
    for _ in range(100):
        place = ball.steepest(matrix @ place)
    gradient = matrix @ place  # whose steepest step is the stationary place itself
    found = sharpness_in_norm(MatrixOperator(matrix), ball, gradient=gradient, starts=[], **LONG)
    assert found.edge_lr is not None
    for share, sign in ((0.99, -1.0), (1.01, 1.0)):
        step = -share * found.edge_lr * ball.steepest(gradient)
        assert sign * float(gradient @ step + 0.5 * step @ matrix @ step) > 0.0


def test_a_geometry_without_a_known_norm_has_no_ball() -> None:
    class Mine(Euclidean):
        name = "mine"

    optimizer, layout = optimizer_of("sgd", {"a": (3, 2), "b": (4,)})
    first, *rest = optimizer.directions()
    changed = replace(first, piece=replace(first.piece, geometry=Mine()))
    with pytest.raises(InputError, match="by euclidean alone, got euclidean, mine"):
        unit_ball(optimizer, layout, [changed, *rest])
    assert unit_ball(optimizer, layout, [first, *rest]).norm == "Euclidean"
