"""Fieller's interval of a ratio covers the truth as often as it says, and is open where the denominator may be zero."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lite_probe.results.estimate import Ratio

FloatArray = NDArray[np.float64]
PROBES, REPEATS = 12, 4000


def paired(
    generator: np.random.Generator, means: tuple[float, float], spread: float, correlation: float, count: int = PROBES
) -> tuple[FloatArray, FloatArray]:
    covariance = spread**2 * np.array([[1.0, correlation], [correlation, 1.0]])
    samples = generator.multivariate_normal(means, covariance, size=count)
    return samples[:, 0], samples[:, 1]


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.0, 0.8, -0.5])
def test_the_interval_covers_the_truth_95_times_in_a_hundred(correlation: float) -> None:
    """Fieller's set is exact for normals. A binomial share of 4,000 has a standard error of 0.0034; four of these."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(REPEATS):
        ratio = Ratio.from_samples(*paired(generator, (3.0, 1.0), 0.4, correlation))
        assert ratio.low is not None
        assert ratio.high is not None
        covered += ratio.low <= 3.0 <= ratio.high
    assert abs(covered / REPEATS - 0.95) <= 4 * np.sqrt(0.95 * 0.05 / REPEATS)


def test_the_interval_is_where_the_difference_may_be_zero() -> None:
    """At each end n̄ − r·d̄ is exactly t standard errors from zero, by samples of the difference themselves."""
    numerators, denominators = paired(np.random.default_rng(1), (3.0, 1.0), 0.3, 0.3)
    ratio = Ratio.from_samples(numerators, denominators)
    threshold = stats.t.ppf(0.975, PROBES - 1)
    for end in (ratio.low, ratio.high):
        assert end is not None
        difference = numerators - end * denominators
        student = np.mean(difference) / (np.std(difference, ddof=1) / np.sqrt(PROBES))
        assert abs(student) == pytest.approx(threshold)
    assert ratio.value == pytest.approx(np.mean(numerators) / np.mean(denominators))
    assert ratio.num_samples == PROBES


@pytest.mark.slow
def test_the_standard_error_is_that_of_many_repeats() -> None:
    """The delta method holds where the denominator is well away from zero; repeats know their spread to 1/√2·4,000."""
    generator = np.random.default_rng(2)
    ratios = [Ratio.from_samples(*paired(generator, (3.0, 1.0), 0.1, 0.5)) for _ in range(REPEATS)]
    spread = np.std([ratio.value for ratio in ratios])
    typical = np.sqrt(np.mean([float(ratio.stderr or 0.0) ** 2 for ratio in ratios]))
    assert typical == pytest.approx(spread, rel=4 / np.sqrt(2 * REPEATS) + 0.02)


def test_samples_in_proportion_leave_no_doubt() -> None:
    denominators = np.array([1.0, 2.0, 3.0, 2.5])
    ratio = Ratio.from_samples(5.0 * denominators, denominators)
    assert ratio.value == pytest.approx(5.0)
    # s_nn − 2r s_nd + r² s_dd cancels to a rounding of its terms, of which the root is taken.
    assert ratio.stderr == pytest.approx(0.0, abs=1e-6)
    assert ratio.low == pytest.approx(5.0, abs=1e-6)
    assert ratio.high == pytest.approx(5.0, abs=1e-6)


def test_a_denominator_that_may_be_zero_bounds_from_below_only() -> None:
    generator = np.random.default_rng(3)
    numerators, denominators = 10.0 + 0.1 * generator.standard_normal(PROBES), generator.standard_normal(PROBES)
    ratio = Ratio.from_samples(numerators, denominators)
    assert ratio.high is None
    assert ratio.low is not None
    reach = [
        stats.t.ppf(0.975, PROBES - 1) * np.std(part, ddof=1) / np.sqrt(PROBES) for part in (numerators, denominators)
    ]
    assert ratio.low == pytest.approx((np.mean(numerators) - reach[0]) / (np.mean(denominators) + reach[1]))


def test_nothing_is_said_where_both_may_be_zero() -> None:
    generator = np.random.default_rng(4)
    ratio = Ratio.from_samples(generator.standard_normal(PROBES), generator.standard_normal(PROBES))
    assert (ratio.low, ratio.high) == (None, None)


def test_a_negative_denominator_has_no_ratio() -> None:
    generator = np.random.default_rng(5)
    ratio = Ratio.from_samples(
        1.0 + 0.01 * generator.standard_normal(PROBES), -1.0 + 0.01 * generator.standard_normal(PROBES)
    )
    assert (ratio.value, ratio.stderr, ratio.high) == (None, None, None)


@pytest.mark.parametrize(("numerators", "denominators"), [([1.0], [1.0]), ([1.0, 2.0], [1.0]), ([], [])])
def test_too_few_or_unpaired_samples_are_refused(numerators: list[float], denominators: list[float]) -> None:
    with pytest.raises(ValueError, match="expected at least 2 paired samples, got"):
        Ratio.from_samples(np.array(numerators), np.array(denominators))
