"""The step taken over the critical one, over batches: a geometric mean, with a t interval of the logarithm."""

import numpy as np
import pytest
from scipy import stats

from tests.reports.steps_results import make_critical


def test_the_edge_ratio_is_a_geometric_mean_over_batches() -> None:
    critical = make_critical(1.0, 4.0, 2.0, 0.4)
    ratio = critical.edge_ratio
    assert ratio is not None
    logs = -np.log(np.sqrt(critical.low * critical.high))
    reach = stats.t.ppf(0.975, 3) * logs.std(ddof=1) / 2.0
    assert ratio.value == pytest.approx(np.exp(logs.mean()))
    assert (ratio.low, ratio.high) == pytest.approx((np.exp(logs.mean() - reach), np.exp(logs.mean() + reach)))
    assert ratio.num_samples == 4


def test_its_interval_has_no_end_below_zero() -> None:
    ratio = make_critical(0.4, 20.0, 30.0, 40.0).edge_ratio
    assert ratio is not None
    assert 0.0 < ratio.low < ratio.value < 1.0 < ratio.high


def test_batches_alike_are_as_far_apart_as_their_brackets_leave_open() -> None:
    ratio = make_critical(2.0, 2.0, 2.0, half=0.02).edge_ratio
    assert ratio is not None
    rounding = np.log(1.02 / 0.98) / np.sqrt(12.0 * 3.0)
    assert ratio.stderr == pytest.approx(ratio.value * rounding)


def test_the_bracket_of_one_batch_is_its_interval() -> None:
    critical = make_critical(4.0)
    ratio = critical.edge_ratio
    assert ratio is not None
    assert (ratio.low, ratio.high) == pytest.approx((1.0 / critical.high[0], 1.0 / critical.low[0]))


@pytest.mark.parametrize("middles", [(), (0.0, 1.0), (float("inf"), 1.0)])
def test_without_a_critical_step_on_every_batch_there_is_none(middles: tuple[float, ...]) -> None:
    assert make_critical(*middles).edge_ratio is None
