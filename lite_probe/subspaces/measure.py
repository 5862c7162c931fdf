"""The sharp subspace of a checkpoint and LITE's proxies of it, measured together and resumable part by part."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lite_probe.errors import InputError, OutputError, UsageError
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.optim import OPTIMIZERS, Directions, default_proxies, spec_of
from lite_probe.results.estimate import Estimate
from lite_probe.results.provenance import Note, join_notes
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum
from lite_probe.results.store import register
from lite_probe.results.subspace import (
    Overlap,
    ProxyCalibration,
    SubspaceMeasurement,
    root_mean_square_condition,
)
from lite_probe.runtime.disk import require_room
from lite_probe.runtime.fingerprint import batches_digest, task_fingerprint
from lite_probe.runtime.memory import free_memory, memory_allowed, memory_in_use, require_memory
from lite_probe.runtime.provenance import provenance_of
from lite_probe.runtime.state_folder import StateFolder, remove
from lite_probe.seeds import derive_seed
from lite_probe.spectra import SpectrumPlan, SpectrumRequest, plan_spectrum, require_same_task
from lite_probe.spectra.measure import landscape
from lite_probe.spectra.operator import OperatorMeasurement
from lite_probe.spectra.plan import Placement, scratch_bytes
from lite_probe.spectra.state import SavedState
from lite_probe.subspaces.bands import cut_bands
from lite_probe.subspaces.calibration import Proxy, Samples, calibrate
from lite_probe.subspaces.overlap import (
    expected_products,
    halves,
    overlap_of,
    random_energy_share,
    sharp_subspace,
)
from lite_probe.subspaces.preconditioned import PreconditionedOperator
from lite_probe.subspaces.subspace import Subspace
from lite_probe.subspaces.warming import can_take, optimizer_of, warm
from lite_probe.task import Batch, Task
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.random import random_vector
from lite_probe.vectors.reductions import norm
from lite_probe.version import __version__

OnProgress = Callable[[int, int, str], None]

_RANDOM_FRAMES = 4  # random subspaces that the gradient's share is compared with
_PROBES_PER_TAIL_PROBE = 4  # a tail probe is so much quieter that a quarter of them will do
# The spectrum in a metric: λ₁, and few steps of some probes for tr H² and the quantiles; two have no error to speak of.
_METRIC = SpectrumRequest(top=1, bottom=0, probes=5, probe_steps=4, tolerance=1e-2)
# The same without a group of the warm-up batches. λ₁ is known to the square of its residual.
_LEFT_OUT = SpectrumRequest(top=1, bottom=0, probes=2, probe_steps=1, tolerance=0.1)
_LEFT_OUT_PRODUCTS = 10  # that it takes, on trained language models
_GROUPS = 4
_LEAST_SPARE = 6  # basis vectors beside the wanted pairs, without which a restart gets nowhere
_SHARE_FOR_VECTORS = 4  # one part in so many of --memory is for the spectrum's eigenvectors
_CHOSEN = ("kept_graphs", "vectors_per_pass", "basis_placement", "basis_columns")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubspacePlan:
    """What a measurement will do, and what that takes."""

    size: int  # k
    num_parameters: int
    num_hvps: int  # expected
    num_gradients: int  # expected
    seconds: float  # expected
    memory_bytes: int  # expected peak of the process (CPU) or of the device's allocations
    kept_graphs: int
    vectors_per_pass: int
    basis_placement: Placement
    basis_columns: int  # Krylov vectors that there is room for
    scratch_bytes: int  # on disk at the worst moment: a metric's saved state or two subspaces, a basis that is there
    loss: float
    gradient_norm: float
    count: int  # tokens or samples behind the loss
    fingerprint: str

    def summary(self) -> str:
        """Return the plan as one line for people."""
        seconds = f"{self.seconds:.0f} s" if self.seconds < 90 else f"{self.seconds / 60:.0f} min"
        return (
            f"{self.size} sharp directions, ~{self.num_hvps} Hessian products and {self.num_gradients} gradients, "
            f"~{seconds}, {self.memory_bytes / 2**30:.1f} GiB"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What was asked, checked."""

    size: int
    probes: int
    warm_batches: int
    optimizers: tuple[str, ...]
    overlaps: bool
    preconditioned: bool
    seed: int


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
class _FinishedGroup:
    """λ₁ over the root mean square λ in each metric, without a group of the warm-up batches."""

    fingerprint: str
    conditions: Mapping[str, float]
    num_hvps: int


register("subspace-probes", _Probes, schema_version=1)
register("subspace-half", _FinishedHalf, schema_version=1)
register("subspace-overlap", _FinishedOverlap, schema_version=1)
register("subspace-metric", _FinishedMetric, schema_version=1)
register("subspace-group", _FinishedGroup, schema_version=1)


def plan_subspace(
    task: Task,
    spectrum: Spectrum,
    *,
    size: int | None = None,
    probes: int = 16,
    warm_batches: int = 50,
    optimizers: Sequence[str] | None = None,
    overlaps: bool = True,
    preconditioned: bool = True,
    others: Sequence[tuple[str, Spectrum]] = (),
    seed: int = 0,
    memory: int | None = None,
    on_progress: OnProgress | None = None,
) -> SubspacePlan:
    """Say what `measure_subspace` with the same arguments will do, and what it costs.

    Raises:
        UsageError: An unknown optimizer, a number out of range, more directions than the spectrum has.
        InputError: No training batches, a spectrum of something else, another checkpoint of other parameters.
        NumericsError: Loss or gradient not finite or not deterministic.

    Cost: two gradients, one graph and two products.
    """
    request = _request(task, spectrum, size, probes, warm_batches, optimizers, overlaps, preconditioned, others, seed)
    products = _products(request)
    held = _held(request, spectrum, task, memory)
    curvature = plan_spectrum(
        task,
        top=request.size,
        bottom=0,
        probes=2,
        probe_steps=2,
        seed=seed,
        memory=memory_allowed(task.device, memory) - max(held.values()),
        on_progress=on_progress,
    )
    require_same_task(spectrum, task, loss=curvature.loss)
    per_product = curvature.seconds / curvature.num_hvps
    warmed = len(_warm_batches(task, request))
    gradients = warmed * (min(_GROUPS, warmed) if request.preconditioned else 1) + 1
    return SubspacePlan(
        size=request.size,
        num_parameters=curvature.num_parameters,
        num_hvps=sum(products.values()),
        num_gradients=gradients,
        # Half of the batches cost half; a gradient with the steps of all optimizers about as much as a product.
        seconds=(sum(products.values()) - 0.5 * products.get("overlap of halves", 0) + gradients) * per_product,
        memory_bytes=_peak(request, curvature, held, next(task.model.parameters()).element_size()),
        kept_graphs=curvature.kept_graphs,
        vectors_per_pass=curvature.vectors_per_pass,
        basis_placement=curvature.basis_placement,
        basis_columns=curvature.basis_columns,
        scratch_bytes=_scratch_bytes(request, curvature, next(task.model.parameters()).element_size()),
        loss=curvature.loss,
        gradient_norm=curvature.gradient_norm,
        count=curvature.count,
        fingerprint=_fingerprint(task, request, spectrum, others),
    )


def _for_vectors(memory: int | None) -> int | None:
    """Return the bytes that the spectrum's eigenvectors may take; None leaves it to `Subspace`."""
    return None if memory is None else memory // _SHARE_FOR_VECTORS


def _held(request: _Request, spectrum: Spectrum, task: Task, memory: int | None) -> dict[str, int]:
    """Return what is held beside graphs and Krylov vectors, bytes, by phase.

    Raises:
        UsageError: If it leaves nothing of the memory allowed.
    """
    size = spectrum.whole.num_parameters
    limit = _for_vectors(memory)
    pairs = int(np.count_nonzero(np.append(spectrum.whole.converged, spectrum.whole.lower_converged)))
    allowed = int(free_memory(task.device) // 4) if limit is None else limit
    vectors = sum(4 * size * count for count in (request.size, pairs) if 4 * size * count <= allowed)
    specs = [spec_of(name) for name in request.optimizers]
    held = {
        "warm": vectors + size * sum(spec.state_bytes + spec.direction_bytes for spec in specs),
        "directions": vectors + size * sum(spec.direction_bytes for spec in specs),
        "overlaps": vectors + (2 * 4 * size * request.size if request.overlaps else 0),
    }
    purpose = f"the states of {', '.join(request.optimizers)} and the eigenvectors"
    # What is held already is the model and what has been loaded of it.
    least = memory_in_use(task.device) + max(held.values())
    hint = "from Python, measure_subspace(optimizers=…) can take one at a time"
    require_memory(least, memory_allowed(task.device, memory), purpose, hint)
    return held


def _peak(request: _Request, curvature: SpectrumPlan, held: Mapping[str, int], itemsize: int) -> int:
    """Return the bytes in use at the worst moment: a Lanczos step, in a metric or of an overlap, the basis full."""
    columns = curvature.basis_columns if curvature.basis_placement == "device" else 0
    # A spectrum's plan expects its pairs to converge before the basis is full; those of a metric often do not.
    counted = min(columns, SpectrumRequest(top=request.size, bottom=0).expected_pair_products)
    unfilled = (columns - counted) * itemsize * curvature.num_parameters
    return curvature.memory_bytes + unfilled + max(held["directions"], held["overlaps"])


def _scratch_bytes(request: _Request, curvature: SpectrumPlan, itemsize: int) -> int:
    """Return the bytes of working files at the worst moment.

    That is in a metric, whose state is saved, or when the sharp subspaces of both halves wait to be compared.
    """
    vector, placement = itemsize * curvature.num_parameters, curvature.basis_placement
    columns = min(curvature.num_parameters, max(curvature.basis_columns, request.size + _LEAST_SPARE))
    on_disk = columns * vector if placement == "disk" else 0
    metric = scratch_bytes(_METRIC, vector, columns, placement, 1) if request.preconditioned else 0
    halves = 2 * 4 * curvature.num_parameters * request.size if request.overlaps else 0
    return max(metric, halves + on_disk)


def measure_subspace(
    task: Task,
    spectrum: Spectrum,
    *,
    size: int | None = None,
    probes: int = 16,
    warm_batches: int = 50,
    optimizers: Sequence[str] | None = None,
    overlaps: bool = True,
    preconditioned: bool = True,
    others: Sequence[tuple[str, Spectrum]] = (),
    label: str = "",
    seed: int = 0,
    memory: int | None = None,
    plan: SubspacePlan | None = None,
    state_directory: Path | None = None,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> SubspaceMeasurement:
    """Measure how sharp directions lie: the gradient's share, how firm they are, and whether LITE's proxies find them.

    Args:
        task: Model, loss, evaluation batches, and training batches to warm optimizer states on; comes back bitwise.
        spectrum: Of this task, with eigenvectors.
        size: k, sharp directions; None takes all converged top pairs of positive curvature.
        probes: Random probes of the calibration, at least 2; each costs one product, whatever is calibrated.
        warm_batches: W, at fixed θ₀.
        optimizers: LITE variants whose proxies are calibrated; a base optimizer has a proxy but no projector. None
            takes AdamW's, Muon's and SOAP's, as far as they can take the model.
        overlaps: Also compare the subspace with that of halves of the batches, and with the Gauss–Newton matrix's.
        preconditioned: Also measure the spectrum in each optimizer's metric.
        others: (name, spectrum) of other checkpoints of the same model, to compare with.
        label: This checkpoint's name in those comparisons.
        seed: Of all random vectors.
        memory: Bytes that the process (on an accelerator: its allocations) should stay below.
        plan: From `plan_subspace` with the same arguments, to save making it again.
        state_directory: Finished parts are kept there, `plan.scratch_bytes` of them; the same call continues after a
            kill with the same numbers. `discard_state` removes it once the result is saved.
        on_progress: `(done, expected, label)`, in products.
        command: For provenance.

    Raises:
        UsageError, InputError, NumericsError: As `plan_subspace`.
        OutputError: If there is no room for the working files.

    Cost: `probes` products for all calibrations together and a quarter as many for each; 2k + 10 for the sharp subspace
        of each half of the batches, at half the price, and of the Gauss–Newton matrix; about 35 per metric, and
        about 10 for each of four groups of the warm-up batches that are left out, which take 3W gradients more.
    """
    started = time.perf_counter()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    request = _request(task, spectrum, size, probes, warm_batches, optimizers, overlaps, preconditioned, others, seed)
    if plan is None:
        plan = plan_subspace(
            task,
            spectrum,
            size=size,
            probes=probes,
            warm_batches=warm_batches,
            optimizers=optimizers,
            overlaps=overlaps,
            preconditioned=preconditioned,
            others=others,
            seed=seed,
            memory=memory,
        )
    if state_directory is not None:
        require_room([(Path(state_directory), plan.scratch_bytes)])
    folder = _state_folder(state_directory) if state_directory is not None else None
    session = _Session(task, spectrum, request, plan, memory, folder, on_progress)
    left_out = [name for name in default_proxies() if optimizers is None and name not in request.optimizers]
    if left_out:
        message = f"{' and '.join(left_out)} cannot take parameters of more than three dimensions, and were left out."
        session.notes.append(Note(code="optimizers-left-out", message=message))
    with preserve_state(task.model):
        session.run(others, label)
    return SubspaceMeasurement(
        size=request.size,
        num_parameters=plan.num_parameters,
        spectrum=spectrum.whole,
        loss=plan.loss,
        gradient_norm=session.gradient_norm,
        gradient_share=session.gradient_share,
        batch_gradient_share=Estimate.from_samples(np.array(session.batch_shares)),
        random_share=session.random_share,
        overlaps=tuple(session.overlaps),
        calibrations=session.calibrations,
        num_probes=probes,
        num_warm_batches=len(session.warm),
        num_hvps=sum(session.products.values()),
        hvps_by_part=session.products,
        config=_config(request, task),
        fingerprint=plan.fingerprint,
        notes=join_notes(session.notes, session.state.notes),
        provenance=provenance_of(
            task,
            split="evaluation",
            seed=seed,
            count=plan.count,
            command=command,
            started_at=started_at,
            seconds=time.perf_counter() - started,
            details={"spectrum": spectrum.fingerprint, "warm-up batches": batches_digest(session.warm)},
        ),
    )


def discard_state(state_directory: Path) -> None:
    """Remove what `measure_subspace` kept to continue from; call it once the result is saved."""
    remove(_state_folder(state_directory))


class _Session:
    """Measures part after part: what needs the optimizers' states first, then the overlaps."""

    def __init__(
        self,
        task: Task,
        spectrum: Spectrum,
        request: _Request,
        plan: SubspacePlan,
        memory: int | None,
        folder: Path | None,
        on_progress: OnProgress | None,
    ) -> None:
        self.task = task
        self.spectrum = spectrum
        self.request = request
        self.state = StateFolder(folder, plan.fingerprint)
        self.plan = replace(plan, **self.state.pin({name: getattr(plan, name) for name in _CHOSEN}))
        self.on_progress = on_progress
        self.layout = ParameterLayout(list(task.model.named_parameters()))
        self.vector_memory = _for_vectors(memory)
        self.subspace = Subspace.of_spectrum(spectrum, task, size=request.size, memory=self.vector_memory)
        self.warm = _warm_batches(task, request)
        self.notes: list[Note] = list(self.subspace.notes)
        if len(self.warm) < request.warm_batches:
            message = f"Optimizer states were warmed on {len(self.warm)} batches: the task has no more to train on."
            self.notes.append(Note(code="fewer-warm-batches", message=message))
        self.products: dict[str, int] = {}
        self.calibrations: dict[str, ProxyCalibration] = {}
        self.overlaps: list[Overlap] = []
        self.batch_shares: list[float] = []
        self.gradient_norm = self.gradient_share = 0.0
        self.random_share = Estimate.certain(0.0)
        self._done = 0

    def run(self, others: Sequence[tuple[str, Spectrum]], label: str) -> None:
        """Measure everything."""
        self._measure_gradient()
        directions = self._warmed()
        graphs = GraphStore(self.plan.kept_graphs, self.layout.parameters)
        hessian = self._hessian(self.task, graphs, self.plan.count)
        calibrated = self._calibrate(directions, hessian)
        for name, one in directions.items():
            metric = self._metric(name, one, hessian) if self.request.preconditioned else None
            self.calibrations[name] = ProxyCalibration(optimizer=name, blocks=calibrated[name], preconditioned=metric)
        directions.clear()
        graphs.clear()
        if self.request.preconditioned:
            self._leave_batches_out()
        if self.request.overlaps:
            self._compare_halves()
            self._compare_operators()
        for name, other in others:
            count = min(self.request.size, _sharp_pairs(other, self.task))
            first, second = (
                Subspace.of_spectrum(one, self.task, size=count, memory=self.vector_memory)
                for one in (other, self.spectrum)
            )
            self.overlaps.append(overlap_of("checkpoints", (name, first), (label, second)))

    def _measure_gradient(self) -> None:
        gradient = loss_and_gradient(self.task, self.layout, "evaluation").gradient
        self.gradient_norm = norm(gradient)
        self.gradient_share = self.subspace.energy_share(gradient)
        seeds = [derive_seed(self.request.seed, "random subspace", index) for index in range(_RANDOM_FRAMES)]
        shares = [random_energy_share(gradient, self.request.size, seed=seed) for seed in seeds]
        self.random_share = Estimate.from_samples(np.array(shares))

    def _warmed(self) -> dict[str, list[Directions]]:
        """Let all optimizers look at the same batches; return what their states say of directions."""
        made = {name: optimizer_of(self.task, name) for name in self.request.optimizers}

        def on_batch(index: int, gradient: torch.Tensor) -> None:
            self.batch_shares.append(self.subspace.energy_share(gradient))
            self._tell(0, f"warming optimizer states · batch {index + 1}/{len(self.warm)}")

        warm(self.task, list(made.values()), self.warm, on_batch=on_batch)
        return {name: optimizer.directions() for name, optimizer in made.items()}

    def _hessian(self, task: Task, graphs: GraphStore, count: int) -> HessianOperator:
        return HessianOperator(
            task, self.layout, count=count, graphs=graphs, vectors_per_pass=self.plan.vectors_per_pass
        )

    # -- calibration ---------------------------------------------------------------------------------------------

    def _calibrate(self, directions: Mapping[str, list[Directions]], hessian: HessianOperator) -> dict[str, Any]:
        """Hold every proxy against curvature, with the same products for all."""
        proxies = {
            name: Proxy(name, self.layout, one, cut_bands(self.layout, one, optimizer=name))
            for name, one in directions.items()
        }
        pairs = Subspace.of_pairs(self.spectrum, self.task, memory=self.vector_memory)
        samples = self._samples(proxies)
        # An earlier process's products; each full probe served all optimizers.
        self._done += len(next(iter(samples.values())).bands) + sum(len(one.tail) for one in samples.values())
        self._run_probes(proxies, samples, pairs, hessian)
        for name, proxy in proxies.items():
            self._run_tail_probes(proxy, samples, name, pairs, hessian)
        self.products["calibration"] = self.request.probes + sum(len(one.tail) for one in samples.values())
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
        for first in range(done, total, self.plan.vectors_per_pass):
            count = min(self.plan.vectors_per_pass, total - first)
            probes = torch.stack([self._random(first + offset) for offset in range(count)])
            for probe, rest in zip(probes, _rest(probes, pairs, hessian), strict=True):
                for name, proxy in proxies.items():
                    samples[name].add(proxy, probe, rest)
            self._keep_samples(samples)
            self._tell(count, f"calibrating · probe {first + count}/{total}")

    def _run_tail_probes(
        self, proxy: Proxy, samples: Mapping[str, Samples], name: str, pairs: Subspace, hessian: HessianOperator
    ) -> None:
        """Make the probes of one optimizer's tail that are missing."""
        total = _tail_probes(self.request) if len(proxy.tail) else 0
        for first in range(len(samples[name].tail), total, self.plan.vectors_per_pass):
            count = min(self.plan.vectors_per_pass, total - first)
            drawn = [self._random("tail", name, first + offset) for offset in range(count)]
            probes = torch.stack([proxy.bands.project(vector, proxy.tail.tolist()) for vector in drawn])
            for probe, rest in zip(probes, _rest(probes, pairs, hessian), strict=True):
                samples[name].add_tail(proxy, probe, rest)
            self._keep_samples(samples)
            self._tell(count, f"calibrating {name} · tail probe {first + count}/{total}")

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
            name: Samples(*(list(one[name]) for one in (found.bands, found.sharp, found.flat, found.tail)))
            for name in proxies
        }

    def _keep_samples(self, samples: Mapping[str, Samples]) -> None:
        if self.state.path is None:
            return

        def table(what: str) -> dict[str, NDArray[np.float64]]:
            rows = {name: getattr(one, what) for name, one in samples.items()}
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
        part = f"preconditioned {name}"
        found = self.state.find(f"metric-{name}", "subspace-metric")
        if not isinstance(found, _FinishedMetric):
            operator = PreconditionedOperator(hessian, self.layout, directions, num_batches=len(self.warm))
            asked = _metric_request(_METRIC, operator.size, derive_seed(self.request.seed, "metric", name))
            state = SavedState(self.state.folder(f"metric-{name}", "running"), self.plan.fingerprint)
            before = self._done

            def on_progress(done: int, expected: int, label: str) -> None:
                self._done = before + done
                self._tell(0, f"metric of {name} · {label}")

            measured = OperatorMeasurement(
                operator, asked, basis=self._basis(asked.top + asked.bottom), state=state, on_progress=on_progress
            ).measure()
            if state.damage is not None:
                self.state.note(state.damage)
            found = _FinishedMetric(
                fingerprint=self.plan.fingerprint,
                spectrum=measured.spectrum,
                bounded_share=operator.bounded_share,
            )
            self.state.keep(f"metric-{name}", found)
            state.discard()
        else:
            self._done += found.spectrum.num_hvps
        self.products[part] = found.spectrum.num_hvps
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
        found = self.state.find(f"group-{group}", "subspace-group")
        if isinstance(found, _FinishedGroup):
            self._done += found.num_hvps
            return found
        batches = [batch for index, batch in enumerate(self.warm) if index % _GROUPS != group]
        made = {name: optimizer_of(self.task, name) for name in self.request.optimizers}
        warm(self.task, list(made.values()), batches, on_batch=lambda index, gradient: self._tell(0, "warming again"))
        directions = {name: optimizer.directions() for name, optimizer in made.items()}
        made.clear()  # their states are large
        graphs = GraphStore(self.plan.kept_graphs, self.layout.parameters)
        hessian = self._hessian(self.task, graphs, self.plan.count)
        conditions = {}
        for name, one in directions.items():
            operator = PreconditionedOperator(hessian, self.layout, one, num_batches=len(batches))
            # The seed is the metric's: what the probes miss is then missed by all groups alike.
            asked = _metric_request(_LEFT_OUT, operator.size, derive_seed(self.request.seed, "metric", name))
            measured = OperatorMeasurement(operator, asked, basis=self._basis(asked.top)).measure()
            conditions[name] = root_mean_square_condition(measured.spectrum) or 0.0
            self._tell(operator.num_products, f"metric of {name} without group {group + 1} of the batches")
        graphs.clear()
        kept = _FinishedGroup(fingerprint=self.plan.fingerprint, conditions=conditions, num_hvps=hessian.num_products)
        self.state.keep(f"group-{group}", kept)
        return kept

    # -- overlaps ------------------------------------------------------------------------------------------------

    def _compare_halves(self) -> None:
        """Compare the sharp subspaces of two halves of the evaluation batches."""
        found = self.state.find("overlap-batches", "subspace-overlap")
        if not isinstance(found, _FinishedOverlap):
            parts, overlap, products = halves(self.task), None, 0
            if parts is not None:
                spaces = []
                for place, part in enumerate(parts):
                    half = self._half(part, f"half {place + 1} of the batches")
                    spaces.append(_space_of(half))
                    products += half.num_hvps
                overlap = overlap_of("batches", ("one half", spaces[0]), ("the other half", spaces[1]))
            found = _FinishedOverlap(fingerprint=self.plan.fingerprint, overlap=overlap, num_hvps=products)
            self.state.keep("overlap-batches", found)
            self.state.forget("half 1", "half 2")
        else:
            self._done += found.num_hvps
        self.products["overlap of halves"] = found.num_hvps
        if found.overlap is not None:
            self.overlaps.append(found.overlap)
        else:
            message = "The evaluation batches could not be divided in two: whether the subspace is theirs is not known."
            self.notes.append(Note(code="no-halves", message=message))

    def _half(self, task: Task, name: str) -> _FinishedHalf:
        """Return the sharp subspace of a half of the batches; what an earlier process found of it is not made again."""
        folder = f"half {name.split()[1]}"
        found = self.state.find(folder, "subspace-half")
        if isinstance(found, _FinishedHalf):
            self._done += found.num_hvps
            return found
        graphs = GraphStore(min(self.plan.kept_graphs, len(task.evaluation)), self.layout.parameters)
        with torch.no_grad():
            count = sum(task.loss(batch)[1] for batch in task.evaluation)
        operator = self._hessian(task, graphs, count)
        space = sharp_subspace(
            operator,
            self.request.size,
            basis=self._basis(self.request.size),
            seed=derive_seed(self.request.seed, "batches", name),
            on_product=lambda: self._tell(1, f"sharp subspace of {name}"),
        )
        graphs.clear()
        half = _FinishedHalf(
            fingerprint=self.plan.fingerprint,
            eigenvalues=space.eigenvalues,
            residual_norms=space.residual_norms,
            vectors=np.stack([space.vector(index).cpu().numpy() for index in range(space.size)]),
            num_hvps=operator.num_products,
        )
        self.state.keep(folder, half)
        return half

    def _compare_operators(self) -> None:
        """Compare the Hessian's sharp subspace with the Gauss–Newton matrix's."""
        found = self.state.find("overlap-operators", "subspace-overlap")
        if not isinstance(found, _FinishedOverlap):
            graphs = GraphStore(self.plan.kept_graphs, self.layout.parameters)
            operator = GaussNewtonOperator(
                self.task, self.layout, count=self.plan.count, graphs=graphs, vectors_per_pass=1
            )
            space = sharp_subspace(
                operator,
                self.request.size,
                basis=self._basis(self.request.size),
                seed=derive_seed(self.request.seed, "ggn"),
                on_product=lambda: self._tell(1, "sharp subspace of the Gauss–Newton matrix"),
            )
            graphs.clear()
            overlap = overlap_of("operators", ("Hessian", self.subspace), ("Gauss–Newton", space))
            found = _FinishedOverlap(fingerprint=self.plan.fingerprint, overlap=overlap, num_hvps=operator.num_products)
            self.state.keep("overlap-operators", found)
        else:
            self._done += found.num_hvps
        self.products["overlap with Gauss–Newton"] = found.num_hvps
        if found.overlap is not None:
            self.overlaps.append(found.overlap)

    def _basis(self, pairs: int) -> KrylovBasis:
        """Make room for Krylov vectors where the plan has put them."""
        first, placed, file = self.layout.parameters[0], self.plan.basis_placement, None
        if placed == "disk":
            folder = self.state.folder()
            if folder is None:
                raise UsageError(
                    "expected a state_directory for a basis on disk, got none", "pass one, or allow more memory"
                )
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"expected a folder for the basis at {folder}, got {error.strerror}") from error
            file = folder / "basis.bin"
        device = first.device if placed == "device" else torch.device("cpu")
        capacity = min(self.layout.size, max(self.plan.basis_columns, pairs + _LEAST_SPARE))
        return KrylovBasis(self.layout.size, capacity, dtype=first.dtype, device=device, file=file)

    # -- progress -----------------------------------------------------------------------------------------------

    def _tell(self, products: int, label: str) -> None:
        self._done += products
        if self.on_progress is not None:
            self.on_progress(self._done, max(self.plan.num_hvps, self._done), label)


def _rest(probes: torch.Tensor, pairs: Subspace, hessian: HessianOperator) -> list[torch.Tensor]:
    """Return Rz = Hz − VΛVᵀz of some probes z, (p, N) → p of (N,). Cost: p products."""
    images = hessian.matmat(probes.T).T.contiguous()
    weights = pairs.coefficients(probes) * torch.from_numpy(pairs.eigenvalues).to(probes.device).unsqueeze(1)
    columns = zip(images, weights.T, strict=True)
    return [image.sub_(pairs.combine(own, image.dtype, image.device)) for image, own in columns]


def _space_of(half: _FinishedHalf) -> Subspace:
    return Subspace(
        torch.from_numpy(np.array(half.vectors)), eigenvalues=half.eigenvalues, residual_norms=half.residual_norms
    )


def _tail_probes(request: _Request) -> int:
    return max(2, request.probes // _PROBES_PER_TAIL_PROBE)


def _metric_request(asked: SpectrumRequest, size: int, seed: int) -> SpectrumRequest:
    """Ask for no more pairs than there are parameters."""
    bottom = min(asked.bottom, size - 1)
    return replace(asked, top=min(asked.top, size - bottom), bottom=bottom, seed=seed)


def _products(request: _Request) -> dict[str, int]:
    """Return the products that each part is expected to take."""
    products = {"calibration": request.probes + len(request.optimizers) * _tail_probes(request)}
    if request.preconditioned:
        products |= {f"preconditioned {name}": _METRIC.expected_products for name in request.optimizers}
        left_out = len(request.optimizers) * _LEFT_OUT_PRODUCTS
        products["metrics without some batches"] = min(_GROUPS, request.warm_batches) * left_out
    if request.overlaps:
        own = expected_products(request.size)
        products |= {"overlap of halves": 2 * own, "overlap with Gauss–Newton": own}
    return products


def _sharp_pairs(spectrum: Spectrum, task: Task) -> int:
    """Return how many sharp directions a spectrum knows, without reading them."""
    return Subspace.of_spectrum(spectrum, task, memory=0).size


def _warm_batches(task: Task, request: _Request) -> list[Batch]:
    return list(task.train[: request.warm_batches])


def _state_folder(state_directory: Path) -> Path:
    return Path(state_directory) / "subspace.state"


def require_measurable(task: Task, optimizers: Sequence[str] | None = None) -> tuple[str, ...]:
    """Refuse a task whose proxies cannot be calibrated, before any compute; return the optimizers that can be.

    Args:
        task: Its parameters' shapes and blocks, and how many training batches it has, are looked at.
        optimizers: As for `measure_subspace`.

    Raises:
        UsageError: If an optimizer is unknown.
        InputError: If there are no training batches, or an optimizer cannot take the model: any that was asked for,
            else AdamW's.
    """
    if optimizers is not None and (
        any(name not in OPTIMIZERS for name in optimizers) or not optimizers or len({*optimizers}) < len(optimizers)
    ):
        raise UsageError(f"expected optimizers among {', '.join(OPTIMIZERS)}, each once, got {', '.join(optimizers)}")
    if len(task.train) < 2:
        raise InputError(
            f"expected at least 2 training batches to warm optimizer states on, got {len(task.train)}",
            "give the task training batches: make_task(train_batches=50)",
        )
    for name in optimizers if optimizers is not None else default_proxies()[:1]:
        optimizer_of(task, name)
    if optimizers is not None:
        return tuple(optimizers)
    return tuple(name for name in default_proxies() if can_take(name, task))


def _request(
    task: Task,
    spectrum: Spectrum,
    size: int | None,
    probes: int,
    warm_batches: int,
    optimizers: Sequence[str] | None,
    overlaps: bool,
    preconditioned: bool,
    others: Sequence[tuple[str, Spectrum]],
    seed: int,
) -> _Request:
    """Check what was asked, before any compute."""
    for what, value, least in (("probes", probes, 2), ("warm_batches", warm_batches, 2)):
        if value < least:
            raise UsageError(f"expected {what} of at least {least}, got {value}")
    optimizers = require_measurable(task, optimizers)
    require_same_task(spectrum, task)
    for name, other in others:
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
    available = Subspace.of_spectrum(spectrum, task, size=size, memory=0).size
    return _Request(
        size=available,
        probes=probes,
        warm_batches=warm_batches,
        optimizers=tuple(optimizers),
        overlaps=overlaps,
        preconditioned=preconditioned,
        seed=seed,
    )


def _config(request: _Request, task: Task) -> dict[str, object]:
    """Return everything that was asked and changes the numbers."""
    return {
        **asdict(request),
        "device": task.device.type,
        "precision": str(next(task.model.parameters()).dtype).removeprefix("torch."),
        "lite_probe": __version__,
        "torch": torch.__version__,
    }


def _fingerprint(task: Task, request: _Request, spectrum: Spectrum, others: Sequence[tuple[str, Spectrum]]) -> str:
    asked = {
        **_config(request, task),
        **landscape(task, spectrum.loss, per_block=True),
        "warm": batches_digest(_warm_batches(task, request)),
        "spectrum": spectrum.fingerprint,
        "others": [[name, other.fingerprint] for name, other in others],
    }
    return task_fingerprint(task, "evaluation", asked)
