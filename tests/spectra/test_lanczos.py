"""Lanczos on matrices whose spectra are known: every pair asked for comes, and its residual is true.

Matrices are Q diag(λ) Qᵀ with a random Q, so that no coordinate axis is an eigenvector.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh
from torch import Tensor

from lite_probe.errors import UsageError
from lite_probe.operators.base import MatrixOperator
from lite_probe.results.spectrum import OperatorSpectrum
from lite_probe.spectra import OperatorRequest, lanczos, measure_operator
from lite_probe.spectra.lanczos import Lanczos
from lite_probe.spectra.operator import Measured
from lite_probe.vectors.basis import KrylovBasis
from tests import oracles

FloatArray = NDArray[np.float64]
N, TOP, BOTTOM = 160, 5, 2
DTYPES = (torch.float64, torch.float32)
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
# Of eigenvalues relative to ‖H‖: squares of residuals over gaps in float64, rounding of products in float32.
NEAR = {torch.float64: 1e-9, torch.float32: 1e-4}
# Krylov vectors are orthogonal to a rounding each; a rotation by m eigenvectors adds up to m eps of float64, 3e-14 for
# the longest runs here, several times over after restarts. Orthogonality that is lost shows as 1.
ORTHONORMAL = {torch.float64: 2e-13, torch.float32: 5e-6}


def _bulk(count: int, low: float = -0.5, high: float = 1.0) -> FloatArray:
    return np.linspace(low, high, count)


def _with(*leading: float) -> FloatArray:
    """N eigenvalues: the leading ones and a bulk."""
    return np.r_[leading, _bulk(N - len(leading))]


SPECTRA: Mapping[str, FloatArray] = {
    "separated": _with(50, 40, 30, 20, 10, -5, -3),
    "clustered": _with(10, 9.99, 9.98, 9.97, 9.96, -5, -4.99),
    "repeated": _with(10, 10, 10, 7, 5, 3, -2, -2, -2),
    "repeated at the end of what is asked": _with(10, 8, 6, 4, 4, 4, -3, -2, -2),
    "negative": -_with(50, 40, 30, 20, 10, 5, 3) - 2.0,
    "no outliers": _bulk(N, -1.0, 1.0),
    "close to the bulk": _with(4, 3.5, 3, 2.5, 2, -2, -1.5),
    "tiny": 1e-13 * _with(50, 40, 30, 20, 10, -5, -3),
    "huge": 1e13 * _with(50, 40, 30, 20, 10, -5, -3),
    "wide": np.r_[10.0 ** -np.arange(10), np.zeros(N - 12), -1e-2, -1e-1],
    "zero": np.zeros(N),
    "rank one": np.r_[3.0, np.zeros(N - 1)],
    "negative rank one": np.r_[-3.0, np.zeros(N - 1)],
    "rank two of both signs": np.r_[3.0, -2.0, np.zeros(N - 2)],
    "identity": np.ones(N),
    "a reflection": np.r_[np.ones(N // 2), -np.ones(N // 2)],
}


@functools.cache
def matrix_of(name: str, dtype: torch.dtype) -> Tensor:
    return oracles.matrix_with(SPECTRA[name]).to(dtype)


@functools.cache
def measured(name: str, dtype: torch.dtype) -> Measured:
    request = OperatorRequest(top=TOP, bottom=BOTTOM, tolerance=TOLERANCE[dtype])
    return measure_operator(MatrixOperator(matrix_of(name, dtype)), request)


def values_of(spectrum: OperatorSpectrum) -> FloatArray:
    return np.r_[spectrum.eigenvalues, spectrum.lower_eigenvalues]


def residuals_of(spectrum: OperatorSpectrum) -> FloatArray:
    return np.r_[spectrum.residual_norms, spectrum.lower_residual_norms]


def true_residuals(matrix: Tensor, values: FloatArray, rows: Tensor) -> FloatArray:
    """‖Hv − λv‖/‖v‖ in float64, whatever the operator's precision."""
    vectors = rows.double()
    images = vectors @ matrix.double()
    apart = images - torch.tensor(values)[:, None] * vectors
    return (apart.norm(dim=1) / vectors.norm(dim=1)).numpy()


def norm_of(name: str) -> float:
    return float(np.abs(SPECTRA[name]).max())


def floor_of(name: str, dtype: torch.dtype) -> float:
    """The rounding of a product relative to ‖H‖: a sum of N terms of random sign, and as much again for the vector."""
    return 4 * N**0.5 * float(torch.finfo(dtype).eps) * norm_of(name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(SPECTRA))
def test_every_pair_asked_for_comes(name: str, dtype: torch.dtype) -> None:
    result = measured(name, dtype)
    assert result.spectrum.eigenvalues.shape == (TOP,)
    assert result.spectrum.lower_eigenvalues.shape == (BOTTOM,)
    assert result.eigenvectors.shape == (TOP + BOTTOM, N)
    assert result.spectrum.num_requested == TOP


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(SPECTRA))
def test_reported_residuals_are_true(name: str, dtype: torch.dtype) -> None:
    result = measured(name, dtype)
    true = true_residuals(matrix_of(name, dtype), values_of(result.spectrum), result.eigenvectors)
    # What the recurrence misses is found by one random combination, which is right in expectation: a factor of 2.
    assert np.all(true <= 2 * residuals_of(result.spectrum) + floor_of(name, dtype))
    # They are not padded beyond use either: the check adds the errors of all pairs to each, √7 of them.
    assert np.all(residuals_of(result.spectrum) <= true + 3 * true.max(initial=0.0) + 3 * floor_of(name, dtype))


def test_pairs_that_rounding_stops_are_told_from_those_within_the_tolerance() -> None:
    operator, request = MatrixOperator(matrix_of("separated", torch.float32)), OperatorRequest(top=TOP, bottom=BOTTOM)
    within = measure_operator(operator, request).spectrum
    beyond = measure_operator(operator, replace(request, tolerance=1e-9)).spectrum
    assert within.converged.all()
    assert beyond.converged.all()
    assert len(within.residuals_at_rounding) == 0
    # Of all pairs; the smallest |λ| is 3, ‖H‖ is 50, and 50 roundings beside it count as none.
    assert len(beyond.residuals_at_rounding) == TOP + BOTTOM
    assert 1e-9 < beyond.residuals_at_rounding.min() < beyond.residuals_at_rounding.max() < 50 * 1.2e-7 * 50 / 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(SPECTRA))
def test_pairs_are_the_known_ones_or_a_note_says_why_not(name: str, dtype: torch.dtype) -> None:
    result = measured(name, dtype)
    known = np.sort(SPECTRA[name])
    allowed = NEAR[dtype] * norm_of(name)
    missing = ~np.r_[result.spectrum.converged, result.spectrum.lower_converged]
    said = [note for note in result.notes if note.code == "not-converged"]
    assert bool(said) == bool(missing.any())
    errors = np.abs(values_of(result.spectrum) - np.r_[known[::-1][:TOP], known[:BOTTOM]])
    # An eigenvalue lies within the residual of a pair that did not converge.
    assert np.all(errors <= allowed + np.where(missing, residuals_of(result.spectrum), 0.0))
    if name != "no outliers":
        assert not missing.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(SPECTRA))
def test_eigenvectors_are_orthonormal(name: str, dtype: torch.dtype) -> None:
    assert oracles.gram_defect(measured(name, dtype).eigenvectors) <= ORTHONORMAL[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tiny_operator_gives_what_a_large_one_gives(dtype: torch.dtype) -> None:
    """Thresholds are relative: 1e-13 times the matrix has 1e-13 times the residuals, and takes as many products."""
    one, tiny = measured("separated", dtype).spectrum, measured("tiny", dtype).spectrum
    np.testing.assert_allclose(tiny.eigenvalues * 1e13, one.eigenvalues, rtol=1e-5)
    assert abs(tiny.num_hvps - one.num_hvps) <= 2
    assert tiny.stop_reason == one.stop_reason == "converged"
    assert tiny.residual_norms.max() <= 1e-13 * 50 * TOLERANCE[dtype]


def test_scipy_agrees() -> None:
    matrix = matrix_of("separated", torch.float64).numpy()
    start = np.random.default_rng(0).standard_normal(N)
    upper = eigsh(matrix, k=TOP, which="LA", v0=start, return_eigenvectors=False)
    lower = eigsh(matrix, k=BOTTOM, which="SA", v0=start, return_eigenvectors=False)
    spectrum = measured("separated", torch.float64).spectrum
    np.testing.assert_allclose(spectrum.eigenvalues, np.sort(upper)[::-1], rtol=1e-10)
    np.testing.assert_allclose(spectrum.lower_eigenvalues, np.sort(lower), rtol=1e-10)


@pytest.mark.parametrize("name", ["identity", "zero", "rank one", "a reflection"])
def test_an_invariant_subspace_is_no_error(name: str) -> None:
    """The Krylov space of one vector has one or two dimensions here; what lies beyond is found by fresh vectors."""
    spectrum = measured(name, torch.float64).spectrum
    assert spectrum.stop_reason in ("breakdown", "converged")
    assert spectrum.num_hvps < 150


# -- repeated eigenvalues --------------------------------------------------------------------------------------------


def test_one_krylov_space_holds_one_vector_of_a_repeated_eigenvalue() -> None:
    """Guard of the tests below: Lanczos alone misses two of three, with every residual in order."""
    run, reason = lanczos(MatrixOperator(matrix_of("repeated", torch.float64)), top=3, tolerance=1e-4)
    assert reason == "converged"
    np.testing.assert_allclose(run.ritz_pairs().values, [10, 7, 5], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["repeated", "repeated at the end of what is asked"])
def test_probes_find_the_missed_pairs(name: str, dtype: torch.dtype) -> None:
    result = measured(name, dtype)
    known = np.sort(SPECTRA[name])
    np.testing.assert_allclose(result.spectrum.eigenvalues, known[::-1][:TOP], rtol=1e-5)
    np.testing.assert_allclose(result.spectrum.lower_eigenvalues, known[:BOTTOM], rtol=1e-5)


def test_missed_pairs_are_noted() -> None:
    request = OperatorRequest(top=3, bottom=1, tolerance=1e-3)
    result = measure_operator(MatrixOperator(matrix_of("repeated", torch.float64)), request)
    np.testing.assert_allclose(result.spectrum.eigenvalues, [10, 10, 10], rtol=1e-5)
    notes = [note for note in result.notes if note.code == "repeated-eigenvalues"]
    assert len(notes) == 1
    assert re.match(r"probes met curvature beyond the converged pairs \d time\(s\)", notes[0].message)
    assert not [note for note in measured("separated", torch.float64).notes if note.code == "repeated-eigenvalues"]


@pytest.mark.parametrize("seed", range(8))
def test_missed_pairs_are_found_whatever_the_seed(seed: int) -> None:
    request = OperatorRequest(top=3, bottom=1, tolerance=1e-4, seed=seed)
    result = measure_operator(MatrixOperator(matrix_of("repeated", torch.float64)), request)
    np.testing.assert_allclose(result.spectrum.eigenvalues, [10, 10, 10], rtol=1e-6)
    np.testing.assert_allclose(result.spectrum.lower_eigenvalues, [-2], rtol=1e-6)


def test_probes_take_no_products_from_the_pairs_that_they_find_missing() -> None:
    request = OperatorRequest(top=3, bottom=1, probes=40)
    assert request.probes * request.probe_steps > request.product_limit
    spectrum = measure_operator(MatrixOperator(matrix_of("repeated", torch.float64)), request).spectrum
    assert spectrum.stop_reason == "converged"
    assert spectrum.converged.all()
    np.testing.assert_allclose(spectrum.eigenvalues, [10, 10, 10], rtol=1e-5)


def test_traces_stay_right_when_pairs_were_missed() -> None:
    """Five true standard errors: at most 2 Σ'λ²/p, the sum over all but the pairs that Lanczos alone finds."""
    values = SPECTRA["repeated"]
    trace = measured("repeated", torch.float64).spectrum.trace
    rest = np.r_[10, 10, -2, -2, _bulk(N - 9)]
    assert abs(trace.value - values.sum()) <= 5 * np.sqrt(2 * np.sum(rest**2) / 4)


# -- blocks and restarts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("name", ["separated", "clustered", "repeated", "rank two of both signs"])
def test_any_block_size_gives_the_same_pairs(name: str, block: int, dtype: torch.dtype) -> None:
    request = OperatorRequest(top=TOP, bottom=BOTTOM, tolerance=TOLERANCE[dtype], max_products=400)
    result = measure_operator(MatrixOperator(matrix_of(name, dtype)), request, block=block)
    known = np.sort(SPECTRA[name])
    errors = np.abs(values_of(result.spectrum) - np.r_[known[::-1][:TOP], known[:BOTTOM]])
    assert np.all(errors <= NEAR[dtype] * norm_of(name))
    true = true_residuals(matrix_of(name, dtype), values_of(result.spectrum), result.eigenvectors)
    assert np.all(true <= 2 * residuals_of(result.spectrum) + floor_of(name, dtype))


def basis_of(capacity: int, dtype: torch.dtype, file: Path | None = None) -> KrylovBasis:
    return KrylovBasis(N, capacity, dtype=dtype, device=torch.device("cpu"), file=file)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [1, 2])
def test_a_short_basis_restarts_and_gives_the_same_pairs(block: int, dtype: torch.dtype) -> None:
    matrix = matrix_of("close to the bulk", dtype)
    run, reason = lanczos(
        MatrixOperator(matrix), top=5, bottom=2, tolerance=TOLERANCE[dtype], basis=basis_of(12, dtype), block=block
    )
    assert reason == "converged"
    assert run.restarts > 0
    assert run.basis.size <= 12
    pairs = run.rotate_to_ritz()
    known = np.sort(SPECTRA["close to the bulk"])
    np.testing.assert_allclose(pairs.values, np.r_[known[::-1][:5], known[:2]], atol=NEAR[dtype] * 4)
    # Many restarts keep the basis orthonormal: rotation is done in float64 and projections are repeated.
    assert oracles.gram_defect(run.basis.filled) <= ORTHONORMAL[dtype]
    # The recurrence's residuals stay those of the vectors, up to the rounding that products leave at every restart.
    true = true_residuals(matrix, pairs.values, run.basis.filled[: len(pairs.values)])
    floor = (1 + run.restarts) * floor_of("close to the bulk", dtype)
    np.testing.assert_allclose(pairs.residual_norms, true, rtol=0.01, atol=floor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_long_run_keeps_its_basis_orthonormal(dtype: torch.dtype) -> None:
    """Without reorthogonalisation copies of λ₁ would come after its convergence, here within 15 of 100 steps."""
    run = Lanczos(MatrixOperator(matrix_of("separated", dtype)), top=5, bottom=0, basis=basis_of(100, dtype), seed=0)
    for _ in range(100):
        run.step()
    assert oracles.gram_defect(run.basis.filled) <= ORTHONORMAL[dtype]
    assert run.projected.shape == (100, 100)
    values = np.linalg.eigvalsh(run.projected)[::-1][:5]
    np.testing.assert_allclose(values, [50, 40, 30, 20, 10], atol=50 * 40 * torch.finfo(dtype).eps)


def test_restarted_and_unrestarted_measurements_agree() -> None:
    request = OperatorRequest(top=5, bottom=2, tolerance=1e-6)
    operator = MatrixOperator(matrix_of("close to the bulk", torch.float64))
    result = measure_operator(operator, request, basis=basis_of(16, torch.float64))
    full = measured("close to the bulk", torch.float64)
    np.testing.assert_allclose(values_of(result.spectrum), values_of(full.spectrum), rtol=1e-9)
    overlap = (result.eigenvectors @ full.eigenvectors.T).abs().diagonal()
    np.testing.assert_allclose(overlap, 1.0, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("capacity", [16, 80])
def test_a_basis_on_disk_gives_the_same_bits(capacity: int, dtype: torch.dtype, tmp_path: Path) -> None:
    request = OperatorRequest(top=5, bottom=2)
    in_memory, on_disk = (
        measure_operator(
            MatrixOperator(matrix_of("close to the bulk", dtype)),
            request,
            basis=basis_of(capacity, dtype, file),
            block=2,
        )
        for file in (None, tmp_path / "basis.bin")
    )
    assert (tmp_path / "basis.bin").stat().st_size == capacity * N * torch.finfo(dtype).bits // 8
    assert torch.equal(in_memory.eigenvectors, on_disk.eigenvectors)
    for name in ("eigenvalues", "residual_norms", "lower_eigenvalues", "nodes", "weights"):
        assert getattr(in_memory.spectrum, name).tobytes() == getattr(on_disk.spectrum, name).tobytes(), name
    assert in_memory.spectrum.trace == on_disk.spectrum.trace


# -- stopping --------------------------------------------------------------------------------------------------------


def test_too_few_products_are_said() -> None:
    request = OperatorRequest(top=TOP, bottom=BOTTOM, tolerance=1e-6, max_products=12)
    result = measure_operator(MatrixOperator(matrix_of("no outliers", torch.float64)), request)
    spectrum = result.spectrum
    assert spectrum.stop_reason == "max-products"
    assert spectrum.eigenvalues.shape == (TOP,)
    missing = int((~spectrum.converged).sum() + (~spectrum.lower_converged).sum())
    assert missing > 0
    (note,) = result.notes
    assert note.code == "not-converged"
    assert note.message.startswith(f"{missing} of {TOP + BOTTOM} pairs did not reach the tolerance within")
    true = true_residuals(matrix_of("no outliers", torch.float64), values_of(spectrum), result.eigenvectors)
    np.testing.assert_allclose(residuals_of(spectrum), true, rtol=1e-6)
    worst = np.max(residuals_of(spectrum) / np.abs(values_of(spectrum)))
    assert f"worst relative residual {worst:.1e}" in note.message


def test_fewer_pairs_than_asked_are_announced() -> None:
    """A limit below the number of pairs leaves fewer Ritz pairs than asked: a note must say how many are missing."""
    request = OperatorRequest(top=TOP, bottom=BOTTOM, max_products=3)
    result = measure_operator(MatrixOperator(matrix_of("separated", torch.float64)), request)
    assert result.eigenvectors.shape[0] == len(values_of(result.spectrum))
    if len(values_of(result.spectrum)) < TOP + BOTTOM:
        said = re.compile(rf"\bof {TOP + BOTTOM}\b|\b{TOP + BOTTOM} pairs\b")
        assert any(said.search(note.message) for note in result.notes), [note.message for note in result.notes]


class _Noisy(MatrixOperator):
    """Products with an error of 1% of ‖H‖‖v‖, which no recurrence can see."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix)
        self.generator = torch.Generator().manual_seed(0)

    def _products(self, rows: Tensor) -> Tensor:
        noise = torch.randn(rows.shape, generator=self.generator, dtype=rows.dtype)
        return super()._products(rows) + 0.5 * noise / N**0.5


def test_errors_of_products_show_in_the_residuals() -> None:
    request = OperatorRequest(top=3, bottom=0, tolerance=1e-3)
    result = measure_operator(_Noisy(matrix_of("separated", torch.float64)), request)
    true = true_residuals(matrix_of("separated", torch.float64), result.spectrum.eigenvalues, result.eigenvectors)
    assert true.max() > 0.1
    assert np.all(true <= 2 * result.spectrum.residual_norms)
    assert not result.spectrum.converged.any()


def test_the_note_gives_the_residual_that_counts() -> None:
    """What did not converge by a true residual must not be explained by the recurrence's, which is in order."""
    request = OperatorRequest(top=3, bottom=0, tolerance=1e-3)
    result = measure_operator(_Noisy(matrix_of("separated", torch.float64)), request)
    (note,) = [note for note in result.notes if note.code == "not-converged"]
    worst = np.max(result.spectrum.residual_norms / np.abs(result.spectrum.eigenvalues))
    assert f"worst relative residual {worst:.1e}" in note.message


def test_a_pair_at_zero_is_not_chased() -> None:
    """No residual gets small beside an eigenvalue of zero: on the scale of ‖H‖ it is known long before."""
    matrix = oracles.matrix_with(np.r_[5.0, 4.0, 3.0, np.geomspace(1e-9, 1.0, 197)]).float()
    request = OperatorRequest(top=2, bottom=1, tolerance=1e-3)
    result = measure_operator(MatrixOperator(matrix), request)
    assert result.spectrum.stop_reason == "converged"
    assert result.spectrum.num_hvps < request.product_limit
    assert result.spectrum.converged.all()
    assert not result.spectrum.lower_converged.any()
    (note,) = result.notes
    assert note.code == "near-zero"
    # The promise of the tolerance beside ‖H‖ = 5.
    assert abs(result.spectrum.lower_eigenvalues[0]) + result.spectrum.lower_residual_norms[0] <= 1e-3 * 5.0


def test_more_pairs_than_dimensions_are_refused() -> None:
    operator = MatrixOperator(oracles.matrix_with([3.0, 2.0, 1.0, -1.0, -2.0]))
    with pytest.raises(UsageError, match=r"expected --top plus --bottom of at most 5, .* got 4 \+ 2"):
        measure_operator(operator, OperatorRequest(top=4, bottom=2))


@pytest.mark.parametrize(("top", "bottom"), [(4, 1), (3, 2), (5, 0), (1, 0), (1, 4)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_pair_of_a_small_matrix(top: int, bottom: int, dtype: torch.dtype) -> None:
    known = np.array([-2.0, -1.0, 1.0, 2.0, 3.0])
    operator = MatrixOperator(oracles.matrix_with(known).to(dtype))
    spectrum = measure_operator(operator, OperatorRequest(top=top, bottom=bottom, tolerance=TOLERANCE[dtype])).spectrum
    np.testing.assert_allclose(spectrum.eigenvalues, known[::-1][:top], atol=NEAR[dtype])
    np.testing.assert_allclose(spectrum.lower_eigenvalues, known[:bottom], atol=NEAR[dtype])
    if top + bottom == 5:
        assert spectrum.stop_reason == "complete"
        assert spectrum.trace.value == pytest.approx(3.0, abs=1e-4)
        assert spectrum.trace.stderr == 0


def test_a_single_number_is_a_matrix_too() -> None:
    spectrum = measure_operator(
        MatrixOperator(torch.tensor([[2.5]], dtype=torch.float64)), OperatorRequest(top=1, bottom=0)
    ).spectrum
    assert spectrum.eigenvalues.tolist() == [2.5]
    assert spectrum.trace.value == 2.5


# -- by magnitude ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [9, 100])
@pytest.mark.parametrize(
    ("leading", "expected"),
    [
        ((4, -3.5, 3, -2.5, 2, -1.5), [4, 3, -3.5, -2.5]),
        ((-4, -3.5, -3, -2.5, 2, 1.5), [-4, -3.5, -3, -2.5]),
        ((4, 3.5, 3, 2.5, -2, -1.5), [4, 3.5, 3, 2.5]),
    ],
    ids=["both ends", "negative", "positive"],
)
def test_pairs_of_largest_magnitude(leading: tuple[float, ...], expected: list[float], capacity: int) -> None:
    operator = MatrixOperator(oracles.matrix_with(np.r_[leading, _bulk(N - len(leading))]))
    run, reason = lanczos(
        operator, top=4, by_magnitude=True, tolerance=1e-6, basis=basis_of(capacity, torch.float64), max_products=300
    )
    assert reason == "converged"
    assert (run.restarts > 0) == (capacity == 9)
    np.testing.assert_allclose(run.ritz_pairs().values, expected, rtol=1e-9)


# -- properties ------------------------------------------------------------------------------------------------------


def ritz_values(matrix: Tensor, block: int = 1) -> FloatArray:
    """All Ritz values after twelve products."""
    run, reason = lanczos(MatrixOperator(matrix), top=2, bottom=1, tolerance=1e-300, max_products=12, block=block)
    assert reason == "max-products"
    values: FloatArray = np.linalg.eigvalsh(run.projected)
    return values


_SCALES = st.floats(1e-9, 1e9) | st.floats(-1e9, -1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=_SCALES, shift=st.floats(-10, 10), block=st.sampled_from([1, 2, 3]))
def test_ritz_values_are_shift_and_scale_covariant(seed: int, scale: float, shift: float, block: int) -> None:
    """K(aH + bI, x) = K(H, x): its Ritz values are aθ + b."""
    values = np.random.default_rng(seed).standard_normal(60)
    matrix = oracles.matrix_with(values, seed=seed % 7)
    moved = scale * (matrix + shift * torch.eye(60, dtype=torch.float64))
    expected = np.sort(scale * (ritz_values(matrix, block) + shift))
    # Rounding of a product, 60 eps (‖H‖ + |b|), grows with the inverse of the smallest coupling, here above 1e-2.
    allowed = 1e-9 * abs(scale) * (np.abs(values).max() + abs(shift))
    np.testing.assert_allclose(ritz_values(moved, block), expected, rtol=0, atol=allowed)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), block=st.sampled_from([1, 2, 3]))
def test_ritz_values_interlace(seed: int, block: int) -> None:
    """Each Ritz value lies inside the spectrum, the k-th largest below the k-th eigenvalue (Cauchy)."""
    values = np.sort(np.random.default_rng(seed).standard_normal(60))
    ritz = ritz_values(oracles.matrix_with(values, seed=seed % 7), block)
    slack = 1e-12
    assert np.all(ritz[::-1] <= values[::-1][: len(ritz)] + slack)
    assert np.all(ritz >= values[: len(ritz)] - slack)


@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.floats(-100, 100, allow_nan=False).filter(lambda x: abs(x) > 1e-3), min_size=8, max_size=40),
    seed=st.integers(0, 1000),
)
def test_any_spectrum_gives_true_residuals(values: list[float], seed: int) -> None:
    matrix = oracles.matrix_with(values, seed=seed % 5)
    request = OperatorRequest(top=3, bottom=2, tolerance=1e-6, seed=seed)
    result = measure_operator(MatrixOperator(matrix), request)
    spectrum = result.spectrum
    true = true_residuals(matrix, values_of(spectrum), result.eigenvectors)
    floor = 100 * np.finfo(np.float64).eps * np.abs(values).max()
    assert np.all(true <= 2 * residuals_of(spectrum) + floor)
    known = np.sort(values)
    errors = np.abs(values_of(spectrum) - np.r_[known[::-1][:3], known[:2]])
    assert np.all(errors <= residuals_of(spectrum) + floor)


def test_another_seed_starts_elsewhere_and_ends_the_same() -> None:
    def run_with(seed: int) -> Lanczos:
        operator = MatrixOperator(matrix_of("separated", torch.float64))
        return lanczos(operator, top=3, tolerance=1e-8, seed=seed)[0]

    first, again, other = run_with(0), run_with(0), run_with(1)
    assert np.array_equal(first.projected, again.projected)
    assert not np.array_equal(first.projected[:5, :5], other.projected[:5, :5])
    np.testing.assert_allclose(first.ritz_pairs().values, other.ritz_pairs().values, rtol=1e-12)
