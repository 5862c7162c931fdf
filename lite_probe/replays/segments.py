"""The batches of a replay: split once from the task's training batches, and the same for every optimizer.

One shuffle by the user's seed deals the batches to warm on, those of the learning-rate sweep, and a segment per seed.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lite_probe.errors import InputError
from lite_probe.results.provenance import Note
from lite_probe.seeds import derive_seed
from lite_probe.spectra import batches_digest
from lite_probe.task import Batch, Split, Task
from lite_probe.task.batches import leaves_of


@dataclass(frozen=True, slots=True)
class Segment:
    """The batches of some steps, one each."""

    batches: Sequence[Batch]
    digest: str  # SHA-256 of their contents, in order


@dataclass(frozen=True, slots=True)
class BatchSplits:
    """How a task's training batches are split among warming, the sweep and the segments."""

    warm: Sequence[Batch]
    sweep: Segment
    segments: Sequence[Segment]  # one per seed
    notes: tuple[Note, ...]


def required_train_batches(*, steps: int, seeds: int, warm_batches: int) -> int:
    """Return how many training batches give every part batches of its own: K per seed, K to sweep on, W to warm on."""
    return warm_batches + steps * (seeds + 1)


def deal_segments(task: Task, *, steps: int, seeds: int, warm_batches: int, seed: int) -> BatchSplits:
    """Deal a task's training batches.

    Where they are fewer than `required_train_batches`, each part is a shuffle of its own of them all, and a note says
    that parts share batches.

    Raises:
        InputError: If there are fewer than one segment needs.
    """
    pool = list(task.train)
    if len(pool) < steps:
        raise InputError(
            f"expected at least {steps} training batches for a segment of {steps} steps, got {len(pool)}",
            "give the task more of them, or replay fewer steps",
        )
    info = task.info
    needed = steps * info.batch_size * ((info.seq_len or 0) + 1)
    if info.train_tokens is not None and info.train_tokens < needed:
        raise InputError(
            f"expected at least {needed:,} tokens to train on for a segment of {steps} steps of {info.batch_size} × "
            f"{(info.seq_len or 0) + 1} tokens, got {info.train_tokens:,} in {info.data_name} besides the evaluation "
            "split",
            "pass a longer text, or a smaller --steps, --batch-size or --seq-len",
        )
    if len(pool) >= required_train_batches(steps=steps, seeds=seeds, warm_batches=warm_batches):
        order = _shuffled(len(pool), seed, "deal")
        parts = [order[:warm_batches]]
        starts = range(warm_batches, warm_batches + steps * (seeds + 1), steps)
        parts += [order[start : start + steps] for start in starts]
        notes: tuple[Note, ...] = ()
    else:
        names = ["warm", "sweep", *(f"segment {index}" for index in range(seeds))]
        sizes = [min(warm_batches, len(pool)), *[steps] * (seeds + 1)]
        parts = [_shuffled(len(pool), seed, name)[:size] for name, size in zip(names, sizes, strict=True)]
        message = (
            f"The {len(pool)} training batches are too few for {seeds} segments of {steps} steps, a sweep and "
            f"{warm_batches} batches to warm on: they share batches, so that seeds differ less than they would."
        )
        notes = (Note(code="segments-overlap", message=message),)
    warm, *rest = ([pool[index] for index in part] for part in parts)
    segments = [Segment(batches, batches_digest(batches)) for batches in rest]
    return BatchSplits(warm=warm, sweep=segments[0], segments=segments[1:], notes=notes)


def measured_split(task: Task) -> Split:
    """Return the batches that a replay's loss is measured on: those held out, else those of the eigenvectors."""
    return "held-out" if len(task.heldout) else "evaluation"


def split_notes(task: Task) -> tuple[Note, ...]:
    """Say where progress is allotted on the batches that the eigenvectors were measured on."""
    if len(task.heldout):
        return ()
    message = (
        "Progress is allotted on the batches that the eigenvectors were measured on, which may flatter or blame them: "
        "there are no others to evaluate on. A longer text has some, and a Task by its heldout."
    )
    return (Note(code="same-batches", message=message),)


def _shuffled(count: int, seed: int, name: str) -> list[int]:
    order: list[int] = np.random.default_rng(derive_seed(seed, "replay", name)).permutation(count).tolist()
    return order


def require_disjoint(task: Task) -> None:
    """Refuse a task that is evaluated on what it trains on, or whose held-out batches are those of the eigenvectors.

    Windows of a text come from two splits of it that share no token: a phrase that stands in both is the text's own.

    Raises:
        InputError: If a sample of an evaluation or held-out batch is, entry for entry, one of a training batch, or one
            held out is one of an evaluation batch; both are named.

    Cost: one hash of every sample.
    """
    if task.info.train_tokens is not None:
        return
    trained = {key: where for where, key in _keys(task.train)}
    evaluated = {key: where for where, key in _keys(task.evaluation)}
    for name, batches in (("evaluation", task.evaluation), ("held-out", task.heldout)):
        for where, key in _keys(batches):
            if key in trained:
                raise _shared(f"expected {name} samples that are not trained on", name, where, "training", trained[key])
            if name == "held-out" and key in evaluated:
                raise _shared(
                    "expected held-out samples that are no evaluation samples",
                    name,
                    where,
                    "evaluation",
                    evaluated[key],
                )


def _shared(expected: str, name: str, where: tuple[int, int], other: str, there: tuple[int, int]) -> InputError:
    return InputError(
        f"{expected}, got sample {where[1]} of {name} batch {where[0]}, which is sample {there[1]} of {other} batch "
        f"{there[0]}",
        f"take them out of the {other} batches",
    )


def _keys(batches: Sequence[Batch]) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Yield ((batch, sample), digest) of every sample."""
    for number, batch in enumerate(batches):
        leaves = leaves_of(batch)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
        rows = len(tensors[0]) if tensors and len({len(tensor) for tensor in tensors}) == 1 else None
        for row in range(rows or 1):
            digest = hashlib.sha256()
            for leaf in leaves:
                part = leaf[row] if rows is not None and isinstance(leaf, Tensor) and leaf.ndim else leaf
                digest.update(_content(part))
            yield (number, row), digest.digest()


def _content(part: Any) -> bytes:
    """Return what tells a part from any other: a tensor's entries, of anything else a digest of its content."""
    if isinstance(part, Tensor):
        return (
            f"{tuple(part.shape)}:{part.dtype}".encode()
            + part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return batches_digest([part]).encode()
