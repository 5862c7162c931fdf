"""F^(-½) H F^(-½) against dense matrices, F put together by Kronecker products."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from lite_probe.operators.base import MatrixOperator
from lite_probe.operators.hessian import HessianOperator
from lite_probe.optim import Directions
from lite_probe.spectra import OperatorRequest, measure_operator
from lite_probe.subspaces import optimizer_of, warm
from lite_probe.subspaces.preconditioned import PreconditionedOperator
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests import models, oracles
from tests.subspaces import landscapes

BATCHES = 12
OPTIMIZERS = ("adamw-lite", "muon-lite", "soap-lite")


@cache
def directions_of(model: str, optimizer: str) -> tuple[Task, list[Directions]]:
    task = landscapes.quadratic_task() if model == "quadratic" else models.make_task(model)
    made = optimizer_of(task, optimizer)
    batches = list(task.train)[:BATCHES] if task.train else (list(task.evaluation) * BATCHES)[:BATCHES]
    warm(task, [made], batches)
    return task, made.directions()


def layout_of(task: Task) -> ParameterLayout:
    return ParameterLayout(list(task.model.named_parameters()))


def floored(directions: list[Directions]) -> list[Directions]:
    """The same, F bounded from below as documented: F² by its mean over the piece, divided by W."""
    least = [float(np.sqrt(np.mean(one.divisor.double().numpy() ** 2) / BATCHES)) for one in directions]
    return [replace(one, divisor=one.divisor.clamp(min=bound)) for one, bound in zip(directions, least, strict=True)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["quadratic", "llama", "gpt2", "gpt_neox", "qwen2_moe"])
def test_products_are_those_of_the_dense_matrix(model: str, optimizer: str) -> None:
    task, directions = directions_of(model, optimizer)
    layout = layout_of(task)
    generator = torch.Generator().manual_seed(2)
    size = layout.size
    # Any symmetric A will do, a dense Hessian of the language models is not needed here.
    factor = torch.randn(size, 8, generator=generator, dtype=torch.float64)
    matrix = factor @ factor.T
    operator = PreconditionedOperator(MatrixOperator(matrix), layout, directions, num_batches=BATCHES)
    root = landscapes.dense_function(task, floored(directions), -0.5)
    expected = root @ matrix.numpy() @ root
    block = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    found = (operator @ block).numpy()
    # Bases and moments are float64 here, but Muon's msign and SVD leave them orthonormal to their own rounding.
    scale = np.abs(expected @ block.numpy()).max()
    np.testing.assert_allclose(found, expected @ block.numpy(), atol=1e-9 * scale)
    assert operator.num_products == 3
    assert operator.operator.num_products == 3


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_its_spectrum_is_that_of_the_dense_matrix(optimizer: str) -> None:
    task, directions = directions_of("llama", optimizer)
    layout = layout_of(task)
    count = sum(task.loss(batch)[1] for batch in task.evaluation)
    with oracles.mathematical_attention():
        operator = PreconditionedOperator(
            HessianOperator(task, layout, count=count), layout, directions, num_batches=BATCHES
        )
        measured = measure_operator(operator, OperatorRequest(top=3, bottom=1, probes=2, probe_steps=4, tolerance=1e-4))
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
    warm(task, [made], list(task.train)[:BATCHES])
    gain = dict(task.model.named_parameters())["gain"]
    made.state[gain]["exp_avg_sq"][:3] = 0.0
    directions = made.directions()
    matrix = MatrixOperator(landscapes.hessian())
    operator = PreconditionedOperator(matrix, layout_of(task), directions, num_batches=BATCHES)
    below = sum(
        int((one.divisor < two.divisor).sum()) for one, two in zip(directions, floored(directions), strict=True)
    )
    assert below >= 3
    assert operator.bounded_share == pytest.approx(below / landscapes.SIZE)
    free = landscapes.dense_function(task, directions, -0.5)
    bounded = landscapes.dense_function(task, floored(directions), -0.5)
    unit = torch.zeros(landscapes.SIZE, dtype=torch.float64)
    unit[-landscapes.SHAPES["gain"][0]] = 1.0  # the first entry of `gain`
    found = float(unit @ (operator @ unit))
    expected = float(bounded[:, unit.argmax()] @ landscapes.hessian().numpy() @ bounded[:, unit.argmax()])
    assert found == pytest.approx(expected)
    assert float(free[unit.argmax(), unit.argmax()]) > 10 * float(bounded[unit.argmax(), unit.argmax()])


def test_the_bound_vanishes_with_the_number_of_batches() -> None:
    task, directions = directions_of("quadratic", "muon-lite")
    matrix = MatrixOperator(landscapes.hessian())
    shares = [
        PreconditionedOperator(matrix, layout_of(task), directions, num_batches=count).bounded_share
        for count in (1, BATCHES, 10**12)
    ]
    assert shares[0] > shares[1] >= shares[2] == 0.0


def test_whether_a_batch_had_a_rare_direction_matters_little() -> None:
    """One entry is moved by no batch but the last: without that batch its F falls by less than √W.

    The entry has no gradient in the others, so that an F of its own average alone would fall by 1e4 and more.
    """
    task, _ = directions_of("quadratic", "adamw-lite")
    gain, found = dict(task.model.named_parameters())["gain"], []
    matrix = MatrixOperator(landscapes.hessian())
    unit = torch.zeros(landscapes.SIZE, dtype=torch.float64)
    unit[-landscapes.SHAPES["gain"][0]] = 1.0
    for seen in (True, False):
        made = optimizer_of(task, "adamw-lite")
        warm(task, [made], list(task.train)[:BATCHES])
        second = made.state[gain]["exp_avg_sq"]
        second[0] = float(second[1:].mean()) / BATCHES if seen else 0.0
        operator = PreconditionedOperator(matrix, layout_of(task), made.directions(), num_batches=BATCHES)
        found.append(float(unit @ (operator @ unit)))
    assert found[1] / found[0] < np.sqrt(BATCHES)
