"""What each optimizer starts a replay with: its hyperparameters, its learning rate, its state at θ₀."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lite_probe.checkpoints.optimizers import ScheduleReader, StateDict, no_schedule
from lite_probe.errors import InputError, UsageError
from lite_probe.optim import (
    LiteOptimizer,
    Restored,
    hyperparameters_of,
    require_hyperparameters,
    restore_state,
    spec_of,
)
from lite_probe.optim.interface import Replayable, load_state, set_learning_rate
from lite_probe.optim.saved_rules import average_factor, real
from lite_probe.replays.entrants import Entrant
from lite_probe.replays.stored import OptimizerState
from lite_probe.replays.sweep import LOWEST
from lite_probe.results.provenance import Note
from lite_probe.runtime.fingerprint import batches_digest
from lite_probe.runtime.memory import return_freed_memory
from lite_probe.subspaces import set_gradients, warm
from lite_probe.task import Batch, Task
from lite_probe.vectors.layout import ParameterLayout
from lite_probe.vectors.reductions import norm

StateName = Literal["auto", "checkpoint", "warm", "cold"]
LearningRate = float | str  # a number, "sweep" or "checkpoint"

_WORDS = ("sweep", "checkpoint")
_TRIED_LR = 1e-3  # of a step that is taken back


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedOptimizer:
    """The optimizer states that a checkpoint brought along."""

    states: Sequence[StateDict]
    step: int | None  # completed updates, for states that do not count them
    read_schedule: ScheduleReader = no_schedule  # asked for the peak of a schedule that the states do not tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An optimizer made, with the state that every run of it starts from."""

    optimizer: Replayable
    state: OptimizerState
    origin: str  # "checkpoint", "warm" or "cold"
    hyperparameters: Mapping[str, object]  # those not at their defaults; where they differ by block, block → values
    lines: tuple[str, ...]  # what became of the state, in words
    notes: tuple[Note, ...]

    def rest(self) -> None:
        """Let go of what a run has made of the state; what runs start from stays. One that is not ours keeps both."""
        if isinstance(self.optimizer, LiteOptimizer):
            self.optimizer.drop_state()
            return_freed_memory()


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRate:
    """The learning rate that a checkpoint says its optimizer had."""

    lr: float
    source: str  # where it was found, in words; empty: it is where the optimizer stood
    stood_at: tuple[float, ...]  # the rates of its groups, ascending

    def note(self, name: str) -> Note:
        """Say which of the checkpoint's rates an optimizer takes."""
        stood = ", ".join(f"{rate:g}" for rate in self.stood_at)
        if self.source:
            message = f"{name} takes the checkpoint's learning rate at its peak, {self.lr:g} ({self.source})"
            message += f"; its optimizer stood at {stood}."
        else:
            message = f"{name} takes the learning rate {self.lr:g}, where the checkpoint's optimizer stood; "
            message += "no peak of a schedule was saved."
        return Note(code="learning-rate", message=message)


def learning_rates(optimizers: Sequence[str], lr: LearningRate | Mapping[str, LearningRate]) -> dict[str, LearningRate]:
    """Return what was said of each optimizer's learning rate; one that is not named is swept.

    Raises:
        UsageError: If a rate is no positive number and neither "sweep" nor "checkpoint", or is for an optimizer that is
            not replayed.
    """
    rates: dict[str, LearningRate] = dict.fromkeys(optimizers, "sweep")
    if isinstance(lr, Mapping):
        strangers = sorted(set(lr) - set(optimizers))
        if strangers:
            raise UsageError(
                f"expected learning rates for {', '.join(optimizers)}, got one for {', '.join(strangers)}",
                "name it among the optimizers, or leave its rate out",
            )
        rates |= lr
    else:
        rates = dict.fromkeys(optimizers, lr)
    for name, rate in rates.items():
        is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
        if not (0.0 < rate < float("inf") if is_number else rate in _WORDS):  # type: ignore[operator]
            raise UsageError(f"expected a positive learning rate, sweep or checkpoint for {name}, got {rate!r}")
    return rates


def require_settings(entrants: Mapping[str, Entrant], hyperparameters: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse hyperparameters that our optimizers do not have, before anything is computed; makers judge their own.

    Raises:
        UsageError: It lists the known; or what a value can be.
    """
    for name in (name for name, entrant in entrants.items() if entrant.is_ours):
        require_hyperparameters(name, hyperparameters.get(name, {}))
    strangers = sorted(set(hyperparameters) - set(entrants))
    if strangers:
        raise UsageError(f"expected hyperparameters of {', '.join(entrants)}, got some of {', '.join(strangers)}")


def inherited(
    task: Task,
    entrants: Mapping[str, Entrant],
    rates: Mapping[str, LearningRate],
    *,
    hyperparameters: Mapping[str, Mapping[str, Any]],
    state: str,
    saved: SavedOptimizer | None,
) -> dict[str, str]:
    """Find who goes on from the checkpoint's state; refuse what is asked of the checkpoint and is not there.

    To be called before anything is replayed: `prepare` sees an optimizer only once those before it have run.

    Args:
        task: Whose parameters are optimized.
        entrants: Who takes part.
        rates: Optimizer → what was said of its learning rate.
        hyperparameters: By optimizer.
        state: What was asked for.
        saved: What the checkpoint brought along.

    Returns:
        Optimizer → digest of the state and the learning rate that it takes over; who takes over nothing is left out.

    Raises:
        InputError: As `prepare` and `saved_learning_rate`.

    Cost: one copy of each state that is taken over, and a hash of it.
    """
    found = {}
    for name, rate in rates.items():
        optimizer, restored = _restored(task, entrants[name], hyperparameters.get(name, {}), state, saved)
        goes_on = _goes_on(restored, state)
        own = None
        if rate == "checkpoint":
            own = saved_learning_rate(name, "checkpoint" if goes_on else "warm", saved).lr
        if goes_on:
            found[name] = batches_digest([optimizer.state_dict(), own])
    return found


def prepare(
    task: Task,
    entrants: Mapping[str, Entrant],
    *,
    hyperparameters: Mapping[str, Mapping[str, Any]],
    state: str,
    warm_batches: Sequence[Batch],
    saved: SavedOptimizer | None,
    on_gradient: Callable[[], None] | None = None,
    drops_states: bool = False,
) -> dict[str, Prepared]:
    """Make optimizers and bring their states to θ₀.

    "checkpoint" takes over what was saved, hyperparameters included but for those given here; "warm" feeds some batches
    at fixed θ₀, since a cold SOAP basis or momentum would bias a short replay; "auto" is the first where all of the
    optimizer's state was saved, else the second. Those that are warmed see the same gradients, each computed once.

    Args:
        task: Whose parameters are optimized.
        entrants: By name.
        hyperparameters: By name.
        state: What is asked for.
        warm_batches: To warm on.
        saved: What the checkpoint brought along.
        on_gradient: Told of each.
        drops_states: Whether our optimizers give their state away, in place of a copy: it is loaded before a step.

    Raises:
        InputError: If "checkpoint" is asked for and nothing of the saved state is this optimizer's, or one that is not
            ours does not give all its state away.
        NumericsError: If a warm-up batch's loss or gradient is not finite.

    Cost: where one has to be warmed a gradient per batch; a second copy of every state that is not given away.
    """
    optimizers: dict[str, Replayable] = {}
    found: dict[str, Prepared] = {}
    lines: dict[str, tuple[str, ...]] = {}
    for name, entrant in entrants.items():
        own = hyperparameters.get(name, {})
        optimizer, restored = _restored(task, entrant, own, state, saved)
        if restored is not None and _goes_on(restored, state):
            found[name] = Prepared(
                optimizer=optimizer,
                state=_snapshot(optimizer, drops_states),
                origin="checkpoint",
                hyperparameters={**_uncommon(name, restored), **own},
                lines=restored.lines,
                notes=restored.notes,
            )
            continue
        is_partly = restored is not None and bool(restored.restored)
        lines[name] = ("the checkpoint's state is only in part this optimizer's, and was left alone",) * is_partly
        optimizers[name] = optimizer if restored is None else entrant.make(task, own)
    if state != "cold" and optimizers:
        members = list(optimizers.values())
        warm(task, members, warm_batches, on_batch=lambda index: on_gradient() if on_gradient else None)
    words = {"cold": "cold: all averages start at zero"}.get(
        state, f"warmed on {len(warm_batches)} batches at fixed parameters"
    )
    for name, optimizer in optimizers.items():
        own = hyperparameters.get(name, {})
        if not entrants[name].is_ours:
            _require_whole_state(task, entrants[name], own, optimizer, warm_batches[0])
        found[name] = Prepared(
            optimizer=optimizer,
            state=_snapshot(optimizer, drops_states),
            origin="cold" if state == "cold" else "warm",
            hyperparameters=dict(own),
            lines=(*lines[name], words),
            notes=(),
        )
    return {name: found[name] for name in entrants}


def _require_whole_state(
    task: Task, entrant: Entrant, hyperparameters: Mapping[str, Any], optimizer: Replayable, batch: Batch
) -> None:
    """Refuse an optimizer that does not move from its state, or moves otherwise from a copy of it.

    Every run of a replay starts from such a copy: what an optimizer keeps elsewhere would leak from run to run. Some
    take no state at learning rate 0: what they would step by is zero for ever, or no number.

    Raises:
        InputError: If it does not move; or if the steps differ, by a bit on a CPU, by more than rounding elsewhere.

    Cost: two gradients and two steps, a copy of the state.
    """
    layout = ParameterLayout(list(task.model.named_parameters()))
    start, state = layout.read(), _snapshot(optimizer)
    copied = entrant.make(task, hyperparameters)
    load_state(copied, state)
    ends = []
    for one in (optimizer, copied):
        layout.write(start)
        set_learning_rate(one, _TRIED_LR)
        set_gradients(task, layout.parameters, batch, "warm-up batch 0")
        one.step()
        ends.append(layout.read())
    layout.write(start)
    load_state(optimizer, state)
    moved, apart = norm(ends[0] - start), norm(ends[0] - ends[1])
    if not 0.0 < moved < math.inf:
        raise InputError(
            f"expected {entrant.what} to move the parameters after its state was warmed at learning rate 0, got a step "
            f"of length {moved:g}",
            "use --state cold",
        )
    if not apart <= (0.0 if task.device.type == "cpu" else 1e-3) * moved:
        raise InputError(
            f"expected state_dict() and load_state_dict() of {entrant.what} to carry all its state, got another step "
            "from a copy",
            "keep what steps depend on in self.state or param_groups: each run of a replay starts from a copy",
        )


def _restored(
    task: Task, entrant: Entrant, hyperparameters: Mapping[str, Any], state: str, saved: SavedOptimizer | None
) -> tuple[Replayable, Restored | None]:
    """Make an optimizer, with what it finds in the saved state where that is wanted; None where nothing was saved."""
    name = entrant.name
    optimizer, restored = entrant.make(task, hyperparameters), None
    if state == "checkpoint" and not entrant.is_ours:
        raise InputError(
            f"expected optimizers of lite_probe.optim to go on from the checkpoint's state, got {name}",
            "use --state warm, or auto",
        )
    if isinstance(optimizer, LiteOptimizer) and state in ("auto", "checkpoint") and saved is not None and saved.states:
        restored = restore_state(
            optimizer,
            saved.states,
            named_parameters=task.model.named_parameters(),
            step=saved.step,
            keep=tuple(hyperparameters),
        )
    if state == "checkpoint" and not (restored is not None and restored.restored):
        why = "; ".join(restored.lines) if restored is not None else "it brought no optimizer state"
        raise InputError(
            f"expected the state of {name} in the checkpoint, got none: {why}", "use --state warm, or auto"
        )
    return optimizer, restored


def _goes_on(restored: Restored | None, state: str) -> bool:
    """Whether the saved state is the optimizer's: some of it where it was asked for, else all of it."""
    if restored is None or not restored.restored:
        return False
    return state == "checkpoint" or not restored.fresh


def _uncommon(name: str, restored: Restored) -> dict[str, object]:
    """Return the hyperparameters that were taken over and are not the defaults."""
    found: dict[str, object] = {}
    for key, by_block in restored.hyperparameters.items():
        values = {block: own[0] if len(own) == 1 else list(own) for block, own in by_block.items()}
        first = next(iter(values.values()))
        if any(value != first for value in values.values()):
            found[key] = values
        elif first != hyperparameters_of(name)[key]:
            found[key] = first
    return found


def saved_learning_rate(name: str, origin: str, saved: SavedOptimizer | None) -> SavedRate:
    """Return the learning rate that the checkpoint's optimizer had: at the peak of its schedule, where that was saved.

    A schedule ends near zero, where nothing could be replayed. Its peak is `max_lr` or `initial_lr` of the parameter
    groups, which schedulers of torch leave there, else what the checkpoint holds of the schedule; the rate that the
    optimizer stood at is taken where it is higher, or nothing else is known.

    Args:
        name: Of the optimizer. The momentum of `sgd` is an average: the rate of torch's is (1−d)/(1−θ) times as large.
        origin: Of its state, "checkpoint" where it goes on from the saved one.
        saved: What the checkpoint brought along.

    Raises:
        InputError: If the saved optimizer is not this one, its groups do not agree on a rate, or it is below 2⁻²⁰, the
            lowest that a sweep tries: steps of RMS-aligned optimizers are then so short that no replay shows anything.
    """
    hint = f"give {name}'s rate as in --lr {name}=0.001, or use --lr sweep"
    if origin != "checkpoint" or saved is None:
        raise InputError(f"expected the checkpoint to hold the state of {name} and its learning rate, got none", hint)
    groups = [group for state in saved.states for group in _groups(state) if "lr" in group]
    owner = "a parameter group"
    stood = [real(group["lr"], "lr", owner) for group in groups]
    peaks, source = _peaks(groups, saved)
    chosen = [max(pair) for pair in zip(stood, peaks, strict=True)]
    averages = any("gradient descent" in geometry.kinds for geometry in spec_of(name).geometries)
    factors = [average_factor(group, owner) if averages and "dampening" in group else 1.0 for group in groups]
    rates = sorted({rate * factor for rate, factor in zip(chosen, factors, strict=True)})
    if len(rates) != 1:
        found = ", ".join(f"{rate:g}" for rate in rates) or "none"
        raise InputError(f"expected one positive learning rate in the checkpoint's optimizer, got {found}", hint)
    lowest = 2.0**LOWEST
    if rates[0] < lowest:
        raise InputError(
            f"expected a learning rate of at least {lowest:.2g} (the lowest that a sweep tries) in the checkpoint's "
            f"optimizer, got {rates[0]:g}, the end of a schedule whose peak was not saved",
            hint,
        )
    if set(factors) != {1.0}:
        source = f"{source or 'where it stood'}, times {factors[0]:g}, since ours averages gradients"
    return SavedRate(lr=rates[0], source=source, stood_at=tuple(sorted(set(stood))))


def _peaks(groups: Sequence[Mapping[Any, Any]], saved: SavedOptimizer) -> tuple[list[float], str]:
    """Return the rate at which each group's schedule peaks, 0 where that is not known, and where it was found."""
    for key in ("max_lr", "initial_lr"):
        if groups and all(key in group for group in groups):
            return [real(group[key], key, "a parameter group") for group in groups], f"{key} of its parameter groups"
    schedule = saved.read_schedule()
    if schedule is not None and len(schedule.rates) in (1, len(groups)):
        rates = list(schedule.rates) * (len(groups) if len(schedule.rates) == 1 else 1)
        return rates, schedule.source
    return [0.0] * len(groups), ""


def _groups(state: StateDict) -> list[Mapping[Any, Any]]:
    groups = state.get("param_groups") or ()
    members = groups.values() if isinstance(groups, Mapping) else groups
    return [group for group in members if isinstance(group, Mapping)]


def _snapshot(optimizer: Replayable, drops_state: bool = False) -> Mapping[str, Any]:
    """Return a copy of the state that later steps do not touch; or that of ours itself, which it then has no more."""
    if not drops_state or not isinstance(optimizer, LiteOptimizer):
        return copy.deepcopy(optimizer.state_dict())
    given = optimizer.state_dict()
    optimizer.drop_state()
    return {"state": given["state"], "param_groups": copy.deepcopy(given["param_groups"])}
