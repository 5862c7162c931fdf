"""What is tested of a step is positive where its optimum is beyond the step, and agrees with Fieller's interval."""

import numpy as np
import pytest

from lite_probe.results.steps import OptimizerSteps
from tests.reports.steps_results import BLOCKS, Band, make_optimizer


def noisy(seed: int) -> OptimizerSteps:
    names = ("1–10%", "10–40%", "40–100%")
    blocks = {
        block: tuple(Band(name, 1e-2, optimum, noise=0.5) for name, optimum in zip(names, optima, strict=True))
        for block, optima in (("ffn", (1.0, 1.2, 1.4)), ("out", (1.5, 1.0, 0.9)))
    }
    return make_optimizer("muon", blocks=blocks, seed=seed)


def test_the_excess_of_a_band_is_its_gain_without_its_curvature() -> None:
    for row in make_optimizer("muon").rows:
        assert row.excess.value == pytest.approx(row.gain.value - row.curvature.value)
        assert row.excess.low < row.excess.value < row.excess.high
    noiseless = make_optimizer(
        "muon", blocks={"ffn": tuple(Band(b.name, b.gain, b.optimum, 0.0) for b in BLOCKS["ffn"])}
    )
    assert [np.sign(round(row.excess.value, 9)) for row in noiseless.rows] == [-1, 0, 1, 1, 1, 1]


def test_an_excess_beyond_zero_is_an_optimum_beyond_the_step() -> None:
    sides = []
    for seed in range(20):
        for row in noisy(seed).rows:
            if row.optimum is not None:
                assert (row.excess.low > 0.0) == (row.optimum.low > 1.0)
                assert (row.excess.high < 0.0) == (row.optimum.high < 1.0)
                sides.append((row.excess.low > 0.0) - (row.excess.high < 0.0))
    assert {-1, 0, 1} == set(sides)


def test_an_excess_of_a_block_beyond_zero_is_a_ratio_beyond_one() -> None:
    sides = []
    for seed in range(20):
        one = noisy(seed)
        for block in one.blocks:
            ratio, excess = one.implied_ratio(block), one.implied_excess(block)
            assert (ratio is None) == (excess is None)
            if ratio is not None and excess is not None and ratio.low is not None and ratio.high is not None:
                assert (excess.low > 0.0) == (ratio.low > 1.0)
                assert (excess.high < 0.0) == (ratio.high < 1.0)
                sides.append((excess.low > 0.0) - (excess.high < 0.0))
    assert {-1, 0, 1} == set(sides)


def test_there_is_an_excess_where_the_sharp_group_has_an_edge() -> None:
    bands = {
        "qk": (Band("1–10%", 1e-2, 2.0), Band("10–40%", 1e-2, 2.0), Band("40–100%", 1e-2, None)),
        "ffn": (Band("1–10%", 1e-2, None), Band("10–40%", 1e-2, 2.0), Band("40–100%", 1e-2, 2.0)),
        "out": (Band("1–10%", -1e-2, -2.0), Band("10–40%", 1e-2, 2.0), Band("40–100%", 1e-2, 2.0)),
    }
    one = make_optimizer("muon", blocks=bands)
    excess = one.implied_excess("qk")
    assert excess is not None
    assert excess.low > 0.0
    for block in ("ffn", "out"):  # without an edge, and one that gains nothing
        found = (one.implied_ratio(block), one.implied_excess(block), one.implied_inverse(block))
        assert found == (None, None, None)
