"""The grid follows the best learning rate until it has neighbours on both sides, and leaves it where the loss rises."""

import math
from collections.abc import Callable

import pytest

from lite_probe.replays.sweep import FURTHER, HIGHEST, LOWEST, START, Trial, sweep_learning_rates


def valley(power: float, rises_from: float = math.inf) -> Callable[[float], Trial]:
    """A parabola in log₂ of the rate; the loss first rises at rates of 2^`rises_from` and above."""
    return lambda lr: Trial((math.log2(lr) - power) ** 2, math.log2(lr) >= rises_from)


@pytest.mark.parametrize("best", [START, START - 1, START + 5, START - 7])
def test_the_best_is_found_and_has_neighbours(best: int) -> None:
    sweep = sweep_learning_rates(valley(best))
    assert sweep.chosen == sweep.best == 2.0**best
    assert sweep.is_inside
    assert sweep.lrs.tolist() == sorted(sweep.lrs)
    assert {2.0 ** (best - 1), 2.0**best, 2.0 ** (best + 1)} <= set(sweep.lrs.tolist())
    assert sweep.losses.tolist() == [(math.log2(lr) - best) ** 2 for lr in sweep.lrs]
    assert len(sweep.lrs) == 3 + abs(best - START)  # the first three, and one more for each factor of two
    assert not sweep.rises.any()


def test_no_rate_is_tried_twice() -> None:
    tried: list[float] = []

    def trial_at(lr: float) -> Trial:
        tried.append(lr)
        return Trial(-lr, rises=True)

    sweep = sweep_learning_rates(trial_at)
    assert len(tried) == len(set(tried))
    assert sweep.chosen == 2.0**HIGHEST
    assert not sweep.is_inside


def test_what_diverges_is_never_chosen() -> None:
    sweep = sweep_learning_rates(lambda lr: Trial(None, True) if lr > 2.0 ** (START - 3) else Trial(-lr, False))
    assert sweep.chosen == 2.0 ** (START - 3)
    assert sweep.diverged.tolist() == [lr > sweep.chosen for lr in sweep.lrs]
    assert sweep.losses[sweep.diverged].tolist() == [0.0] * int(sweep.diverged.sum())


def test_where_all_diverge_the_smallest_is_left() -> None:
    sweep = sweep_learning_rates(lambda lr: Trial(None, True))
    assert sweep.chosen == sweep.best == 2.0**LOWEST
    assert bool(sweep.diverged.all())


@pytest.mark.parametrize("calm", [START + 1, START - 1])
def test_a_best_rate_at_which_the_loss_first_rises_is_left_for_the_largest_tried_at_which_it_does_not(
    calm: int,
) -> None:
    sweep = sweep_learning_rates(valley(START + 3, rises_from=calm + 1))
    assert sweep.best == 2.0 ** (START + 3)
    assert sweep.chosen == 2.0**calm
    assert sweep.rises.tolist() == [lr > sweep.chosen for lr in sweep.lrs]
    assert (sweep.first_rises(sweep.best), sweep.first_rises(sweep.chosen)) == (True, False)
    assert sweep.lrs.min() == 2.0 ** (START - 1)  # nothing was tried for it
    assert sweep.is_inside


@pytest.mark.parametrize("further", range(1, FURTHER + 1))
def test_smaller_rates_are_tried_for_one_at_which_it_does_not(further: int) -> None:
    sweep = sweep_learning_rates(valley(START, rises_from=START - further))
    assert sweep.best == 2.0**START
    assert sweep.chosen == sweep.lrs.min() == 2.0 ** (START - 1 - further)
    assert len(sweep.lrs) == 3 + further


def test_after_four_further_trials_the_best_stays() -> None:
    sweep = sweep_learning_rates(valley(START, rises_from=START - 1 - FURTHER))
    assert sweep.chosen == sweep.best == 2.0**START
    assert sweep.rises.all()
    assert len(sweep.lrs) == 3 + FURTHER
    assert sweep_learning_rates(lambda lr: Trial(lr, rises=True)).lrs.min() == 2.0**LOWEST  # not below the grid
