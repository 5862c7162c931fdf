"""A value and its uncertainty."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special


def t_reach(num_samples: int) -> float:
    """Return how many standard errors of so many samples' mean half of a 95% interval is, by Student's t."""
    return float(special.stdtrit(num_samples - 1, 0.975))


def samples_to_tell(one: "Estimate", comparisons: int = 1, most: int = 200) -> int | None:
    """Return how many samples would tell a mean from zero, were it and its spread to stay what they are.

    The least n ≥ 2 at which |x̄|/(s/√n) is beyond Student's t at 5% over the comparisons made, as Bonferroni has it:
    Holm's correction asks for no more. A rough guide: the mean is the one that was found, with its own error.

    Args:
        one: A mean of two samples or more.
        comparisons: That are decided together.
        most: Beyond which it is not looked for.

    Returns:
        None where more than that would be needed.
    """
    if one.num_samples < 2 or one.value == 0.0:
        return None
    spread = one.stderr * one.num_samples**0.5
    for count in range(2, most + 1):
        if abs(one.value) * count**0.5 > spread * special.stdtrit(count - 1, 1.0 - 0.025 / comparisons):
            return count
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over independent samples, plus what was known exactly.

    `low` and `high` bound the 95% interval of Student's t with `num_samples − 1` degrees of freedom.
    """

    value: float
    stderr: float
    low: float
    high: float
    num_samples: int

    @classmethod
    def from_samples(cls, samples: NDArray[np.float64], *, exact: float = 0.0, least_stderr: float = 0.0) -> "Estimate":
        """Estimate `exact + E[sample]` from independent samples.

        Args:
            samples: (p,), p ≥ 2.
            exact: A part that carries no sampling error, added to the mean.
            least_stderr: A standard error known from elsewhere, which few or skewed samples must not understate.

        Raises:
            ValueError: If fewer than two samples came; one sample has no standard error.
        """
        count = len(samples)
        if count < 2:
            raise ValueError(f"expected at least 2 samples for a standard error, got {count}")
        value = exact + float(np.mean(samples))
        stderr = max(float(np.std(samples, ddof=1) / np.sqrt(count)), least_stderr)
        reach = t_reach(count) * stderr
        return cls(value=value, stderr=stderr, low=value - reach, high=value + reach, num_samples=count)

    @classmethod
    def certain(cls, value: float) -> "Estimate":
        """Return a value that was computed, not sampled: standard error zero."""
        return cls(value=value, stderr=0.0, low=value, high=value, num_samples=0)

    def widened(self, bias: float) -> "Estimate":
        """Return it with an interval that also covers a bias of up to so much."""
        return replace(self, low=self.low - bias, high=self.high + bias)

    @property
    def p_value(self) -> float:
        """Return the two-sided p-value of Student's t-test for a mean of zero; one sample alone has 1."""
        if self.value == 0.0 or self.num_samples == 1:
            return 1.0
        if self.stderr == 0.0:
            return 0.0
        return 2.0 * float(special.stdtr(self.num_samples - 1, -abs(self.value) / self.stderr))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A ratio of two means over the same samples, with Fieller's 95% interval.

    The interval is open upwards (`high` is None) where the denominator cannot be told from zero; there `value` and
    `stderr` say little, and `low` is what can be said.
    """

    value: float | None  # None where the denominator's mean is not positive
    stderr: float | None  # by the delta method
    low: float | None  # None where nothing bounds it from below
    high: float | None
    num_samples: int

    @classmethod
    def from_samples(cls, numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> "Ratio":
        """Estimate E[numerator]/E[denominator] from paired samples; see `from_means`.

        Args:
            numerators: (p,), p ≥ 2.
            denominators: (p,), of the same probes.

        Raises:
            ValueError: If the samples are not paired, or fewer than two.
        """
        count = len(numerators)
        if count < 2 or len(denominators) != count:
            raise ValueError(f"expected at least 2 paired samples, got {count} and {len(denominators)}")
        covariance = np.cov(numerators, denominators, ddof=1) / count
        return cls.from_means(float(np.mean(numerators)), float(np.mean(denominators)), covariance, num_samples=count)

    @classmethod
    def from_means(cls, top: float, bottom: float, covariance: NDArray[np.float64], *, num_samples: int) -> "Ratio":
        """Estimate the ratio of two means whose errors are known.

        r is in the interval where numerator − r·denominator is within t standard errors of zero: between the roots of
        a r² − 2b r + c, with a = d̄² − t²s_dd, b = n̄d̄ − t²s_nd, c = n̄² − t²s_nn and s the covariances of the means.
        For a > 0 that is a bounded interval around n̄/d̄; else only numbers that are positive at every denominator within
        its error are bounded, from below.

        Args:
            top: n̄.
            bottom: d̄.
            covariance: (2, 2), of n̄ and d̄.
            num_samples: p; t has p − 1 degrees of freedom.

        Reference: Fieller (1954), J. R. Stat. Soc. B 16.
        """
        (s_nn, s_nd), (_, s_dd) = covariance.tolist()
        t2 = t_reach(num_samples) ** 2
        a, b, c = bottom**2 - t2 * s_dd, top * bottom - t2 * s_nd, top**2 - t2 * s_nn
        value = top / bottom if bottom > 0 else None
        stderr = None
        if value is not None:
            stderr = float(np.sqrt(max(s_nn - 2 * value * s_nd + value**2 * s_dd, 0.0)) / bottom)
        if a > 0 and bottom > 0:
            reach = float(np.sqrt(max(b * b - a * c, 0.0)))
            return cls(value=value, stderr=stderr, low=(b - reach) / a, high=(b + reach) / a, num_samples=num_samples)
        # The denominator may be zero. A numerator that is positive for certain still bounds the ratio from below.
        largest = bottom + float(np.sqrt(t2 * s_dd))
        smallest = top - float(np.sqrt(t2 * s_nn))
        low = smallest / largest if smallest > 0 and largest > 0 else None
        return cls(value=value, stderr=stderr, low=low, high=None, num_samples=num_samples)
