"""The sharp subspace of a checkpoint and LITE's proxies of it, measured together and resumable part by part."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from lite_probe.errors import InputError, UsageError
from lite_probe.measurements.base import OnEvent, Outcome, Plan, spectrum_of
from lite_probe.measurements.requests import OnProgress, takes
from lite_probe.measurements.requests.spectrum import SpectrumRequest
from lite_probe.measurements.requests.subspace import SubspaceRequest
from lite_probe.measurements.spectrum import SpectrumPlan
from lite_probe.operators.base import SymmetricOperator
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.optim import OPTIMIZERS, Directions, default_proxies
from lite_probe.results.estimate import Estimate
from lite_probe.results.provenance import Note
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum
from lite_probe.results.store import register
from lite_probe.results.subspace import (
    NormSharpness,
    Overlap,
    ProxyCalibration,
    SubspaceMeasurement,
    root_mean_square_condition,
)
from lite_probe.runtime.fingerprint import batches_digest
from lite_probe.runtime.memory import (
    MemoryLayout,
    free_memory,
    memory_allowed,
    memory_in_use,
    peak_during,
    require_memory,
    return_freed_memory,
)
from lite_probe.runtime.resumable import Begun, ResumableRun
from lite_probe.runtime.timing import timed
from lite_probe.seeds import derive_seed
from lite_probe.spectra.compatibility import require_same_task
from lite_probe.spectra.costs import scratch_bytes
from lite_probe.spectra.operator import OperatorMeasurement, OperatorRequest
from lite_probe.spectra.state import SavedState
from lite_probe.steps.norms import UnitBall, sharpness_in_norm, unit_ball
from lite_probe.subspaces.bands import cut_bands
from lite_probe.subspaces.calibration import Proxy, Samples, calibrate, rest_of
from lite_probe.subspaces.footprints import Footprint, StepSeconds, footprint_of, time_steps
from lite_probe.subspaces.overlap import (
    expected_products,
    halves,
    overlap_of,
    random_energy_share,
    sharp_subspace,
)
from lite_probe.subspaces.preconditioned import PreconditionedOperator
from lite_probe.subspaces.subspace import Subspace
from lite_probe.subspaces.warming import can_take, optimizer_of, own_gradients, set_gradients, warm
from lite_probe.task import Batch, Task
from lite_probe.task.batches import with_rows
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.random import random_vector
from lite_probe.vectors.reductions import norm

Kept = TypeVar("Kept")

_PROBES_PER_TAIL_PROBE = 4  # a tail probe is so much quieter that a quarter of them will do
# The spectrum in a metric: λ₁, and few steps of some probes for tr H² and the quantiles; two have no error to speak of.
_METRIC = OperatorRequest(top=1, bottom=0, probes=5, probe_steps=4, tolerance=1e-2)
# The same without a group of the warm-up batches. λ₁ is known to the square of its residual.
_LEFT_OUT = OperatorRequest(top=1, bottom=0, probes=2, probe_steps=1, tolerance=0.1)
_LEFT_OUT_PRODUCTS = 10  # that it takes, on trained language models
_GROUPS = 4
# Sharpness in an optimizer's own norm: from the gradient, the leading eigenvector, and at random. Four to five products
# bring most ascents on trained language models within a percent or two of where they end.
_RANDOM_STARTS = 1
_ASCENT_PRODUCTS = 5
_NORM_PRODUCTS = 13  # that all ascents together take there, some ending earlier
_ASCENT_VECTORS = 6
_WARM_VECTORS = 3  # while states are warmed: the evaluation gradient, the parameters' copy, a batch's gradient
_PROBE_VECTORS = 2  # a probe, and what is left of its product
_WORDS = {"all": "", "directions": ", optimizers warmed one after another", "one": ", one optimizer after another"}
_SHARE_FOR_VECTORS = 4  # one part in so many of --memory is for the spectrum's eigenvectors


# What is there of the optimizers at once: all states and directions; one state after another, and all directions; or
# one optimizer after another, each with probes of its own.
AtOnce = Literal["all", "directions", "one"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probes:
    """The calibration's samples as they wait on disk, (probes so far, ·) by optimizer; see `Samples`."""

    fingerprint: str
    bands: Mapping[str, NDArray[np.float64]]
    sharp: Mapping[str, NDArray[np.float64]]
    flat: Mapping[str, NDArray[np.float64]]
    tail: Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedHalf:
    """The sharp subspace of one half of the batches, until the other's is there too."""

    fingerprint: str
    eigenvalues: NDArray[np.float64]
    residual_norms: NDArray[np.float64]
    vectors: NDArray[np.float32]  # (k, N)
    num_hvps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedOverlap:
    """A finished comparison; `overlap` is None where the batches could not be divided."""

    fingerprint: str
    overlap: Overlap | None
    num_hvps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedMetric:
    """A finished spectrum in an optimizer's metric."""

    fingerprint: str
    spectrum: OperatorSpectrum
    bounded_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedNorm:
    """The finished sharpness in an optimizer's own norm."""

    fingerprint: str
    sharpness: NormSharpness


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedGroup:
    """λ₁ over the root mean square λ in each metric, without a group of the warm-up batches."""

    fingerprint: str
    conditions: Mapping[str, float]
    num_hvps: int


register("subspace-probes", _Probes, schema_version=1)
register("subspace-half", _FinishedHalf, schema_version=1)
register("subspace-overlap", _FinishedOverlap, schema_version=1)
register("subspace-metric", _FinishedMetric, schema_version=1)
register("subspace-norm", _FinishedNorm, schema_version=1)
register("subspace-group", _FinishedGroup, schema_version=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun(Begun):
    """What an interrupted measurement keeps to."""

    layout: MemoryLayout
    at_once: AtOnce


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What a plan rests on, however it is laid out in memory.

    Attributes:
        curvature: Products, the Krylov basis and two probes, as a spectrum.
        held: Beside them.
        train_seconds: A gradient of a training batch.
        train_peak: Bytes in use meanwhile.
        steps: Of every optimizer.
    """

    curvature: SpectrumPlan
    held: "_Held"
    train_seconds: float
    train_peak: int
    steps: Mapping[str, StepSeconds]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubspacePlan(Plan[SubspaceMeasurement]):
    """What a measurement will do, and what that takes."""

    begun: ClassVar[type[Begun] | None] = _Begun
    shown: ClassVar[tuple[str, ...]] = (
        *("size", "num_parameters", "num_hvps", "num_gradients", "seconds", "memory_bytes", "most_memory_bytes"),
        *("scratch_bytes", "fingerprint"),
    )

    request: SubspaceRequest
    size: int  # k
    num_hvps: int  # expected
    num_gradients: int  # expected
    layout: MemoryLayout
    at_once: AtOnce
    halves_on_disk: bool  # the sharp subspace of one half of the batches, while the other's is measured
    ground: _Ground
    loss: float
    count: int  # tokens or samples behind the loss

    @classmethod
    def vet(cls, request: SubspaceRequest) -> None:
        """Refuse optimizers that are unknown, or named twice.

        Raises:
            UsageError: If there are some.
        """
        names = request.optimizers
        if names is not None and (
            any(name not in OPTIMIZERS for name in names) or not names or len({*names}) < len(names)
        ):
            raise UsageError(f"expected optimizers among {', '.join(OPTIMIZERS)}, each once, got {', '.join(names)}")

    @classmethod
    def checked(cls, task: Task, request: SubspaceRequest) -> SubspaceRequest:
        """Refuse what cannot be measured; settle the optimizers and, once there is a spectrum, the directions.

        Raises:
            UsageError: An unknown optimizer, more directions than the spectrum has.
            InputError: No training batches, an optimizer that cannot take the model (any that was asked for, else
                AdamW's), a spectrum of something else, another checkpoint of other parameters.
        """
        cls.vet(request)
        if len(task.train) < 2:
            raise InputError(
                f"expected at least 2 training batches to warm optimizer states on, got {len(task.train)}",
                "give the task training batches: make_task(train_batches=50)",
            )
        for name in request.optimizers if request.optimizers is not None else default_proxies()[:1]:
            optimizer_of(task, name)
        names = request.optimizers or [name for name in default_proxies() if can_take(name, task)]
        request = replace(request, optimizers=tuple(names))
        if request.spectrum is None:
            return request
        require_same_task(request.spectrum, task)
        for name, other in request.others:
            _require_comparable(name, other, request.spectrum, task)
        size = Subspace.of_spectrum(request.spectrum, task, size=request.size, memory=0).size
        return replace(request, size=size)

    @classmethod
    def identity(cls, task: Task, request: SubspaceRequest) -> Mapping[str, Any]:
        """Return the batches to warm on, and the spectra."""
        return {
            "warm": batches_digest(_warm_batches(task, request)),
            "spectrum": spectrum_of(request).fingerprint,
            "others": [[name, other.fingerprint] for name, other in request.others],
        }

    @classmethod
    def of(cls, task: Task, request: SubspaceRequest, on_progress: OnProgress | None) -> "SubspacePlan":
        """Decide how to measure, and how much of the optimizers is held at once.

        Raises:
            UsageError: Too little memory for one optimizer at a time.

        Cost: two gradients and one of a training batch, one graph and two products; two or three steps of each
            optimizer on a matrix of each shape.
        """
        spectrum, size, names = spectrum_of(request), request.size or 0, request.optimizers or ()
        itemsize = next(task.model.parameters()).element_size()
        held = _Held(task, request, itemsize, {name: footprint_of(task, name) for name in names})
        held.require_room()
        warm, train_seconds, train_peak = _warm_batches(task, request), [0.0], 0
        with preserve_state(task.model):
            train_peak = peak_during(task.device, lambda: train_seconds.append(_time_gradient(task, warm[0])))
        ways = task.ranks.once(partial(held.ways, train_peak))
        for at_once in ways:
            memory = held.allowed - held.beside_products(at_once)
            asked = SpectrumRequest(
                products="float32", top=size, bottom=0, probes=2, probe_steps=2, seed=request.seed, memory=memory
            )
            try:
                curvature = SpectrumPlan.of(task, asked.checked(task), on_progress)
                break
            except UsageError:
                if at_once == ways[-1]:
                    raise
        require_same_task(spectrum, task, loss=curvature.loss)
        ground = _Ground(
            curvature=curvature,
            held=held,
            train_seconds=train_seconds[-1],
            train_peak=train_peak,
            steps={name: time_steps(task, name) for name in names},
        )
        return cls(
            request=request,
            size=size,
            num_parameters=curvature.num_parameters,
            halves_on_disk=held.halves_on_disk,
            loss=curvature.loss,
            count=curvature.count,
            ground=ground,
            fingerprint=cls.key(task, request, spectrum.loss),
            **_figures(task, request, ground, at_once),
        )

    def laid_out_as(self, task: Task, begun: _Begun) -> "SubspacePlan":
        """Return the plan in the layout that an interrupted run began with."""
        curvature = self.ground.curvature
        ground = replace(self.ground, curvature=curvature.laid_out(task, begun.layout, curvature.multiplication))
        return replace(self, ground=ground, **_figures(task, self.request, ground, begun.at_once))

    def summary(self) -> str:
        """Return the plan as one line for people."""
        return (
            f"{self.size} sharp directions, ~{self.num_hvps} Hessian products and {self.num_gradients} gradients, "
            f"{self.time_and_memory}{_WORDS[self.at_once]}"
        )

    def measure(self, task: Task, run: ResumableRun, on_event: OnEvent | None) -> Outcome:
        """Measure part after part: what needs the optimizers' states first, then the overlaps."""
        session = _Session(task, self, run)
        session.run()
        return Outcome(
            fields={
                "size": self.size,
                "num_parameters": self.num_parameters,
                "spectrum": session.spectrum.whole,
                "loss": self.loss,
                "gradient_norm": session.gradient_norm,
                "gradient_share": session.gradient_share,
                "batch_gradient_share": Estimate.from_samples(np.array(session.batch_shares)),
                "random_share": session.random_share,
                "overlaps": tuple(session.overlaps),
                "calibrations": session.calibrations,
                "num_probes": self.request.probes,
                "num_warm_batches": len(session.warm),
                "num_hvps": sum(session.products.values()),
                "hvps_by_part": session.products,
            },
            count=self.count,
            notes=session.notes,
            details={"spectrum": session.spectrum.fingerprint, "warm-up batches": batches_digest(session.warm)},
        )


def _figures(task: Task, request: SubspaceRequest, ground: _Ground, at_once: AtOnce) -> dict[str, Any]:
    """Return what a plan says of how its curvature is laid out, and of how much of the optimizers there is at once."""
    curvature, held, names = ground.curvature, ground.held, request.optimizers or ()
    products = _products(request, at_once)
    per_product = curvature.seconds / curvature.num_hvps
    warmed = len(_warm_batches(task, request))
    times = min(_GROUPS, warmed) if request.preconditioned else 1
    gradients = warmed * times * (1 if at_once == "all" else len(names)) + 1
    # Half of the batches cost half.
    seconds = (sum(products.values()) - 0.5 * products.get("overlap of halves", 0)) * per_product
    seconds += gradients * ground.train_seconds
    for steps in ground.steps.values():
        seconds += warmed * times * steps.usual + (1 + times * (times > 1)) * max(steps.first - steps.usual, 0.0)
    warming = held.warming(at_once, ground.train_peak)
    return {
        "num_hvps": sum(products.values()),
        "num_gradients": gradients,
        "seconds": seconds,
        "memory_bytes": max(warming, _peak(request, curvature, held, at_once)),
        "most_memory_bytes": max(warming, _peak(request, curvature, held, at_once, is_full=True)),
        "layout": curvature.layout,
        "at_once": at_once,
        "scratch_bytes": _scratch_bytes(request, curvature, held.vector),
    }


def _require_comparable(name: str, other: Spectrum, spectrum: Spectrum, task: Task) -> None:
    """Refuse to compare with the spectrum of another model, or with one that has no sharp directions."""
    if other.whole.num_parameters != spectrum.whole.num_parameters:
        raise InputError(
            f"expected checkpoints of {spectrum.whole.num_parameters:,} parameters to compare with, got {name} "
            f"with {other.whole.num_parameters:,}",
            "compare checkpoints of one model",
        )
    try:
        _sharp_pairs(other, task)
    except InputError as error:
        raise InputError(f"{name}: {error.message}", error.hint, error.sample) from error


def _for_vectors(memory: int | None) -> int | None:
    """Return the bytes that the spectrum's eigenvectors may take; None leaves it to `Subspace`."""
    return None if memory is None else memory // _SHARE_FOR_VECTORS


class _Held:
    """What is held beside graphs and Krylov vectors, bytes, by how much of the optimizers there is at once.

    Args:
        task: Of the parameters.
        request: What is measured.
        itemsize: Of a parameter.
        footprints: Of every optimizer.
    """

    def __init__(
        self, task: Task, request: SubspaceRequest, itemsize: int, footprints: Mapping[str, Footprint]
    ) -> None:
        whole = spectrum_of(request).whole
        size, wanted = whole.num_parameters, request.size or 0
        limit = _for_vectors(request.memory)
        pairs = int(np.count_nonzero(np.append(whole.converged, whole.lower_converged)))
        held = int(free_memory(task.device) // 4) if limit is None else limit
        self._footprints = footprints
        self.vector = itemsize * size
        self._gradient = self.vector if request.preconditioned else 0
        self._sharp, self._pairs = (4 * size * count if 4 * size * count <= held else 0 for count in (wanted, pairs))
        self._halves = 2 * 4 * size * wanted if request.overlaps else 0
        self._in_use = memory_in_use(task.device)
        self.allowed = task.ranks.least(memory_allowed(task.device, request.memory, task.ranks.on_host))
        # The shortest basis with its probes.
        self._shortest = (wanted + max(8, wanted // 2) + _PROBE_VECTORS) * self.vector
        self.halves_on_disk = self._in_use + self._sharp + self._halves + self._shortest > self.allowed
        if self.halves_on_disk:
            self._halves = 0

    def require_room(self) -> None:
        """Refuse what does not fit even for one optimizer at a time, before anything is computed.

        Raises:
            UsageError: If it does not.
        """
        least = max(self.warming("one", self._in_use), self._in_use + self.beside_products("one"))
        names = ", ".join(self._footprints)
        purpose = f"the states of {names}, one at a time, and the eigenvectors"
        require_memory(least, self.allowed, purpose, "from Python, measure_subspace(optimizers=…) can leave some out")

    def ways(self, train_peak: int) -> list[AtOnce]:
        """Return what may be tried, the quickest first: what is warmed must fit, and leave room for a short basis."""
        tried: tuple[AtOnce, ...] = ("all", "directions") if len(self._footprints) > 1 else ("all",)
        fitting = [
            one
            for one in tried
            if self.warming(one, train_peak) <= self.allowed
            and self._in_use + self.beside_products(one) + self._shortest <= self.allowed
        ]
        return [*fitting, "one"] if len(self._footprints) > 1 else ["all"]

    def warming(self, at_once: AtOnce, train_peak: int) -> int:
        """Return the bytes in use when states are warmed, or directions made of them one after another.

        Args:
            at_once: How much there is.
            train_peak: Of the process during a batch's gradient.
        """
        own = list(self._footprints.values())
        highest = before = 0
        for place, one in enumerate(own):
            waiting = sum(other.state_bytes for other in own[place:]) if at_once == "all" else one.state_bytes
            warmed = train_peak + _WARM_VECTORS * self.vector + before + waiting
            made = self._in_use + self.vector + before + waiting + one.beside_state_bytes
            highest = max(highest, warmed, made)
            before += one.direction_bytes if at_once != "one" else 0
        return self._sharp + highest

    def beside_products(self, at_once: AtOnce) -> int:
        """Return the bytes held beside a product at the worst moment."""
        calibrating = self.directions(at_once) + self._pairs + _PROBE_VECTORS * self.vector
        return self._sharp + max(calibrating, self._gradient + self.directions(at_once), self._halves)

    def in_metric(self, at_once: AtOnce) -> int:
        """Return the bytes held beside a Lanczos step in a metric, its vector scaled, or of an overlap."""
        return self._sharp + max(self._gradient + self.directions(at_once) + self.vector, self._halves)

    def ascending(self, at_once: AtOnce) -> int:
        """Return the bytes held beside a product of an ascent, which has no basis."""
        return self._sharp + self.directions(at_once) + _ASCENT_VECTORS * self._gradient

    def directions(self, at_once: AtOnce) -> int:
        """Return the bytes of directions and labels once bands are cut."""
        kept = [self._kept(one) for one in self._footprints.values()]
        return max(kept) if at_once == "one" else sum(kept)

    def _kept(self, one: Footprint) -> int:
        return one.direction_bytes - one.proxy_bytes + one.label_bytes


def _time_gradient(task: Task, batch: Batch) -> float:
    """Return the seconds of a training batch's gradient."""
    parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    with own_gradients(parameters):
        return timed(task.device, lambda: set_gradients(task, parameters, batch, "warm-up batch 0"))


def _peak(
    request: SubspaceRequest, curvature: SpectrumPlan, held: _Held, at_once: AtOnce, *, is_full: bool = False
) -> int:
    """Return the bytes in use at the worst moment of a product: a Lanczos step, or a probe's.

    Args:
        request: What is measured.
        curvature: How products are laid out.
        held: Beside them.
        at_once: How much of the optimizers.
        is_full: Whether pairs take all the vectors that there is room for; else as many as are expected.
    """
    columns = curvature.layout.basis_columns if curvature.layout.basis_placement == "device" else 0
    most = curvature.most_memory_bytes or curvature.memory_bytes
    bare = most - columns * held.vector
    if not is_full:
        columns = min(columns, OperatorRequest(top=request.size or 0, bottom=0).expected_pair_products)
    solving = bare + columns * held.vector + held.in_metric(at_once)
    return max(solving, bare + held.beside_products(at_once), bare + held.ascending(at_once))


def _scratch_bytes(request: SubspaceRequest, curvature: SpectrumPlan, vector: int) -> int:
    """Return the bytes of working files at the worst moment.

    That is in a metric, whose state is saved, or when the sharp subspaces of both halves wait to be compared.
    """
    wanted = request.size or 0
    columns = curvature.layout.capacity(curvature.num_parameters, wanted)
    layout = replace(curvature.layout, basis_columns=columns, vectors_per_pass=1)
    on_disk = 2 * columns * vector if layout.basis_placement == "disk" else 0  # rotated it is another file
    metric = scratch_bytes(_METRIC, vector, layout) if request.preconditioned else 0
    halves = 2 * 4 * curvature.num_parameters * wanted if request.overlaps else 0
    return max(metric, halves + on_disk)


class _Session:
    """Measures part after part: what needs the optimizers' states first, then the overlaps."""

    def __init__(self, task: Task, plan: SubspacePlan, run: ResumableRun) -> None:
        self.plan = plan
        self.request = plan.request
        self.spectrum = spectrum_of(plan.request)
        self.state = run
        if plan.halves_on_disk and run.folder() is None:
            raise UsageError(
                "expected a state_directory for the sharp subspaces of halves of the batches, got none",
                "pass one, or allow more memory",
            )
        self.state.expected = plan.num_hvps
        # Another memory layout rounds differently: an interrupted measurement keeps to its own.
        begun = run.pin(_Begun(layout=plan.layout, at_once=plan.at_once, memory=plan.request.memory))
        self.at_once, self.memory = begun.at_once, begun.layout
        self.task = with_rows(task, self.memory.rows)
        self.layout = ParameterLayout(list(task.model.named_parameters()))
        self.names = tuple(plan.request.optimizers or ())
        self.vector_memory = _for_vectors(plan.request.memory)
        self.subspace = Subspace.of_spectrum(self.spectrum, task, size=plan.size, memory=self.vector_memory)
        self.warm = _warm_batches(task, self.request)
        self.notes: list[Note] = [*self._left_out(), *self.subspace.notes]
        if len(self.warm) < self.request.warm_batches:
            message = f"Optimizer states were warmed on {len(self.warm)} batches: the task has no more to train on."
            self.notes.append(Note(code="fewer-warm-batches", message=message))
        self.products: dict[str, int] = {}
        self.calibrations: dict[str, ProxyCalibration] = {}
        self.overlaps: list[Overlap] = []
        self.batch_shares: list[float] = []
        self.gradient_norm = self.gradient_share = 0.0
        self.samples: dict[str, Samples] = {}
        self.random_share = Estimate.certain(0.0)

    def _left_out(self) -> list[Note]:
        """Say which proxies the model has none of."""
        names = [name for name in default_proxies() if name not in self.names and not can_take(name, self.task)]
        message = f"{' and '.join(names)} cannot take parameters of more than three dimensions, and were left out."
        return [Note(code="optimizers-left-out", message=message)] if names else []

    def run(self) -> None:
        """Measure everything."""
        gradient = self._measure_gradient()
        for names in [(name,) for name in self.names] if self.at_once == "one" else [self.names]:
            self._measure_proxies(names, gradient)
        del gradient
        if self.request.preconditioned:
            self._leave_batches_out()
        if self.request.overlaps:
            self._compare_halves()
            self._compare_operators()
        for name, other in self.request.others:
            count = min(self.plan.size, _sharp_pairs(other, self.task))
            first, second = (
                Subspace.of_spectrum(one, self.task, size=count, memory=self.vector_memory)
                for one in (other, self.spectrum)
            )
            self.overlaps.append(overlap_of("checkpoints", (name, first), (self.request.label, second)))

    def _measure_proxies(self, names: Sequence[str], gradient: torch.Tensor) -> None:
        """Measure what needs the directions of some optimizers."""
        directions, balls = self._warmed(names)
        graphs = self._graphs()
        hessian = self._hessian(self.task, graphs, self.plan.count)
        calibrated = self._calibrate(directions, hessian)
        for name, one in directions.items():
            metric = self._metric(name, one, hessian) if self.request.preconditioned else None
            self.calibrations[name] = ProxyCalibration(optimizer=name, blocks=calibrated[name], preconditioned=metric)
        if self.request.preconditioned:
            self._measure_own_norms(balls, gradient, hessian)
        graphs.clear()

    def _measure_gradient(self) -> torch.Tensor:
        """Return the evaluation gradient, (N,), measured."""
        gradient = loss_and_gradient(self.task, self.layout, "evaluation").gradient
        self.gradient_norm = norm(gradient)
        self.gradient_share = self.subspace.energy_share(gradient)
        self.random_share = random_energy_share(self.plan.size, self.layout.size)
        return gradient

    def _warmed(self, names: Sequence[str]) -> tuple[dict[str, list[Directions]], dict[str, UnitBall]]:
        """Let optimizers look at the same batches; return what their states say of directions, and their unit balls.

        States go as soon as directions are made of them.
        """
        directions: dict[str, list[Directions]] = {}
        balls: dict[str, UnitBall] = {}
        shares: list[float] = []
        for members in [names] if self.at_once == "all" else [(name,) for name in names]:
            made = {name: optimizer_of(self.task, name) for name in members}
            warm(
                self.task,
                list(made.values()),
                self.warm,
                on_batch=lambda index: self.state.advance(
                    0, f"warming optimizer states · batch {index + 1}/{len(self.warm)}"
                ),
                # They are the batches', whoever is warmed.
                on_gradient=None if shares or self.batch_shares else self._note_share(shares),
            )
            for name, optimizer in made.items():
                directions[name] = optimizer.directions()
                try:
                    balls[name] = unit_ball(optimizer, self.layout, directions[name])
                except InputError as error:
                    message = f"Sharpness in the norm of {name} was not measured: {error.message}."
                    self.notes.append(Note(code="norm-unknown", message=message))
                optimizer.drop_state()
        return_freed_memory()
        self.batch_shares = self.batch_shares or shares
        return directions, balls

    def _note_share(self, shares: list[float]) -> Callable[[torch.Tensor], None]:
        return lambda gradient: shares.append(self.subspace.energy_share(gradient))

    def _hessian(self, task: Task, graphs: GraphStore, count: int) -> HessianOperator:
        return HessianOperator(
            task, self.layout, count=count, graphs=graphs, vectors_per_pass=self.memory.vectors_per_pass
        )

    def _graphs(self) -> GraphStore:
        return GraphStore(self.memory.kept_graphs, self.layout.parameters)

    # -- calibration ---------------------------------------------------------------------------------------------

    def _calibrate(self, directions: dict[str, list[Directions]], hessian: HessianOperator) -> dict[str, Any]:
        """Hold proxies against curvature, with the same products for all; once bands are cut, proxies go."""
        proxies = {}
        for name, one in directions.items():
            bands = cut_bands(self.layout, one, optimizer=name)
            directions[name] = [replace(each, proxy=each.proxy.new_zeros(())) for each in one]
            proxies[name] = Proxy(name, self.layout, directions[name], bands)
        pairs = Subspace.of_pairs(self.spectrum, self.task, memory=self.vector_memory)
        samples = self._samples(proxies)
        self.samples |= samples
        # An earlier process's products; each full probe served all optimizers.
        self.state.done += len(next(iter(samples.values())).bands) + sum(len(one.tail) for one in samples.values())
        self._run_probes(proxies, samples, pairs, hessian)
        for name, proxy in proxies.items():
            self._run_tail_probes(proxy, samples, name, pairs, hessian)
        made = self.request.probes + sum(len(one.tail) for one in samples.values())
        self.products["calibration"] = self.products.get("calibration", 0) + made
        calibrated = {}
        for name, proxy in proxies.items():
            # One after another: those of a file need not all be in memory.
            vectors = (pairs.vector(index).to(self.layout.parameters[0]) for index in range(pairs.size))
            calibrated[name] = calibrate(proxy, samples[name], proxy.exact(vectors, pairs.eigenvalues))
        return calibrated

    def _run_probes(
        self, proxies: Mapping[str, Proxy], samples: Mapping[str, Samples], pairs: Subspace, hessian: HessianOperator
    ) -> None:
        """Make the full probes that are missing; each serves all optimizers."""
        total = self.request.probes
        done = len(next(iter(samples.values())).bands)
        for first in range(done, total, self.memory.vectors_per_pass):
            count = min(self.memory.vectors_per_pass, total - first)
            probes = torch.stack([self._random(first + offset) for offset in range(count)])
            for probe, rest in zip(probes, rest_of(probes, pairs, hessian), strict=True):
                for name, proxy in proxies.items():
                    samples[name].add(proxy, probe, rest)
            self._keep_samples()
            self.state.advance(count, f"calibrating · probe {first + count}/{total}")

    def _run_tail_probes(
        self, proxy: Proxy, samples: Mapping[str, Samples], name: str, pairs: Subspace, hessian: HessianOperator
    ) -> None:
        """Make the probes of one optimizer's tail that are missing."""
        total = _tail_probes(self.request) if len(proxy.tail) else 0
        for first in range(len(samples[name].tail), total, self.memory.vectors_per_pass):
            count = min(self.memory.vectors_per_pass, total - first)
            drawn = [self._random("tail", name, first + offset) for offset in range(count)]
            probes = torch.stack([proxy.bands.project(vector, proxy.tail.tolist()) for vector in drawn])
            for probe, rest in zip(probes, rest_of(probes, pairs, hessian), strict=True):
                samples[name].add_tail(proxy, probe, rest)
            self._keep_samples()
            self.state.advance(count, f"calibrating {name} · tail probe {first + count}/{total}")

    def _random(self, *path: str | int) -> torch.Tensor:
        seed = derive_seed(self.request.seed, "calibration", *path)
        first = self.layout.parameters[0]
        return random_vector(self.layout.size, seed=seed, dtype=first.dtype, device=first.device)

    def _samples(self, proxies: Mapping[str, Proxy]) -> dict[str, Samples]:
        """Return what an earlier process sampled, else nothing yet."""
        found = self.state.find("probes", "subspace-probes")
        if not isinstance(found, _Probes):
            return {name: Samples([], [], [], []) for name in proxies}
        return {
            name: Samples(*(list(one.get(name, ())) for one in (found.bands, found.sharp, found.flat, found.tail)))
            for name in proxies
        }

    def _keep_samples(self) -> None:
        if self.state.path is None:
            return

        def table(what: str) -> dict[str, NDArray[np.float64]]:
            rows = {name: getattr(one, what) for name, one in self.samples.items()}
            return {name: np.stack(own) if own else np.zeros((0, 0)) for name, own in rows.items()}

        kept = _Probes(
            fingerprint=self.plan.fingerprint,
            bands=table("bands"),
            sharp=table("sharp"),
            flat=table("flat"),
            tail=table("tail"),
        )
        self.state.keep("probes", kept)

    # -- spectra in a metric -------------------------------------------------------------------------------------

    def _metric(self, name: str, directions: list[Directions], hessian: HessianOperator) -> OperatorSpectrum:
        """Measure the spectrum of F^(-1/2) H F^(-1/2)."""
        found = self._stage(
            f"metric-{name}",
            "subspace-metric",
            lambda: self._measure_metric(name, directions, hessian),
            lambda kept: kept.spectrum.num_hvps,
        )
        self.products[f"preconditioned {name}"] = found.spectrum.num_hvps
        size = found.spectrum.num_parameters
        if bounded := round(found.bounded_share * size):
            message = (
                f"In the metric of {name} the preconditioner of {bounded:,} of {size:,} directions is less than "
                f"{len(self.warm)} batches can tell, and was bounded by what one of them brings."
            )
            self.notes.append(Note(code="metric-bounded", message=message))
        if not bool(found.spectrum.converged[:1].all()):
            message = f"λ₁ in the metric of {name} did not converge within {found.spectrum.num_hvps} products."
            self.notes.append(Note(code="metric-not-converged", message=message))
        return found.spectrum

    def _measure_metric(self, name: str, directions: list[Directions], hessian: HessianOperator) -> _FinishedMetric:
        operator = PreconditionedOperator(hessian, self.layout, directions, num_batches=len(self.warm))
        asked = _metric_request(_METRIC, operator.size, derive_seed(self.request.seed, "metric", name))
        folder = self.state.folder(f"metric-{name}", "running")
        state = SavedState(folder, self.plan.fingerprint, self.task.ranks)
        before = self.state.done

        def on_progress(done: int, expected: int, label: str) -> None:
            self.state.done = before + done
            self.state.advance(0, f"metric of {name} · {label}")

        basis = self._basis(asked.top + asked.bottom)
        measured = OperatorMeasurement(operator, asked, basis=basis, state=state, on_progress=on_progress).measure()
        if state.damage is not None:
            self.state.note(state.damage)
        return _FinishedMetric(
            fingerprint=self.plan.fingerprint, spectrum=measured.spectrum, bounded_share=operator.bounded_share
        )

    # -- sharpness in a norm -------------------------------------------------------------------------------------

    def _measure_own_norms(
        self, balls: Mapping[str, UnitBall], gradient: torch.Tensor, hessian: HessianOperator
    ) -> None:
        """Bound the sharpness in the norm that each optimizer steps in, where one is known."""
        for name, ball in balls.items():
            found = self._stage(
                f"norm-{name}",
                "subspace-norm",
                partial(self._measure_own_norm, name, ball, gradient, hessian),
                lambda kept: kept.sharpness.num_hvps,
            ).sharpness
            self.products[f"norm of {name}"] = found.num_hvps
            self.calibrations[name] = replace(self.calibrations[name], own_norm=found)

    def _measure_own_norm(
        self, name: str, ball: UnitBall, gradient: torch.Tensor, hessian: HessianOperator
    ) -> _FinishedNorm:
        def starts() -> Iterator[torch.Tensor]:
            yield self.subspace.vector(0).to(gradient)
            for index in range(_RANDOM_STARTS):
                seed = derive_seed(self.request.seed, "norm", name, index)
                yield random_vector(self.layout.size, seed=seed, dtype=gradient.dtype, device=gradient.device)

        sharpness = sharpness_in_norm(
            hessian,
            ball,
            gradient=gradient,
            starts=starts(),
            max_products=_ASCENT_PRODUCTS,
            on_product=lambda: self.state.advance(1, f"sharpness in the norm of {name}"),
        )
        return _FinishedNorm(fingerprint=self.plan.fingerprint, sharpness=sharpness)

    def _leave_batches_out(self) -> None:
        """Measure each metric again without one group of the warm-up batches after another: what its error rests on."""
        part = "metrics without some batches"
        found = [self._without_group(group) for group in range(min(_GROUPS, len(self.warm)))]
        self.products[part] = sum(one.num_hvps for one in found)
        for name, calibration in self.calibrations.items():
            conditions = np.array([one.conditions[name] for one in found])
            if np.all(conditions > 0.0):
                self.calibrations[name] = replace(calibration, left_out_conditions=conditions)

    def _without_group(self, group: int) -> _FinishedGroup:
        """Return λ₁ over the root mean square λ in each metric, every g-th batch left out."""
        return self._stage(
            f"group-{group}", "subspace-group", lambda: self._measure_group(group), lambda kept: kept.num_hvps
        )

    def _measure_group(self, group: int) -> _FinishedGroup:
        batches = [batch for index, batch in enumerate(self.warm) if index % _GROUPS != group]
        graphs = self._graphs()
        hessian = self._hessian(self.task, graphs, self.plan.count)
        conditions = {}
        for members in [self.names] if self.at_once == "all" else [(name,) for name in self.names]:
            made = {name: optimizer_of(self.task, name) for name in members}
            graphs.clear()  # which are not there while states are
            warm(self.task, list(made.values()), batches, on_batch=lambda index: self.state.advance(0, "warming again"))
            directions = {}
            for name, optimizer in made.items():
                directions[name] = optimizer.directions()
                optimizer.drop_state()
            return_freed_memory()
            for name in members:
                conditions[name] = self._condition(name, directions.pop(name), len(batches), hessian, group)
        graphs.clear()
        return _FinishedGroup(fingerprint=self.plan.fingerprint, conditions=conditions, num_hvps=hessian.num_products)

    def _condition(
        self, name: str, directions: list[Directions], num_batches: int, hessian: HessianOperator, group: int
    ) -> float:
        """Return λ₁ over the root mean square λ in a metric; 0 where that is not known."""
        operator = PreconditionedOperator(hessian, self.layout, directions, num_batches=num_batches)
        # The seed is the metric's: what the probes miss is then missed by all groups alike.
        asked = _metric_request(_LEFT_OUT, operator.size, derive_seed(self.request.seed, "metric", name))
        measured = OperatorMeasurement(operator, asked, basis=self._basis(asked.top)).measure()
        self.state.advance(operator.num_products, f"metric of {name} without group {group + 1} of the batches")
        return root_mean_square_condition(measured.spectrum) or 0.0

    # -- overlaps ------------------------------------------------------------------------------------------------

    def _compare_halves(self) -> None:
        """Compare the sharp subspaces of two halves of the evaluation batches."""
        found = self._stage("overlap-batches", "subspace-overlap", self._overlap_of_halves, lambda kept: kept.num_hvps)
        self.state.forget("half 1", "half 2")
        self.products["overlap of halves"] = found.num_hvps
        if found.overlap is not None:
            self.overlaps.append(found.overlap)
        else:
            message = "The evaluation batches could not be divided in two: whether the subspace is theirs is not known."
            self.notes.append(Note(code="no-halves", message=message))

    def _overlap_of_halves(self) -> _FinishedOverlap:
        parts = halves(self.task)
        found = [self._half(task, place) for place, task in enumerate(parts or (), start=1)]
        overlap = None
        if found:
            first, second = (_space_of(half) for half in found)
            overlap = overlap_of("batches", ("one half", first), ("the other half", second))
        products = sum(half.num_hvps for half in found)
        return _FinishedOverlap(fingerprint=self.plan.fingerprint, overlap=overlap, num_hvps=products)

    def _half(self, task: Task, place: int) -> _FinishedHalf:
        """Return the sharp subspace of a half of the batches; what an earlier process found of it is not made again."""
        part, kind = f"half {place}", "subspace-half"
        found = self._stage(part, kind, lambda: self._measure_half(task, place), lambda kept: kept.num_hvps)
        return self.state.from_file(part, kind, found) if self.plan.halves_on_disk else found

    def _measure_half(self, task: Task, place: int) -> _FinishedHalf:
        with torch.no_grad():
            count = sum(task.loss(batch)[1] for batch in task.evaluation)
        name, graphs = f"half {place} of the batches", self._graphs()
        operator = self._hessian(task, graphs, count)
        space = self._sharp_subspace(operator, name, "batches", name)
        graphs.clear()
        return _FinishedHalf(
            fingerprint=self.plan.fingerprint,
            eigenvalues=space.eigenvalues,
            residual_norms=space.residual_norms,
            vectors=space.stacked(),
            num_hvps=operator.num_products,
        )

    def _compare_operators(self) -> None:
        """Compare the Hessian's sharp subspace with the Gauss–Newton matrix's."""
        found = self._stage(
            "overlap-operators", "subspace-overlap", self._overlap_of_operators, lambda kept: kept.num_hvps
        )
        self.products["overlap with Gauss–Newton"] = found.num_hvps
        if found.overlap is not None:
            self.overlaps.append(found.overlap)

    def _overlap_of_operators(self) -> _FinishedOverlap:
        graphs = self._graphs()
        operator = GaussNewtonOperator(self.task, self.layout, count=self.plan.count, graphs=graphs, vectors_per_pass=1)
        space = self._sharp_subspace(operator, "the Gauss–Newton matrix", "ggn")
        graphs.clear()
        overlap = overlap_of("operators", ("Hessian", self.subspace), ("Gauss–Newton", space))
        return _FinishedOverlap(fingerprint=self.plan.fingerprint, overlap=overlap, num_hvps=operator.num_products)

    def _sharp_subspace(self, operator: SymmetricOperator, name: str, *path: str) -> Subspace:
        return sharp_subspace(
            operator,
            self.plan.size,
            basis=self._basis(self.plan.size),
            keeps_basis=self.plan.halves_on_disk,
            seed=derive_seed(self.request.seed, *path),
            on_product=lambda: self.state.advance(1, f"sharp subspace of {name}"),
        )

    def _basis(self, pairs: int) -> KrylovBasis:
        return self.memory.basis(self.layout, pairs, self.state.folder(), self.task.ranks)

    def _stage(self, part: str, kind: str, measure: Callable[[], Kept], products: Callable[[Kept], int]) -> Kept:
        """Return a finished stage; the products of one that an earlier process finished count as made."""
        before = self.state.done
        found = self.state.stage(part, kind, measure)
        if self.state.done == before:
            self.state.done += products(found)
        return found


def _space_of(half: _FinishedHalf) -> Subspace:
    """Return a half's subspace where its vectors lie: no copy of them is made."""
    return Subspace(mapped=half.vectors.T, eigenvalues=half.eigenvalues, residual_norms=half.residual_norms)


def _tail_probes(request: SubspaceRequest) -> int:
    return max(2, request.probes // _PROBES_PER_TAIL_PROBE)


def _metric_request(asked: OperatorRequest, size: int, seed: int) -> OperatorRequest:
    """Ask for no more pairs than there are parameters."""
    bottom = min(asked.bottom, size - 1)
    return replace(asked, top=min(asked.top, size - bottom), bottom=bottom, seed=seed)


def _products(request: SubspaceRequest, at_once: AtOnce) -> dict[str, int]:
    """Return the products that each part is expected to take; full probes serve all that is there at once."""
    names = request.optimizers or ()
    full = request.probes * (len(names) if at_once == "one" else 1)
    products = {"calibration": full + len(names) * _tail_probes(request)}
    if request.preconditioned:
        products |= {f"preconditioned {name}": _METRIC.expected_products for name in names}
        products |= {f"norm of {name}": _NORM_PRODUCTS for name in names}
        left_out = len(names) * _LEFT_OUT_PRODUCTS
        products["metrics without some batches"] = min(_GROUPS, request.warm_batches) * left_out
    if request.overlaps:
        own = expected_products(request.size or 0)
        products |= {"overlap of halves": 2 * own, "overlap with Gauss–Newton": own}
    return products


def _sharp_pairs(spectrum: Spectrum, task: Task) -> int:
    """Return how many sharp directions a spectrum knows, without reading them."""
    return Subspace.of_spectrum(spectrum, task, memory=0).size


def _warm_batches(task: Task, request: SubspaceRequest) -> list[Batch]:
    return list(task.train[: request.warm_batches])


@takes(SubspaceRequest)
def measure_subspace(
    task: Task,
    spectrum: Spectrum,
    *,
    state_directory: Path | None = None,
    on_progress: OnProgress | None = None,
    command: str = "",
    **asked: Any,
) -> SubspaceMeasurement:
    """Measure how sharp directions lie: the gradient's share, how firm they are, and whether LITE's proxies find them.

    Args:
        task: Model, loss, evaluation batches, and training batches to warm optimizer states on; comes back bitwise.
        spectrum: Of this task, with eigenvectors.
        state_directory: As of `Plan.run`, as are the next two.
        on_progress: In products.
        command: For provenance.
        asked: Fields of `SubspaceRequest`: size=5, probes=16.

    Raises:
        UsageError, InputError, NumericsError: As `SubspaceRequest` and its plan.
        OutputError: If there is no room for the working files.

    Cost: `probes` products for all calibrations together and a quarter as many for each; 2k + 10 for the sharp subspace
        of each half of the batches, at half the price, and of the Gauss–Newton matrix; about 35 per metric,
        13 for the sharpness in its optimizer's norm, and about 10 for each of four groups of the warm-up batches that
        are left out, which take 3W gradients more.
    """
    plan = SubspaceRequest(spectrum=spectrum, **asked).plan(task)
    found: SubspaceMeasurement = plan.run(
        task, state_directory=state_directory, on_progress=on_progress, command=command
    )
    return found
