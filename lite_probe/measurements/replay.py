"""The replay: the same segment under several optimizers, each watched direction by direction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from lite_probe.errors import InputError, NumericsError
from lite_probe.measurements.base import OnEvent, Outcome, Plan, spectrum_of
from lite_probe.measurements.optimizers import inherited_by, put_back
from lite_probe.measurements.replay_session import (
    ABLATIONS,
    ReplaySession,
    ReplayStep,
    curvature_note,
    splits_of,
)
from lite_probe.measurements.requests import OnProgress, takes
from lite_probe.measurements.requests.optimizers import Asked
from lite_probe.measurements.requests.replay import ReplayRequest
from lite_probe.operators.guards import preserve_state, require_precision
from lite_probe.replays import plan as planning
from lite_probe.replays.allocation import Point
from lite_probe.replays.curvature import KINDS
from lite_probe.replays.entrants import Entrant, entrants_of
from lite_probe.replays.ramp import ramp_steps
from lite_probe.replays.recipes import require_settings
from lite_probe.replays.segments import measured_split, require_disjoint, split_notes
from lite_probe.results.provenance import Note
from lite_probe.results.replay import Replay
from lite_probe.results.spectrum import Spectrum
from lite_probe.runtime.fingerprint import batches_digest
from lite_probe.runtime.memory import memory_allowed, memory_in_use, require_memory
from lite_probe.runtime.resumable import ResumableRun
from lite_probe.spectra.compatibility import require_same_task
from lite_probe.subspaces import Subspace, can_take, optimizer_of, own_gradients
from lite_probe.subspaces.footprints import Footprint
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.ranks import ALONE


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayPlan(Plan[Replay]):
    """What a replay will do, and what that takes."""

    shown: ClassVar[tuple[str, ...]] = (
        *("num_parameters", "num_runs", "num_gradients", "num_hvps", "seconds"),
        *("memory_bytes", "scratch_bytes", "result_bytes", "start_loss", "fingerprint", "swept"),
    )

    request: ReplayRequest
    num_gradients: int  # expected, all runs together
    num_hvps: int  # that predict losses, measure the bands' curvature, and one per line of the landscape
    no_curvature: str  # why the bands' curvature cannot be measured; empty where it can, or nobody asks
    vector_memory: int | None  # bytes that the sharp subspace may take; None leaves it to what is free
    shares_bands: bool  # whether the optimizer of the bands is replayed too, and warmed once for both
    stores_states: bool  # whether what our optimizers' runs start from is in files
    keeps_states: bool  # whether every optimizer's state is kept for the landscape, which else warms it again
    by_differences: bool  # whether the landscape's curvatures are differences of gradients
    num_runs: int
    swept: tuple[str, ...]  # optimizers whose learning rate is swept
    start_loss: float  # at θ₀, held out where there are batches for it

    @classmethod
    def vet(cls, request: ReplayRequest) -> None:
        """Refuse optimizers and hyperparameters that there are not.

        Raises:
            UsageError: An unknown optimizer or hyperparameter.
            InputError: A user's file that has no such function, or raised.
        """
        require_settings(entrants_of(request.asked), request.hyperparameters)

    @classmethod
    def checked(cls, task: Task, request: ReplayRequest) -> ReplayRequest:
        """Refuse what cannot be replayed; settle whose proxy orders the directions.

        Raises:
            UsageError: As `vet`, or a hyperparameter out of range.
            InputError: An optimizer, or that of the bands, that cannot take a parameter; too few training batches,
                evaluation samples that are trained on; a state or learning rate that the checkpoint does not have; a
                spectrum of something else.
        """
        cls.vet(request)
        require_precision(task.model)
        if request.bands is None:
            takes_soap = can_take("soap", task) or not can_take("adamw", task)
            request = replace(request, bands="soap" if takes_soap else "adamw")
        entrants = entrants_of(request.asked)
        for name, entrant in entrants.items():
            try:
                entrant.make(task, request.hyperparameters.get(name, {}))
            except InputError as error:
                hint = error.hint if error.sample else f"{error.hint} (--optimizers)".strip()
                raise InputError(error.message, hint, error.sample) from error
        try:
            optimizer_of(task, str(request.bands))
        except InputError as error:
            raise InputError(error.message, f"leave out --bands {request.bands}, or use --bands adamw") from error
        splits_of(task, request)
        require_disjoint(task)
        inherited_by(task, request)
        if request.spectrum is not None:
            require_same_task(request.spectrum, task)
        return request

    @classmethod
    def identity(cls, task: Task, request: ReplayRequest) -> Mapping[str, Any]:
        """Return the batches of each part, the spectrum, what is taken from the checkpoint, and code of the user's."""
        splits, entrants = splits_of(task, request), entrants_of(request.asked)
        own: dict[str, Any] = {
            "batches": [batches_digest(splits.warm), splits.sweep.digest, *(one.digest for one in splits.segments)],
            "spectrum": spectrum_of(request).fingerprint,
            "inherited": inherited_by(task, request),
        }
        if len(task.heldout):
            own["held-out batches"] = batches_digest(task.heldout)
        foreign = [one for one in entrants.values() if not one.is_ours]
        if foreign:
            own["made"] = {one.name: one.digest(task, request.hyperparameters.get(one.name, {})) for one in foreign}
        return own

    @classmethod
    def of(cls, task: Task, request: ReplayRequest, on_progress: OnProgress | None) -> "ReplayPlan":
        """Say what a replay will do, and what it costs.

        Raises:
            UsageError: Too little memory.
            NumericsError: A loss or gradient at θ₀ that is not finite; with a horizon, a model that cannot be
                differentiated twice: without one, the curvature of bands is left out there, which a note says.

        Cost: two evaluation gradients and two training gradients; two or three steps of each optimizer on a matrix of
            each shape, two on the model and as many gradients of one that is not ours; with a horizon, curvature probes
            or a landscape, one graph and two products of one batch.
        """
        spectrum, bands = spectrum_of(request), str(request.bands)
        ranks, task = task.ranks, replace(task, ranks=ALONE)
        splits, entrants = splits_of(task, request), entrants_of(request.asked)
        layout = ParameterLayout(list(task.model.named_parameters()))
        everyone = {**entrants, bands: entrants.get(bands, Entrant(bands))}
        sets = 2 if len(task.heldout) else 1
        allowed = ranks.least(memory_allowed(task.device, request.memory, ranks.on_host))
        purpose, remedy = "a step and the states of its optimizers", "lower --batch-size or --seq-len"
        footprints = planning.footprints_of(task, everyone, request.hyperparameters)
        needs = partial(planning.expected_memory, layout=layout, optimizers=request.names, bands=bands, sets=sets)
        ours = tuple(name for name, entrant in entrants.items() if entrant.is_ours)
        least = partial(needs, stored=ours)
        # What is known before anything is computed: the states, and the vectors beside them.
        require_memory(least(memory_in_use(task.device), footprints), allowed, purpose, remedy)
        with preserve_state(task.model), own_gradients(layout.parameters):
            costs, start, evaluated = planning.measure_costs(
                task, layout, splits.warm[0], everyone, request.hyperparameters, footprints, on_progress
            )
            costs, no_products = _with_products(task, layout, start, costs, request, partial(_needs, least), allowed)
        require_same_task(spectrum, task, loss=evaluated)
        taken = inherited_by(task, request)
        swept = tuple(name for name, rate in request.rates.items() if rate == "sweep")
        ablated = len(ABLATIONS) if request.ablations else 0
        warmed = tuple(name for name in request.names if request.state != "cold" and name not in taken)
        stored = ours if _needs(needs, costs) > allowed else ()
        needed = _needs(partial(needs, stored=stored), costs)
        # One with settings of its own has another state than that of the bands.
        is_shared = bands in warmed and everyone[bands].is_ours and not request.hyperparameters.get(bands)
        waiting = planning.waiting_bytes(costs, request.names, bands) if is_shared and not stored else 0
        is_shared = is_shared and needed + waiting <= allowed
        common: dict[str, Any] = {
            "shares_bands": is_shared,
            "steps": request.steps,
            "seeds": request.seeds,
            "rule": request.rule,
            "warm_batches": len(splits.warm),
            "warmed": warmed,
            "swept": swept,
            "ablations": ablated,
            "sets": sets,
            "ramp": ramp_steps(request.steps, request.ramp),
        }
        require_memory(needed, allowed, purpose, remedy)
        needed += waiting * is_shared
        # Unasked, the subspace takes a quarter of what is free; asked, what the rest leaves, and else it stays in its
        # file.
        vectors = None if request.memory is None else allowed - needed
        basis = Subspace.of_spectrum(spectrum, task, memory=vectors)
        kept = planning.kept_states_bytes(costs, entrants, stored) if request.landscape else 0
        keeps_states = request.landscape and needed + basis.num_bytes + kept <= allowed
        runs = len(request.names) * request.seeds * (1 + ablated)
        products = 0
        if request.horizon:
            products = planning.count_products(request.names, steps=request.steps, seeds=request.seeds)
        probed = 0 if no_products else len(KINDS) * request.curvature_probes
        blocks = {part.block for parts in task.blocks.values() for part in parts} if task.blocks else {"other"}
        records = planning.records_bytes(
            runs=runs, steps=request.steps, sharp=basis.size, blocks=len(blocks), sets=sets, products=products
        )
        around, by_differences = planning.LandscapeCosts(), False
        if request.landscape:
            by_differences = bool(no_products) or spectrum.config.get("method") == "finite-differences"
            around = planning.landscape_costs(
                planning.with_differences(costs) if by_differences else costs,
                request.names,
                sharp=basis.size,
                steps=request.steps,
                rewarmed=dict.fromkeys(() if keeps_states else common["warmed"], len(splits.warm)),
                by_differences=by_differences,
            )
        return cls(
            request=request,
            num_parameters=layout.size,
            num_gradients=planning.count_gradients(request.names, **common) + around.num_gradients,
            num_hvps=products + probed + around.num_hvps,
            no_curvature=no_products if request.curvature_probes else "",
            seconds=planning.expected_seconds(
                costs, request.names, bands=bands, **{**common, "seeds": -(-request.seeds // ranks.count)}
            )
            + (products + probed) * costs.product_seconds
            + around.seconds,
            memory_bytes=needed + basis.num_bytes + kept * keeps_states,
            vector_memory=vectors,
            stores_states=bool(stored),
            keeps_states=keeps_states,
            shares_bands=is_shared,
            by_differences=by_differences,
            scratch_bytes=planning.scratch_bytes(
                costs, layout, records=records, runs=runs, ranks=ranks.count, stored=stored
            )
            + around.result_bytes,
            result_bytes=records + around.result_bytes,
            num_runs=runs,
            swept=swept,
            fingerprint=cls.key(task, request, spectrum.loss),
            start_loss=start.loss,
        )

    def summary(self) -> str:
        """Return the plan as one line for people."""
        sweep = f", learning rates of {len(self.swept)} swept" if self.swept else ""
        counts = ((self.num_runs, "run"), (self.request.steps, "step"), (self.request.seeds, "seed"))
        runs, steps, seeds = (f"{number:,} {thing}{'' if number == 1 else 's'}" for number, thing in counts)
        products = f" and {self.num_hvps:,} Hessian products" if self.num_hvps else ""
        work = f"~{self.num_gradients:,} gradients{products}, {self.time_and_memory}"
        return f"{runs} of {steps}, {seeds}{sweep}: {work}" + (", states on disk" if self.stores_states else "")

    def measure(self, task: Task, run: ResumableRun, on_event: OnEvent | None) -> Outcome:
        """Replay one optimizer after another; `on_event` is told a `ReplayStep` of every step."""
        layout = ParameterLayout(list(task.model.named_parameters()))
        spectrum = spectrum_of(self.request)
        run.expected = self.num_gradients // task.ranks.count  # about what rank 0 makes
        request = replace(self.request, curvature_probes=0) if self.no_curvature else self.request
        subspace = Subspace.of_spectrum(spectrum, task, memory=self.vector_memory)
        with own_gradients(layout.parameters), put_back(layout) as start:
            session = ReplaySession(
                task,
                layout,
                start,
                request,
                subspace,
                run,
                on_event,
                keeps_states=self.keeps_states,
                stores_states=self.stores_states,
                shares_bands=self.shares_bands,
                by_differences=self.by_differences,
            )
            session.run()
        notes = [*session.splits.notes, *split_notes(task), *session.notes]
        if self.by_differences:
            message = "Curvatures of the landscape are differences of gradients: Hessian products cannot be had here."
            notes.append(Note(code="landscape-differences", message=message))
        if self.request.bands == "adamw" and not can_take("soap", task):
            message = "Directions are ordered by the proxy of adamw: soap cannot take this model."
            notes.insert(0, Note(code="bands", message=message))
        if self.no_curvature:
            notes.append(curvature_note(self.no_curvature))
        segments = {f"segment of seed {index}": one.digest for index, one in enumerate(session.splits.segments)}
        return Outcome(
            fields={
                "steps": self.request.steps,
                "ramp": session.ramp,
                "num_seeds": self.request.seeds,
                "rule": self.request.rule,
                "tolerance": self.request.tolerance,
                "start_loss": session.start_point.loss,
                "eigenvalues": subspace.eigenvalues,
                "eigenvalue_errors": subspace.residual_norms,
                "num_parameters": layout.size,
                "bands": session.band_table,
                "recipes": session.recipes,
                "sweeps": session.sweeps,
                "theory": session.theory,
                "runs": tuple(session.runs),
                "landscape": session.landscape,
            },
            split=measured_split(task),
            count=session.count,
            notes=notes,
            details={
                "spectrum": spectrum.fingerprint,
                "evaluation batches": batches_digest(task.evaluation),
                "training batches": batches_digest(task.train),
                "warm-up batches": batches_digest(session.splits.warm),
                **segments,
            },
        )


def _needs(needs: Callable[[int, Mapping[str, Footprint]], int], costs: planning.Costs) -> int:
    """Return the bytes at the worst moment, once costs are measured."""
    return needs(costs.peak_bytes, costs.footprints)


def _with_products(
    task: Task,
    layout: ParameterLayout,
    start: Point,
    costs: planning.Costs,
    request: ReplayRequest,
    needs: Callable[[planning.Costs], int],
    allowed: int,
) -> tuple[planning.Costs, str]:
    """Return costs with those of a Hessian product where some are wanted, or without and why there are none.

    Only a horizon cannot do without: lines of the landscape take differences of gradients instead, and the bands'
    curvature is left out.

    Raises:
        NumericsError: If a horizon is asked for, and the model cannot be differentiated twice.

    Cost: one graph and two products of one batch, where some are wanted.
    """
    if not (request.horizon or request.curvature_probes or request.landscape):
        return costs, ""
    try:
        found = planning.with_products(task, layout, start, costs)
    except NumericsError as error:
        if request.horizon:
            raise
        return costs, error.message
    if request.horizon or needs(found) <= allowed:
        return found, ""
    return costs, "a Hessian product does not fit into memory beside the rest"


@takes(ReplayRequest)
def replay(
    task: Task,
    optimizers: Asked | Sequence[Asked] | None = None,
    *,
    spectrum: Spectrum,
    state_directory: Path | None = None,
    on_progress: OnProgress | None = None,
    on_step: Callable[[ReplayStep], None] | None = None,
    command: str = "",
    **asked: Any,
) -> Replay:
    """Train the same short segment from θ₀ under several optimizers, and say who lowers the loss where.

    Loss changes are those of the held-out batches, where the task has some, with those of the evaluation batches, which
    the eigenvectors were measured on, beside them; else of the latter alone, which a note says. Each step's change is
    allotted to the spectrum's eigenvectors, to their complement, and to every band of every block, by a quadrature
    whose closure error is kept.

    Args:
        task: Model, loss, evaluation, training and held-out batches; comes back bitwise as it was.
        optimizers: As of `ReplayRequest`; by default Muon, SOAP and their LITE variants.
        spectrum: Of this task, with eigenvectors: its positive converged top pairs are the sharp directions.
        state_directory: As of `Plan.run`, as are the next two.
        on_progress: In gradients.
        on_step: Told of every step.
        command: For provenance.
        asked: Fields of `ReplayRequest`: steps=50, lr={"muon": 0.002}.

    Returns:
        The replay; a run that diverged says at which step, and the others went on.

    Raises:
        UsageError, InputError, NumericsError: As `ReplayRequest` and its plan.
        OutputError: If there is no room for the working files.

    Cost: per optimizer and seed K training gradients, K steps and 2K evaluation gradients (K under the trapezoid's
        rule), twice as many with held-out batches; with `horizon` about log₂K Hessian products; 2·`curvature_probes`
        products at the start; the plan says.
    """
    if optimizers is not None:
        asked["optimizers"] = optimizers
    plan = ReplayRequest(spectrum=spectrum, **asked).plan(task)
    found: Replay = plan.run(
        task, state_directory=state_directory, on_progress=on_progress, on_event=on_step, command=command
    )
    return found
