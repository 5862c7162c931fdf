"""What is derived from a measured spectrum, on small numbers: each figure here is worked out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lite_probe.results.estimate import Estimate
from lite_probe.results.spectrum import OperatorSpectrum
from lite_probe.results.subspace import root_mean_square_condition
from tests.reports.fixtures import make_operator_spectrum


def spectrum_of(**changes: Any) -> OperatorSpectrum:
    """Eight directions: atoms 4, 2 and −1, and two probes of two nodes each, of mass 5/8 a probe."""
    values: dict[str, Any] = {
        "num_parameters": 8,
        "eigenvalues": np.array([4.0, 2.0]),
        "residual_norms": np.zeros(2),
        "converged": np.ones(2, dtype=bool),
        "lower_eigenvalues": np.array([-1.0]),
        "lower_residual_norms": np.zeros(1),
        "lower_converged": np.ones(1, dtype=bool),
        "deflated_eigenvalues": np.array([4.0, 2.0, -1.0]),
        "nodes": np.array([-0.5, 0.5, -0.25, 0.75]),
        "weights": np.array([0.25, 0.375, 0.125, 0.5]),
        "probe_index": np.array([0, 0, 1, 1], dtype=np.int64),
        "trace": Estimate(value=6.0, stderr=0.3, low=5.0, high=7.0, num_samples=2),
        "trace_h2": Estimate(value=24.0, stderr=2.4, low=20.0, high=25.0, num_samples=2),
    }
    return replace(make_operator_spectrum(top=2, bottom=1, probes=2, steps=4), **(values | changes))


def test_the_effective_rank_has_students_interval() -> None:
    # 36/24 = 1.5; its relative error is √((2·0.3/6)² + (2.4/24)²) = 0.1·√2, and of two probes t is 12.706.
    whole = spectrum_of()
    assert whole.effective_rank_stderr == pytest.approx(0.15 * np.sqrt(2.0))
    assert whole.effective_rank_interval == pytest.approx((0.0, 1.5 + 12.706 * 0.15 * np.sqrt(2.0)), rel=1e-4)
    exact = spectrum_of(trace=Estimate.certain(6.0), trace_h2=Estimate.certain(24.0))
    assert exact.effective_rank_interval == (1.5, 1.5)
    assert spectrum_of(trace=Estimate.certain(0.0)).effective_rank_interval is None


def test_shares_of_the_mass() -> None:
    found = spectrum_of()
    # Below zero are the node of ¼ and that of ⅛, each of one probe in two, and one atom of eight.
    assert found.negative_mass == 0.375 / 2.0 + 0.125
    # Of probe 0: |λ| 0.5 twice, 1, 2, 4 with masses ¼, ⅜, ⅛, ⅛, ⅛. Half of a mass lies on either side of its node: the
    # middles are 0.125, 0.4375, 0.6875, so that the median is ¼ of the way from 0.5 to 1.
    assert found.quantile_abs(0.5, 0) == pytest.approx(0.5 + 0.25 * 0.5, rel=1e-15)
    # Both: 0.25, 0.5, 0.5, 0.75 with 1/16, ⅛, 3/16, ¼; the middle of the third is 0.28125, of the fourth 0.5.
    assert found.median_abs_eigenvalue == pytest.approx(0.75, rel=1e-15)
    assert found.condition_to_median == pytest.approx(4.0 / 0.75, rel=1e-15)


def test_the_bound_of_the_median_leaves_out_what_is_known() -> None:
    # tr H² is at most 25, of which atoms have 21; half of the directions is 4, of which atoms are 3.
    assert spectrum_of().median_abs_bound == 2.0
    assert spectrum_of(trace_h2=Estimate.certain(20.0)).median_abs_bound is None


def test_what_the_top_says() -> None:
    found = spectrum_of()
    assert found.condition_in_top == 2.0
    assert found.top_share_of_trace == 1.0
    assert found.effective_rank == 1.5
    assert found.effective_rank_stderr == pytest.approx(1.5 * np.hypot(0.1, 0.1), rel=1e-15)
    assert root_mean_square_condition(found) == pytest.approx(4.0 / 3.0**0.5, rel=1e-15)  # tr H²/N = 24/8
    assert found.power_law_slope is None
    top = 12.0 / np.arange(1, 5) ** 1.5
    four = {"residual_norms": np.zeros(4), "converged": np.ones(4, dtype=bool)}
    assert spectrum_of(eigenvalues=top, **four).power_law_slope == pytest.approx(-1.5, rel=1e-13)


def test_a_density_is_as_wide_as_a_part_in_200_of_what_is_seen() -> None:
    assert spectrum_of().density().sigma == pytest.approx(5.0 / 200.0, rel=1e-15)  # −1 to 4


def test_few_samples_do_not_understate_an_error_known_from_elsewhere() -> None:
    samples = np.array([1.0, 3.0])
    assert Estimate.from_samples(samples).stderr == pytest.approx(1.0, rel=1e-15)
    assert Estimate.from_samples(samples, least_stderr=0.5).stderr == pytest.approx(1.0, rel=1e-15)
    assert Estimate.from_samples(samples, least_stderr=2.0).stderr == 2.0
