"""A replayed training segment under several optimizers, and who lowered the loss along which directions.

Every optimizer starts at the same θ₀ and is fed the same batches; seeds change the batches. Quantities are kept per run
and step as they were measured; what compares optimizers is paired by seed and has its standard error over seeds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lite_probe.results.blocks import order_blocks
from lite_probe.results.estimate import Estimate, t_reach
from lite_probe.results.landscape import Landscape
from lite_probe.results.provenance import Note, Provenance

FloatArray = NDArray[np.float64]

HORIZON_SHARE = 0.1  # of a loss change, by which the quadratic model at θ₀ may miss it
_LEAST_POSITIVE = 0.8  # share of the effective learning rates that must be positive for a power law

Part = Literal["whole", "ramp", "after"]  # of a segment: all its steps, those while the rate rose, those after them

Means = tuple[FloatArray, FloatArray | None]  # over seeds, entry by entry, and their standard errors; one seed has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Bands:
    """The bands of directions that progress is allotted to, the same for every optimizer; (B,) over all blocks."""

    optimizer: str  # whose proxy, warmed at θ₀, ordered the directions: "soap"
    blocks: tuple[str, ...]  # the block of each band
    low: FloatArray  # (B,) edges as shares of the block's dimensions; 0 is the sharpest by the proxy
    high: FloatArray  # (B,)
    dimensions: NDArray[np.int64]  # (B,)
    # tr(P_b H)/dim at θ₀, on the batches that the eigenvectors were measured on; empty where it was not measured.
    curvatures: FloatArray = field(default_factory=lambda: np.zeros(0))  # (B,) loss/param²
    curvature_errors: FloatArray = field(default_factory=lambda: np.zeros(0))  # (B,) standard errors over probes
    num_probes: int = 0  # behind each

    @property
    def curvature_halves(self) -> FloatArray:
        """(B,) half of the 95% interval of each mean curvature, by Student's t over probes."""
        return np.asarray(self.curvature_errors * t_reach(self.num_probes)) if self.num_probes > 1 else np.zeros(0)

    @property
    def places(self) -> dict[str, list[int]]:
        """Where each block's bands are, blocks in their usual order."""
        found: dict[str, list[int]] = {block: [] for block in order_blocks(self.blocks)}
        for place, block in enumerate(self.blocks):
            found[block].append(place)
        return found

    @property
    def labels(self) -> tuple[str, ...]:
        """Name every band: `ffn 1–10%`."""
        edges = zip(self.blocks, self.low, self.high, strict=True)
        return tuple(f"{block} {100 * low:.3g}–{100 * high:.3g}%" for block, low, high in edges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """An optimizer as it was replayed, and where its numbers come from."""

    optimizer: str
    lr: float
    lr_source: str  # "given", "checkpoint" or "sweep"
    hyperparameters: Mapping[str, object]  # those that were not left at their defaults
    state: str  # "checkpoint", "warm" or "cold": what it started from
    state_lines: tuple[str, ...]  # what became of the state, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The learning rates that were tried for one optimizer, on batches of their own."""

    lrs: FloatArray  # (s,) ascending
    losses: FloatArray  # (s,) on the evaluation batches after the segment; 0 where diverged
    diverged: NDArray[np.bool_]  # (s,)
    chosen: float  # the best of lrs; where the loss first rises there, the largest at which it does not
    is_inside: bool  # whether both neighbours of the best were tried; else the grid's limit was reached
    # (s,) whether the loss rose above the start's in the first steps, or the trial diverged; empty where not known
    rises: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @property
    def best(self) -> float:
        """The rate with the lowest loss at the end; the smallest where all diverged."""
        return float(self.lrs[np.argmin(np.where(self.diverged, np.inf, self.losses))])

    @property
    def is_at_limit(self) -> bool:
        """Whether the rate chosen is the best and was not tried on both sides: a better one may lie beyond."""
        return not self.is_inside and self.chosen == self.best

    def first_rises(self, lr: float) -> bool:
        """Return whether the loss rose above the start's in the first steps at a rate that was tried."""
        return bool(self.rises[self.lrs == lr].any()) if len(self.rises) else False


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """For how many steps of a run the quadratic model at θ₀ predicts the loss change within a tenth."""

    low: int  # the last logged step before one that it misses; 0 where it misses the first
    high: int | None  # the first that it misses; None where it misses none


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledChange:
    """The loss change up to a step, and the quadratic model's at θ₀, over the seeds that got there."""

    step: int  # completed
    change: Estimate  # L(θ_t) − L(θ₀), nats
    predicted: Estimate  # the model's
    miss: float | None  # Σ|L̂ − L| over Σ|L(θ_t) − L(θ₀)|; None where the latter is no more than rounding
    missed: int  # seeds on which the model misses by more than a tenth, and than rounding
    count: int  # seeds


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRun:
    """One optimizer on one seed's batches: K' steps, K or those before it diverged.

    Arrays of an ablation, which is not recorded, have no columns or no entries, but for the losses.
    """

    optimizer: str
    ablation: str  # "none", or "dominant": updates projected on the sharp subspace, "bulk": on its complement
    seed: int  # 0, 1, … ; with the user's seed it draws the batches
    batches_digest: str  # of the segment, the same for every optimizer
    diverged_at: int | None  # the step (0-based) that could not be completed
    train_losses: FloatArray  # (K',) on the step's own batch, before it
    losses: FloatArray  # (K' + 1,) on the evaluation set, before the first step and after each
    update_norms: FloatArray  # (K',) ‖d_t‖
    allocations: FloatArray  # (K',) loss change by the quadrature rule, over all directions
    closure_errors: FloatArray  # (K',) allocations − true loss change, signed
    gradients_used: NDArray[np.int64]  # (K',) evaluation gradients behind each step's rule; more where refined
    slopes: FloatArray  # (K',) g·d at the step's start
    curvatures: FloatArray  # (K',) dᵀHd at the step's start, from the gradients along the step
    sharp_allocations: FloatArray  # (K', k) to each eigenvector
    sharp_updates: FloatArray  # (K', k) c_i = v_i·d
    sharp_gradients: FloatArray  # (K', k) γ_i = v_i·∇L at the step's start
    band_allocations: FloatArray  # (K', B)
    band_energies: FloatArray  # (K', B) ‖P_b d‖²
    seconds: float
    # What falls to the flat complement by band, ḡ_flat the mean gradient's part there, and what the effective learning
    # rates of bands are made of; empty in results without them.
    band_flat_allocations: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))  # (K', B) P_b d·ḡ_flat
    band_slopes: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))  # (K', B) P_b d · P_b ∇L at the start
    band_gradient_energies: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))  # (K', B) ‖P_b ∇L‖² there
    # The same on the batches that the eigenvectors were measured on, where the evaluation set is another; else empty.
    same_batch_losses: FloatArray = field(default_factory=lambda: np.zeros(0))  # (K' + 1,)
    same_batch_allocations: FloatArray = field(default_factory=lambda: np.zeros(0))  # (K',)
    same_batch_closure_errors: FloatArray = field(default_factory=lambda: np.zeros(0))  # (K',)
    same_batch_gradients_used: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # (K',)
    same_batch_sharp_allocations: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))  # (K', k)

    # Losses by the quadratic model at θ₀, where it was asked for; else empty.
    logged_steps: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # (T,) completed
    predicted_losses: FloatArray = field(default_factory=lambda: np.zeros(0))  # (T,) L̂ after these
    loss_noise: float = 0.0  # nats, below which a miss is rounding

    def __post_init__(self) -> None:
        """Check shapes; freeze the arrays."""
        steps = len(self.train_losses)
        logged = self.logged_steps
        if len(logged) != len(self.predicted_losses):
            raise ValueError(f"expected {len(logged)} predicted losses, got {len(self.predicted_losses)}")
        if len(logged) and not (logged[0] > 0 and logged[-1] <= steps and bool((np.diff(logged) > 0).all())):
            raise ValueError(f"expected ascending logged steps from 1 to {steps}, got {logged.tolist()}")
        if len(self.losses) != steps + 1:
            raise ValueError(f"expected {steps + 1} evaluation losses, got {len(self.losses)}")
        for name in self.__slots__:
            array = getattr(self, name)
            if isinstance(array, np.ndarray):
                if name not in ("logged_steps", "predicted_losses") and len(array) not in (steps, steps + 1, 0):
                    raise ValueError(f"expected {steps} steps of {name}, got {len(array)}")
                array.setflags(write=False)

    @property
    def num_steps(self) -> int:
        """Steps that were completed."""
        return len(self.train_losses)

    @property
    def is_recorded(self) -> bool:
        """Whether progress per direction was recorded."""
        return len(self.allocations) == self.num_steps and self.num_steps > 0

    @property
    def loss_change(self) -> float:
        """L(θ_K) − L(θ₀) on the evaluation set."""
        return float(self.losses[-1] - self.losses[0])

    def on_same_batches(self) -> "ReplayRun":
        """Return the run with the losses and allocations of the batches that the eigenvectors were measured on.

        Bands have none there, nor has the quadratic model; what is not a loss or an allocation stays.
        """
        return replace(
            self,
            losses=self.same_batch_losses,
            allocations=self.same_batch_allocations,
            closure_errors=self.same_batch_closure_errors,
            gradients_used=self.same_batch_gradients_used,
            sharp_allocations=self.same_batch_sharp_allocations,
            band_allocations=self.band_allocations[:0],
            band_flat_allocations=self.band_flat_allocations[:0],
            logged_steps=self.logged_steps[:0],
            predicted_losses=self.predicted_losses[:0],
        )

    @property
    def closure_error(self) -> float:
        """|Σ allocations − ΔL| over the whole run."""
        return abs(float(self.closure_errors.sum()))

    @property
    def most_gradients_used(self) -> NDArray[np.int64]:
        """(K',) gradients behind each step's rule, on the set of batches that took the most."""
        same = self.same_batch_gradients_used
        return np.maximum(self.gradients_used, same) if len(same) else self.gradients_used

    @property
    def flat_allocations(self) -> FloatArray:
        """(K',) loss change allotted to the complement of the sharp subspace."""
        return np.asarray(self.allocations - self.sharp_allocations.sum(axis=1))

    @property
    def effective_lrs(self) -> FloatArray:
        """(k,) η_i = −Σ_t c_i γ_i / Σ_t γ_i²; 0 where the gradient has no such component."""
        squares = (self.sharp_gradients**2).sum(axis=0)
        products = -(self.sharp_updates * self.sharp_gradients).sum(axis=0)
        return np.asarray(np.divide(products, squares, out=np.zeros_like(squares), where=squares > 0))

    @property
    def band_effective_lrs(self) -> FloatArray:
        """(B,) η_b = −Σ_t P_b d·P_b g / Σ_t‖P_b g‖²; 0 where the gradient has no part there."""
        squares, products = self.band_gradient_energies.sum(axis=0), -self.band_slopes.sum(axis=0)
        return np.asarray(np.divide(products, squares, out=np.zeros_like(squares), where=squares > 0))

    @property
    def oscillations(self) -> FloatArray:
        """(k,) 1 − |Σ_t c_i|/Σ_t|c_i|: 0 along a straight path, 1 where nothing is left of the way."""
        lengths = np.abs(self.sharp_updates).sum(axis=0)
        straight = np.abs(self.sharp_updates.sum(axis=0))
        return np.asarray(1.0 - np.divide(straight, lengths, out=np.zeros_like(lengths), where=lengths > 0))

    @property
    def directional_sharpness(self) -> FloatArray:
        """(K',) NDS = dᵀHd/‖d‖², loss/param²."""
        squares = self.update_norms**2
        return np.asarray(np.divide(self.curvatures, squares, out=np.zeros_like(squares), where=squares > 0))

    @property
    def directional_edge_ratios(self) -> FloatArray:
        """(K',) dᵀHd/(−g·d) at each step's start; NaN where the step does not descend.

        In multiples of the step the quadratic model's optimum is at 1/ratio and its edge at 2/ratio: above 2 the step
        raises the loss.
        """
        descents = -self.slopes
        return np.asarray(
            np.divide(self.curvatures, descents, out=np.full_like(descents, np.nan), where=descents > 0.0)
        )

    @property
    def predicted_changes(self) -> FloatArray:
        """(K',) g·d + ½dᵀHd."""
        return np.asarray(self.slopes + 0.5 * self.curvatures)

    @property
    def model_missed(self) -> NDArray[np.bool_]:
        """(T,) whether the quadratic model misses a tenth of the loss change, and more than rounding."""
        losses = self.losses[self.logged_steps]
        allowed = np.maximum(HORIZON_SHARE * np.abs(losses - self.losses[0]), self.loss_noise)
        return np.asarray(np.abs(self.predicted_losses - losses) > allowed)

    @property
    def horizon(self) -> Horizon | None:
        """Between which logged steps the quadratic model begins to miss; None where it was not asked."""
        if not len(self.logged_steps):
            return None
        steps, missed = self.logged_steps.tolist(), np.flatnonzero(self.model_missed)
        if not len(missed):
            return Horizon(low=steps[-1], high=None)
        first = int(missed[0])
        return Horizon(low=steps[first - 1] if first else 0, high=steps[first])

    @property
    def decay_rates(self) -> FloatArray:
        """(k,) measured factor per step by which |γ_i| shrinks: exp of the slope of log|γ_i| against the step."""
        if len(self.sharp_gradients) < 3:
            return np.ones(self.sharp_gradients.shape[1])
        sizes = np.log(np.maximum(np.abs(self.sharp_gradients), 1e-300))
        return np.asarray(np.exp(np.polyfit(np.arange(len(sizes)), sizes, 1)[0]))

    def band_isotropy(self, dimensions: NDArray[np.int64]) -> FloatArray:
        """(B,) share of Σ_t‖d_t‖² per band over the band's share of all dimensions; 1 everywhere is isotropic."""
        energies = self.band_energies.sum(axis=0)
        total = energies.sum()
        return np.asarray(energies / total / (dimensions / dimensions.sum())) if total > 0 else np.zeros_like(energies)

    def isotropy_entropy(self, dimensions: NDArray[np.int64]) -> float:
        """Return how evenly the update is spread over all dimensions: 1 is isotropic, less is concentrated.

        exp of minus the Kullback–Leibler divergence of the energy shares from the bands' shares of dimensions: the
        share of directions that would carry the update if it were even within them.
        """
        spread = self.band_isotropy(dimensions)
        shares = dimensions / dimensions.sum()
        positive = spread > 0
        divergence = float((shares * spread)[positive] @ np.log(spread[positive]))
        return float(np.exp(-divergence)) if positive.any() else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTheory:
    """What the linear theory says of one optimizer along each eigenvector, its preconditioner held fixed at θ₀."""

    effective_lrs: FloatArray  # (k,) v_iᵀ(ηF⁻¹)v_i
    rates: FloatArray  # (k,) factor per step


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The same segment under several optimizers."""

    steps: int  # K
    ramp: int = 0  # R, of the steps, those over which the learning rate rose
    num_seeds: int
    rule: str  # "simpson" or "trapezoid"
    tolerance: float  # of a step's closure error, above which Simpson's rule is refined
    start_loss: float  # on the evaluation set at θ₀, nats
    eigenvalues: FloatArray  # (k,) of the sharp subspace, descending, loss/param²
    eigenvalue_errors: FloatArray  # (k,) residual norms
    num_parameters: int
    bands: Bands
    recipes: Mapping[str, Recipe]  # by optimizer, in the order asked for
    sweeps: Mapping[str, Sweep]  # by optimizer; only those that were swept
    theory: Mapping[str, LinearTheory]  # by optimizer
    runs: tuple[ReplayRun, ...]
    landscape: Landscape | None = None  # the loss around θ₀, where it was asked for
    config: Mapping[str, object]
    fingerprint: str
    notes: tuple[Note, ...] = ()
    provenance: Provenance

    @property
    def rounding(self) -> float:
        """The least difference of two losses that is more than rounding, nats: ε·|L(θ₀)|.

        ε is float64's where the model is in it, else float32's: lower precisions have their losses computed in that.
        """
        kind = np.float64 if self.provenance.precision == "float64" else np.float32
        return float(np.finfo(kind).eps) * abs(self.start_loss)

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Names in the order asked for."""
        return tuple(self.recipes)

    @property
    def ablations(self) -> tuple[str, ...]:
        """Ablations that were run: "dominant", "bulk"."""
        return tuple(dict.fromkeys(run.ablation for run in self.runs if run.ablation != "none"))

    def on_same_batches(self) -> "Replay | None":
        """Return the replay as the batches that the eigenvectors were measured on have it; None where no others are.

        Losses and allocations are theirs, so that whatever is made of those is.
        """
        if not self.runs or not all(len(run.same_batch_losses) for run in self.runs):
            return None
        runs = tuple(run.on_same_batches() for run in self.runs)
        return replace(self, runs=runs, start_loss=float(runs[0].losses[0]))

    def runs_of(self, optimizer: str, ablation: str = "none") -> tuple[ReplayRun, ...]:
        """Return one optimizer's runs that reached the end, by seed."""
        return tuple(
            run
            for run in self.runs
            if run.optimizer == optimizer and run.ablation == ablation and run.diverged_at is None
        )

    def diverged(self, optimizer: str, ablation: str = "none") -> tuple[ReplayRun, ...]:
        """Return one optimizer's runs that diverged."""
        return tuple(
            run
            for run in self.runs
            if run.optimizer == optimizer and run.ablation == ablation and run.diverged_at is not None
        )

    def loss_change(self, optimizer: str, ablation: str = "none", part: Part = "whole") -> Estimate | None:
        """ΔL over the segment or a part of it, mean over seeds; None where no run reached the end."""
        if part not in self.parts:
            return None
        start, stop = {"whole": (0, -1), "ramp": (0, self.ramp), "after": (self.ramp, -1)}[part]
        return _mean([float(run.losses[stop] - run.losses[start]) for run in self.runs_of(optimizer, ablation)])

    def difference(
        self, optimizer: str, other: str, ablation: str = "none", other_ablation: str = "none"
    ) -> Estimate | None:
        """Final loss of one minus that of another, paired by seed; None without a seed that both finished."""
        return _mean(self._paired(optimizer, other, ablation, other_ablation, lambda run: run.loss_change))

    def flat_progress(self, optimizer: str, part: Part = "whole") -> Estimate | None:
        """−Σ_t of the allocation to the complement of the sharp subspace over a part's steps, nats."""
        if part not in self.parts:
            return None
        steps = self._steps(part)
        return _mean([-float(run.flat_allocations[steps].sum()) for run in self._recorded(optimizer)])

    def sharp_progress(self, optimizer: str, part: Part = "whole") -> Estimate | None:
        """−Σ_t of the allocation to the sharp subspace over a part's steps, nats."""
        if part not in self.parts:
            return None
        steps = self._steps(part)
        return _mean([-float(run.sharp_allocations[steps].sum()) for run in self._recorded(optimizer)])

    def flat_share(self, optimizer: str) -> Estimate | None:
        """Share of the loss change allotted to the flat complement; above 1 where the sharp part raised the loss."""
        return _mean([float(run.flat_allocations.sum() / run.allocations.sum()) for run in self._recorded(optimizer)])

    def flat_difference(self, optimizer: str, other: str) -> Estimate | None:
        """Flat progress of one minus that of another, paired by seed, nats."""
        return _mean(self._paired(optimizer, other, "none", "none", lambda run: -float(run.flat_allocations.sum())))

    def sharp_difference(self, optimizer: str, other: str) -> Estimate | None:
        """Sharp progress of one minus that of another, paired by seed, nats."""
        return _mean(self._paired(optimizer, other, "none", "none", lambda run: -float(run.sharp_allocations.sum())))

    def eigenvector_progress(self, optimizer: str) -> Means | None:
        """Return −Σ_t A_i along each eigenvector, mean over seeds, and its standard error: (k,) and (k,), nats."""
        return _means([-run.sharp_allocations.sum(axis=0) for run in self._recorded(optimizer)])

    def band_progress(self, optimizer: str) -> Means | None:
        """Return −Σ_t A_b in each band, mean over seeds, and its standard error: (B,) and (B,), nats."""
        return _means([-run.band_allocations.sum(axis=0) for run in self._recorded(optimizer)])

    def band_isotropy(self, optimizer: str) -> Means | None:
        """Return the update's energy per dimension in each band over the mean, and its standard error."""
        return _means([run.band_isotropy(self.bands.dimensions) for run in self._recorded(optimizer)])

    def isotropy_entropy(self, optimizer: str) -> Estimate | None:
        """How evenly the updates are spread, in (0, 1]; see `ReplayRun.isotropy_entropy`."""
        return _mean([run.isotropy_entropy(self.bands.dimensions) for run in self._recorded(optimizer)])

    def effective_lrs(self, optimizer: str) -> Means | None:
        """Return η_i along each eigenvector, mean over seeds, and its standard error: (k,) and (k,)."""
        return _means([run.effective_lrs for run in self._recorded(optimizer)])

    def band_effective_lrs(self, optimizer: str) -> Means | None:
        """Return η_b in each band, mean over seeds, and its standard error: (B,) and (B,); None where not recorded."""
        runs = self._recorded(optimizer)
        return _means([run.band_effective_lrs for run in runs]) if all(len(run.band_slopes) for run in runs) else None

    @property
    def curved_bands(self) -> NDArray[np.bool_]:
        """(B,) whether a band's mean curvature is above zero beyond its 95% interval; none where not measured."""
        bands = self.bands
        return np.asarray(bands.curvatures > bands.curvature_halves) if bands.num_probes > 1 else np.zeros(0, bool)

    def wide_exponent(self, optimizer: str) -> Estimate | None:
        """Fit a of η ∝ κ^(−a) over eigenvectors and curved bands, per seed.

        Otherwise as `exponent`; None also where bands have no curvatures or rates.
        """
        curved = self.curved_bands
        runs = self._recorded(optimizer)
        if not curved.any() or not all(len(run.band_slopes) for run in runs):
            return None
        curvatures = np.append(self.eigenvalues, self.bands.curvatures[curved])
        fits = [_power(curvatures, np.append(run.effective_lrs, run.band_effective_lrs[curved])) for run in runs]
        return _mean([-fit for fit in fits if fit is not None])

    def oscillation(self, optimizer: str) -> Means | None:
        """Return the oscillation along each eigenvector, mean over seeds, and its standard error."""
        return _means([run.oscillations for run in self._recorded(optimizer)])

    def decay_rates(self, optimizer: str) -> Means | None:
        """Return the measured factor per step of |γ_i|, mean over seeds, and its standard error."""
        return _means([run.decay_rates for run in self._recorded(optimizer)])

    def directional_sharpness(self, optimizer: str) -> Estimate | None:
        """NDS, mean over steps and then over seeds, loss/param²."""
        return _mean([float(run.directional_sharpness.mean()) for run in self._recorded(optimizer)])

    def directional_edge_ratio(self, optimizer: str) -> Estimate | None:
        """Σ dᵀHd over Σ(−g·d), of the steps after the ramp, mean over seeds; see `ReplayRun.directional_edge_ratios`.

        Above 2 the quadratic model of each step has the steps raise the loss. None where Σ(−g·d) of a seed is not
        positive: leaving that seed out would flatter the rest.
        """
        steps = self._steps("after" if "after" in self.parts else "whole")
        runs = self._recorded(optimizer)
        descents = [-float(run.slopes[steps].sum()) for run in runs]
        if not all(descent > 0.0 for descent in descents):
            return None
        bends = [float(run.curvatures[steps].sum()) for run in runs]
        return _mean([bend / descent for bend, descent in zip(bends, descents, strict=True)])

    def directional_edge_curve(self, optimizer: str) -> FloatArray | None:
        """(K,) the same of each step, both sums over seeds; NaN where the seeds' steps do not descend together."""
        runs = self._recorded(optimizer)
        if not runs:
            return None
        descents = -np.sum([run.slopes for run in runs], axis=0)
        bends = np.sum([run.curvatures for run in runs], axis=0)
        return np.asarray(np.divide(bends, descents, out=np.full_like(descents, np.nan), where=descents > 0.0))

    def steps_past_edge(self, optimizer: str) -> int | None:
        """Steps that the quadratic model has raise the loss, Σ(g·d + ½dᵀHd) over seeds above zero."""
        runs = self._recorded(optimizer)
        return int((np.sum([run.predicted_changes for run in runs], axis=0) > 0.0).sum()) if runs else None

    def horizons(self, optimizer: str) -> tuple[Horizon, ...]:
        """Return for how many steps θ₀'s curvature predicts the loss, by seed, of runs that diverged too."""
        return tuple(found for run in self._whole(optimizer) if (found := run.horizon) is not None)

    def modelled_changes(self, optimizer: str) -> tuple[ModelledChange, ...]:
        """Return loss changes beside those of the quadratic model at θ₀, by logged step."""
        runs = self._whole(optimizer)
        steps = sorted({int(step) for run in runs for step in run.logged_steps})
        return tuple(_modelled_change(step, [run for run in runs if step in run.logged_steps]) for step in steps)

    def exponent(self, optimizer: str) -> Estimate | None:
        """Fit a of η_i ∝ λ_i^(−a) over eigenvectors with positive λ_i, per seed; 0 is gradient descent, 1 Newton.

        None where η_i is positive along fewer than three of them or four fifths: it is noise then, not a power.
        """
        fits = [_power(self.eigenvalues, run.effective_lrs) for run in self._recorded(optimizer)]
        return _mean([-fit for fit in fits if fit is not None])

    def closure(self, optimizer: str) -> float | None:
        """The largest |Σ allocations − ΔL|/|ΔL| over seeds."""
        runs = [run for run in self._recorded(optimizer) if run.loss_change]
        return max((run.closure_error / abs(run.loss_change) for run in runs), default=None)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the segment: the whole, and the ramp and what comes after it where there are both."""
        return ("whole", "ramp", "after") if 0 < self.ramp < self.steps else ("whole",)

    def _steps(self, part: Part) -> slice:
        return {"whole": slice(None), "ramp": slice(self.ramp), "after": slice(self.ramp, None)}[part]

    def _whole(self, optimizer: str) -> list[ReplayRun]:
        return [run for run in self.runs if run.optimizer == optimizer and run.ablation == "none"]

    def _recorded(self, optimizer: str) -> list[ReplayRun]:
        return [run for run in self.runs_of(optimizer) if run.is_recorded]

    def _paired(
        self, optimizer: str, other: str, ablation: str, other_ablation: str, value: Callable[[ReplayRun], float]
    ) -> list[float]:
        first = {run.seed: run for run in self.runs_of(optimizer, ablation)}
        second = {run.seed: run for run in self.runs_of(other, other_ablation)}
        return [value(first[seed]) - value(second[seed]) for seed in sorted(first.keys() & second.keys())]


def base_name(name: str) -> str:
    """Return the optimizer that a LITE variant is a variant of, SAMuon among them; another's name is its own.

    Variants may have a label, as in muon-lite@mild.
    """
    plain = name.partition("@")[0]
    if plain == "samuon":
        return "muon"
    return plain.removesuffix("-lite") if plain.endswith("-lite") else name


def _modelled_change(step: int, runs: list[ReplayRun]) -> ModelledChange:
    """Return what came of some runs, and was predicted, up to a step that all of them logged."""
    places = [int(np.searchsorted(run.logged_steps, step)) for run in runs]
    changes = [float(run.losses[step] - run.losses[0]) for run in runs]
    predicted = [float(run.predicted_losses[at] - run.losses[0]) for run, at in zip(runs, places, strict=True)]
    size = sum(map(abs, changes))
    missing = sum(abs(one - other) for one, other in zip(predicted, changes, strict=True))
    return ModelledChange(
        step=step,
        change=_estimate(changes),
        predicted=_estimate(predicted),
        miss=missing / size if size > sum(run.loss_noise for run in runs) else None,
        missed=sum(bool(run.model_missed[at]) for run, at in zip(runs, places, strict=True)),
        count=len(runs),
    )


def _mean(samples: list[float]) -> Estimate | None:
    """Return the mean with its error; None without a sample."""
    return _estimate(samples) if samples else None


def _estimate(samples: list[float]) -> Estimate:
    """Return the mean with its error; one sample alone has none, which its `num_samples` of 1 tells."""
    if len(samples) == 1:
        value = samples[0]
        return Estimate(value=value, stderr=0.0, low=value, high=value, num_samples=1)
    return Estimate.from_samples(np.array(samples))


def _means(samples: list[FloatArray]) -> Means | None:
    """Return mean and standard error over seeds, entry by entry; None without a seed."""
    if not samples:
        return None
    stacked = np.stack(samples)
    if len(stacked) == 1:
        return stacked[0], None
    return stacked.mean(axis=0), stacked.std(axis=0, ddof=1) / np.sqrt(len(stacked))


def _power(curvatures: FloatArray, rates: FloatArray) -> float | None:
    """Return the least-squares slope of log rate against log curvature; None where too few rates are positive."""
    sharp = curvatures > 0
    positive = sharp & (rates > 0)
    if positive.sum() < max(3.0, _LEAST_POSITIVE * sharp.sum()):
        return None
    return float(np.polyfit(np.log(curvatures[positive]), np.log(rates[positive]), 1)[0])
