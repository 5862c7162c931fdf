"""Batches of any make: what they hold, how large they are, and the same again with other tensors.

A batch is tensors in any nesting of what `torch.utils._pytree` opens (lists, tuples, named ones, and what has been
registered there), of mappings (transformers' `BatchEncoding` too), and of dataclasses. Whatever else is a leaf.
"""

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree

from lite_probe.task.task import Batch, Split, Task

_Rebuild = Callable[[list[Any]], Any]


def leaves_of(batch: Batch) -> list[Any]:
    """Return what a batch is made of, tensors and whatever is none, in its order; of mappings by the order of keys."""
    opened = _open(batch)
    return [batch] if opened is None else [leaf for part in opened[0] for leaf in leaves_of(part)]


def map_leaves(function: Callable[[Any], Any], batch: Batch) -> Batch:
    """Return a batch of the same make whose every leaf is what a function makes of it."""
    opened = _open(batch)
    if opened is None:
        return function(batch)
    parts, rebuild = opened
    return rebuild([map_leaves(function, part) for part in parts])


def num_entries(batch: Batch) -> int:
    """Return a measure of a batch's size: the entries of all tensors and arrays in it; anything else counts as one."""
    return sum(_size(leaf) for leaf in leaves_of(batch))


def num_samples(batch: Batch) -> int:
    """Return the first dimension that all leaves of a batch share; 0 where they do not, or one is no tensor."""
    counts = {len(leaf) if isinstance(leaf, Tensor) and leaf.ndim else 0 for leaf in leaves_of(batch)}
    return counts.pop() if len(counts) == 1 else 0


def in_rows(batch: Batch, rows: int | None) -> list[Batch]:
    """Return a batch in parts of so many rows, which are views of it; whole where its leaves share no rows."""
    samples = num_samples(batch)
    if rows is None or rows >= samples:
        return [batch]

    def part(start: int) -> Batch:
        return map_leaves(lambda leaf: leaf[start : start + rows], batch)

    return [part(start) for start in range(0, samples, rows)]


def parts_of(task: Task, split: Split) -> list[tuple[int, Batch]]:
    """Return what this rank computes at a time, in order: the number of a batch of its own, and a part of it."""
    return [(index, part) for index, batch in task.own_batches(split) for part in in_rows(batch, task.rows)]


def with_rows(task: Task, rows: int | None) -> Task:
    """Return the same task, computed in parts of so many rows."""
    same = copy.copy(task)
    same.rows = rows
    return same


def _size(leaf: Any) -> int:
    if isinstance(leaf, Tensor):
        return leaf.numel()
    size = getattr(leaf, "size", None)  # an array's
    return size if isinstance(size, int) else 1


def _open(value: Any) -> tuple[list[Any], _Rebuild] | None:
    """Return a holder's parts and how to make it again of others; None where it is a leaf."""
    if isinstance(value, Mapping):
        return _open_mapping(value)
    if is_dataclass(value) and not isinstance(value, type):
        return _open_dataclass(value)
    parts, spec = _pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
    if spec.is_leaf():
        return None
    return parts, lambda others: _pytree.tree_unflatten(others, spec)


def _open_mapping(value: Mapping[Any, Any]) -> tuple[list[Any], _Rebuild]:
    keys = sorted(value, key=str)

    def rebuild(others: list[Any]) -> Any:
        items = dict(zip(keys, others, strict=True))
        if not isinstance(value, MutableMapping):
            return items
        same = copy.copy(value)
        same.update(items)
        return same

    return [value[key] for key in keys], rebuild


def _open_dataclass(value: Any) -> tuple[list[Any], _Rebuild]:
    names = [field.name for field in fields(value)]

    def rebuild(others: list[Any]) -> Any:
        same = copy.copy(value)
        for name, other in zip(names, others, strict=True):
            object.__setattr__(same, name, other)  # frozen ones too
        return same

    return [getattr(value, name) for name in names], rebuild
