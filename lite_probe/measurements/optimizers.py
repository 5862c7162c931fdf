"""What measurements of optimizers share: what each takes from the checkpoint, and the rate that it is given."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from lite_probe.measurements.requests.optimizers import OptimizersRequest
from lite_probe.replays.entrants import entrants_of
from lite_probe.replays.recipes import Prepared, inherited, saved_learning_rate
from lite_probe.results.provenance import Note
from lite_probe.results.replay import Recipe, Sweep
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout


def inherited_by(task: Task, request: OptimizersRequest) -> Mapping[str, str]:
    """Return who goes on from the checkpoint's state, and a digest of what of it.

    Raises:
        InputError: If a state or learning rate is asked for that the checkpoint does not have.
    """
    return inherited(
        task,
        entrants_of(request.asked),
        request.rates,
        hyperparameters=request.hyperparameters,
        state=request.state,
        saved=request.saved,
    )


def settle_rate(
    request: OptimizersRequest, name: str, prepared: Prepared, sweep: Callable[[], Sweep]
) -> tuple[Recipe, Sweep | None, tuple[Note, ...]]:
    """Settle an optimizer's learning rate; return its recipe, the sweep where one was made, and what is to be noted.

    Args:
        request: What was asked.
        name: Of the optimizer.
        prepared: Its state.
        sweep: Sweeps the rate.
    """
    asked, notes = request.rates[name], prepared.notes
    found = sweep() if asked == "sweep" else None
    if found is not None:
        lr, source = found.chosen, "sweep"
    elif asked == "checkpoint":
        rate = saved_learning_rate(name, prepared.origin, request.saved)
        lr, source, notes = rate.lr, "checkpoint", (*notes, rate.note(name))
    else:
        lr, source = float(asked), "given"
    recipe = Recipe(
        optimizer=name,
        lr=lr,
        lr_source=source,
        hyperparameters=prepared.hyperparameters,
        state=prepared.origin,
        state_lines=prepared.lines,
    )
    return recipe, found, notes


@contextmanager
def put_back(layout: ParameterLayout) -> Iterator[Tensor]:
    """Yield a copy of the parameters, and set them to it at the end, bitwise."""
    start = layout.read()
    try:
        yield start
    finally:
        layout.write(start)
