"""Tunes LITE: the step profile, every node's models along its groups, the settings they agree on, and a replay."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe import bilevel
from lite_probe.bilevel.landscape import LandscapeProblem
from lite_probe.errors import InputError, NumericsError
from lite_probe.measurements.replay import ReplayPlan
from lite_probe.measurements.requests.replay import ReplayRequest
from lite_probe.measurements.requests.steps import StepsRequest
from lite_probe.measurements.requests.tune import SWEEP_STEPS, TuneRequest
from lite_probe.measurements.steps_session import Effort, Group, StepsSession
from lite_probe.measurements.tune_settings import hyperparameters_for, profile_ratios, recommend
from lite_probe.results.provenance import Note
from lite_probe.results.replay import Replay
from lite_probe.results.store import register
from lite_probe.results.tuning import MethodRun, NodeModels, Recommendation
from lite_probe.runtime.fingerprint import batches_digest
from lite_probe.runtime.resumable import ResumableRun
from lite_probe.seeds import derive_seed
from lite_probe.task import Batch, Task
from lite_probe.vectors.layout import ParameterLayout

FloatArray = NDArray[np.float64]
MethodChoice = tuple[Literal["dsoba-so", "dsoba-fo", "sparkle"], str, str]  # upper and lower strategies of sparkle

RIDGE = 0.1  # δ, of a group's own curvature
_LEAST_SCALE = 1e-3  # of the groups' mean curvature: a group of less is damped as if it had so much
_UPPER_STEPS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # of the damping: the first that brings the loss down is taken
_ROOM = 2.0  # damping logs up to which the lower level's step is stable
_LEAST_FOR_STEPS = 16  # training batches
_UNIT = 100.0  # of progress, in a product of one batch

_NODE_GAINS = ("gains", "validation_gains")
_NODE_CURVATURES = ("curvatures", "validation_curvatures")
# What the chosen method is shown beside: each way to correct for what nodes differ in, and none.
_METHODS: tuple[MethodChoice, ...] = (
    ("sparkle", "gt", "ed"),
    ("sparkle", "ed", "ed"),
    ("sparkle", "extra", "extra"),
    ("sparkle", "gt", "gt"),
    ("dsoba-so", "", ""),
)


@dataclass(frozen=True, slots=True)
class TuneSplits:
    """How a task's batches are split.

    Attributes:
        nodes: For each node the batches it trains on and those it validates on.
        steps: That the step profile is measured from.
        replay: That the settings are tested on.
        notes: What is shared.
    """

    nodes: Sequence[tuple[Sequence[Batch], Sequence[Batch]]]
    steps: Sequence[Batch]
    replay: Sequence[Batch]
    notes: tuple[Note, ...]


def split_batches(task: Task, request: TuneRequest) -> TuneSplits:
    """Deal a task's training batches to the nodes, the step profile and the replay, none to two of them.

    Raises:
        InputError: If there are not enough for the nodes, or a shard is too small.
    """
    pool = list(task.train)
    order = np.random.default_rng(derive_seed(request.seed, "tune", "deal")).permutation(len(pool)).tolist()
    dealt = [pool[index] for index in order]
    share = 2 * request.node_batches
    if request.shards:
        shards = [list(shard) for shard in request.shards[: request.nodes]]
        if (least := min(len(shard) for shard in shards)) < share:
            raise InputError(
                f"expected {share} batches in every shard, {request.node_batches} to train on and as many to validate "
                f"on, got {least}",
                "lower --node-batches or --nodes, or give longer shards",
            )
    else:
        if len(dealt) < request.nodes * share + _LEAST_FOR_STEPS:
            raise InputError(
                f"expected {request.nodes * share + _LEAST_FOR_STEPS} training batches, {share} for each of "
                f"{request.nodes} nodes and {_LEAST_FOR_STEPS} for steps, got {len(dealt)}",
                "lower --nodes or --node-batches, give a longer text, or a smaller --batch-size",
            )
        shards = [dealt[node :: request.nodes][:share] for node in range(request.nodes)]
        taken = {id(batch) for shard in shards for batch in shard}
        dealt = [batch for batch in dealt if id(batch) not in taken]
    nodes = [(shard[: request.node_batches], shard[request.node_batches : share]) for shard in shards]
    wanted = request.profile_batches
    needed = wanted + (replay_request(request, {}, 1.0).train_batches(0) if request.replay_steps else 0)
    if len(dealt) >= needed:
        return TuneSplits(nodes=nodes, steps=dealt[:wanted], replay=dealt[wanted:], notes=())
    message = (
        f"{len(dealt)} training batches are left for the steps and the replay, which take {needed}: the replay trains "
        "on batches that steps were measured from."
    )
    return TuneSplits(nodes=nodes, steps=dealt, replay=dealt, notes=(Note(code="batches-shared", message=message),))


def steps_request(request: TuneRequest) -> StepsRequest:
    """Return what is asked of the step profile."""
    return StepsRequest(
        optimizers=(request.base,),
        lr=request.lr,
        state=request.state,
        saved=request.saved,
        warm_batches=request.warm_batches,
        step_batches=request.step_batches,
        sweep_steps=SWEEP_STEPS,
        seed=request.seed,
        memory=request.memory,
    )


def replay_request(request: TuneRequest, candidates: Mapping[str, Mapping[str, Any]], lr: float) -> ReplayRequest:
    """Return what is asked of the replay that tests the settings."""
    names = (request.base, *candidates)
    return ReplayRequest(
        optimizers=names,
        lr=dict.fromkeys(names, lr),
        hyperparameters=candidates,
        spectrum=request.spectrum,
        saved=request.saved,
        state=request.state,
        warm_batches=request.warm_batches,
        steps=max(request.replay_steps, 1),
        seeds=request.seeds,
        rule="trapezoid",
        landscape=False,  # which the page of a tuning does not show
        seed=request.seed,
        memory=request.memory,
    )


def candidate_names(optimizer: str) -> tuple[str, ...]:
    """Return what is replayed beside the base: published defaults, χ from the profile alone, tuned, pooled."""
    return tuple(f"{optimizer}@{label}" for label in ("published", "profile", "tuned", "pooled"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _NodeModel:
    """One node's models."""

    fingerprint: str
    gains: FloatArray
    curvatures: FloatArray
    validation_gains: FloatArray
    validation_curvatures: FloatArray


register("tuning-node", _NodeModel, schema_version=1)


class TuneSession:
    """Runs everything that was asked, and keeps what is finished.

    Args:
        task: Its parameters are moved; the caller puts them back.
        layout: All parameters.
        start: θ₀, (N,).
        request: What was asked.
        run: Keeps and tells.
        network: Of the nodes' processes.
    """

    def __init__(
        self,
        task: Task,
        layout: ParameterLayout,
        start: Tensor,
        request: TuneRequest,
        run: ResumableRun,
        network: bilevel.Network,
    ) -> None:
        self.task = task
        self.network = network
        # A process of many holds the node of its rank, and one alone holds all.
        self.node = network.rank if isinstance(network, bilevel.RankNetwork) else None
        self.request = request
        self.run_state = run
        self.splits = split_batches(task, request)
        self.notes: list[Note] = list(self.splits.notes)
        own = steps_request(request)
        steps_task = replace(task, train=list(self.splits.steps))
        effort = Effort.of(steps_task, own, warmed=1 if own.state != "cold" else 0)
        self.steps = StepsSession(
            steps_task, layout, start, own, effort, _part_of(run, "steps"), together=True, stores_states=False
        )

    def run(self) -> None:
        """Measure steps and models, agree on settings, test them."""
        request = self.request
        self._agree()
        self.steps.run()
        self.notes += self.steps.notes
        self.profile = self.steps.optimizers[request.base]
        self.models = self._models(self.steps.groups(request.base))
        self.unit = max(float(np.mean(np.sum(self.models.gains**2, axis=1))), 1e-300)
        self.problem = problem = self._problem()
        mixing = bilevel.mixing_matrix(request.topology, request.nodes, seed=request.seed)
        self.spectral_gap = bilevel.spectral_gap(mixing)
        chosen: MethodChoice = (request.method, request.upper, request.lower)
        others = [one for one in _METHODS if name_of(*one) != name_of(*chosen)]
        found, size = self._solved(mixing, chosen)
        if self.node is not None:
            found = self._solve(mixing, chosen, size, is_apart=True)
        self.methods = [self._method_run(chosen, found, is_chosen=True)]
        self.methods += [self._method_run(one, self._solved(mixing, one)[0]) for one in others]
        self.damping_logs, self.multiples = found.x.numpy(), found.y.numpy() * np.sqrt(self.unit)
        pooled = problem.pooled()
        self.pooled_damping_logs = pooled.numpy()
        self.pooled_loss = self.unit * problem.value(pooled)
        self.tuned = self._recommend("tuned", found.x.mean(dim=0), found.y.mean(dim=0))
        self.pooled = self._recommend("pooled", pooled, problem.agreed(pooled))
        settings = [
            {},
            {"flat_lr_ratio": profile_ratios(self.profile)},
            hyperparameters_for(self.tuned),
            hyperparameters_for(self.pooled),
        ]
        self.candidates = dict(zip(candidate_names(request.optimizer), settings, strict=True))
        self.replay = self._replay() if request.is_tested else None

    def _problem(self) -> LandscapeProblem:
        """Return the bilevel problem of the nodes' models, with losses in units of `unit` nats.

        The unit is twice what a node's groups gain, each at its own optimum, on average.
        """
        models, size = self.models, np.sqrt(self.unit)
        return LandscapeProblem(
            models.gains / size,
            models.curvatures,
            models.validation_gains / size,
            models.validation_curvatures,
            ridge=RIDGE,
        )

    def _models(self, groups: Sequence[Group]) -> NodeModels:
        """Measure every node's models on its own batches."""
        joint = self.profile.joint
        if joint is None:
            raise ValueError("expected a joint optimum, got none")
        scales, noise = self._scales(groups)
        run, size = self.run_state, np.sqrt(scales)
        run.expected += round(_UNIT * len(groups) * sum(len(batches) for node in self.splits.nodes for batches in node))
        found = []
        for node, batches in enumerate(self.splits.nodes):
            if self.node not in (None, node):
                continue
            label = f"node {node + 1} of {len(self.splits.nodes)}"
            found.append(run.stage(f"node-{node}", "tuning-node", partial(self._node, groups, batches, label)))
        gains, validation_gains = (self._all([getattr(one, name) for one in found]) for name in _NODE_GAINS)
        curvatures, validation_curvatures = (
            (self._all([getattr(one, name) for one in found]) + np.diag(noise)) / np.outer(size, size)
            for name in _NODE_CURVATURES
        )
        return NodeModels(
            blocks=tuple(group.block.block for group in groups),
            parts=tuple(group.part for group in groups),
            scales=scales,
            noise=noise,
            gains=gains / size,
            curvatures=curvatures,
            validation_gains=validation_gains / size,
            validation_curvatures=validation_curvatures,
        )

    def _all(self, own: Sequence[FloatArray]) -> FloatArray:
        """Return what all nodes measured, from what this process's nodes did: for the record and for comparison.

        The method itself is given the models of this process's nodes alone.
        """
        rows = torch.from_numpy(np.stack(own))
        found: FloatArray = self.network.gather(rows.flatten(1)).reshape(-1, *rows.shape[1:]).numpy()
        return found

    def _agree(self) -> None:
        """Refuse processes that were asked for different things, or have another checkpoint or other data.

        Raises:
            InputError: It names what differs.
        """
        asked = {name: str(value) for name, value in self.request.config.items()}
        info, splits = self.task.info, self.splits
        batches = batches_digest(
            [*splits.steps, *self.task.evaluation, *(one for pair in splits.nodes for one in pair)]
        )
        checkpoint = {"checkpoint": info.checkpoint_fingerprint[:16], "batches": batches[:16]}
        self.network.agree({**asked, **checkpoint})

    def _scales(self, groups: Sequence[Group]) -> tuple[FloatArray, FloatArray]:
        """Return s_j and the noise's part of K_j, (k,) each, nats; K_j is at least what the mean step has."""
        joint = self.profile.joint
        rows = [self.profile.group(group.block.block, group.part) for group in groups]
        if joint is None or any(row is None for row in rows):
            raise ValueError("expected the groups of the profile, got others")
        own = np.diag(joint.curvatures)
        curvatures = np.maximum([row.curvature.value for row in rows if row is not None], np.abs(own))
        scales = np.maximum(curvatures, max(_LEAST_SCALE * float(curvatures.mean()), 1e-300))
        return scales, scales - own

    def _node(
        self, groups: Sequence[Group], batches: tuple[Sequence[Batch], Sequence[Batch]], label: str
    ) -> _NodeModel:
        def tell() -> None:
            self.run_state.advance(round(_UNIT), label)

        gains, curvatures = self.steps.model_of(groups, batches[0], tell)
        validation_gains, validation_curvatures = self.steps.model_of(groups, batches[1], tell)
        return _NodeModel(
            fingerprint=self.run_state.fingerprint,
            gains=gains,
            curvatures=curvatures,
            validation_gains=validation_gains,
            validation_curvatures=validation_curvatures,
        )

    def _solved(self, mixing: FloatArray, method: MethodChoice) -> tuple[bilevel.BilevelRun, float]:
        """Return a method's run on the models of all nodes, and the damping's step size that it takes.

        That is the longest that brings the validation models' loss down; where none does, that of the lowest loss, and
        a note says so.

        Raises:
            NumericsError: If iterates run away at every step size.
        """
        found: list[tuple[float, bilevel.BilevelRun, float]] = []
        for size in _UPPER_STEPS:
            with suppress(NumericsError):
                run = self._solve(mixing, method, size)
                values = run.history.measured["value"]
                if values[-1] <= values[0]:
                    return run, size
                found.append((float(values[-1]), run, size))
        sizes = ", ".join(f"{size:g}" for size in _UPPER_STEPS)
        if not found:
            raise NumericsError(
                f"expected finite iterates of {name_of(*method)} at some step size, got none of {sizes}",
                "take another --method, or more --node-batches",
            )
        message = (
            f"{name_of(*method)} lowered the loss of the validation models at none of its step sizes, {sizes}, within "
            f"{self.request.iterations:,} steps: more --iterations may."
        )
        self.notes.append(Note(code="not-lowered", message=message))
        _, run, size = min(found, key=lambda one: one[0])
        return run, size

    def _solve(
        self, mixing: FloatArray, method: MethodChoice, size: float, *, is_apart: bool = False
    ) -> bilevel.BilevelRun:
        """Run a method on the models of all nodes, or apart: each process with its own node's alone."""

        def tell(done: int, steps: int, label: str) -> None:
            self.run_state.advance(0, f"{name_of(*method)} · step {done:,}/{steps:,}, {label}")

        def value(x: Tensor, y: Tensor) -> Mapping[str, float]:
            return {"value": self.problem.value(x.mean(dim=0))}

        lower_step = 1.0 / (1.0 / float(self.problem.step_size.min()) + math.exp(_ROOM))
        name, upper, lower = method
        return bilevel.solve(
            self.problem.of_node(self.node) if is_apart else self.problem,
            mixing,
            method=name,
            upper=upper or "gt",
            lower=lower or "ed",
            step_sizes=(size, lower_step, lower_step),
            steps=self.request.iterations,
            seed=derive_seed(self.request.seed, "tune"),
            measure=value,
            network=self.network if is_apart else None,
            on_progress=tell,
        )

    def _method_run(self, method: MethodChoice, run: bilevel.BilevelRun, *, is_chosen: bool = False) -> MethodRun:
        history = run.history
        return MethodRun(
            name=name_of(*method),
            step=history.step,
            gradients=history.gradients,
            floats=history.floats,
            consensus=history.consensus["x"],
            upper_loss=self.unit * history.measured["value"],
            is_chosen=is_chosen,
        )

    def _recommend(self, name: str, damping: Tensor, multiples: Tensor) -> Recommendation:
        problem, scale = self.problem, np.sqrt(self.models.scales / self.unit)
        loss = float(problem.upper_loss(damping, multiples.expand(problem.num_nodes, -1)).mean())
        return recommend(
            name,
            self.task,
            self.request.optimizer,
            self.profile,
            self.models,
            multiples=multiples.numpy() / scale,
            alone=problem.alone(damping).numpy() / scale,
            upper_loss=self.unit * loss,
        )

    def _replay(self) -> Replay:
        own = replay_request(self.request, self.candidates, self.profile.recipe.lr)
        task = replace(self.task, train=list(self.splits.replay))
        folder = self.run_state.folder("test")
        plan = ReplayPlan.of(task, own.checked(task), None)
        before = self.run_state.done
        self.run_state.expected = before + round(_UNIT * plan.num_gradients)

        def tell(done: int, total: int, label: str) -> None:
            self.run_state.done = before + round(_UNIT * done)
            self.run_state.expected = before + round(_UNIT * total)
            self.run_state.advance(0, label)

        found: Replay = plan.run(task, state_directory=folder, on_progress=tell)
        return found


def name_of(method: str, upper: str, lower: str) -> str:
    """Return what tables call a method."""
    return f"sparkle {upper}/{lower}" if method == "sparkle" else method


def _part_of(run: ResumableRun, name: str) -> ResumableRun:
    """Return a run of a part of a measurement, kept in a folder of its own; progress goes on where the whole is."""
    folder: Path | None = run.folder(name)

    def tell(done: int, expected: int, label: str) -> None:
        run.done, run.expected = done, expected
        run.advance(0, label)

    return ResumableRun(folder, run.fingerprint, tell)
