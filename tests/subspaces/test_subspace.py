"""A subspace is the orthogonal projector on its vectors' span, wherever and in whatever precision they are kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from torch import Tensor

import lite_probe as lp
from lite_probe.errors import InputError, UsageError
from lite_probe.results import arrays
from lite_probe.results.spectrum import Spectrum
from lite_probe.subspaces import Subspace, principal_angles
from lite_probe.subspaces import subspace as subspaces
from tests.subspaces import landscapes

FloatArray = NDArray[np.float64]
N, K = 1000, 4
# A product sums N terms of size 1/N: √N roundings of eps/N each, and entries are smaller still. Ten times for luck.
ROUNDING = 10 * float(np.finfo(np.float32).eps)


def orthonormal(count: int, *, seed: int = 0, size: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64))[0].T.contiguous()


def subspace_of(rows: Tensor, dtype: torch.dtype = torch.float32) -> Subspace:
    count = len(rows)
    return Subspace(rows.to(dtype), eigenvalues=np.arange(count, 0.0, -1.0), residual_norms=np.full(count, 1e-3))


def projector(rows: Tensor) -> FloatArray:
    """The orthogonal projector on the span of what is stored, by a pseudo-inverse."""
    columns = rows.double().numpy().T
    return np.asarray(columns @ np.linalg.pinv(columns))


def vector(dtype: torch.dtype = torch.float32, seed: int = 5) -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture
def spectrum() -> Spectrum:
    return landscapes.quadratic_spectrum()


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors are read in many stretches, the last one shorter."""
    monkeypatch.setattr(subspaces, "_STRETCH", 64)


# -- the projector ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_stretches")
@pytest.mark.parametrize("of_vector", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kept", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_component_is_the_orthogonal_projection_on_what_is_stored(kept: torch.dtype, of_vector: torch.dtype) -> None:
    subspace, x = subspace_of(orthonormal(K), kept), vector(of_vector)
    stored = torch.stack([subspace.vector(index) for index in range(K)])
    expected = projector(stored) @ x.double().numpy()
    component = subspace.component(x)
    assert component.dtype == of_vector
    # Vectors kept in float32 are taken to be orthonormal, which they are to a rounding of their own.
    exact = of_vector == torch.float64 and kept != torch.float32
    np.testing.assert_allclose(component.double().numpy(), expected, atol=1e-13 if exact else ROUNDING)
    np.testing.assert_allclose(subspace.component(component).numpy(), component.numpy(), atol=ROUNDING)
    energy = float(expected @ expected) / float(x.double() @ x.double())
    assert subspace.energy_share(x) == pytest.approx(energy, rel=ROUNDING * N**0.5)
    assert float(subspace.coefficients(x.unsqueeze(0)).square().sum()) == pytest.approx(
        float(expected @ expected), rel=ROUNDING * N**0.5
    )


def test_bfloat16_vectors_are_not_orthonormal_by_themselves() -> None:
    """Guard: without the Gram matrix the projector would be off by what bfloat16 rounds away."""
    subspace, x = subspace_of(orthonormal(K), torch.bfloat16), vector()
    stored = torch.stack([subspace.vector(index) for index in range(K)]).double().numpy()
    naive = stored.T @ (stored @ x.double().numpy())
    assert np.abs(naive - projector(torch.from_numpy(stored)) @ x.double().numpy()).max() > 1e-6


def test_coefficients_are_inner_products_of_each_vector() -> None:
    subspace = subspace_of(orthonormal(K))
    block = torch.stack([vector(seed=1), vector(seed=2), vector(seed=3)])
    expected = orthonormal(K).numpy() @ block.double().numpy().T
    coefficients = subspace.coefficients(block)
    assert coefficients.dtype == torch.float64
    np.testing.assert_allclose(coefficients.numpy(), expected, atol=ROUNDING * N**0.5)
    one_by_one = torch.cat([subspace.coefficients(x.unsqueeze(0)) for x in block], dim=1)
    assert torch.equal(subspace.coefficients(list(block)), one_by_one)


def test_combine_is_the_transpose_of_coefficients() -> None:
    subspace, weights = subspace_of(orthonormal(K), torch.bfloat16), torch.tensor([1.0, -2.0, 0.5, 3.0]).double()
    combined = subspace.combine(weights, torch.float64, torch.device("cpu"))
    x = vector(torch.float64)
    assert float(combined @ x) == pytest.approx(float(weights @ subspace.coefficients(x.unsqueeze(0))[:, 0]), rel=1e-10)


def test_energy_of_nothing_is_zero() -> None:
    assert subspace_of(orthonormal(K)).energy_share(torch.zeros(N)) == 0.0


def test_energy_of_the_vectors_themselves_is_all() -> None:
    rows = orthonormal(K)
    assert subspace_of(rows).energy_share(rows[2].float()) == pytest.approx(1.0, abs=ROUNDING)


# -- angles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16], ids=str)
def test_principal_angles_are_scipys(kept: torch.dtype) -> None:
    first, second = subspace_of(orthonormal(5), kept), subspace_of(orthonormal(3, seed=1), kept)
    stored = [
        torch.stack([one.vector(index) for index in range(one.size)]).double().numpy().T for one in (first, second)
    ]
    angles = principal_angles(first, second)
    assert angles.shape == (3,)
    # Near a right angle arccos passes an error of its argument on as it is.
    np.testing.assert_allclose(angles, np.sort(subspace_angles(*stored)), atol=ROUNDING * N**0.5)
    np.testing.assert_allclose(principal_angles(second, first), angles, atol=ROUNDING * N**0.5)


def test_middling_angles_come_as_they_were_made() -> None:
    rows = orthonormal(2 * K)
    made = np.array([0.1, 0.4, 0.9, 1.5])
    turned = rows[:K] * torch.from_numpy(np.cos(made))[:, None] + rows[K:] * torch.from_numpy(np.sin(made))[:, None]
    angles = principal_angles(subspace_of(rows[:K]), subspace_of(turned))
    np.testing.assert_allclose(angles, made, atol=ROUNDING / np.sin(made.min()))


def test_a_subspace_leans_nowhere_from_itself_and_wholly_from_its_complement() -> None:
    rows = orthonormal(2 * K)
    mixed = torch.linalg.qr(torch.randn(K, K, generator=torch.Generator().manual_seed(9)).double())[0] @ rows[:K]
    # arccos(1 − δ) ≈ √2δ, with δ a float32 rounding.
    near = float(np.sqrt(2 * ROUNDING))
    assert principal_angles(subspace_of(rows[:K]), subspace_of(mixed)).max() <= near
    assert principal_angles(subspace_of(rows[:K]), subspace_of(rows[K:])).min() >= np.pi / 2 - ROUNDING


def test_subspaces_of_different_models_have_no_angles() -> None:
    with pytest.raises(InputError, match="expected subspaces of the same parameters, got 1,000 and 900"):
        principal_angles(subspace_of(orthonormal(K)), subspace_of(orthonormal(K, size=900)))


# -- from a spectrum -------------------------------------------------------------------------------------------------


def test_it_is_the_leading_eigenvectors(spectrum: Spectrum) -> None:
    subspace = Subspace.of_spectrum(spectrum, landscapes.quadratic_task())
    assert (subspace.size, subspace.num_parameters) == (4, landscapes.SIZE)
    values, vectors = np.linalg.eigh(landscapes.hessian().numpy())
    np.testing.assert_allclose(subspace.eigenvalues, values[::-1][:4], rtol=1e-5)
    exact = Subspace(
        torch.from_numpy(vectors[:, ::-1][:, :4].T.copy()),
        eigenvalues=values[::-1][:4].copy(),
        residual_norms=np.zeros(4),
    )
    # Vectors are as far from exact as their residuals over the gap behind them (sin θ theorem); arccos(1 − δ) ≈ √2δ.
    behind = float(values[-4] - values[-5])
    leaning = 2 * float(np.linalg.norm(spectrum.residual_norms)) / behind
    assert principal_angles(subspace, exact).max() <= leaning + float(np.sqrt(2 * ROUNDING))
    assert subspace.notes == ()
    assert subspace.relative_residual == pytest.approx(float(np.max(spectrum.residual_norms / spectrum.eigenvalues)))


def test_a_size_takes_the_first(spectrum: Spectrum) -> None:
    subspace = Subspace.of_spectrum(spectrum, landscapes.quadratic_task(), size=2)
    assert subspace.size == 2
    np.testing.assert_array_equal(subspace.eigenvalues, spectrum.eigenvalues[:2])


def test_pairs_are_the_converged_ones_of_both_ends(spectrum: Spectrum) -> None:
    converged = spectrum.whole.converged.copy()
    converged[1] = False
    whole = replace(spectrum.whole, converged=converged)
    pairs = Subspace.of_pairs(replace(spectrum, whole=whole), landscapes.quadratic_task())
    expected = np.r_[np.delete(spectrum.eigenvalues, 1), spectrum.whole.lower_eigenvalues]
    np.testing.assert_array_equal(pairs.eigenvalues, expected)
    assert spectrum.eigenvectors is not None
    for index, column in enumerate([0, 2, 3, 4]):
        np.testing.assert_array_equal(pairs.vector(index).numpy(), spectrum.eigenvectors[:, column])


def test_a_pair_that_did_not_converge_ends_the_subspace(spectrum: Spectrum) -> None:
    converged = spectrum.whole.converged.copy()
    converged[2] = False
    whole = replace(spectrum.whole, converged=converged)
    assert Subspace.of_spectrum(replace(spectrum, whole=whole), landscapes.quadratic_task()).size == 2


@pytest.mark.usefixtures("short_stretches")
def test_vectors_of_a_file_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spectrum, task = landscapes.quadratic_spectrum(), landscapes.quadratic_task()
    monkeypatch.setattr(arrays, "LARGE_BYTES", 4000)  # so that the eigenvectors are mapped
    monkeypatch.setattr(arrays, "SAMPLE_BYTES", 64)
    lp.save(spectrum, tmp_path)
    mapped = lp.load(tmp_path, "spectrum")
    assert isinstance(mapped.eigenvectors, np.memmap)
    on_disk, in_memory = Subspace.of_spectrum(mapped, task, memory=0), Subspace.of_spectrum(spectrum, task)
    (note,) = on_disk.notes
    assert (note.code, on_disk.num_bytes) == ("subspace-on-disk", 0)
    assert in_memory.num_bytes == 4 * 4 * landscapes.SIZE
    x = torch.linspace(-1.0, 2.0, landscapes.SIZE)
    for index in range(4):
        assert torch.equal(on_disk.vector(index), in_memory.vector(index))
    np.testing.assert_allclose(on_disk.component(x).numpy(), in_memory.component(x).numpy(), atol=ROUNDING)
    pairs = Subspace.of_pairs(mapped, task, memory=0), Subspace.of_pairs(spectrum, task)
    block = x.unsqueeze(0)
    np.testing.assert_allclose(pairs[0].coefficients(block), pairs[1].coefficients(block), atol=ROUNDING * N**0.5)


def test_vectors_in_memory_are_not_said_to_be_on_disk(spectrum: Spectrum) -> None:
    assert Subspace.of_spectrum(spectrum, landscapes.quadratic_task(), memory=0).notes == ()


def test_bfloat16_halves_the_memory_and_says_so(spectrum: Spectrum) -> None:
    subspace = Subspace.of_spectrum(spectrum, landscapes.quadratic_task(), dtype=torch.bfloat16)
    assert subspace.num_bytes == 2 * 4 * landscapes.SIZE
    (note,) = subspace.notes
    assert note.code == "subspace-in-bfloat16"
    assert "4e-3" in note.message


@pytest.mark.parametrize(("factory", "kind"), [(Subspace.of_spectrum, InputError), (Subspace.of_pairs, InputError)])
def test_a_spectrum_without_eigenvectors_is_refused(factory: Any, kind: type[Exception], spectrum: Spectrum) -> None:
    with pytest.raises(kind, match="expected a spectrum with eigenvectors, got one without"):
        factory(replace(spectrum, eigenvectors=None), landscapes.quadratic_task())


def test_a_spectrum_without_a_sharp_direction_is_refused(spectrum: Spectrum) -> None:
    whole = replace(spectrum.whole, converged=np.zeros(4, dtype=bool))
    with pytest.raises(InputError, match="expected converged eigenvectors of positive curvature, got none"):
        Subspace.of_spectrum(replace(spectrum, whole=whole), landscapes.quadratic_task())


@pytest.mark.parametrize("size", [0, 5])
def test_a_size_that_is_not_there_is_refused(size: int, spectrum: Spectrum) -> None:
    with pytest.raises(UsageError, match=f"expected a size of 1 to 4, the converged pairs.*, got {size}"):
        Subspace.of_spectrum(spectrum, landscapes.quadratic_task(), size=size)


def test_vectors_are_in_one_place() -> None:
    with pytest.raises(ValueError, match="either in memory or mapped"):
        Subspace(eigenvalues=np.ones(1), residual_norms=np.ones(1))


def test_vectors_in_memory_are_stacked_without_a_copy(spectrum: Spectrum) -> None:
    inside = Subspace.of_spectrum(spectrum, landscapes.quadratic_task())
    stacked = inside.stacked()
    assert np.shares_memory(stacked, inside.vector(1).numpy())
    on_disk = Subspace.of_spectrum(spectrum, landscapes.quadratic_task(), memory=0)
    np.testing.assert_array_equal(on_disk.stacked(), stacked)
    # Rows that wait to be compared are read where they lie.
    read = Subspace(mapped=stacked.T, eigenvalues=inside.eigenvalues, residual_norms=inside.residual_norms)
    assert np.shares_memory(read._file, stacked)
    np.testing.assert_array_equal(read.vector(2).numpy(), stacked[2])
