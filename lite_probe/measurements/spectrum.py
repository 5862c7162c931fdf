"""The spectrum of a task's curvature, whole and per block, from one set of kept graphs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lite_probe.blocks import assign_blocks, model_type, unknown_blocks
from lite_probe.errors import UsageError
from lite_probe.files import create_anew
from lite_probe.measurements.base import OnEvent, Outcome, Plan, precision_of
from lite_probe.measurements.requests import OnProgress, takes
from lite_probe.measurements.requests.spectrum import SpectrumRequest
from lite_probe.operators.finite_difference import FiniteDifferenceOperator
from lite_probe.operators.gradient import gradient_norm, require_deterministic
from lite_probe.operators.guards import preserve_state, require_precision
from lite_probe.operators.hessian import GraphStore
from lite_probe.operators.sharded import layout_of, sharded_loss_and_gradient
from lite_probe.results.blocks import BLOCK_NAMES
from lite_probe.results.provenance import Note
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum
from lite_probe.results.store import register
from lite_probe.runtime.memory import MemoryLayout, host_memory_allowed, keeping_freed_memory, memory_allowed
from lite_probe.runtime.resumable import Begun, ResumableRun
from lite_probe.seeds import derive_seed
from lite_probe.spectra import costs as costing
from lite_probe.spectra.fast import Multiplication, choose_multiplication, pays_to_try
from lite_probe.spectra.operator import OperatorMeasurement, OperatorRequest
from lite_probe.spectra.state import SavedState
from lite_probe.task import Task
from lite_probe.task.batches import parts_of, with_rows
from lite_probe.vectors.basis import KrylovBasis
from lite_probe.vectors.layout import ParameterLayout

_WHOLE = "whole"
_BLOCK_TOP, _BLOCK_BOTTOM = 3, 1  # pairs per block: λ₁ and its neighbours; ten would double the cost of --per-block
_BLOCK_PRODUCT_SHARE = 0.6  # a block's product over a whole one: the backward pass is the same, the rest is less


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finished:
    """One finished operator as it waits on disk for the others."""

    fingerprint: str
    spectrum: OperatorSpectrum
    notes: tuple[Note, ...]
    eigenvectors: NDArray[np.float32] | None


register("operator", _Finished, schema_version=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun(Begun):
    """What an interrupted measurement keeps to."""

    layout: MemoryLayout
    multiplication: Multiplication


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What a plan rests on, however it is laid out in memory.

    Attributes:
        costs: Of a part of a batch of `rows` rows.
        rows: None where batches are whole.
        most_rows: Of the largest batch.
        gradient_seconds: All batches.
        vector_bytes: Of a vector of N entries.
        apart: Whether products are an accelerator's, whose host is not counted.
    """

    costs: costing.Costs
    rows: int | None
    most_rows: int
    gradient_seconds: float
    vector_bytes: int
    apart: bool

    def costs_of(self, rows: int | None) -> costing.Costs:
        """Return the costs of parts of so many rows, those of others extrapolated."""
        if rows == self.rows:
            return self.costs
        return costing.of_rows(self.costs, self.rows or self.most_rows, rows or self.most_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumPlan(Plan[Spectrum]):
    """How a spectrum will be measured, and what that takes."""

    begun: ClassVar[type[Begun] | None] = _Begun
    shown: ClassVar[tuple[str, ...]] = (
        *("num_parameters", "num_hvps", "seconds", "memory_bytes", "most_memory_bytes", "graph_mode", "num_shards"),
        *("layout", "multiplication", "scratch_bytes", "result_bytes", "fingerprint"),
    )

    request: SpectrumRequest
    num_hvps: int  # expected, all operators together
    graph_mode: Literal["kept", "partly kept", "recomputed", "none"]
    layout: MemoryLayout
    loss: float
    gradient_norm: float
    count: int  # tokens or samples behind the loss
    unused: tuple[str, ...]  # parameters without influence on the loss
    num_shards: int  # that the model is cut into; 1 where every rank holds it whole
    rows_mix: bool  # a batch's loss is not the sum of its rows', so that batches are computed whole
    multiplication: Multiplication  # what products are multiplied in
    ground: _Ground
    checkpointing_off: bool  # the model checkpoints activations reentrantly, which a measurement leaves out

    @classmethod
    def checked(cls, task: Task, request: SpectrumRequest) -> SpectrumRequest:
        """Refuse what cannot be measured.

        Raises:
            UsageError: More pairs than parameters, or blocks of a task that has none.
            InputError: Parameters in half precision.
        """
        size = sum(parameter.numel() for parameter in task.model.parameters() if parameter.requires_grad)
        if size == 0:
            raise UsageError("expected a model with trainable parameters, got none")
        require_precision(task.model)
        kind = precision_of(task)
        if kind != "float32" and request.products in ("tf32", "bf16"):
            raise UsageError(
                f"expected float32 weights for products in {request.products}, got {kind}",
                "convert model and batches with .float(), or leave products as they are",
            )
        if request.products == "auto" and not pays_to_try(task.device, kind, request.method):
            request = replace(request, products="float32")
        if task.ranks.is_sharded:
            _require_for_shards(request)
        if request.top + request.bottom > size:
            raise UsageError(
                f"expected --top plus --bottom of at most {size:,}, the number of parameters, "
                f"got {request.top:,} + {request.bottom:,}",
                "ask for fewer pairs",
            )
        if request.per_block and task.blocks is None:
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
        return request

    @classmethod
    def of(cls, task: Task, request: SpectrumRequest, on_progress: OnProgress | None) -> "SpectrumPlan":
        """Decide how to measure.

        Raises:
            NumericsError: If loss or gradient are not finite or not deterministic.
            UsageError: If the memory allowed does not hold even the leanest layout.

        Cost: two gradients; of one row and of the part of a batch that is chosen, one graph and two products.
        """
        with preserve_state(task.model, fused_attention=task.ranks.is_sharded) as log:
            plan = cls._of(task, request, on_progress)
        return replace(plan, checkpointing_off=log.checkpoints > 0)

    @classmethod
    def _of(cls, task: Task, request: SpectrumRequest, on_progress: OnProgress | None) -> "SpectrumPlan":
        layout = layout_of(task)
        ranks = task.ranks
        fullest = task.of_first_rank(request.split)
        num_batches = len(fullest.batches(request.split))
        done = 0

        def on_batch(index: int) -> None:
            nonlocal done
            done += 1
            if on_progress is not None:
                on_progress(done, 2 * num_batches + 1, "planning")  # two gradients, and the graph of one batch

        if ranks.is_sharded:
            options = costing.RowOptions((None,), 0, 0)
        else:
            options = costing.row_options(fullest, layout, request.split)
        whole_batches, rows_mix = replace(options, rows=(None,)), False
        budget = ranks.least(memory_allowed(task.device, request.memory, ranks.on_host))
        rows = ranks.once(partial(costing.gradient_rows, options, layout, budget))
        if rows is not None and not costing.adds_up(fullest, request.split, rows):
            options, rows, rows_mix = whole_batches, None, True
        started = time.perf_counter()
        if ranks.is_sharded:
            evaluated = require_deterministic(task, layout, request.split, on_batch, sharded_loss_and_gradient)
        else:
            evaluated = require_deterministic(with_rows(task, rows), layout, request.split, on_batch)
        gradient_seconds = (time.perf_counter() - started) / 2.0
        length = gradient_norm(task, evaluated)
        # N numbers that are no longer needed; a slice would keep them.
        evaluated = replace(evaluated, gradient=evaluated.gradient.new_empty(0))
        kind = _kind(request)
        whole, host = _operator_request(request, _WHOLE), host_memory_allowed(task.device, ranks.on_host)
        host = None if host is None else ranks.least(host)
        plan_memory = partial(
            costing.plan_memory,
            *(fullest, layout, evaluated, whole, request.split, kind),
            budget=budget,
            host=host,
            ranks=ranks.count,
        )
        differences = replace(options, rows=(rows,))  # nothing but gradients
        options = differences if kind == "finite-differences" else options.down_from(rows)
        if ranks.is_sharded:
            plan_shards = partial(costing.plan_shards, task, layout, evaluated, whole, request.split)
            costs, memory = ranks.together(partial(plan_shards, budget=budget, host=host))
        else:
            costs, memory = ranks.once(partial(plan_memory, options=options))
        if rows is None and memory.rows is not None and not costing.adds_up(fullest, request.split, memory.rows):
            costs, memory = ranks.once(partial(plan_memory, options=whole_batches))
            rows_mix = True
        ground = _Ground(
            costs=costs,
            rows=memory.rows,
            most_rows=options.most,
            gradient_seconds=gradient_seconds,
            vector_bytes=layout.whole_size * layout.parameters[0].element_size(),
            apart=host is not None,
        )
        num_parts = _num_parts(task, request, memory)
        most = costing.peak_bytes(costs, num_parts, memory, apart=ground.apart)
        multiplication = ranks.once(
            lambda: choose_multiplication(
                with_rows(fullest, memory.rows),
                layout,
                asked=request.products,
                operators=[_operator_request(request, name) for name in _operators(task, request)],
                kind=kind,
                split=request.split,
                count=evaluated.count,
                graphs_kept=memory.kept_graphs > 0,
                room_for_pairs=most + _residual_bytes(whole, costs) <= budget,
            )
        )
        return cls(
            request=request,
            num_parameters=layout.whole_size,
            fingerprint=cls.key(task, request, evaluated.loss),
            loss=evaluated.loss,
            gradient_norm=length,
            count=evaluated.count,
            unused=evaluated.unused,
            result_bytes=4 * layout.whole_size * (request.top + request.bottom),  # eigenvectors, in float32
            num_shards=ranks.count if ranks.is_sharded else 1,
            rows_mix=rows_mix,
            ground=ground,
            checkpointing_off=False,
            **_figures(task, request, ground, memory, multiplication),
        )

    def laid_out(self, task: Task, layout: MemoryLayout, multiplication: Multiplication) -> "SpectrumPlan":
        """Return the plan in another layout in memory, with what that takes.

        Args:
            task: That it was planned on.
            layout: In memory.
            multiplication: What products are multiplied in.
        """
        return replace(self, **_figures(task, self.request, self.ground, layout, multiplication))

    def laid_out_as(self, task: Task, begun: _Begun) -> "SpectrumPlan":
        """Return the plan in the layout and with the products that an interrupted run began with."""
        return self.laid_out(task, begun.layout, begun.multiplication)

    def summary(self) -> str:
        """Return the plan as one line for people."""
        graphs = {
            "kept": "graphs kept",
            "partly kept": f"{self.layout.kept_graphs} graphs kept",
            "recomputed": "graphs rebuilt",
            "none": "finite differences",
        }[self.graph_mode]
        parts = "" if self.layout.rows is None else f", batches in parts of {_rows(self.layout.rows)}"
        where = "" if self.layout.basis_placement == "device" else f" {self.layout.place}"
        bits = f"; {self.multiplication.told()}" if self.multiplication.is_fast else ""
        shards = f"the model in {self.num_shards} shards, " if self.num_shards > 1 else ""
        return (
            f"~{self.num_hvps} Hessian products, {self.time_and_memory} ({shards}{graphs}{parts}, basis of "
            f"{self.layout.basis_columns} vectors{where}{bits})"
        )

    def measure(self, task: Task, run: ResumableRun, on_event: OnEvent | None) -> Outcome:
        """Measure the whole and the blocks one after another, each resumable."""
        session = _Session(task, self, run)
        finished = session.run()
        whole = finished.pop(_WHOLE)
        spectra = [whole.spectrum, *(block.spectrum for block in finished.values())]
        bits = session.multiplication
        notes = [*self._notes(session.difference_error), *_bits_notes(bits, spectra), *run.notes, *whole.notes]
        return Outcome(
            fields={
                "operator": self.request.operator,
                "loss": self.loss,
                "gradient_norm": self.gradient_norm,
                "whole": whole.spectrum,
                "blocks": {name: block.spectrum for name, block in finished.items()},
                "eigenvectors": whole.eigenvectors,
            },
            count=self.count,
            notes=[*notes, *(note for block in finished.values() for note in block.notes)],
            details={
                "graphs": self.graph_mode,
                **({"model": f"{self.num_shards} shards"} if self.num_shards > 1 else {}),
                "vectors per pass": str(self.layout.vectors_per_pass),
                "basis": f"{self.layout.basis_columns} vectors {self.layout.place}",
                **({} if self.layout.rows is None else {"batches": f"in parts of {_rows(self.layout.rows)}"}),
                **({"products": bits_told(bits.precision, spectra)} if bits.is_fast else {}),
            },
        )

    def _notes(self, difference_error: float | None) -> list[Note]:
        """Say what the reader should know of model and method."""
        notes = []
        if self.checkpointing_off:
            message = (
                "the model's reentrant activation checkpointing was switched off for the measurement: it has no second "
                "derivative"
            )
            notes.append(Note(code="checkpointing-off", message=message))
        if self.rows_mix:
            message = (
                "the loss of a batch is not the sum of its rows' losses, so batches were computed whole where parts of "
                "them would have needed less memory"
            )
            notes.append(Note(code="batches-whole", message=message))
        if self.unused:
            more = f" and {len(self.unused) - 5} more" if len(self.unused) > 5 else ""
            what = "do not influence the loss and count as zero curvature"
            if self.num_shards > 1:  # where gradients of zero are not told from none
                what = "have a gradient of zero, and the loss stays as it is where they are moved a little"
            message = f"{len(self.unused)} parameters {what}: {', '.join(self.unused[:5])}{more}"
            notes.append(Note(code="unused-parameters", message=message))
        if difference_error is not None:
            message = (
                "products are finite differences; halving the step towards its neighbour changed the first "
                f"product by {difference_error:.1e} of its norm, which bounds how small a residual can be"
            )
            notes.append(Note(code="finite-differences", message=message))
        return notes


def _figures(
    task: Task, request: SpectrumRequest, ground: _Ground, layout: MemoryLayout, multiplication: Multiplication
) -> dict[str, Any]:
    """Return what a plan says of a layout in memory, and of what products are multiplied in."""
    costs, num_parts = ground.costs_of(layout.rows), _num_parts(task, request, layout)
    asked = [_operator_request(request, name) for name in _operators(task, request)]
    whole, rebuilt = asked[0], num_parts - layout.kept_graphs
    rebuild_seconds = costs.build_seconds * rebuilt / num_parts
    seconds = 2 * ground.gradient_seconds + costs.build_seconds
    for one, share in zip(asked, [1.0, *[_BLOCK_PRODUCT_SHARE] * len(asked)], strict=False):
        passes = one.expected_pair_products + one.probes * one.probe_steps / layout.vectors_per_pass
        all_exact = share * one.expected_products * costs.product_seconds + passes * rebuild_seconds
        seconds += all_exact * multiplication.cost(one) / one.expected_products
    most = peak = costing.peak_bytes(costs, num_parts, layout, apart=ground.apart)
    if not ground.apart:  # a CPU, where room is taken as the basis fills
        filled = min(layout.basis_columns, whole.expected_pair_products)
        peak = costing.peak_bytes(costs, num_parts, layout, apart=False, filled=filled)
    polished = _residual_bytes(whole, costs) if multiplication.is_polishing(whole) else 0
    mode: Literal["kept", "partly kept", "recomputed", "none"] = "partly kept" if layout.kept_graphs else "recomputed"
    if _kind(request) == "finite-differences":
        mode = "none"
    elif rebuilt == 0:
        mode = "kept"
    return {
        "num_hvps": sum(multiplication.count(one) for one in asked),
        "seconds": seconds,
        "memory_bytes": peak + polished,
        "most_memory_bytes": most + polished,
        "graph_mode": mode,
        "layout": layout,
        "multiplication": multiplication,
        "scratch_bytes": costing.scratch_bytes(whole, ground.vector_bytes, layout),
    }


def _num_parts(task: Task, request: SpectrumRequest, layout: MemoryLayout) -> int:
    """Return the parts of batches that rank 0 computes, who has most of them."""
    return len(parts_of(with_rows(task.of_first_rank(request.split), layout.rows), request.split))


def _residual_bytes(whole: OperatorRequest, costs: costing.Costs) -> int:
    """Return the bytes of the residuals of all pairs at once, when exact products polish them."""
    return 2 * (whole.top + whole.bottom + 1) * costs.row_bytes


def bits_told(precision: str, spectra: Sequence[OperatorSpectrum]) -> str:
    """Say how many products were multiplied in fewer bits, and how far they are off."""
    fast, all_products = (sum(getattr(one, name) for one in spectra) for name in ("num_fast_hvps", "num_hvps"))
    errors = [one.product_error for one in spectra if one.product_error is not None and one.num_fast_hvps]
    off = f", {max(errors):.1g} off on random vectors" if errors else ""
    return f"{fast} of {all_products} in {precision}{off}"


def _bits_notes(bits: Multiplication, spectra: Sequence[OperatorSpectrum]) -> list[Note]:
    """Say what products in fewer bits touch."""
    if not bits.is_fast:
        return []
    message = (
        f"Hessian products were multiplied in fewer bits, {bits_told(bits.precision, spectra)}: the density is off by "
        "about as much; residuals of pairs come from float32 products, and so do the samples of the trace"
    )
    notes = [Note(code="fewer-bits", message=message)]
    if bits.emulated:
        message = (
            f"this device has no units for {bits.precision}: operands were rounded to it and multiplied in float32, "
            "which takes longer than --precision float32"
        )
        notes.append(Note(code="emulated-precision", message=message))
    return notes


class _Session:
    """Measures the whole and the blocks one after another on shared graphs."""

    def __init__(self, task: Task, plan: SpectrumPlan, run: ResumableRun) -> None:
        self.plan = plan
        self.state = run
        # Another memory layout rounds differently: an interrupted measurement keeps to its own.
        begun = run.pin(_Begun(layout=plan.layout, multiplication=plan.multiplication, memory=plan.request.memory))
        self.memory, self.multiplication = begun.layout, begun.multiplication
        self.ranks = task.ranks
        self.task = with_rows(task, self.memory.rows)
        self.parameters = list(task.model.named_parameters())
        trainable = [parameter for _, parameter in self.parameters if parameter.requires_grad]
        self.graphs = GraphStore(self.memory.kept_graphs, trainable)
        self.difference_error: float | None = None

    def run(self) -> dict[str, _Finished]:
        """Return the whole, then the blocks in their usual order."""
        names = _operators(self.task, self.plan.request)
        expected = {name: _operator_request(self.plan.request, name).expected_products for name in names}
        finished: dict[str, _Finished] = {}
        for place, name in enumerate(names):
            before = sum(one.spectrum.num_hvps for one in finished.values())
            waiting = sum(expected[other] for other in names[place + 1 :])

            report = partial(self._report, before, waiting)
            with keeping_freed_memory():
                finished[name] = self.state.stage(
                    name, "operator", partial(self._measure, name, report), _without_vectors
                )
        self.graphs.clear()
        return finished

    def _report(self, before: int, waiting: int, done: int, own: int, label: str) -> None:
        """Tell how far one operator is, products before it and after it included."""
        self.state.done, self.state.expected = before + done, before + own + waiting
        self.state.advance(0, label)

    def _measure(self, name: str, report: OnProgress) -> _Finished:
        """Measure one operator."""
        is_whole = name == _WHOLE
        layout = layout_of(self.task)
        if not is_whole:
            layout = ParameterLayout(self.parameters, block=name, block_map=self.task.blocks)
        build = partial(
            costing.build_operator,
            self.task,
            layout,
            kind=_kind(self.plan.request),
            count=self.plan.count,
            split=self.plan.request.split,
            graphs=self.graphs,
            vectors_per_pass=self.memory.vectors_per_pass,
        )
        operator = build()
        request = _operator_request(self.plan.request, name, layout.whole_size)
        if isinstance(operator, FiniteDifferenceOperator):
            operator.settle(derive_seed(request.seed, "step"))
        state = SavedState(self.state.folder(name, "running"), self.plan.fingerprint, self.ranks)
        measurement = OperatorMeasurement(
            operator,
            request,
            basis=self.memory.basis(layout, request.top + request.bottom, self.state.folder(name), self.ranks),
            state=state,
            name="" if is_whole else name,
            on_progress=report,
            fast=build(precision=self.multiplication.precision) if self.multiplication.is_fast else None,
            fast_pairs=self.multiplication.fast_pairs,
        )
        measured = measurement.measure()
        if isinstance(operator, FiniteDifferenceOperator) and is_whole:
            self.difference_error = operator.relative_error
        vectors = None
        if is_whole:
            vectors = self._vectors(measurement.run.basis, len(measured.eigenvectors), self.state.folder(name))
        return _Finished(
            fingerprint=self.plan.fingerprint,
            spectrum=measured.spectrum,
            notes=tuple(measured.notes),
            eigenvectors=vectors,
        )

    def _vectors(self, basis: KrylovBasis, count: int, folder: Path | None) -> NDArray[np.float32] | None:
        """Return the first vectors of a basis as columns, (N, count), on rank 0."""
        if self.ranks.count == 1:
            return basis.vectors(count).astype(np.float32, copy=False).T
        whole: NDArray[np.float32] | None = None
        if self.ranks.is_first:
            shape = (count, basis.whole_size)
            if self.memory.basis_placement == "disk" and folder is not None:
                with create_anew(folder / "vectors.bin") as file:
                    whole = np.memmap(file, np.float32, "w+", shape=shape)
            else:
                whole = np.empty(shape, np.float32)
        for place in range(count):
            # One at a time: they need not fit into memory.
            row = self.ranks.collected(basis.rows[place], basis.whole_size)
            if whole is not None and row is not None:
                whole[place] = row.numpy()
        return None if whole is None else whole.T


def _without_vectors(finished: _Finished) -> _Finished:
    return replace(finished, eigenvectors=None)


def _require_for_shards(request: SpectrumRequest) -> None:
    """Refuse what shards of a model do not give.

    Raises:
        UsageError: Products by autograd, or blocks.
    """
    if request.method != "finite-differences":
        raise UsageError(
            f"expected finite differences for a model in shards, got --method {request.method}",
            "pass --method finite-differences: autograd differentiates no shard",
        )
    if request.per_block:
        raise UsageError(
            "expected the whole spectrum for a model in shards, got --per-block",
            "leave out --per-block, or measure on ranks that each hold the whole model",
        )


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _kind(request: SpectrumRequest) -> str:
    return request.operator if request.method == "autograd" else request.method


def _operators(task: Task, request: SpectrumRequest) -> list[str]:
    """Return the whole and, where asked for, the blocks that hold trainable parameters, in the usual order."""
    if not request.per_block:
        return [_WHOLE]
    trainable = {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    present = {part.block for name, parts in (task.blocks or {}).items() if name in trainable for part in parts}
    return [_WHOLE, *(name for name in BLOCK_NAMES if name in present)]


def _operator_request(request: SpectrumRequest, name: str, size: int | None = None) -> OperatorRequest:
    """Return what is asked of the whole, or of a block: less, and no more than its size allows."""
    own = ("top", "bottom", "probes", "probe_steps", "tolerance", "max_products", "seed")
    asked = OperatorRequest(**{field: getattr(request, field) for field in own})
    if name == _WHOLE:
        return asked
    top, bottom = min(asked.top, _BLOCK_TOP), min(asked.bottom, _BLOCK_BOTTOM)
    if size is not None and top + bottom > size:
        bottom = min(bottom, size - 1)
        top = size - bottom
    return replace(asked, top=top, bottom=bottom, seed=derive_seed(request.seed, "block", name))


@takes(SpectrumRequest)
def measure_spectrum(
    task: Task,
    *,
    state_directory: Path | None = None,
    on_progress: OnProgress | None = None,
    command: str = "",
    **asked: Any,
) -> Spectrum:
    """Measure both ends of the spectrum, density and trace of a task's curvature.

    Args:
        task: Model, loss and batches; comes back bitwise as it was.
        state_directory: As of `Plan.run`, as are the next two.
        on_progress: In Hessian products.
        command: For provenance.
        asked: Fields of `SpectrumRequest`: top=10, probes=4, per_block=True.

    Returns:
        The spectrum, its eigenvectors as float32 columns.

    Raises:
        UsageError, InputError: As `SpectrumRequest` and its plan.
        OutputError: If the state directory's disk has no room for the working files.
        NumericsError: Loss or products not finite, a loss that is not deterministic, a model that cannot be
            differentiated twice.

    Cost: the plan says; for ten pairs of a trained language model about 100 products of two gradients each.
    """
    plan = SpectrumRequest(**asked).plan(task)
    spectrum: Spectrum = plan.run(task, state_directory=state_directory, on_progress=on_progress, command=command)
    return spectrum
