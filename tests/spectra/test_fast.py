"""Fast products err, and no number that is reported does by more than it says."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lite_probe.errors import UsageError
from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.operators.base import MatrixOperator, SymmetricOperator
from lite_probe.results.spectrum import OperatorSpectrum
from lite_probe.spectra import OperatorRequest
from lite_probe.spectra import fast as choosing
from lite_probe.spectra.fast import Multiplication
from lite_probe.spectra.operator import Measured, OperatorMeasurement, expected_split
from lite_probe.spectra.state import SavedState
from lite_probe.vectors.basis import KrylovBasis
from tests import models, oracles
from tests.plans import plan_spectrum
from tests.spectra.test_state import KilledError, assert_same_operator, killed_at

SIZE = 700
LARGEST = (10.0, 7.0, 5.0, 4.0, 3.0, 2.5)
SMALLEST = (-6.0, -2.0)
ASKED = OperatorRequest(top=4, bottom=2, probes=3, probe_steps=4, max_products=70)


@cache
def matrix(seed: int = 0) -> Tensor:
    """A dense symmetric matrix with a bulk around zero and eight eigenvalues beyond it, float64."""
    generator = torch.Generator().manual_seed(seed)
    values = 0.3 * torch.randn(SIZE, generator=generator, dtype=torch.float64)
    values[: len(LARGEST)] = torch.tensor(LARGEST, dtype=torch.float64)
    values[-len(SMALLEST) :] = torch.tensor(SMALLEST, dtype=torch.float64)
    vectors = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))[0]
    product = (vectors * values) @ vectors.T
    return 0.5 * (product + product.T)


@cache
def error() -> Tensor:
    """A symmetric matrix of norm 1."""
    drawn = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return (drawn + drawn.T) / torch.linalg.matrix_norm(drawn + drawn.T, 2)


def biased(share: float) -> MatrixOperator:
    """The matrix and always the same error, a share of its norm."""
    return MatrixOperator((matrix() + share * LARGEST[0] * error()).float())


class Noisy(MatrixOperator):
    """Products with another error each time, a share of their norm: neither linear nor symmetric."""

    def __init__(self, share: float) -> None:
        super().__init__(matrix().float())
        self.share = share
        self.generator = torch.Generator().manual_seed(1)

    def _products(self, rows: Tensor) -> Tensor:
        exact = super()._products(rows)
        noise = torch.randn(exact.shape, generator=self.generator)
        scale = exact.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
        return exact + self.share * scale * noise


def measurement_of(
    fast: SymmetricOperator | None, request: OperatorRequest = ASKED, **more: Any
) -> OperatorMeasurement:
    operator = MatrixOperator(matrix().float())
    columns = more.pop("columns", 50)
    basis = KrylovBasis(SIZE, columns, dtype=operator.dtype, device=operator.device)
    return OperatorMeasurement(operator, request, basis=basis, fast=fast, **more)


def ends_of(spectrum: OperatorSpectrum) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, residuals and whether converged, of both ends."""
    upper, lower = spectrum.upper_end, spectrum.lower_end
    values, residuals, converged = (np.concatenate(both) for both in zip(upper, lower, strict=True))
    return values, residuals, converged


def true_residuals(measured: Measured) -> np.ndarray:
    """‖Hv − λv‖ in float64."""
    values = ends_of(measured.spectrum)[0]
    vectors = measured.eigenvectors.double()
    return (vectors @ matrix() - torch.from_numpy(values)[:, None] * vectors).norm(dim=1).numpy()


def assert_honest(measured: Measured) -> None:
    """No reported residual is below the true one, rounding and a factor 2 for the luck of random signs apart."""
    values, residuals, converged = ends_of(measured.spectrum)
    true = true_residuals(measured)
    rounding = 1e-6 * LARGEST[0]
    assert np.all(true <= 2 * residuals + rounding)
    assert np.all(true[converged] <= 2 * ASKED.tolerance * np.abs(values[converged]))


def num_exact(spectrum: OperatorSpectrum) -> int:
    return spectrum.num_hvps - spectrum.num_fast_hvps


# -- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [50, 16], ids=["long basis", "short basis"])
@pytest.mark.parametrize("fast", [biased, Noisy])
@pytest.mark.parametrize("share", [1e-5, 1e-3, 1e-2])
def test_pairs_of_products_that_err_are_those_of_exact_ones(
    fast: Callable[[float], SymmetricOperator], share: float, columns: int
) -> None:
    measurement = measurement_of(fast(share), columns=columns)
    measured = measurement.measure()
    values, _, converged = ends_of(measured.spectrum)
    assert converged.all()
    assert_honest(measured)
    # A residual of r moves an eigenvalue by no more than r.
    np.testing.assert_allclose(values, [*LARGEST[:4], *SMALLEST], rtol=ASKED.tolerance)
    alone = measurement_of(None, columns=columns).measure().spectrum
    assert alone.num_fast_hvps == 0
    assert alone.product_error is None
    # Products that err more are polished more than once, which on so small a spectrum saves those of the probes alone.
    saved = ASKED.probes * (ASKED.probe_steps - 1) if share < 1e-2 else 0
    assert num_exact(measured.spectrum) < alone.num_hvps - saved
    assert measured.spectrum.num_fast_hvps == measurement.fast.num_products  # type: ignore[union-attr]
    assert num_exact(measured.spectrum) == measurement.operator.num_products


def test_products_that_are_mostly_noise_are_left_alone() -> None:
    measured = measurement_of(Noisy(1.0)).measure()
    assert ends_of(measured.spectrum)[2].all()
    assert measured.spectrum.num_fast_hvps == 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.1, 0.19])
def test_poor_products_end_certified_or_say_that_they_did_not(share: float, seed: int) -> None:
    request = OperatorRequest(top=4, bottom=2, probes=2, probe_steps=3, max_products=70, seed=seed)
    measured = measurement_of(Noisy(share), request).measure()
    assert_honest(measured)
    found = ends_of(measured.spectrum)[2].all()
    assert bool(found) != any(note.code == "not-converged" for note in measured.notes)


def test_too_few_products_are_said_and_their_residuals_hold() -> None:
    request = OperatorRequest(top=4, bottom=2, probes=2, probe_steps=3, max_products=12)
    measured = measurement_of(biased(1e-5), request).measure()
    assert measured.spectrum.stop_reason == "max-products"
    assert any(note.code == "not-converged" for note in measured.notes)
    assert_honest(measured)


def test_products_that_stay_wrong_give_way_to_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that the start vector does not show is met by the check, and by exact products in the end."""
    monkeypatch.setattr(OperatorMeasurement, "_compare_products", lambda self, fast: 1e-9)
    monkeypatch.setattr("lite_probe.spectra.operator._POLISHES", 0)
    measurement = measurement_of(biased(1e-2))
    measured = measurement.measure()
    assert measurement.polishes == 1
    assert not measurement.run.is_fast
    assert ends_of(measured.spectrum)[2].all()
    assert_honest(measured)


def test_exact_products_of_all_pairs_mend_them() -> None:
    """What polishing does in one stroke: an error of ε becomes one of ε², with no exact product after it."""
    measurement = measurement_of(biased(1e-3))
    run = measurement.run
    run.is_fast = True
    while run.basis.size < 40:
        run.step()

    def largest_error() -> float:
        pairs = run.rotate_to_ritz()
        vectors = run.basis.rows[: len(pairs.values)].double()
        images = vectors @ matrix() - torch.from_numpy(pairs.values)[:, None] * vectors
        return float((images.norm(dim=1).numpy() / np.abs(pairs.values)).max())

    before = largest_error()
    spent = run.operator.num_products
    run.polish(6)
    while np.any(run.ritz_pairs().residual_norms > 1e-5 * np.abs(run.ritz_pairs().values)):
        run.step()
    assert run.operator.num_products - spent == 6
    assert before > 5e-4
    assert largest_error() < 0.05 * before


def test_repeated_eigenvalues_are_found_by_fast_products_too() -> None:
    twice = torch.block_diag(matrix()[:350, :350], matrix()[:350, :350])
    operator = MatrixOperator(twice.float())
    fast = MatrixOperator((twice + 1e-3 * LARGEST[0] * error()).float())
    basis = KrylovBasis(SIZE, 50, dtype=operator.dtype, device=operator.device)
    measured = OperatorMeasurement(operator, ASKED, basis=basis, fast=fast).measure()
    expected = torch.linalg.eigvalsh(twice).flip(0)[:4].numpy()
    np.testing.assert_allclose(measured.spectrum.eigenvalues, expected, rtol=2e-3)


def test_small_operators_are_multiplied_exactly() -> None:
    measured = measurement_of(biased(1e-3), OperatorRequest(top=4, bottom=2, probes=2, probe_steps=3)).measure()
    assert 10 * OperatorRequest(top=4, bottom=2).product_limit > SIZE
    assert measured.spectrum.num_fast_hvps == 1 + 2 * 2  # the comparison, and the probes' later steps


# -- density and trace -----------------------------------------------------------------------------------------------


def test_the_error_is_measured() -> None:
    measured = measurement_of(Noisy(0.02)).measure()
    assert measured.spectrum.product_error == pytest.approx(0.02, rel=1e-3)


def test_the_traces_intervals_cover_them_whatever_fast_products_say() -> None:
    """95% intervals over 100 seeds, of products 19% too large: 95 are expected, 88 are three deviations fewer."""
    exact = MatrixOperator(matrix().float())
    fast = MatrixOperator(1.19 * matrix().float())
    trace, square = float(matrix().trace()), float(matrix().square().sum())
    covered = np.zeros(2, dtype=int)
    widths = []
    for seed in range(100):
        request = OperatorRequest(top=3, bottom=1, probes=4, probe_steps=2, tolerance=2e-2, max_products=40, seed=seed)
        basis = KrylovBasis(SIZE, 24, dtype=exact.dtype, device=exact.device)
        spectrum = OperatorMeasurement(exact, request, basis=basis, fast=fast).measure().spectrum
        assert spectrum.num_fast_hvps > 4
        covered += [one.low <= true <= one.high for one, true in ((spectrum.trace, trace), (spectrum.trace_h2, square))]
        widths.append([spectrum.trace.high - spectrum.trace.low, spectrum.trace_h2.high - spectrum.trace_h2.low])
    assert np.all(covered >= 88)
    # A bias of 1.19² − 1 of the trace of H² would not be hidden by wide intervals.
    assert np.median(widths, axis=0)[1] < 0.4 * square


# -- interruption ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("polishes", "then"), [(9, (True, 1)), (0, (False, 1))], ids=["polished", "exact in the end"])
def test_a_kill_in_any_phase_changes_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, polishes: int, then: tuple[bool, int]
) -> None:
    monkeypatch.setattr(SavedState, "due", property(lambda self: self.directory is not None))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr("lite_probe.spectra.operator._POLISHES", polishes)
    calls: list[tuple[bool, int]] = []

    def on_progress(done: int, expected: int, label: str) -> None:
        calls.append((whole.run.is_fast, whole.polishes))

    whole: OperatorMeasurement = measurement_of(biased(1e-3), on_progress=on_progress)
    expected = whole.measure().spectrum
    assert set(calls) == {(True, 0), then}
    for kill in range(1, len(calls), 3):
        folder = tmp_path / str(kill)
        stopped = measurement_of(biased(1e-3), state=SavedState(folder, "own"), on_progress=killed_at(kill))
        with pytest.raises(KilledError):
            stopped.measure()
        again = measurement_of(biased(1e-3), state=SavedState(folder, "own"))
        assert again.num_products < expected.num_hvps
        assert_same_operator(again.measure().spectrum, expected)


# -- of models -------------------------------------------------------------------------------------------------------


def test_bf16_agrees_with_a_dense_hessian() -> None:
    task = models.make_task("mlp", torch.float32)
    dense = oracles.dense_hessian(models.make_task("mlp"))
    truth = torch.linalg.eigvalsh(dense).numpy()
    spectrum = measure_spectrum(task, top=2, bottom=1, max_products=len(truth) // 10, products="bf16", tolerance=1e-2)
    whole = spectrum.whole
    assert whole.num_fast_hvps > 0
    assert np.all(np.abs(whole.eigenvalues - truth[::-1][:2]) <= whole.residual_norms + 1e-6 * truth.max())
    assert whole.trace.low <= float(dense.trace()) <= whole.trace.high
    assert spectrum.eigenvectors is not None
    vectors = torch.from_numpy(spectrum.eigenvectors.copy()).double()
    values = torch.from_numpy(np.concatenate([whole.eigenvalues, whole.lower_eigenvalues]))
    true = (dense @ vectors - vectors * values).norm(dim=0).numpy()
    assert np.all(true <= 2 * np.concatenate([whole.residual_norms, whole.lower_residual_norms]) + 1e-6 * truth.max())


FEW: dict[str, Any] = {"top": 2, "bottom": 0, "probes": 2, "probe_steps": 3, "tolerance": 1e-2, "max_products": 30}


def test_what_was_done_is_said() -> None:
    task = models.make_task("llama", torch.float32)
    plan = plan_spectrum(task, products="bf16", **FEW)
    assert plan.multiplication.emulated
    assert "; most in bf16: 0." in plan.summary()
    assert plan.summary().endswith(" off, emulated)")
    spectrum = plan.run(task)
    codes = {note.code: note.message for note in spectrum.notes}
    told = (
        f"{spectrum.whole.num_fast_hvps} of {spectrum.whole.num_hvps} in bf16, {spectrum.whole.product_error:.1g} off"
    )
    assert told in codes["fewer-bits"]
    assert "no units for bf16" in codes["emulated-precision"]
    assert spectrum.provenance.details["products"].startswith(told)
    assert spectrum.provenance.precision == "float32"
    exact = measure_spectrum(task, products="float32", **FEW)
    assert exact.notes == ()
    assert exact.fingerprint != spectrum.fingerprint
    apart = np.abs(exact.eigenvalues - spectrum.eigenvalues)
    assert np.all(apart <= exact.residual_norms + spectrum.residual_norms)


def test_nothing_is_rounded_where_there_are_no_units() -> None:
    plan = plan_spectrum(models.make_task("llama", torch.float32), **FEW)
    assert plan.multiplication == Multiplication()
    assert "bf16" not in plan.summary()


def test_no_precision_helps_float64_or_differences() -> None:
    with pytest.raises(UsageError, match="expected float32 weights for products in bf16, got float64"):
        plan_spectrum(models.make_task("llama"), products="bf16")
    with pytest.raises(UsageError, match="expected finite differences in float32, got tf32"):
        plan_spectrum(models.make_task("llama"), products="tf32", method="finite-differences")
    with pytest.raises(UsageError, match="expected products in one of auto, float32, tf32, bf16, got 'half'"):
        plan_spectrum(models.make_task("llama"), products="half")


@pytest.mark.parametrize(
    ("faster", "precision", "fast_pairs"),
    [(1.3, "float32", False), (1.6, "float32", False), (2.0, "bf16", True), (9.0, "bf16", True)],
)
def test_fewer_bits_are_taken_where_they_pay(
    monkeypatch: pytest.MonkeyPatch, faster: float, precision: str, fast_pairs: bool
) -> None:
    monkeypatch.setattr(choosing, "has_units", lambda precision, device: True)
    monkeypatch.setattr("lite_probe.operators.precision.has_units", lambda precision, device: False)  # they are not
    seconds = {"float32": 1.0, "tf32": 1.0, "bf16": 1.0 / faster}
    monkeypatch.setattr(choosing, "_seconds", lambda operator, column: seconds[operator.precision])
    task = models.make_task("llama", torch.float32)
    chosen = plan_spectrum(task, top=10, bottom=3).multiplication
    assert (chosen.precision, chosen.fast_pairs) == (precision, fast_pairs)
    assert chosen.emulated is False


def test_a_choice_outlives_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one process chose by its timing, the next goes on with, whatever it would choose."""
    monkeypatch.setattr(SavedState, "due", property(lambda self: self.directory is not None))
    task = models.make_task("llama", torch.float32)
    plan = replace(plan_spectrum(task, **FEW), multiplication=Multiplication(precision="bf16", fast_pairs=True))
    expected = plan.run(task)
    with pytest.raises(KilledError):
        plan.run(task, state_directory=tmp_path, on_progress=killed_at(9))
    spectrum = plan_spectrum(task, **FEW).run(task, state_directory=tmp_path)
    assert_same_operator(spectrum.whole, expected.whole)


def test_expected_products_fall_with_the_error() -> None:
    request = OperatorRequest()
    tf32, bf16 = (expected_split(request, error, fast_pairs=True) for error in (2e-4, 4e-3))
    assert tf32 == (1 + 2 + 4, 1 + 44 + 36)  # comparison, checks, a product of each probe; the rest is fast
    assert bf16 == (1 + 2 + 13 + 4, 1 + 55 + 36)
    assert expected_split(request, 4e-3, fast_pairs=False) == (1 + 44 + 4, 1 + 36)
