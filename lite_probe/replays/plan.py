"""What a replay will take: gradients, time and memory, from one gradient and a few steps of each optimizer."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lite_probe.errors import NumericsError
from lite_probe.operators.gradient import LossAndGradient
from lite_probe.optim.interface import Replayable
from lite_probe.replays.allocation import Point, Rule, evaluate
from lite_probe.replays.horizon import WITHOUT, logged_steps
from lite_probe.replays.landscape import LINE_POINTS, PLANE_POINTS, SEARCHED, differences_gradients
from lite_probe.replays.recorder import OF_BANDS
from lite_probe.replays.runner import FIRST
from lite_probe.replays.segments import measured_split
from lite_probe.runtime.memory import peak_during
from lite_probe.spectra.costs import probe_costs
from lite_probe.subspaces import set_gradients, warm
from lite_probe.subspaces.bands import EDGES
from lite_probe.task import Batch, Task
from lite_probe.vectors.layout import ParameterLayout

_SWEPT = 4  # learning rates that a sweep usually takes
_VECTORS = 11  # of N entries beside model, its gradient and an optimizer's state: see `Runner` and what it calls
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
    state_bytes: Mapping[str, int]
    peak_bytes: int  # of the process during a gradient, or a Hessian product where some are made
    product_seconds: float = 0.0  # one Hessian product, its graphs built anew


def measure_costs(
    task: Task,
    layout: ParameterLayout,
    batch: Batch,
    makers: Mapping[str, Callable[[], Replayable]],
    on_progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Costs, Point, float]:
    """Time a gradient of each kind and a step of each optimizer on a training batch, at θ₀.

    Returns them with loss and gradient on the batches that a replay's losses are of, and the loss on the evaluation
    batches. `on_progress` is told of `(done, total, label)` after each.

    Cost: two evaluation gradients, three training gradients per optimizer and as many steps.
    """
    split, total = measured_split(task), 2 + len(makers)

    def tell(done: int, label: str) -> None:
        if on_progress is not None:
            on_progress(done, total, label)

    loss = evaluate(task, layout).loss  # the first pass pays for the allocator
    tell(1, "planning")
    points: list[Point] = []
    evaluation: list[float] = []
    peak = peak_during(
        task.device, lambda: evaluation.append(_timed(task, lambda: points.append(evaluate(task, layout, split))))
    )
    tell(2, "planning")
    steps, states = {}, {}
    train = 0.0
    for done, (name, maker) in enumerate(makers.items(), start=3):
        optimizer = maker()
        # The first step sets up, SOAP's builds its bases; both are seconds once, not per step.
        warm(task, [optimizer], [batch, batch])
        both = _timed(task, lambda optimizer=optimizer: warm(task, [optimizer], [batch]))  # type: ignore[misc]
        train = _timed(task, lambda: set_gradients(task, layout.parameters, batch, "warm-up batch 0"))
        steps[name] = max(both - train, 0.0)
        states[name] = _state_bytes(optimizer)
        tell(done, f"planning · {name}")
    costs = Costs(
        train_seconds=train,
        evaluation_seconds=evaluation[0],
        step_seconds=steps,
        state_bytes=states,
        peak_bytes=peak,
    )
    return costs, points[0], loss


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
    seconds = losses * costs.evaluation_seconds / 3 + lines * costs.product_seconds
    seconds += sum(count * (costs.train_seconds + costs.step_seconds[name]) for name, count in made.items())
    seconds += steps * (costs.train_seconds + max(costs.step_seconds[name] for name in optimizers))
    return LandscapeCosts(
        num_gradients=sum(made.values()) + steps + (differences_gradients(lines) if by_differences else 0),
        num_hvps=0 if by_differences else lines,
        seconds=seconds,
        result_bytes=8 * (2 * lines * LINE_POINTS + 2 * PLANE_POINTS**2 + 4 * len(optimizers) * (steps + 1)),
    )


def kept_states_bytes(costs: Costs, optimizers: Sequence[str]) -> int:
    """Return the bytes of all optimizers' states, each there twice, beside those of the largest that are there anyway.

    An optimizer whose state is kept need not be warmed again when its run is made again.
    """
    sizes = [costs.state_bytes[name] for name in optimizers]
    return 2 * (sum(sizes) - max(sizes))


def count_gradients(
    optimizers: Sequence[str],
    *,
    steps: int,
    seeds: int,
    rule: Rule,
    warm_batches: int,
    warmed: Sequence[str],
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
        swept: Optimizers whose learning rate is swept.
        ablations: Runs without recording per optimizer and seed.
        sets: Sets of batches that a recorded step's change is allotted on: 2 where some are held out.
        ramp: R.
    """
    runs = len(optimizers) * seeds * steps * (1 + sets * WATCHED[rule] + ablations)
    return runs + (len(warmed) + 1) * warm_batches + len(swept) * _SWEPT * steps


def expected_seconds(
    costs: Costs,
    optimizers: Sequence[str],
    *,
    steps: int,
    seeds: int,
    rule: Rule,
    warm_batches: int,
    warmed: Sequence[str],
    bands: str,
    swept: Sequence[str],
    ablations: int,
    sets: int,
    ramp: int,
) -> float:
    """Return the time that a replay is expected to take; arguments as for `count_gradients`."""
    seconds = warm_batches * (costs.train_seconds + costs.step_seconds[bands])
    for name in optimizers:
        plain = costs.train_seconds + costs.step_seconds[name]
        seconds += warm_batches * plain * (name in warmed)
        seconds += seeds * steps * (plain + sets * WATCHED[rule] * costs.evaluation_seconds)
        first = min(max(ramp, FIRST), steps)
        seconds += _SWEPT * (steps * plain + first * costs.evaluation_seconds / 3) * (name in swept)
        seconds += ablations * seeds * steps * (plain + sets * costs.evaluation_seconds / 3)
    return seconds


def expected_memory(costs: Costs, layout: ParameterLayout, *, bands: str, sets: int) -> int:
    """Return the bytes in use at the worst moment: a watched step of the optimizer with the largest state.

    The sharp subspace comes on top of them, where it is in memory.

    Its state is there twice, since every run starts from a copy; the bases of the bands are part of another one's.
    """
    vector = layout.size * layout.parameters[0].element_size()
    own = 2 * max(costs.state_bytes.values())
    vectors = _VECTORS + _SAME_VECTORS * (sets - 1)
    return costs.peak_bytes + vectors * vector + own + costs.state_bytes[bands] // 2


def records_bytes(*, runs: int, steps: int, sharp: int, blocks: int, sets: int, products: int) -> int:
    """Return the bytes of what is kept of every step of some runs: k directions, and the bands of each block.

    Each Hessian product leaves a step and a loss.
    """
    same = (_SAME_RECORDED + sharp) * (sets - 1)
    bands = len(OF_BANDS) * blocks * (len(EDGES) - 1)
    return runs * steps * 8 * (_RECORDED + 3 * sharp + bands + same) + 16 * products


def scratch_bytes(costs: Costs, layout: ParameterLayout, *, records: int, runs: int) -> int:
    """Return the bytes of working files at the worst moment.

    A run in progress is saved beside its last save: parameters, state and records. What is finished waits meanwhile.
    """
    running = layout.size * layout.parameters[0].element_size() + max(costs.state_bytes.values())
    return 2 * (running + records // runs) + records


def _state_bytes(optimizer: Replayable) -> int:
    tensors = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in tensors if isinstance(value, torch.Tensor))


def _timed(task: Task, call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    if task.device.type == "cuda":
        torch.cuda.synchronize(task.device)
    return time.perf_counter() - started
