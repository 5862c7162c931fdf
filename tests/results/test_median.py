"""What is known of the median of |λ| when the quadrature does not resolve it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lite_probe.results.estimate import Estimate
from tests.reports.fixtures import make_operator_spectrum

SPECTRUM = make_operator_spectrum(probes=0)


@pytest.mark.slow
@given(
    values=hnp.arrays(np.float64, st.integers(6, 60), elements=st.floats(-1e3, 1e3, width=32)),
    atoms=st.integers(0, 2),
)
@settings(max_examples=200, deadline=None)
def test_bound_holds_for_every_spectrum(values, atoms):
    values = values[np.argsort(-np.abs(values))]
    whole = replace(
        SPECTRUM,
        num_parameters=len(values),
        deflated_eigenvalues=values[:atoms],
        trace_h2=Estimate.certain(float(np.sum(values**2))),
    )
    # At most half of the eigenvalues may exceed the bound strictly; that is what a median allows.
    bound = whole.median_abs_bound
    rest = np.sum(values[atoms:] ** 2)
    if bound is None:
        assert rest <= 1e-9 * np.sum(values**2)
    else:
        assert np.count_nonzero(np.abs(values) > bound * (1 + 1e-9)) <= len(values) / 2


def test_bound_of_equal_eigenvalues_is_within_root_two():
    whole = replace(
        SPECTRUM, num_parameters=1000, deflated_eigenvalues=np.zeros(0), trace_h2=Estimate.certain(1000 * 9.0)
    )
    assert whole.median_abs_bound == pytest.approx(3.0 * np.sqrt(2))


def test_no_bound_without_a_rest():
    assert replace(SPECTRUM, deflated_eigenvalues=np.zeros(0), trace_h2=Estimate.certain(0.0)).median_abs_bound is None
    assert replace(SPECTRUM, num_parameters=2, deflated_eigenvalues=np.ones(1)).median_abs_bound is None


def test_the_median_is_resolved_only_if_no_node_holds_half():
    def with_weights(*weights: float):
        count = len(weights)
        return replace(
            SPECTRUM, nodes=np.arange(count) * 1.0, weights=np.array(weights), probe_index=np.zeros(count, np.int64)
        )

    assert with_weights(0.3, 0.3, 0.4).median_is_resolved
    assert not with_weights(0.2, 0.5, 0.3).median_is_resolved
    assert not SPECTRUM.median_is_resolved
