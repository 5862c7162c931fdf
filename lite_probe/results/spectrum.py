"""What was measured of one Hessian: both ends of its spectrum, its density, its trace.

An `OperatorSpectrum` belongs to one operator, the whole Hessian or its restriction to one block; a `Spectrum`
is the whole, its blocks, and what was run. Quadrature nodes and weights are stored raw and smoothed when drawn.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

import numpy as np
from numpy.typing import NDArray

from lite_probe.errors import NumericsError
from lite_probe.results.estimate import Estimate, t_reach
from lite_probe.results.provenance import Note, Provenance
from lite_probe.results.record import formerly

FloatArray = NDArray[np.float64]

STANDARD_ERRORS = 3.0  # two estimates of one trace lie within this many of their joint standard error
# One that is off by so many more lies beyond them in 98 of 100 cases; one that is off by no more, in half.
SEEN_BEYOND = 2.0
# Relative deviations that a second opinion must be able to see, for its agreement to mean anything.
DETECTABLE: Mapping[str, float] = {"eigenvalues": 0.05, "lower": 0.5, "trace": 0.2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """A smoothed spectral density φ on a grid, with its band over probes."""

    grid: FloatArray  # (g,) curvature, loss/param²
    value: FloatArray  # (g,) 1/curvature; integrates to 1 minus the weight of the atoms
    low: FloatArray  # (g,) the smallest over probes
    high: FloatArray  # (g,) the largest over probes
    sigma: float  # width of the Gaussian, curvature
    deflated_eigenvalues: FloatArray  # (a,) the atoms: converged, each of weight 1/N, not part of `value`
    atom_weight: float  # 1/N


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSpectrum:
    """The spectrum of one symmetric operator of size N."""

    num_parameters: int  # N
    eigenvalues: FloatArray  # (k,) the algebraically largest, descending, loss/param²
    residual_norms: FloatArray  # (k,) true ‖Hv − λv‖ of the pair beside it, recomputed, loss/param²
    lower_eigenvalues: FloatArray  # (j,) the smallest, ascending: the most negative first
    lower_residual_norms: FloatArray  # (j,)
    converged: NDArray[np.bool_]  # (k,) residual ≤ tolerance · |λ|, or at what rounding of the products allows
    lower_converged: NDArray[np.bool_]  # (j,)
    tolerance: float  # asked, relative to |λ|
    num_requested: int  # k asked; fewer returned is explained by a note
    stop_reason: str  # "converged", "breakdown", "complete" (the whole space was spanned), "max-products"
    nodes: FloatArray  # (q,) SLQ nodes of all probes, curvature
    weights: FloatArray  # (q,) ≥ 0; those of one probe sum to 1 − (number of atoms)/N
    probe_index: NDArray[np.int64]  # (q,) which probe a node belongs to, 0 … p−1
    # (a,) deflated from the probes, atoms of weight 1/N each
    deflated_eigenvalues: FloatArray = field(metadata=formerly("atoms"))
    trace: Estimate  # tr H
    trace_h2: Estimate  # tr H²
    num_hvps: int  # Hessian products spent on this operator
    num_fast_hvps: int = 0  # those of them whose matrices were multiplied in fewer bits
    product_error: float | None = None  # ‖Fz − Hz‖/‖Hz‖ of such a product for a random z; None where there were none

    def __post_init__(self) -> None:
        """Check shapes, order and finiteness; freeze the arrays.

        Raises:
            ValueError: If the arrays do not belong together.
            NumericsError: If a number is NaN or infinite.
        """
        pairs = [
            (self.eigenvalues, self.residual_norms, self.converged),
            (self.lower_eigenvalues, self.lower_residual_norms, self.lower_converged),
            (self.nodes, self.weights, self.probe_index),
        ]
        for group in pairs:
            if len({array.shape for array in group}) != 1 or group[0].ndim != 1:
                raise ValueError(f"expected 1-D arrays of equal length, got {[a.shape for a in group]}")
        numbers: dict[str, FloatArray | tuple[float, ...]] = {
            "eigenvalues": self.eigenvalues,
            "residual norms": self.residual_norms,
            "lower eigenvalues": self.lower_eigenvalues,
            "lower residual norms": self.lower_residual_norms,
            "nodes": self.nodes,
            "weights": self.weights,
            "trace of H": astuple(self.trace),
            "trace of H²": astuple(self.trace_h2),
        }
        for name, values in numbers.items():
            if not np.all(np.isfinite(values)):
                raise NumericsError(
                    f"expected finite {name} in a spectrum, got NaN or infinity",
                    "Hessian products overflowed; check the checkpoint, or measure with --precision float64",
                )
        if np.any(np.diff(self.eigenvalues) > 0) or np.any(np.diff(self.lower_eigenvalues) < 0):
            raise ValueError("expected eigenvalues descending and lower eigenvalues ascending")
        if np.any(self.weights < 0):
            raise ValueError("expected quadrature weights ≥ 0")
        for name in self.__slots__:
            array = getattr(self, name)
            if isinstance(array, np.ndarray):
                array.setflags(write=False)

    @property
    def upper_end(self) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        """Largest eigenvalues, their residual norms, and which have converged."""
        return self.eigenvalues, self.residual_norms, self.converged

    @property
    def lower_end(self) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        """Smallest eigenvalues, their residual norms, and which have converged."""
        return self.lower_eigenvalues, self.lower_residual_norms, self.lower_converged

    @property
    def residuals_at_rounding(self) -> FloatArray:
        """(r,) ‖Hv − λv‖/|λ| of the converged pairs beyond the tolerance, both ends; infinite where λ is 0."""
        values, residuals, converged = (
            np.concatenate(both) for both in zip(self.upper_end, self.lower_end, strict=True)
        )
        beyond = converged & (residuals > self.tolerance * np.abs(values))
        with np.errstate(divide="ignore"):
            return np.asarray(residuals[beyond] / np.abs(values[beyond]))

    @property
    def is_trace_told(self) -> bool:
        """Whether the trace can be told from zero; if not, neither effective rank nor shares of it can be told."""
        return not self.trace.low <= 0.0 <= self.trace.high

    @property
    def num_probes(self) -> int:
        """Number of random probes behind density, quantiles and trace."""
        return int(self.probe_index.max()) + 1 if len(self.probe_index) else 0

    @property
    def most_negative_eigenvalue(self) -> float | None:
        """The smallest eigenvalue found; positive where none is negative, None where none was asked for."""
        return float(self.lower_eigenvalues[0]) if len(self.lower_eigenvalues) else None

    def quantile_abs(self, share: float, probe: int | None = None) -> float | None:
        """Return the quantile of |λ| by quadrature weight, atoms included.

        Args:
            share: In (0, 1); 0.5 is the median.
            probe: One probe's own answer; None pools all probes.

        Returns:
            |λ| at the quantile, or None without probes.
        """
        chosen = slice(None) if probe is None else self.probe_index == probe
        nodes, weights = self.nodes[chosen], self.weights[chosen]
        if not len(nodes) + len(self.deflated_eigenvalues):
            return None
        probes = self.num_probes if probe is None else 1
        values = np.concatenate([np.abs(nodes), np.abs(self.deflated_eigenvalues)])
        atoms = np.full(len(self.deflated_eigenvalues), 1.0 / self.num_parameters)
        masses = np.concatenate([weights / max(probes, 1), atoms])
        order = np.argsort(values, kind="stable")
        cumulative = np.cumsum(masses[order])
        # Half of each node's mass lies on either side of it: Stieltjes' convention for a Gauss rule.
        middle = cumulative - 0.5 * masses[order]
        return float(np.interp(share * cumulative[-1], middle, values[order]))

    @property
    def median_abs_eigenvalue(self) -> float | None:
        """Median of |λ| over all N eigenvalues, from the quadrature."""
        return self.quantile_abs(0.5)

    @property
    def median_is_resolved(self) -> bool:
        """Whether no probe puts half of its mass or more on one node, which would hide where the median is."""
        if not len(self.weights):
            return len(self.deflated_eigenvalues) == self.num_parameters  # all are known, or nothing of the rest is
        return float(self.weights.max()) < 0.5

    @property
    def median_abs_bound(self) -> float | None:
        """Upper bound of the median of |λ|, from the upper end of tr H²; holds where no quadrature resolves it.

        Besides the a atoms at most S/t² eigenvalues have |λ| ≥ t, where S = tr H² − Σ atoms²; the median is
        at most the t for which a + S/t² = N/2.
        """
        rest = self.trace_h2.high - float(np.sum(self.deflated_eigenvalues**2))
        half = self.num_parameters / 2 - len(self.deflated_eigenvalues)
        return float(np.sqrt(rest / half)) if rest > 0 and half > 0 else None

    @property
    def negative_mass(self) -> float | None:
        """Share of the N eigenvalues below zero, from the quadrature."""
        if not len(self.nodes) + len(self.deflated_eigenvalues):
            return None
        mass = float(self.weights[self.nodes < 0].sum()) / max(self.num_probes, 1)
        return mass + float(np.count_nonzero(self.deflated_eigenvalues < 0)) / self.num_parameters

    @property
    def effective_rank(self) -> float | None:
        """(tr H)²/tr H²: how many equal eigenvalues would carry the same trace; None where tr H² is 0."""
        return self.trace.value**2 / self.trace_h2.value if self.trace_h2.value > 0 else None

    @property
    def effective_rank_stderr(self) -> float | None:
        """Standard error of the effective rank by the delta method, the two traces taken as independent."""
        rank = self.effective_rank
        if rank is None or self.trace.value == 0:
            return None
        first = 2.0 * self.trace.stderr / self.trace.value
        second = self.trace_h2.stderr / self.trace_h2.value
        return float(rank * np.hypot(first, second))

    @property
    def effective_rank_interval(self) -> tuple[float, float] | None:
        """The 95% interval of the effective rank: its standard error by Student's t of the probes, from 0 on."""
        rank, stderr = self.effective_rank, self.effective_rank_stderr
        if rank is None or stderr is None:
            return None
        count = max(self.trace.num_samples, self.trace_h2.num_samples)
        reach = stderr * t_reach(count) if stderr else 0.0
        return max(rank - reach, 0.0), rank + reach

    @property
    def condition_to_median(self) -> float | None:
        """λ₁/median|λ|: how much sharper the sharpest direction is than a typical one."""
        median = self.median_abs_eigenvalue
        return float(self.eigenvalues[0]) / median if median and len(self.eigenvalues) else None

    @property
    def condition_in_top(self) -> float | None:
        """λ₁/λ_k of the returned top pairs; None where λ_k is not positive."""
        if len(self.eigenvalues) < 2 or self.eigenvalues[-1] <= 0:
            return None
        return float(self.eigenvalues[0] / self.eigenvalues[-1])

    @property
    def top_share_of_trace(self) -> float | None:
        """Σ of the returned top eigenvalues over tr H; None where the trace is not positive."""
        return float(self.eigenvalues.sum()) / self.trace.value if self.trace.value > 0 else None

    @property
    def power_law_slope(self) -> float | None:
        """Least-squares slope of log λ_i against log i over positive top pairs; None below three."""
        positive = self.eigenvalues[self.eigenvalues > 0]
        if len(positive) < 3:
            return None
        return float(np.polyfit(np.log(np.arange(1, len(positive) + 1)), np.log(positive), 1)[0])

    def density(
        self, *, sigma: float | None = None, grid_points: int = 1000, grid: FloatArray | None = None
    ) -> Density:
        """Smooth the quadrature into φ(t) = mean_l Σ_i ω_i N(t; θ_i, σ²).

        Args:
            sigma: Width of the Gaussian, curvature; by default 1/200 of the range of nodes and atoms.
            grid_points: Number of equally spaced points over that range, 5σ wider at both ends.
            grid: (g,) points of one's own, in place of `grid_points`.

        Returns:
            The density of everything but the atoms, with its smallest and largest value over probes.
        """
        support = np.concatenate([self.nodes, self.deflated_eigenvalues])
        low, high = (float(support.min()), float(support.max())) if len(support) else (-1.0, 1.0)
        width = sigma if sigma is not None else max((high - low) / 200.0, 1e-300)
        points = np.linspace(low - 5 * width, high + 5 * width, grid_points) if grid is None else grid
        curves = np.zeros((max(self.num_probes, 1), len(points)))
        for probe in range(self.num_probes):
            chosen = self.probe_index == probe
            scaled = (points[:, None] - self.nodes[chosen][None, :]) / width
            curves[probe] = np.exp(-0.5 * scaled**2) @ self.weights[chosen] / (width * np.sqrt(2 * np.pi))
        return Density(
            grid=points,
            value=curves.mean(axis=0),
            low=curves.min(axis=0),
            high=curves.max(axis=0),
            sigma=width,
            deflated_eigenvalues=self.deflated_eigenvalues,
            atom_weight=1.0 / self.num_parameters,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What another library said of the same operator on the same batches."""

    library: str  # "PyHessian 0.1"
    eigenvalues: FloatArray  # (v,) theirs, in the order they came
    eigenvalue_errors: FloatArray  # (v,) bound on theirs: true residual of their pair plus ours
    our_eigenvalues: FloatArray  # (v,) ours at the same rank
    trace: Estimate  # theirs
    our_trace: Estimate
    eigenvalues_agree: bool  # every |difference| within the errors of both
    trace_agrees: bool  # the difference within 3 standard errors of the difference
    num_hvps: int
    wall_seconds: float
    lower_eigenvalue: float | None = None  # their smallest; None where none was looked for
    lower_error: float | None = None  # bound on it: true residual of their pair plus ours
    our_lower_eigenvalue: float | None = None
    lower_agrees: bool | None = None  # ours is neither above what they found nor below what they leave room for

    def reach(self, what: str) -> float:
        """Return the smallest relative deviation of ours that would have been seen; infinite where there is none.

        For the trace, whose two estimates scatter: seen in 98 of 100 cases.

        Args:
            what: "eigenvalues", for λ₁, "lower", for λmin, or "trace".
        """
        if what == "trace":
            joint = np.hypot(self.trace.stderr, self.our_trace.stderr)
            ours, error = self.our_trace.value, (STANDARD_ERRORS + SEEN_BEYOND) * joint
        elif what == "lower":
            ours, error = self.our_lower_eigenvalue or 0.0, self.lower_error or 0.0
        else:
            ours, error = float(self.our_eigenvalues[0]), float(self.eigenvalue_errors[0])
        return float(error / abs(ours)) if ours else float("inf")

    @property
    def verdicts(self) -> dict[str, bool | None]:
        """Whether they agree, by what was compared; None where a deviation that matters would not have been seen."""
        found = {"eigenvalues": self.eigenvalues_agree, "trace": self.trace_agrees}
        if self.lower_agrees is not None:
            found["lower"] = self.lower_agrees
        blind = {what for what in found if self.reach(what) > DETECTABLE[what]}
        return {what: None if agrees and what in blind else agrees for what, agrees in found.items()}

    @property
    def agrees(self) -> bool:
        """Whether nothing disagrees beyond both errors, and λ₁ at least would have been seen to."""
        verdicts = self.verdicts
        return False not in verdicts.values() and verdicts["eigenvalues"] is True


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """The spectrum of a task's curvature, whole and per block, with its provenance."""

    operator: str  # "hessian" or "ggn"
    loss: float  # mean over counted tokens or samples, nats
    gradient_norm: float  # ‖g‖ on the same batches
    whole: OperatorSpectrum
    blocks: Mapping[str, OperatorSpectrum] = field(default_factory=dict)  # empty without per_block
    eigenvectors: NDArray[np.float32] | None = None  # (N, k + j) columns: upper pairs, then lower pairs
    verification: Verification | None = None
    config: Mapping[str, object]  # what was asked: top, bottom, probes, tolerance, seed, …
    fingerprint: str  # of checkpoint content, batches and config
    notes: tuple[Note, ...] = ()
    provenance: Provenance

    def __post_init__(self) -> None:
        """Check that the eigenvectors belong to the pairs."""
        if self.eigenvectors is not None:
            pairs = len(self.whole.eigenvalues) + len(self.whole.lower_eigenvalues)
            expected = (self.whole.num_parameters, pairs)
            if self.eigenvectors.shape != expected:
                raise ValueError(f"expected eigenvectors of shape {expected}, got {self.eigenvectors.shape}")

    @property
    def num_parameters(self) -> int:
        """N."""
        return self.whole.num_parameters

    @property
    def eigenvalues(self) -> FloatArray:
        """(k,) the largest eigenvalues of the whole operator, descending."""
        return self.whole.eigenvalues

    @property
    def residual_norms(self) -> FloatArray:
        """(k,) their true residuals ‖Hv − λv‖."""
        return self.whole.residual_norms

    @property
    def trace(self) -> Estimate:
        """Trace of the whole operator."""
        return self.whole.trace

    def density(self, *, sigma: float | None = None, grid_points: int = 1000) -> Density:
        """Smooth the whole operator's quadrature; see `OperatorSpectrum.density`."""
        return self.whole.density(sigma=sigma, grid_points=grid_points)
