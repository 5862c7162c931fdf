"""Fixed batches: drawn once from a seed, digested, the same whatever the device.

The last share of the tokens is the evaluation split, the rest the training split. Windows lie within one
split, and evaluation windows share no token, with one another or with those held out.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lite_probe.data.stream import TokenStream
from lite_probe.errors import InputError, UsageError
from lite_probe.results.provenance import Note
from lite_probe.seeds import derive_seed

EVALUATION_SHARE = 0.1

# Ids are checked against the vocabulary up to here, and in every window drawn from beyond.
_CHECKED_TOKENS = 1 << 24
_CHECK_STEP = 1 << 20
# Ids of all batches, held as int64: 4 GiB, beside one copy while they are made.
MOST_IDS = 1 << 29


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """The batches of a task, and where in the stream they came from."""

    seq_len: int  # tokens a model sees; a window holds one more, the last target
    batch_size: int
    eval_batches: int
    train_batches: int
    seed: int
    evaluation: Sequence[NDArray[np.int64]]  # eval_batches × (batch_size, seq_len + 1)
    train: Sequence[NDArray[np.int64]]  # train_batches × (batch_size, seq_len + 1)
    evaluation_starts: NDArray[np.int64]  # (eval_batches · batch_size,) first token of each window
    train_starts: NDArray[np.int64]  # (train_batches · batch_size,)
    heldout: Sequence[NDArray[np.int64]]  # eval_batches × (batch_size, seq_len + 1), or none
    heldout_starts: NDArray[np.int64]  # (eval_batches · batch_size,), or none
    split: int  # first position of the evaluation split
    num_tokens: int  # length of the stream

    def __post_init__(self) -> None:
        """Freeze the arrays."""
        starts = (self.evaluation_starts, self.train_starts, self.heldout_starts)
        for array in (*self.evaluation, *self.train, *self.heldout, *starts):
            array.setflags(write=False)

    @property
    def digest(self) -> str:
        """SHA-256 of all ids: evaluation, training, held out."""
        return _digest([*self.evaluation, *self.train, *self.heldout])


def draw_batches(
    tokens: TokenStream,
    *,
    seq_len: int,
    batch_size: int,
    eval_batches: int,
    train_batches: int,
    seed: int,
    vocab_size: int,
    on_note: Callable[[Note], None] | None = None,
) -> BatchPlan:
    """Draw the batches of a task.

    Evaluation windows start at s_i = u_(i) + i(seq_len + 1) with u_(i) sorted and uniform on what the split
    has to spare, so that they are disjoint; they are dealt to batches at random. Training windows are uniform
    and independent. Neither depends on the other's number, and the first training batches are the same
    whatever their number.

    Where there is something to train on, as many windows again are held out: in the gaps that evaluation windows leave
    in their split, so that they share no token with them. Where the gaps have no room for all, none is.

    Args:
        tokens: The stream. A validation file of its own is the evaluation split; else the last tenth is, or
            as much more as the evaluation windows need, with a note.
        seq_len: Tokens per window that a model sees, ≥ 1.
        batch_size: Windows per batch, ≥ 1.
        eval_batches: Evaluation batches, ≥ 1.
        train_batches: Training batches, ≥ 0.
        seed: The user's seed.
        vocab_size: Every id must be below.
        on_note: Told if evaluation took more than its share.

    Returns:
        The plan; its arrays are read-only.

    Raises:
        UsageError: If a count is out of range, or the batches would not fit in memory.
        InputError: If the stream is too short or an id is outside the vocabulary.

    Cost: one pass over the first 16M tokens, and over the windows drawn from beyond.
    """
    _check_counts(seq_len=seq_len, batch_size=batch_size, eval_batches=eval_batches)
    if train_batches < 0:
        raise UsageError(f"expected train_batches ≥ 0, got {train_batches}")
    window = seq_len + 1
    num_windows = eval_batches * batch_size
    if (asked := (num_windows + train_batches * batch_size) * window) > MOST_IDS:
        raise UsageError(
            f"expected at most {MOST_IDS:,} tokens in all batches, which are held in memory, got {asked:,}: "
            f"{eval_batches + train_batches:,} batches of {batch_size:,} × {window:,}",
            "ask for fewer --steps, --seeds, --warm-batches or --batches, or a smaller --batch-size or --seq-len",
        )
    split = _split(tokens, num_windows, window, train_batches, on_note)
    evaluation_starts = _disjoint_starts(split, len(tokens), num_windows, window, seed)
    train_starts = _train_starts(split, train_batches * batch_size, window, seed)
    fits = asked + num_windows * window <= MOST_IDS
    heldout_starts = _heldout_starts(
        evaluation_starts, split, len(tokens), num_windows if train_batches and fits else 0, window, seed
    )

    _check_ids(tokens, 0, min(len(tokens), _CHECKED_TOKENS), vocab_size)
    for start in sorted({*evaluation_starts.tolist(), *train_starts.tolist(), *heldout_starts.tolist()}):
        check_beyond(tokens, start, start + window, vocab_size)

    def read(starts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        rows = [tokens.read(int(start), int(start) + window) for start in starts]
        return [np.stack(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]

    return BatchPlan(
        seq_len=seq_len,
        batch_size=batch_size,
        eval_batches=eval_batches,
        train_batches=train_batches,
        seed=seed,
        evaluation=read(evaluation_starts),
        train=read(train_starts),
        evaluation_starts=evaluation_starts,
        train_starts=train_starts,
        heldout=read(heldout_starts),
        heldout_starts=heldout_starts,
        split=split,
        num_tokens=len(tokens),
    )


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"expected {name} ≥ 1, got {count}")


def _split(
    tokens: TokenStream,
    num_windows: int,
    window: int,
    train_batches: int,
    on_note: Callable[[Note], None] | None,
) -> int:
    """Place the split by the evaluation windows alone: adding training batches moves none of them."""
    total, needed = len(tokens), num_windows * window
    hint = "pass a longer text, or a smaller --seq-len, --batch-size or --batches"
    own = tokens.evaluation_start
    available = total if own is None else total - own
    if needed > available:
        raise InputError(
            f"expected at least {needed:,} tokens to evaluate on ({num_windows} windows of {window}), "
            f"got {available:,} in {tokens.name}",
            hint,
        )
    share = math.ceil(EVALUATION_SHARE * total)
    split = own if own is not None else total - max(share, needed)
    if train_batches and split < window:
        raise InputError(
            f"expected at least {window:,} tokens to train on besides the evaluation split, "
            f"got {split:,} in {tokens.name}",
            hint,
        )
    if own is None and needed > share and on_note:
        message = (
            f"Evaluation takes the last {needed / total:.0%} of {tokens.name}: its {num_windows} windows of "
            f"{window} tokens do not fit in the last {EVALUATION_SHARE:.0%}."
        )
        on_note(Note(code="evaluation-split-grown", message=message))
    return split


def _disjoint_starts(split: int, total: int, count: int, window: int, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(derive_seed(seed, "batches", "evaluation"))
    spare = total - split - count * window
    starts = np.sort(rng.integers(0, spare, size=count, endpoint=True)) + window * np.arange(count)
    return rng.permutation(split + starts).astype(np.int64)


def _heldout_starts(
    taken: NDArray[np.int64], split: int, total: int, count: int, window: int, seed: int
) -> NDArray[np.int64]:
    """Place windows in the gaps between those that are taken, as many as asked for; none where they have no room."""
    gap_starts = np.concatenate([[split], np.sort(taken) + window])
    gap_sizes = np.concatenate([np.sort(taken), [total]]) - gap_starts
    if not count or int((gap_sizes // window).sum()) < count:
        return np.zeros(0, dtype=np.int64)
    rng = np.random.default_rng(derive_seed(seed, "batches", "heldout"))
    return place_windows(gap_starts, gap_sizes, count, window, rng)


def place_windows(
    gap_starts: NDArray[np.int64], gap_sizes: NDArray[np.int64], count: int, window: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Place windows in gaps, none over another: a slot each, at random, then what a gap has to spare.

    Args:
        gap_starts: (g,) positions.
        gap_sizes: (g,) with room for `count` windows, at Σ ⌊size / window⌋.
        count: Of windows, ≥ 1.
        window: Tokens of each.
        rng: Draws.

    Returns:
        (count,) first positions, in random order.
    """
    slots = np.cumsum(gap_sizes // window)
    drawn = np.searchsorted(slots, rng.choice(int(slots[-1]), size=count, replace=False), side="right")
    chosen, counts = np.unique(drawn, return_counts=True)
    starts = [
        gap_starts[gap]
        + np.sort(rng.integers(0, gap_sizes[gap] - held * window, size=held, endpoint=True))
        + window * np.arange(held)
        for gap, held in zip(chosen, counts, strict=True)
    ]
    return rng.permutation(np.concatenate(starts)).astype(np.int64)


def _train_starts(split: int, count: int, window: int, seed: int) -> NDArray[np.int64]:
    if not count:
        return np.zeros(0, dtype=np.int64)
    rng = np.random.default_rng(derive_seed(seed, "batches", "train"))
    return rng.integers(0, split - window, size=count, endpoint=True, dtype=np.int64)


def check_beyond(tokens: TokenStream, start: int, stop: int, vocab_size: int) -> None:
    """Check the ids of a range that the pass over the first tokens has not seen.

    Raises:
        InputError: If one is outside the vocabulary.
    """
    if stop > _CHECKED_TOKENS:
        _check_ids(tokens, start, stop, vocab_size)


def _check_ids(tokens: TokenStream, start: int, stop: int, vocab_size: int) -> None:
    for begin in range(start, stop, _CHECK_STEP):
        ids = tokens.read(begin, min(begin + _CHECK_STEP, stop))
        wrong = np.flatnonzero((ids < 0) | (ids >= vocab_size))
        if len(wrong):
            name, offset = tokens.locate(begin + int(wrong[0]))
            raise InputError(
                f"expected tokens below {vocab_size:,} (the model's vocabulary), "
                f"got {ids[wrong[0]]:,} at offset {offset:,} of {name}",
                "pass --tokenizer, or a .bin made for this model",
            )


def _digest(batches: Sequence[NDArray[np.int64]]) -> str:
    sha = hashlib.sha256()
    for batch in batches:
        sha.update(repr(batch.shape).encode())
        sha.update(np.ascontiguousarray(batch, dtype="<i8").tobytes())
    return sha.hexdigest()
