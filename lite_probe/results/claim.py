"""What a verdict is made of: a statement with its number, its interval and how many comparisons it was one of.

Of twenty true intervals of 95% one misses. The comparisons that answer one question are therefore decided after Holm's
correction, so that one answer in twenty holds a false difference at most, whatever the comparisons have in common. The
interval printed is that of the one number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lite_probe.results.estimate import Estimate

STATUSES = ("holds", "fails", "open")
_LEVEL = 0.05  # chance that a question's answers hold any false difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement of a verdict: whether a quantity is above or below zero, and by how much."""

    subject: str  # of whom: "muon-lite"
    quantity: str  # of what: "final loss minus that of muon"
    value: float
    low: float  # of the 95% interval, not corrected
    high: float
    unit: str
    status: str  # "holds" where it is beyond zero on the side asked for (a lower loss), "fails" on the other, or "open"
    sentence: str
    comparisons: int  # that were decided together
    covers: str  # what the interval covers: "3 seeds"
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Refuse a claim that its own interval contradicts.

        Raises:
            ValueError: If the interval misses the value, or holds zero where the status is decided.
        """
        if self.status not in STATUSES:
            raise ValueError(f"expected a status of {', '.join(STATUSES)}, got {self.status!r}")
        if not self.low <= self.value <= self.high:
            raise ValueError(f"expected {self.value} between {self.low} and {self.high}")
        if self.status != "open" and self.low <= 0.0 <= self.high:
            span = f"{self.low} to {self.high}"
            raise ValueError(f"expected an interval beyond zero where a claim {self.status}, got {span}")


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for being several, so that all below 5% may be claimed together.

    The i-th smallest of m, from 0, is multiplied by m − i, and is no less than those before it.

    Args:
        p_values: (m,), each in [0, 1].

    Returns:
        (m,) in the order given, at most 1.

    Reference: Holm (1979), Scand. J. Stat. 6.
    """
    adjusted, least = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def decide(estimates: Sequence[Estimate], *, rounding: float = 0.0) -> list[int]:
    """Return on which side of zero each mean is: 1 or −1, or 0 where that cannot be told after Holm's correction.

    Args:
        estimates: (m,), compared together.
        rounding: Means no larger are not told from zero.
    """
    adjusted = holm([one.p_value if abs(one.value) > rounding else 1.0 for one in estimates])
    signs = [1 if one.value > 0.0 else -1 for one in estimates]
    return [
        sign if p_value <= _LEVEL and not one.low <= 0.0 <= one.high else 0
        for sign, p_value, one in zip(signs, adjusted, estimates, strict=True)
    ]
