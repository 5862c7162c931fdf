"""Every entry of a random vector follows from its seed and place; together they are normal and independent."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from lite_probe.vectors.random import random_vector

CPU = torch.device("cpu")
MANY = 1_000_000
WORD = (1 << 64) - 1
BLOCK = 4096  # words, of two entries each


def drawn(size: int, seed: int = 0, **asked: Any) -> NDArray[np.float64]:
    return random_vector(size, seed=seed, dtype=torch.float64, device=CPU, **asked).numpy()


# -- an entry is a function of seed and place ------------------------------------------------------------------------


def split_mix(state: int) -> int:
    """The finaliser as published."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & WORD
    return state ^ (state >> 31)


def entry(seed: int, place: int) -> float:
    block, within = divmod(place, 2 * BLOCK)
    half, word = divmod(within, BLOCK)
    key = split_mix((seed + 0x9E3779B97F4A7C15) & WORD)
    bits = split_mix((key + (block * BLOCK + word) * 0x9E3779B97F4A7C15) & WORD)
    first, second = ((bits >> 32) + 0.5) / 2**32, (bits & 0xFFFFFFFF) / 2**32
    radius, angle = math.sqrt(-2 * math.log(first)), 2 * math.pi * second
    return float(np.float32(radius * (math.sin(angle) if half else math.cos(angle))))


def test_the_hash_is_the_published_one() -> None:
    """The first outputs of SplitMix64 from state 1234567, as its authors' code prints them."""
    outputs = [split_mix(1234567 + count * 0x9E3779B97F4A7C15 & WORD) for count in (1, 2, 3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_entries_are_those_of_a_plain_transcription(seed: int) -> None:
    vector = drawn(9 * BLOCK + 3, seed)
    places = [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 5 * BLOCK + 17, 9 * BLOCK + 2]
    expected = [entry(seed, place) for place in places]
    np.testing.assert_allclose(vector[places], expected, rtol=1.3e-7, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 3, BLOCK, 2 * BLOCK, 40 * BLOCK + 1])
def test_slices_are_those_of_the_whole(size: int) -> None:
    whole = drawn(size)
    assert whole.shape == (size,)
    for start in (0, 1, size // 3, size - 1, size):
        for stop in (start, min(start + 1, size), (start + size + 1) // 2, size):
            np.testing.assert_array_equal(drawn(size, start=start, stop=stop), whole[start:stop])


def test_a_longer_vector_begins_with_the_shorter() -> None:
    np.testing.assert_array_equal(drawn(100_000)[:777], drawn(777))


def test_types_and_threads_change_nothing() -> None:
    whole = drawn(300_000)
    single = random_vector(300_000, seed=0, dtype=torch.float32, device=CPU)
    assert single.dtype == torch.float32
    np.testing.assert_array_equal(single.double().numpy(), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads % 3 + 1)
        np.testing.assert_array_equal(drawn(300_000), whole)
    finally:
        torch.set_num_threads(threads)


def test_torch_s_own_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    drawn(10)
    assert torch.equal(torch.get_rng_state(), before)


# -- together they are normal ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2, 2**62 + 11])
def test_entries_are_standard_normal(seed: int) -> None:
    vector = drawn(MANY, seed)
    for power, (moment, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert abs(np.mean(vector**power) - moment) <= 4.5 * math.sqrt(variance / MANY), power
    assert stats.kstest(vector, "norm").pvalue > 1e-4
    assert 4.0 < np.abs(vector).max() < 6.8  # √(2 ln 2³³) is the largest there is


def test_tails_are_there() -> None:
    vector = drawn(4 * MANY, 5)
    for beyond in (3.0, 4.0):
        expected = 4 * MANY * 2 * stats.norm.sf(beyond)
        assert abs(np.count_nonzero(np.abs(vector) > beyond) - expected) <= 4.5 * math.sqrt(expected)


@pytest.mark.parametrize("lag", [1, 2, BLOCK, 2 * BLOCK])
def test_entries_are_independent(lag: int) -> None:
    vector = drawn(MANY)
    for first, second in ((vector, vector), (vector**2 - 1, vector**2 - 1), (vector, vector**2 - 1)):
        left, right = first[:-lag], second[lag:]
        products = left * right
        assert abs(products.mean()) <= 4.5 * math.sqrt((left**2).mean() * (right**2).mean() / len(products))


def test_neighbouring_seeds_share_nothing() -> None:
    vectors = np.stack([drawn(MANY // 5, seed) for seed in (0, 1, 2, 3, 2**32, 2**63 - 1)])
    correlations = np.corrcoef(vectors) - np.eye(len(vectors))
    assert np.abs(correlations).max() <= 4.5 / math.sqrt(MANY // 5)
    for first, second in pairwise(vectors):
        shifted = [abs(np.mean(first[lag:] * second[:-lag])) for lag in (1, 2, BLOCK)]
        assert max(shifted) <= 4.5 / math.sqrt(MANY // 5 - BLOCK)
