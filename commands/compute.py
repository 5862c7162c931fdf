"""Where a command computes. Imports torch; commands import this when they run, not when they are listed."""

import os
from typing import Any

import torch
from torch import Tensor

from lite_probe.errors import UsageError
from lite_probe.measurements.requests.tune import num_ranks
from lite_probe.task import Batch, Task
from lite_probe.task.batches import map_leaves


def choose_device(name: str) -> torch.device:
    """Return the device that `--device` asks for; under torchrun each rank has its own.

    Raises:
        UsageError: If CUDA is asked for and there is none, or fewer devices than ranks on this host.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("expected a CUDA device for --device cuda, got none", "use --device auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and num_ranks() > 1:
        own, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if own >= there:
            raise UsageError(
                f"expected a CUDA device for each rank, got {there} for local rank {own}",
                f"start torchrun with --nproc-per-node {there}, or --virtual-local-rank where each rank sees one of "
                "its own, or pass --device cpu",
            )
        torch.cuda.set_device(own)
        return torch.device(name, own)
    return torch.device(name)


def choose_threads(threads: int | None) -> None:
    """Let torch use so many CPU threads; None leaves its own choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def choose_dtype(precision: str) -> torch.dtype:
    """Return the element type of weights that `--precision` names: tf32 and bf16 are what float32 is multiplied in."""
    return torch.float64 if precision == "float64" else torch.float32


def move_task(task: Task, device: str, precision: str | None) -> None:
    """Move a user's task, model and batches, to where the options say; `auto` and None leave it as it is."""
    place = None if device == "auto" else choose_device(device)
    dtype = None if precision is None else choose_dtype(precision)
    if place is None and dtype is None:
        return
    task.model.to(device=place, dtype=dtype)
    move_batches(task, place, dtype)


def move_batches(task: Task, place: torch.device | None, dtype: torch.dtype | None) -> None:
    """Move a task's batches, and convert what floats in them; None leaves it as it is."""
    task.evaluation = [_moved(batch, place, dtype) for batch in task.evaluation]
    task.train = [_moved(batch, place, dtype) for batch in task.train]
    task.heldout = [_moved(batch, place, dtype) for batch in task.heldout]


def _moved(batch: Batch, device: torch.device | None, dtype: torch.dtype | None) -> Batch:
    """Return a batch of the same make with its tensors moved, and its floating ones converted."""

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

    return map_leaves(moved, batch)
