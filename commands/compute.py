"""Where a command computes. Imports torch; commands import this when they run, not when they are listed."""

from collections.abc import Mapping, MutableMapping
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from lite_probe.errors import UsageError
from lite_probe.task import Task


def choose_device(name: str) -> torch.device:
    """Return the device that `--device` asks for.

    Raises:
        UsageError: If CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("expected a CUDA device for --device cuda, got none", "use --device auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def choose_threads(threads: int | None) -> None:
    """Let torch use so many CPU threads; None leaves its own choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def choose_dtype(precision: str) -> torch.dtype:
    """Return the element type that `--precision` names."""
    return {"float32": torch.float32, "float64": torch.float64}[precision]


def move_task(task: Task, device: str, precision: str | None) -> None:
    """Move a user's task, model and batches, to where the options say; `auto` and None leave it as it is."""
    place = None if device == "auto" else choose_device(device)
    dtype = None if precision is None else choose_dtype(precision)
    if place is None and dtype is None:
        return
    task.model.to(device=place, dtype=dtype)
    task.evaluation = [_moved(batch, place, dtype) for batch in task.evaluation]
    task.train = [_moved(batch, place, dtype) for batch in task.train]


def _moved(batch: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    """Return a batch with its tensors moved, and its floating ones converted, in holders of the same types.

    Holders are mappings (transformers' `BatchEncoding` too), lists, tuples (named ones too) and dataclasses.
    """

    def moved(part: Any) -> Any:
        return _moved(part, device, dtype)

    if isinstance(batch, Tensor):
        return batch.to(device=device, dtype=dtype if batch.is_floating_point() else None)
    if isinstance(batch, MutableMapping):
        own = copy(batch)
        own.update({name: moved(part) for name, part in batch.items()})
        return own
    if isinstance(batch, Mapping):
        return {name: moved(part) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_make"):
        return batch._make(map(moved, batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map(moved, batch))
    if is_dataclass(batch) and not isinstance(batch, type):
        same: Any = copy(batch)
        for field in fields(batch):
            object.__setattr__(same, field.name, moved(getattr(batch, field.name)))  # frozen ones too
        return same
    return batch
