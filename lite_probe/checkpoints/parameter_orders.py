"""Which parameter each entry of a saved optimizer state belongs to.

A state dict counts parameters as they were given to the optimizer, group after group, and seldom names them. Where it
does not, the order is inferred: training scripts give a model's parameters whole or divided in a few usual ways, and
an order is believed only if every shape fits. Of several that fit, the one whose parts end where the saved groups end
is taken; where that leaves a choice, no order is believed about the parameters it makes a difference for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, permutations
from typing import Any

from torch import Tensor

from lite_probe.checkpoints.optimizers import StateDict
from lite_probe.checkpoints.state_dicts import bare_name, model_prefix
from lite_probe.errors import InputError, shown

Shape = tuple[int, ...]

ASSUMED_ORDER = "assumed_order"  # key of a state dict whose names a reader inferred: the order, for people

# Entries with one number per parameter, under the names of torch, Moonlight and LITE.
ELEMENTWISE = ("exp_avg", "exp_avg_sq", "momentum_buffer", "moment1", "moment2", "momentum")


@dataclass(frozen=True, slots=True)
class SavedEntry:
    """What an optimizer saved about one parameter."""

    group: Mapping[Any, Any]  # hyperparameters of its group
    values: Mapping[Any, Any]  # by name; empty where it never stepped
    name: str | None  # of the parameter, as saved; None where only the position tells
    part: int  # how many groups come before its own

    @property
    def shape(self) -> Shape | None:
        """The parameter's shape, None where nothing tells."""
        tensors = (self.values.get(key) for key in ELEMENTWISE)
        return next((tuple(tensor.shape) for tensor in tensors if isinstance(tensor, Tensor)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The parameters that saved entries belong to."""

    names: tuple[str | None, ...]  # of each entry's parameter
    order: str = ""  # that was assumed; empty where names were saved
    others: tuple[str, ...] = ()  # orders that give other parameters and fit shapes and groups as well
    disputed: frozenset[str] = frozenset()  # parameters for which orders as good as the assumed one differ from it
    problem: str = ""  # why no entry has a parameter


def saved_entries(state_dicts: Sequence[StateDict]) -> list[SavedEntry]:
    """Return the entries of optimizer state dicts in their order, one per parameter.

    Raises:
        InputError: If they are not built as `torch.optim.Optimizer.state_dict` builds them.
    """
    if not isinstance(state_dicts, list | tuple):
        raise _malformed("a list of state dicts", state_dicts)
    entries: list[SavedEntry] = []
    parts = 0
    for state_dict in state_dicts:
        if not isinstance(state_dict, Mapping):
            raise _malformed("state dicts", state_dict)
        state, groups = state_dict.get("state"), state_dict.get("param_groups")
        if not isinstance(state, Mapping):
            raise _malformed("a dict as state", state)
        if not isinstance(groups, list | tuple):
            raise _malformed("a list as param_groups", groups)
        for group in groups:
            entries += _group_entries(group, state, parts)
            parts += 1
    return entries


def _group_entries(group: object, state: Mapping[Any, Any], part: int) -> Iterator[SavedEntry]:
    if not isinstance(group, Mapping) or not isinstance(group.get("params"), list | tuple):
        raise _malformed("parameter groups with a list of params", group)
    indices, names = group["params"], group.get("param_names")
    if names is not None and (not isinstance(names, list | tuple) or len(names) != len(indices)):
        raise _malformed(f"{len(indices):,} param_names", names)
    for position, index in enumerate(indices):
        if isinstance(index, bool) or not isinstance(index, int | str):
            raise _malformed("numbers or names as params", index)
        values = state.get(index)
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise _malformed("dicts as state of a parameter", values)
        name = index if names is None else names[position]
        if not isinstance(name, str):
            name = values.get("name")  # LITE's published code keeps it there
        yield SavedEntry(group, values, name if isinstance(name, str) and name else None, part)


def _malformed(expected: str, got: object) -> InputError:
    return InputError(
        f"expected {expected} as optimizer state, got {type(got).__name__} {shown(got)}",
        "pass the state dicts that torch.optim.Optimizer.state_dict() returned, in a list",
    )


def assign_entries(entries: Sequence[SavedEntry], shapes: Mapping[str, Shape], blocks: Mapping[str, str]) -> Assignment:
    """Find the parameter of each entry, by saved names if there are any, else by order and shape.

    Args:
        entries: From `saved_entries`.
        shapes: Name → shape of the model's trainable parameters, in the model's order.
        blocks: Name → block of each of them.

    Returns:
        The names; entries that belong to none of the parameters have None.

    Raises:
        InputError: If two entries name the same parameter.
    """
    if any(entry.name is not None for entry in entries):
        return _by_name(entries, shapes)
    if all(entry.shape is None for entry in entries):
        return _nothing(entries, "the saved state has no entries of a known optimizer" if entries else "none was saved")
    return _by_order(entries, shapes, blocks)


def _nothing(entries: Sequence[SavedEntry], problem: str) -> Assignment:
    return Assignment(names=(None,) * len(entries), problem=problem)


def _by_name(entries: Sequence[SavedEntry], shapes: Mapping[str, Shape]) -> Assignment:
    # LITE's published code saves names in lower case.
    own = {**{name.lower(): name for name in shapes}, **{name: name for name in shapes}}
    bare = [None if entry.name is None else bare_name(entry.name) for entry in entries]
    prefix = model_prefix((name for name in bare if name is not None), own)
    names: list[str | None] = []
    taken: set[str] = set()
    for saved in bare:
        inner = None if saved is None or not saved.startswith(prefix) else saved.removeprefix(prefix)
        name = None if inner is None else own.get(inner)
        if name in taken:
            raise InputError(
                f"expected one saved optimizer state per parameter, got two for {name}",
                "pass the states of one run only",
            )
        taken |= {name} if name is not None else set()
        names.append(name)
    if not taken:
        example = next(entry.name for entry in entries if entry.name is not None)
        return _nothing(entries, f"the saved names, such as {example}, are not this model's"[:200])
    return Assignment(names=tuple(names))


# -- orders -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    shape: Shape
    block: str

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) >= 2

    @property
    def is_hidden(self) -> bool:
        return self.is_matrix and self.block not in ("emb", "out")


def _is_bias(p: _Parameter) -> bool:
    return "bias" in p.name


_CLASSES: Mapping[str, Callable[[_Parameter], bool]] = {
    "all parameters": lambda p: True,
    "matrices": lambda p: p.is_matrix,
    "vectors": lambda p: not p.is_matrix,
    "decayed parameters": lambda p: not _is_bias(p) and p.block != "norm",
    "norms and biases": lambda p: _is_bias(p) or p.block == "norm",
    "all but biases": lambda p: not _is_bias(p),
    "biases": _is_bias,
    "hidden matrices": lambda p: p.is_hidden,
    "all but hidden matrices": lambda p: not p.is_hidden,
    "embeddings and head": lambda p: p.is_matrix and not p.is_hidden,
    "embeddings": lambda p: p.is_matrix and p.block == "emb",
    "head": lambda p: p.is_matrix and p.block == "out",
    "matrices but embeddings": lambda p: p.is_matrix and p.block != "emb",
    "embeddings and vectors": lambda p: not p.is_matrix or p.block == "emb",
}
# How training scripts divide a model's parameters, in any order of the parts; the first of equally good ones gives its
# name. The last ones are single optimizers of several, the others' states being elsewhere.
_DIVISIONS = (
    ("all parameters",),
    ("matrices", "vectors"),  # nanoGPT
    ("decayed parameters", "norms and biases"),  # Hugging Face's Trainer
    ("all but biases", "biases"),  # its older versions, which did not know every norm
    ("hidden matrices", "all but hidden matrices"),  # Muon, Moonlight
    ("matrices but embeddings", "embeddings and vectors"),  # minGPT
    ("hidden matrices", "embeddings and head", "vectors"),
    ("hidden matrices", "embeddings", "head", "vectors"),  # K. Jordan's example
    ("hidden matrices",),
    ("all but hidden matrices",),
)


def _by_size(p: _Parameter) -> Shape:
    return tuple(-length for length in p.shape)


def _as_given(parameters: list[_Parameter], label: str) -> list[_Parameter]:
    return parameters


def _hidden_by_size(parameters: list[_Parameter], label: str) -> list[_Parameter]:
    return sorted(parameters, key=_by_size) if label == "hidden matrices" else parameters


def _all_by_name(parameters: list[_Parameter], label: str) -> list[_Parameter]:
    return sorted(parameters, key=lambda p: p.name)


# How a part is sorted, the likeliest first: K. Jordan's Muon sorts by size, minGPT by name.
_SORTED: Mapping[str, Callable[[list[_Parameter], str], list[_Parameter]]] = {
    "in the model's order": _as_given,
    "the hidden matrices by falling size": _hidden_by_size,
    "each by name": _all_by_name,
}


@dataclass(frozen=True, slots=True)
class _Order:
    """One way in which parameters may have been given to an optimizer."""

    label: str
    names: tuple[str, ...]
    ends: frozenset[int]  # where its parts end, the last one left out
    unusual: int  # 0 for the model's own order within the parts

    def fits(self, entries: Sequence[SavedEntry], shapes: Mapping[str, Shape]) -> bool:
        return len(self.names) == len(entries) and all(
            entry.shape in (None, shapes[name]) for name, entry in zip(self.names, entries, strict=True)
        )


def _orders(parameters: Sequence[_Parameter]) -> Iterator[_Order]:
    for unusual, (manner, arrange) in enumerate(_SORTED.items()):
        for division in _DIVISIONS:
            parts = {label: [p for p in parameters if _CLASSES[label](p)] for label in division}
            present = [label for label in division if parts[label]]
            for labels in permutations(present):
                arranged = [arrange(parts[label], label) for label in labels]
                names = tuple(p.name for part in arranged for p in part)
                ends = frozenset(accumulate(len(part) for part in arranged)) - {len(names)}
                yield _Order(f"{', then '.join(labels)}, {manner}", names, ends, unusual)


def _by_order(entries: Sequence[SavedEntry], shapes: Mapping[str, Shape], blocks: Mapping[str, str]) -> Assignment:
    parameters = [_Parameter(name, shape, blocks[name]) for name, shape in shapes.items()]
    fitting: dict[tuple[str, ...], _Order] = {}
    ends = _saved_ends(entries)

    def doubt(order: _Order) -> tuple[int, int]:
        """What the saved groups say against an order, and between equals what custom says."""
        return len(order.ends ^ ends), order.unusual

    for order in _orders(parameters):
        if order.fits(entries, shapes):
            known = fitting.get(order.names)
            if known is None or doubt(order) < doubt(known):
                fitting[order.names] = order
    if not fitting:
        return _nothing(
            entries,
            f"no known order of the model's {len(shapes):,} parameters has the shapes of the {len(entries):,} saved "
            "entries, which have no names",
        )
    best, *others = sorted(fitting.values(), key=doubt)
    rivals = [order.names for order in others if doubt(order) == doubt(best)]
    agreed = [all(rival[i] == name for rival in rivals) for i, name in enumerate(best.names)]
    return Assignment(
        names=tuple(name if sure else None for name, sure in zip(best.names, agreed, strict=True)),
        order=best.label,
        others=tuple(order.label for order in others if doubt(order)[0] == doubt(best)[0]),
        disputed=frozenset(name for name, sure in zip(best.names, agreed, strict=True) if not sure),
    )


def _saved_ends(entries: Sequence[SavedEntry]) -> frozenset[int]:
    """Return where a group ends, or what is saved about a parameter changes: one optimizer may hold two kinds."""
    ends = set()
    previous: frozenset[str] | None = None
    for index, entry in enumerate(entries):
        if index and entry.part != entries[index - 1].part:
            ends.add(index)
        kind = frozenset(str(key) for key in entry.values)
        if kind and previous is not None and kind != previous:
            ends.add(index)
        previous = kind or previous
    return frozenset(ends)
