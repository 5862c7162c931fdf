"""What was measured of sharp and flat directions, and of LITE's notion of them.

LITE never sees the Hessian: it takes from its preconditioner which directions are sharp. A calibration orders the
directions of a block by that proxy, cuts them into bands, and holds the true mean curvature of each band beside it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from lite_probe.results.estimate import Estimate, Ratio
from lite_probe.results.provenance import Note, Provenance
from lite_probe.results.spectrum import OperatorSpectrum

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How far two sharp subspaces of equal dimension lean apart."""

    kind: str  # "batches" (two halves of them), "operators" or "checkpoints"
    first: str  # "half of the batches", "hessian", "step-00060"
    second: str
    angles: FloatArray  # (k,) principal angles, radians, ascending
    num_parameters: int  # N
    residual: float  # the largest ‖Hv − λv‖/|λ| of the vectors on either side: how well the subspaces are known

    @property
    def overlap(self) -> float:
        """Mean cos² of the angles, ‖VᵀU‖_F²/k, in [0, 1]."""
        return float(np.mean(np.cos(self.angles) ** 2))

    @property
    def expected_at_random(self) -> float:
        """Overlap of two random subspaces of this dimension, k/N."""
        return len(self.angles) / self.num_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCalibration:
    """Proxy against true curvature in one block, band by band; band 0 is the sharpest by the proxy."""

    num_parameters: int
    shares: FloatArray  # (b + 1,) edges of the bands as shares of the block's dimensions, from 0 to 1
    dimensions: NDArray[np.int64]  # (b,) of each band; their sum is num_parameters
    proxy: FloatArray  # (b,) mean proxy per dimension, squared gradient units
    curvature: FloatArray  # (b,) κ_b, loss/param²
    curvature_stderr: FloatArray  # (b,) over probes
    unseen_share: float  # of the dimensions: their proxy is 0, and nothing orders them; they are the last band
    rank_correlation: float | None  # Spearman's, of proxy and κ_b over bands; None for fewer than three bands
    rank_correlation_stderr: float | None  # jackknife over probes
    sharp_share: float  # of the dimensions that LITE's own projector calls sharp, tr(I − Q)/dim
    sharp_curvature: Estimate | None  # κ_sharp; None where LITE calls nothing sharp
    flat_curvature: Estimate | None  # κ_flat; None where LITE calls nothing flat
    difference: Estimate | None  # κ_sharp − κ_flat, paired by probe; None where either is missing
    contrast: Ratio | None  # κ_sharp/κ_flat, likewise

    def __post_init__(self) -> None:
        """Check shapes; freeze the arrays."""
        count = len(self.dimensions)
        per_band = (self.proxy, self.curvature, self.curvature_stderr)
        if len(self.shares) != count + 1 or any(array.shape != (count,) for array in per_band):
            raise ValueError(f"expected arrays of {count} bands, got {[len(a) for a in (self.shares, *per_band)]}")
        if int(self.dimensions.sum()) != self.num_parameters:
            raise ValueError(f"expected bands of {self.num_parameters:,} dimensions, got {self.dimensions.sum():,}")
        for array in (self.shares, self.dimensions, *per_band):
            array.setflags(write=False)

    @property
    def assumption(self) -> str:
        """Whether LITE's sharp directions are sharper than its flat ones here.

        "holds": κ_sharp − κ_flat is positive beyond its 95% interval; "fails": negative; "open": the interval holds 0;
        "not used": LITE makes no difference between directions of this block.
        """
        if self.difference is None:
            return "not used"
        if self.difference.low > 0.0:
            return "holds"
        return "fails" if self.difference.high < 0.0 else "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class NormSharpness:
    """S = max dᵀHd over ‖d‖ = 1 in the norm that an optimizer steps in, bounded from below by what was found.

    ‖d‖ = 1 is the length of a step at learning rate 1, of every piece at once: S is in loss per squared learning rate.
    """

    norm: str  # "per matrix the largest singular value, else the largest entry"
    is_normalised: bool  # whether a step at learning rate η has ‖d‖ = η however large the gradient, else η‖g‖_*
    values: FloatArray  # (s,) dᵀHd that the ascent from each start reached, loss/lr²
    gradient_norm: float  # ‖g‖_* = max −g·d over ‖d‖ = 1, loss/lr
    num_hvps: int

    def __post_init__(self) -> None:
        """Check that there is a value; freeze the array."""
        if self.values.ndim != 1 or not len(self.values):
            raise ValueError(f"expected one value per start, got shape {self.values.shape}")
        self.values.setflags(write=False)

    @property
    def value(self) -> float:
        """The largest value found; S itself may be larger."""
        return float(self.values.max())

    @property
    def num_agreeing(self) -> int:
        """Starts that reached the largest value to within 1%, its own among them."""
        return int(np.count_nonzero(self.values >= self.value - 0.01 * abs(self.value)))

    @property
    def edge_lr(self) -> float | None:
        """The learning rate from which a step along the whole gradient may raise the loss, to second order.

        With d = −η argmax g·d a step changes the quadratic model by −η‖g‖_* + ½η²dᵀHd/η², which is negative for
        η < 2‖g‖_*/S; where steps grow with the gradient, for η < 2/S. S is bounded from below, and this from above.
        Momentum and noise move the edge. None where nothing curves upward.
        """
        if self.value <= 0.0:
            return None
        return 2.0 * (self.gradient_norm if self.is_normalised else 1.0) / self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyCalibration:
    """One optimizer's geometry at θ₀, its state warmed: its proxy calibrated, and the curvature in its metric."""

    optimizer: str  # "adamw-lite", "muon-lite" or "soap-lite"
    blocks: Mapping[str, BlockCalibration]
    preconditioned: OperatorSpectrum | None  # of F^(-1/2) H F^(-1/2); None where it was not asked for
    # (g,) λ₁/√(tr H²/N) in the metric, F without one of g groups of the warm-up batches; None where not measured
    left_out_conditions: FloatArray | None = None
    own_norm: NormSharpness | None = None  # None where it was not measured, or its steps have no norm that is known


@dataclass(frozen=True, slots=True, kw_only=True)
class SubspaceMeasurement:
    """The sharp subspace of a checkpoint, how firm it is, and how well LITE's proxies find it."""

    size: int  # k, the dimension of the sharp subspace
    num_parameters: int  # N
    spectrum: OperatorSpectrum  # of the Hessian itself, to compare the preconditioned ones with
    loss: float  # on the evaluation batches, nats
    gradient_norm: float  # ‖g‖ there
    gradient_share: float  # ‖Vᵀg‖²/‖g‖², of the evaluation gradient
    batch_gradient_share: Estimate  # the same, mean over single training batches
    random_share: Estimate  # the same in random subspaces, with the range that 95% of them are in; expected is k/N
    overlaps: tuple[Overlap, ...]
    calibrations: Mapping[str, ProxyCalibration]  # by optimizer
    num_probes: int  # behind every band's curvature
    num_warm_batches: int  # that the optimizer states were warmed on, at fixed θ₀
    num_hvps: int  # all products together
    hvps_by_part: Mapping[str, int]  # "calibration", "overlap", "preconditioned soap-lite", …
    config: Mapping[str, object]
    fingerprint: str
    notes: tuple[Note, ...] = ()
    provenance: Provenance

    @property
    def expected_share(self) -> float:
        """Share of a random vector's energy in the subspace, k/N."""
        return self.size / self.num_parameters


def evenness(plain: OperatorSpectrum, calibration: ProxyCalibration) -> Ratio | None:
    """Return by how much a metric evens the curvature out: λ₁/√(tr H²/N) without it over the same with it.

    The error is one of the logarithm, d. Two parts of it are independent, each with a Student's t of its own: that over
    the probes of either tr H², and the jackknife over groups of the batches that F was averaged over,
    s² = (g − 1)/g Σ(dᵢ − d̄)². Evaluation batches are those that were measured on, and no part of it.

    Returns:
        None where either side is not positive, or the metric's was not measured; open to both sides where no group
        was left out: other batches may then bring any other number.
    """
    measured = calibration.preconditioned
    before = root_mean_square_condition(plain)
    after = None if measured is None else root_mean_square_condition(measured)
    if measured is None or before is None or after is None or min(before, after) <= 0.0:
        return None
    factor, left_out = before / after, calibration.left_out_conditions
    if left_out is None:
        return Ratio(value=factor, stderr=None, low=None, high=None, num_samples=0)
    logs, count = np.log(left_out), len(left_out)
    state = float(np.sqrt((count - 1) * np.var(logs)))
    squares = [one.trace_h2 for one in (plain, measured)]
    probes = [0.5 * one.stderr / one.value for one in squares]
    reaches = [0.25 * (one.high - one.low) / one.value for one in squares]
    reach = float(np.exp(math.hypot(*reaches, float(special.stdtrit(count - 1, 0.975)) * state)))
    stderr = factor * math.hypot(*probes, state)
    return Ratio(value=factor, stderr=stderr, low=factor / reach, high=factor * reach, num_samples=count)


def root_mean_square_condition(spectrum: OperatorSpectrum) -> float | None:
    """Return λ₁/√(tr H²/N): how much sharper the sharpest direction is than the root mean square one.

    Unlike λ₁/median|λ| it is resolved by any quadrature, since tr H² is.
    """
    if not len(spectrum.eigenvalues) or spectrum.trace_h2.value <= 0:
        return None
    return float(spectrum.eigenvalues[0]) / float(np.sqrt(spectrum.trace_h2.value / spectrum.num_parameters))
