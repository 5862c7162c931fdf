"""A learning rate per optimizer, by trial: factors of two around a start, for as long as the best is at the edge."""

import math
from collections.abc import Callable

import numpy as np

from lite_probe.results.replay import Sweep

# log₂ of the rates to start from. All optimizers are RMS-aligned with AdamW, and the grid moves where it has to.
START = -8
LOWEST, HIGHEST = -20, 4


def sweep_learning_rates(loss_at: Callable[[float], float | None]) -> Sweep:
    """Try 2^(s−1), 2^s and 2^(s+1), and go on by factors of two beyond the best until it has neighbours on both sides.

    Args:
        loss_at: Learning rate → held-out loss at the end of a segment; None where it diverged.

    Returns:
        All rates that were tried; where every one diverged the smallest is chosen.

    Cost: usually three to five segments.
    """
    tried: dict[int, float] = {}
    wanted = [START, START - 1, START + 1]
    best = START
    while wanted:
        power = wanted.pop(0)
        loss = loss_at(2.0**power)
        tried[power] = math.inf if loss is None else loss
        if wanted:
            continue
        # Of rates that all diverge the smallest is nearest to one that does not.
        best = min(tried, key=lambda one: (tried[one], one))
        wanted = [one for one in (best - 1, best + 1) if one not in tried and LOWEST <= one <= HIGHEST]
    powers = sorted(tried)
    losses = np.array([tried[power] for power in powers])
    diverged = ~np.isfinite(losses)
    return Sweep(
        lrs=np.array([2.0**power for power in powers]),
        losses=np.where(diverged, 0.0, losses),
        diverged=diverged,
        chosen=2.0**best,
        is_inside=best - 1 in tried and best + 1 in tried,
    )
