"""What is claimed of several comparisons at once, and that no claim contradicts its own interval."""

from typing import Any

import numpy as np
import pytest

from lite_probe.results.claim import Claim, decide, holm
from lite_probe.results.estimate import Estimate


def test_holm_on_its_textbook_case() -> None:
    # 4·0.005, 3·0.01, 2·0.03, 1·0.04 → the last is raised to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_the_p_value_is_students() -> None:
    # t of one degree of freedom is Cauchy's: P(|t| > 1) = ½; of two, P(|t| > t) = 1 − t/√(2 + t²).
    assert Estimate.from_samples(np.array([0.0, 2.0])).p_value == pytest.approx(0.5)
    three = Estimate.from_samples(np.array([1.0, 2.0, 3.0]))
    t = 2.0 * np.sqrt(3.0)
    assert three.p_value == pytest.approx(1.0 - t / np.sqrt(2.0 + t * t))
    assert Estimate.from_samples(-np.array([1.0, 2.0, 3.0])).p_value == three.p_value
    assert Estimate(value=1.0, stderr=0.0, low=1.0, high=1.0, num_samples=1).p_value == 1.0
    assert Estimate.certain(1.0).p_value == 0.0
    assert Estimate.certain(0.0).p_value == 1.0


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_p_value_and_the_interval_say_the_same(count: int) -> None:
    draws = np.random.default_rng(0).standard_normal((300, count)) + 1.0
    found = [Estimate.from_samples(samples) for samples in draws]
    assert [one.p_value < 0.05 for one in found] == [not one.low <= 0.0 <= one.high for one in found]
    assert len({one.p_value < 0.05 for one in found}) == 2


def test_what_is_told_alone_may_not_be_told_among_many() -> None:
    # p = 0.013 and 0.67 over three samples.
    near = Estimate.from_samples(np.array([0.8, 1.0, 1.2]))
    vague = Estimate.from_samples(np.array([-1.0, 1.0, 1.0]))
    assert 0.05 / 4 < near.p_value < 0.05 / 2
    assert decide([near]) == [1]
    assert decide([near, vague]) == [1, 0]
    assert decide([vague, near, vague, vague]) == [0, 0, 0, 0]
    assert decide([Estimate.from_samples(np.array([-0.8, -1.0, -1.2]))]) == [-1]
    assert decide([near], rounding=1.0) == [0]
    assert decide([]) == []


def claim(**changes: Any) -> Claim:
    values: dict[str, Any] = {
        "subject": "muon-lite",
        "quantity": "final loss minus that of muon",
        "value": -0.2,
        "low": -0.3,
        "high": -0.1,
        "unit": "nats",
        "status": "holds",
        "sentence": "muon-lite ends 0.2 nats below muon.",
        "comparisons": 1,
        "covers": "3 seeds",
    }
    return Claim(**(values | changes))


def test_a_claim_that_its_interval_contradicts_cannot_be_made() -> None:
    assert claim().confidence == 0.95
    assert claim(status="open", high=0.1).status == "open"
    with pytest.raises(ValueError, match="expected an interval beyond zero where a claim holds"):
        claim(high=0.1)
    with pytest.raises(ValueError, match=r"expected 0.5 between -0.3 and -0.1"):
        claim(value=0.5)
    with pytest.raises(ValueError, match="expected a status of holds, fails, open, got 'likely'"):
        claim(status="likely")
