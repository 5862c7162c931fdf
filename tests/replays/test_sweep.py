"""The grid follows the best learning rate until it has neighbours on both sides."""

import math
from collections.abc import Callable

import pytest

from lite_probe.replays.sweep import HIGHEST, LOWEST, START, sweep_learning_rates


def valley(power: float) -> Callable[[float], float]:
    return lambda lr: (math.log2(lr) - power) ** 2


@pytest.mark.parametrize("best", [START, START - 1, START + 5, START - 7])
def test_the_best_is_found_and_has_neighbours(best: int) -> None:
    sweep = sweep_learning_rates(valley(best))
    assert sweep.chosen == 2.0**best
    assert sweep.is_inside
    assert sweep.lrs.tolist() == sorted(sweep.lrs)
    assert {2.0 ** (best - 1), 2.0**best, 2.0 ** (best + 1)} <= set(sweep.lrs.tolist())
    assert sweep.losses.tolist() == [(math.log2(lr) - best) ** 2 for lr in sweep.lrs]
    assert len(sweep.lrs) == 3 + abs(best - START)  # the first three, and one more for each factor of two


def test_no_rate_is_tried_twice() -> None:
    tried: list[float] = []

    def loss_at(lr: float) -> float:
        tried.append(lr)
        return -lr

    sweep = sweep_learning_rates(loss_at)
    assert len(tried) == len(set(tried))
    assert sweep.chosen == 2.0**HIGHEST
    assert not sweep.is_inside


def test_what_diverges_is_never_chosen() -> None:
    sweep = sweep_learning_rates(lambda lr: None if lr > 2.0 ** (START - 3) else -lr)
    assert sweep.chosen == 2.0 ** (START - 3)
    assert sweep.diverged.tolist() == [lr > sweep.chosen for lr in sweep.lrs]
    assert sweep.losses[sweep.diverged].tolist() == [0.0] * int(sweep.diverged.sum())


def test_where_all_diverge_the_smallest_is_left() -> None:
    sweep = sweep_learning_rates(lambda lr: None)
    assert sweep.chosen == 2.0**LOWEST
    assert bool(sweep.diverged.all())
