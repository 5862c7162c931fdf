"""LITE's notion of sharp, held beside the Hessian: mean curvature of every band, and of LITE's own two sides.

One product serves all bands of all blocks of all geometries. For a Gaussian probe z

    E[(P_b z)ᵀ H z] = tr(P_b H) = dim_b κ_b,

since the parts of z in other bands have mean zero whatever P_b z is. They add noise, most of it through the outliers:
the spectrum's converged pairs are therefore taken out exactly. With H = VΛVᵀ + R,

    dim_b κ_b = Σ_i λ_i ‖P_b v_i‖² + E[(P_b z)ᵀ R z],

which holds for any V and Λ, so that their residuals do no harm. Dividing by ‖P_b z‖² in place of dim_b has the same
mean, but no variance where a band has one or two dimensions.

What is left of the noise comes from the block's sharpest bands. Behind the first 30% of a block it is what hides κ_b:
a second kind of probe has parts in those bands alone, P z with P the sum of their projectors, and leaves the same
means. It serves one geometry only. On a small trained Llama four of them bring standard errors behind 30% of the hidden
matrices to about 0.3 of what sixteen full ones give for Muon and 0.4 for SOAP; for AdamW, whose bands mix sharp and
flat, they are as good as sixteen. In the sharp bands and on LITE's two sides they would gain nothing.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from lite_probe.operators.base import SymmetricOperator
from lite_probe.optim import Directions
from lite_probe.results.blocks import BLOCK_NAMES
from lite_probe.results.estimate import Estimate, Ratio
from lite_probe.results.subspace import BlockCalibration
from lite_probe.subspaces.bands import Bands
from lite_probe.subspaces.cuts import STRETCH, stretches
from lite_probe.subspaces.subspace import Subspace
from lite_probe.vectors.layout import ParameterLayout

FloatArray = NDArray[np.float64]

_TAIL_FROM = 0.3  # of a block's dimensions: bands behind it have probes of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """What the deflated pairs contribute, without sampling error."""

    bands: FloatArray  # (B,) Σ λ_i v_iᵀP_b v_i
    sharp: FloatArray  # (blocks,) Σ λ_i v_iᵀ(I − Q)v_i
    flat: FloatArray  # (blocks,) Σ λ_i v_iᵀQ v_i


def tail_of(bands: Bands) -> NDArray[np.intp]:
    """Return the bands, over all blocks, that have probes of their own."""
    return np.flatnonzero(bands.table.low >= _TAIL_FROM)


def rest_of(probes: Tensor, pairs: Subspace, hessian: SymmetricOperator) -> list[Tensor]:
    """Return Rz = Hz − VΛVᵀz of some probes z, (p, N) → p of (N,). Cost: p products."""
    images = hessian.matmat(probes.T).T.contiguous()
    weights = pairs.coefficients(probes) * torch.from_numpy(pairs.eigenvalues).to(probes.device).unsqueeze(1)
    columns = zip(images, weights.T, strict=True)
    return [image.sub_(pairs.combine(own, image.dtype, image.device)) for image, own in columns]


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
        self.tail = tail_of(bands)
        self.distinguishes = np.zeros(len(self.blocks), dtype=bool)
        self.flat_dimensions = np.zeros(len(self.blocks))
        self.dimensions = np.zeros(len(self.blocks))
        means = torch.stack([_mean(one.flat) for one in directions]).tolist()
        for one, mean in zip(directions, means, strict=True):
            place = self._block[one.piece.block]
            size = one.piece.shape.numel()
            self.dimensions[place] += size
            self.flat_dimensions[place] += size * mean
            self.distinguishes[place] |= one.distinguishes

    def sides(self, x: Tensor, y: Tensor) -> Tensor:
        """Return xᵀ(I − Q)y and xᵀQy, (2, blocks) float64, for x and y of length N. Cost: two rotations, one pass."""
        sums = torch.zeros(2, len(self.blocks), dtype=torch.float64, device=x.device)  # all, and what Q leaves
        first, second = self._layout.views(x), self._layout.views(y)
        for one in self._directions:
            place, parameter = self._block[one.piece.block], self._index[one.piece.name]
            a, b = (one.rotate(one.piece.view(view[parameter])) for view in (first, second))
            flat = one.flat.expand(a.shape)
            for start in range(0, a.shape[-2], step := _rows_of(a.shape)):
                rows = (..., slice(start, start + step), slice(None))
                product = a[rows].double() * b[rows].double()
                sums[0, place] += product.sum()
                sums[1, place] += (product * flat[rows].double()).sum()
        sums[0] -= sums[1]
        return sums

    def exact(self, vectors: Iterable[Tensor], eigenvalues: FloatArray) -> Exact:
        """Return what pairs contribute to every band and side."""
        found = torch.stack([self.products(vector, vector) for vector in vectors]).cpu().numpy()
        total = np.zeros(found.shape[1])
        for value, own in zip(eigenvalues, found, strict=True):
            total += value * own
        bands, sharp, flat = self.divided(total)
        return Exact(bands=bands, sharp=sharp, flat=flat)

    def products(self, x: Tensor, y: Tensor) -> Tensor:
        """Return xᵀP_b y of every band and what `sides` returns, one after another, (B + 2·blocks,) float64."""
        return torch.cat([self.bands.products(x, y), self.sides(x, y).flatten()])

    def divided(self, products: FloatArray) -> list[FloatArray]:
        """Return the parts of what `products` returned: of bands, of sharp sides, of flat ones."""
        return np.split(products, [len(self.bands), len(self.bands) + len(self.blocks)])


def _rows_of(shape: Sequence[int]) -> int:
    """Return how many rows of a piece are multiplied at once."""
    return max(1, STRETCH * shape[-2] // max(math.prod(shape), 1))


def _mean(weights: Tensor) -> Tensor:
    """Return the mean in float64, of a stretch at a time."""
    return torch.stack([part.double().sum() for part in stretches(weights)]).sum() / weights.numel()


@dataclass(slots=True)
class Samples:
    """What each probe said so far, a row per probe."""

    bands: list[FloatArray]  # (B,) (P_b z)ᵀRz
    sharp: list[FloatArray]  # (blocks,) zᵀ(I − Q)Rz
    flat: list[FloatArray]  # (blocks,) zᵀQRz
    tail: list[FloatArray]  # (B,) (P_b z)ᵀRz for the probes that have parts in the tail's bands alone

    def add(self, proxy: Proxy, probe: Tensor, rest: Tensor) -> None:
        """Take a probe z and Rz in."""
        found = proxy.divided(proxy.products(probe, rest).cpu().numpy())
        for rows, own in zip((self.bands, self.sharp, self.flat), found, strict=True):
            rows.append(own)

    def add_tail(self, proxy: Proxy, probe: Tensor, rest: Tensor) -> None:
        """Take a probe z of the tail and Rz in."""
        self.tail.append(proxy.bands.products(probe, rest).cpu().numpy())


def calibrate(proxy: Proxy, samples: Samples, exact: Exact) -> Mapping[str, BlockCalibration]:
    """Put mean curvatures, their errors and their order together, per block.

    Args:
        proxy: Bands and sides.
        samples: Of at least two probes of each kind; none of the tail's where it has no bands.
        exact: Of the deflated pairs.
    """
    table = proxy.bands.table
    full = (np.stack(samples.bands) + exact.bands) / table.dimensions
    tail = (np.stack(samples.tail) + exact.bands) / table.dimensions if samples.tail else full
    found = {}
    for place, block in enumerate(proxy.blocks):
        chosen = np.array([index for index, name in enumerate(table.blocks) if name == block])
        in_tail = np.isin(chosen, proxy.tail)
        kinds = [(~in_tail, full[:, chosen[~in_tail]]), (in_tail, tail[:, chosen[in_tail]])]
        proxies = proxy.bands.proxies[chosen]
        correlation, correlation_stderr = rank_correlation(proxies, kinds)
        found[block] = BlockCalibration(
            num_parameters=int(proxy.dimensions[place]),
            shares=np.append(table.low[chosen], table.high[chosen][-1]),
            dimensions=table.dimensions[chosen],
            proxy=proxies,
            curvature=_per_band(kinds, lambda own: own.mean(axis=0)),
            curvature_stderr=_per_band(kinds, lambda own: own.std(axis=0, ddof=1) / np.sqrt(len(own))),
            unseen_share=proxy.bands.unseen[block],
            rank_correlation=correlation,
            rank_correlation_stderr=correlation_stderr,
            sharp_share=1.0 - float(proxy.flat_dimensions[place] / proxy.dimensions[place]),
            **_sides(proxy, samples, exact, place),
        )
    return found


def band_curvatures(
    bands: Bands, exact: FloatArray, full: FloatArray, tail: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the mean curvature of every band and its standard error, (B,) and (B,), loss/param².

    Args:
        bands: Of all blocks.
        exact: (B,) what the deflated pairs contribute, Σ λ_i v_iᵀP_b v_i.
        full: (p, B) samples (P_b z)ᵀRz of at least two full probes.
        tail: (p, B) likewise of probes that have parts in the tail's bands alone; no rows where it has no bands.
    """
    in_tail = np.isin(np.arange(len(bands)), tail_of(bands)) & bool(len(tail))
    kinds = [(~in_tail, full[:, ~in_tail]), (in_tail, tail[:, in_tail])] if in_tail.any() else [(~in_tail, full)]
    means = _per_band(kinds, lambda own: own.mean(axis=0))
    errors = _per_band(kinds, lambda own: own.std(axis=0, ddof=1) / np.sqrt(len(own)))
    return (means + exact) / bands.table.dimensions, errors / bands.table.dimensions


# Which of some bands, (b,) bool, and the samples of those, (n, ·).
Kind = tuple[NDArray[np.bool_], FloatArray]


def _per_band(kinds: Sequence[Kind], statistic: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """Return a statistic of every band's samples, whichever kind of probe they are from."""
    result = np.empty(len(kinds[0][0]))
    for which, own in kinds:
        result[which] = statistic(own)
    return result


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


def rank_correlation(proxies: FloatArray, kinds: Sequence[Kind]) -> tuple[float | None, float | None]:
    """Return Spearman's correlation of proxy and mean curvature over bands, and its jackknife error over probes.

    Kinds of probes are independent: each is left out one by one while the others stay, and the variances add up.

    Args:
        proxies: (b,) of the bands.
        kinds: Which bands, and the curvatures that one kind of probe found there.

    Returns:
        (None, None) for fewer than three bands, or where either side is the same in all bands; no error where a kind
        has fewer than three probes.
    """
    means = _per_band(kinds, lambda own: own.mean(axis=0))
    if len(proxies) < 3 or np.ptp(proxies) == 0.0 or np.ptp(means) == 0.0:
        return None, None
    variance = 0.0
    for which, own in kinds:
        count = len(own)
        if not which.any():
            continue
        if count < 3:
            return _spearman(proxies, means), None
        left_out = []
        for one in own:
            without = means.copy()
            without[which] = (own.sum(axis=0) - one) / (count - 1)
            left_out.append(_spearman(proxies, without))
        variance += (count - 1) * float(np.var(left_out))
    return _spearman(proxies, means), float(np.sqrt(variance))


def _spearman(first: FloatArray, second: FloatArray) -> float:
    return float(stats.spearmanr(first, second).statistic)
