"""The sharp subspace of a checkpoint and LITE's proxies of it, measured together and resumable part by part."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lite_probe.errors import InputError, UsageError
from lite_probe.operators.conduct import undisturbed
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.operators.layout import ParameterLayout
from lite_probe.operators.reductions import norm
from lite_probe.optim import OPTIMIZERS, Directions
from lite_probe.results.estimate import Estimate
from lite_probe.results.provenance import Note
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum
from lite_probe.results.store import find_result, register, save
from lite_probe.results.subspace import Overlap, ProxyCalibration, SubspaceMeasurement
from lite_probe.seeds import derive_seed
from lite_probe.spectra import SpectrumRequest, plan_spectrum, require_same_task
from lite_probe.spectra.basis import KrylovBasis
from lite_probe.spectra.fingerprint import batches_digest, task_fingerprint
from lite_probe.spectra.lanczos import random_vector
from lite_probe.spectra.operator import OperatorMeasurement
from lite_probe.spectra.provenance import provenance_of
from lite_probe.subspaces.bands import cut_bands
from lite_probe.subspaces.calibration import Proxy, Samples, calibrate
from lite_probe.subspaces.overlap import halves, overlap_of, random_energy_share, sharp_subspace
from lite_probe.subspaces.preconditioned import PreconditionedOperator
from lite_probe.subspaces.subspace import Subspace
from lite_probe.subspaces.warming import optimizer_of, warm
from lite_probe.task import Batch, Task
from lite_probe.version import __version__

OnProgress = Callable[[int, int, str], None]

DEFAULT_PROXIES = ("adamw-lite", "muon-lite", "soap-lite")
_RANDOM_FRAMES = 4  # random subspaces that the gradient's share is compared with
_PAIRS = 3  # products of a sharp subspace per vector
# The spectrum in a metric: λ₁ and its neighbours, and few probes for tr H² and the quantiles.
_METRIC = {"top": 3, "bottom": 1, "probes": 2, "probe_steps": 10, "tolerance": 1e-2}


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
    """The calibration's samples as they wait on disk, (probes so far, ·) by optimizer."""

    fingerprint: str
    bands: Mapping[str, NDArray[np.float64]]
    sharp: Mapping[str, NDArray[np.float64]]
    flat: Mapping[str, NDArray[np.float64]]


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


register("subspace-probes", _Probes, schema_version=1)
register("subspace-overlap", _FinishedOverlap, schema_version=1)
register("subspace-metric", _FinishedMetric, schema_version=1)


def plan_subspace(
    task: Task,
    spectrum: Spectrum,
    *,
    size: int | None = None,
    probes: int = 16,
    warm_batches: int = 50,
    optimizers: Sequence[str] = DEFAULT_PROXIES,
    overlaps: bool = True,
    preconditioned: bool = True,
    others: Sequence[tuple[str, Spectrum]] = (),
    seed: int = 0,
    memory: int | None = None,
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
    curvature = plan_spectrum(task, top=request.size, bottom=0, probes=2, probe_steps=2, seed=seed, memory=memory)
    require_same_task(spectrum, task, loss=curvature.loss)
    per_product = curvature.seconds / curvature.num_hvps
    gradients = len(_warm_batches(task, request)) + 1
    states = sum(_STATE_BYTES[name.removesuffix("-lite")] for name in request.optimizers)
    return SubspacePlan(
        size=request.size,
        num_parameters=curvature.num_parameters,
        num_hvps=sum(products.values()),
        num_gradients=gradients,
        seconds=sum(products.values()) * per_product + gradients * per_product,
        memory_bytes=curvature.memory_bytes + states * curvature.num_parameters,
        kept_graphs=curvature.kept_graphs,
        vectors_per_pass=curvature.vectors_per_pass,
        loss=curvature.loss,
        gradient_norm=curvature.gradient_norm,
        count=curvature.count,
        fingerprint=_fingerprint(task, request, spectrum, others),
    )


# What an optimizer's state and the directions read from it hold, bytes per parameter.
_STATE_BYTES = {"sgd": 4, "adamw": 16, "muon": 16, "soap": 48}


def measure_subspace(
    task: Task,
    spectrum: Spectrum,
    *,
    size: int | None = None,
    probes: int = 16,
    warm_batches: int = 50,
    optimizers: Sequence[str] = DEFAULT_PROXIES,
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
        optimizers: LITE variants whose proxies are calibrated; a base optimizer has a proxy but no projector.
        overlaps: Also compare the subspace with that of halves of the batches, and with the Gauss–Newton matrix's.
        preconditioned: Also measure the spectrum in each optimizer's metric.
        others: (name, spectrum) of other checkpoints of the same model, to compare with.
        label: This checkpoint's name in those comparisons.
        seed: Of all random vectors.
        memory: Bytes that the process (on an accelerator: its allocations) should stay below.
        plan: From `plan_subspace` with the same arguments, to save making it again.
        state_directory: Finished parts are kept there; the same call continues after a kill with the same numbers.
            `discard_state` removes it once the result is saved.
        on_progress: `(done, expected, label)`, in products.
        command: For provenance.

    Raises:
        UsageError, InputError, NumericsError: As `plan_subspace`.

    Cost: `probes` products for all calibrations together; about 3k per overlap, three of which are on half the batches
        or half as dear; about 40 per metric.
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
    folder = _state_folder(state_directory) if state_directory is not None else None
    session = _Session(task, spectrum, request, plan, memory, folder, on_progress)
    with undisturbed(task.model):
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
        notes=tuple(session.notes),
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
    shutil.rmtree(_state_folder(state_directory), ignore_errors=True)


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
        self.plan = plan
        self.folder = folder
        self.on_progress = on_progress
        self.layout = ParameterLayout(list(task.model.named_parameters()))
        self.subspace = Subspace.of_spectrum(spectrum, task, size=request.size, memory=memory)
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
        if self.request.overlaps:
            self._compare_halves()
            self._compare_operators()
        for name, other in others:
            count = min(self.request.size, Subspace.of_spectrum(other, self.task).size)
            first = Subspace.of_spectrum(other, self.task, size=count)
            second = Subspace.of_spectrum(self.spectrum, self.task, size=count)
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
        pairs, values = self._deflated()
        samples = self._samples(proxies)
        done = len(next(iter(samples.values())).bands)
        self.products["calibration"] = self.request.probes
        self._done += done
        for first in range(done, self.request.probes, self.plan.vectors_per_pass):
            count = min(self.plan.vectors_per_pass, self.request.probes - first)
            probes = torch.stack([self._probe(first + offset) for offset in range(count)])
            images = hessian.matmat(probes.T).T
            for probe, image in zip(probes, images, strict=True):
                rest = image.clone()
                for vector, value in zip(pairs, values, strict=True):
                    weight = float(vector.double() @ probe.double())
                    rest.add_(vector, alpha=-value * weight)
                for name, proxy in proxies.items():
                    samples[name].add(proxy, probe, rest)
            self._keep_samples(samples)
            self._tell(count, f"calibrating · probe {first + count}/{self.request.probes}")
        return {name: calibrate(proxy, samples[name], proxy.exact(pairs, values)) for name, proxy in proxies.items()}

    def _probe(self, index: int) -> torch.Tensor:
        seed = derive_seed(self.request.seed, "calibration", index)
        first = self.layout.parameters[0]
        return random_vector(self.layout.size, seed=seed, dtype=first.dtype, device=first.device)

    def _deflated(self) -> tuple[list[torch.Tensor], NDArray[np.float64]]:
        """Return the spectrum's converged pairs, of both ends."""
        whole, first = self.spectrum.whole, self.layout.parameters[0]
        chosen = np.flatnonzero(np.concatenate([whole.converged, whole.lower_converged]))
        values = np.concatenate([whole.eigenvalues, whole.lower_eigenvalues])[chosen]
        if self.spectrum.eigenvectors is None:
            raise InputError("expected a spectrum with eigenvectors, got one without", "measure it again with --fresh")
        columns = (np.ascontiguousarray(self.spectrum.eigenvectors[:, index]) for index in chosen)
        return [torch.from_numpy(column).to(first) for column in columns], values

    def _samples(self, proxies: Mapping[str, Proxy]) -> dict[str, Samples]:
        """Return what an earlier process sampled, else nothing yet."""
        found = self._load("probes", "subspace-probes")
        if not isinstance(found, _Probes):
            return {name: Samples([], [], []) for name in proxies}
        return {
            name: Samples(list(found.bands[name]), list(found.sharp[name]), list(found.flat[name])) for name in proxies
        }

    def _keep_samples(self, samples: Mapping[str, Samples]) -> None:
        if self.folder is None:
            return
        kept = _Probes(
            fingerprint=self.plan.fingerprint,
            bands={name: np.stack(one.bands) for name, one in samples.items()},
            sharp={name: np.stack(one.sharp) for name, one in samples.items()},
            flat={name: np.stack(one.flat) for name, one in samples.items()},
        )
        save(kept, self.folder / "probes")

    # -- spectra in a metric -------------------------------------------------------------------------------------

    def _metric(self, name: str, directions: list[Directions], hessian: HessianOperator) -> OperatorSpectrum:
        """Measure the spectrum of F^(-1/2) H F^(-1/2)."""
        part = f"preconditioned {name}"
        found = self._load(f"metric-{name}", "subspace-metric")
        if not isinstance(found, _FinishedMetric):
            operator = PreconditionedOperator(hessian, self.layout, directions)
            asked = SpectrumRequest(seed=derive_seed(self.request.seed, "metric", name), **_METRIC)  # type: ignore[arg-type]
            capacity = min(operator.size, 60)
            basis = KrylovBasis(operator.size, capacity, dtype=operator.dtype, device=operator.device)
            before = self._done

            def on_progress(done: int, expected: int, label: str) -> None:
                self._done = before + done
                self._tell(0, f"metric of {name} · {label}")

            measured = OperatorMeasurement(operator, asked, basis=basis, on_progress=on_progress).measure()
            found = _FinishedMetric(
                fingerprint=self.plan.fingerprint,
                spectrum=measured.spectrum,
                bounded_share=operator.bounded_share,
            )
            self._keep(f"metric-{name}", found)
        else:
            self._done += found.spectrum.num_hvps
        self.products[part] = found.spectrum.num_hvps
        if found.bounded_share > 0.0:
            message = (
                f"In the metric of {name} {found.bounded_share:.1%} of the directions have a preconditioner below 1e-4 "
                "of its mean, and were given that."
            )
            self.notes.append(Note(code="metric-bounded", message=message))
        if not bool(found.spectrum.converged[:1].all()):
            message = f"λ₁ in the metric of {name} did not converge within {found.spectrum.num_hvps} products."
            self.notes.append(Note(code="metric-not-converged", message=message))
        return found.spectrum

    # -- overlaps ------------------------------------------------------------------------------------------------

    def _compare_halves(self) -> None:
        """Compare the sharp subspaces of two halves of the evaluation batches."""
        found = self._load("overlap-batches", "subspace-overlap")
        if not isinstance(found, _FinishedOverlap):
            parts, overlap, products = halves(self.task), None, 0
            if parts is not None:
                spaces = []
                for place, half in enumerate(parts):
                    space, used = self._leading(half, "batches", f"half {place + 1} of the batches")
                    spaces.append(space)
                    products += used
                overlap = overlap_of("batches", ("one half", spaces[0]), ("the other half", spaces[1]))
            found = _FinishedOverlap(fingerprint=self.plan.fingerprint, overlap=overlap, num_hvps=products)
            self._keep("overlap-batches", found)
        else:
            self._done += found.num_hvps
        self.products["overlap of halves"] = found.num_hvps
        if found.overlap is not None:
            self.overlaps.append(found.overlap)
        else:
            message = "The evaluation batches could not be divided in two: whether the subspace is theirs is not known."
            self.notes.append(Note(code="no-halves", message=message))

    def _leading(self, task: Task, *path: str) -> tuple[Subspace, int]:
        """Return the sharp subspace of a task's Hessian, and the products it took."""
        graphs = GraphStore(min(self.plan.kept_graphs, len(task.evaluation)), self.layout.parameters)
        count = loss_and_gradient(task, self.layout, "evaluation").count
        operator = self._hessian(task, graphs, count)
        space = sharp_subspace(
            operator,
            self.request.size,
            seed=derive_seed(self.request.seed, *path),
            on_product=lambda: self._tell(1, f"sharp subspace of {path[-1]}"),
        )
        graphs.clear()
        return space, operator.num_products

    def _compare_operators(self) -> None:
        """Compare the Hessian's sharp subspace with the Gauss–Newton matrix's."""
        found = self._load("overlap-operators", "subspace-overlap")
        if not isinstance(found, _FinishedOverlap):
            graphs = GraphStore(self.plan.kept_graphs, self.layout.parameters)
            operator = GaussNewtonOperator(
                self.task, self.layout, count=self.plan.count, graphs=graphs, vectors_per_pass=1
            )
            space = sharp_subspace(
                operator,
                self.request.size,
                seed=derive_seed(self.request.seed, "ggn"),
                on_product=lambda: self._tell(1, "sharp subspace of the Gauss–Newton matrix"),
            )
            graphs.clear()
            overlap = overlap_of("operators", ("Hessian", self.subspace), ("Gauss–Newton", space))
            found = _FinishedOverlap(fingerprint=self.plan.fingerprint, overlap=overlap, num_hvps=operator.num_products)
            self._keep("overlap-operators", found)
        else:
            self._done += found.num_hvps
        self.products["overlap with Gauss–Newton"] = found.num_hvps
        if found.overlap is not None:
            self.overlaps.append(found.overlap)

    # -- progress and state --------------------------------------------------------------------------------------

    def _tell(self, products: int, label: str) -> None:
        self._done += products
        if self.on_progress is not None:
            self.on_progress(self._done, max(self.plan.num_hvps, self._done), label)

    def _load(self, part: str, kind: str) -> Any | None:
        return None if self.folder is None else find_result(self.folder / part, kind, self.plan.fingerprint)

    def _keep(self, part: str, finished: object) -> None:
        if self.folder is not None:
            save(finished, self.folder / part)


def _products(request: _Request) -> dict[str, int]:
    """Return the products that each part is expected to take."""
    products = {"calibration": request.probes}
    if request.preconditioned:
        asked = SpectrumRequest(**_METRIC)  # type: ignore[arg-type]
        products |= {f"preconditioned {name}": asked.expected_products for name in request.optimizers}
    if request.overlaps:
        products |= {"overlap of halves": 2 * _PAIRS * request.size, "overlap with Gauss–Newton": _PAIRS * request.size}
    return products


def _warm_batches(task: Task, request: _Request) -> list[Batch]:
    return list(task.train[: request.warm_batches])


def _state_folder(state_directory: Path) -> Path:
    return Path(state_directory) / "subspace.state"


def _request(
    task: Task,
    spectrum: Spectrum,
    size: int | None,
    probes: int,
    warm_batches: int,
    optimizers: Sequence[str],
    overlaps: bool,
    preconditioned: bool,
    others: Sequence[tuple[str, Spectrum]],
    seed: int,
) -> _Request:
    """Check what was asked, before any compute."""
    for what, value, least in (("probes", probes, 2), ("warm_batches", warm_batches, 2)):
        if value < least:
            raise UsageError(f"expected {what} of at least {least}, got {value}")
    unknown = [name for name in optimizers if name not in OPTIMIZERS]
    if unknown or not optimizers or len(set(optimizers)) < len(optimizers):
        raise UsageError(f"expected optimizers among {', '.join(OPTIMIZERS)}, each once, got {', '.join(optimizers)}")
    if len(task.train) < 2:
        raise InputError(
            f"expected at least 2 training batches to warm optimizer states on, got {len(task.train)}",
            "give the task training batches: make_task(train_batches=50)",
        )
    require_same_task(spectrum, task)
    for name, other in others:
        if other.whole.num_parameters != spectrum.whole.num_parameters:
            raise InputError(
                f"expected checkpoints of {spectrum.whole.num_parameters:,} parameters to compare with, got {name} "
                f"with {other.whole.num_parameters:,}",
                "compare checkpoints of one model",
            )
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
        "warm": batches_digest(_warm_batches(task, request)),
        "spectrum": spectrum.fingerprint,
        "others": [[name, other.fingerprint] for name, other in others],
    }
    return task_fingerprint(task, "evaluation", asked)
