"""The replay: the same segment under several optimizers, each watched direction by direction, resumable at any step."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from lite_probe.errors import NumericsError
from lite_probe.measurements.optimizers import settle_rate
from lite_probe.measurements.replay_landscape import LandscapeSurvey
from lite_probe.measurements.requests.replay import ReplayRequest
from lite_probe.operators.base import SymmetricOperator
from lite_probe.operators.finite_difference import FiniteDifferenceOperator
from lite_probe.operators.hessian import HessianOperator
from lite_probe.optim import LiteOptimizer
from lite_probe.replays import plan as planning
from lite_probe.replays.allocation import MOST_GRADIENTS, Point, evaluate
from lite_probe.replays.curvature import KINDS, PRODUCT_GRADIENTS, BandProbes
from lite_probe.replays.entrants import entrants_of
from lite_probe.replays.horizon import QuadraticModel
from lite_probe.replays.ramp import ramp_steps
from lite_probe.replays.recipes import Prepared, prepare
from lite_probe.replays.recorder import Recorder
from lite_probe.replays.runner import Ablation, RecordingConfig, Runner, RunRequest
from lite_probe.replays.segments import BatchSplits, deal_segments, measured_split
from lite_probe.replays.stored import load_start, store_state
from lite_probe.replays.sweep import Trial, sweep_learning_rates
from lite_probe.replays.theory import linear_theory
from lite_probe.results import replay as results
from lite_probe.results.landscape import Landscape
from lite_probe.results.provenance import Note
from lite_probe.results.store import register
from lite_probe.runtime.memory import return_freed_memory
from lite_probe.runtime.resumable import ResumableRun
from lite_probe.subspaces import Bands, Subspace, cut_bands, optimizer_of, warm
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.ranks import ALONE

_Key = tuple[str, int, Ablation]  # optimizer, seed, what is projected away

ABLATIONS: tuple[Ablation, ...] = ("dominant", "bulk")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedProduct:
    """What a Hessian product said of every band, likewise."""

    fingerprint: str
    sample: NDArray[np.float64]  # (B,)


_Kept = TypeVar("_Kept", _FinishedRun, _FinishedRecipe)

register("replay-run", _FinishedRun, schema_version=1)
register("replay-recipe", _FinishedRecipe, schema_version=1)
register("replay-product", _FinishedProduct, schema_version=1)


class ReplaySession:
    """Runs everything that was asked, one optimizer after another, and keeps what is finished.

    Of several ranks each makes runs of its own, with all their batches: a run's numbers are those of one process. What
    comes before the runs is the same on every rank; rank 0 alone sweeps rates and looks at the landscape.
    """

    def __init__(
        self,
        task: Task,
        layout: ParameterLayout,
        start: torch.Tensor,
        request: ReplayRequest,
        subspace: Subspace,
        run: ResumableRun,
        on_step: Callable[[ReplayStep], None] | None,
        *,
        keeps_states: bool,
        stores_states: bool,
        shares_bands: bool,
        by_differences: bool,
    ) -> None:
        self.ranks = task.ranks
        self.task = replace(task, ranks=ALONE)
        self.layout = layout
        self.start = start
        self.request = request
        self.entrants = entrants_of(request.asked)
        self.splits = splits_of(task, request)
        self.ramp = ramp_steps(request.steps, request.ramp)
        self.state = run
        # Of what one rank finds or keeps without the others.
        self._own = run if self.ranks.count == 1 else ResumableRun(run.path, run.fingerprint, run.tell)
        self.subspace = subspace
        self.on_step = on_step
        self.keeps_states = keeps_states
        self.stores_states = stores_states
        self.shares_bands = shares_bands
        self.by_differences = by_differences
        self.landscape: Landscape | None = None
        self.recipes: dict[str, results.Recipe] = {}
        self.sweeps: dict[str, results.Sweep] = {}
        self.theory: dict[str, results.LinearTheory] = {}
        self.runs: list[results.ReplayRun] = []
        self.notes: list[Note] = list(self.subspace.notes)
        self._label = ""
        self._phase = "warm"
        self._planned = run.expected
        self._recorded = self._refinements = 0
        self.start_point: Point
        self.count = 0
        self.bands: Bands
        self.band_table: results.Bands
        self._prepared: dict[str, Prepared] = {}

    def run(self) -> None:
        """Measure at θ₀, then replay every optimizer."""
        request = self.request
        split = measured_split(self.task)
        self.start_point = evaluate(self.task, self.layout, split)
        self.count = self.start_point.count
        same = None if split == "evaluation" else evaluate(self.task, self.layout)
        self.bands = self._cut_bands()
        self.band_table = self._with_curvatures((same or self.start_point).count)
        self.runner = Runner(
            self.task,
            self.layout,
            self.start,
            self.start_point,
            split=split,
            same_point=same,
            model=QuadraticModel(self.task, self.layout, self.start, self.start_point, split)
            if request.horizon
            else None,
            fingerprint=self.state.fingerprint,
            state_file=None if (folder := self.state.folder()) is None else folder / self._running_file,
            on_damaged=self.state.note,
            on_step=self._on_step,
            on_gradients=self._on_gradients,
        )
        watching = RecordingConfig(
            recorder=Recorder(self.subspace, self.bands), rule=request.rule, tolerance=request.tolerance
        )
        kept = {name: self._finished(name) for name in request.names}
        for name in request.names:
            self._replay(name, watching, *kept[name])
        self._gather({key: run for _, finished in kept.values() for key, run in finished.items()})
        self.notes += self._closing_notes()
        if request.landscape:
            self.landscape, notes = self.ranks.once(self._survey)
            self.notes += notes

    def _cut_bands(self) -> Bands:
        """Order the directions by the proxy of an optimizer that has looked at θ₀.

        One that is replayed, too, is warmed once for both: its runs start from the state that the bands are cut from.
        """
        name = str(self.request.bands)
        if self.shares_bands:
            prepared = self._prepared[name] = self._prepare(name)
            optimizer = prepared.optimizer
            if not isinstance(optimizer, LiteOptimizer):
                raise TypeError(f"expected an optimizer of lite-probe, got {type(optimizer).__name__}")
            load_start(optimizer, prepared.state)
        else:
            optimizer = optimizer_of(self.task, name)
            self._label = f"warming {name} for the bands"
            warm(self.task, [optimizer], self.splits.warm, on_batch=lambda index: self._on_gradients(1))
        bands = cut_bands(self.layout, optimizer.directions(), optimizer=name)
        optimizer.drop_state()
        return_freed_memory()
        return bands

    def _with_curvatures(self, count: int) -> results.Bands:
        """Return the bands with their mean curvature on the eigenvectors' batches, where it can be measured."""
        table, asked = self.bands.table, self.request.curvature_probes
        probes = BandProbes(self.task, self.layout, self.bands, self.subspace, count=count, seed=self.request.seed)
        numbers = {kind: asked if kind == "full" or len(probes.tail) else 0 for kind in KINDS}
        self._expect(PRODUCT_GRADIENTS * sum(numbers.values()))
        if not asked:
            return table
        samples = {kind: np.zeros((number, len(self.bands))) for kind, number in numbers.items()}
        try:
            for kind, rows in samples.items():
                for index in range(len(rows)):
                    rows[index] = self._product(f"curvature-{kind}-{index}", partial(probes.sample, kind, index))
                    self._label = f"curvature of the bands · {kind} probe {index + 1}/{len(rows)}"
                    self._on_gradients(PRODUCT_GRADIENTS)
        except NumericsError as error:
            self.notes.append(curvature_note(error.message))
            return table
        means, errors = probes.curvatures(samples["full"], samples["tail"])
        return replace(table, curvatures=means, curvature_errors=errors, num_probes=asked)

    def _product(self, part: str, sample: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return what a product said; one that an earlier process made is not made again."""

        def measure() -> _FinishedProduct:
            return _FinishedProduct(fingerprint=self.state.fingerprint, sample=sample())

        return self.state.stage(part, "replay-product", measure).sample

    def _expect(self, gradients: int) -> None:
        """Expect so many gradients beside those of the plan."""
        self._planned += gradients
        self.state.expected += gradients

    def _finished(self, name: str) -> tuple["_FinishedRecipe | None", dict[_Key, results.ReplayRun | None]]:
        """Return what is finished of an optimizer."""
        keys = [(name, seed, ablation) for seed in range(self.request.seeds) for ablation in self._ablations]
        return self._load("recipe", name, _FinishedRecipe), {key: self._finished_run(*key) for key in keys}

    def _replay(
        self,
        name: str,
        watching: RecordingConfig,
        known: "_FinishedRecipe | None",
        finished: dict[_Key, results.ReplayRun | None],
    ) -> None:
        """Prepare one optimizer, choose its learning rate, and run its segments; what is finished is not made again."""
        self._count_finished(name, known, finished.values())
        own = {key for key in finished if self._is_own(key)}
        prepared: Prepared | None = None
        self._phase = "warm"
        if known is None or any(finished[key] is None for key in own):
            self._tell(name, None)
            prepared = self._prepared.pop(name, None) or self._prepare(name)
            if self.keeps_states:
                self._prepared[name] = prepared
            known = known or self._choose(name, prepared)
        self.recipes[name] = known.recipe
        if known.sweep is not None:
            self.sweeps[name] = known.sweep
        if known.theory is not None:
            self.theory[name] = known.theory
        self.notes += known.notes
        for key in finished:
            _, seed, ablation = key
            self._phase, self._label = "replay", _title(name, ablation, seed)
            if finished[key] is None and key in own and prepared is not None:
                request = self._request(name, seed, ablation)
                run = self.runner.run(
                    prepared.optimizer,
                    prepared.state,
                    request,
                    watching=watching if ablation == "none" else None,
                    subspace=self.subspace,
                )
                finished[key] = run
                self._own.keep(f"run-{request.key}", _FinishedRun(fingerprint=self.state.fingerprint, run=run))
        if prepared is not None:
            prepared.rest()

    def _is_own(self, key: _Key) -> bool:
        """Whether a run is this rank's."""
        name, seed, ablation = key
        place = (self.request.names.index(name) * self.request.seeds + seed) * len(self._ablations)
        return (place + self._ablations.index(ablation)) % self.ranks.count == self.ranks.rank

    def _gather(self, runs: dict[_Key, results.ReplayRun | None]) -> None:
        """Take every rank's runs, in their order."""
        own = {key: run for key, run in runs.items() if self._is_own(key)}
        found = {key: run for one in self.ranks.from_every(own) for key, run in one.items()}
        self.runs += [run for key in runs if (run := found[key]) is not None]

    @property
    def _running_file(self) -> str:
        return "running.pt" if self.ranks.count == 1 else f"running-{self.ranks.name}.pt"

    def _request(self, name: str, seed: int, ablation: Ablation = "none") -> RunRequest:
        """Return what is asked of a run, at the rate that was settled."""
        return RunRequest(
            optimizer=name,
            lr=self.recipes[name].lr,
            seed=seed,
            segment=self.splits.segments[seed],
            ramp=self.ramp,
            ablation=ablation,
        )

    def _survey(self) -> tuple[Landscape, list[Note]]:
        """Look around θ₀, along lines and on a plane with the paths of the first seed."""
        self._phase = "landscape"
        self.layout.write(self.start)  # an operator may take its scale from the parameters as they are
        survey = LandscapeSurvey(
            self.runner,
            self.subspace,
            self._hessian(),
            self.runs,
            asked={name: self._request(name, 0) for name in self.request.names},
            prepared=lambda name: self._prepared.get(name) or self._prepare(name),
            state=self._own,
            say=self._say,
            seed=self.request.seed,
            by_differences=self.by_differences,
        )
        found = survey.survey()
        return found, survey.notes

    def _hessian(self) -> SymmetricOperator:
        """Return the Hessian where the parameters are, on the batches that losses are of."""
        split = self.runner.split
        if self.by_differences:
            return FiniteDifferenceOperator(self.task, self.layout, split=split)
        return HessianOperator(self.task, self.layout, count=self.start_point.count, split=split)

    def _say(self, label: str) -> None:
        self._label = label
        self.state.advance(0, label)

    @property
    def _ablations(self) -> tuple[Ablation, ...]:
        return ("none", *ABLATIONS) if self.request.ablations else ("none",)

    def _prepare(self, name: str) -> Prepared:
        self._label = f"warming {name}"
        self.layout.write(self.start)  # the runs before have left the parameters where they ended
        found = prepare(
            self.task,
            {name: self.entrants[name]},
            hyperparameters=self.request.hyperparameters,
            state=self.request.state,
            warm_batches=self.splits.warm,
            saved=self.request.saved,
            on_gradient=lambda: self._on_gradients(1),
            drops_states=True,
        )[name]
        if self.stores_states and self.entrants[name].is_ours:
            found = replace(found, state=store_state(self.state, self.task, found.state, self.request.names, name))
            return_freed_memory()
        return found

    def _choose(self, name: str, prepared: Prepared) -> "_FinishedRecipe":
        """Settle an optimizer's learning rate; predict what the linear theory says of it."""
        sweep_once = partial(self.ranks.once, lambda: self._sweep(name, prepared))
        recipe, sweep, notes = settle_rate(self.request, name, prepared, sweep_once)
        theory = None
        if prepared.origin != "cold" and isinstance(prepared.optimizer, LiteOptimizer):
            # It reads the state at θ₀, which is given away by now, or where a sweep's last trial has left it.
            load_start(prepared.optimizer, prepared.state)
            theory = linear_theory(prepared.optimizer, name, recipe.lr, self.layout, self.subspace)
        known = _FinishedRecipe(
            fingerprint=self.state.fingerprint, recipe=recipe, sweep=sweep, theory=theory, notes=notes
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
                request = RunRequest(optimizer=name, lr=lr, seed=-1, segment=self.splits.sweep, ramp=self.ramp)
                known[key] = self.runner.trial(prepared.optimizer, prepared.state, request)
                self._keep_tried(name, known)
            return known[key]

        return sweep_learning_rates(trial_at)

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
        if self._phase == "replay" and count > 1:
            self._count_refinements(1, count)
        self.state.advance(count, self._label)

    def _count_refinements(self, steps: int, gradients: int) -> None:
        """Expect steps that are still to be recorded to be refined as much as those so far."""
        sets = 1 if measured_split(self.task) == "evaluation" else 2
        usual = 1 + sets * planning.WATCHED[self.request.rule]
        self._recorded += steps
        self._refinements += gradients - steps * usual
        all_steps = len(self.request.names) * self.request.seeds * self.request.steps
        self.state.expected = self._planned + round(self._refinements * all_steps / self._recorded)

    def _count_finished(
        self, name: str, known: "_FinishedRecipe | None", runs: Iterable[results.ReplayRun | None]
    ) -> None:
        """Count the gradients of what an earlier process has finished: progress goes on where it was."""
        made = 0
        for run in (run for run in runs if run is not None):
            own = run.num_steps + int(run.gradients_used.sum() + run.same_batch_gradients_used.sum())
            made += own
            if run.is_recorded:
                self._count_refinements(run.num_steps, own)
        if known is not None and known.sweep is not None:
            made += len(known.sweep.lrs) * self.request.steps
        if made:
            self.state.advance(made, f"{name} as far as it was")

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

    def _finished_run(self, name: str, seed: int, ablation: Ablation) -> results.ReplayRun | None:
        found = self._load("run", f"{name}.{ablation}.{seed}", _FinishedRun)
        return found.run if found is not None else None

    def _load(self, what: str, key: str, kind: type[_Kept]) -> _Kept | None:
        found = self.state.find(f"{what}-{key}", f"replay-{what}")
        return found if isinstance(found, kind) else None

    def _keep(self, what: str, key: str, finished: "_FinishedRun | _FinishedRecipe") -> None:
        self.state.keep(f"{what}-{key}", finished)

    def _tried(self, name: str) -> dict[str, Trial]:
        """Return the sweep's trials that an earlier process made, by learning rate in hexadecimal."""
        saved = self._own.read(_sweep_file(name))
        return {lr: Trial(**trial) for lr, trial in saved.items()} if isinstance(saved, dict) else {}

    def _keep_tried(self, name: str, trials: Mapping[str, Trial]) -> None:
        self.state.write(_sweep_file(name), {lr: asdict(trial) for lr, trial in trials.items()})


def curvature_note(reason: str) -> Note:
    """Say that the bands' curvature was not measured, and why."""
    message = f"The curvature of bands was not measured, so that rates stand beside it for eigenvectors only: {reason}."
    return Note(code="no-curvature", message=message)


def splits_of(task: Task, request: ReplayRequest) -> BatchSplits:
    """Return the batches of each part of a replay.

    Raises:
        InputError: If there are too few.
    """
    return deal_segments(
        task, steps=request.steps, seeds=request.seeds, warm_batches=request.warm_batches, seed=request.seed
    )


def _title(name: str, ablation: str, seed: int) -> str:
    projected = "" if ablation == "none" else f", {ablation} part only,"
    return f"{name}{projected} seed {seed}"


def _sweep_file(name: str) -> str:
    return f"sweep-{name}.json"
