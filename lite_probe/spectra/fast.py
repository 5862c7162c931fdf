"""Whether products in fewer bits pay: their error and their time, measured on the task before anything is decided."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lite_probe.operators.base import SymmetricOperator
from lite_probe.operators.hessian import GaussNewtonOperator, GraphStore, HessianOperator
from lite_probe.operators.precision import FAST, Precision, has_units
from lite_probe.runtime.timing import timed
from lite_probe.seeds import derive_seed
from lite_probe.spectra.operator import OperatorRequest, expected_split, is_accurate
from lite_probe.task import Split, Task
from lite_probe.task.batches import num_entries, parts_of
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.random import random_vector
from lite_probe.vectors.reductions import norm

_PAYS = 1.2  # times faster, all in all: a sixth of the time pays for a density that is off by the products' error


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiplication:
    """What the products of a measurement are multiplied in.

    Attributes:
        precision: Of fast products; float32 where there are none.
        fast_pairs: Whether eigenpairs are found by them too, and not only density and trace.
        error: ‖Fz − Hz‖/‖Hz‖ of a random z on one batch.
        speedup: An exact product's time over a fast one's.
        emulated: Whether the device has no units for it.
    """

    precision: Precision = "float32"
    fast_pairs: bool = False
    error: float = 0.0
    speedup: float = 1.0
    emulated: bool = False

    @property
    def is_fast(self) -> bool:
        """Whether there are fast products."""
        return self.precision != "float32"

    def is_polishing(self, request: OperatorRequest) -> bool:
        """Whether exact products are sure to polish the pairs."""
        return self.fast_pairs and not is_accurate(self.error, request)

    def cost(self, request: OperatorRequest) -> float:
        """Return the expected time of an operator's products, in exact products."""
        if not self.is_fast:
            return float(request.expected_products)
        exact, fast = expected_split(request, self.error, fast_pairs=self.fast_pairs)
        return exact + fast / self.speedup

    def count(self, request: OperatorRequest) -> int:
        """Return the expected products of an operator."""
        if not self.is_fast:
            return request.expected_products
        return sum(expected_split(request, self.error, fast_pairs=self.fast_pairs))

    def told(self) -> str:
        """Say it in a plan's line."""
        where = "emulated" if self.emulated else f"{self.speedup:.1f} times faster"
        return f"{'most' if self.fast_pairs else 'those of probes'} in {self.precision}: {self.error:.1g} off, {where}"


def pays_to_try(device: torch.device, dtype: str, method: str) -> bool:
    """Tell whether products in fewer bits may be faster at all: float32 ones by autograd, on a device with units."""
    return dtype == "float32" and method == "autograd" and any(has_units(one, device) for one in FAST)


def choose_multiplication(
    task: Task,
    layout: ParameterLayout,
    *,
    asked: str,
    operators: Sequence[OperatorRequest],
    kind: str,
    split: Split,
    count: int,
    graphs_kept: bool,
    room_for_pairs: bool,
) -> Multiplication:
    """Decide what products are multiplied in.

    Args:
        task: Whose largest part of a batch is multiplied.
        layout: All parameters.
        asked: A precision, or "auto": the one that takes least time, where that saves a sixth of it.
        operators: What is measured.
        kind: Of the operator; products by differences are float32's.
        split: Of the batches.
        count: Tokens or samples in them.
        graphs_kept: Whether any graph is kept; else its time is part of a product's.
        room_for_pairs: Whether memory holds the residual vectors of all pairs, which polishing takes.

    Returns:
        The choice.

    Cost: none where "auto" finds no units; else three products of one batch, and three more per precision.
    """
    device, dtype = layout.parameters[0].device, layout.parameters[0].dtype
    if asked == "float32" or kind == "finite-differences" or dtype != torch.float32:
        return Multiplication()
    tried = (
        [one for one in FAST if has_units(one, device)] if asked == "auto" else [one for one in FAST if one == asked]
    )
    if not tried:
        return Multiplication()
    largest = max((part for _, part in parts_of(task, split)), key=num_entries)
    alone = Task(model=task.model, predict=task.predict, criterion=task.criterion, evaluation=[largest])
    graphs = GraphStore(int(graphs_kept), layout.parameters)
    operator_class = GaussNewtonOperator if kind == "ggn" else HessianOperator
    vector = random_vector(layout.size, seed=derive_seed(0, "fewer bits"), dtype=dtype, device=device)
    column = vector.unsqueeze(1)
    exact = operator_class(alone, layout, count=count, graphs=graphs)
    image = exact.matmat(column)
    exact_seconds, scale = _seconds(exact, column), norm(image.squeeze(1))
    choices = []
    for precision in tried:
        fast = operator_class(alone, layout, count=count, graphs=graphs, precision=precision)
        apart = norm((fast.matmat(column) - image).squeeze(1))
        found = Multiplication(
            precision=precision,
            error=apart / scale if scale > 0.0 else 0.0,
            speedup=exact_seconds / max(_seconds(fast, column), 1e-9),
            emulated=not has_units(precision, device),
        )
        fits = room_for_pairs or all(is_accurate(found.error, one) for one in operators)
        choices += [found, *([replace(found, fast_pairs=True)] if fits else [])]
    graphs.clear()
    if asked != "auto":
        return choices[-1]
    best = min(choices, key=lambda one: sum(one.cost(operator) for operator in operators))
    saved = sum(one.expected_products for one in operators) / sum(best.cost(one) for one in operators)
    return best if saved >= _PAYS else Multiplication()


def _seconds(operator: SymmetricOperator, column: torch.Tensor) -> float:
    """Return the shorter time of two, of a product that was made before."""
    return min(timed(operator.device, lambda: operator.matmat(column)) for _ in range(2))
