"""Curvatures of bands and of LITE's two sides, against traces of dense projectors times a known Hessian."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from lite_probe.measurements.subspace import measure_subspace
from lite_probe.results.subspace import SubspaceMeasurement
from lite_probe.subspaces import cut_bands, optimizer_of, warm
from lite_probe.subspaces.calibration import Exact, Proxy, Samples, calibrate, rank_correlation
from lite_probe.vectors.layout import ParameterLayout
from tests import models
from tests.dispatch import Watch
from tests.subspaces import landscapes

pytestmark = pytest.mark.slow

FloatArray = NDArray[np.float64]
OPTIMIZERS = ("adamw-lite", "muon-lite", "soap-lite")
PROBES, WARM = 16, 30
BLOCKS = ("qk", "vo", "ffn", "norm")


@dataclass(frozen=True)
class Truth:
    """One optimizer's bands and projector on the quadratic landscape, as matrices."""

    proxy: Proxy
    bands: list[FloatArray]  # B of (N, N)
    flat: FloatArray  # (N, N) Q


@cache
def truth(optimizer: str) -> Truth:
    task = landscapes.quadratic_task()
    made = optimizer_of(task, optimizer)
    warm(task, [made], task.train[:WARM])
    layout = ParameterLayout(list(task.model.named_parameters()))
    directions = made.directions()
    bands = cut_bands(layout, directions, optimizer=optimizer)
    proxy = Proxy(optimizer, layout, directions, bands)
    matrices = landscapes.projectors(bands, landscapes.SIZE)
    return Truth(proxy, matrices, landscapes.dense_function(task, directions, None))


@cache
def measured(seed: int = 0, optimizers: tuple[str, ...] = OPTIMIZERS) -> SubspaceMeasurement:
    return measure_subspace(
        landscapes.quadratic_task(),
        landscapes.quadratic_spectrum(),
        probes=PROBES,
        warm_batches=WARM,
        optimizers=optimizers,
        overlaps=False,
        preconditioned=False,
        seed=seed,
    )


def rest() -> FloatArray:
    """R = H − VΛVᵀ, with the pairs that the spectrum holds."""
    spectrum = landscapes.quadratic_spectrum()
    assert spectrum.eigenvectors is not None
    vectors = spectrum.eigenvectors.astype(np.float64)
    values = np.r_[spectrum.eigenvalues, spectrum.whole.lower_eigenvalues]
    return np.asarray(landscapes.hessian().numpy() - (vectors * values) @ vectors.T)


def stderr_of(matrix: FloatArray, probes: int) -> float:
    """The standard error of the mean of zᵀAz over Gaussian z: its variance is 2‖sym A‖_F²."""
    return float(np.sqrt(2.0 / probes) * np.linalg.norm(0.5 * (matrix + matrix.T)))


# -- against dense matrices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_band_projectors_sum_to_the_identity(optimizer: str) -> None:
    """The oracle first: what the bands are taken to be is a partition into orthogonal projectors."""
    matrices = truth(optimizer).bands
    np.testing.assert_allclose(sum(matrices), np.eye(landscapes.SIZE), atol=1e-12)
    for band, matrix in enumerate(matrices):
        np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-12)
        assert np.trace(matrix) == pytest.approx(truth(optimizer).proxy.bands.table.dimensions[band])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_curvatures_are_those_of_the_bands(optimizer: str, seed: int) -> None:
    """Six true standard errors for each of some forty bands, computed from the dense matrices.

    The last bands have four probes, whose zᵀAz is a sum of few χ²: beyond four errors lies 1e-3 of that, not 6e-5.
    """
    known, hessian, remainder = truth(optimizer), landscapes.hessian().numpy(), rest()
    table = known.proxy.bands.table
    tail = sum((known.bands[band] for band in known.proxy.tail), np.zeros_like(hessian))
    assert len(known.proxy.tail) > 3
    place = dict.fromkeys(BLOCKS, 0)
    for band, matrix in enumerate(known.bands):
        block, count = table.blocks[band], table.dimensions[band]
        found = measured(seed).calibrations[optimizer].blocks[block]
        index, place[block] = place[block], place[block] + 1
        in_tail = band in known.proxy.tail
        noise = matrix @ remainder @ tail if in_tail else matrix @ remainder
        error = stderr_of(noise, PROBES // 4 if in_tail else PROBES) / count
        exact = float(np.trace(matrix @ hessian)) / count
        assert abs(found.curvature[index] - exact) <= 6 * error + 1e-6
        assert found.dimensions[index] == count


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_standard_errors_are_those_of_the_probes(optimizer: str) -> None:
    """Over all bands together, so that a few samples' own scatter averages out: sums of χ² with 15 degrees each."""
    known, remainder = truth(optimizer), rest()
    table, reported, true = known.proxy.bands.table, 0.0, 0.0
    place = dict.fromkeys(BLOCKS, 0)
    for band, matrix in enumerate(known.bands):
        block = table.blocks[band]
        index, place[block] = place[block], place[block] + 1
        if band not in known.proxy.tail:
            error = stderr_of(matrix @ remainder, PROBES) / table.dimensions[band]
            found = measured().calibrations[optimizer].blocks[block].curvature_stderr[index]
            reported, true = reported + (found / error) ** 2, true + 1.0
    # Samples of neighbouring bands share probes: no better than a tenth of independent ones is assumed.
    assert reported / true == pytest.approx(1.0, abs=4 * np.sqrt(2.0 / 15))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_sharp_and_flat_curvatures_are_those_of_the_projector(optimizer: str, seed: int) -> None:
    known, hessian, remainder = truth(optimizer), landscapes.hessian().numpy(), rest()
    told = 0
    for block in BLOCKS:
        rows = np.diag(landscapes.block_rows(block))
        flat, sharp = rows @ known.flat @ rows, rows @ (np.eye(landscapes.SIZE) - known.flat) @ rows
        found = measured(seed).calibrations[optimizer].blocks[block]
        assert found.sharp_share == pytest.approx(np.trace(sharp) / np.trace(rows), abs=1e-9)
        for estimate, side in ((found.sharp_curvature, sharp), (found.flat_curvature, flat)):
            assert estimate is not None
            exact = float(np.trace(side @ hessian) / np.trace(side))
            assert abs(estimate.value - exact) <= 4 * stderr_of(side @ remainder, PROBES) / np.trace(side) + 1e-6
            told += 1
        assert found.difference is not None
        assert found.sharp_curvature is not None
        assert found.flat_curvature is not None
        assert found.difference.value == pytest.approx(found.sharp_curvature.value - found.flat_curvature.value)
        assert found.contrast is not None
        if found.contrast.value is not None:
            assert found.contrast.value == pytest.approx(found.sharp_curvature.value / found.flat_curvature.value)
    assert told == 2 * len(BLOCKS)


def test_another_seed_gives_other_estimates() -> None:
    one, other = (measured(seed).calibrations["soap-lite"].blocks["ffn"] for seed in (0, 1))
    assert not np.any(one.curvature == other.curvature)
    np.testing.assert_array_equal(one.proxy, other.proxy)


def test_an_informative_proxy_is_found_to_be_one() -> None:
    """The landscape's gradients are H(θ − x): Muon's and SOAP's directions rank its curvature."""
    for optimizer in ("muon-lite", "soap-lite"):
        block = measured().calibrations[optimizer].blocks["ffn"]
        assert block.rank_correlation is not None
        assert block.rank_correlation > 0.5
        assert block.assumption == "holds"


def test_a_base_optimizer_has_a_proxy_and_no_sides() -> None:
    block = measured(optimizers=("soap",)).calibrations["soap"].blocks["ffn"]
    lite = measured().calibrations["soap-lite"].blocks["ffn"]
    np.testing.assert_allclose(block.proxy, lite.proxy)
    assert block.sharp_share == 1.0
    assert (block.sharp_curvature, block.flat_curvature, block.difference, block.contrast) == (None,) * 4
    assert block.assumption == "not used"


# -- the estimator ---------------------------------------------------------------------------------------------------


def test_a_probe_of_the_tail_is_quieter_there() -> None:
    """Why there are two kinds: the sharp bands' noise, seen by full probes, hides the tail's curvature."""
    known, remainder = truth("soap-lite"), rest()
    tail = sum(known.bands[band] for band in known.proxy.tail)
    ratios = [
        stderr_of(known.bands[band] @ remainder @ tail, 1) / stderr_of(known.bands[band] @ remainder, 1)
        for band in known.proxy.tail
    ]
    assert max(ratios) < 1.0
    assert min(ratios) < 0.85


def test_deflated_pairs_count_exactly_whatever_they_are() -> None:
    """The identity holds for any V and Λ: for wrong eigenvalues the probes see what the pairs do not say."""
    known, hessian = truth("adamw-lite"), landscapes.hessian().numpy()
    generator = torch.Generator().manual_seed(11)
    vectors = torch.randn(2, landscapes.SIZE, generator=generator, dtype=torch.float64)
    values = np.array([5.0, -1.0])
    exact = known.proxy.exact(list(vectors), values)
    wrong = (vectors.numpy().T * values) @ vectors.numpy()
    expected = [float(np.trace(matrix @ wrong)) for matrix in known.bands]
    np.testing.assert_allclose(exact.bands, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(exact.flat.sum() + exact.sharp.sum(), np.trace(wrong))
    np.testing.assert_allclose(exact.flat.sum(), np.trace(known.flat @ wrong))
    samples = sampled(known.proxy, lambda z: z @ torch.from_numpy(hessian - wrong), probes=4000)
    found = np.mean(samples.bands, axis=0) + exact.bands
    for band, matrix in enumerate(known.bands):
        error = stderr_of(matrix @ (hessian - wrong), 4000)
        assert abs(found[band] - float(np.trace(matrix @ hessian))) <= 4 * error


def sampled(proxy: Proxy, product: Callable[[Tensor], Tensor], probes: int) -> Samples:
    samples, generator = Samples([], [], [], []), torch.Generator().manual_seed(12)
    for _ in range(probes):
        probe = torch.randn(landscapes.SIZE, generator=generator, dtype=torch.float64)
        samples.bands.append(proxy.bands.products(probe, product(probe)).numpy())
    return samples


def test_a_band_of_one_dimension_has_a_finite_error() -> None:
    """Guard: divided by ‖P_b z‖² in place of dim_b, the samples of such a band have no variance."""
    known, remainder = truth("adamw-lite"), torch.from_numpy(rest())
    alone = [band for band, count in enumerate(known.proxy.bands.table.dimensions) if count <= 1]
    assert alone
    generator, plain, normalised = torch.Generator().manual_seed(4), [], []
    for _ in range(4000):
        probe = torch.randn(landscapes.SIZE, generator=generator, dtype=torch.float64)
        products = known.proxy.bands.products_of([probe, remainder @ probe], [(0, 1), (0, 0)]).numpy()[:, alone[0]]
        plain.append(products[0])
        normalised.append(products[0] / products[1])
    matrix = known.bands[alone[0]] @ remainder.numpy()
    assert np.std(plain) / np.sqrt(4000) == pytest.approx(stderr_of(matrix, 4000), rel=0.2)
    assert np.std(normalised) > 5 * np.std(plain)


# -- ranks -----------------------------------------------------------------------------------------------------------


def everywhere(samples: FloatArray) -> list[tuple[NDArray[np.bool_], FloatArray]]:
    return [(np.ones(samples.shape[1], dtype=bool), samples)]


def test_rank_correlation_is_spearmans() -> None:
    generator = np.random.default_rng(0)
    proxies, samples = np.array([9.0, 5.0, 4.0, 2.0, 1.0]), generator.standard_normal((7, 5))
    whole, error = rank_correlation(proxies, everywhere(samples))
    assert whole == pytest.approx(stats.spearmanr(proxies, samples.mean(axis=0)).statistic)
    left_out = [
        stats.spearmanr(proxies, np.delete(samples, row, axis=0).mean(axis=0)).statistic for row in range(len(samples))
    ]
    assert error == pytest.approx(np.sqrt(6 / 7 * np.sum((left_out - np.mean(left_out)) ** 2)))


def test_kinds_of_probes_are_left_out_apart() -> None:
    generator = np.random.default_rng(1)
    proxies = np.array([9.0, 5.0, 4.0, 2.0])
    first, second = generator.standard_normal((6, 2)), generator.standard_normal((3, 2))
    which = np.array([True, True, False, False])
    whole, error = rank_correlation(proxies, [(which, first), (~which, second)])
    means = np.r_[first.mean(axis=0), second.mean(axis=0)]
    assert whole == pytest.approx(stats.spearmanr(proxies, means).statistic)
    variance = 0.0
    for samples, other, own_first in ((first, second, True), (second, first, False)):
        values = []
        for row in range(len(samples)):
            parts = [np.delete(samples, row, axis=0).mean(axis=0), other.mean(axis=0)]
            values.append(stats.spearmanr(proxies, np.concatenate(parts if own_first else parts[::-1])).statistic)
        variance += (len(samples) - 1) / len(samples) * np.sum((values - np.mean(values)) ** 2)
    assert error == pytest.approx(np.sqrt(variance))


@pytest.mark.parametrize(
    ("proxies", "samples"),
    [([2.0, 1.0], np.eye(2)), ([1.0, 1.0, 1.0], np.eye(3)), ([3.0, 2.0, 1.0], np.ones((3, 3)))],
    ids=["two bands", "equal proxies", "equal curvatures"],
)
def test_what_cannot_be_ranked_has_no_correlation(proxies: Any, samples: Any) -> None:
    assert rank_correlation(np.array(proxies), everywhere(samples)) == (None, None)


def test_two_probes_rank_without_an_error() -> None:
    whole, error = rank_correlation(np.array([3.0, 2.0, 1.0]), everywhere(np.array([[3.0, 2.0, 1.0], [3.0, 2.5, 0.0]])))
    assert (whole, error) == (1.0, None)


def test_a_calibration_without_a_tail_uses_full_probes() -> None:
    """Muon-LITE's or SGD's blocks may be one band: nothing lies behind 30% of it."""
    task = landscapes.quadratic_task()
    made = optimizer_of(task, "sgd")
    warm(task, [made], task.train[:2])
    layout = ParameterLayout(list(task.model.named_parameters()))
    directions = made.directions()
    proxy = Proxy("sgd", layout, directions, cut_bands(layout, directions, optimizer="sgd"))
    assert not len(proxy.tail)
    none = np.zeros(len(proxy.blocks))
    samples = Samples([np.full(4, 6.0), np.full(4, 10.0)], [none, none], [none, none], [])
    found = calibrate(proxy, samples, Exact(bands=np.ones(4), sharp=none, flat=none))
    for name, block in found.items():
        size = sum(int(np.prod(landscapes.SHAPES[key])) for key, own in landscapes.BLOCKS.items() if own == name)
        np.testing.assert_allclose(block.curvature, [9.0 / size])
        np.testing.assert_allclose(block.curvature_stderr, [2.0 / size])


def test_sides_are_asked_for_once() -> None:
    """Both sides of all blocks come in one piece: no number is waited for by itself."""
    task = models.make_task("llama", torch.float32)
    layout = ParameterLayout(list(task.model.named_parameters()))
    made = optimizer_of(task, "soap-lite")
    warm(task, [made], task.evaluation * 2)
    directions = made.directions()
    x = torch.ones(layout.size)
    watch = Watch()
    with watch:
        proxy = Proxy("soap-lite", layout, directions, cut_bands(layout, directions, optimizer="soap-lite"))
        sharp, flat = proxy.sides(x, x)
    assert watch.waits == 0
    assert float((sharp + flat).sum()) == pytest.approx(layout.size, rel=1e-5)
