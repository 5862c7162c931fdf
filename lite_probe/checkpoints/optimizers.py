"""Recognising an optimizer by the names in its state dict; values are never touched."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from lite_probe.checkpoints.pickles import tensors_in
from lite_probe.results.checkpoint import OptimizerFound

OPTIMIZER_KEYS = ("optimizer", "optim", "optimizer_state_dict", "optimizer_states", "opt", "optimizers")

# (name, state entries that must be there, entries of the parameter group that must be there); first match wins.
_SIGNATURES: tuple[tuple[str, frozenset[str], frozenset[str]], ...] = (
    ("soap", frozenset({"GG"}), frozenset()),
    ("soap", frozenset(), frozenset({"precondition_frequency"})),
    ("shampoo", frozenset({"preconditioners"}), frozenset()),
    ("adafactor", frozenset({"exp_avg_sq_row"}), frozenset()),
    ("adafactor", frozenset({"row_var"}), frozenset()),
    ("muon", frozenset({"momentum_buffer"}), frozenset({"ns_steps"})),
    ("adamw", frozenset({"exp_avg", "exp_avg_sq"}), frozenset()),
    ("lion", frozenset({"exp_avg"}), frozenset()),
    ("sgd", frozenset({"momentum_buffer"}), frozenset({"dampening"})),
    ("muon", frozenset({"momentum_buffer"}), frozenset()),
)


def find_optimizer(saved: object) -> OptimizerFound | None:
    """Describe the optimizer states in what was saved.

    Args:
        saved: A dict that holds one or several optimizer state dicts under the usual keys, or is one.

    Returns:
        What was found, or None.
    """
    if not isinstance(saved, Mapping):
        return None
    candidates = [saved[key] for key in OPTIMIZER_KEYS if key in saved] or [saved]
    found = [state_dict for candidate in candidates for state_dict in _state_dicts(candidate)]
    return describe_optimizers(found) if found else None


def _state_dicts(candidate: object) -> Iterator[Mapping[Any, Any]]:
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


def describe_optimizers(state_dicts: list[Mapping[Any, Any]]) -> OptimizerFound:
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
        group = _group_names(state_dict)
        for state in state_dict["state"].values():
            if not isinstance(state, Mapping):
                continue
            keys = {str(key) for key in state}
            state_names |= keys
            tensors += list(tensors_in(state))  # SOAP keeps lists of them
            name = _recognise(frozenset(keys), group)
            if name not in names:
                names.append(name)
    return OptimizerFound(
        name="+".join(names) or "unknown",
        state_names=tuple(sorted(state_names)),
        num_tensors=len(tensors),
        num_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )


def _group_names(state_dict: Mapping[Any, Any]) -> frozenset[str]:
    groups = state_dict.get("param_groups")
    members = groups.values() if isinstance(groups, Mapping) else groups
    if not isinstance(members, list | tuple) and not isinstance(groups, Mapping):
        return frozenset()
    return frozenset(str(key) for group in members or () if isinstance(group, Mapping) for key in group)


def _recognise(state: frozenset[str], group: frozenset[str]) -> str:
    for name, needed_state, needed_group in _SIGNATURES:
        if needed_state <= state and needed_group <= group:
            return name
    return "unknown"
