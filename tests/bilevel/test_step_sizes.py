"""Lengths of steps at the ends of an element type's range."""

import pytest
import torch

from lite_probe.bilevel.exchange import StackedExchange
from lite_probe.bilevel.step_sizes import LEVELS, Adaptive, AdaptiveSteps
from lite_probe.bilevel.topology import mixing_matrix


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e11])
def test_adaptive_lengths_stand_any_gradient_that_can_be_squared(size: float) -> None:
    """Two equal nodes, one entry d: y and z move by their scales, x by its own over d."""
    steps = AdaptiveSteps(Adaptive(5.0, 5.0, 5.0))
    direction = torch.full((2, 1), size, dtype=torch.float32)
    exchange = StackedExchange(mixing_matrix("complete", 2), direction)
    moved = {level: steps.lengthen(level, direction, exchange, 0) for level in LEVELS}
    for level, wanted in (("y", 5.0), ("z", 5.0), ("x", 5.0 / size)):
        assert moved[level].flatten().tolist() == pytest.approx([wanted, wanted], rel=1e-5)


def test_adaptive_lengths_of_nothing_are_nothing() -> None:
    for dtype in (torch.float32, torch.float64):
        steps = AdaptiveSteps(Adaptive())
        direction = torch.zeros(3, 2, dtype=dtype)
        exchange = StackedExchange(mixing_matrix("ring", 3), direction)
        assert all(torch.equal(steps.lengthen(level, direction, exchange, 0), direction) for level in LEVELS)
