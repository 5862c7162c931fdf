"""How long a step the loss tolerates: planned, and put together from a session's parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from lite_probe.errors import InputError, UsageError
from lite_probe.measurements.base import OnEvent, Outcome, Plan
from lite_probe.measurements.optimizers import inherited_by, put_back
from lite_probe.measurements.requests import OnProgress, takes
from lite_probe.measurements.requests.optimizers import Asked
from lite_probe.measurements.requests.steps import LEAST_BATCHES, StepsRequest
from lite_probe.measurements.steps_session import Effort, StepsSession, split_batches
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.guards import preserve_state, require_precision
from lite_probe.replays import plan as planning
from lite_probe.replays.entrants import entrants_of
from lite_probe.replays.recipes import require_settings
from lite_probe.results.steps import Steps
from lite_probe.runtime.fingerprint import batches_digest
from lite_probe.runtime.memory import memory_allowed, memory_in_use, require_memory
from lite_probe.runtime.resumable import Begun, ResumableRun
from lite_probe.spectra.costs import probe_costs
from lite_probe.subspaces import can_take, own_gradients
from lite_probe.subspaces.footprints import Footprint, footprint_of
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout

_VECTORS = 9  # of N entries at a product along a step, beside two of each optimizer's
_STEP_VECTORS = 6  # while a step is made: θ₀, two gradients there, the batch's, and two that the step is made in
_WARM_VECTORS = 3  # while states are warmed: θ₀ twice, and the gradient there


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun(Begun):
    """What an interrupted measurement keeps to."""

    together: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsPlan(Plan[Steps]):
    """What a measurement of steps will do, and what that takes."""

    begun: ClassVar[type[Begun] | None] = _Begun
    shown: ClassVar[tuple[str, ...]] = (
        *("num_parameters", "num_products", "num_gradients", "seconds", "memory_bytes", "scratch_bytes", "fingerprint"),
    )

    request: StepsRequest
    effort: Effort
    together: bool  # whether all optimizers step from each batch together, or one optimizer after another
    stores_states: bool  # whether what an optimizer steps from lies in files
    ways: Mapping[bool, Mapping[str, Any]]  # what of this depends on `together`, for either
    loss: float
    count: int

    @property
    def num_products(self) -> float:
        """Hessian products over all evaluation batches, expected."""
        return sum(self.effort.products.values())

    @property
    def num_gradients(self) -> int:
        """Gradients of a training batch, expected."""
        return self.effort.gradients

    @classmethod
    def vet(cls, request: StepsRequest) -> None:
        """Refuse optimizers and hyperparameters that there are not.

        Raises:
            UsageError: An optimizer that is not one of ours, or an unknown hyperparameter.
        """
        entrants = entrants_of(request.asked)
        foreign = [name for name, one in entrants.items() if not one.is_ours]
        if foreign:
            raise UsageError(
                f"expected optimizers of lite-probe, got {', '.join(foreign)}",
                "the bands of a step are those of its geometry; lite-probe replay takes any optimizer",
            )
        require_settings(entrants, request.hyperparameters)

    @classmethod
    def checked(cls, task: Task, request: StepsRequest) -> StepsRequest:
        """Refuse what cannot be measured.

        Raises:
            UsageError: As `vet`.
            InputError: An optimizer that cannot take a parameter, too few training batches, a state or learning rate
                that the checkpoint does not have.
        """
        cls.vet(request)
        require_precision(task.model)
        least = request.critical_batches if request.critical_only else LEAST_BATCHES
        if len(task.train) < least:
            raise InputError(
                f"expected at least {least} training batches to make steps from, got {len(task.train)}",
                "give the task more of them: make_task(train_batches=72), a longer text, or a smaller --batch-size",
            )
        for name, entrant in entrants_of(request.asked).items():
            entrant.make(task, request.hyperparameters.get(name, {}))
        inherited_by(task, request)
        return request

    @classmethod
    def identity(cls, task: Task, request: StepsRequest) -> Mapping[str, Any]:
        """Return the training batches, what is taken from the checkpoint, and the other data."""
        own: dict[str, Any] = {
            "training batches": batches_digest(split_batches(task, request).all),
            "inherited": dict(inherited_by(task, request)),
        }
        if request.relative:
            own["relative"] = batches_digest(request.relative)
        return own

    @classmethod
    def of(cls, task: Task, request: StepsRequest, on_progress: OnProgress | None) -> "StepsPlan":
        """Decide how to measure: all optimizers together where memory holds their states, else one after another.

        Where it does not hold the state of one twice, what that steps from lies in files.

        Raises:
            UsageError: Too little memory for one of them.
            NumericsError: A loss or gradient at θ₀ that is not finite.

        Cost: three evaluation gradients and two training gradients; two or three steps of each optimizer on a matrix of
            each shape; two products of one batch.
        """
        layout = ParameterLayout(list(task.model.named_parameters()))
        entrants, splits = entrants_of(request.asked), split_batches(task, request)
        allowed = task.ranks.least(memory_allowed(task.device, request.memory, task.ranks.on_host))
        footprints = planning.footprints_of(task, entrants, request.hyperparameters)
        in_use = memory_in_use(task.device)
        needs = partial(_needs, task, request, layout, footprints, in_use=in_use)
        # What is known before anything is computed: the states, and the vectors beside them.
        _require(max(needs([name], in_use, together=False, stored=True) for name in entrants), allowed)
        with preserve_state(task.model), own_gradients(layout.parameters):
            costs, _, _ = planning.measure_costs(
                task, layout, splits.warm[0], entrants, request.hyperparameters, footprints, on_progress
            )
            evaluated = loss_and_gradient(task, layout, "evaluation")
            fullest = task.of_first_rank("evaluation")
            curvature = (
                None if request.critical_only else probe_costs(fullest, layout, evaluated, "evaluation", "hessian")
            )
        peak = max(costs.peak_bytes, curvature.product_bytes if curvature is not None else 0)
        names = [name for name in entrants if name not in inherited_by(task, request)]
        warmed = len(names) if request.state != "cold" else 0

        def needed(*, together: bool, stored: bool) -> int:
            groups = [[*entrants]] if together else [[name] for name in entrants]
            return max(needs(group, peak, together=together, stored=stored) for group in groups)

        def figures(*, together: bool) -> dict[str, Any]:
            stored = not together and needed(together=False, stored=False) > allowed
            effort = Effort.of(task, request, warmed=warmed, together=together)
            product = 2.0 * costs.evaluation_seconds
            if curvature is not None:
                product = curvature.product_seconds + curvature.build_seconds / max(effort.products_per_graph, 1.0)
            seconds = effort.gradients * costs.train_seconds + sum(effort.products.values()) * product
            seconds += effort.forwards * costs.evaluation_seconds / 3.0
            seconds += sum(costs.step_seconds[name] * effort.steps + costs.first_seconds[name] for name in entrants)
            return {
                "together": together,
                "stores_states": stored,
                "effort": effort,
                "seconds": seconds,
                "memory_bytes": needed(together=together, stored=stored),
                "scratch_bytes": 8 * 3 * 100 * len(entrants) * effort.batches
                + stored * task.ranks.count * sum(footprints[name].state_bytes for name in entrants),
            }

        ways = {together: figures(together=together) for together in (True, False)}
        chosen = ways[ways[True]["memory_bytes"] <= allowed]
        _require(chosen["memory_bytes"], allowed)
        return cls(
            request=request,
            num_parameters=layout.size,
            loss=evaluated.loss,
            count=evaluated.count,
            ways=ways,
            fingerprint=cls.key(task, request, evaluated.loss),
            **chosen,
        )

    def summary(self) -> str:
        """Return the plan as one line for people."""
        products = f"~{self.num_products:.0f} Hessian products and " if self.num_products else ""
        how = ("" if self.together else ", one state after another") + ", on disk" * self.stores_states
        return (
            f"{self.effort.batches} steps of {', '.join(self.request.names)}: {products}{self.num_gradients:,} "
            f"gradients, {self.time_and_memory}{how}"
        )

    def laid_out_as(self, task: Task, begun: _Begun) -> "StepsPlan":
        """Let optimizers step together, or one after another, as in an interrupted run."""
        return replace(self, **self.ways[begun.together])

    def measure(self, task: Task, run: ResumableRun, on_event: OnEvent | None) -> Outcome:
        """Make the steps, and measure the loss along them."""
        layout = ParameterLayout(list(task.model.named_parameters()))
        with own_gradients(layout.parameters), put_back(layout) as start:
            begun = run.pin(_Begun(together=self.together, memory=self.request.memory))
            session = StepsSession(
                task,
                layout,
                start,
                self.request,
                self.effort,
                run,
                together=begun.together,
                stores_states=self.stores_states,
            )
            session.run()
        return Outcome(
            fields={
                "num_parameters": layout.size,
                "loss": session.point.loss,
                "batch_tokens": session.batch_tokens,
                "num_batches": len(session.splits.steps),
                "optimizers": session.optimizers,
                "signal": session.signal,
                "products": session.products,
            },
            count=self.count,
            notes=session.notes,
            details={
                "warm-up batches": batches_digest(session.splits.warm),
                "batches of the steps": batches_digest(session.splits.steps),
            },
        )


def _needs(
    task: Task,
    request: StepsRequest,
    layout: ParameterLayout,
    footprints: Mapping[str, Footprint],
    names: Sequence[str],
    peak: int,
    *,
    in_use: int,
    together: bool,
    stored: bool,
) -> int:
    """Return the bytes in use at the worst moment where some optimizers step together.

    That is while their states are warmed, those of Muon on two halves of the batches beside them or by themselves; when
    directions are made of the last, or it makes a step, its state there twice unless it is stored; or at a product
    along a step.

    Args:
        task: Of the parameters.
        request: What is measured.
        layout: All parameters.
        footprints: Of every optimizer.
        names: Of those that step together.
        peak: Of the process during a gradient, or a product where some are made.
        in_use: By the process as it is, which is all that there is beside while directions or steps are made.
        together: Whether the states of the halves are there while others are warmed.
        stored: Whether what they step from lies in files.
    """
    vector = layout.size * layout.parameters[0].element_size()
    own = [footprints[name] for name in names]
    states, largest = (pick(one.state_bytes for one in own) for pick in (sum, max))
    kept = 0 if stored else states
    halves = bands = directions = 0
    if not request.critical_only:
        halves = 2 * footprint_of(task, "muon").state_bytes if can_take("muon", task) else 0
        bands = sum(one.band_bytes for one in own)
        directions = max(one.beside_state_bytes for one in own)
    return max(
        peak + _WARM_VECTORS * vector + (states + halves if together else max(states, halves)),
        in_use + (_WARM_VECTORS + len(names)) * vector + halves * together + kept + largest + directions + bands,
        in_use + (_STEP_VECTORS + 2 * len(names)) * vector + kept + largest + bands,
        peak + (_VECTORS + 2 * len(names)) * vector + kept + bands,
    )


def _require(needed: int, allowed: int) -> None:
    """Refuse what does not fit even for one optimizer at a time."""
    require_memory(needed, allowed, "the state of an optimizer and its steps", "lower --batch-size or --seq-len")


@takes(StepsRequest)
def measure_steps(
    task: Task,
    optimizers: Asked | tuple[Asked, ...] | list[Asked] | None = None,
    *,
    state_directory: Path | None = None,
    on_progress: OnProgress | None = None,
    command: str = "",
    **asked: Any,
) -> Steps:
    """Measure how long a step every band of every block tolerates, in units of the step an optimizer takes.

    From the same state at θ₀ every optimizer makes a step d from each of M training batches. Along band b the loss is
    L − c G_b + ½c² K_b at c times that step, with G_b = −E[∇L·d_b] and K_b = E[d_bᵀHd_b] on the evaluation batches: its
    optimum is c*_b = G_b/K_b and its edge 2c*_b. The critical step is looked for along the whole of d, by forward
    passes, on its own batch and on evaluation batches.

    Args:
        task: Model, loss, evaluation and training batches; comes back bitwise as it was.
        optimizers: Names of `lite_probe.optim.OPTIMIZERS`; by default AdamW, Muon and SOAP.
        state_directory: As of `Plan.run`, as are the next two.
        on_progress: In hundredths of a Hessian product.
        command: For provenance.
        asked: Fields of `StepsRequest`: lr={"muon": 0.0078}, step_batches=32.

    Returns:
        The steps; intervals cover the training batches, and which evaluation samples curvature was measured on.

    Raises:
        UsageError, InputError, NumericsError: As `StepsRequest` and its plan.

    Cost: per optimizer one product for each block and one for the whole step, as many for the joint optimum as it has
        groups, a step for every batch; W + M gradients for all together, W more for signal and noise.
    """
    if optimizers is not None:
        asked["optimizers"] = optimizers
    plan = StepsRequest(**asked).plan(task)
    found: Steps = plan.run(task, state_directory=state_directory, on_progress=on_progress, command=command)
    return found
