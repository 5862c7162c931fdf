"""A number with its doubt."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats


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
        reach = float(stats.t.ppf(0.975, count - 1)) * stderr
        return cls(value=value, stderr=stderr, low=value - reach, high=value + reach, num_samples=count)

    @classmethod
    def certain(cls, value: float) -> "Estimate":
        """Return a value that was computed, not sampled: standard error zero."""
        return cls(value=value, stderr=0.0, low=value, high=value, num_samples=0)
