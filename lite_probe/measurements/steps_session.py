"""Makes the steps of some optimizers from one state and measures the loss along them, batch after batch.

For each training batch all optimizers step from θ₀; then one graph of a part of the evaluation batches serves all their
products. What a batch gives is a few numbers per band, which are kept; directions are made anew where a run continues.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.errors import NumericsError
from lite_probe.measurements.optimizers import settle_rate
from lite_probe.measurements.requests.steps import StepsRequest
from lite_probe.operators.hessian import GraphStore, HessianOperator
from lite_probe.operators.precision import multiplying_large
from lite_probe.optim import LiteOptimizer
from lite_probe.optim.interface import make_step, set_learning_rate
from lite_probe.replays.allocation import ROUNDINGS, Point, evaluate
from lite_probe.replays.entrants import Entrant, entrants_of
from lite_probe.replays.ramp import ramp_steps
from lite_probe.replays.recipes import Prepared, prepare
from lite_probe.replays.runner import Runner, RunRequest, evaluate_loss
from lite_probe.replays.segments import Segment
from lite_probe.replays.stored import OptimizerState, load_start, store_state
from lite_probe.replays.sweep import sweep_learning_rates
from lite_probe.results.provenance import Note
from lite_probe.results.replay import Recipe, Sweep
from lite_probe.results.steps import (
    JOINT_PARTS,
    CriticalSteps,
    JointOptimum,
    LineCheck,
    OptimizerSteps,
    SignalShare,
    StepBands,
)
from lite_probe.results.store import register
from lite_probe.runtime.fingerprint import batches_digest
from lite_probe.runtime.memory import return_freed_memory
from lite_probe.runtime.resumable import ResumableRun, SaveClock
from lite_probe.seeds import derive_seed
from lite_probe.steps.bands import BlockBands, cut_step_bands
from lite_probe.steps.critical import CriticalStep, critical_step
from lite_probe.steps.joint import RIDGES, joint_optimum
from lite_probe.steps.parts import split_rows
from lite_probe.steps.signal import agreeing_directions, leading, momenta, random_like
from lite_probe.subspaces import can_take, drop_gradients, optimizer_of, set_gradients, warm
from lite_probe.task import Batch, Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.reductions import dots

_SHARP_RATIO = 0.1  # of a matrix's singular directions, those that two halves of the batches are compared in
_FORWARDS = 7  # that a critical step usually takes
_UNIT = 100.0  # of progress, in a product
_OVERFLOWED = 1e30  # nats, for a loss that is no number


@dataclass(frozen=True, slots=True)
class StepSplits:
    """How a task's training batches are split."""

    warm: Sequence[Batch]
    steps: Sequence[Batch]
    sweep: Segment
    notes: tuple[Note, ...]

    @property
    def all(self) -> list[Batch]:
        """Every batch that is used."""
        return [*self.warm, *self.steps, *self.sweep.batches]


def split_batches(task: Task, request: StepsRequest) -> StepSplits:
    """Deal a task's training batches; where they are too few each part is a shuffle of its own, and a note says so."""
    pool, sizes = list(task.train), [request.warm_batches, request.num_steps, request.sweep_steps]
    if "sweep" not in request.rates.values():
        sizes[2] = 0
    notes: tuple[Note, ...] = ()
    if len(pool) >= sum(sizes):
        order = _shuffled(len(pool), request.seed, "deal")
        ends = np.cumsum([0, *sizes]).tolist()
        parts = [order[first:last] for first, last in pairwise(ends)]
    else:
        parts = [_shuffled(len(pool), request.seed, str(place))[:size] for place, size in enumerate(sizes)]
        made = len(parts[1])
        fewer = f", and steps are made from {made} of the {sizes[1]} that were asked for" if made < sizes[1] else ""
        message = (
            f"The {len(pool)} training batches are fewer than the {sum(sizes)} to warm on, to step from and to sweep "
            f"on: these share batches{fewer}."
        )
        notes = (Note(code="batches-shared", message=message),)
    warmed, steps, sweep = ([pool[index] for index in part] for part in parts)
    return StepSplits(warm=warmed, steps=steps, sweep=Segment(sweep, batches_digest(sweep)), notes=notes)


def _shuffled(count: int, seed: int, name: str) -> list[int]:
    order: list[int] = np.random.default_rng(derive_seed(seed, "steps", name)).permutation(count).tolist()
    return order


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What a measurement is expected to take.

    Attributes:
        products: Hessian products over all evaluation batches, by what they are for.
        products_per_graph: That share a graph.
        batches: Training batches that steps are made from.
        gradients: Of training batches.
        forwards: Evaluations of the loss on all evaluation batches.
        steps: Of each optimizer.
    """

    products: Mapping[str, float]
    products_per_graph: float
    batches: int
    gradients: int
    forwards: float
    steps: int

    @classmethod
    def of(cls, task: Task, request: StepsRequest, *, warmed: int, together: bool = True) -> "Effort":
        """Count; `warmed` optimizers are warmed, and all step together or one after another."""
        count, batches = len(request.names), len(task.evaluation)
        blocks = {part.block for parts in task.blocks.values() for part in parts} if task.blocks else {"other"}
        swept = sum(rate == "sweep" for rate in request.rates.values())
        is_whole = not request.critical_only
        parts = len(split_rows(task.evaluation, request.step_batches))
        made = len(task.train[: request.num_steps])
        profile = count * (len(blocks) + 1.0) * made / parts if is_whole else 0.0
        share = len(list(task.evaluation)[::2]) / batches
        joint = share * count * len(JOINT_PARTS) * len(blocks) if is_whole else 0.0
        sets = 2 + bool(request.relative)
        forwards = sets * count * request.critical_batches * _FORWARDS / batches
        warmings = max(bool(warmed), is_whole) if together else warmed + is_whole
        return cls(
            products={"bands": profile, "joint optimum": joint} if is_whole else {},
            products_per_graph=(count if together else 1) * float(len(blocks)),
            batches=made,
            gradients=len(task.train[: request.warm_batches]) * warmings
            + made * (1 if together else count)
            + swept * 4 * request.sweep_steps,
            forwards=forwards + (2.0 * joint if is_whole else 0.0),
            steps=made + warmed * request.warm_batches // max(count, 1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedRate:
    """An optimizer's settled learning rate."""

    fingerprint: str
    recipe: Recipe
    sweep: Sweep | None
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """What the batches so far gave, by optimizer: a row per batch."""

    fingerprint: str
    gains: Mapping[str, NDArray[np.float64]]
    images: Mapping[str, NDArray[np.float64]]
    whole: Mapping[str, NDArray[np.float64]]  # (m, 2) gain and curvature of the whole step
    critical: Mapping[str, NDArray[np.float64]]  # "muon own batch" → (m, 3) low, high, evaluations


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedJoint:
    """An optimizer's joint optimum."""

    fingerprint: str
    joint: JointOptimum


@dataclass(frozen=True, slots=True, kw_only=True)
class _FinishedSignal:
    """What two halves of the batches agree on, by block."""

    fingerprint: str
    signal: Mapping[str, SignalShare]


register("steps-rate", _FinishedRate, schema_version=1)
register("steps-samples", _Samples, schema_version=1)
register("steps-joint", _FinishedJoint, schema_version=1)
register("steps-signal", _FinishedSignal, schema_version=1)


@dataclass(slots=True)
class _Stepper:
    """One optimizer, ready to make any batch's step from θ₀, and what its steps gave so far."""

    name: str
    optimizer: LiteOptimizer
    state: OptimizerState
    lr: float
    blocks: list[BlockBands]
    table: StepBands | None
    mean: Tensor  # (N,) of its steps
    gains: list[NDArray[np.float64]]
    images: list[NDArray[np.float64]]
    whole: list[tuple[float, float]]
    critical: dict[str, list[CriticalStep]]


@dataclass(frozen=True, slots=True)
class Group:
    """Some bands of a block, and the part of an optimizer's mean step in them."""

    block: BlockBands
    part: str
    direction: Tensor  # of the block's parameters


class StepsSession:
    """Runs everything that was asked, and keeps what is finished.

    Args:
        task: Its parameters are moved; the caller puts them back.
        layout: All parameters.
        start: θ₀, (N,).
        request: What was asked.
        effort: What it is expected to take.
        run: Keeps and tells.
        together: Whether all optimizers step from each batch together, on one graph, or one optimizer after another,
            which holds one state at a time. The numbers are the same.
        stores_states: Whether what they step from lies in files of the run's folder.
    """

    def __init__(
        self,
        task: Task,
        layout: ParameterLayout,
        start: Tensor,
        request: StepsRequest,
        effort: Effort,
        run: ResumableRun,
        *,
        together: bool,
        stores_states: bool,
    ) -> None:
        self.task = task
        self.layout = layout
        self.start = start
        self.together = together
        self.stores_states = stores_states
        self.request = request
        self.run_state = run
        self.splits = split_batches(task, request)
        self.notes: list[Note] = list(self.splits.notes)
        self.parts = split_rows(task.evaluation, request.step_batches)
        self.products = {"bands": 0.0, "joint optimum": 0.0} if not request.critical_only else {}
        self.signal: Mapping[str, SignalShare] = {}
        self.optimizers: dict[str, OptimizerSteps] = {}
        self.batch_tokens = 0
        self.point: Point
        cycles = -(-request.step_batches // len(self.parts))
        self._order = [
            index for cycle in range(cycles) for index in _shuffled(len(self.parts), request.seed, f"parts {cycle}")
        ]
        self._index = {name: place for place, name in enumerate(layout.names)}
        self._gradient_cost = 0.5 / max(len(task.evaluation), 1)  # of a batch, in products
        self._done = 0.0
        self._steppers: list[_Stepper] = []
        self._expected = sum(effort.products.values()) + effort.gradients * self._gradient_cost + effort.forwards / 6.0
        # The joint optimum is asked of every other evaluation batch: its products are most of what is spent.
        self._joint_task = replace(task, evaluation=list(task.evaluation)[::2])
        self._joint_point: Point
        # Muon's state on either half of the warm-up batches, to tell signal from noise.
        self._halves: list[LiteOptimizer] = []
        self._fed = 0
        self._gathered = 0  # batches of which this rank has what all have measured

    def run(self) -> None:
        """Prepare the optimizers, make their steps, and measure along them."""
        self.point = evaluate(self.task, self.layout)
        if not self.request.critical_only and can_take("muon", self.task):
            self._halves = [optimizer_of(self.task, "muon") for _ in range(2)]
        if not self.together:  # what two halves agree on takes two states
            self._finish_signal()
        entrants = entrants_of(self.request.asked)
        for names in [tuple(entrants)] if self.together else [(name,) for name in entrants]:
            self._measure({name: entrants[name] for name in names})

    def _measure(self, entrants: Mapping[str, Entrant]) -> None:
        """Measure some optimizers together."""
        self._steppers.clear()  # those before, with what they hold
        steppers, finished = self._prepared(entrants)
        if self.together:
            self._finish_signal()
        self._steppers = steppers
        self._make_steps(steppers)
        joints = {} if self.request.critical_only else self._joints(steppers)
        for one in steppers:
            rate = finished[one.name]
            self.optimizers[one.name] = OptimizerSteps(
                recipe=rate.recipe,
                sweep=rate.sweep,
                bands=one.table,
                gains=_stacked(one.gains, one.table),
                images=_stacked(one.images, one.table),
                signs=_stacked([self._signs(one, place) for place in range(len(one.gains))], one.table),
                whole_gains=np.array([gain for gain, _ in one.whole]),
                whole_curvatures=np.array([curvature for _, curvature in one.whole]),
                joint=joints.get(one.name),
                critical={
                    kind: CriticalSteps(
                        low=np.array([step.low for step in steps]),
                        high=np.array([step.high for step in steps]),
                        evaluations=np.array([step.evaluations for step in steps], dtype=np.int64),
                    )
                    for kind, steps in one.critical.items()
                },
            )
            self.notes += rate.notes

    # -- optimizers ----------------------------------------------------------------------------------------------

    def _prepared(self, entrants: Mapping[str, Entrant]) -> tuple[list[_Stepper], dict[str, _FinishedRate]]:
        """Bring optimizers to θ₀, settle their rates, and cut their directions into bands.

        Each has its state in its hands only while it needs it; between steps there is what it starts from alone.
        """
        prepared = prepare(
            self.task,
            entrants,
            hyperparameters=self.request.hyperparameters,
            state=self.request.state,
            warm_batches=self.splits.warm,
            saved=self.request.saved,
            on_gradient=self._feed_half,
            drops_states=True,
        )
        steppers, finished = [], {}
        named = list(self.task.model.named_parameters())
        for name in entrants:
            one = prepared.pop(name)
            if self.stores_states:
                one = replace(one, state=store_state(self.run_state, self.task, one.state, self.request.names, name))
            finished[name] = self.run_state.stage(f"rate-{name}", "steps-rate", partial(self._rate, name, one))
            optimizer = one.optimizer
            if not isinstance(optimizer, LiteOptimizer):
                raise TypeError(f"expected an optimizer of lite-probe, got {type(optimizer).__name__}")
            blocks: list[BlockBands] = []
            table: StepBands | None = None
            if not self.request.critical_only:
                load_start(optimizer, one.state)
                blocks, table = cut_step_bands(named, optimizer.directions(), optimizer=name)
            optimizer.drop_state()
            return_freed_memory()
            steppers.append(
                _Stepper(
                    name=name,
                    optimizer=optimizer,
                    state=one.state,
                    lr=finished[name].recipe.lr,
                    blocks=blocks,
                    table=table,
                    mean=torch.zeros_like(self.start),
                    gains=[],
                    images=[],
                    whole=[],
                    critical={},
                )
            )
        return steppers, finished

    def _feed_half(self) -> None:
        """Let one of the two halves' states have the gradient that the optimizers are warmed on."""
        if self._halves:
            half = self._halves[self._fed % 2]
            set_learning_rate(half, 0.0)
            half.step()
            self._fed += 1
        self._tell(self._gradient_cost, "warming optimizer states")

    def _rate(self, name: str, prepared: Prepared) -> _FinishedRate:
        """Settle an optimizer's learning rate."""
        recipe, sweep, notes = settle_rate(self.request, name, prepared, partial(self._sweep, name, prepared))
        return _FinishedRate(fingerprint=self.run_state.fingerprint, recipe=recipe, sweep=sweep, notes=notes)

    def _sweep(self, name: str, prepared: Prepared) -> Sweep:
        label = f"trying learning rates of {name}"
        runner = Runner(
            self.task,
            self.layout,
            self.start,
            self.point,
            on_gradients=lambda count: self._tell(count * self._gradient_cost, label),
        )
        ramp, segment = ramp_steps(self.request.sweep_steps), self.splits.sweep

        sweep = sweep_learning_rates(
            lambda lr: runner.trial(
                prepared.optimizer,
                prepared.state,
                RunRequest(optimizer=name, lr=lr, seed=-1, segment=segment, ramp=ramp),
            )
        )
        self.layout.write(self.start)
        return sweep

    def _step(self, one: _Stepper) -> Tensor:
        """Return the update that an optimizer makes of the gradients there are, without decay.

        It is made from zero weights, on which an update does not depend: so it is not rounded to those of θ₀.
        """
        load_start(one.optimizer, one.state)
        set_learning_rate(one.optimizer, one.lr)
        for group in one.optimizer.param_groups:
            group["weight_decay"] = 0.0
        with torch.no_grad():
            for parameter in self.layout.parameters:
                parameter.zero_()
        make_step(one.optimizer)
        one.optimizer.drop_state()
        update = self.layout.read()
        self.layout.write(self.start)
        return update

    # -- steps ---------------------------------------------------------------------------------------------------

    def _make_steps(self, steppers: Sequence[_Stepper]) -> None:
        """Make the step of every batch, and measure along it; what an earlier process measured is not made again."""
        known, clock = self._restore(steppers), SaveClock()
        self._gathered = len(steppers[0].whole)
        for place, batch in enumerate(self.splits.steps):
            train_loss = set_gradients(self.task, self.layout.parameters, batch, f"training batch {place}")
            updates = [self._step(one) for one in steppers]
            drop_gradients(self.layout.parameters)
            for one, update in zip(steppers, updates, strict=True):
                one.mean.add_(update, alpha=1.0 / len(self.splits.steps))
            if place == 0:
                with torch.no_grad():
                    self.batch_tokens = self.task.loss(batch)[1]
            if place < known:
                self._tell(self._gradient_cost, "making steps")
                continue
            if place < self.request.critical_batches:
                sets = self._loss_sets(place, batch, train_loss)
                for one, update in zip(steppers, updates, strict=True):
                    self._find_critical(one, update, sets)
            if not self.request.critical_only:
                self._measure_curvature(steppers, updates, place)
            self._tell(self._gradient_cost, "making steps")
            if self.task.ranks.once(lambda: clock.due):
                with clock.saving():
                    self._gather(steppers)
                    self._keep(steppers)
        self._gather(steppers)
        self._keep(steppers)
        if not self.request.critical_only:
            blocks = sum(len(one.blocks) + 1 for one in steppers)
            self.products["bands"] += blocks * len(self.splits.steps) / len(self.parts)

    def _measure_curvature(self, steppers: Sequence[_Stepper], updates: Sequence[Tensor], place: int) -> None:
        """Multiply each block's bands, with their signs, and the whole step by the Hessian of one part.

        One rank does, each in its turn; the others leave room for what it finds.
        """
        if place % self.task.ranks.count != self.task.ranks.rank:
            for one in steppers:
                bands = len(self._signs(one, place))
                one.gains.append(np.zeros(bands))
                one.images.append(np.zeros(bands))
                one.whole.append((0.0, 0.0))
            return
        # Each part's sum stands for all: over the parts its mean is the Hessian, however many tokens each has.
        scale = len(self.parts) / self.point.count
        with self._graph(self.parts[self._order[place % len(self._order)]]) as operator:
            for one, update in zip(steppers, updates, strict=True):
                signs = torch.from_numpy(self._signs(one, place)).to(update)
                sizes = [len(block.places) for block in one.blocks]
                products: list[Tensor] = []
                for block, chosen in zip(one.blocks, torch.split(signs, sizes), strict=True):
                    own, gradient = (self._within(block, vector) for vector in (update, self.point.gradient))
                    image = operator(block.layout).matvec(block.bands.weighted(own, chosen))
                    products.append(block.bands.products_of([gradient, own, image], [(0, 1), (1, 2)]))
                    self._tell(1.0 / len(self.parts), f"{one.name} · batch {place + 1}/{len(self.splits.steps)}")
                image = operator(self.layout).matvec(update)
                slope, curvature = dots([(self.point.gradient, update), (update, image)])
                slopes, curvatures = torch.cat(products, dim=1).cpu().numpy()
                images, whole = scale * curvatures, scale * curvature
                one.gains.append(-slopes)
                one.images.append(images)
                one.whole.append((-slope, whole))
                self._tell(1.0 / len(self.parts), f"{one.name} · batch {place + 1}/{len(self.splits.steps)}")
                if not math.isfinite(whole) or not np.isfinite(images).all():
                    raise NumericsError(
                        f"expected finite curvature along the step of {one.name}, got {whole}",
                        "check the checkpoint (diverged?), or use --critical-only",
                    )

    def _gather(self, steppers: Sequence[_Stepper]) -> None:
        """Take what the other ranks have measured since it was last taken."""
        first, self._gathered = self._gathered, len(steppers[0].whole)
        for one in steppers if self.task.ranks.count > 1 else ():
            for rows in (one.gains, one.images):
                if rows[first:]:
                    rows[first:] = list(self.task.ranks.add_up(torch.from_numpy(np.stack(rows[first:]))).numpy())
            whole = torch.tensor(one.whole[first:], dtype=torch.float64).reshape(-1, 2)
            one.whole[first:] = [(gain, curvature) for gain, curvature in self.task.ranks.add_up(whole).tolist()]

    @contextmanager
    def _graph(self, batch: Batch) -> Iterator[Callable[[ParameterLayout], HessianOperator]]:
        """Yield what makes Hessians of one batch's summed loss on any layout, through one graph."""
        task = Task(model=self.task.model, predict=self.task.predict, criterion=self.task.criterion, evaluation=[batch])
        graphs = GraphStore(1, self.layout.parameters)
        yield lambda layout: HessianOperator(task, layout, count=1, graphs=graphs, vectors_per_pass=1)
        graphs.clear()

    def _signs(self, one: _Stepper, place: int) -> NDArray[np.float64]:
        """Return the signs of an optimizer's bands for one batch, (B,)."""
        count = len(one.table.blocks) if one.table is not None else 0
        seed = derive_seed(self.request.seed, "signs", one.name, place)
        return np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), size=count)

    def _within(self, block: BlockBands, vector: Tensor) -> Tensor:
        """Return the entries of a vector (N,) that belong to the parameters of a block."""
        views = self.layout.views(vector)
        return torch.cat([views[self._index[name]].flatten() for name in block.layout.names])

    # -- critical steps ------------------------------------------------------------------------------------------

    def _loss_sets(self, place: int, batch: Batch, train_loss: float) -> dict[str, tuple[Batch, float]]:
        """Return what a step's critical one is looked for on, each with the loss at θ₀.

        That is the batch that made it, an evaluation batch, and one of other data where there are some.
        """
        others = {"held out": self.task.evaluation, "relative": self.request.relative}
        own = {kind: batches[place % len(batches)] for kind, batches in others.items() if len(batches)}
        return {"own batch": (batch, train_loss), **{kind: (one, self._loss(one)) for kind, one in own.items()}}

    def _find_critical(self, one: _Stepper, update: Tensor, sets: Mapping[str, tuple[Batch, float]]) -> None:
        """Look for the critical step on each set."""
        for kind, (own, loss) in sets.items():
            earlier = one.critical.setdefault(kind, [])
            first = 1.0
            if earlier and earlier[-1].low > 0.0:
                first = 0.5 * (earlier[-1].low + earlier[-1].high)
            rounding = ROUNDINGS * torch.finfo(update.dtype).eps * abs(loss)
            found = critical_step(partial(self._loss_at, own, update), loss, first=first, rounding=rounding)
            self.layout.write(self.start)
            earlier.append(found)
            cost = found.evaluations / 3.0 * self._gradient_cost
            self._tell(cost, f"{one.name} · critical step, {kind}")

    def _loss(self, batch: Batch) -> float:
        with torch.no_grad(), multiplying_large(self.task.model, batch):
            total, count = self.task.loss(batch)
        return float(total) / count

    def _loss_at(self, batch: Batch, direction: Tensor, multiple: float) -> float:
        self.layout.write(torch.add(self.start, direction, alpha=multiple))
        return self._loss(batch)

    # -- the joint optimum ---------------------------------------------------------------------------------------

    def _joints(self, steppers: Sequence[_Stepper]) -> dict[str, JointOptimum]:
        """Return every optimizer's joint optimum."""
        found = {}
        self._joint_point = evaluate(self._joint_task, self.layout)
        for one in steppers:
            kept = self.run_state.stage(f"joint-{one.name}", "steps-joint", partial(self._joint, one))
            found[one.name] = kept.joint
            share = len(self._joint_task.evaluation) / len(self.task.evaluation)
            self.products["joint optimum"] += len(kept.joint.blocks) * share
        return found

    def _joint(self, one: _Stepper) -> _FinishedJoint:
        """Multiply every group of the mean step by the Hessian, and find what is best together."""
        groups = self._groups(one)
        share = 1.0 / len(self.task.evaluation)
        curvatures = self._curvatures(
            groups,
            self._joint_task.evaluation,
            self._joint_point,
            lambda: self._tell(share, f"{one.name} · joint optimum"),
        )
        gains = -self._by_group(groups, self._joint_point.gradient)
        checks = []
        for row, group in enumerate(groups):
            gain, curvature = float(gains[row]), float(curvatures[row, row])
            if curvature <= 0.0 or gain <= 0.0:
                continue
            direction, optimum = self._combined([group], [1.0]), gain / curvature
            checks.append(
                LineCheck(
                    block=group.block.block,
                    part=group.part,
                    optimum=optimum,
                    predicted=-0.5 * gain * optimum,
                    at_optimum=self._change_at(direction, optimum),
                    at_edge=self._change_at(direction, 2.0 * optimum),
                )
            )
            self._tell(len(self._joint_task.evaluation) / len(self.task.evaluation) / 3.0, f"{one.name} · line check")
        tried = [(ridge, *joint_optimum(gains, curvatures, ridge)) for ridge in RIDGES]
        changes = [self._change_at(self._combined(groups, multiples.tolist()), 1.0) for _, multiples, _ in tried]
        best = int(np.argmin(changes))
        ridge, multiples, predicted = tried[best]
        joint = JointOptimum(
            blocks=tuple(group.block.block for group in groups),
            parts=tuple(group.part for group in groups),
            gains=gains,
            curvatures=curvatures,
            multiples=multiples,
            ridge=ridge,
            predicted=predicted,
            change=changes[best],
            own_change=self._change_at(one.mean, 1.0),
            checks=tuple(checks),
        )
        self.layout.write(self.start)
        return _FinishedJoint(fingerprint=self.run_state.fingerprint, joint=joint)

    def groups(self, name: str) -> list[Group]:
        """Return the groups of an optimizer's mean step, once `run` has made it: sharp and non-sharp of each block."""
        return self._groups(next(one for one in self._steppers if one.name == name))

    def _groups(self, one: _Stepper) -> list[Group]:
        table = one.table
        if table is None:
            raise ValueError("expected bands, got none")
        return [
            Group(block, name, block.bands.project(self._within(block, one.mean), bands))
            for block in one.blocks
            for name, parts in JOINT_PARTS.items()
            if (bands := [band for band, place in enumerate(block.places) if table.parts[place] in parts])
        ]

    def model_of(
        self, groups: Sequence[Group], batches: Sequence[Batch], on_product: Callable[[], None]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return b = −Dᵀ∇L, (k,), and A = DᵀHD, (k, k), along groups of the mean step, L the loss of some batches.

        Cost: a gradient, and k products of each batch.
        """
        point = evaluate(replace(self.task, evaluation=list(batches)), self.layout)
        curvatures = self._curvatures(groups, batches, point, on_product)
        return -self._by_group(groups, point.gradient), curvatures

    def _curvatures(
        self, groups: Sequence[Group], batches: Sequence[Batch], point: Point, on_product: Callable[[], None]
    ) -> NDArray[np.float64]:
        """Return A = DᵀHD, (k, k), along groups of the mean step; each batch is multiplied by one rank."""
        curvatures = np.zeros((len(groups), len(groups)))
        for _, batch in self.task.ranks.own(batches):
            with self._graph(batch) as operator:
                hessian = operator(self.layout)
                for row, group in enumerate(groups):
                    image = hessian.matvec(self._combined([group], [1.0]))
                    curvatures[row] += self._by_group(groups, image) / point.count
                    on_product()
        summed: NDArray[np.float64] = self.task.ranks.add_up(torch.from_numpy(curvatures)).numpy()
        return summed

    def _combined(self, groups: Sequence[Group], multiples: Sequence[float]) -> Tensor:
        """Return the sum of some groups of the mean step, each at its multiple, (N,)."""
        result = torch.zeros_like(self.start)
        targets = self.layout.views(result)
        for group, multiple in zip(groups, multiples, strict=True):
            layout = group.block.layout
            for name, view in zip(layout.names, layout.views(group.direction), strict=True):
                targets[self._index[name]].add_(view, alpha=multiple)
        return result

    def _by_group(self, groups: Sequence[Group], vector: Tensor) -> NDArray[np.float64]:
        """Return the inner products of a vector (N,) with every group of the mean step."""
        return np.array(dots((group.direction, self._within(group.block, vector)) for group in groups))

    def _change_at(self, direction: Tensor, multiple: float) -> float:
        """Return the change of the loss on the batches of the joint optimum. Cost: a forward pass."""
        self.layout.write(torch.add(self.start, direction, alpha=multiple))
        try:
            return evaluate_loss(self._joint_task) - self._joint_point.loss
        except NumericsError:
            return _OVERFLOWED

    # -- signal --------------------------------------------------------------------------------------------------

    def _signal(self) -> Mapping[str, SignalShare]:
        """Return what two halves of the warm-up batches agree on; of no block where Muon cannot take the model."""
        if not self._halves or len(self.splits.warm) < 2:
            return {}
        kept = self.run_state.stage(
            "signal",
            "steps-signal",
            lambda: _FinishedSignal(fingerprint=self.run_state.fingerprint, signal=self._measure_signal()),
        )
        return kept.signal

    def _finish_signal(self) -> None:
        """Say what the halves agree on, and let go of them."""
        if not self.request.critical_only:
            self.signal = self._signal()
            self._halves.clear()

    def _measure_signal(self) -> Mapping[str, SignalShare]:
        if not self._fed:  # no optimizer had to be warmed
            warm_up = partial(self._tell, self._gradient_cost, "signal or noise")
            for place, half in enumerate(self._halves):
                warm(self.task, [half], self.splits.warm[place::2], on_batch=lambda index: warm_up())
        counts: dict[str, list[int]] = {}
        for place, (first, second) in enumerate(zip(*map(momenta, self._halves), strict=True)):
            (block, a), (_, b) = first, second
            rank = leading(a.shape, _SHARP_RATIO)
            drawn = [random_like(a, self.request.seed, place, side) for side in (0, 1)]
            own = counts.setdefault(block, [0, 0, 0])
            own[0] += agreeing_directions(a, b, rank)
            own[1] += agreeing_directions(drawn[0], drawn[1], rank)
            own[2] += rank
        return {
            block: SignalShare(share=agreed / total, random=by_chance / total, num_directions=total)
            for block, (agreed, by_chance, total) in counts.items()
        }

    # -- progress and state --------------------------------------------------------------------------------------

    def _tell(self, products: float, label: str) -> None:
        self._done += products
        self.run_state.done = round(_UNIT * self._done)
        self.run_state.expected = round(_UNIT * max(self._expected, self._done))
        self.run_state.advance(0, label)

    def _keep(self, steppers: Sequence[_Stepper]) -> None:
        self.run_state.keep(
            self._part(steppers),
            _Samples(
                fingerprint=self.run_state.fingerprint,
                gains={one.name: _stacked(one.gains, one.table) for one in steppers},
                images={one.name: _stacked(one.images, one.table) for one in steppers},
                whole={one.name: np.array(one.whole).reshape(-1, 2) for one in steppers},
                critical={
                    f"{one.name} {kind}": np.array([[step.low, step.high, step.evaluations] for step in steps])
                    for one in steppers
                    for kind, steps in one.critical.items()
                },
            ),
        )

    def _part(self, steppers: Sequence[_Stepper]) -> str:
        """Return the name that samples are kept under: of all optimizers, or of the one that steps by itself."""
        return "samples" if self.together else f"samples-{steppers[0].name}"

    def _restore(self, steppers: Sequence[_Stepper]) -> int:
        """Take up what an earlier process measured; return of how many batches."""
        found = self.run_state.find(self._part(steppers), "steps-samples")
        if not isinstance(found, _Samples):
            return 0
        for one in steppers:
            one.gains, one.images = list(found.gains[one.name]), list(found.images[one.name])
            one.whole = [(float(gain), float(curvature)) for gain, curvature in found.whole[one.name]]
            for key, steps in found.critical.items():
                name, _, kind = key.partition(" ")
                if name == one.name:
                    one.critical[kind] = [CriticalStep(float(low), float(high), int(n)) for low, high, n in steps]
        first = steppers[0]
        if self.request.critical_only:
            return len(first.critical.get("own batch", []))
        return len(first.whole)


def _stacked(rows: Sequence[NDArray[np.float64]], table: StepBands | None) -> NDArray[np.float64]:
    columns = len(table.blocks) if table is not None else 0
    return np.array(rows, dtype=np.float64).reshape(-1, columns) if columns else np.zeros((0, 0))
