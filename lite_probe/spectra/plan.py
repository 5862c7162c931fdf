"""What a measurement will take, and how it is laid out in memory: decided before anything large is allocated.

The plan rests on the task itself: two gradients (which also prove the loss deterministic), the graph of one batch with
the bytes it holds counted, and two products through it, timed.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lite_probe.errors import UsageError
from lite_probe.operators.base import SymmetricOperator
from lite_probe.operators.finite_difference import FiniteDifferenceOperator
from lite_probe.operators.gradient import LossAndGradient, Split, require_deterministic
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.operators.layout import ParameterLayout
from lite_probe.spectra.operator import SpectrumRequest
from lite_probe.task import Task

CurvatureName = Literal["hessian", "ggn"]
MethodName = Literal["autograd", "finite-differences"]
Placement = Literal["device", "cpu", "disk"]

_BLOCK_PRODUCT_SHARE = 0.6  # a block's product over a whole one: the backward pass is the same, the rest is less
_SHARE_OF_FREE_MEMORY = 0.8  # without --memory; the rest is left to others


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumPlan:
    """How a spectrum will be measured, and what that takes."""

    num_parameters: int
    num_hvps: int  # expected, all operators together
    seconds: float  # expected
    memory_bytes: int  # expected peak of the process (CPU) or of the device's allocations
    graph_mode: Literal["kept", "partly kept", "recomputed", "none"]
    kept_graphs: int  # batches whose graphs stay
    vectors_per_pass: int  # vectors that share a rebuilt graph
    basis_placement: Placement
    basis_columns: int
    fingerprint: str  # of checkpoint content, batches and config
    loss: float
    gradient_norm: float
    count: int  # tokens or samples behind the loss
    unused: tuple[str, ...]  # parameters without influence on the loss

    def summary(self) -> str:
        """Return the plan as one line for people."""
        graphs = {
            "kept": "graphs kept",
            "partly kept": f"{self.kept_graphs} graphs kept",
            "recomputed": f"graphs rebuilt, {self.vectors_per_pass} vectors each",
            "none": "finite differences",
        }[self.graph_mode]
        where = "" if self.basis_placement == "device" else f" on {self.basis_placement}"
        return (
            f"~{self.num_hvps} Hessian products, ~{_duration(self.seconds)}, {self.memory_bytes / 2**30:.1f} GiB "
            f"({graphs}, basis of {self.basis_columns} vectors{where})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What one batch and one vector cost on this machine."""

    base_bytes: int  # in use before anything is measured
    graph_bytes: int  # of one batch, the largest
    vector_bytes: int  # of one vector of N entries
    build_seconds: float  # all batches' graphs
    product_seconds: float  # one product through kept graphs, all batches


def probe_costs(task: Task, layout: ParameterLayout, evaluated: LossAndGradient, split: Split, kind: str) -> Costs:
    """Build the largest batch's graph once, count its bytes, and time a product through it.

    Cost: about one graph and one product of one batch.
    """
    batches = task.batches(split)
    base = memory_in_use(layout.parameters[0].device)
    if kind == "finite-differences":
        return Costs(
            base_bytes=base,
            graph_bytes=0,
            vector_bytes=layout.size * layout.parameters[0].element_size(),
            build_seconds=0.0,
            product_seconds=_timed(lambda: require_deterministic(task, layout, split)),  # two gradients, as a product
        )
    largest = max(batches, key=_entries)
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

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        first = _timed(lambda: operator.matmat(vector))
    second = _timed(lambda: operator.matmat(vector))
    operator.graphs.clear()
    share = sum(_entries(batch) for batch in batches) / max(_entries(largest), 1)
    return Costs(
        base_bytes=base,
        # Beside what autograd saved, each graph holds the batch's gradient.
        graph_bytes=sum(saved.values()) + vector.nbytes,
        vector_bytes=vector.nbytes,
        build_seconds=max(first - second, 0.0) * share,
        product_seconds=second * share,
    )


def plan_spectrum(
    task: Task,
    request: SpectrumRequest,
    *,
    operator: CurvatureName,
    method: MethodName,
    num_blocks: int,
    split: Split,
    memory: int | None,
    fingerprint: str,
) -> SpectrumPlan:
    """Decide how to measure; see `lite_probe.spectra.plan_spectrum` for the arguments.

    Raises:
        NumericsError: If loss or gradient are not finite or not deterministic.
        UsageError: If the memory allowed does not hold even the leanest layout.

    Cost: two gradients, one graph and two products of one batch.
    """
    layout = ParameterLayout(list(task.model.named_parameters()))
    started = time.perf_counter()
    evaluated = require_deterministic(task, layout, split)
    gradient_seconds = (time.perf_counter() - started) / 2.0
    kind = "finite-differences" if method == "finite-differences" else operator
    costs = probe_costs(task, layout, evaluated, split, kind)
    budget = memory if memory is not None else _free_memory(task.device, costs.base_bytes)
    num_batches = len(task.batches(split))
    kept, columns, placement = lay_out(request, costs, num_batches, budget, layout.size)
    rebuilt = num_batches - kept
    per_pass = 1 if rebuilt == 0 or kind == "finite-differences" else 4
    product_seconds = costs.product_seconds + costs.build_seconds * rebuilt / num_batches / per_pass
    operators = 1.0 + _BLOCK_PRODUCT_SHARE * num_blocks
    mode: Literal["kept", "partly kept", "recomputed", "none"]
    if kind == "finite-differences":
        mode = "none"
    else:
        mode = "kept" if rebuilt == 0 else "partly kept" if kept else "recomputed"
    return SpectrumPlan(
        num_parameters=layout.size,
        num_hvps=request.expected_products * (1 + num_blocks),
        seconds=2 * gradient_seconds + costs.build_seconds + request.expected_products * operators * product_seconds,
        memory_bytes=_peak(request, costs, kept, columns if placement == "device" else 0),
        graph_mode=mode,
        kept_graphs=kept,
        vectors_per_pass=per_pass,
        basis_placement=placement,
        basis_columns=columns,
        fingerprint=fingerprint,
        loss=evaluated.loss,
        gradient_norm=float(evaluated.gradient.double().square().sum().sqrt()),
        count=evaluated.count,
        unused=evaluated.unused,
    )


def lay_out(
    request: SpectrumRequest, costs: Costs, num_batches: int, budget: int, size: int
) -> tuple[int, int, Placement]:
    """Choose how many graphs to keep, how many basis vectors to hold, and where.

    Restarting costs some products, rebuilding graphs costs more than half of every product, and a basis that
    does not fit beside one graph goes to disk. Hence: graphs and a long basis, graphs and a short basis, fewer
    graphs and a short basis, one graph and a basis on disk.

    Raises:
        UsageError: If even that does not fit.
    """
    pairs = request.top + request.bottom
    longest = min(size, 3 * pairs + 30)
    shortest = min(size, pairs + max(8, pairs // 2))
    graphs = 0 if costs.graph_bytes == 0 else num_batches
    for columns in range(longest, shortest - 1, -1):
        if _peak(request, costs, graphs, columns) <= budget:
            return graphs, columns, "device"
    for kept in range(graphs - 1, -1, -1):
        if _peak(request, costs, kept, shortest) <= budget:
            return kept, shortest, "device"
    least = _peak(request, costs, 0, 0)
    if least <= budget:
        return 0, longest, "disk"
    raise UsageError(
        f"expected at least {least / 2**30:.1f} GiB of memory for one batch's graph, got {budget / 2**30:.1f} GiB",
        "allow more with --memory, or lower --batch-size, --seq-len or --probes",
    )


def _peak(request: SpectrumRequest, costs: Costs, kept: int, columns: int) -> int:
    """Return the bytes in use at the worst moment.

    Beside graphs and basis: two vectors per probe and their images, and in a product the input, its sum over
    batches, one batch's gradients and autograd's own sums on the way. A rebuilt graph comes on top of kept ones.
    """
    graphs = max(kept, 1) if costs.graph_bytes else 0
    in_product = 5 * costs.vector_bytes
    probing = (4 * request.probes) * costs.vector_bytes
    return costs.base_bytes + graphs * costs.graph_bytes + columns * costs.vector_bytes + in_product + probing


def build_operator(
    task: Task,
    layout: ParameterLayout,
    plan: SpectrumPlan,
    *,
    kind: str,
    split: Split,
    graphs: GraphStore,
) -> SymmetricOperator:
    """Make the operator that a plan calls for, on all parameters or one block."""
    if kind == "finite-differences":
        return FiniteDifferenceOperator(task, layout, split=split)
    curvature = _graph_operator(kind)
    return curvature(task, layout, count=plan.count, split=split, graphs=graphs, vectors_per_pass=plan.vectors_per_pass)


def memory_in_use(device: torch.device) -> int:
    """Return the bytes this process holds: allocations on an accelerator, resident memory on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _free_memory(device: torch.device, in_use: int) -> int:
    """Return what a measurement may bring the process to without being told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return in_use + int(_SHARE_OF_FREE_MEMORY * free)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with Path("/proc/meminfo").open() as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    return in_use + int(_SHARE_OF_FREE_MEMORY * free)


def _graph_operator(kind: str) -> type[HessianOperator] | type[GaussNewtonOperator]:
    return GaussNewtonOperator if kind == "ggn" else HessianOperator


def _entries(batch: Any) -> int:
    """Return a measure of a batch's size: entries of all tensors in it."""
    if isinstance(batch, Tensor):
        return batch.numel()
    if isinstance(batch, dict):
        return sum(_entries(value) for value in batch.values())
    if isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        return sum(_entries(value) for value in batch)
    return 1


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
