"""The lower end of a positive spectrum is not chased, negative curvature is, and a residual is what it is.

Matrices are Q diag(λ) Qᵀ; the products counted are those of the pairs, probes and check left out.
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lite_probe.operators.base import MatrixOperator
from lite_probe.spectra import OperatorRequest, lanczos, measure_operator
from tests import oracles

FloatArray = NDArray[np.float64]
N = 400
POSITIVE: dict[str, FloatArray] = {
    "power law": np.arange(1, N + 1.0) ** -1.2,
    "outliers and a bulk from zero": np.r_[10.0, 8, 6, 5, 4, np.linspace(0.0, 0.5, N - 5)],
    "null space": np.r_[np.geomspace(10, 1e-3, N // 4), np.zeros(N - N // 4)],
}


def products(values: FloatArray, *, top: int, bottom: int) -> int:
    operator = MatrixOperator(oracles.matrix_with(values).float())
    _, reason = lanczos(operator, top=top, bottom=bottom, max_products=N)
    assert reason == "converged"
    return operator.num_products


@pytest.mark.parametrize("name", list(POSITIVE))
@pytest.mark.parametrize("bottom", [1, 3])
def test_the_lower_end_of_a_positive_spectrum_costs_like_the_upper(name: str, bottom: int) -> None:
    """Three times the upper end's products at most, which is what the tolerance itself asks at a soft edge."""
    upper = products(POSITIVE[name], top=10, bottom=0)
    assert products(POSITIVE[name], top=10, bottom=bottom) <= 3 * upper


@pytest.mark.parametrize("name", list(POSITIVE))
def test_what_is_said_of_it_holds(name: str) -> None:
    """Each is within the tolerance of zero, beside ‖H‖, and probes take nothing of the edge for missed pairs."""
    request = OperatorRequest(top=5, bottom=2)
    result = measure_operator(MatrixOperator(oracles.matrix_with(POSITIVE[name]).float()), request)
    spectrum = result.spectrum
    assert spectrum.stop_reason == "converged"
    assert spectrum.converged.all()
    norm = float(POSITIVE[name].max())
    found = np.abs(spectrum.lower_eigenvalues) + spectrum.lower_residual_norms
    assert np.all(spectrum.lower_converged | (found <= 1e-3 * norm * (1 + 1e-6)))
    assert [note.code for note in result.notes if note.code != "near-zero"] == []


@pytest.mark.parametrize("share", [-3e-4, -3e-3], ids=str)
def test_negative_curvature_is_found_however_small(share: float) -> None:
    """A negative Ritz value proves negative curvature: it is followed until it has converged."""
    values = np.r_[POSITIVE["outliers and a bulk from zero"][:-1], share * 10.0]
    result = measure_operator(MatrixOperator(oracles.matrix_with(values)), OperatorRequest(top=5, bottom=1))
    assert result.spectrum.lower_converged.all()
    assert result.spectrum.lower_eigenvalues[0] == pytest.approx(share * 10.0, rel=1e-5)


def test_a_small_upper_pair_is_resolved() -> None:
    """Only the lower end is let off: a leading pair far below the first is part of the sharp subspace."""
    values = np.r_[100.0, 0.05, 0.04, np.linspace(0.0, 1e-3, N - 3)]
    result = measure_operator(MatrixOperator(oracles.matrix_with(values)), OperatorRequest(top=3, bottom=1))
    assert result.spectrum.converged.all()
    np.testing.assert_allclose(result.spectrum.eigenvalues, [100.0, 0.05, 0.04], rtol=1e-5)


# -- a basis that spans the whole space ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [5, 24])
def test_residuals_are_true_where_the_basis_spans_the_space(size: int, dtype: torch.dtype) -> None:
    values = np.linspace(-2.0, 3.0, size) + 0.01
    matrix = oracles.matrix_with(values).to(dtype)
    result = measure_operator(MatrixOperator(matrix), OperatorRequest(top=size - 2, bottom=2))
    spectrum = result.spectrum
    assert spectrum.stop_reason == "complete"
    reported = np.r_[spectrum.residual_norms, spectrum.lower_residual_norms]
    found = np.r_[spectrum.eigenvalues, spectrum.lower_eigenvalues]
    vectors = result.eigenvectors.double().numpy().T
    true = np.linalg.norm(matrix.double().numpy() @ vectors - vectors * found, axis=0)
    rounding = float(torch.finfo(dtype).eps) * 3.0
    assert np.all(reported > 0.0)
    assert np.all(reported <= 50 * rounding)
    # The check's random signs find the root sum of squares of all errors, to a factor of two.
    assert np.all(true <= 2 * reported + rounding)
    assert spectrum.converged.all()
    assert spectrum.lower_converged.all()
    assert spectrum.num_hvps == size + 1
