"""Densities on both axes: unit mass, true units, and agreement with each other."""

from dataclasses import replace

import numpy as np
import pytest

from lite_probe.reports.smoothing import asinh_scale, smooth_asinh, smooth_linear
from tests.reports.fixtures import make_operator_spectrum

SPECTRUM = make_operator_spectrum()


@pytest.mark.parametrize("scale", [1e-3, 0.1, 10.0])
def test_asinh_density_has_the_mass_of_the_quadrature(scale):
    drawn = smooth_asinh(SPECTRUM, scale, grid_points=4000)
    # φ(t) is a density in t although it is drawn over u: the trapezoid rule in t must find the mass of one probe.
    # A Gaussian of 40 grid points per σ is integrated to 1e-6; of the outermost node 1.3e-3 lies beyond 3σ, and
    # the outermost nodes hold less than a hundredth of the mass.
    mass = SPECTRUM.weights.sum() / SPECTRUM.num_probes
    assert np.trapezoid(drawn.value, drawn.curvature) == pytest.approx(mass, rel=1e-4)


def test_band_holds_the_curve():
    for drawn in (smooth_asinh(SPECTRUM, 0.1), smooth_linear(SPECTRUM)):
        assert np.all(drawn.low <= drawn.value)
        assert np.all(drawn.value <= drawn.high)
        assert np.any(drawn.low < drawn.high)


def test_an_atom_is_as_high_as_a_gaussian_of_its_weight():
    size = 1000
    lone = replace(
        SPECTRUM,
        num_parameters=size,
        nodes=np.array([-3.0, 7.0]),
        weights=np.array([1 - 1 / size, 1 / size]),
        probe_index=np.zeros(2, dtype=np.int64),
        deflated_eigenvalues=np.array([7.0]),
    )
    for drawn in (smooth_asinh(lone, 0.1, 20_000), smooth_linear(lone, 20_000)):
        nearest = np.argmin(np.abs(drawn.position - drawn.atom_position[0]))
        assert drawn.value[nearest] == pytest.approx(drawn.atom_height[0], rel=1e-3)


def test_both_axes_agree_where_the_density_is_smooth():
    rng = np.random.default_rng(0)
    nodes = rng.uniform(2.0, 12.0, 4000)
    flat = replace(
        SPECTRUM,
        nodes=nodes,
        weights=np.full(4000, 1 / 4000),
        probe_index=np.zeros(4000, dtype=np.int64),
        deflated_eigenvalues=np.zeros(0),
    )
    # A uniform density of 1/10 on [2, 12]; 4,000 nodes in windows of 2% leave 80, so 11% noise; 4 of those.
    bent = smooth_asinh(flat, 0.1)
    middle = (bent.curvature > 5) & (bent.curvature < 8)
    np.testing.assert_allclose(bent.value[middle], 0.1, rtol=0.45)
    straight = smooth_linear(flat)
    middle = (straight.curvature > 5) & (straight.curvature < 8)
    np.testing.assert_allclose(straight.value[middle], 0.1, rtol=0.45)


def test_scale_is_a_power_of_ten_near_a_thousandth_of_the_largest():
    assert asinh_scale([SPECTRUM]) == pytest.approx(0.1)
    empty = replace(
        SPECTRUM,
        nodes=np.zeros(0),
        weights=np.zeros(0),
        probe_index=np.zeros(0, dtype=np.int64),
        deflated_eigenvalues=np.zeros(0),
    )
    assert asinh_scale([empty]) == pytest.approx(1e-3)
    assert asinh_scale([replace(empty, deflated_eigenvalues=np.zeros(1))]) == 1.0


def test_without_probes_the_curve_is_zero():
    no_probes = make_operator_spectrum(probes=0)
    assert not np.any(smooth_asinh(no_probes, 0.1).value)
