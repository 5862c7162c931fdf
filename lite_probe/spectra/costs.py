"""What curvature costs on a task, and how it is laid out in memory: decided before anything large is allocated.

The plan rests on the task itself: what autograd saves of one row, two gradients (which also prove the loss
deterministic), the graph of one row and of the part of a batch that is chosen, with the bytes they hold counted, and
two products through each, timed, with the memory they needed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from lite_probe.errors import NumericsError, UsageError
from lite_probe.operators.base import SymmetricOperator
from lite_probe.operators.finite_difference import FiniteDifferenceOperator, GaussNewtonDifferenceOperator
from lite_probe.operators.gradient import LossAndGradient
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.operators.precision import Precision
from lite_probe.operators.sharded import ShardedDifferenceOperator
from lite_probe.runtime.memory import (
    MemoryLayout,
    Placement,
    memory_in_use,
    part_text,
    peak_during,
    require_memory,
    saved_bytes,
    size_text,
)
from lite_probe.runtime.timing import timed
from lite_probe.seeds import derive_seed
from lite_probe.spectra.operator import OperatorRequest
from lite_probe.task import Batch, Split, Task
from lite_probe.task.batches import in_rows, leaves_of, num_entries, num_samples, parts_of, with_rows
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.random import random_vector
from lite_probe.vectors.reductions import norm

_PLACEMENTS = get_args(Placement)
_AGREEMENT = 0.05  # relative, between a product and the differences of the gradient: more is a part that is missing
_DIFFERENCE_ERRORS = 5.0  # or so many of the differences' own estimated errors
# Vectors through one rebuilt graph: building it costs 0.7 products, which more than four hardly lower.
_SHARING = (4, 2, 1)
_BUILD = 0.7  # products that building a graph costs
_RESTARTS = 0.2  # more products, where a basis is as short as can be
_HALVING = 0.02  # more work, where parts are half as large
_GRADIENT_GRAPH = 1.5  # what a gradient takes, over what autograd saves for it
_GRADIENT_VECTORS = 3  # two gradients are compared, the second's parts lie beside it
_MAPPED_BYTES = 1 << 27  # of a basis on disk, at a time
_PRODUCT_VECTORS = 3  # a vector, its image, and the product of one part
# Of what is counted, kept free for what is not: at 135 M parameters 0.26 GiB beside 13.8, of the allocator and of what
# is on its way to disk.
_RESERVE = 1 / 32
_SAME_SUM = 100.0  # roundings that the loss of a batch and that of its parts may differ by


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What one part of a batch and one vector cost on this machine."""

    held_bytes: int  # before a graph is built: the weights, on a CPU the process itself
    product_bytes: int  # the peak during a product through one graph
    graph_bytes: int  # of one part, the largest
    vector_bytes: int  # of one vector of N entries, or of a rank's slice where the model is sharded
    build_seconds: float  # all graphs
    product_seconds: float  # one product through kept graphs, all batches
    ranks: int = 1  # that hold slices of the basis, and whole vectors beside it

    @property
    def row_bytes(self) -> int:
        """Bytes of a basis vector on each rank."""
        return -(-self.vector_bytes // self.ranks)


@dataclass(frozen=True, slots=True)
class RowOptions:
    """The parts that batches can be computed in.

    Attributes:
        rows: Of a batch, from many to few; None is all of them.
        most: Rows of the largest batch.
        saved_bytes: What autograd saves for the loss of one row.
    """

    rows: tuple[int | None, ...]
    most: int
    saved_bytes: int

    def down_from(self, rows: int | None) -> "RowOptions":
        """Leave out what is larger."""
        return replace(self, rows=self.rows[self.rows.index(rows) :])


def row_options(task: Task, layout: ParameterLayout, split: Split) -> RowOptions:
    """Return whole batches, then rows of them, by halves down to one; only whole ones where rows cannot be told.

    Cost: a forward pass of one row.
    """
    batches = task.batches(split)
    most = min((num_samples(batch) for batch in batches), default=0) and max(map(num_samples, batches))
    whole = RowOptions((None,), most, 0)
    if most < 2:
        return whole
    (row, *_) = in_rows(max(batches, key=num_entries), 1)
    try:
        with saved_bytes(_held(layout, row)) as saved:
            task.loss(row)
    except (RuntimeError, ValueError, TypeError, LookupError):  # what takes whole batches only
        return whole
    options: list[int | None] = [None]
    rows = most
    while rows > 1:
        rows = (rows + 1) // 2
        options.append(rows)
    return RowOptions(tuple(options), most, sum(saved.values()))


def gradient_rows(options: RowOptions, layout: ParameterLayout, budget: int) -> int | None:
    """Return the largest parts of batches whose gradient fits, of the options; the smallest where none does."""
    first = layout.parameters[0]
    room = budget - memory_in_use(first.device) - _GRADIENT_VECTORS * layout.size * first.element_size()
    per_row = _GRADIENT_GRAPH * options.saved_bytes
    fitting = (rows for rows in options.rows if (rows or options.most) * per_row <= room)
    return next(fitting, options.rows[-1])


def adds_up(task: Task, split: Split, rows: int) -> bool:
    """Tell whether the loss of the largest batch is the sum of those of its parts: a criterion may mix its rows.

    Cost: two forward passes of a batch.
    """
    largest = max(task.batches(split), key=num_entries)
    with torch.no_grad():
        loss, count = task.loss(largest)
        parts = [task.loss(part) for part in in_rows(largest, rows)]
        whole, total = float(loss), sum(float(part) for part, _ in parts)
    rounding = _SAME_SUM * torch.finfo(loss.dtype).eps * abs(whole)
    return count == sum(part for _, part in parts) and not abs(whole - total) > rounding


def plan_memory(
    task: Task,
    layout: ParameterLayout,
    evaluated: LossAndGradient,
    request: OperatorRequest,
    split: Split,
    kind: str,
    *,
    options: RowOptions,
    budget: int,
    host: int | None,
    ranks: int = 1,
) -> tuple[Costs, MemoryLayout]:
    """Choose the part of a batch that one graph is of, and lay out the rest: what costs least of what fits.

    What larger parts take is extrapolated from the smallest, and measured of the part that is chosen.

    Args:
        task: Model, loss, batches.
        layout: Of all parameters.
        evaluated: On all batches.
        request: Of the whole.
        split: Of batches.
        kind: Of curvature.
        options: Parts of batches to choose from.
        budget: Bytes allowed where the operator is.
        host: Bytes of an accelerator's host that a basis may take; None on a CPU.
        ranks: That hold slices of the basis.

    Raises:
        UsageError: If not even the smallest part fits.
        NumericsError: If the model cannot be differentiated twice.

    Cost: the graph of the smallest part and of the chosen one, and two products through each; another graph where one
        did not need what was expected.
    """
    parts = {rows: len(parts_of(with_rows(task, rows), split)) for rows in options.rows}
    left, smallest = [*options.rows], options.rows[-1]

    def probed(rows: int | None) -> Costs:
        return replace(probe_costs(with_rows(task, rows), layout, evaluated, split, kind), ranks=ranks)

    try:
        known = {smallest: probed(smallest)}
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"expected memory for the graph of {part_text(smallest)}, got a full device",
            f"lower {'--batch-size or ' if smallest is None else ''}--seq-len, or measure on a device with more",
        ) from error
    while True:
        found: list[tuple[tuple[int, float], int | None, MemoryLayout]] = []
        for halvings, rows in enumerate(left):
            costs = known.get(rows) or of_rows(known[smallest], smallest or 1, rows or options.most)
            try:
                laid = lay_out(request, costs, parts[rows], budget, layout.size, host=host, rows=rows)
            except UsageError as error:
                refusal = error
            else:
                rank, work = _order(request, laid, parts[rows], layout.size)
                found.append(((rank, work * (1.0 + _HALVING * halvings)), rows, laid))
        if not found:
            raise refusal
        _, rows, laid = min(found, key=lambda one: one[0])
        if rows in known:
            return known[rows], laid
        try:
            known[rows] = probed(rows)
        except torch.OutOfMemoryError:
            left.remove(rows)


def plan_shards(
    task: Task,
    layout: ParameterLayout,
    evaluated: LossAndGradient,
    request: OperatorRequest,
    split: Split,
    *,
    budget: int,
    host: int | None,
) -> tuple[Costs, MemoryLayout]:
    """Lay out finite differences of whole batches on ranks that each hold a shard of the model.

    All ranks call this together: a product takes part of all of them.

    Raises:
        UsageError: If a product does not fit.
    """
    costs = probe_costs(task, layout, evaluated, split, "finite-differences")
    num_batches = len(task.ranks.shares(task.batches(split))[0])  # of rank 0, which has most
    return costs, lay_out(request, costs, num_batches, budget, layout.whole_size, host=host)


def of_rows(costs: Costs, measured: int, rows: int) -> Costs:
    """Return what a part of other rows takes: all but what is held and vectors grows with them."""
    vectors = _PRODUCT_VECTORS * costs.vector_bytes
    growing = max(costs.product_bytes - costs.held_bytes - vectors, costs.graph_bytes)
    return replace(
        costs,
        product_bytes=costs.held_bytes + vectors + growing * rows // measured,
        graph_bytes=costs.graph_bytes * rows // measured,
    )


def _held(layout: ParameterLayout, batch: Batch) -> list[Tensor]:
    """Return what is there before a graph is."""
    return [*layout.parameters, *(leaf for leaf in leaves_of(batch) if isinstance(leaf, Tensor))]


def probe_costs(task: Task, layout: ParameterLayout, evaluated: LossAndGradient, split: Split, kind: str) -> Costs:
    """Build the graph of a task's largest part once, count its bytes, and time a product through it.

    Cost: one graph and two products of one part.
    """
    parts = [part for _, part in parts_of(task, split)]
    device = layout.parameters[0].device
    held = memory_in_use(device)
    if kind == "finite-differences":
        vector = torch.ones(layout.size, 1, dtype=layout.parameters[0].dtype, device=device)
        differences = _difference_operator(task, layout, split)
        differences.matmat(vector)  # chooses its step
        times: list[float] = []
        peak = peak_during(device, lambda: times.append(timed(device, lambda: differences.matmat(vector))))
        return Costs(
            held_bytes=held,
            product_bytes=peak,
            graph_bytes=0,
            vector_bytes=vector.nbytes,
            build_seconds=0.0,
            product_seconds=times[0],
        )
    largest = max(parts, key=num_entries)
    alone = Task(
        model=task.model, predict=task.predict, criterion=task.criterion, evaluation=[largest], blocks=task.blocks
    )
    operator = _graph_operator(kind)(alone, layout, count=evaluated.count, graphs=GraphStore(1, layout.parameters))
    vector = torch.ones(layout.size, 1, dtype=operator.dtype, device=operator.device)
    saved: dict[int, int] = {}

    def build_and_multiply() -> None:
        with saved_bytes(_held(layout, largest)) as seen:
            times.append(timed(device, lambda: operator.matmat(vector)))
        saved.update(seen)
        times.append(timed(device, lambda: operator.matmat(vector)))

    times = []
    peak = peak_during(device, build_and_multiply)
    if operator.written:
        _require_agreement(alone, layout, operator)
    operator.graphs.clear()
    share = sum(num_entries(part) for part in parts) / max(num_entries(largest), 1)
    return Costs(
        held_bytes=held,
        product_bytes=peak,
        graph_bytes=sum(saved.values()),
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


def lay_out(
    request: OperatorRequest,
    costs: Costs,
    num_parts: int,
    budget: int,
    size: int,
    *,
    host: int | None = None,
    rows: int | None = None,
) -> MemoryLayout:
    """Choose how many graphs to keep, how many vectors share the others, how many basis vectors to hold, and where.

    A basis that is not with the operator is read three times per product, over the host's bus or from disk: it is with
    the operator where its shortest fits. Beside that, a short basis restarts, which costs some products; a rebuilt
    graph costs part of every pass, of which there are the more the fewer vectors share it. What costs least is chosen.

    Args:
        request: Of the operator.
        costs: Of one part.
        num_parts: Of all batches.
        budget: Bytes allowed where the operator is.
        size: N.
        host: Bytes of an accelerator's host that a basis may take; None on a CPU.
        rows: Of a part.

    Raises:
        UsageError: If nothing fits.
    """
    room, apart = int(budget / (1.0 + _RESERVE)), host is not None
    layouts = [*_layouts(request, costs, num_parts, room, size, host, rows)]
    peaks = [peak_bytes(costs, num_parts, layout, apart=apart) for layout in layouts]
    least = min(peaks)
    leanest = layouts[peaks.index(least)]
    require_memory(least + _reserve(least), budget, *_reasons(costs, leanest, least))
    fitting = [layout for layout, peak in zip(layouts, peaks, strict=True) if peak <= room]
    return min(fitting, key=lambda layout: _order(request, layout, num_parts, size))


def _layouts(
    request: OperatorRequest,
    costs: Costs,
    num_parts: int,
    room: int,
    size: int,
    host: int | None,
    rows: int | None,
) -> Iterator[MemoryLayout]:
    """Yield every way to lay out, with as long a basis as fits; where none does, with the shortest."""
    shortest, longest, elsewhere = _basis_columns(request, size)
    most = 0 if costs.graph_bytes == 0 else num_parts
    for kept in range(most + 1):
        for together in (1,) if kept == num_parts or most == 0 else _SHARING:
            made = MemoryLayout(
                rows=rows,
                kept_graphs=kept,
                vectors_per_pass=together,
                basis_placement="device",
                basis_columns=shortest,
            )
            spare = room - peak_bytes(costs, num_parts, made, apart=host is not None)
            columns = shortest + max(spare, 0) // costs.row_bytes
            yield replace(made, basis_columns=min(columns, longest))
            # On the host lie, beside the basis, Lanczos's pending vector and three of each probe.
            columns = ((host or 0) - (1 + 3 * together) * costs.vector_bytes) // costs.row_bytes
            if columns >= shortest:
                yield replace(made, basis_placement="cpu", basis_columns=min(columns, elsewhere))
            yield replace(made, basis_placement="disk", basis_columns=elsewhere)


def _basis_columns(request: OperatorRequest, size: int) -> tuple[int, int, int]:
    """Return the fewest columns of a basis, the most, and those of one that is not with the operator."""
    pairs = request.top + request.bottom
    shortest, longest, elsewhere = (min(size, n) for n in (pairs + max(8, pairs // 2), 3 * pairs + 30, 2 * pairs + 10))
    return shortest, longest, elsewhere


def _order(request: OperatorRequest, layout: MemoryLayout, num_parts: int, size: int) -> tuple[int, float]:
    """Return how dear a layout is: first by where its basis is, then in products."""
    shortest, longest, _ = _basis_columns(request, size)
    missing = max(longest - layout.basis_columns, 0) / max(longest - shortest, 1)
    passes = request.expected_pair_products + request.probe_steps * math.ceil(request.probes / layout.vectors_per_pass)
    rebuilt = 1.0 - layout.kept_graphs / num_parts
    work = request.expected_products + _RESTARTS * missing * request.expected_pair_products
    return _PLACEMENTS.index(layout.basis_placement), work + _BUILD * rebuilt * passes


def _reasons(costs: Costs, leanest: MemoryLayout, least: int) -> tuple[str, str]:
    """Return what the memory of the leanest layout is for, and what helps against the largest share of it."""
    graph = max(costs.product_bytes - costs.held_bytes - _PRODUCT_VECTORS * costs.vector_bytes, costs.graph_bytes)
    smaller = "--batch-size or --seq-len" if leanest.rows is None else "--seq-len"
    shares = [
        (costs.held_bytes, "for the weights and whatever else is held", "free some, or measure on a device with more"),
        (graph, f"for the graph of {part_text(leanest.rows)}", f"lower {smaller}"),
        (
            max(least - costs.held_bytes - graph, 0),
            f"for vectors of {size_text(costs.vector_bytes)} each",
            "measure fewer parameters: those that need no gradient take none",
        ),
    ]
    listed = ", ".join(f"{size_text(share)} {what}" for share, what, _ in shares)
    return f"one product ({listed}, {size_text(_reserve(least))} in reserve)", max(shares)[2]


def _reserve(counted: int) -> int:
    return math.ceil(_RESERVE * counted)


def scratch_bytes(request: OperatorRequest, vector: int, layout: MemoryLayout) -> int:
    """Return the bytes of working files at the worst moment: the first save after the basis was rotated.

    The basis that was saved before lies there until the rotated one does too; so do two sets of the vectors between
    steps, the pending one and two per probe. A basis on disk has its room taken at once, and is what is saved of it;
    rotated twice since the last save, the saved one lies there beside that which is rotated and that which it becomes.
    Blocks come after the whole, whose eigenvectors wait beside theirs: they are smaller.
    """
    on_disk = layout.basis_placement == "disk"
    rows = layout.basis_columns if on_disk else min(layout.basis_columns, request.expected_pair_products)
    saved = (3 if on_disk else 2) * rows + 2 * (1 + 2 * layout.vectors_per_pass)
    waiting = request.top + request.bottom + (rows if on_disk else 0)
    return vector * max(saved, waiting)


def peak_bytes(costs: Costs, num_parts: int, layout: MemoryLayout, *, apart: bool, filled: int | None = None) -> int:
    """Return the bytes in use at the worst moment, a probe's step.

    The product through one graph was measured with one vector and its image. Each probe that takes part in a pass has
    these and its previous vector, and Lanczos keeps its pending one; a graph that is being rebuilt comes on top of
    those kept.

    Args:
        costs: Of one part.
        num_parts: Of all batches.
        layout: Of everything.
        apart: Whether the operator is on an accelerator, whose host is not counted.
        filled: Basis vectors that are expected; None counts all there is room for.
    """
    together, kept = layout.vectors_per_pass, layout.kept_graphs
    graphs = kept if kept == num_parts else kept + 1
    columns, beside, mapped = layout.basis_columns if filled is None else filled, 3 * together - 1, 0
    if apart and layout.basis_placement != "device":
        columns, beside = 0, 2 * (together - 1)
    elif layout.basis_placement == "disk":
        columns, mapped = 0, min(_MAPPED_BYTES, columns * costs.row_bytes)
    held = costs.product_bytes + max(graphs - 1, 0) * costs.graph_bytes
    return held + columns * costs.row_bytes + beside * costs.vector_bytes + mapped


def build_operator(
    task: Task,
    layout: ParameterLayout,
    *,
    kind: str,
    count: int,
    vectors_per_pass: int,
    split: Split,
    graphs: GraphStore,
    precision: Precision = "float32",
) -> SymmetricOperator:
    """Make the operator that a plan calls for, on all parameters or one block."""
    if kind == "finite-differences":
        return _difference_operator(task, layout, split)
    return _graph_operator(kind)(
        task,
        layout,
        count=count,
        split=split,
        graphs=graphs,
        vectors_per_pass=vectors_per_pass,
        precision=precision,
    )


def _difference_operator(task: Task, layout: ParameterLayout, split: Split) -> FiniteDifferenceOperator:
    kind = ShardedDifferenceOperator if task.ranks.is_sharded else FiniteDifferenceOperator
    return kind(task, layout, split=split)


def _graph_operator(kind: str) -> type[HessianOperator] | type[GaussNewtonOperator]:
    return GaussNewtonOperator if kind == "ggn" else HessianOperator
