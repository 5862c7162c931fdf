"""Finding optimizer states in what was saved, and recognising them by their names; values are never touched."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from lite_probe.checkpoints.pickles import tensors_in, verify_torch_file
from lite_probe.checkpoints.state_dicts import OPTIMIZER_KEYS, as_mapping
from lite_probe.results.checkpoint import OptimizerFound

SCHEDULER_KEYS = ("scheduler", "lr_scheduler", "lr_schedulers", "schedulers", "scheduler_state_dict")
RATE_KEYS = ("learning_rate", "lr", "max_lr")  # of a run's settings

StateDict = Mapping[Any, Any]  # "state" by parameter, and usually "param_groups"

# (name, state entries that must be there, entries of the parameter group that must be there); first match wins.
_SIGNATURES: tuple[tuple[str, frozenset[str], frozenset[str]], ...] = (
    ("muon-lite", frozenset(), frozenset({"muon_theta"})),
    ("soap", frozenset({"GG"}), frozenset()),
    ("soap", frozenset(), frozenset({"precondition_frequency"})),
    ("shampoo", frozenset({"preconditioners"}), frozenset()),
    ("adamw-8bit", frozenset({"state1", "state2"}), frozenset()),  # of bitsandbytes
    ("lion-8bit", frozenset({"state1"}), frozenset()),
    ("adafactor", frozenset({"exp_avg_sq_row"}), frozenset()),
    ("adafactor", frozenset({"row_var"}), frozenset()),
    ("muon", frozenset({"momentum_buffer"}), frozenset({"ns_steps"})),
    ("adamw", frozenset({"exp_avg", "exp_avg_sq"}), frozenset()),
    ("adamw", frozenset({"moment1", "moment2"}), frozenset()),
    ("lion", frozenset({"exp_avg"}), frozenset()),
    ("sgd", frozenset({"momentum_buffer"}), frozenset({"dampening"})),
    ("muon", frozenset({"momentum_buffer"}), frozenset()),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSchedule:
    """Learning rates that were saved beside the optimizers: those at which a schedule peaks."""

    rates: tuple[float, ...]  # one for each parameter group in order, or one for all
    source: str  # where they were found, in words


ScheduleReader = Callable[[], SavedSchedule | None]


def no_schedule() -> SavedSchedule | None:
    """Return nothing: a checkpoint without schedule."""
    return None


def find_schedule(saved: object) -> SavedSchedule | None:
    """Find a schedule's learning rates in what was saved.

    Args:
        saved: The state dict of a scheduler of torch, or a dict that holds some, or a run's settings, under the usual
            keys.

    Returns:
        The `base_lrs` of a scheduler, else the learning rate of the settings under "config"; None without either.
    """
    if not isinstance(saved, Mapping):
        return None
    for candidate in (saved, *(saved[key] for key in SCHEDULER_KEYS if key in saved)):
        members = candidate if isinstance(candidate, list | tuple) else [candidate]
        rates = [rate for member in members if isinstance(member, Mapping) for rate in _rates(member.get("base_lrs"))]
        if rates:
            return SavedSchedule(rates=tuple(rates), source="base_lrs of its scheduler")
    settings = as_mapping(saved.get("config")) or {}
    for key in RATE_KEYS:
        rates = _rates([settings.get(key)])
        if rates:
            return SavedSchedule(rates=tuple(rates), source=f"{key} of its config")
    return None


def _rates(values: object) -> list[float]:
    """Return learning rates; none where one of them is no positive number."""
    numbers = [value.item() if _is_one_number(value) else value for value in values] if _is_list(values) else []
    positive = [value for value in numbers if isinstance(value, int | float) and not isinstance(value, bool)]
    rates = [float(value) for value in positive if 0.0 < value < math.inf]
    return rates if len(rates) == len(numbers) else []


def _is_list(values: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(values, list | tuple)


def _is_one_number(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta and value.layout == torch.strided


class StateReader(Protocol):
    """Reads the optimizer state dicts of one checkpoint."""

    def __call__(self, *, values: bool) -> Sequence[StateDict]:
        """Return them; without `values` tensors may lie on the meta device, and objects be missing."""


def no_states(*, values: bool) -> Sequence[StateDict]:
    """Return nothing: a checkpoint without optimizer state."""
    return ()


def states_of(path: Path, *places: object) -> StateReader:
    """Return a reader of the states in what a file held; its checksums are checked where values are asked for.

    Args:
        path: The file.
        places: Dicts that may hold them, the first that does deciding.
    """
    found: Sequence[StateDict] = next((states for states in map(find_state_dicts, places) if states), ())

    def read_states(*, values: bool) -> Sequence[StateDict]:
        if values and found:
            verify_torch_file(path)
        return found

    return read_states


def find_state_dicts(saved: object) -> list[StateDict]:
    """Return the optimizer state dicts in what was saved, in their order.

    Args:
        saved: A dict that holds one or several optimizer state dicts under the usual keys, or is one.
    """
    if not isinstance(saved, Mapping):
        return []
    candidates = [saved[key] for key in OPTIMIZER_KEYS if key in saved] or [saved]
    return [state_dict for candidate in candidates for state_dict in _state_dicts(candidate)]


def _state_dicts(candidate: object) -> Iterator[StateDict]:
    """Yield the state dicts in a state dict, a list of them or a dict of them."""
    if isinstance(candidate, Mapping) and isinstance(candidate.get("state"), Mapping):
        yield candidate
    elif isinstance(candidate, list | tuple):
        for member in candidate:
            yield from _state_dicts(member) if isinstance(member, Mapping) else ()
    elif isinstance(candidate, Mapping):
        for member in candidate.values():
            if isinstance(member, Mapping) and isinstance(member.get("state"), Mapping):
                yield member


def describe_optimizers(state_dicts: Sequence[StateDict]) -> OptimizerFound:
    """Describe optimizer state dicts by their names and sizes.

    Args:
        state_dicts: Each with `state` and, usually, `param_groups`; tensors may be on the meta device.

    Returns:
        Their classes, guessed, joined with "+", and their sizes together.
    """
    names: list[str] = []
    state_names: set[str] = set()
    tensors: list[Tensor] = []
    for state_dict in state_dicts:
        groups = _groups(state_dict)
        group_names = frozenset(str(key) for group in groups for key in group)
        own = next((name for name in map(own_optimizer, groups) if name), None)
        for state in state_dict["state"].values():
            if not isinstance(state, Mapping):
                continue
            keys = {str(key) for key in state}
            state_names |= keys
            tensors += list(tensors_in(state))  # SOAP keeps lists of them
            name = own or recognise(frozenset(keys), group_names)
            if name not in names:
                names.append(name)
    return OptimizerFound(
        name="+".join(names) or "unknown",
        state_names=tuple(sorted(state_names)),
        num_tensors=len(tensors),
        num_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )


def own_optimizer(group: Mapping[Any, Any]) -> str | None:
    """Return the name of the lite-probe optimizer that saved a parameter group, None for anybody else's."""
    name = group.get("optimizer")
    if not isinstance(name, str) or not {"param_names", "step"} <= set(group):
        return None
    return name if all(part.isalnum() for part in name.split("-")) else None


def _groups(state_dict: StateDict) -> list[Mapping[Any, Any]]:
    groups = state_dict.get("param_groups")
    members = groups.values() if isinstance(groups, Mapping) else groups
    if not isinstance(members, list | tuple) and not isinstance(groups, Mapping):
        return []
    return [group for group in members or () if isinstance(group, Mapping)]


def recognise(state: frozenset[str], group: frozenset[str]) -> str:
    """Name the optimizer that keeps these entries for a parameter, and has these in its groups; else "unknown"."""
    for name, needed_state, needed_group in _SIGNATURES:
        if needed_state <= state and needed_group <= group:
            return name
    return "unknown"
