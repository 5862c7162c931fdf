"""Sums over millions of float32 entries are right where torch's own float32 ones are not."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lite_probe.vectors import reductions
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.reductions import CHUNK, dot, norm, project, subtract, subtract_and_project
from tests.dispatch import Calls

LARGE = 5_000_000


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative(value: float, exact: float) -> float:
    return abs(value - exact) / abs(exact)


# -- the trap --------------------------------------------------------------------------------------------------------


def test_the_norm_of_a_large_vector_is_right() -> None:
    """torch's own is off by 1e-4 here: its running sum dwarfs the terms, and each addition rounds the same way."""
    vector = normal(LARGE)
    exact = math.sqrt(float(vector.double().square().sum()))
    assert relative(float(torch.linalg.vector_norm(vector)), exact) > 1e-5
    # Within a chunk √16384 roundings of random sign, 8e-6, which average out over 300 chunks: 4e-7.
    assert relative(norm(vector), exact) < 1e-6
    assert relative(dot(vector, vector), exact**2) < 1e-6


def test_the_norm_of_a_large_constant_vector_is_much_better_too() -> None:
    """The worst case: every addition within a chunk rounds alike, which leaves 1e-5 of what was 4e-3."""
    vector = torch.full((LARGE,), 0.1)
    exact = math.sqrt(float(vector.double().square().sum()))
    naive = relative(float(torch.linalg.vector_norm(vector)), exact)
    assert naive > 1e-4
    assert relative(norm(vector), exact) < naive / 50


def test_a_dot_product_that_cancels_is_right_beside_its_terms() -> None:
    first, second = normal(LARGE), normal(LARGE, seed=1)
    exact = float(first.double() @ second.double())
    # Relative to ‖x‖‖y‖, as any sum of products is: √5e6 times smaller terms remain.
    assert abs(dot(first, second) - exact) <= 1e-7 * LARGE


def test_orthogonalising_a_large_vector_against_a_basis() -> None:
    """What Lanczos needs: after two passes nothing of the basis is left beyond a rounding."""
    n = 400_000
    rows = torch.linalg.qr(normal(n, 6, dtype=torch.float64)).Q.T.contiguous().float()
    vectors = normal(2, n)
    for _ in range(2):
        subtract(vectors, rows, project(rows, vectors))
    left = rows.double() @ vectors.double().T
    # Entries are rounded to float32, at random: far less than an eps of ‖v‖ is left in any one direction.
    allowed = 0.1 * torch.finfo(torch.float32).eps * float(vectors.double().norm(dim=1).max())
    assert float(left.abs().max()) <= allowed


# -- against float64 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_project_equals_a_float64_product(dtype: torch.dtype, n: int) -> None:
    rows, vectors = normal(5, n, dtype=dtype), normal(3, n, dtype=dtype, seed=1)
    got = project(rows, vectors)
    assert got.dtype == torch.float64
    assert got.shape == (5, 3)
    exact = rows.double() @ vectors.double().T
    scale = rows.double().norm(dim=1)[:, None] * vectors.double().norm(dim=1)
    # √16384 roundings within a chunk, in units of ‖x‖‖y‖.
    assert float(((got - exact).abs() / scale).max()) <= 128 * torch.finfo(dtype).eps


@pytest.mark.parametrize("n", [1, CHUNK, 2 * CHUNK + 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_subtract_equals_a_float64_one(dtype: torch.dtype, n: int) -> None:
    rows, vectors = normal(4, n, dtype=dtype), normal(2, n, dtype=dtype, seed=1)
    coefficients = normal(4, 2, dtype=torch.float64, seed=2)
    expected = vectors.double() - coefficients.T @ rows.double()
    subtract(vectors, rows, coefficients)
    # Five terms of size up to a few, each rounded.
    torch.testing.assert_close(vectors.double(), expected, rtol=0, atol=100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("n", [1, CHUNK, 2 * CHUNK + 5])
def test_one_pass_equals_two(n: int) -> None:
    """The bits of subtracting first and projecting then: chunks are the same."""
    rows, coefficients = normal(4, n), normal(4, 2, dtype=torch.float64, seed=2)
    apart, together = normal(2, n, seed=1), normal(2, n, seed=1)
    subtract(apart, rows, coefficients)
    expected = project(rows, apart)
    got = subtract_and_project(together, rows, coefficients)
    assert torch.equal(together, apart)
    assert torch.equal(got, expected)


def test_no_rows_project_to_nothing() -> None:
    empty = torch.empty(0, 9)
    vectors = normal(2, 9)
    before = vectors.clone()
    assert project(empty, vectors).shape == (0, 2)
    subtract(vectors, empty, torch.zeros(0, 2, dtype=torch.float64))
    assert torch.equal(vectors, before)


# -- chunks --------------------------------------------------------------------------------------------------------


def by_the_chunk(rows: Tensor, vectors: Tensor) -> Tensor:
    """The plain loop: float32 within a chunk, float64 over them."""
    total = torch.zeros(rows.shape[0], vectors.shape[0], dtype=torch.float64)
    for start in range(0, rows.shape[1], CHUNK):
        total += (rows[:, start : start + CHUNK] @ vectors[:, start : start + CHUNK].T).double()
    return total


@pytest.mark.parametrize("b", [1, 4])
@pytest.mark.parametrize("n", [7, CHUNK, 5 * CHUNK, 5 * CHUNK + 17])
def test_a_cpu_has_the_bits_of_the_plain_loop(n: int, b: int) -> None:
    rows, vectors = normal(6, n), normal(b, n, seed=1)
    assert torch.equal(project(rows, vectors), by_the_chunk(rows, vectors))


@pytest.mark.parametrize("b", [1, 4])
@pytest.mark.parametrize("n", [7, 2 * CHUNK, 5 * CHUNK, 5 * CHUNK + 17])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_chunks_in_batches_give_the_same_sums(
    dtype: torch.dtype, n: int, b: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator: only the order of the additions within a chunk is the batched product's own."""
    basis, vectors = normal(6, n + 30, dtype=dtype), normal(b, n, dtype=dtype, seed=1)
    rows = basis[:, 13 : 13 + n]  # a rank's or a stretch's columns
    coefficients = normal(6, b, dtype=torch.float64, seed=2)
    expected = by_the_chunk(rows, vectors)
    alone = vectors.clone()
    subtract(alone, rows, coefficients)
    expected_then = by_the_chunk(rows, alone)
    monkeypatch.setattr(reductions, "_chunks_at_once", lambda device: 2)
    # A running sum within a chunk gets to √CHUNK, and is rounded CHUNK times at random; √(n/CHUNK) such add up.
    allowed = 2 * torch.finfo(dtype).eps * (CHUNK * n) ** 0.5
    assert float((project(rows, vectors) - expected).abs().max()) <= allowed
    got = subtract_and_project(vectors, rows, coefficients)
    torch.testing.assert_close(vectors, alone, rtol=0, atol=20 * torch.finfo(dtype).eps)
    assert float((got - expected_then).abs().max()) <= 20 * allowed  # vectors are of up to 10, then


@pytest.mark.parametrize("n", [7, 5 * CHUNK + 17])
def test_there_may_be_no_rows_yet_whatever_is_multiplied_at_once(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the first Lanczos step."""
    monkeypatch.setattr(reductions, "_chunks_at_once", lambda device: 3)
    vectors, none = normal(2, n), normal(0, n)
    assert project(none, vectors).shape == (0, 2)
    assert subtract_and_project(vectors.clone(), none, torch.zeros(0, 2, dtype=torch.float64)).shape == (0, 2)


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("b", [1, 4])
def test_rows_too_far_apart_for_blas_are_copied_by_the_stretch(
    b: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BLAS counts the stride between rows in 32 bits: two billion parameters are more."""
    n = 5 * CHUNK + 17
    rows, coefficients = normal(6, n), normal(6, b, dtype=torch.float64, seed=2)
    expected, vectors = normal(b, n, seed=1), normal(b, n, seed=1)
    monkeypatch.setattr(reductions, "_chunks_at_once", lambda device: at_once)
    projected = project(rows, expected)
    subtract(expected, rows, coefficients)
    again = project(rows, expected)
    strides: list[int] = []
    product = reductions._product

    def watched(rows: Tensor, vectors: Tensor) -> Tensor:
        strides.extend((rows.stride(0), vectors.stride(0)))
        return product(rows, vectors)

    monkeypatch.setattr(reductions, "_LONGEST_STRIDE", n - 1)
    monkeypatch.setattr(reductions, "_COPIED_BYTES", 2 * 6 * 4 * CHUNK)
    monkeypatch.setattr(reductions, "_product", watched)
    allowed = {"rtol": 0, "atol": 20 * torch.finfo(torch.float32).eps * (CHUNK * n) ** 0.5}
    torch.testing.assert_close(project(rows, vectors), projected, **allowed)
    torch.testing.assert_close(subtract_and_project(vectors, rows, coefficients), again, **allowed)
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)
    assert max(strides) <= 2 * CHUNK


def test_an_accelerator_starts_few_kernels() -> None:
    """A step at 1.3 billion parameters is 79,346 chunks; a launch for each would take as long as the product."""
    n = 1_300_000_000
    basis = KrylovBasis(n, 36, dtype=torch.float32, device=torch.device("meta"))
    basis.size = 36
    block = torch.empty(4, n, device="meta")
    coefficients = torch.empty(36, 4, dtype=torch.float64, device="meta")
    with Calls() as calls:
        project(basis.filled, block)
        subtract(block, basis.filled, coefficients)
        subtract_and_project(block, basis.filled, coefficients)
    assert 10 <= len(calls.names) < 200
    assert calls.names.count("bmm") == 2 * math.ceil(n // CHUNK / 16_384)
    with Calls() as calls:
        basis.rotate(torch.empty(36, 12, dtype=torch.float64, device="meta"))
    # In float64 a quarter of a gigabyte at a time.
    assert 1000 <= calls.names.count("mm") <= n * 36 * 8 / 2**28 * 1.1


# -- scale -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-13, 1.0, 1e13, 1e30, 1e34])
def test_norms_neither_overflow_nor_vanish(scale: float) -> None:
    """Squares of 1e30 are infinite in float32, those of 1e-30 are zero."""
    vector = (normal(1000).double() * scale).float()
    exact = float(vector.double().norm())
    assert relative(norm(vector), exact) <= 1e-6


def test_naive_squares_do_overflow_and_vanish() -> None:
    """Guard of the test above."""
    assert float((normal(1000) * 1e30).square().sum()) == math.inf
    assert float((normal(1000) * 1e-30).square().sum()) == 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_norms_of_nothing_and_of_zeros(dtype: torch.dtype) -> None:
    assert norm(torch.empty(0, dtype=dtype)) == 0.0
    assert norm(torch.zeros(5, dtype=dtype)) == 0.0


def test_norms_of_what_is_not_finite() -> None:
    assert math.isnan(norm(torch.tensor([1.0, math.nan])))
    assert norm(torch.tensor([1.0, -math.inf])) == math.inf


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-60, 60), n=st.integers(1, 3000))
def test_norms_scale_exactly_with_powers_of_two(seed: int, exponent: int, n: int) -> None:
    """2^e v has 2^e times the norm, up to the rounding between the two branches of the code."""
    vector = normal(n, seed=seed)
    assert norm(vector * 2.0**exponent) == pytest.approx(norm(vector) * 2.0**exponent, rel=2e-6)
