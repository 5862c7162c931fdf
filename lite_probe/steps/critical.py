"""The critical step: how much longer a step may be before it raises the loss. Forward passes alone, at any size.

Reference: arXiv 2601.16979.
"""

from collections.abc import Callable
from dataclasses import dataclass

RESOLUTION = 1.0 / 16.0  # of the bracket: 1 − low/high
_FURTHEST = 2.0**20  # multiples that are tried, and their inverse


@dataclass(frozen=True, slots=True)
class CriticalStep:
    """A bracket of the least multiple at which the loss is above the start's.

    Where the loss is above it at every multiple tried `low` is 0; where it is at none both are the largest tried.
    """

    low: float
    high: float
    evaluations: int


def critical_step(
    loss_at: Callable[[float], float], start: float, *, first: float = 1.0, rounding: float = 0.0
) -> CriticalStep:
    """Bracket η_c = min{c > 0 : L(θ₀ + c d) > L(θ₀)}.

    c is doubled or halved, then by ever larger factors, until the sign of the change flips, and the bracket bisected
    until it is narrower than a sixteenth. A loss that falls again behind its first rise hides that from a search by
    factors: the bracket found is one where it rises above the start's.

    Args:
        loss_at: c → L(θ₀ + c d); what is not finite counts as a rise.
        start: L(θ₀).
        first: Tried first: 1, or the last batch's critical multiple.
        rounding: Changes no larger are none.

    Cost: five to seven evaluations where η_c is within a factor of four of `first`.
    """
    evaluations = 0

    def rises(multiple: float) -> bool:
        nonlocal evaluations
        evaluations += 1
        return not loss_at(multiple) <= start + rounding

    low, high, factor = 0.0, float("inf"), 2.0
    multiple = first
    while low == 0.0 or high == float("inf"):
        if rises(multiple):
            high, following = multiple, multiple / factor
        else:
            low, following = multiple, multiple * factor
        if low > 0.0 and high < float("inf"):
            break
        if not 1.0 / _FURTHEST <= following / first <= _FURTHEST:
            return CriticalStep(low, high if low == 0.0 else low, evaluations)
        multiple, factor = following, min(factor * factor, 16.0) if evaluations > 1 else factor
    while 1.0 - low / high > RESOLUTION:
        middle = 0.5 * (low + high) if high <= 2.0 * low else (low * high) ** 0.5
        if rises(middle):
            high = middle
        else:
            low = middle
    return CriticalStep(low, high, evaluations)
