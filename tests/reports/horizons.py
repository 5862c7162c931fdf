"""Replays whose losses were predicted, too."""

from dataclasses import replace

import numpy as np

from lite_probe.results.replay import Replay, ReplayRun


def with_horizons(replay: Replay, first_missed: dict[str, list[int]], share: float = 0.2) -> Replay:
    """Have the quadratic model miss this share of the loss change from a step on, by optimizer and seed; 0 is never.

    Before, it misses a hundredth of it.
    """

    def predicted(run: ReplayRun) -> ReplayRun:
        if run.optimizer not in first_missed or run.ablation != "none":
            return run
        first = first_missed[run.optimizer][run.seed]
        steps = np.array([one for one in (1, 2, 4, 8, 16, run.num_steps) if one <= run.num_steps])
        misses = np.where((steps >= first) & (first > 0), share, 0.01)
        changes = run.losses[steps] - run.losses[0]
        return replace(run, logged_steps=steps, predicted_losses=run.losses[0] + (1.0 + misses) * changes)

    return replace(replay, runs=tuple(predicted(run) for run in replay.runs))
