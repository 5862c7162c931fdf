"""The spectrum of a task's curvature, whole and per block, from one set of kept graphs."""

import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lite_probe.blocks import assign_blocks, model_type, unknown_blocks
from lite_probe.errors import OutputError, UsageError
from lite_probe.operators.finite_difference import FiniteDifferenceOperator
from lite_probe.operators.guards import preserve_state, require_precision
from lite_probe.operators.hessian import GraphStore
from lite_probe.results.blocks import BLOCK_NAMES
from lite_probe.results.provenance import Note
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum
from lite_probe.results.store import register
from lite_probe.runtime.disk import require_room
from lite_probe.runtime.fingerprint import task_fingerprint
from lite_probe.runtime.provenance import provenance_of
from lite_probe.runtime.state_folder import StateFolder, remove
from lite_probe.seeds import derive_seed
from lite_probe.spectra import plan as planning
from lite_probe.spectra.operator import OnProgress, OperatorMeasurement, SpectrumRequest
from lite_probe.spectra.plan import CurvatureName, MethodName, SpectrumPlan
from lite_probe.spectra.state import SavedState
from lite_probe.task import Split, Task
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.version import __version__

_WHOLE = "whole"
_LEAST_SPARE = 6  # basis vectors beside the wanted pairs, without which a restart gets nowhere
_BLOCK_TOP, _BLOCK_BOTTOM = 3, 1  # pairs per block: λ₁ and its neighbours; ten would double the cost of --per-block


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finished:
    """One finished operator as it waits on disk for the others."""

    fingerprint: str
    spectrum: OperatorSpectrum
    notes: tuple[Note, ...]
    eigenvectors: NDArray[np.float32] | None


register("operator", _Finished, schema_version=1)


def plan_spectrum(
    task: Task,
    *,
    top: int = 10,
    bottom: int = 3,
    probes: int = 4,
    probe_steps: int = 10,
    tolerance: float = 1e-3,
    operator: CurvatureName = "hessian",
    method: MethodName = "autograd",
    per_block: bool = False,
    split: Split = "evaluation",
    seed: int = 0,
    memory: int | None = None,
    max_products: int | None = None,
    on_progress: OnProgress | None = None,
) -> SpectrumPlan:
    """Say what `measure_spectrum` with the same arguments will do, and what it costs.

    Returns:
        Products, seconds and bytes to expect, and the layout chosen to fit `memory`.

    Raises:
        UsageError: A number out of range, more pairs than parameters, blocks of a task that has none, or too
            little memory.
        InputError: Parameters in half precision.
        NumericsError: Loss or gradient not finite or not deterministic.

    Cost: two gradients, and one graph and two products of one batch.
    """
    request = _request(top, bottom, probes, probe_steps, tolerance, max_products, seed)
    _check(task, request, operator, method, per_block)
    config = _config(request, operator, method, per_block, split, task)
    with preserve_state(task.model) as log:
        plan = planning.plan_spectrum(
            task,
            request,
            operator=operator,
            method=method,
            block_requests=[_block_request(request, name) for name in _blocks(task)] if per_block else [],
            split=split,
            memory=memory,
            on_progress=on_progress,
            fingerprint_of=lambda loss: task_fingerprint(task, split, {**config, **landscape(task, loss, per_block)}),
        )
    return replace(plan, checkpointing_off=log.checkpoints > 0)


def measure_spectrum(
    task: Task,
    *,
    top: int = 10,
    bottom: int = 3,
    probes: int = 4,
    probe_steps: int = 10,
    tolerance: float = 1e-3,
    operator: CurvatureName = "hessian",
    method: MethodName = "autograd",
    per_block: bool = False,
    split: Split = "evaluation",
    seed: int = 0,
    memory: int | None = None,
    max_products: int | None = None,
    plan: SpectrumPlan | None = None,
    state_directory: Path | None = None,
    on_progress: OnProgress | None = None,
    command: str = "",
) -> Spectrum:
    """Measure both ends of the spectrum, density and trace of a task's curvature.

    Args:
        task: Model, loss and batches; comes back bitwise as it was.
        top: Largest eigenpairs, algebraically.
        bottom: Smallest eigenpairs.
        probes: Random probes behind density and trace, at least 2.
        probe_steps: Lanczos steps of each probe.
        tolerance: A pair has converged when ‖Hv − λv‖ ≤ tolerance·|λ|.
        operator: "hessian", or "ggn" for Gauss–Newton.
        method: "autograd", or "finite-differences" for a Hessian without double backward.
        per_block: Also every block alone, the rest held fixed: its three largest pairs, its smallest, density
            and trace.
        split: Batches to measure on.
        seed: Of all random vectors.
        memory: Bytes that the process (on an accelerator: its allocations) should stay below.
        max_products: Products that the pairs of one operator may take.
        plan: From `plan_spectrum` with the same arguments, to save making it again.
        state_directory: Working files lie there, `plan.scratch_bytes` of them: progress, and the basis where memory
            does not hold it. The same call continues after a kill, with the same numbers bitwise on a CPU.
            `discard_state` removes them once the result is saved.
        on_progress: `(done, expected, label)`, in Hessian products.
        command: For provenance.

    Returns:
        The spectrum, its eigenvectors as float32 columns.

    Raises:
        UsageError, InputError: As `plan_spectrum`.
        OutputError: If the state directory's disk has no room for the working files.
        NumericsError: Loss or products not finite, a loss that is not deterministic, a model that cannot be
            differentiated twice.

    Cost: the plan says; for ten pairs of a trained language model about 100 products of two gradients each.
    """
    started = time.perf_counter()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    request = _request(top, bottom, probes, probe_steps, tolerance, max_products, seed)
    _check(task, request, operator, method, per_block)
    if plan is None:
        plan = plan_spectrum(
            task,
            top=top,
            bottom=bottom,
            probes=probes,
            probe_steps=probe_steps,
            tolerance=tolerance,
            operator=operator,
            method=method,
            per_block=per_block,
            split=split,
            seed=seed,
            memory=memory,
            max_products=max_products,
        )
    kind = "finite-differences" if method == "finite-differences" else operator
    if state_directory is not None:
        require_room([(Path(state_directory), plan.scratch_bytes)])
    session = _Session(task, plan, request, kind, split, state_directory, on_progress)
    with preserve_state(task.model):
        finished = session.run(per_block)
    whole = finished.pop(_WHOLE)
    notes = _task_notes(plan, session) + session.state.notes + list(whole.notes)
    notes += [note for block in finished.values() for note in block.notes]
    return Spectrum(
        operator=operator,
        loss=plan.loss,
        gradient_norm=plan.gradient_norm,
        whole=whole.spectrum,
        blocks={name: block.spectrum for name, block in finished.items()},
        eigenvectors=whole.eigenvectors,
        config=_config(request, operator, method, per_block, split, task),
        fingerprint=plan.fingerprint,
        notes=tuple(notes),
        provenance=provenance_of(
            task,
            split=split,
            seed=seed,
            count=plan.count,
            command=command,
            started_at=started_at,
            seconds=time.perf_counter() - started,
            details={
                "graphs": plan.graph_mode,
                "vectors per pass": str(plan.vectors_per_pass),
                "basis": f"{plan.basis_columns} vectors on {plan.basis_placement}",
            },
        ),
    )


def discard_state(state_directory: Path) -> None:
    """Remove what `measure_spectrum` kept to continue from; call it once the result is saved."""
    remove(_state_folder(state_directory))


class _Session:
    """Measures the whole and the blocks one after another on shared graphs, each resumable."""

    def __init__(
        self,
        task: Task,
        plan: SpectrumPlan,
        request: SpectrumRequest,
        kind: str,
        split: Split,
        state_directory: Path | None,
        on_progress: OnProgress | None,
    ) -> None:
        self.task = task
        self.request = request
        self.kind = kind
        self.split: Split = split
        folder = _state_folder(state_directory) if state_directory is not None else None
        self.state = StateFolder(folder, plan.fingerprint)
        self.plan = self._settle_plan(plan)
        self.parameters = list(task.model.named_parameters())
        trainable = [parameter for _, parameter in self.parameters if parameter.requires_grad]
        self.graphs = GraphStore(self.plan.kept_graphs, trainable)
        self.on_progress = on_progress
        self.difference_error: float | None = None
        self.products_of_finished = 0
        self.expected_of_waiting = 0

    def run(self, per_block: bool) -> dict[str, _Finished]:
        """Return the whole, then the blocks in their usual order."""
        names = [_WHOLE, *(_blocks(self.task) if per_block else [])]
        expected = {name: self._request_for(name).expected_products for name in names}
        finished = {}
        for name in names:
            self.expected_of_waiting = sum(
                expected[other] for other in names if other not in finished and other != name
            )
            finished[name] = self._one(name)
            self.products_of_finished += finished[name].spectrum.num_hvps
        self.graphs.clear()
        return finished

    def _one(self, name: str) -> _Finished:
        """Measure one operator, or take what an earlier process finished."""
        earlier = self.state.find(name, "operator")
        if isinstance(earlier, _Finished):
            return earlier
        layout = self._layout(name)
        operator = planning.build_operator(
            self.task, layout, self.plan, kind=self.kind, split=self.split, graphs=self.graphs
        )
        request = self._request_for(name, layout.size)
        state = SavedState(self.state.folder(name, "running"), self.plan.fingerprint)
        measurement = OperatorMeasurement(
            operator,
            request,
            basis=self._basis(layout, request, self.state.folder(name)),
            state=state,
            name="" if name == _WHOLE else name,
            on_progress=self._report,
        )
        measured = measurement.measure()
        if isinstance(operator, FiniteDifferenceOperator) and name == _WHOLE:
            self.difference_error = operator.relative_error
        vectors = None
        if name == _WHOLE:
            count = len(measured.eigenvectors)
            vectors = measurement.run.basis.vectors(count).astype(np.float32, copy=False).T
        result = _Finished(
            fingerprint=self.plan.fingerprint,
            spectrum=measured.spectrum,
            notes=tuple(measured.notes),
            eigenvectors=vectors,
        )
        self.state.keep(name, result)
        state.discard()
        return result

    def _layout(self, name: str) -> ParameterLayout:
        if name == _WHOLE:
            return ParameterLayout(self.parameters)
        return ParameterLayout(self.parameters, block=name, block_map=self.task.blocks)

    def _request_for(self, name: str, size: int | None = None) -> SpectrumRequest:
        """Ask less of a block, and no more than its size allows."""
        if name == _WHOLE:
            return self.request
        asked = _block_request(self.request, name)
        if size is not None and asked.top + asked.bottom > size:
            bottom = min(asked.bottom, size - 1)
            asked = replace(asked, top=size - bottom, bottom=bottom)
        return asked

    def _basis(self, layout: ParameterLayout, request: SpectrumRequest, folder: Path | None) -> KrylovBasis:
        first = layout.parameters[0]
        pairs = request.top + request.bottom
        capacity = min(layout.size, max(self.plan.basis_columns, pairs + _LEAST_SPARE))
        placed = self.plan.basis_placement
        file = None
        if placed == "disk":
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
        return KrylovBasis(layout.size, capacity, dtype=first.dtype, device=device, file=file)

    def _report(self, done: int, expected: int, label: str) -> None:
        if self.on_progress is not None:
            before = self.products_of_finished
            self.on_progress(before + done, before + expected + self.expected_of_waiting, label)

    def _settle_plan(self, plan: SpectrumPlan) -> SpectrumPlan:
        """Keep to the memory layout of an interrupted measurement: another one rounds differently."""
        chosen = ("kept_graphs", "vectors_per_pass", "basis_placement", "basis_columns")
        return replace(plan, **self.state.pin({name: getattr(plan, name) for name in chosen}))


def _block_request(request: SpectrumRequest, name: str) -> SpectrumRequest:
    """Return what is asked of one block."""
    top, bottom = min(request.top, _BLOCK_TOP), min(request.bottom, _BLOCK_BOTTOM)
    return replace(request, top=top, bottom=bottom, seed=derive_seed(request.seed, "block", name))


def _state_folder(state_directory: Path) -> Path:
    return Path(state_directory) / "spectrum.state"


def _request(
    top: int, bottom: int, probes: int, probe_steps: int, tolerance: float, max_products: int | None, seed: int
) -> SpectrumRequest:
    """Check ranges and gather what is asked of one operator."""
    for name, value, least in (
        ("top", top, 1),
        ("bottom", bottom, 0),
        ("probes", probes, 2),
        ("probe_steps", probe_steps, 2),
        ("max_products", 1 if max_products is None else max_products, 1),
    ):
        if value < least:
            raise UsageError(f"expected {name} of at least {least}, got {value}")
    if not 0.0 < tolerance < 1.0:
        raise UsageError(f"expected a tolerance between 0 and 1, got {tolerance}")
    return SpectrumRequest(
        top=top,
        bottom=bottom,
        probes=probes,
        probe_steps=probe_steps,
        tolerance=tolerance,
        max_products=max_products,
        seed=seed,
    )


def _check(task: Task, request: SpectrumRequest, operator: str, method: str, per_block: bool) -> None:
    """Refuse what cannot be measured, before any compute."""
    size = ParameterLayout(list(task.model.named_parameters())).size
    if size == 0:
        raise UsageError("expected a model with trainable parameters, got none")
    require_precision(task.model)
    if request.top + request.bottom > size:
        raise UsageError(
            f"expected --top plus --bottom of at most {size:,}, the number of parameters, "
            f"got {request.top:,} + {request.bottom:,}",
            "ask for fewer pairs",
        )
    if operator not in ("hessian", "ggn"):
        raise UsageError(f"expected the operator hessian or ggn, got {operator!r}")
    if method not in ("autograd", "finite-differences"):
        raise UsageError(f"expected the method autograd or finite-differences, got {method!r}")
    if operator == "ggn" and method == "finite-differences":
        raise UsageError("expected finite differences of the Hessian, got ggn", "leave out one of the two")
    if per_block and task.blocks is None:
        shapes = {name: tuple(parameter.shape) for name, parameter in task.model.named_parameters()}
        config = getattr(task.model, "config", None)
        family = model_type(config)
        _, unknown = assign_blocks(shapes, family, config=config)
        _, hint, sample = unknown_blocks(unknown, family) if unknown else ("", "give the task blocks={}", "")
        raise UsageError(
            "expected a task whose blocks are known for a spectrum per block, got one without",
            f"leave out --per-block, or {hint}",
            sample,
        )


def _blocks(task: Task) -> list[str]:
    """Return the blocks that hold trainable parameters, in the usual order."""
    trainable = {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    present = {part.block for name, parts in (task.blocks or {}).items() if name in trainable for part in parts}
    return [name for name in BLOCK_NAMES if name in present]


def _config(
    request: SpectrumRequest, operator: str, method: str, per_block: bool, split: str, task: Task
) -> dict[str, object]:
    """Return everything that was asked and changes the numbers."""
    return {
        **asdict(request),
        "operator": operator,
        "method": method,
        "per_block": per_block,
        "split": split,
        "device": task.device.type,
        "precision": str(next(task.model.parameters()).dtype).removeprefix("torch."),
        "lite_probe": __version__,
        "torch": torch.__version__,
    }


def landscape(task: Task, loss: float, per_block: bool) -> dict[str, object]:
    """Return what tells a task from another one of the same weights and batches: its loss and its blocks.

    The loss stands for the code of criterion and model, by four digits: its last ones depend on the machine.
    """
    blocks = {name: [asdict(part) for part in parts] for name, parts in (task.blocks or {}).items()}
    return {"loss": f"{loss:.3e}", "blocks": blocks if per_block else None}


def _task_notes(plan: SpectrumPlan, session: _Session) -> list[Note]:
    """Say what the reader should know of model and method."""
    notes = []
    if plan.checkpointing_off:
        notes.append(
            Note(
                code="checkpointing-off",
                message="the model's reentrant activation checkpointing was switched off for the measurement: it has "
                "no second derivative",
            )
        )
    if plan.unused:
        shown = ", ".join(plan.unused[:5]) + (f" and {len(plan.unused) - 5} more" if len(plan.unused) > 5 else "")
        notes.append(
            Note(
                code="unused-parameters",
                message=f"{len(plan.unused)} parameters do not influence the loss and count as zero curvature: {shown}",
            )
        )
    if session.difference_error is not None:
        notes.append(
            Note(
                code="finite-differences",
                message="products are finite differences; halving the step towards its neighbour changed the first "
                f"product by {session.difference_error:.1e} of its norm, which bounds how small a residual can be",
            )
        )
    return notes
