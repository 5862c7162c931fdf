"""A learning rate per optimizer, by trial: factors of two around a start, for as long as the best is at the edge.

A rate may end lowest and yet raise the loss at first: what it does along sharp directions is then a shock of the start.
The largest rate at which the loss does not rise is taken instead.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lite_probe.results.replay import Sweep

# log₂ of the rates to start from. All optimizers are RMS-aligned with AdamW, and the grid moves where it has to.
START = -8
LOWEST, HIGHEST = -20, 4
FURTHER = 4  # trials below all others, where the loss first rises at each of those


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a learning rate."""

    loss: float | None  # held out, at the end of the segment; None where it diverged
    rises: bool  # whether the loss rose above the start's in the first steps, or the trial diverged


def sweep_learning_rates(trial_at: Callable[[float], Trial]) -> Sweep:
    """Try 2^(s−1), 2^s and 2^(s+1), and go on by factors of two beyond the best until it has neighbours on both sides.

    Where the loss first rises at the best rate, the largest one is chosen at which it does not; if there is none, up to
    four smaller ones are tried for it.

    Args:
        trial_at: Learning rate → what became of it.

    Returns:
        All rates that were tried; where every one diverged the smallest is chosen, and the best where the loss first
        rises at every one.

    Cost: usually three to five segments.
    """
    tried: dict[int, Trial] = {}
    wanted = [START, START - 1, START + 1]
    best = START
    while wanted:
        power = wanted.pop(0)
        tried[power] = trial_at(2.0**power)
        if wanted:
            continue
        # Of rates that all diverge the smallest is nearest to one that does not.
        best = min(tried, key=lambda one: (_order(tried[one]), one))
        wanted = [one for one in (best - 1, best + 1) if one not in tried and LOWEST <= one <= HIGHEST]
    is_inside = best - 1 in tried and best + 1 in tried
    chosen = best if tried[best].loss is None else _calm(tried, best, trial_at)
    powers = sorted(tried)
    losses = np.array([_order(tried[power]) for power in powers])
    diverged = ~np.isfinite(losses)
    return Sweep(
        lrs=np.array([2.0**power for power in powers]),
        losses=np.where(diverged, 0.0, losses),
        diverged=diverged,
        chosen=2.0**chosen,
        is_inside=is_inside,
        rises=np.array([tried[power].rises for power in powers]),
    )


def _order(trial: Trial) -> float:
    return math.inf if trial.loss is None else trial.loss


def _calm(tried: dict[int, Trial], best: int, trial_at: Callable[[float], Trial]) -> int:
    """Return the best rate's power, or that of the largest at which the loss does not first rise, trying smaller ones.

    Those are added to `tried`.
    """
    if not tried[best].rises:
        return best
    for _ in range(FURTHER):
        if not all(trial.rises for trial in tried.values()) or min(tried) == LOWEST:
            break
        lower = min(tried) - 1
        tried[lower] = trial_at(2.0**lower)
    return max((power for power, trial in tried.items() if not trial.rises), default=best)
