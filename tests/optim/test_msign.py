"""msign against the SVD: polar factor, scales, precision; and the projector of its sharp directions."""

import math
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lite_probe.optim.msign import COEFFICIENTS, FlatProjector, frobenius_norm, msign
from tests.optim.transcriptions import slow_msign


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def polar_factor(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def band(coefficients: str, steps: int, lowest: float) -> tuple[float, float]:
    """What a scalar iteration makes of singular values in [lowest, 1]: the band the coefficients promise."""
    x = torch.logspace(math.log10(lowest), 0, 200_001, dtype=torch.float64)
    plan = COEFFICIENTS[coefficients]
    for index in range(steps):
        a, b, c = plan.step(index)
        x = a * x + b * x**3 + c * x**5
    return float(x.min()), float(x.max())


@pytest.mark.parametrize("shape", [(7, 7), (5, 12), (12, 5)])
def test_it_is_the_polar_factor(shape: tuple[int, int]) -> None:
    # Twelve steps bring every singular value above 1e-3 of the norm to 1, up to rounding of a few hundred operations.
    matrix = drawn(*shape)
    assert float((msign(matrix, steps=12) - polar_factor(matrix)).abs().max()) < 1e-12


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_it_follows_its_formula(shape: tuple[int, int]) -> None:
    matrix = drawn(*shape, seed=1)
    assert float((msign(matrix) - slow_msign(matrix)).abs().max()) < 1e-13


@pytest.mark.parametrize(("coefficients", "steps"), [("polar-express", 6), ("polar-express", 4), ("quintic", 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_singular_values_lie_in_the_band_of_the_coefficients(coefficients: str, steps: int, dtype: torch.dtype) -> None:
    matrix = drawn(24, 40, seed=2, dtype=dtype)
    values = torch.linalg.svdvals(matrix)
    margin = COEFFICIENTS[coefficients].margin
    low, high = band(coefficients, steps, float(values.min() / (margin * values.norm())))
    found = torch.linalg.svdvals(msign(matrix, steps=steps, coefficients=coefficients).double())
    slack = 20 * torch.finfo(dtype).eps * steps  # rounding of each step's products
    assert low - slack <= float(found.min())
    assert float(found.max()) <= high + slack
    # The band of fewer steps is another: a wrong number of them would be seen.
    fewer = torch.linalg.svdvals(msign(matrix, steps=1, coefficients=coefficients).double())
    assert float(fewer.min()) < low - slack


@pytest.mark.parametrize("condition", [1e1, 1e4, 1e6])
def test_steps_together_are_as_accurate_as_one_by_one(condition: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # A matrix more than twice as long as it is wide takes steps together; the truth is float64, one by one.
    u, _, vh = torch.linalg.svd(drawn(48, 160, seed=5), full_matrices=False)
    matrix = u * torch.logspace(0, -math.log10(condition), 48, dtype=torch.float64) @ vh
    together = msign(matrix, dtype=torch.float32)
    monkeypatch.setattr(import_module("lite_probe.optim.msign"), "_STEPS_TOGETHER", {})
    truth, alone = msign(matrix), msign(matrix, dtype=torch.float32)
    errors = [float((found - truth).norm() / truth.norm()) for found in (together, alone)]
    assert 0 < errors[0] < 3 * errors[1] + 10 * torch.finfo(torch.float32).eps


def test_a_stack_is_its_matrices_one_by_one() -> None:
    stack = drawn(3, 5, 8)
    together = msign(stack)
    for matrix, found in zip(stack, together, strict=True):
        assert float((msign(matrix) - found).abs().max()) < 1e-14
    assert torch.equal(msign(stack.reshape(3, 1, 5, 8)).reshape(3, 5, 8), together)


@given(st.integers(-34, 34))
def test_scale_does_not_matter_above_the_floor(exponent: int) -> None:
    # Squares of entries at 1e±34 overflow or vanish in float32; the floor of 1e-8 lets tiny matrices fade.
    matrix = drawn(4, 6, seed=3, dtype=torch.float32)
    found = msign(matrix * 10.0**exponent)
    assert torch.isfinite(found).all()
    norm = float(matrix.norm()) * 10.0**exponent
    if norm > 1e-3:  # where the floor is below 1e-5 of the norm, and its effect on X₀ too
        assert float((found - msign(matrix)).abs().max()) < 1e-4
    if norm < 1e-20:  # X₀ is below 1e-12, which the product of the slopes, about 2e3, leaves below 1e-8
        assert float(found.abs().max()) < 1e-8


def test_zero_gives_zero() -> None:
    assert torch.equal(msign(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))
    mixed = torch.stack([torch.zeros(3, 4), torch.ones(3, 4)])
    assert torch.isfinite(msign(mixed)).all()


def test_bfloat16_products_are_close_and_the_result_keeps_its_type() -> None:
    matrix = drawn(16, 16, seed=4, dtype=torch.float32)
    rough = msign(matrix, dtype=torch.bfloat16)
    assert rough.dtype == torch.float32
    error = float((rough - msign(matrix)).norm() / msign(matrix).norm())
    assert 1e-4 < error < 0.1  # eight bits a product, six steps


def test_bfloat16_never_leaves_the_interval() -> None:
    """Also where what is small meets what is large, as in LITE's second msign, whose matrix is a difference of two."""
    for seed in range(60):
        matrix = drawn(4, 8, seed=seed, dtype=torch.float32)
        second = 2.0 * matrix / matrix.norm() - msign(matrix)
        for one in (matrix, second):
            assert float(torch.linalg.matrix_norm(msign(one, dtype=torch.bfloat16), 2)) < 1.2


def test_the_matrix_is_not_changed() -> None:
    matrix = drawn(4, 4)
    before = matrix.clone()
    msign(matrix)
    assert torch.equal(matrix, before)


def test_norms_of_large_matrices_are_not_biased() -> None:
    # A float32 sum over 4M equal entries loses 1e-4 of it; rows first lose a few roundings.
    matrix = torch.full((2048, 2048), 0.1)
    assert float(frobenius_norm(matrix)) == pytest.approx(0.1 * 2048, rel=1e-6)
    huge = torch.tensor([[3e30, 4e30]])
    assert float(frobenius_norm(huge)) == pytest.approx(5e30, rel=1e-6)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_the_projector_removes_the_sharp_rows(shape: tuple[int, int]) -> None:
    matrix = drawn(2, *shape)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    sharp = u[..., :2] @ vh[..., :2, :]
    project = FlatProjector(sharp, torch.float64)
    found = project(drawn(2, *shape, seed=7))
    expected = drawn(2, *shape, seed=7) @ (torch.eye(shape[1], dtype=torch.float64) - sharp.mT @ sharp)
    assert float((found - expected).abs().max()) < 1e-13
    assert float((project(found) - found).abs().max()) < 1e-13
    assert float((found @ vh[..., :2, :].mT).abs().max()) < 1e-13
