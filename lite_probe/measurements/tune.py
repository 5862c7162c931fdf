"""Tuning LITE from the landscape, over data that stays where it is: planned, and put together."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from lite_probe import bilevel
from lite_probe.errors import InputError, UsageError
from lite_probe.measurements.base import OnEvent, Outcome, Plan, spectrum_of
from lite_probe.measurements.optimizers import put_back
from lite_probe.measurements.replay import ReplayPlan
from lite_probe.measurements.requests import OnProgress, takes
from lite_probe.measurements.requests.tune import RANK_TIMEOUT, TuneRequest, num_ranks
from lite_probe.measurements.steps import StepsPlan
from lite_probe.measurements.tune_session import (
    RIDGE,
    TuneSession,
    candidate_names,
    replay_request,
    split_batches,
    steps_request,
)
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state
from lite_probe.results.spectrum import Spectrum
from lite_probe.results.steps import JOINT_PARTS
from lite_probe.results.tuning import Tuning
from lite_probe.runtime.fingerprint import batches_digest
from lite_probe.runtime.resumable import ResumableRun
from lite_probe.spectra.compatibility import require_same_task
from lite_probe.spectra.costs import probe_costs
from lite_probe.subspaces import own_gradients
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningPlan(Plan[Tuning]):
    """What a tuning will do, and what that takes."""

    shown: ClassVar[tuple[str, ...]] = (
        *("num_parameters", "num_products", "num_gradients", "seconds", "memory_bytes", "scratch_bytes"),
        *("result_bytes", "fingerprint"),
    )

    request: TuneRequest
    num_products: float  # over all evaluation batches
    num_gradients: int  # of the replay
    loss: float
    count: int

    @classmethod
    def checked(cls, task: Task, request: TuneRequest) -> TuneRequest:
        """Refuse what cannot be tuned.

        Raises:
            UsageError: No topology of so many nodes, or as for steps.
            InputError: Too few batches, shards or blocks; a spectrum of something else.
        """
        if not task.blocks:
            raise InputError(
                "expected parameters in known blocks, whose settings are tuned, got none",
                "give the task its blocks, or --blocks FILE",
            )
        if num_ranks() not in (1, request.nodes):
            raise UsageError(
                f"expected as many nodes as ranks, {num_ranks()}, got {request.nodes}", f"pass --nodes {num_ranks()}"
            )
        bilevel.mixing_matrix(request.topology, request.nodes, seed=request.seed)
        splits = split_batches(task, request)
        steps_request(request).checked(replace(task, train=list(splits.steps)))
        if request.spectrum is not None:
            require_same_task(request.spectrum, task)
        return request

    @classmethod
    def identity(cls, task: Task, request: TuneRequest) -> Mapping[str, Any]:
        """Return the batches of each part, the graph, and the spectrum."""
        splits = split_batches(task, request)
        mixing = bilevel.mixing_matrix(request.topology, request.nodes, seed=request.seed)
        tested = {"spectrum": spectrum_of(request).fingerprint} if request.is_tested else {}
        return {
            **tested,
            "nodes": [batches_digest([*train, *validation]) for train, validation in splits.nodes],
            "steps": batches_digest(splits.steps),
            "replay": batches_digest(splits.replay),
            "mixing": batches_digest([mixing.tolist()]),
            "held-out batches": batches_digest(task.heldout),
        }

    @classmethod
    def of(cls, task: Task, request: TuneRequest, on_progress: OnProgress | None) -> "TuningPlan":
        """Decide how to tune.

        Raises:
            UsageError: Too little memory.
            NumericsError: A loss or gradient at θ₀ that is not finite.

        Cost: those of the plans of steps and of a replay, and two products.
        """
        layout = ParameterLayout(list(task.model.named_parameters()))
        splits = split_batches(task, request)
        own = steps_request(request)
        steps_task = replace(task, train=list(splits.steps))
        steps = StepsPlan.of(steps_task, own.checked(steps_task), on_progress)
        with preserve_state(task.model), own_gradients(layout.parameters):
            evaluated = loss_and_gradient(task, layout, "evaluation")
            costs = probe_costs(task, layout, evaluated, "evaluation", "hessian")
        blocks = {part.block for parts in (task.blocks or {}).values() for part in parts}
        groups = len(JOINT_PARTS) * len(blocks)
        share = 2.0 * request.nodes * request.node_batches / len(task.evaluation)
        products = groups * share
        seconds = steps.seconds + products * costs.product_seconds + share * costs.build_seconds
        needed, scratch, gradients, result = steps.memory_bytes, steps.scratch_bytes, 0, 2**20
        if request.is_tested:
            candidates: dict[str, Mapping[str, Any]] = {name: {} for name in candidate_names(request.optimizer)}
            replay_task = replace(task, train=list(splits.replay))
            asked = replay_request(request, candidates, 1e-3).checked(replay_task)
            test = ReplayPlan.of(replay_task, asked, on_progress)
            seconds += test.seconds
            needed, scratch = max(needed, test.memory_bytes), scratch + test.scratch_bytes
            gradients, result = test.num_gradients, result + test.result_bytes
        return cls(
            request=request,
            num_parameters=layout.size,
            num_products=products + steps.num_products,
            num_gradients=gradients,
            loss=evaluated.loss,
            count=evaluated.count,
            seconds=seconds,
            memory_bytes=needed,
            scratch_bytes=scratch,
            result_bytes=result,
            fingerprint=cls.key(task, request, evaluated.loss),
        )

    def summary(self) -> str:
        """Return the plan as one line for people."""
        request = self.request
        replayed = f", a replay of ~{self.num_gradients:,} gradients" if self.num_gradients else ""
        return (
            f"{request.optimizer} over {request.nodes} nodes ({request.topology}): ~{self.num_products:.0f} Hessian "
            f"products{replayed}, {self.time_and_memory}"
        )

    def measure(self, task: Task, run: ResumableRun, on_event: OnEvent | None) -> Outcome:
        """Measure the step profile and every node's models, agree on settings, and replay them."""
        layout = ParameterLayout(list(task.model.named_parameters()))
        request = self.request
        with _network(request) as network, own_gradients(layout.parameters), put_back(layout) as start:
            session = TuneSession(task, layout, start, request, run, network)
            session.run()
        profile = session.profile
        shared = ("profile", "models", "tuned", "pooled", "candidates", "replay", "pooled_loss", "spectral_gap")
        return Outcome(
            fields={
                "optimizer": request.optimizer,
                "base": request.base,
                "lr": profile.recipe.lr,
                "batch_tokens": session.steps.batch_tokens,
                "loss": self.loss,
                "num_parameters": layout.size,
                "num_nodes": request.nodes,
                "topology": request.topology,
                "shards": request.shards_from,
                "ridge": RIDGE,
                "damping_logs": session.damping_logs,
                "multiples": session.multiples,
                "pooled_damping_logs": session.pooled_damping_logs,
                "methods": tuple(session.methods),
                **{name: getattr(session, name) for name in shared},
            },
            count=self.count,
            notes=session.notes,
            details={
                "batches of the steps": batches_digest(session.splits.steps),
                **{
                    f"shard of node {node + 1}": batches_digest([*train, *validation])
                    for node, (train, validation) in enumerate(session.splits.nodes)
                },
                "batches of the replay": batches_digest(session.splits.replay),
            },
        )


@contextmanager
def _network(request: TuneRequest) -> Iterator[bilevel.Network]:
    """Yield the nodes' processes: those of `torchrun`, or this one."""
    if num_ranks() == 1:
        yield bilevel.StackedNetwork(request.nodes)
        return
    with bilevel.RankNetwork(timeout=RANK_TIMEOUT) as network:
        yield network


@takes(TuneRequest)
def tune(
    task: Task,
    optimizer: str | None = None,
    *,
    spectrum: Spectrum | None = None,
    state_directory: Path | None = None,
    on_progress: OnProgress | None = None,
    command: str = "",
    **asked: Any,
) -> Tuning:
    """Learn LITE's settings from the landscape, over data shards that their nodes keep, and test them by a replay.

    The directions are the sharp and non-sharp groups of each block of the base optimizer's mean step. Node i measures
    gain and curvature along them on its own batches: k products and a gradient for the batches it trains on, as many
    for those it validates on. By decentralized bilevel optimization (`lite_probe.bilevel`) the nodes agree on a damping
    of each group, and with it on a step, that lowers the validation models; k numbers a level travel along each edge in
    a step. From these follow χ and β₂, from the step profile r_s. A replay with paired seeds then sets them beside the
    base, LITE's published defaults, χ from the profile alone, and what all data in one place would have had.

    Args:
        task: Model, loss, evaluation, training and held-out batches; comes back bitwise as it was.
        optimizer: A LITE variant; by default muon-lite.
        spectrum: Of this task, with eigenvectors, for the replay's allocation; measured with few pairs where not given.
        state_directory: As of `Plan.run`, as are the next two.
        on_progress: Told `(done, expected, label)`.
        command: For provenance.
        asked: Fields of `TuneRequest`: lr=0.0078, nodes=8, topology="ring", method="sparkle".

    Returns:
        The tuning: `.settings` for `make_optimizer`, their `.spread` over nodes, and the `.replay`.

    Raises:
        UsageError, InputError, NumericsError: As `TuneRequest` and its plan.

    Cost: that of `measure_steps` for one optimizer; 2k products of `node_batches` batches at every node; a replay of
        five optimizers.
    """
    from lite_probe.measurements.requests.spectrum import SpectrumRequest

    if optimizer is not None:
        asked["optimizer"] = optimizer
    request = TuneRequest(spectrum=spectrum, **asked)
    if spectrum is None and request.is_tested:
        start = SpectrumRequest(top=4, bottom=0, probes=2, seed=request.seed, products="float32").plan(task)
        request = replace(request, spectrum=start.run(task, on_progress=on_progress))
    plan = request.plan(task)
    found: Tuning = plan.run(task, state_directory=state_directory, on_progress=on_progress, command=command)
    return found
