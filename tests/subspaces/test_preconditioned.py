"""F^(-½) H F^(-½) against dense matrices, F put together by Kronecker products."""

from functools import cache

import numpy as np
import pytest
import torch

from lite_probe.operators.base import MatrixOperator
from lite_probe.operators.hessian import HessianOperator
from lite_probe.operators.layout import ParameterLayout
from lite_probe.optim import Directions
from lite_probe.spectra import SpectrumRequest, measure_operator
from lite_probe.subspaces import optimizer_of, warm
from lite_probe.subspaces import preconditioned as preconditioning
from lite_probe.subspaces.preconditioned import PreconditionedOperator
from lite_probe.task import Task
from tests import models, oracles
from tests.subspaces import landscapes

OPTIMIZERS = ("adamw-lite", "muon-lite", "soap-lite")


@cache
def directions_of(model: str, optimizer: str) -> tuple[Task, list[Directions]]:
    task = landscapes.quadratic_task() if model == "quadratic" else models.make_task(model)
    made = optimizer_of(task, optimizer)
    batches = list(task.train)[:12] if task.train else list(task.evaluation) * 4
    warm(task, [made], batches)
    return task, made.directions()


def layout_of(task: Task) -> ParameterLayout:
    return ParameterLayout(list(task.model.named_parameters()))


def floored(directions: list[Directions]) -> list[Directions]:
    """The same, F bounded from below as documented: 1e-4 of its mean over the piece."""
    from dataclasses import replace

    return [replace(one, divisor=one.divisor.clamp(min=1e-4 * float(one.divisor.mean()))) for one in directions]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["quadratic", "llama", "gpt2", "qwen2_moe"])
def test_products_are_those_of_the_dense_matrix(model: str, optimizer: str) -> None:
    task, directions = directions_of(model, optimizer)
    layout = layout_of(task)
    generator = torch.Generator().manual_seed(2)
    size = layout.size
    # Any symmetric A will do, a dense Hessian of the language models is not needed here.
    factor = torch.randn(size, 8, generator=generator, dtype=torch.float64)
    matrix = factor @ factor.T
    operator = PreconditionedOperator(MatrixOperator(matrix), layout, directions)
    root = landscapes.dense_function(task, floored(directions), -0.5)
    expected = root @ matrix.numpy() @ root
    block = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    found = (operator @ block).numpy()
    # Bases and moments are float64 here, but Muon's msign and SVD leave them orthonormal to their own rounding.
    scale = np.abs(expected @ block.numpy()).max()
    np.testing.assert_allclose(found, expected @ block.numpy(), atol=1e-9 * scale)
    assert operator.num_products == 3
    assert operator.operator.num_products == 3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_its_spectrum_is_that_of_the_dense_matrix(optimizer: str) -> None:
    task, directions = directions_of("llama", optimizer)
    layout = layout_of(task)
    count = sum(task.loss(batch)[1] for batch in task.evaluation)
    with oracles.mathematical_attention():
        operator = PreconditionedOperator(HessianOperator(task, layout, count=count), layout, directions)
        measured = measure_operator(operator, SpectrumRequest(top=3, bottom=1, probes=2, probe_steps=4, tolerance=1e-4))
    root = landscapes.dense_function(task, floored(directions), -0.5)
    exact = np.linalg.eigvalsh(root @ oracles.known_hessian("llama").numpy() @ root)
    assert measured.spectrum.converged.all()
    np.testing.assert_allclose(measured.spectrum.eigenvalues, exact[::-1][:3], rtol=1e-4)
    np.testing.assert_allclose(measured.spectrum.lower_eigenvalues, exact[:1], rtol=1e-4)


def test_the_geometry_evens_its_own_curvature_out() -> None:
    """SOAP's F ≈ √(E gg ᵀ) is |H| along its directions here: what is left of the spread is less than there was."""
    task, directions = directions_of("quadratic", "soap-lite")
    root = landscapes.dense_function(task, floored(directions), -0.5)
    hessian = landscapes.hessian().numpy()

    def unevenness(matrix: np.ndarray) -> float:
        values = np.linalg.eigvalsh(matrix)
        return float(values.max() / np.sqrt(np.mean(values**2)))

    assert unevenness(root @ hessian @ root) < 0.8 * unevenness(hessian)


def test_a_direction_that_saw_no_gradient_is_bounded() -> None:
    """Guard: unbounded, one such direction would be all there is to the spectrum."""
    task, _ = directions_of("quadratic", "adamw-lite")
    made = optimizer_of(task, "adamw-lite")
    warm(task, [made], list(task.train)[:12])
    gain = dict(task.model.named_parameters())["gain"]
    made.state[gain]["exp_avg_sq"][:3] = 0.0
    directions = made.directions()
    operator = PreconditionedOperator(MatrixOperator(landscapes.hessian()), layout_of(task), directions)
    assert operator.bounded_share == pytest.approx(3 / landscapes.SIZE)
    free = landscapes.dense_function(task, directions, -0.5)
    bounded = landscapes.dense_function(task, floored(directions), -0.5)
    unit = torch.zeros(landscapes.SIZE, dtype=torch.float64)
    unit[-landscapes.SHAPES["gain"][0]] = 1.0  # the first entry of `gain`
    found = float(unit @ (operator @ unit))
    expected = float(bounded[:, unit.argmax()] @ landscapes.hessian().numpy() @ bounded[:, unit.argmax()])
    assert found == pytest.approx(expected)
    assert float(free[unit.argmax(), unit.argmax()]) > 10 * float(bounded[unit.argmax(), unit.argmax()])


def test_where_all_saw_gradients_nothing_is_bounded() -> None:
    task, directions = directions_of("quadratic", "muon-lite")
    operator = PreconditionedOperator(MatrixOperator(landscapes.hessian()), layout_of(task), directions)
    assert operator.bounded_share == 0.0
    assert preconditioning._LEAST_DIVISOR == 1e-4
