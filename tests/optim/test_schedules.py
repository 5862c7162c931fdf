"""Schedules at their corners, against the formulas and what they must mean."""

import itertools
import math

import pytest
import torch
from torch import nn

from lite_probe.errors import UsageError
from lite_probe.optim import Schedule

COSINE = Schedule(name="cosine", total_steps=60, warmup_steps=6, min_lr_ratio=0.1)
WSD = Schedule(name="wsd", total_steps=50, warmup_steps=5, min_lr_ratio=0.0, stable_ratio=0.8)


def test_learning_rates_at_the_corners() -> None:
    assert [COSINE.lr_factor(step) for step in (0, 3, 6, 33, 60)] == pytest.approx([0.0, 0.5, 1.0, 0.55, 0.1])
    assert [WSD.lr_factor(step) for step in (0, 5, 39, 40, 45, 50)] == pytest.approx([0.0, 1.0, 1.0, 1.0, 0.5, 0.0])
    linear = Schedule(name="linear", total_steps=10, warmup_steps=2, min_lr_ratio=0.2)
    assert [linear.lr_factor(step) for step in (1, 2, 6, 10)] == pytest.approx([0.5, 1.0, 0.6, 0.2])
    constant = Schedule(warmup_steps=4)
    assert [constant.lr_factor(step) for step in (2, 4, 1000)] == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("schedule", [COSINE, WSD, Schedule(name="linear", total_steps=9, min_lr_ratio=0.3)])
def test_after_the_end_the_last_rate_stays(schedule: Schedule) -> None:
    assert schedule.total_steps is not None
    assert schedule.lr_factor(schedule.total_steps + 100) == schedule.lr_factor(schedule.total_steps)


def test_damping_rises_once_the_warm_up_is_over() -> None:
    # Cosine: T_β = ⌊0.5·54⌋ + 6 = 33. WSD: T_f = 2·5/50, T_β = ⌊0.2·45⌋ + 5 = 14.
    assert [COSINE.damping(k, -0.25, 1.0) for k in (0, 6, 33, 59)] == [-0.25, -0.25, 1.0, 1.0]
    assert COSINE.damping(15, 0.0, 1.0) == pytest.approx((15 - 6) / 27)
    assert [WSD.damping(k, 0.0, 2.0) for k in (5, 14)] == [0.0, 2.0]
    assert WSD.damping(8, 0.0, 2.0) == pytest.approx(2.0 * 3 / 9)
    no_warm_up = Schedule(name="wsd", total_steps=10)
    assert [no_warm_up.damping(k, 0.0, 2.0) for k in (0, 1)] == [0.0, 2.0]


def test_damping_where_the_end_is_not_known() -> None:
    """T_β = ⌊(2W/T)(T − W)⌋ + W, of which 3W is left as T grows; without a warm-up the first step alone has β₁."""
    endless = Schedule(warmup_steps=5)
    long = Schedule(warmup_steps=5, total_steps=10**9)
    found = [endless.damping(k, -0.5, 2.0) for k in range(20)]
    # The floor of 10 − 5e-8 is 9: one step less.
    assert found[:6] == [-0.5] * 6
    assert found[15:] == [2.0] * 5
    assert found == pytest.approx([long.damping(k, -0.5, 2.0) for k in range(20)], abs=0.3)
    assert [Schedule().damping(k, -0.5, 2.0) for k in (0, 1, 2)] == [-0.5, 2.0, 2.0]


def test_the_flat_ratio_ends_at_one_under_cosine() -> None:
    for hidden in (True, False):
        ratios = [COSINE.flat_lr_ratio(k, 4.0, hidden_matrix=hidden) for k in range(61)]
        assert ratios[-1] == pytest.approx(1.0, abs=1e-7)  # 1e-9 beside a learning rate of 0.1
        assert max(ratios) <= 4.0 + 1e-6
        assert WSD.flat_lr_ratio(30, 4.0, hidden_matrix=hidden) == 4.0
    vectors = [COSINE.flat_lr_ratio(k, 4.0, hidden_matrix=False) for k in range(61)]
    assert vectors[0] == pytest.approx(4.0, rel=1e-6)
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(vectors[6:]))
    hidden_ones = [COSINE.flat_lr_ratio(k, 4.0, hidden_matrix=True) for k in range(61)]
    assert hidden_ones[:7] == [1.0] * 7
    # Rising by (χ−1)/T_f over the rest of the run: a step after the warm-up is 1/54 of the way at twice the slope.
    assert hidden_ones[7] == pytest.approx(1.0 + 3.0 / 54 / 0.5)
    assert max(hidden_ones) > 2.0


def test_the_ratio_falls_as_two_cosines() -> None:
    def cos(k: int, a: float, r: float) -> float:
        return a * (r + (1 - r) * 0.5 * (1 + math.cos(math.pi * (k - 6) / 54)))

    assert COSINE.flat_lr_ratio(40, 4.0, hidden_matrix=False) == pytest.approx(
        cos(40, 4.0, 0.1 / 4.0) / (cos(40, 1.0, 0.1) + 1e-9), rel=1e-12
    )


def test_torch_schedulers_take_it() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, COSINE.lr_factor)
    found = []
    for _ in range(8):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rates.step()
    assert found == pytest.approx([2.0 * COSINE.lr_factor(step) for step in range(8)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "exponential"}, "expected a schedule among constant, cosine, wsd, linear, got 'exponential'"),
        ({"name": "cosine"}, "expected total_steps with a cosine schedule, got None"),
        (
            {"name": "wsd", "total_steps": 5, "warmup_steps": 5},
            r"expected warmup_steps in \[0, total_steps\), got 5 of 5",
        ),
        ({"warmup_steps": -1}, r"expected warmup_steps in \[0, total_steps\), got -1 of None"),
        ({"min_lr_ratio": 1.5}, r"expected min_lr_ratio in \[0, 1\], got 1.5"),
        ({"stable_ratio": -0.1}, r"expected stable_ratio in \[0, 1\], got -0.1"),
    ],
)
def test_numbers_that_make_no_schedule(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Schedule(**arguments)  # type: ignore[arg-type]
