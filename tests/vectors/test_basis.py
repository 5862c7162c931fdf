"""A basis is gone through as seldom as its mathematics allows, and a step waits for few numbers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lite_probe.operators.base import MatrixOperator
from lite_probe.spectra.density import advance_probes, no_probes
from lite_probe.spectra.lanczos import Lanczos, lanczos
from lite_probe.vectors import basis as storage
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.reductions import CHUNK, norms
from tests import oracles
from tests.dispatch import Calls

CPU = torch.device("cpu")
DTYPES = (torch.float64, torch.float32)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def orthonormal(count: int, n: int, dtype: torch.dtype) -> Tensor:
    return torch.linalg.qr(normal(n, count, dtype=torch.float64)).Q.T.contiguous().to(dtype)


def basis_with(rows: Tensor, room: int = 0) -> KrylovBasis:
    basis = KrylovBasis(rows.shape[1], len(rows) + room, dtype=rows.dtype, device=CPU)
    basis.append(rows)
    return basis


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extending_in_two_passes_is_orthogonalising_in_three(dtype: torch.dtype) -> None:
    n, eps = 2 * CHUNK + 100, torch.finfo(dtype).eps
    rows = orthonormal(8, n, dtype)
    image = (rows[:6].sum(0) + 0.3 * normal(1, n, dtype=dtype) / n**0.5).contiguous()
    basis, expected = basis_with(rows[:6], room=2), image.clone()
    whole = basis_with(rows)
    coefficients = whole.orthogonalize(expected)
    # The vectors to append hold a little of the basis, as a step leaves it; that is taken out on the way.
    owed = 1e3 * eps * normal(6, 2, dtype=torch.float64, seed=3)
    vectors = (rows[6:].double() + owed.T @ rows[:6].double()).to(dtype)
    basis.rows_read = basis.rows_written = 0
    removed, left = basis.extend(vectors, owed, image)
    assert (basis.size, basis.rows_read, basis.rows_written) == (8, 6 + 8, 2)
    torch.testing.assert_close(basis.filled, rows, rtol=0, atol=2 * eps)
    torch.testing.assert_close(removed, coefficients, rtol=0, atol=10 * eps)
    basis.subtract(image, left)
    torch.testing.assert_close(image, expected, rtol=0, atol=10 * eps / n**0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [1, 3])
def test_a_step_takes_two_passes_over_the_basis(block: int, dtype: torch.dtype) -> None:
    """And nothing is lost by it: the basis is orthonormal and T is its projection, both to a rounding."""
    n, steps, eps = 300, 20, torch.finfo(dtype).eps
    matrix = oracles.matrix_with(np.r_[50.0, 20.0, 10.0, np.linspace(-1, 1, n - 3)]).to(dtype)
    basis = KrylovBasis(n, steps * block, dtype=dtype, device=CPU)
    run = Lanczos(MatrixOperator(matrix), top=3, bottom=0, basis=basis, seed=0, block=block)
    for _ in range(steps):
        run.step()
    # The k-th step reads what was there before it, then that with what it added.
    assert basis.rows_read == sum(2 * k * block + block for k in range(steps))
    assert basis.rows_written == steps * block
    assert oracles.gram_defect(basis.filled) <= 8 * eps
    rows = basis.filled.double().numpy()
    projected = rows @ matrix.double().numpy() @ rows.T
    np.testing.assert_allclose(run.projected, projected, rtol=0, atol=50 * 8 * eps)


def test_vectors_that_hold_too_much_of_the_basis_are_finished_at_once() -> None:
    """Near an invariant subspace next to nothing remains of Hx, and rounding is a large part of that."""
    n, eps = 300, torch.finfo(torch.float32).eps
    matrix = oracles.matrix_with(np.r_[100.0, 50.0, 20.0, 1e-3 * np.linspace(-1, 1, n - 3)]).float()
    basis = KrylovBasis(n, 12, dtype=torch.float32, device=CPU)
    run = Lanczos(MatrixOperator(matrix), top=3, bottom=0, basis=basis, seed=0)
    for _ in range(12):
        run.step()
    assert basis.rows_read > sum(2 * k + 1 for k in range(12))
    assert oracles.gram_defect(basis.filled) <= 8 * eps


def test_a_basis_is_rotated_once_at_the_end() -> None:
    n = 200
    matrix = oracles.matrix_with(np.r_[50.0, 20.0, 10.0, np.linspace(-1, 1, n - 3)])
    basis = KrylovBasis(n, 40, dtype=torch.float64, device=CPU)
    run, reason = lanczos(MatrixOperator(matrix), top=3, basis=basis)
    assert (reason, run.restarts) == ("converged", 0)
    size = basis.size
    read, written = basis.rows_read, basis.rows_written
    run.rotate_to_ritz()
    run.rotate_to_ritz()
    # One pass to finish the pending vector, one that rotates.
    assert (basis.rows_read - read, basis.rows_written - written) == (2 * size, size)


def test_a_pass_begins_where_the_last_one_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file larger than the system's cache would not be in it from its beginning again; no bit rests on it."""
    rows, vectors = orthonormal(6, 5 * CHUNK + 100, torch.float32), normal(2, 5 * CHUNK + 100)
    monkeypatch.setattr(storage, "_STRETCH_BYTES", 2 * CHUNK * 4 * 7)
    cut, starts = KrylovBasis._stretches, []

    def extended(name: str, *, alternating: bool) -> list[Tensor]:
        def stretches(self: KrylovBasis, count: int, backward: bool = False) -> Iterator[slice]:
            for part in cut(self, count, backward and alternating):
                starts.append(part.start // CHUNK)
                yield part

        monkeypatch.setattr(KrylovBasis, "_stretches", stretches)
        basis = KrylovBasis(rows.shape[1], 7, dtype=rows.dtype, device=CPU, file=tmp_path / name)
        basis.append(rows)
        image, owed = vectors[:1].clone(), 1e-6 * normal(6, 1, dtype=torch.float64, seed=3)
        return [*basis.extend(vectors[1:].clone(), owed, image), image]

    found = extended("alternating.bin", alternating=True)
    assert starts == [0, 2, 4, 4, 2, 0]
    for one, other in zip(found, extended("forward.bin", alternating=False), strict=True):
        assert torch.equal(one, other)


def test_no_number_is_waited_for_one_by_one() -> None:
    """On an accelerator reading a number waits for all that was started; steps read lists of them."""
    n = 200
    matrix = oracles.matrix_with(np.r_[50.0, 20.0, 10.0, np.linspace(-1, 1, n - 3)]).float()
    basis = KrylovBasis(n, 40, dtype=torch.float32, device=CPU)
    operator = MatrixOperator(matrix)
    operator.vectors_per_pass = 3
    run = Lanczos(operator, top=3, bottom=0, basis=basis, seed=0, block=2)
    for _ in range(10):
        run.step()
    with Calls() as calls:
        run.step()
    assert "mm" in calls.names
    assert calls.names.count("_local_scalar_dense") == 0
    run.rotate_to_ritz()
    probes = no_probes(run, 3)
    advance_probes(run, 3, probes, 5, seed=0)
    with Calls() as calls:
        advance_probes(run, 3, probes, 5, seed=0)
    assert "mm" in calls.names
    assert calls.names.count("_local_scalar_dense") == 0
    with Calls() as calls:
        norms(normal(4, 50))
    assert calls.names.count("_local_scalar_dense") == 0


def test_probes_of_a_group_go_through_the_basis_together() -> None:
    n = 200
    matrix = oracles.matrix_with(np.r_[50.0, 20.0, 10.0, np.linspace(-1, 1, n - 3)])
    basis = KrylovBasis(n, 40, dtype=torch.float64, device=CPU)
    operator = MatrixOperator(matrix)
    operator.vectors_per_pass = 3
    run, _ = lanczos(operator, top=3, basis=basis)
    run.rotate_to_ritz()
    probes = no_probes(run, 3)
    advance_probes(run, 3, probes, 5, seed=0)
    read = basis.rows_read
    advance_probes(run, 3, probes, 5, seed=0)
    assert basis.rows_read - read == 3 * 2  # three deflated vectors, projected and subtracted
