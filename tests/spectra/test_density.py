"""Density and trace of matrices whose spectra are known: mass, moments, cover of the intervals, exhausted probes.

A random estimate is judged by standard errors, over enough seeds that a wrong one could not hide.
"""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from lite_probe.operators.base import MatrixOperator
from lite_probe.results.spectrum import OperatorSpectrum
from lite_probe.spectra import OperatorRequest, measure_operator
from lite_probe.spectra.density import advance_probes, deflate_rule, no_probes
from lite_probe.spectra.lanczos import lanczos
from lite_probe.vectors.basis import KrylovBasis
from tests import oracles

FloatArray = NDArray[np.float64]
DTYPES = (torch.float64, torch.float32)
SEEDS = range(40)
# Outliers at both ends of a bulk that is not symmetric, and whose trace is no small matter: a wrong number of
# dimensions or a probe that is not normalised shows.
KNOWN = np.sort(np.r_[30.0, 20.0, 12.0, -6.0, np.linspace(-1.0, 2.0, 180) ** 2 * 0.5 + 2.0])
N = len(KNOWN)
REQUEST = OperatorRequest(top=3, bottom=1, probes=4, probe_steps=8, tolerance=1e-3)
# Weights of an eigenvector's first entries: squares that sum to one within the rounding of a small eigensolver.
MASS = 1e-12


@functools.cache
def measured(seed: int = 0, dtype: torch.dtype = torch.float64, probes: int = 4, steps: int = 8) -> OperatorSpectrum:
    request = replace(REQUEST, seed=seed, probes=probes, probe_steps=steps)
    return measure_operator(MatrixOperator(oracles.matrix_with(KNOWN).to(dtype)), request).spectrum


def rest_of(spectrum: OperatorSpectrum) -> FloatArray:
    """The exact eigenvalues without the deflated ones."""
    rest = KNOWN.copy()
    for atom in spectrum.deflated_eigenvalues:
        rest = np.delete(rest, np.abs(rest - atom).argmin())
    return rest


def moments(spectrum: OperatorSpectrum, power: int) -> FloatArray:
    """Σ ω θ^power of each probe."""
    return np.array(
        [
            spectrum.weights[spectrum.probe_index == probe] @ spectrum.nodes[spectrum.probe_index == probe] ** power
            for probe in range(spectrum.num_probes)
        ]
    )


# -- mass and moments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_weights_of_each_probe_sum_to_one_minus_the_atoms(seed: int, dtype: torch.dtype) -> None:
    spectrum = measured(seed, dtype)
    # Each probe, and the part of the Lanczos start vector outside the pairs.
    assert spectrum.num_probes == REQUEST.probes + 1
    np.testing.assert_allclose(spectrum.deflated_eigenvalues, [30, 20, 12, -6], rtol=1e-5)
    np.testing.assert_allclose(moments(spectrum, 0), 1 - 4 / N, rtol=MASS)
    assert np.all(spectrum.weights >= 0)
    for probe in range(REQUEST.probes):
        assert np.count_nonzero(spectrum.probe_index == probe) == REQUEST.probe_steps


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(st.floats(-10, 10), min_size=6, max_size=40),
    top=st.integers(1, 3),
    bottom=st.integers(0, 2),
    probes=st.integers(2, 4),
    steps=st.integers(2, 12),
    seed=st.integers(0, 1000),
)
def test_mass_is_one_whatever_is_measured(
    values: list[float], top: int, bottom: int, probes: int, steps: int, seed: int
) -> None:
    request = OperatorRequest(top=top, bottom=bottom, probes=probes, probe_steps=steps, seed=seed)
    spectrum = measure_operator(MatrixOperator(oracles.matrix_with(values)), request).spectrum
    np.testing.assert_allclose(
        moments(spectrum, 0) + len(spectrum.deflated_eigenvalues) / len(values), 1.0, rtol=MASS
    )  # none where every eigenvalue is an atom
    if spectrum.num_probes == 0:
        assert len(spectrum.deflated_eigenvalues) == len(values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_are_those_of_the_bulk(dtype: torch.dtype) -> None:
    """Σ ωθ and Σ ωθ² are Rayleigh quotients of H and H² in the bulk: their means lie within standard errors of it.

    For z uniform on the sphere zᵀAz has variance below 2‖A‖_F²/m² in m dimensions: five standard errors over all probes
    of all seeds.
    """
    spectra = [measured(seed, dtype) for seed in SEEDS]
    rest = rest_of(spectra[0])
    for power in (1, 2):
        samples = np.concatenate([moments(spectrum, power)[: REQUEST.probes] for spectrum in spectra])
        allowed = 5 * np.sqrt(2 * np.sum(rest ** (2 * power)) / len(samples)) / N
        assert abs(samples.mean() - np.sum(rest**power) / N) <= allowed
        # Five standard errors are a few percent here, so that a missing share of the mass would show.
        assert allowed < 0.15 * np.abs(rest**power).sum() / N


def test_the_start_vectors_own_rule_is_one_more_probe() -> None:
    """It costs nothing, and it may not be biased by what Lanczos took out of it."""
    spectra = [measured(seed) for seed in SEEDS]
    rest = rest_of(spectra[0])
    for power in (1, 2):
        samples = np.array([moments(spectrum, power)[REQUEST.probes] for spectrum in spectra])
        allowed = 5 * np.sqrt(2 * np.sum(rest ** (2 * power)) / len(samples)) / N
        assert abs(samples.mean() - np.sum(rest**power) / N) <= allowed


# -- traces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["trace", "trace_h2"])
def test_intervals_cover_the_truth_as_often_as_they_say(name: str, dtype: torch.dtype) -> None:
    truth = {"trace": KNOWN.sum(), "trace_h2": np.sum(KNOWN**2)}[name]
    estimates = [getattr(measured(seed, dtype), name) for seed in SEEDS]
    covering = sum(estimate.low <= truth <= estimate.high for estimate in estimates)
    # 40 intervals of 95%: fewer than this many cover the truth in one of 10,000 such experiments.
    assert covering >= stats.binom.ppf(1e-4, len(SEEDS), 0.95)
    values = np.array([estimate.value for estimate in estimates])
    spread = values.std(ddof=1)
    # No bias: the mean of 40 lies within four of its standard errors.
    assert abs(values.mean() - truth) <= 4 * spread / np.sqrt(len(SEEDS))
    # And no padding: the standard errors are as large as the spread they foretell (χ² of 39 and 40·3 degrees: ±40%).
    foretold = np.sqrt(np.mean([estimate.stderr**2 for estimate in estimates]))
    assert 0.6 * spread <= foretold <= 1.6 * spread
    assert all(estimate.num_samples == REQUEST.probes for estimate in estimates)


def test_knowing_the_krylov_space_narrows_the_trace() -> None:
    """Hutch++: what the basis holds is exact, so the spread is that of the rest, not of the outliers."""
    values = np.array([measured(seed).trace.value for seed in SEEDS])
    plain = np.sqrt(2 * np.sum(KNOWN**2) / REQUEST.probes)
    assert values.std(ddof=1) < 0.3 * plain


def test_another_seed_gives_another_value_and_the_same_seed_the_same() -> None:
    estimates = {measured(seed).trace.value for seed in SEEDS}
    assert len(estimates) == len(SEEDS)
    matrix = oracles.matrix_with(KNOWN)
    again = measure_operator(MatrixOperator(matrix), replace(REQUEST, seed=0)).spectrum
    assert again.trace == measured(0).trace
    assert again.nodes.tobytes() == measured(0).nodes.tobytes()


def test_neighbouring_seeds_share_no_probe() -> None:
    samples = [set(np.round(moments(measured(seed), 1), 12)) for seed in SEEDS]
    assert len(set.union(*samples)) == sum(len(own) for own in samples)


def test_more_probes_narrow_the_interval() -> None:
    few = np.mean([measured(seed).trace.stderr ** 2 for seed in range(10)])
    many = np.mean([measured(seed, probes=16).trace.stderr ** 2 for seed in range(10)])
    # A quarter of the variance; within a factor of two, which χ² of 30 and 150 degrees seldom leaves.
    assert 0.125 < many / few < 0.5


# -- the density -----------------------------------------------------------------------------------------------------


def distribution(spectrum: OperatorSpectrum, at: FloatArray) -> FloatArray:
    """The cumulative distribution of atoms and quadrature."""
    masses = np.r_[spectrum.weights / spectrum.num_probes, np.full(len(spectrum.deflated_eigenvalues), 1 / N)]
    places = np.r_[spectrum.nodes, spectrum.deflated_eigenvalues]
    return np.array([masses[places <= point].sum() for point in at])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_deflated_density_is_the_exact_one(dtype: torch.dtype) -> None:
    spectrum = measured(0, dtype, probes=8, steps=30)
    grid = np.linspace(-7, 31, 4000)
    exact = np.searchsorted(KNOWN, grid, side="right") / N
    ours = distribution(spectrum, grid)
    apart = np.abs(ours - exact)
    # A Gauss rule's distribution crosses the exact one within each node (Chebyshev–Markov–Stieltjes): the step of about
    # 1/30 of one probe, averaged over eight, and the spread of eight times 180 random squares, 3 · 1/√1440 = 0.08.
    assert apart.max() <= 0.1
    # The area between them, which nodes' steps leave alone, relative to the width of the bulk (2.3).
    area = apart.sum() * (grid[1] - grid[0])
    assert area <= 0.05 * 2.3
    # It separates outliers from the bulk exactly: between −5 and the bulk there is the mass of one eigenvalue.
    np.testing.assert_allclose(distribution(spectrum, np.array([-5.0, -0.5])), 1 / N, rtol=1e-9)
    np.testing.assert_allclose(distribution(spectrum, np.array([11.0])), 1 - 3 / N, rtol=1e-9)


def test_deflated_outliers_do_not_come_back() -> None:
    """Without full reorthogonalisation they would, from rounding, within 60 steps."""
    spectrum = measured(0, torch.float32, steps=60)
    rest = rest_of(spectrum)
    margin = 1e-3 * 30  # the tolerance of the pairs that were deflated
    assert spectrum.nodes.max() <= rest.max() + margin
    assert spectrum.nodes.min() >= rest.min() - margin


def test_a_probe_stays_orthogonal_to_the_pairs_however_large_these_are() -> None:
    """Each product blows up what rounding left of them by λ₁ over the bulk, here 10⁴; no step lets it add up."""
    n, eps = 400, torch.finfo(torch.float32).eps
    matrix = oracles.matrix_with(np.r_[1e4, 5e3, 1e3, np.linspace(-1.0, 1.0, n - 3)]).float()
    basis = KrylovBasis(n, 60, dtype=torch.float32, device=torch.device("cpu"))
    run, _ = lanczos(MatrixOperator(matrix), top=3, basis=basis, tolerance=1e-4)
    run.rotate_to_ritz()
    probes, shares = no_probes(run, 2), []
    while advance_probes(run, 3, probes, 40, seed=0):
        shares.append(float(basis.project(probes.current, 3).abs().max()))
    assert len(shares) == 2 * 40
    assert max(shares) <= 2 * eps


def test_quantiles_are_those_of_the_matrix() -> None:
    spectrum = measured(0, probes=8, steps=30)
    for share in (0.25, 0.5, 0.75):
        exact = float(np.quantile(np.abs(KNOWN), share))
        below = np.mean(np.abs(KNOWN) <= (spectrum.quantile_abs(share) or 0.0))
        # As above: 0.1 of mass, so the quantile's own share of the exact values is within that.
        assert abs(below - share) <= 0.1, (share, exact)
    assert spectrum.negative_mass == pytest.approx(1 / N, rel=1e-9)


def test_the_smoothed_density_has_the_mass_of_the_bulk() -> None:
    spectrum = measured(0, probes=8, steps=30)
    density = spectrum.density(sigma=0.05, grid_points=4000)
    mass = float(np.sum(density.value) * (density.grid[1] - density.grid[0]))
    # Ten standard deviations of range and a grid of a fifth of sigma: all but rounding of the trapezoidal sum.
    assert mass == pytest.approx(1 - 4 / N, rel=1e-6)
    assert np.all(density.low <= density.value + 1e-15)
    assert np.all(density.value <= density.high + 1e-15)
    assert density.atom_weight == 1 / N


# -- exhausted probes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("nonzero", "top", "bottom"),
    [((3.0, 2.0, -1.0, 0.5), 1, 0), ((3.0,), 1, 0), ((3.0, 2.0), 2, 0), ((), 1, 1)],
    ids=str,
)
def test_probes_of_a_low_rank_operator_stop_early(
    nonzero: tuple[float, ...], top: int, bottom: int, dtype: torch.dtype
) -> None:
    """A Krylov space has as many dimensions as there are distinct eigenvalues; the rule is exact once it is whole."""
    n = 60
    known = np.r_[nonzero, np.zeros(n - len(nonzero))]
    request = OperatorRequest(top=top, bottom=bottom, probes=3, probe_steps=20)
    spectrum = measure_operator(MatrixOperator(oracles.matrix_with(known).to(dtype)), request).spectrum
    np.testing.assert_allclose(moments(spectrum, 0), 1 - len(spectrum.deflated_eigenvalues) / n, rtol=MASS)
    for probe in range(3):
        nodes = spectrum.nodes[spectrum.probe_index == probe]
        assert len(nodes) <= len(nonzero) + 2
        # Every node is an eigenvalue, to 50 roundings of a product.
        apart = np.abs(nodes[:, None] - known).min(axis=1)
        assert apart.max() <= 1e3 * torch.finfo(dtype).eps * 3
    # Nearly everything is in the basis, so that the trace is nearly exact.
    assert spectrum.trace.value == pytest.approx(known.sum(), abs=1e4 * torch.finfo(dtype).eps)
    assert spectrum.trace_h2.value == pytest.approx(np.sum(known**2), abs=1e4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_identity_has_all_its_mass_at_one(dtype: torch.dtype) -> None:
    request = OperatorRequest(top=2, bottom=1, probes=3, probe_steps=10)
    spectrum = measure_operator(MatrixOperator(oracles.matrix_with(np.ones(50)).to(dtype)), request).spectrum
    np.testing.assert_allclose(spectrum.nodes, 1.0, rtol=100 * torch.finfo(dtype).eps)
    assert spectrum.trace.value == pytest.approx(50.0, rel=1e3 * torch.finfo(dtype).eps)
    assert spectrum.median_abs_eigenvalue == pytest.approx(1.0, rel=1e-5)
    assert spectrum.negative_mass == 0


# -- the run's own rule ----------------------------------------------------------------------------------------------


def test_deflating_a_rule_takes_one_node_per_atom() -> None:
    rule = (np.array([-1.0, 0.5, 2.0, 2.001]), np.array([0.1, 0.4, 0.2, 0.3]))
    deflated = deflate_rule(rule, np.array([2.0, -1.0]), np.array([0.01, 0.01]))
    assert deflated is not None
    np.testing.assert_array_equal(deflated[0], [0.5, 2.001])
    np.testing.assert_allclose(deflated[1], [0.4 / 0.7, 0.3 / 0.7])


def test_a_node_farther_than_its_error_stays() -> None:
    rule = (np.array([-1.0, 2.0]), np.array([0.5, 0.5]))
    deflated = deflate_rule(rule, np.array([2.5]), np.array([0.1]))
    assert deflated is not None
    np.testing.assert_array_equal(deflated[0], rule[0])


def test_a_rule_of_atoms_alone_says_nothing_of_the_bulk() -> None:
    rule = (np.array([2.0]), np.array([1.0]))
    assert deflate_rule(rule, np.array([2.0]), np.array([0.1])) is None
