"""The critical step on losses whose first rise is known."""

import math

import pytest

from lite_probe.steps.critical import RESOLUTION, critical_step


@pytest.mark.parametrize("critical", [1e-4, 0.03, 0.3, 0.99, 1.0, 1.7, 3.0, 17.0, 900.0])
def test_the_bracket_holds_the_first_rise_and_is_narrow(critical: float) -> None:
    found = critical_step(lambda c: c * (c - critical), 0.0)
    assert found.low <= critical * (1 + 1e-12)
    assert found.high >= critical * (1 - 1e-12)
    assert 0.0 < 1.0 - found.low / found.high <= RESOLUTION


@pytest.mark.parametrize("critical", [0.26, 0.4, 0.7, 1.3, 2.2, 3.9])
def test_it_takes_five_to_seven_evaluations_within_a_factor_of_four(critical: float) -> None:
    calls: list[float] = []

    def loss_at(multiple: float) -> float:
        calls.append(multiple)
        return multiple * (multiple - critical)

    found = critical_step(loss_at, 0.0)
    assert found.evaluations == len(calls)
    assert 5 <= len(calls) <= 7


@pytest.mark.parametrize("critical", [0.3, 1.1, 6.0])
def test_it_starts_where_the_last_one_ended(critical: float) -> None:
    found = critical_step(lambda c: c * (c - critical), 0.0, first=1.02 * critical)
    assert found.low <= critical <= found.high
    assert found.evaluations <= 6


def test_a_loss_that_only_rises_has_none() -> None:
    found = critical_step(lambda c: c, 0.0)
    assert found.low == 0.0
    assert 0.0 < found.high < 1e-4


def test_a_loss_that_only_falls_has_none() -> None:
    found = critical_step(lambda c: -c, 0.0)
    assert found.low == found.high > 1e4


def test_what_is_not_finite_is_a_rise() -> None:
    found = critical_step(lambda c: -c if c < 2.0 else math.nan, 0.0)
    assert found.low < 2.0 <= found.high


def test_a_change_within_rounding_is_none() -> None:
    found = critical_step(lambda c: 1e-9 if c < 3.0 else 1.0, 0.0, rounding=1e-8)
    assert found.low < 3.0 <= found.high
