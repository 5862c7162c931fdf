"""What two halves of the batches agree on: nothing of random matrices, all of the same, more with more batches."""

import pytest
import torch
from torch import Tensor

from lite_probe.steps.signal import agreeing_directions, leading, random_like


def planted(strengths: list[float], noise: float, seed: int) -> Tensor:
    """A (24, 40) matrix with known singular directions, and noise of its own."""
    fixed = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(24, len(strengths), generator=fixed, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(40, len(strengths), generator=fixed, dtype=torch.float64))
    own = torch.Generator().manual_seed(seed)
    return left @ torch.diag(torch.tensor(strengths, dtype=torch.float64)) @ right.T + noise * torch.randn(
        24, 40, generator=own, dtype=torch.float64
    )


def test_a_matrix_agrees_with_itself_whatever_the_signs() -> None:
    matrix = planted([5.0, 3.0, 1.0], 0.1, 1)
    assert agreeing_directions(matrix, matrix, 4) == 4
    assert agreeing_directions(matrix, -matrix, 4) == 4


def test_two_directions_that_change_places_are_the_same() -> None:
    first, second = planted([3.0, 2.9], 0.0, 1), planted([2.9, 3.0], 0.0, 1)
    assert agreeing_directions(first, second, 2) == 2


def test_random_matrices_agree_on_nothing() -> None:
    like = torch.zeros(24, 40)
    found = [agreeing_directions(random_like(like, seed, 0), random_like(like, seed, 1), 3) for seed in range(20)]
    assert sum(found) == 0
    assert not torch.equal(random_like(like, 0, 0), random_like(like, 1, 0))


def test_the_share_rises_with_the_batch() -> None:
    # Halves of 1, 4 and 16 batches: noise, whose largest singular value is 11 for one, falls with their root.
    shares = []
    for batches in (1, 4, 16):
        agreed = 0
        for seed in range(20):
            halves = [planted([18.0, 12.0, 8.0, 5.0, 3.0], batches**-0.5, 1000 * side + seed) for side in (1, 2)]
            agreed += agreeing_directions(halves[0], halves[1], 5)
        shares.append(agreed / 100)
    assert shares == sorted(shares)
    assert shares[0] < 0.5 * shares[-1]
    assert shares[-1] > 0.5


@pytest.mark.parametrize(("shape", "ratio", "expected"), [((64, 32), 0.1, 4), ((4, 4), 0.1, 1), ((2, 9), 0.9, 1)])
def test_as_many_directions_as_lite_calls_sharp(shape: tuple[int, int], ratio: float, expected: int) -> None:
    assert leading(shape, ratio) == expected
