"""What curvature costs on a task, and how it is laid out in memory: decided before anything large is allocated.

The plan rests on the task itself: two gradients (which also prove the loss deterministic), the graph of one batch with
the bytes it holds counted, and two products through it, timed, with the memory they needed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lite_probe.errors import NumericsError
from lite_probe.operators.base import SymmetricOperator
from lite_probe.operators.finite_difference import FiniteDifferenceOperator, GaussNewtonDifferenceOperator
from lite_probe.operators.gradient import LossAndGradient
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.operators.sharded import ShardedDifferenceOperator
from lite_probe.runtime.memory import MemoryLayout, Placement, peak_during, require_memory
from lite_probe.seeds import derive_seed
from lite_probe.spectra.operator import OperatorRequest
from lite_probe.task import Split, Task
from lite_probe.task.batches import num_entries
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.random import random_vector
from lite_probe.vectors.reductions import norm

_AGREEMENT = 0.05  # relative, between a product and the differences of the gradient: more is a part that is missing
_DIFFERENCE_ERRORS = 5.0  # or so many of the differences' own estimated errors
_SHARING = 4  # vectors through one rebuilt graph: building it costs 1.4 products, which more than four hardly lower


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What one batch and one vector cost on this machine."""

    product_bytes: int  # the process's peak during a product through one graph
    graph_bytes: int  # of one batch, the largest
    vector_bytes: int  # of one vector of N entries, or of a rank's slice where the model is sharded
    build_seconds: float  # all batches' graphs
    product_seconds: float  # one product through kept graphs, all batches
    ranks: int = 1  # that hold slices of the basis, and whole vectors beside it


def probe_costs(task: Task, layout: ParameterLayout, evaluated: LossAndGradient, split: Split, kind: str) -> Costs:
    """Build the largest batch's graph once, count its bytes, and time a product through it.

    Cost: one graph and two products of one batch.
    """
    batches = task.batches(split)
    device = layout.parameters[0].device
    if kind == "finite-differences":
        vector = torch.ones(layout.size, 1, dtype=layout.parameters[0].dtype, device=device)
        differences = _difference_operator(task, layout, split)
        differences.matmat(vector)  # chooses its step
        times: list[float] = []
        peak = peak_during(device, lambda: times.append(_timed(lambda: differences.matmat(vector))))
        return Costs(
            product_bytes=peak,
            graph_bytes=0,
            vector_bytes=vector.nbytes,
            build_seconds=0.0,
            product_seconds=times[0],
        )
    largest = max(batches, key=num_entries)
    alone = Task(
        model=task.model, predict=task.predict, criterion=task.criterion, evaluation=[largest], blocks=task.blocks
    )
    operator = _graph_operator(kind)(alone, layout, count=evaluated.count, graphs=GraphStore(1, layout.parameters))
    vector = torch.ones(layout.size, 1, dtype=operator.dtype, device=operator.device)
    saved: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in layout.parameters}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        # A detached alias: packing an output itself would tie it to its own graph in a cycle.
        return tensor.detach()

    def build_and_multiply() -> None:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            times.append(_timed(lambda: operator.matmat(vector)))
        times.append(_timed(lambda: operator.matmat(vector)))

    times = []
    peak = peak_during(device, build_and_multiply)
    if operator.written:
        _require_agreement(alone, layout, operator)
    operator.graphs.clear()
    shares = [sum(map(num_entries, share)) for share in task.ranks.shares(batches)]
    share = max(shares) / max(num_entries(largest), 1)  # ranks wait for the one that has most
    return Costs(
        product_bytes=peak,
        # Beside what autograd saved, each graph holds the batch's gradient.
        graph_bytes=sum(saved.values()) + vector.nbytes,
        vector_bytes=vector.nbytes,
        build_seconds=max(times[0] - times[1], 0.0) * share,
        product_seconds=times[1] * share,
    )


def _require_agreement(task: Task, layout: ParameterLayout, operator: HessianOperator | GaussNewtonOperator) -> None:
    """Refuse functions whose own backward pass hides from autograd what it depends on.

    Products through them would lack a part in silence. Differences of first derivatives lack nothing.

    Raises:
        NumericsError: If a product of a random vector differs from them by more than they can err.

    Cost: one product and a dozen gradients of one batch.
    """
    vector = random_vector(layout.size, seed=derive_seed(0, "agreement"), dtype=operator.dtype, device=operator.device)
    differences: FiniteDifferenceOperator
    if isinstance(operator, GaussNewtonOperator):
        differences = GaussNewtonDifferenceOperator(task, layout)
        share, of_what, way_out = 1.0, "the output gradient", "or measure the Hessian with --method finite-differences"
    else:
        differences = FiniteDifferenceOperator(task, layout)
        share, of_what, way_out = task.loss(task.evaluation[0])[1], "the gradient", "or use --method finite-differences"
    expected = differences.matvec(vector) * (share / operator.count)
    apart = norm(operator.matvec(vector) - expected) / max(norm(expected), 1e-300)
    if apart > max(_AGREEMENT, _DIFFERENCE_ERRORS * (differences.relative_error or 0.0)):
        raise NumericsError(
            f"expected products that agree with differences of {of_what}, got {apart:.0%} apart through "
            f"{', '.join(sorted(operator.written))}, whose backward pass is written in Python",
            f"let it compute with differentiable operations on ctx.saved_tensors, {way_out}",
        )


def lay_out(request: OperatorRequest, costs: Costs, num_batches: int, budget: int, size: int) -> MemoryLayout:
    """Choose how many graphs to keep, how many basis vectors to hold, and where.

    A short basis restarts, which costs some products; rebuilding graphs costs part of every product; a basis on disk
    is read three times per product. Hence: all graphs and a long basis, all graphs and a shorter basis, fewer graphs
    and a short basis, and at last a basis on disk with as many graphs as fit.

    Raises:
        UsageError: If even that does not fit.
    """
    pairs = request.top + request.bottom
    longest, shortest, on_disk = (min(size, n) for n in (3 * pairs + 30, pairs + max(8, pairs // 2), 2 * pairs + 10))
    most = 0 if costs.graph_bytes == 0 else num_batches
    least = min(peak_bytes(costs, num_batches, kept, 0) for kept in range(most + 1))
    require_memory(least, budget, "one batch's graph", "lower --batch-size or --seq-len")
    for columns in range(longest, shortest - 1, -1):
        if peak_bytes(costs, num_batches, most, columns) <= budget:
            return _laid_out(costs, num_batches, most, "device", columns)
    for kept in range(most - 1, -1, -1):
        if peak_bytes(costs, num_batches, kept, shortest) <= budget:
            return _laid_out(costs, num_batches, kept, "device", shortest)
    kept = max(kept for kept in range(most + 1) if peak_bytes(costs, num_batches, kept, 0) <= budget)
    return _laid_out(costs, num_batches, kept, "disk", on_disk)


def _laid_out(costs: Costs, num_batches: int, kept: int, placement: Placement, columns: int) -> MemoryLayout:
    return MemoryLayout(
        kept_graphs=kept,
        vectors_per_pass=_vectors_per_pass(costs, num_batches - kept),
        basis_placement=placement,
        basis_columns=columns,
    )


def scratch_bytes(request: OperatorRequest, vector: int, layout: MemoryLayout) -> int:
    """Return the bytes of working files at the worst moment: the first save after the basis was rotated.

    The basis that was saved before lies there until the rotated one does too; so do two sets of the vectors between
    steps, the pending one and two per probe. A basis on disk has its room taken at once. Blocks come after the whole,
    whose eigenvectors wait beside theirs: they are smaller.
    """
    rows = min(layout.basis_columns, request.expected_pair_products)
    saved = 2 * rows + 2 * (1 + 2 * layout.vectors_per_pass)
    waiting = request.top + request.bottom
    return vector * (max(saved, waiting) + (layout.basis_columns if layout.basis_placement == "disk" else 0))


def _vectors_per_pass(costs: Costs, rebuilt: int) -> int:
    """Return how many probes go through the operator together: those that share graphs which are built anew."""
    return 1 if rebuilt == 0 or costs.graph_bytes == 0 else _SHARING


def peak_bytes(costs: Costs, num_batches: int, kept: int, columns: int) -> int:
    """Return the bytes in use at the worst moment, a probe's step.

    The product through one graph was measured with one vector and its image. Each probe that takes part in a pass has
    these and its previous vector, and Lanczos keeps its pending one; a graph that is being rebuilt comes on top of
    those kept.
    """
    together = _vectors_per_pass(costs, num_batches - kept)
    graphs = kept if kept == num_batches else kept + 1
    vectors = -(-columns // costs.ranks) + 3 * together - 1
    return costs.product_bytes + max(graphs - 1, 0) * costs.graph_bytes + vectors * costs.vector_bytes


def build_operator(
    task: Task,
    layout: ParameterLayout,
    *,
    kind: str,
    count: int,
    vectors_per_pass: int,
    split: Split,
    graphs: GraphStore,
) -> SymmetricOperator:
    """Make the operator that a plan calls for, on all parameters or one block."""
    if kind == "finite-differences":
        return _difference_operator(task, layout, split)
    curvature = _graph_operator(kind)
    return curvature(task, layout, count=count, split=split, graphs=graphs, vectors_per_pass=vectors_per_pass)


def _difference_operator(task: Task, layout: ParameterLayout, split: Split) -> FiniteDifferenceOperator:
    kind = ShardedDifferenceOperator if task.ranks.is_sharded else FiniteDifferenceOperator
    return kind(task, layout, split=split)


def _graph_operator(kind: str) -> type[HessianOperator] | type[GaussNewtonOperator]:
    return GaussNewtonOperator if kind == "ggn" else HessianOperator


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
