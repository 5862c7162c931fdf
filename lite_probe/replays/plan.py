"""What a replay will take: gradients, time and memory, from one gradient and a few steps of each optimizer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lite_probe.errors import NumericsError
from lite_probe.operators.gradient import LossAndGradient
from lite_probe.optim.interface import Replayable
from lite_probe.replays.allocation import Point, Rule, evaluate
from lite_probe.replays.entrants import Entrant
from lite_probe.replays.horizon import WITHOUT, logged_steps
from lite_probe.replays.landscape import DIFFERENCE_GRADIENTS, LINE_POINTS, PLANE_POINTS, SEARCHED, SETTLING_GRADIENTS
from lite_probe.replays.recorder import OF_BANDS
from lite_probe.replays.runner import FIRST
from lite_probe.replays.segments import measured_split
from lite_probe.runtime.memory import peak_during
from lite_probe.runtime.timing import timed
from lite_probe.spectra.costs import probe_costs
from lite_probe.subspaces import drop_gradients, set_gradients, warm
from lite_probe.subspaces.bands import EDGES
from lite_probe.subspaces.footprints import Footprint, footprint_of, time_steps
from lite_probe.task import Batch, Task
from lite_probe.vectors.layout import ParameterLayout

_SWEPT = 4  # learning rates that a sweep usually takes
_VECTORS = 11  # of N entries beside model, its gradient and an optimizer's state: see `Runner` and what it calls
_WARM_VECTORS = 4  # while states are warmed: θ₀ twice, the gradient there, and a batch's
_SAME_VECTORS = 2  # more, where allocations are made on two sets of batches: a gradient of each at both ends of a step
_RECORDED = 8  # numbers of a step beside those of its directions and bands: see `ReplayRun`
_SAME_RECORDED = 4  # more, on the batches that the eigenvectors were measured on
WATCHED = {"simpson": 2, "trapezoid": 1}  # evaluation gradients of a step


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What parts of a replay cost on this machine."""

    train_seconds: float  # one training gradient
    evaluation_seconds: float  # one evaluation gradient, held out where there are batches for it
    step_seconds: Mapping[str, float]  # one step, by optimizer
    first_seconds: Mapping[str, float]  # what a first step, which may make bases, takes longer
    footprints: Mapping[str, Footprint]
    peak_bytes: int  # of the process during a gradient, or a Hessian product where some are made
    product_seconds: float = 0.0  # one Hessian product, its graphs built anew

    def warming(self, name: str, batches: int) -> float:
        """Return the seconds that an optimizer is warmed in."""
        return batches * (self.train_seconds + self.step_seconds[name]) + self.first_seconds[name]


def footprints_of(
    task: Task, entrants: Mapping[str, Entrant], hyperparameters: Mapping[str, Mapping[str, Any]]
) -> dict[str, Footprint]:
    """Return what each optimizer will hold; of one that is not ours, AdamW's two averages, until it is made.

    Raises:
        UsageError, InputError: As `make_optimizer`.
    """
    vector = sum(parameter.nbytes for parameter in task.model.parameters() if parameter.requires_grad)
    return {
        name: footprint_of(task, name, hyperparameters.get(name, {}))
        if entrant.is_ours
        else Footprint(state_bytes=2 * vector)
        for name, entrant in entrants.items()
    }


def measure_costs(
    task: Task,
    layout: ParameterLayout,
    batch: Batch,
    entrants: Mapping[str, Entrant],
    hyperparameters: Mapping[str, Mapping[str, Any]],
    footprints: Mapping[str, Footprint],
    on_progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Costs, Point, float]:
    """Time a gradient of each kind at θ₀, and the steps of each optimizer.

    Ours are timed on a matrix of each shape; what is not ours is known by its steps on the whole model alone.

    Returns them with loss and gradient on the batches that a replay's losses are of, and the loss on the evaluation
    batches. `on_progress` is told of `(done, total, label)` after each.

    Cost: two evaluation gradients and two training gradients; for an optimizer that is not ours, two steps and as many
    training gradients.
    """
    split, total = measured_split(task), 2 + len(entrants)

    def tell(done: int, label: str) -> None:
        if on_progress is not None:
            on_progress(done, total, label)

    loss = evaluate(task, layout).loss  # the first pass pays for the allocator
    tell(1, "planning")
    points: list[Point] = []
    evaluation: list[float] = []
    peak = peak_during(
        task.device, lambda: evaluation.append(timed(task.device, lambda: points.append(evaluate(task, layout, split))))
    )
    tell(2, "planning")
    train = min(
        timed(task.device, lambda: set_gradients(task, layout.parameters, batch, "warm-up batch 0")) for _ in range(2)
    )
    drop_gradients(layout.parameters)
    first, usual, held = {}, {}, dict(footprints)
    for done, (name, entrant) in enumerate(entrants.items(), start=3):
        own = hyperparameters.get(name, {})
        if entrant.is_ours:
            seconds = time_steps(task, name, own)
            first[name], usual[name] = seconds.first - seconds.usual, seconds.usual
        else:
            first[name], usual[name], state = _made(task, entrant, own, batch, train)
            held[name] = replace(held[name], state_bytes=state)
        tell(done, f"planning · {name}")
    costs = Costs(
        train_seconds=train,
        evaluation_seconds=evaluation[0],
        step_seconds=usual,
        first_seconds={name: max(one, 0.0) for name, one in first.items()},
        footprints=held,
        peak_bytes=peak,
    )
    return costs, points[0], loss


def _made(
    task: Task, entrant: Entrant, hyperparameters: Mapping[str, Any], batch: Batch, train: float
) -> tuple[float, float, int]:
    """Return the seconds of an optimizer's first step and of its second, and the bytes of its state."""
    optimizer = entrant.make(task, hyperparameters)
    first, usual = (timed(task.device, lambda: warm(task, [optimizer], [batch])) - train for _ in range(2))
    return first - max(usual, 0.0), max(usual, 0.0), _state_bytes(optimizer)


def with_products(task: Task, layout: ParameterLayout, start: Point, costs: Costs) -> Costs:
    """Add what Hessian products take, on the batches that a replay's losses are of.

    Raises:
        NumericsError: If the model cannot be differentiated twice.

    Cost: one graph and two products of one batch.
    """
    evaluated = LossAndGradient(start.loss, start.gradient, start.count, ())
    try:
        found = probe_costs(task, layout, evaluated, measured_split(task), "hessian")
    except NumericsError as error:
        raise NumericsError(error.message, WITHOUT) from error
    seconds = found.build_seconds + found.product_seconds
    return replace(costs, peak_bytes=max(costs.peak_bytes, found.product_bytes), product_seconds=seconds)


def with_differences(costs: Costs) -> Costs:
    """Add what products by differences take: two evaluation gradients each."""
    return replace(costs, product_seconds=2.0 * costs.evaluation_seconds)


def count_products(optimizers: Sequence[str], *, steps: int, seeds: int) -> int:
    """Return the Hessian products that predict the losses of all runs."""
    return len(optimizers) * seeds * len(logged_steps(steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class LandscapeCosts:
    """What the loss around θ₀ is expected to take; nothing where nobody asks."""

    # Of training batches, each with a step; of evaluation batches too, where products are differences.
    num_gradients: int = 0
    num_hvps: int = 0
    seconds: float = 0.0
    result_bytes: int = 0


def landscape_costs(
    costs: Costs,
    optimizers: Sequence[str],
    *,
    sharp: int,
    steps: int,
    rewarmed: Mapping[str, int],
    by_differences: bool,
) -> LandscapeCosts:
    """Return what lines and plane are expected to take.

    Args:
        costs: With those of a product.
        optimizers: All of them.
        sharp: k, of the sharp subspace.
        steps: K, that one run of each optimizer makes again, and that of the plane twice.
        rewarmed: Batches that an optimizer is warmed on again, since its state was not kept.
        by_differences: Whether products are differences of gradients.
    """
    lines = len(optimizers) + (3 if sharp > 1 else 2)
    losses = lines * (LINE_POINTS + SEARCHED) + PLANE_POINTS**2
    made = {name: 1 + steps + rewarmed.get(name, 0) for name in optimizers}
    again = sum(costs.first_seconds[name] for name in rewarmed)
    seconds = losses * costs.evaluation_seconds / 3 + lines * costs.product_seconds + again
    seconds += sum(count * (costs.train_seconds + costs.step_seconds[name]) for name, count in made.items())
    seconds += steps * (costs.train_seconds + max(costs.step_seconds[name] for name in optimizers))
    differences = SETTLING_GRADIENTS + DIFFERENCE_GRADIENTS * lines if by_differences else 0
    return LandscapeCosts(
        num_gradients=sum(made.values()) + steps + differences,
        num_hvps=0 if by_differences else lines,
        seconds=seconds,
        result_bytes=8 * (2 * lines * LINE_POINTS + 2 * PLANE_POINTS**2 + 4 * len(optimizers) * (steps + 1)),
    )


def kept_states_bytes(costs: Costs, entrants: Mapping[str, Entrant], stored: Collection[str] = ()) -> int:
    """Return the bytes of what all optimizers' runs start from, beside those of the largest that are there anyway.

    An optimizer whose state is kept need not be warmed again when its run is made again. One that is not ours keeps its
    own beside it. What is stored takes none.
    """
    in_memory = {name: one for name, one in entrants.items() if name not in stored}
    sizes = [costs.footprints[name].state_bytes * (1 if one.is_ours else 2) for name, one in in_memory.items()]
    return sum(sizes) - max(sizes, default=0)


def waiting_bytes(costs: Costs, optimizers: Sequence[str], bands: str) -> int:
    """Return the bytes that the bands' optimizer adds where its state waits for its own runs: others may need less."""
    sizes = {name: costs.footprints[name].state_bytes for name in optimizers}
    others = max((2 * size for name, size in sizes.items() if name != bands), default=0)
    return max(others + sizes[bands] - 2 * max(sizes.values()), 0)


def count_gradients(
    optimizers: Sequence[str],
    *,
    steps: int,
    seeds: int,
    rule: Rule,
    warm_batches: int,
    warmed: Sequence[str],
    shares_bands: bool,
    swept: Sequence[str],
    ablations: int,
    sets: int,
    ramp: int,
) -> int:
    """Return the gradients that a replay is expected to make; an evaluation of the loss counts as none.

    Args:
        optimizers: All of them.
        steps: K.
        seeds: Segments.
        rule: How many evaluation gradients a recorded step takes.
        warm_batches: W, as many as there are.
        warmed: Optimizers that are warmed; that of the bands always is.
        shares_bands: Whether it is one of these, and warmed once.
        swept: Optimizers whose learning rate is swept.
        ablations: Runs without recording per optimizer and seed.
        sets: Sets of batches that a recorded step's change is allotted on: 2 where some are held out.
        ramp: R.
    """
    runs = len(optimizers) * seeds * steps * (1 + sets * WATCHED[rule] + ablations)
    return runs + (len(warmed) + (not shares_bands)) * warm_batches + len(swept) * _SWEPT * steps


def expected_seconds(
    costs: Costs,
    optimizers: Sequence[str],
    *,
    steps: int,
    seeds: int,
    rule: Rule,
    warm_batches: int,
    warmed: Sequence[str],
    shares_bands: bool,
    bands: str,
    swept: Sequence[str],
    ablations: int,
    sets: int,
    ramp: int,
) -> float:
    """Return the time that a replay is expected to take; arguments as for `count_gradients`."""
    seconds = 0.0 if shares_bands else costs.warming(bands, warm_batches)
    for name in optimizers:
        plain = costs.train_seconds + costs.step_seconds[name]
        seconds += costs.warming(name, warm_batches) if name in warmed else 0.0
        seconds += seeds * steps * (plain + sets * WATCHED[rule] * costs.evaluation_seconds)
        first = min(max(ramp, FIRST), steps)
        seconds += _SWEPT * (steps * plain + first * costs.evaluation_seconds / 3) * (name in swept)
        seconds += ablations * seeds * steps * (plain + sets * costs.evaluation_seconds / 3)
    return seconds


def expected_memory(
    peak: int,
    footprints: Mapping[str, Footprint],
    layout: ParameterLayout,
    *,
    optimizers: Sequence[str],
    bands: str,
    sets: int,
    stored: Collection[str] = (),
) -> int:
    """Return the bytes in use at the worst moment of a replay; the sharp subspace comes on top, where it is in memory.

    That is when directions are made for the bands or for the linear theory, or a watched step. The state of an
    optimizer is there twice, since every run starts from a copy, unless it is stored; bases and labels of the bands
    stay.

    Args:
        peak: Of the process during a gradient, or a product where some are made.
        footprints: Of every optimizer, and that of the bands.
        layout: All parameters.
        optimizers: Those that are replayed.
        bands: Whose directions are cut.
        sets: Sets of batches that a step's change is allotted on.
        stored: Optimizers whose runs start from files.
    """
    vector = layout.size * layout.parameters[0].element_size()
    own, kept = footprints[bands], footprints[bands].band_bytes
    running = {name: (1 if name in stored else 2) * footprints[name].state_bytes for name in optimizers}
    return peak + max(
        _WARM_VECTORS * vector + own.state_bytes + own.beside_state_bytes + kept,
        kept + _WARM_VECTORS * vector + max(running[name] + footprints[name].beside_state_bytes for name in optimizers),
        kept + (_VECTORS + _SAME_VECTORS * (sets - 1)) * vector + max(running.values()),
    )


def records_bytes(*, runs: int, steps: int, sharp: int, blocks: int, sets: int, products: int) -> int:
    """Return the bytes of what is kept of every step of some runs: k directions, and the bands of each block.

    Each Hessian product leaves a step and a loss.
    """
    same = (_SAME_RECORDED + sharp) * (sets - 1)
    bands = len(OF_BANDS) * blocks * (len(EDGES) - 1)
    return runs * steps * 8 * (_RECORDED + 3 * sharp + bands + same) + 16 * products


def scratch_bytes(
    costs: Costs, layout: ParameterLayout, *, records: int, runs: int, ranks: int, stored: Collection[str] = ()
) -> int:
    """Return the bytes of working files at the worst moment.

    A run in progress is saved beside its last save: parameters, state and records. What is finished waits meanwhile,
    and what runs start from where that is in files. Each rank has a run of its own, and what it starts from.
    """
    running = layout.size * layout.parameters[0].element_size()
    running += max(one.state_bytes for one in costs.footprints.values())
    states = sum(costs.footprints[name].state_bytes for name in stored)
    return ranks * (2 * (running + records // runs) + states) + records


def _state_bytes(optimizer: Replayable) -> int:
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in tensors if isinstance(value, torch.Tensor))
