"""The replay: the same segment under several optimizers, each watched direction by direction, resumable at any step."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import torch

from lite_probe.errors import UsageError
from lite_probe.operators.guards import preserve_state, require_precision
from lite_probe.optim import LiteOptimizer
from lite_probe.optim.interface import Replayable, load_state
from lite_probe.replays import plan as planning
from lite_probe.replays.allocation import MOST_GRADIENTS, Point, Rule, evaluate
from lite_probe.replays.entrants import Asked, Entrant, entrants_of
from lite_probe.replays.plan import ReplayPlan
from lite_probe.replays.ramp import ramp_steps
from lite_probe.replays.recipes import (
    LearningRate,
    Prepared,
    SavedOptimizer,
    StateName,
    inherited,
    learning_rates,
    prepare,
    require_settings,
    require_state,
    saved_learning_rate,
)
from lite_probe.replays.recorder import Recorder
from lite_probe.replays.runner import Ablation, RecordingConfig, Runner, RunRequest
from lite_probe.replays.segments import BatchSplits, deal_segments, measured_split, require_disjoint, split_notes
from lite_probe.replays.sweep import Trial, sweep_learning_rates
from lite_probe.replays.theory import linear_theory
from lite_probe.results import replay as results
from lite_probe.results.provenance import Note, join_notes
from lite_probe.results.spectrum import Spectrum
from lite_probe.results.store import register
from lite_probe.runtime.disk import require_room
from lite_probe.runtime.fingerprint import batches_digest, task_fingerprint
from lite_probe.runtime.memory import memory_allowed, require_memory
from lite_probe.runtime.provenance import provenance_of
from lite_probe.runtime.state_folder import StateFolder, remove
from lite_probe.spectra import require_same_task
from lite_probe.spectra.measure import landscape
from lite_probe.subspaces import Bands, Subspace, cut_bands, optimizer_of, own_gradients, warm
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.version import __version__

OnProgress = Callable[[int, int, str], None]

DEFAULT_OPTIMIZERS = ("muon", "muon-lite", "soap", "soap-lite")
BAND_OPTIMIZERS = ("adamw", "muon", "soap")
DEFAULT_TOLERANCE = 2e-3
_ABLATIONS: tuple[Ablation, ...] = ("dominant", "bulk")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayStep:
    """Where a replay stands, for those who watch."""

    phase: str  # "warm", "sweep" or "replay"
    optimizer: str
    ablation: str
    seed: int
    lr: float | None
    step: int  # completed in this run
    steps: int
    loss: float | None  # held out, where there are batches for it
    flat_share: float | None  # of the loss change so far


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What was asked, checked."""

    optimizers: tuple[str, ...]
    steps: int
    ramp: int  # of the steps, those over which the rate rises
    seeds: int
    lr: Mapping[str, LearningRate]
    state: str
    warm_batches: int
    bands: str
    rule: Rule
    tolerance: float
    ablations: bool
    hyperparameters: Mapping[str, Mapping[str, Any]]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedRun:
    """A finished run as it waits on disk for the others."""

    fingerprint: str
    run: results.ReplayRun


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedRecipe:
    """An optimizer's settled learning rate and state, likewise."""

    fingerprint: str
    recipe: results.Recipe
    sweep: results.Sweep | None
    theory: results.LinearTheory | None
    notes: tuple[Note, ...]


_Kept = TypeVar("_Kept", _FinishedRun, _FinishedRecipe)

register("replay-run", _FinishedRun, schema_version=1)
register("replay-recipe", _FinishedRecipe, schema_version=1)


def plan_replay(
    task: Task,
    optimizers: Asked | Sequence[Asked] = DEFAULT_OPTIMIZERS,
    *,
    spectrum: Spectrum,
    steps: int = 50,
    ramp: int | None = None,
    seeds: int = 3,
    lr: LearningRate | Mapping[str, LearningRate] = "sweep",
    state: StateName = "auto",
    warm_batches: int = 50,
    bands: str = "soap",
    rule: Rule = "simpson",
    tolerance: float = DEFAULT_TOLERANCE,
    ablations: bool = False,
    hyperparameters: Mapping[str, Mapping[str, Any]] = {},
    saved: SavedOptimizer | None = None,
    seed: int = 0,
    memory: int | None = None,
    on_progress: OnProgress | None = None,
) -> ReplayPlan:
    """Say what `replay` with the same arguments will do, and what it costs.

    Raises:
        UsageError: An unknown optimizer or hyperparameter, a number out of range, too little memory.
        InputError: Too few training batches, evaluation samples that are trained on, a spectrum of something else, a
            state or learning rate that the checkpoint does not have.
        NumericsError: A loss or gradient at θ₀ that is not finite.

    Cost: two evaluation gradients; three training gradients and steps of each optimizer.
    """
    entrants = entrants_of(optimizers)
    request = _request(
        entrants, steps, ramp, seeds, lr, state, warm_batches, bands, rule, tolerance, ablations, hyperparameters, seed
    )
    splits = _check(task, request, spectrum)
    taken = inherited(task, entrants, request.lr, hyperparameters=request.hyperparameters, state=state, saved=saved)
    layout = ParameterLayout(list(task.model.named_parameters()))
    with preserve_state(task.model), own_gradients(layout.parameters):
        makers: dict[str, Callable[[], Replayable]] = {
            name: partial(one.make, task, request.hyperparameters.get(name, {}))
            for name, one in {**entrants, request.bands: entrants.get(request.bands, Entrant(request.bands))}.items()
        }
        costs, start, evaluated = planning.measure_costs(task, layout, splits, makers, on_progress)
    require_same_task(spectrum, task, loss=evaluated)
    sets = 2 if len(task.heldout) else 1
    swept = tuple(name for name, rate in request.lr.items() if rate == "sweep")
    ablated = len(_ABLATIONS) if request.ablations else 0
    warmed = tuple(name for name in request.optimizers if state != "cold" and name not in taken)
    common = {
        "steps": steps,
        "seeds": seeds,
        "rule": rule,
        "warm_batches": len(splits.warm),
        "warmed": warmed,
        "swept": swept,
        "ablations": ablated,
        "sets": sets,
        "ramp": request.ramp,
    }
    needed = planning.expected_memory(costs, layout, bands=bands, sets=sets)
    allowed = memory_allowed(task.device, memory)
    require_memory(needed, allowed, "a step and the states of its optimizers", "lower --batch-size or --seq-len")
    # Unasked, the subspace takes a quarter of what is free; asked, what the rest leaves, and else it stays in its file.
    vectors = None if memory is None else allowed - needed
    basis = Subspace.of_spectrum(spectrum, task, memory=vectors)
    runs = len(request.optimizers) * seeds * (1 + ablated)
    blocks = {part.block for parts in task.blocks.values() for part in parts} if task.blocks else {"other"}
    records = planning.records_bytes(runs=runs, steps=steps, sharp=basis.size, blocks=len(blocks), sets=sets)
    return ReplayPlan(
        num_parameters=layout.size,
        num_gradients=planning.count_gradients(request.optimizers, **common),  # type: ignore[arg-type]
        seconds=planning.expected_seconds(costs, request.optimizers, bands=bands, **common),  # type: ignore[arg-type]
        memory_bytes=needed + basis.num_bytes,
        vector_memory=vectors,
        scratch_bytes=planning.scratch_bytes(costs, layout, records=records, runs=runs),
        result_bytes=records,
        num_runs=runs,
        steps=steps,
        num_seeds=seeds,
        swept=swept,
        fingerprint=_fingerprint(task, request, entrants, splits, spectrum, taken),
        start_loss=start.loss,
    )


def replay(
    task: Task,
    optimizers: Asked | Sequence[Asked] = DEFAULT_OPTIMIZERS,
    *,
    spectrum: Spectrum,
    steps: int = 50,
    ramp: int | None = None,
    seeds: int = 3,
    lr: LearningRate | Mapping[str, LearningRate] = "sweep",
    state: StateName = "auto",
    warm_batches: int = 50,
    bands: str = "soap",
    rule: Rule = "simpson",
    tolerance: float = DEFAULT_TOLERANCE,
    ablations: bool = False,
    hyperparameters: Mapping[str, Mapping[str, Any]] = {},
    saved: SavedOptimizer | None = None,
    seed: int = 0,
    memory: int | None = None,
    plan: ReplayPlan | None = None,
    state_directory: Path | None = None,
    on_progress: OnProgress | None = None,
    on_step: Callable[[ReplayStep], None] | None = None,
    command: str = "",
) -> results.Replay:
    """Train the same short segment from θ₀ under several optimizers, and say who lowers the loss where.

    Loss changes are those of the held-out batches, where the task has some, with those of the evaluation batches, which
    the eigenvectors were measured on, beside them; else of the latter alone, which a note says. Each step's change is
    allotted to the spectrum's eigenvectors, to their complement, and to every band of every block, by a quadrature
    whose closure error is kept.

    Args:
        task: Model, loss, evaluation, training and held-out batches; comes back bitwise as it was.
        optimizers: Names of `lite_probe.optim.OPTIMIZERS`, torch's as "torch.AdamW", functions of
            `(named_parameters, lr)` or their "FILE.py:FUNCTION". Saved states and the linear theory are of ours only.
        spectrum: Of this task, with eigenvectors: its positive converged top pairs are the sharp directions.
        steps: K, of the segment.
        ramp: R, of them, over which the learning rate rises linearly; None is min(max(5, ⌈K/10⌉), ⌊K/2⌋), 0 none.
        seeds: Segments; all optimizers see the same.
        lr: A learning rate, "sweep" or "checkpoint", for all or by name; who is not named is swept.
        state: At θ₀: "checkpoint" takes over the saved one, "warm" feeds `warm_batches` at fixed θ₀, "cold" starts
            at zero, "auto" is "checkpoint" where it is all that optimizer's, else "warm".
        warm_batches: W.
        bands: Whose proxy orders the directions of each block: "adamw", "muon" or "soap".
        rule: "simpson", two gradients more per step, or "trapezoid", one.
        tolerance: Of a step's closure error, relative to a typical loss change of a step; Simpson's rule is refined
            until it is met.
        ablations: Also run every optimizer with its updates projected on the sharp subspace, and on its complement.
        hyperparameters: By optimizer, where they are not the defaults.
        saved: What the checkpoint brought along.
        seed: Deals the batches.
        memory: Bytes that the process (on an accelerator: its allocations) should stay below.
        plan: From `plan_replay` with the same arguments, to save making it again.
        state_directory: Finished runs, and the one in progress, are kept there, `plan.scratch_bytes` of them; the same
            call continues after a kill with the same numbers, bitwise on a CPU. `discard_state` removes it once the
            result is saved.
        on_progress: `(done, expected, label)`, in gradients.
        on_step: Told of every step.
        command: For provenance.

    Returns:
        The replay; a run that diverged says at which step, and the others went on.

    Raises:
        UsageError, InputError, NumericsError: As `plan_replay`.
        OutputError: If there is no room for the working files.

    Cost: per optimizer and seed K training gradients, K steps and 2K evaluation gradients (K under the trapezoid's
        rule), twice as many with held-out batches; the plan says.
    """
    started = time.perf_counter()
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    entrants = entrants_of(optimizers)
    request = _request(
        entrants, steps, ramp, seeds, lr, state, warm_batches, bands, rule, tolerance, ablations, hyperparameters, seed
    )
    splits = _check(task, request, spectrum)
    if plan is None:
        plan = plan_replay(
            task,
            optimizers,
            spectrum=spectrum,
            steps=steps,
            ramp=ramp,
            seeds=seeds,
            lr=lr,
            state=state,
            warm_batches=warm_batches,
            bands=bands,
            rule=rule,
            tolerance=tolerance,
            ablations=ablations,
            hyperparameters=hyperparameters,
            saved=saved,
            seed=seed,
            memory=memory,
        )
    if state_directory is not None:
        require_room([(Path(state_directory), plan.scratch_bytes)])
    layout = ParameterLayout(list(task.model.named_parameters()))
    with preserve_state(task.model), own_gradients(layout.parameters), _put_back(layout) as start:
        session = _Session(task, layout, start, request, entrants, splits, spectrum, plan, saved, state_directory)
        session.on_progress, session.on_step = on_progress, on_step
        session.run()
    return results.Replay(
        steps=steps,
        ramp=request.ramp,
        num_seeds=seeds,
        rule=rule,
        tolerance=tolerance,
        start_loss=session.start_point.loss,
        eigenvalues=session.subspace.eigenvalues,
        eigenvalue_errors=session.subspace.residual_norms,
        num_parameters=layout.size,
        bands=session.bands.table,
        recipes=session.recipes,
        sweeps=session.sweeps,
        theory=session.theory,
        runs=tuple(session.runs),
        config=_config(request, task),
        fingerprint=plan.fingerprint,
        notes=join_notes(splits.notes, split_notes(task), session.notes, session.state.notes),
        provenance=provenance_of(
            task,
            split=measured_split(task),
            seed=seed,
            count=session.count,
            command=command,
            started_at=started_at,
            seconds=time.perf_counter() - started,
            details={
                "spectrum": spectrum.fingerprint,
                "evaluation batches": batches_digest(task.evaluation),
                "training batches": batches_digest(task.train),
                "warm-up batches": batches_digest(splits.warm),
                **{f"segment of seed {index}": one.digest for index, one in enumerate(splits.segments)},
            },
        ),
    )


def discard_state(state_directory: Path) -> None:
    """Remove what `replay` kept to continue from; call it once the result is saved."""
    remove(_state_folder(state_directory))


class _Session:
    """Runs everything that was asked, one optimizer after another, and keeps what is finished."""

    def __init__(
        self,
        task: Task,
        layout: ParameterLayout,
        start: torch.Tensor,
        request: _Request,
        entrants: Mapping[str, Entrant],
        splits: BatchSplits,
        spectrum: Spectrum,
        plan: ReplayPlan,
        saved: SavedOptimizer | None,
        state_directory: Path | None,
    ) -> None:
        self.task = task
        self.layout = layout
        self.start = start
        self.request = request
        self.entrants = entrants
        self.splits = splits
        self.plan = plan
        self.saved = saved
        folder = _state_folder(state_directory) if state_directory is not None else None
        self.state = StateFolder(folder, plan.fingerprint)
        self.subspace = Subspace.of_spectrum(spectrum, task, memory=plan.vector_memory)
        self.on_progress: OnProgress | None = None
        self.on_step: Callable[[ReplayStep], None] | None = None
        self.recipes: dict[str, results.Recipe] = {}
        self.sweeps: dict[str, results.Sweep] = {}
        self.theory: dict[str, results.LinearTheory] = {}
        self.runs: list[results.ReplayRun] = []
        self.notes: list[Note] = list(self.subspace.notes)
        self._label = ""
        self._phase = "warm"
        self._gradients = 0
        self.start_point: Point
        self.count = 0
        self.bands: Bands

    def run(self) -> None:
        """Measure at θ₀, then replay every optimizer."""
        request = self.request
        split = measured_split(self.task)
        self.start_point = evaluate(self.task, self.layout, split)
        self.count = self.start_point.count
        self.bands = self._cut_bands()
        self.runner = Runner(
            self.task,
            self.layout,
            self.start,
            self.start_point,
            split=split,
            same_point=None if split == "evaluation" else evaluate(self.task, self.layout),
            fingerprint=self.plan.fingerprint,
            state_file=folder / "running.pt" if (folder := self.state.folder()) is not None else None,
            on_damaged=self.state.note,
            on_step=self._on_step,
            on_gradients=self._on_gradients,
        )
        watching = RecordingConfig(
            recorder=Recorder(self.subspace, self.bands), rule=request.rule, tolerance=request.tolerance
        )
        for name in request.optimizers:
            self._replay(name, watching)
        self.notes += self._closing_notes()

    def _cut_bands(self) -> Bands:
        """Order the directions by the proxy of an optimizer that has looked at θ₀."""
        name = self.request.bands
        optimizer = optimizer_of(self.task, name)
        self._label = f"warming {name} for the bands"
        warm(self.task, [optimizer], self.splits.warm, on_batch=lambda index, gradient: self._on_gradients(1))
        return cut_bands(self.layout, optimizer.directions(), optimizer=name)

    def _replay(self, name: str, watching: RecordingConfig) -> None:
        """Prepare one optimizer, choose its learning rate, and run its segments; what is finished is not made again."""
        keys = [(seed, ablation) for seed in range(self.request.seeds) for ablation in self._ablations]
        finished = {key: self._finished_run(name, *key) for key in keys}
        known = self._load("recipe", name, _FinishedRecipe)
        self._count_finished(name, known, finished.values())
        prepared: Prepared | None = None
        if known is None or None in finished.values():
            prepared = self._prepare(name)
            known = known or self._choose(name, prepared)
        self.recipes[name] = known.recipe
        if known.sweep is not None:
            self.sweeps[name] = known.sweep
        if known.theory is not None:
            self.theory[name] = known.theory
        self.notes += known.notes
        for (seed, ablation), run in finished.items():
            self._phase, self._label = "replay", _title(name, ablation, seed)
            if run is None and prepared is not None:
                request = RunRequest(
                    optimizer=name,
                    lr=known.recipe.lr,
                    seed=seed,
                    segment=self.splits.segments[seed],
                    ramp=self.request.ramp,
                    ablation=ablation,
                )
                run = self.runner.run(
                    prepared.optimizer,
                    prepared.state,
                    request,
                    watching=watching if ablation == "none" else None,
                    subspace=self.subspace,
                )
                self._keep("run", request.key, _FinishedRun(fingerprint=self.plan.fingerprint, run=run))
            if run is not None:
                self.runs.append(run)

    @property
    def _ablations(self) -> tuple[Ablation, ...]:
        return ("none", *_ABLATIONS) if self.request.ablations else ("none",)

    def _prepare(self, name: str) -> Prepared:
        self._phase, self._label = "warm", f"warming {name}"
        self._tell(name, None)
        self.layout.write(self.start)  # the runs before have left the parameters where they ended
        return prepare(
            self.task,
            self.entrants[name],
            hyperparameters=self.request.hyperparameters.get(name, {}),
            state=self.request.state,
            warm_batches=self.splits.warm,
            saved=self.saved,
            on_gradient=lambda: self._on_gradients(1),
        )

    def _choose(self, name: str, prepared: Prepared) -> "_FinishedRecipe":
        """Settle an optimizer's learning rate; predict what the linear theory says of it."""
        asked, sweep, notes = self.request.lr[name], None, prepared.notes
        if asked == "sweep":
            sweep = self._sweep(name, prepared)
            lr, source = sweep.chosen, "sweep"
        elif asked == "checkpoint":
            rate = saved_learning_rate(name, prepared.origin, self.saved)
            lr, source, notes = rate.lr, "checkpoint", (*notes, rate.note(name))
        else:
            lr, source = float(asked), "given"
        theory = None
        if prepared.origin != "cold" and isinstance(prepared.optimizer, LiteOptimizer):
            theory = linear_theory(prepared.optimizer, name, lr, self.layout, self.subspace)
        recipe = results.Recipe(
            optimizer=name,
            lr=lr,
            lr_source=source,
            hyperparameters=prepared.hyperparameters,
            state=prepared.origin,
            state_lines=prepared.lines,
        )
        known = _FinishedRecipe(
            fingerprint=self.plan.fingerprint, recipe=recipe, sweep=sweep, theory=theory, notes=notes
        )
        self._keep("recipe", name, known)
        return known

    def _sweep(self, name: str, prepared: Prepared) -> results.Sweep:
        self._phase = "sweep"
        known = self._tried(name)

        def trial_at(lr: float) -> Trial:
            key = lr.hex()
            if key not in known:
                self._label = f"{name} at learning rate {lr:.2g}"
                request = RunRequest(optimizer=name, lr=lr, seed=-1, segment=self.splits.sweep, ramp=self.request.ramp)
                known[key] = self.runner.trial(prepared.optimizer, prepared.state, request)
                self._keep_tried(name, known)
            return known[key]

        sweep = sweep_learning_rates(trial_at)
        # The linear theory reads the state at θ₀, where the last trial has not left it.
        load_state(prepared.optimizer, prepared.state)
        return sweep

    def _closing_notes(self) -> Iterator[Note]:
        for run in self.runs:
            if run.diverged_at is not None:
                title = _title(run.optimizer, run.ablation, run.seed)
                yield Note(code="diverged", message=f"{title} diverged at step {run.diverged_at}; the others went on.")
        for name, sweep in self.sweeps.items():
            if bool(sweep.diverged.all()):
                yield Note(code="sweep-diverged", message=f"{name} diverged at every learning rate that was tried.")
            elif sweep.chosen != sweep.best:
                message = (
                    f"At the best learning rate that was tried for {name}, {sweep.best:.2g}, the loss first rises "
                    f"above the start's: it is replayed at {sweep.chosen:.2g}, the largest at which it does not."
                )
                yield Note(code="sweep-rises", message=message)
            elif sweep.first_rises(sweep.best):
                message = (
                    f"At every learning rate that was tried for {name}, {sweep.lrs[0]:.2g} to {sweep.lrs[-1]:.2g}, "
                    f"the loss first rises above the start's: it is replayed at the best, {sweep.best:.2g}."
                )
                yield Note(code="sweep-rises", message=message)
        usual = planning.WATCHED[self.request.rule]
        used = np.concatenate([run.most_gradients_used for run in self.runs])
        if refined := int((used > usual).sum()):
            message = (
                f"{refined} of {len(used)} steps missed the closure tolerance with {usual} gradients and took more."
            )
            yield Note(code="refined", message=message)
        if stopped := int((used >= MOST_GRADIENTS).sum()):
            message = (
                f"{stopped} of {len(used)} steps were refined to the end, {MOST_GRADIENTS} gradients: the loss is not "
                "smooth along them, as where a router's choice changes; their closure error says what is missed."
            )
            yield Note(code="refined-to-the-end", message=message)

    # -- progress ------------------------------------------------------------------------------------------------

    def _on_gradients(self, count: int) -> None:
        self._gradients += count
        if self.on_progress is not None:
            self.on_progress(self._gradients, max(self.plan.num_gradients, self._gradients), self._label)

    def _count_finished(
        self, name: str, known: "_FinishedRecipe | None", runs: Iterable[results.ReplayRun | None]
    ) -> None:
        """Count the gradients of what an earlier process has finished: progress goes on where it was."""
        made = sum(
            run.num_steps + int(run.gradients_used.sum() + run.same_batch_gradients_used.sum())
            for run in runs
            if run is not None
        )
        if known is not None and known.sweep is not None:
            made += len(known.sweep.lrs) * self.request.steps
        if made:
            self._label = f"{name} as far as it was"
            self._on_gradients(made)

    def _on_step(self, request: RunRequest, step: int, loss: float | None, flat_share: float | None) -> None:
        self._tell(request.optimizer, request, step=step, loss=loss, flat_share=flat_share)

    def _tell(
        self,
        name: str,
        request: RunRequest | None,
        *,
        step: int = 0,
        loss: float | None = None,
        flat_share: float | None = None,
    ) -> None:
        if self.on_step is not None:
            self.on_step(
                ReplayStep(
                    phase=self._phase,
                    optimizer=name,
                    ablation=request.ablation if request is not None else "none",
                    seed=request.seed if request is not None else 0,
                    lr=request.lr if request is not None else None,
                    step=step,
                    steps=self.request.steps,
                    loss=loss,
                    flat_share=flat_share,
                )
            )

    # -- what is finished, on disk -------------------------------------------------------------------------------

    def _finished_run(self, name: str, seed: int, ablation: str) -> results.ReplayRun | None:
        found = self._load("run", f"{name}.{ablation}.{seed}", _FinishedRun)
        return found.run if found is not None else None

    def _load(self, what: str, key: str, kind: type[_Kept]) -> _Kept | None:
        found = self.state.find(f"{what}-{key}", f"replay-{what}")
        return found if isinstance(found, kind) else None

    def _keep(self, what: str, key: str, finished: "_FinishedRun | _FinishedRecipe") -> None:
        self.state.keep(f"{what}-{key}", finished)

    def _tried(self, name: str) -> dict[str, Trial]:
        """Return the sweep's trials that an earlier process made, by learning rate in hexadecimal."""
        saved = self.state.read(_sweep_file(name))
        return {lr: Trial(**trial) for lr, trial in saved.items()} if isinstance(saved, dict) else {}

    def _keep_tried(self, name: str, trials: Mapping[str, Trial]) -> None:
        self.state.write(_sweep_file(name), {lr: asdict(trial) for lr, trial in trials.items()})


@contextmanager
def _put_back(layout: ParameterLayout) -> Iterator[torch.Tensor]:
    """Yield a copy of the parameters, and set them to it at the end, bitwise."""
    start = layout.read()
    try:
        yield start
    finally:
        layout.write(start)


def _title(name: str, ablation: str, seed: int) -> str:
    projected = "" if ablation == "none" else f", {ablation} part only,"
    return f"{name}{projected} seed {seed}"


def _sweep_file(name: str) -> str:
    return f"sweep-{name}.json"


def _state_folder(state_directory: Path) -> Path:
    return Path(state_directory) / "replay.state"


def _request(
    entrants: Mapping[str, Entrant],
    steps: int,
    ramp: int | None,
    seeds: int,
    lr: LearningRate | Mapping[str, LearningRate],
    state: str,
    warm_batches: int,
    bands: str,
    rule: Rule,
    tolerance: float,
    ablations: bool,
    hyperparameters: Mapping[str, Mapping[str, Any]],
    seed: int,
) -> _Request:
    """Check ranges and names, and gather what is asked."""
    names = tuple(entrants)
    require_settings(entrants, hyperparameters)
    require_state(state)
    for what, value in (("steps", steps), ("seeds", seeds), ("warm_batches", warm_batches)):
        if value < 1:
            raise UsageError(f"expected {what} of at least 1, got {value}")
    if rule not in get_args(Rule):
        raise UsageError(f"expected the rule {' or '.join(get_args(Rule))}, got {rule!r}")
    if bands not in BAND_OPTIMIZERS:
        raise UsageError(f"expected the bands of {', '.join(BAND_OPTIMIZERS)}, got {bands!r}")
    if not 0.0 < tolerance < 1.0:
        raise UsageError(f"expected a tolerance between 0 and 1, got {tolerance}")
    return _Request(
        optimizers=names,
        steps=steps,
        ramp=ramp_steps(steps, ramp),
        seeds=seeds,
        lr=learning_rates(names, lr),
        state=state,
        warm_batches=warm_batches,
        bands=bands,
        rule=rule,
        tolerance=tolerance,
        ablations=ablations,
        hyperparameters=hyperparameters,
        seed=seed,
    )


def _check(task: Task, request: _Request, spectrum: Spectrum) -> BatchSplits:
    """Refuse what cannot be replayed, before any compute; return the batches of each part."""
    require_precision(task.model)
    splits = deal_segments(
        task, steps=request.steps, seeds=request.seeds, warm_batches=request.warm_batches, seed=request.seed
    )
    require_disjoint(task)
    require_same_task(spectrum, task)
    return splits


def _config(request: _Request, task: Task) -> dict[str, object]:
    """Return everything that was asked and changes the numbers."""
    return {
        **asdict(request),
        "device": task.device.type,
        "precision": str(next(task.model.parameters()).dtype).removeprefix("torch."),
        "lite_probe": __version__,
        "torch": torch.__version__,
    }


def _fingerprint(
    task: Task,
    request: _Request,
    entrants: Mapping[str, Entrant],
    splits: BatchSplits,
    spectrum: Spectrum,
    taken: Mapping[str, str],
) -> str:
    digests = [batches_digest(splits.warm), splits.sweep.digest, *(one.digest for one in splits.segments)]
    asked = {
        **_config(request, task),
        **landscape(task, spectrum.loss, per_block=True),
        "batches": digests,
        "spectrum": spectrum.fingerprint,
        "inherited": taken,
    }
    foreign = [one for one in entrants.values() if not one.is_ours]
    if len(task.heldout):
        asked["held-out batches"] = batches_digest(task.heldout)
    if foreign:
        asked["made"] = {one.name: one.digest(task, request.hyperparameters.get(one.name, {})) for one in foreign}
    return task_fingerprint(task, "evaluation", asked)
