"""Sharp subspaces of halves and of other operators, against dense eigenvectors; batches divided without loss."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding

from lite_probe.operators.base import MatrixOperator
from lite_probe.results.subspace import Overlap
from lite_probe.subspaces import Subspace, overlap, principal_angles
from lite_probe.task import Task
from lite_probe.vectors.basis import KrylovBasis
from tests import models, oracles
from tests.subspaces import landscapes

SIZE, K = 120, 5
VALUES = np.concatenate([[30.0, 22.0, 17.0, 12.0, 9.0], np.linspace(2.0, -1.0, SIZE - 5)])


def basis_for(operator: MatrixOperator, capacity: int = 45) -> KrylovBasis:
    return KrylovBasis(operator.size, capacity, dtype=operator.dtype, device=torch.device("cpu"))


def leading(matrix: Tensor, count: int) -> Subspace:
    values, vectors = torch.linalg.eigh(matrix)
    rows = vectors.flip(1)[:, :count].T.contiguous()
    return Subspace(rows, eigenvalues=values.flip(0)[:count].numpy(), residual_norms=np.zeros(count))


# -- the subspace of an operator -------------------------------------------------------------------------------------


def test_it_is_that_of_the_dense_matrix() -> None:
    matrix = oracles.matrix_with(VALUES)
    operator, told = MatrixOperator(matrix), []
    found = overlap.sharp_subspace(
        operator, K, basis=basis_for(operator), seed=0, on_product=lambda: told.append(operator.num_products)
    )
    exact = leading(matrix, K)
    # sin θ ≤ ‖residuals‖/gap; what is found is kept in float32.
    leaning = float(np.linalg.norm(found.residual_norms)) / (VALUES[K - 1] - VALUES[K])
    assert principal_angles(found, exact).max() <= 2 * leaning + 1e-3
    assert found.relative_residual <= 2 * overlap.TOLERANCE
    np.testing.assert_allclose(found.eigenvalues, VALUES[:K], rtol=overlap.TOLERANCE**2 + 1e-3)
    assert told == list(range(1, operator.num_products + 1))


def test_its_residuals_are_true_ones() -> None:
    matrix = oracles.matrix_with(VALUES)
    operator = MatrixOperator(matrix)
    found = overlap.sharp_subspace(operator, K, basis=basis_for(operator), seed=3)
    for index in range(K):
        vector = found.vector(index).double()
        true = float((matrix @ vector - found.eigenvalues[index] * vector).norm())
        # Vectors are rounded to float32; the check's random signs find the errors' square sum in expectation.
        assert true <= 2 * found.residual_norms[index] + 1e-5


def test_a_space_that_is_spanned_is_known() -> None:
    matrix = oracles.matrix_with([3.0, 2.0, 1.0, -1.0])
    operator, told = MatrixOperator(matrix), []
    found = overlap.sharp_subspace(operator, 3, basis=basis_for(operator, 4), seed=0, on_product=lambda: told.append(1))
    assert found.size == 3
    assert len(told) == operator.num_products


def test_another_seed_finds_the_same_space() -> None:
    operator = MatrixOperator(oracles.matrix_with(VALUES))
    one, other = (overlap.sharp_subspace(operator, K, basis=basis_for(operator), seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.vector(0), other.vector(0))
    assert np.mean(np.cos(principal_angles(one, other)) ** 2) > 0.999


# -- comparing -------------------------------------------------------------------------------------------------------


def overlap_of(first: Subspace, second: Subspace) -> Overlap:
    return overlap.overlap_of("batches", ("a", first), ("b", second))


def test_a_subspace_overlaps_wholly_with_itself_and_not_with_its_complement() -> None:
    rows = oracles.orthogonal(SIZE)
    one, other = (
        Subspace(part, eigenvalues=np.ones(K), residual_norms=np.array([0.0, 0.1, 0.2, 0.0, 0.0]) * scale)
        for part, scale in ((rows[:K], 1.0), (rows[K : 2 * K], 2.0))
    )
    assert overlap_of(one, one).overlap == pytest.approx(1.0)
    assert overlap_of(one, other).overlap == pytest.approx(0.0, abs=1e-12)
    assert overlap_of(one, other).expected_at_random == K / SIZE
    assert overlap_of(one, other).residual == pytest.approx(0.4)  # the larger of either side
    assert overlap_of(other, one).residual == pytest.approx(0.4)


# -- halves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_halves_are_the_batches_once_each(count: int) -> None:
    task = landscapes.quadratic_task(evaluation=count)
    parts = overlap.halves(task)
    assert parts is not None
    sizes = [sum(len(batch) for batch in part.evaluation) for part in parts]
    assert sum(sizes) == sum(len(batch) for batch in task.evaluation)
    assert min(sizes) > 0
    rows = torch.cat([torch.cat(list(part.evaluation)) for part in parts])
    assert {tuple(row) for row in rows.tolist()} == {tuple(row) for row in torch.cat(list(task.evaluation)).tolist()}
    assert all(part.model is task.model and part.train is task.train for part in parts)


def test_their_weighted_mean_is_the_whole_hessian() -> None:
    """Only so does comparing them say something of the batches the spectrum was measured on."""
    task = models.make_task("llama")
    parts = overlap.halves(task)
    assert parts is not None
    counts = [sum(part.loss(batch)[1] for batch in part.evaluation) for part in parts]
    mean = sum(count * oracles.dense_hessian(part) for count, part in zip(counts, parts, strict=True)) / sum(counts)
    torch.testing.assert_close(mean, oracles.known_hessian("llama"), atol=1e-10, rtol=0)


def _task_of(batch: Any) -> Task:
    task = landscapes.quadratic_task()
    return Task(model=task.model, predict=task.predict, criterion=task.criterion, evaluation=[batch])


def test_a_batch_of_many_tensors_is_divided_in_all_of_them() -> None:
    batch = {"inputs": torch.arange(10).view(5, 2), "more": [torch.arange(5), (torch.arange(5) + 10,)]}
    parts = overlap.halves(_task_of(batch))
    assert parts is not None
    one, other = parts[0].evaluation[0], parts[1].evaluation[0]
    assert torch.equal(one["inputs"], batch["inputs"][[0, 2, 4]])
    assert torch.equal(other["inputs"], batch["inputs"][[1, 3]])
    assert torch.equal(one["more"][0], torch.tensor([0, 2, 4]))
    assert torch.equal(other["more"][1][0], torch.tensor([11, 13]))
    assert type(one["more"][1]) is tuple


class _Pair(NamedTuple):
    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class _Record:
    inputs: Tensor
    targets: Tensor


@pytest.mark.parametrize(
    "make", [_Pair, _Record, lambda **parts: BatchEncoding(parts)], ids=["named tuple", "dataclass", "BatchEncoding"]
)
def test_what_holds_the_tensors_does_not_matter(make: Any) -> None:
    batch = make(inputs=torch.arange(8).view(4, 2), targets=torch.arange(4))
    parts = overlap.halves(_task_of(batch))
    assert parts is not None
    for start, part in enumerate(parts):
        half = part.evaluation[0]
        assert type(half) is type(batch)
        assert half.targets.tolist() == [start, start + 2]
        assert half.inputs.tolist() == batch.inputs[start::2].tolist()
    assert batch.targets.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "batch",
    [
        torch.ones(1, 3),
        torch.tensor(2.0),
        "text",
        [],
        {},
        (torch.ones(4, 3), torch.ones(7)),
        {"inputs": torch.ones(4, 3), "positions": torch.arange(3)},
        (torch.ones(4, 3), None),
    ],
    ids=["one sample", "scalar", "text", "empty", "nothing", "unlike", "shared positions", "other"],
)
def test_what_has_no_samples_to_tell_is_not_divided(batch: Any) -> None:
    assert overlap.halves(_task_of(batch)) is None


# -- random subspaces ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "dimensions"), [(1, 5), (4, 30), (8, 400)])
def test_a_random_subspace_holds_its_share_of_energy(size: int, dimensions: int) -> None:
    """The law of what drawn subspaces hold of a vector: its mean, its deviation, and 95% between its ends."""
    rng, frames = np.random.default_rng(0), 4000
    vector = np.linspace(-1.0, 3.0, dimensions)
    drawn = [np.linalg.qr(rng.standard_normal((dimensions, size)))[0].T @ vector for _ in range(frames)]
    shares = np.sum(np.square(drawn), axis=1) / (vector @ vector)
    found = overlap.random_energy_share(size, dimensions)
    assert found.value == size / dimensions
    assert found.num_samples == 0
    assert abs(shares.mean() - found.value) <= 4 * found.stderr / np.sqrt(frames)
    assert shares.std() == pytest.approx(found.stderr, rel=0.08)
    for outside in (shares < found.low, shares > found.high):
        assert abs(outside.mean() - 0.025) <= 4 * np.sqrt(0.025 * 0.975 / frames)


def test_the_share_in_many_dimensions_is_that_of_chi_squared() -> None:
    """N·share is χ² with k degrees of freedom then: 3.247 and 20.483 for ten."""
    found = overlap.random_energy_share(10, 7_000_000_000)
    assert found.low * 7e9 == pytest.approx(3.24697, rel=1e-5)
    assert found.high * 7e9 == pytest.approx(20.48318, rel=1e-5)


def test_the_whole_space_holds_everything() -> None:
    found = overlap.random_energy_share(10, 10)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
