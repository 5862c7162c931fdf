"""Runs a method on a problem: checks what is asked, steps, and records how it goes."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lite_probe.bilevel.exchange import Network, StackedNetwork
from lite_probe.bilevel.methods import DSOBA, STRATEGIES, FirstOrderDSOBA, Method, Sparkle
from lite_probe.bilevel.problem import FIRST_ORDER, SECOND_ORDER, BilevelProblem, Oracle, require_strongly_convex
from lite_probe.bilevel.step_sizes import LEVELS, Adaptive, Fixed, step_sizes_of
from lite_probe.bilevel.topology import FloatArray, lazy, require_mixing_matrix
from lite_probe.errors import InputError, NumericsError, UsageError, shown

METHODS = ("dsoba-so", "dsoba-fo", "sparkle")
_RECORDS = 200  # of a run's history, where it isn't said how many

MethodName = Literal["dsoba-so", "dsoba-fo", "sparkle"]
Mixing = ArrayLike | Mapping[str, ArrayLike]  # one matrix, or one for each of x, y and z
Start = tuple[Tensor, Tensor, Tensor]
Measure = Callable[[Tensor, Tensor], Mapping[str, float]]  # of the stacks x and y


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """How a run went, a row for each record; the first is of the start. R rows."""

    step: NDArray[np.int64]  # (R,) steps made
    gradients: NDArray[np.int64]  # (R,) answers by each node, a second-order product counting as one
    floats: NDArray[np.int64]  # (R,) numbers sent over all edges
    messages: NDArray[np.int64]  # (R,) vectors sent from one node to one neighbour
    consensus: Mapping[str, FloatArray]  # (R,) by level: √(Σᵢ‖sᵢ − s̄‖²/n)
    upper_loss: FloatArray | None  # (R,) mean of fᵢ(xᵢ, yᵢ); None where the problem has none
    measured: Mapping[str, FloatArray]  # (R,) whatever `measure` returned


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that a run needs to go on, with the same iterates bitwise on a CPU as one that was never stopped."""

    step: int
    made_by: str  # the method and what it was given that a run which goes on has to have too
    tensors: Mapping[str, Tensor]
    counts: Mapping[str, int]  # gradients; floats and messages by level
    rows: Mapping[str, tuple[float, ...]]  # of the history


@dataclass(frozen=True, slots=True, kw_only=True)
class BilevelRun:
    """Where a run ended: the copies of every node, and how it got there."""

    x: Tensor  # (n, dim_x)
    y: Tensor  # (n, dim_y)
    z: Tensor  # (n, dim_y) estimate of (∇²ᵧᵧg)⁻¹∇ᵧf
    history: History
    state: State = field(repr=False)


def solve(
    problem: BilevelProblem,
    mixing: Mixing,
    *,
    method: MethodName = "sparkle",
    upper: str = "gt",
    lower: str = "ed",
    step_sizes: tuple[float, float, float] | Literal["adaptive"] | Fixed | Adaptive = "adaptive",
    theta: float = 0.2,
    steps: int = 1000,
    seed: int = 0,
    start: Start | State | None = None,
    record_every: int | None = None,
    measure: Measure | None = None,
    network: Network | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
    on_record: Callable[[State], None] | None = None,
) -> BilevelRun:
    """Solve min_x (1/n) Σ fᵢ(x, y*(x)) where y*(x) minimises (1/n) Σ gᵢ(x, y), every node with its data to itself.

    Args:
        problem: Gradients and products of every node.
        mixing: W of `mixing_matrix`, or one for each of "x", "y" and "z".
        method: "dsoba-so", "dsoba-fo" (no second-order product), or "sparkle".
        upper: SPARKLE's strategy for x, of `STRATEGIES`.
        lower: For y and z.
        step_sizes: Of x, y and z; "adaptive" for parameter-free ones; or `Fixed` (which may decay) or `Adaptive`.
        theta: θ of the upper direction's moving average, in (0, 1]; 1 takes each as it comes.
        steps: To be made in all.
        seed: Of what the problem draws.
        start: x, y and z, (n, ·) each or one row for all; zeros where not given. Or the state of a run to go on with.
        record_every: Steps between rows of the history; by default some 200 rows.
        measure: What else is recorded, of the stacks x and y.
        network: Of the nodes' processes, such as `RankNetwork()` under `torchrun`; by default all are in this one.
        on_progress: Told `(done, steps, label)` at every record.
        on_record: Given the state at every record.

    Returns:
        The iterates in float64, or the element type of `start`, and the history.

    Raises:
        UsageError: If an argument is out of range, or a state is past `steps` or of another method, strategy, W or kind
            of step sizes.
        InputError: If W is no mixing matrix of n connected nodes, the lower level is not strongly convex, or the
            problem lacks a method or returns another shape, or processes disagree about what is asked.
        NumericsError: If the iterates are no longer finite.
        PeerError: If another process of the network failed or was killed.

    Cost: per step and node 4 gradients or products for SPARKLE and D-SOBA-SO, 4 gradients for D-SOBA-FO; 1 vector per
        level and edge for ED, EXTRA and D-SOBA, 2 for gradient tracking.
    """
    _require(method, upper, lower, theta, steps, record_every)
    nodes = network if network is not None else StackedNetwork(problem.num_nodes)
    strategies = {"x": STRATEGIES[upper], "y": STRATEGIES[lower], "z": STRATEGIES[lower]}
    matrices = {
        level: lazy(matrix) if method == "sparkle" and strategies[level].lazy else matrix
        for level, matrix in _matrices(mixing, nodes.num_nodes).items()
    }
    sizes = step_sizes_of(step_sizes)
    kind = f"{method} ({upper}, {lower})" if method == "sparkle" else method
    graphs = {level: _digest(matrix) for level, matrix in matrices.items()}
    made_by = f"{kind}, {type(sizes).__name__}, W {_digest(np.stack(list(matrices.values())))}"
    with nodes.guarding():
        if isinstance(start, State):
            begun = start
            _require_continues(begun, made_by, steps)
        else:
            begun = _begin(problem, nodes, start, made_by)
        oracle = Oracle(problem, FIRST_ORDER if method == "dsoba-fo" else SECOND_ORDER, seed)
        tensors = dict(begun.tensors)
        every = record_every if record_every is not None else max(1, steps // _RECORDS)
        nodes.agree(
            {
                "method": kind,
                "step sizes": str(step_sizes),
                "theta": str(theta),
                "steps": str(steps),
                "seed": str(seed),
                "record_every": str(every),
                "upper_loss": "recorded" if callable(getattr(problem, "upper_loss", None)) else "not recorded",
                "step of the start": str(begun.step),
                "dimensions": ", ".join(f"{name} {one.shape[1]} {one.dtype}" for name, one in sorted(tensors.items())),
                **{f"mixing matrix of {level}": digest for level, digest in graphs.items()},
            }
        )
        sizes.memory.update({level: tensors.pop(f"{level} sum") for level in LEVELS if f"{level} sum" in tensors})
        exchanges = {level: nodes.exchange(matrix, tensors[level]) for level, matrix in matrices.items()}
        if method == "sparkle":
            stepper: Method = Sparkle(oracle, exchanges, sizes, theta, tensors, strategies)
        else:
            stepper = (DSOBA if method == "dsoba-so" else FirstOrderDSOBA)(oracle, exchanges, sizes, theta, tensors)
        run = _Running(problem, nodes, stepper, measure, begun)
        if not begun.rows:
            if method != "dsoba-fo":
                require_strongly_convex(oracle, tensors["x"], tensors["y"])
            run.record()
        for step in range(begun.step, steps):
            run.step()
            if (step + 1) % every == 0 or step + 1 == steps:
                state = run.record()
                if on_record is not None:
                    on_record(state)
                if on_progress is not None:
                    on_progress(step + 1, steps, run.told())
        return run.result()


def _require(method: str, upper: str, lower: str, theta: float, steps: int, record_every: int | None) -> None:
    if method not in METHODS:
        raise UsageError(f"expected a method among {', '.join(METHODS)}, got {method!r}")
    for level, name in (("upper", upper), ("lower", lower)):
        if name not in STRATEGIES:
            raise UsageError(f"expected {level} among {', '.join(STRATEGIES)}, got {name!r}")
    if not 0.0 < theta <= 1.0:
        raise UsageError(f"expected theta in (0, 1], got {theta:g}")
    if steps < 1:
        raise UsageError(f"expected at least one step, got {steps}")
    if record_every is not None and record_every < 1:
        raise UsageError(f"expected a record every 1 or more steps, got {record_every}")


def _require_continues(state: State, made_by: str, steps: int) -> None:
    if state.made_by != made_by:
        raise UsageError(
            f"expected the state of a run by {made_by}, got one by {state.made_by}",
            "give what the first run was given, or its x, y and z as the start of a new one",
        )
    if steps < state.step:
        raise UsageError(
            f"expected at least the {state.step:,} steps that the state has made, got {steps:,}",
            "steps are counted from the start of the first run",
        )


def _matrices(mixing: Mixing, num_nodes: int) -> dict[str, FloatArray]:
    if not isinstance(mixing, Mapping):
        return dict.fromkeys(LEVELS, require_mixing_matrix(mixing, num_nodes))
    if set(mixing) != set(LEVELS):
        raise UsageError(f"expected a mixing matrix for each of x, y and z, got {', '.join(map(str, mixing))}")
    return {level: require_mixing_matrix(mixing[level], num_nodes, f"W of {level}") for level in LEVELS}


def _digest(matrix: FloatArray) -> str:
    """Return a digest of a matrix that rounding on another kind of processor leaves as it is."""
    return hashlib.sha256((np.round(matrix, 9) + 0.0).tobytes()).hexdigest()[:8]


def _begin(problem: BilevelProblem, nodes: Network, start: Start | None, made_by: str) -> State:
    """Return the state before the first step."""
    rows = nodes.num_rows
    if problem.num_nodes != rows:
        raise InputError(f"expected a problem of {rows} nodes in this process, got one of {problem.num_nodes}")
    dims = {"x": problem.dim_x, "y": problem.dim_y, "z": problem.dim_y}
    zeros = tuple(torch.zeros(1, dim, dtype=torch.float64) for dim in dims.values())
    given = zeros if start is None else tuple(start)
    if len(given) != len(dims) or not all(isinstance(stack, Tensor) for stack in given):
        raise InputError(f"expected a start of three tensors, x, y and z, got {shown(tuple(given))}")
    kinds = {(stack.dtype, stack.device) for stack in given}
    if len(kinds) > 1 or not given[0].is_floating_point():
        raise InputError(
            "expected x, y and z of one floating-point type on one device to start from, got "
            + ", ".join(f"{stack.dtype} on {stack.device}" for stack in given)
        )
    tensors = {}
    for (level, dim), stack in zip(dims.items(), given, strict=True):
        if tuple(stack.shape) not in ((rows, dim), (1, dim), (dim,)):
            raise InputError(f"expected a start for {level} of {rows} × {dim} or {dim}, got {tuple(stack.shape)}")
        tensors[level] = stack.detach().expand(rows, dim).clone()
    return State(step=0, made_by=made_by, tensors=tensors, counts={}, rows={})


class _Running:
    """A run between its steps: what it has sent and asked, and its history so far."""

    def __init__(
        self, problem: BilevelProblem, nodes: Network, stepper: Method, measure: Measure | None, begun: State
    ) -> None:
        self._problem, self._nodes, self._stepper, self._measure = problem, nodes, stepper, measure
        self._step, self._made_by = begun.step, begun.made_by
        self._rows: dict[str, list[float]] = {name: list(row) for name, row in begun.rows.items()}
        stepper.oracle.gradients = begun.counts.get("gradients", 0)
        for level, exchange in stepper.exchanges.items():
            exchange.floats = begun.counts.get(f"floats {level}", 0)
            exchange.messages = begun.counts.get(f"messages {level}", 0)

    def step(self) -> None:
        """Make one step."""
        self._stepper.oracle.step = self._step
        self._stepper.step()
        self._step += 1

    def record(self) -> State:
        """Add a row to the history; return the state.

        Raises:
            NumericsError: If an iterate is not finite.
        """
        stacks = {level: self._nodes.gather(self._stepper.state[level]) for level in LEVELS}
        if not all(bool(torch.isfinite(stack).all()) for stack in stacks.values()):
            raise NumericsError(
                f"expected finite iterates, got some that are not within the first {self._step:,} steps",
                'lower the step sizes, or take "adaptive" ones',
            )
        counts = self._counts()
        row = {"step": self._step, "gradients": counts["gradients"]}
        for what in ("floats", "messages"):
            row[what] = sum(counts[f"{what} {level}"] for level in LEVELS)
        found: dict[str, float] = {f"consensus {level}": _scatter(stack) for level, stack in stacks.items()}
        if callable(upper_loss := getattr(self._problem, "upper_loss", None)):
            losses = upper_loss(*(self._stepper.state[level].detach() for level in "xy"))
            if not isinstance(losses, Tensor) or tuple(losses.shape) != (self._nodes.num_rows,):
                got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
                raise InputError(f"expected upper_loss to return {(self._nodes.num_rows,)}, got {got}")
            found["upper loss"] = float(self._nodes.gather(losses.detach().reshape(-1, 1)).mean())
        if self._measure is not None:
            found |= {
                f"measured {name}": value
                for name, value in self._measure(stacks["x"].detach(), stacks["y"].detach()).items()
            }
        if self._rows and (changed := (row | found).keys() ^ self._rows.keys()):
            raise InputError(
                f"expected every record to hold the same, got {', '.join(sorted(changed))} in some",
                "measure the same from the first record on, also in a run that goes on from a state",
            )
        for name, value in (row | found).items():
            self._rows.setdefault(name, []).append(value)
        return self._state()

    def told(self) -> str:
        """Say how far nodes are apart, and the upper loss where it is known."""
        loss = f", upper loss {self._rows['upper loss'][-1]:.4g}" if "upper loss" in self._rows else ""
        return f"consensus error {self._rows['consensus x'][-1]:.1e}{loss}"

    def result(self) -> BilevelRun:
        """Return where the run is."""
        stacks = {level: self._nodes.gather(self._stepper.state[level]) for level in LEVELS}
        return BilevelRun(**stacks, history=_history(self._rows), state=self._state())

    def _counts(self) -> dict[str, int]:
        counts = {"gradients": self._stepper.oracle.gradients}
        for level, exchange in self._stepper.exchanges.items():
            counts |= {f"floats {level}": exchange.floats, f"messages {level}": exchange.messages}
        return counts

    def _state(self) -> State:
        sums = {f"{level} sum": total for level, total in self._stepper.sizes.memory.items()}
        return State(
            step=self._step,
            made_by=self._made_by,
            tensors={**self._stepper.state, **sums},
            counts=self._counts(),
            rows={name: tuple(row) for name, row in self._rows.items()},
        )


def _scatter(stack: Tensor) -> float:
    """Return √(Σᵢ‖sᵢ − s̄‖²/n)."""
    return math.sqrt(float((stack - stack.mean(dim=0)).square().sum()) / stack.shape[0])


def _history(rows: Mapping[str, list[float]]) -> History:
    whole = {name: np.array(rows[name], dtype=np.int64) for name in ("step", "gradients", "floats", "messages")}
    rest = {name: np.array(row, dtype=np.float64) for name, row in rows.items() if name not in whole}
    return History(
        **whole,
        consensus={level: rest[f"consensus {level}"] for level in LEVELS},
        upper_loss=rest.get("upper loss"),
        measured={name.removeprefix("measured "): row for name, row in rest.items() if name.startswith("measured ")},
    )
