"""Curvature at the ends of float64: a spectrum of finite numbers, or an error that says what overflowed."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from lite_probe.errors import InputError, NumericsError
from lite_probe.operators.base import MatrixOperator
from lite_probe.results import store
from lite_probe.results.estimate import Estimate
from lite_probe.spectra.operator import OperatorRequest, measure_operator
from tests import oracles
from tests.reports.fixtures import make_spectrum

REQUEST = OperatorRequest(top=3, bottom=1, probes=2, probe_steps=4)


def operator(scale: float) -> MatrixOperator:
    return MatrixOperator(oracles.matrix_with(np.r_[10, 7, 5, -2, np.linspace(-0.5, 1, 40)]) * scale)


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e-160, 1.0, 1e70])
def test_small_and_large_curvature_is_measured(scale: float) -> None:
    spectrum = measure_operator(operator(scale), REQUEST).spectrum
    np.testing.assert_allclose(spectrum.eigenvalues, np.array([10, 7, 5]) * scale, rtol=1e-3)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (1e150, "expected finite trace of H² in a spectrum, got NaN or infinity; Hessian products overflowed"),
        (1e160, "expected Hessian products whose squares a float64 holds, got larger ones"),
        (1e300, "expected finite trace of H² in a spectrum"),
        (1e307, "expected finite trace of H in a spectrum"),
        (1e308, "expected finite Hessian products, got NaN or infinity"),
    ],
)
def test_an_overflow_is_said(scale: float, message: str) -> None:
    with pytest.raises(NumericsError, match=message):
        measure_operator(operator(scale), REQUEST)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name",
    ["eigenvalues", "residual_norms", "lower_eigenvalues", "lower_residual_norms", "nodes", "weights", "trace_h2"],
)
def test_no_number_of_a_spectrum_may_be_anything_else(name: str, bad: float) -> None:
    whole = make_spectrum().whole
    value = getattr(whole, name)
    changed = replace(value, high=bad) if isinstance(value, Estimate) else np.append(value[:-1], bad)
    with pytest.raises(NumericsError, match=r"expected finite .* in a spectrum, got NaN or infinity"):
        replace(whole, **{name: changed})


def test_one_that_was_saved_all_the_same_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By somebody who made the digests anew."""
    spectrum = make_spectrum()
    nodes = spectrum.whole.nodes.copy()
    nodes[0] = np.nan
    whole = object.__new__(type(spectrum.whole))
    for field in fields(spectrum.whole):
        object.__setattr__(whole, field.name, nodes if field.name == "nodes" else getattr(spectrum.whole, field.name))
    with monkeypatch.context() as patch:
        patch.setattr(np, "isfinite", lambda values: np.True_)
        path = store.save(replace(spectrum, whole=whole), tmp_path)
    with pytest.raises(InputError, match=r"expected a valid spectrum in spectrum\.json, got: expected finite nodes"):
        store.load(path)
