"""LITE's notion of sharp, held beside the Hessian: mean curvature of every band, and of LITE's own two sides.

One product serves all bands of all blocks of all geometries. For a Gaussian probe z, independent between bands,

    E[(P_b z)ᵀ H z / ‖P_b z‖²] = tr(P_b H)/dim_b = κ_b,

since the parts of z in other bands have mean zero whatever P_b z is. They add noise, most of it through the outliers:
the spectrum's converged pairs are therefore taken out exactly. With H = VΛVᵀ + R,

    κ_b = Σ_i λ_i ‖P_b v_i‖²/dim_b + E[(P_b z)ᵀ R z/‖P_b z‖²],

which holds for any V and Λ, so that their residuals do no harm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from lite_probe.operators.layout import ParameterLayout
from lite_probe.optim import Directions
from lite_probe.results.blocks import BLOCK_NAMES
from lite_probe.results.estimate import Estimate, Ratio
from lite_probe.results.subspace import BlockCalibration
from lite_probe.subspaces.bands import Bands

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """What the deflated pairs contribute, without sampling error."""

    bands: FloatArray  # (B,) Σ λ_i v_iᵀP_b v_i
    sharp: FloatArray  # (blocks,) Σ λ_i v_iᵀ(I − Q)v_i
    flat: FloatArray  # (blocks,) Σ λ_i v_iᵀQ v_i


class Proxy:
    """One optimizer's bands, and its projector's two sides, block by block.

    Args:
        optimizer: Its name.
        layout: All parameters.
        directions: Of its state at θ₀.
        bands: Cut from them.
    """

    def __init__(self, optimizer: str, layout: ParameterLayout, directions: Sequence[Directions], bands: Bands) -> None:
        self.optimizer = optimizer
        self.bands = bands
        self._layout = layout
        self._directions = directions
        self._index = {name: place for place, name in enumerate(layout.names)}
        present = {one.piece.block for one in directions}
        self.blocks = [name for name in BLOCK_NAMES if name in present]
        self._block = {name: place for place, name in enumerate(self.blocks)}
        self.distinguishes = np.zeros(len(self.blocks), dtype=bool)
        self.flat_dimensions = np.zeros(len(self.blocks))
        self.dimensions = np.zeros(len(self.blocks))
        for one in directions:
            place = self._block[one.piece.block]
            size = one.piece.view(one.piece.parameter.detach()).numel()
            self.dimensions[place] += size
            self.flat_dimensions[place] += size * float(one.flat.double().mean())
            self.distinguishes[place] |= one.distinguishes

    def sides(self, x: Tensor, y: Tensor) -> tuple[FloatArray, FloatArray]:
        """Return xᵀ(I − Q)y and xᵀQy per block, for x and y of length N. Cost: two rotations, one pass."""
        sharp, flat = np.zeros(len(self.blocks)), np.zeros(len(self.blocks))
        first, second = self._layout.views(x), self._layout.views(y)
        for one in self._directions:
            place, parameter = self._block[one.piece.block], self._index[one.piece.name]
            a = one.rotate(one.piece.view(first[parameter])).double()
            product = a * one.rotate(one.piece.view(second[parameter])).double()
            total, flat_part = float(product.sum()), float((product * one.flat.double()).sum())
            sharp[place] += total - flat_part
            flat[place] += flat_part
        return sharp, flat

    def exact(self, vectors: Sequence[Tensor], eigenvalues: FloatArray) -> Exact:
        """Return what pairs contribute to every band and side."""
        bands = np.zeros(len(self.bands))
        sharp, flat = np.zeros(len(self.blocks)), np.zeros(len(self.blocks))
        for vector, value in zip(vectors, eigenvalues, strict=True):
            bands += value * self.bands.products(vector, vector).cpu().numpy()
            one, other = self.sides(vector, vector)
            sharp, flat = sharp + value * one, flat + value * other
        return Exact(bands=bands, sharp=sharp, flat=flat)


@dataclass(slots=True)
class Samples:
    """What each probe said so far, a row per probe."""

    bands: list[FloatArray]  # (B,) (P_b z)ᵀRz · dim_b/‖P_b z‖²
    sharp: list[FloatArray]  # (blocks,) zᵀ(I − Q)Rz
    flat: list[FloatArray]  # (blocks,) zᵀQRz

    def add(self, proxy: Proxy, probe: Tensor, rest: Tensor) -> None:
        """Take a probe z and Rz in."""
        products = proxy.bands.products_of([probe, rest], [(0, 1), (0, 0)]).cpu().numpy()
        self.bands.append(products[0] * proxy.bands.table.dimensions / products[1])
        sharp, flat = proxy.sides(probe, rest)
        self.sharp.append(sharp)
        self.flat.append(flat)


def calibrate(proxy: Proxy, samples: Samples, exact: Exact) -> Mapping[str, BlockCalibration]:
    """Put mean curvatures, their errors and their order together, per block.

    Args:
        proxy: Bands and sides.
        samples: Of p ≥ 2 probes.
        exact: Of the deflated pairs.
    """
    table = proxy.bands.table
    curvatures = (np.stack(samples.bands) + exact.bands) / table.dimensions
    found = {}
    for place, block in enumerate(proxy.blocks):
        chosen = [index for index, name in enumerate(table.blocks) if name == block]
        own = curvatures[:, chosen]
        proxies = proxy.bands.proxies[chosen]
        correlation, correlation_stderr = rank_correlation(proxies, own)
        sides = _sides(proxy, samples, exact, place)
        found[block] = BlockCalibration(
            num_parameters=int(proxy.dimensions[place]),
            shares=np.append(table.low[chosen], table.high[chosen][-1]),
            dimensions=table.dimensions[chosen],
            proxy=proxies,
            curvature=own.mean(axis=0),
            curvature_stderr=own.std(axis=0, ddof=1) / np.sqrt(len(own)),
            unseen_share=proxy.bands.unseen[block],
            rank_correlation=correlation,
            rank_correlation_stderr=correlation_stderr,
            sharp_share=1.0 - float(proxy.flat_dimensions[place] / proxy.dimensions[place]),
            **sides,
        )
    return found


def _sides(proxy: Proxy, samples: Samples, exact: Exact, place: int) -> dict[str, Any]:
    """Return κ_sharp, κ_flat, their difference and their ratio in one block; None where LITE tells nothing apart."""
    names = ("sharp_curvature", "flat_curvature", "difference", "contrast")
    flat_size = proxy.flat_dimensions[place]
    sharp_size = proxy.dimensions[place] - flat_size
    if not proxy.distinguishes[place] or min(flat_size, sharp_size) <= 1e-9 * proxy.dimensions[place]:
        return dict.fromkeys(names)
    sharp = (np.stack(samples.sharp)[:, place] + exact.sharp[place]) / sharp_size
    flat = (np.stack(samples.flat)[:, place] + exact.flat[place]) / flat_size
    estimates = [Estimate.from_samples(values) for values in (sharp, flat, sharp - flat)]
    return dict(zip(names, [*estimates, Ratio.from_samples(sharp, flat)], strict=True))


def rank_correlation(proxies: FloatArray, curvatures: FloatArray) -> tuple[float | None, float | None]:
    """Return Spearman's correlation of proxy and mean curvature over bands, and its jackknife error over probes.

    Args:
        proxies: (b,) of the bands.
        curvatures: (p, b) per probe.

    Returns:
        (None, None) for fewer than three bands, or where either side is the same in all bands.
    """
    count = len(curvatures)
    if len(proxies) < 3 or np.ptp(proxies) == 0.0 or np.ptp(curvatures.mean(axis=0)) == 0.0:
        return None, None
    whole = float(stats.spearmanr(proxies, curvatures.mean(axis=0)).statistic)
    if count < 3:
        return whole, None
    total = curvatures.sum(axis=0)
    left_out = [float(stats.spearmanr(proxies, (total - one) / (count - 1)).statistic) for one in curvatures]
    return whole, float(np.sqrt((count - 1) * np.var(left_out)))
