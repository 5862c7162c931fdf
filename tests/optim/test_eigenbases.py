"""Bases that rounding moves by rounding: against eigenvectors, polar factors, and themselves a little further on."""

import pytest
import torch
from torch import Tensor

from lite_probe.optim.eigenbases import completed, renewed_basis, resolution, singular_vectors, whole_basis


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64, generator=generator))[0]


def gradient(seed: int = 0) -> Tensor:
    """(12, 7) float32 of rank 4: singular values 1, 0.5, 0.1, 0.01, two rows of zeros."""
    left = torch.zeros(12, 4, dtype=torch.float64)
    left[2:] = orthonormal(10, 4, seed)
    return (left * torch.tensor([1.0, 0.5, 0.1, 0.01]) @ orthonormal(7, 4, seed + 1).T).float()


# Products of orthonormal float64 matrices: some units of rounding.
@pytest.mark.parametrize(("rows", "rank"), [(8, 3), (8, 8), (8, 0), (30, 29), (1, 1), (64, 5)])
def test_a_whole_basis_is_one_and_begins_with_what_is_known(rows: int, rank: int) -> None:
    known = orthonormal(rows, rank)
    whole = whole_basis(known)
    assert torch.equal(whole[:, :rank], known)
    assert float((whole.T @ whole - torch.eye(rows)).abs().max()) < 1e-14


def test_what_completes_is_the_nearest_to_coordinates() -> None:
    """The polar factor of the coordinates' projection, by a singular value decomposition of that."""
    known = orthonormal(9, 4)
    rest = torch.tensor([False, True, True, False, True, False, True, True, False])
    projected = (torch.eye(9, dtype=torch.float64) - known @ known.T)[:, rest]
    left, _, right = torch.linalg.svd(projected, full_matrices=False)
    torch.testing.assert_close(completed(known, rest), left @ right, rtol=0, atol=1e-13)


def test_what_completes_depends_on_the_span_alone_and_continuously() -> None:
    known = orthonormal(20, 6)
    turned, moved = known @ orthonormal(6, 6, 1), torch.linalg.qr(known + 1e-7 * orthonormal(20, 6, 2))[0]
    whole = whole_basis(known)[:, 6:]
    assert float((whole_basis(turned)[:, 6:] - whole).abs().max()) < 1e-13
    # A change of the span over the least singular value of V_I, which its pivots keep above a tenth here.
    assert float((whole_basis(moved)[:, 6:] - whole).abs().max()) < 1e-6


def test_coordinates_that_never_occur_are_directions_of_their_own() -> None:
    whole = whole_basis(singular_vectors(gradient())[0])
    for row in (0, 1):
        direction = whole[:, whole[row].abs().argmax()]
        expected = torch.zeros(12, dtype=torch.float64)
        expected[row] = 1.0
        assert float((direction - expected).abs().max()) < 1e-14


def test_only_what_rounding_leaves_is_known() -> None:
    left, right = singular_vectors(gradient())
    assert left.shape == (12, 4)
    assert right.shape == (7, 4)
    # A σ² of 1e-7 is below n·eps of the largest; one of 1e-4 was not.
    weak = gradient() + 3e-4 * torch.outer(orthonormal(12, 1, 5)[:, 0], orthonormal(7, 1, 6)[:, 0]).float()
    assert 1e-7 < resolution(12, torch.float32) < 1e-4
    assert singular_vectors(weak)[0].shape == (12, 4)
    assert singular_vectors(weak.double())[0].shape == (12, 5)
    assert [found.shape[1] for found in singular_vectors(torch.zeros(3, 2))] == [0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_the_first_bases_move_by_rounding(seed: int) -> None:
    """A relative 1e-7 per entry turns the vectors of σ by 1e-7·σ₁/gap: 1e-5 for 0.01, and the null space likewise."""
    generator = torch.Generator().manual_seed(seed)
    plain = gradient()
    moved = plain * (1.0 + 1e-7 * (2.0 * torch.rand(plain.shape, generator=generator, dtype=torch.float64) - 1.0))
    for first, second in zip(singular_vectors(plain), singular_vectors(moved.float()), strict=True):
        one, other = whole_basis(first), whole_basis(second)
        signs = (one * other).sum(dim=0).sign()
        assert bool((signs[first.shape[1] :] == 1.0).all())
        assert float((one - other * signs).abs().max()) < 1e-4


def test_a_renewal_is_a_power_iteration() -> None:
    basis = orthonormal(6, 6)
    factor = basis @ torch.diag(torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.2], dtype=torch.float64)) @ basis.T
    other = orthonormal(6, 6, 3)
    torch.testing.assert_close(renewed_basis(factor, other), torch.linalg.qr(factor @ other)[0], rtol=0, atol=1e-13)


def test_a_renewal_keeps_what_the_factor_knows_nothing_of() -> None:
    """Rank 2 of 6, in float32: the others stay where they stood, as far as they can; without anything all do."""
    left = orthonormal(6, 6)
    factor = (left[:, :2] * torch.tensor([2.0, 1.0], dtype=torch.float64) @ left[:, :2].T).float()
    basis = left.float()
    renewed = renewed_basis(factor, basis)
    signs = (renewed * basis).sum(dim=0).sign()
    assert bool((signs[2:] == 1.0).all())
    torch.testing.assert_close(renewed * signs, basis, rtol=0, atol=1e-5)
    noise = 1e-7 * torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(renewed_basis(factor + noise + noise.T, basis), renewed, rtol=0, atol=1e-5)
    torch.testing.assert_close(renewed_basis(torch.zeros(6, 6), basis), basis, rtol=0, atol=1e-6)
