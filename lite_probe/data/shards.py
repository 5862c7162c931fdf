"""Shards of a stream for nodes: its files, or what shares a label, with batches of their own.

A shard is ranges of the stream. Windows of a node are placed in what evaluation leaves of its shards: by positions, so
that no token of one is in an evaluation or held-out window, in another node's, or twice in its own.
"""

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from lite_probe.data.batches import MOST_IDS, BatchPlan, check_beyond, place_windows
from lite_probe.data.stream import TokenStream
from lite_probe.errors import InputError, UsageError, shown, shown_name
from lite_probe.seeds import derive_seed

_LABEL = "label:"
_NAMES_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What one node may hold: a file, or the documents of one label, one behind another."""

    name: str  # out of a file: `shown_name` before anyone reads it
    ranges: Sequence[tuple[int, int]]  # of the stream, ascending, each with a token at least

    @property
    def size(self) -> int:
        """Number of its tokens."""
        return sum(stop - start for start, stop in self.ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """The batches of nodes."""

    batches: Sequence[Sequence[NDArray[np.int64]]]  # for each node, (batch_size, seq_len + 1) each
    shared: Sequence[int]  # nodes whose windows may lie over the task's training windows, 0-based


def label_of(by: str) -> str | None:
    """Return the field whose values tell shards apart; None where files do.

    Args:
        by: "files" or "label:FIELD".

    Raises:
        UsageError: If it is neither.
    """
    if by == "files":
        return None
    if by.startswith(_LABEL) and len(by) > len(_LABEL):
        return by.removeprefix(_LABEL)
    raise UsageError(
        f"expected --shards dealt, files or label:FIELD, got {shown(by)}",
        "label:lang makes a shard of every value of the field lang",
    )


def find_shards(tokens: TokenStream, by: str) -> list[Shard]:
    """Return the shards of a stream, by name; a validation file is none.

    Args:
        tokens: Opened with the label's field, where there is one.
        by: As for `label_of`.
    """
    limit = len(tokens) if tokens.evaluation_start is None else tokens.evaluation_start
    is_by_label = label_of(by) is not None
    found: list[tuple[str, tuple[int, int]]] = []
    begin = 0
    for part in tokens.parts:
        runs = part.runs if is_by_label else ((0, part.name),)
        ends = [*(start for start, _ in runs[1:]), len(part.ids)]
        found += [(name, (begin + start, begin + end)) for (start, name), end in zip(runs, ends, strict=False)]
        begin += len(part.ids)
    ranges: dict[str, list[tuple[int, int]]] = {}
    for name, (start, stop) in found:
        if start < stop <= limit:
            ranges.setdefault(name, []).append((start, stop))
    return [Shard(name=name, ranges=tuple(ranges[name])) for name in sorted(ranges)]


def deal_shards(shards: Sequence[Shard], nodes: int) -> list[list[Shard]]:
    """Deal shards to nodes so that these hold about as many tokens: the largest first, to the node with least.

    Args:
        shards: As many as nodes, or more.
        nodes: Their number.

    Returns:
        For each node its shards in their order, nodes by their first.
    """
    held: list[list[int]] = [[] for _ in range(nodes)]
    loads = [(0, node) for node in range(nodes)]
    for place in sorted(range(len(shards)), key=lambda place: -shards[place].size):
        load, node = loads[0]
        held[node].append(place)
        heapq.heapreplace(loads, (load + shards[place].size, node))
    return [[shards[place] for place in places] for places in sorted(sorted(places) for places in held)]


def draw_shards(
    tokens: TokenStream,
    dealt: Sequence[Sequence[Shard]],
    plan: BatchPlan,
    *,
    batches: int,
    vocab_size: int,
) -> ShardPlan:
    """Draw the batches of every node, of windows that share no token.

    They lie in what the task's windows leave of a shard: none over an evaluation or held-out window, and none over a
    training window where there is room beside these.

    Args:
        tokens: The stream.
        dealt: For each node its shards.
        plan: Of the task's own batches, of the same stream.
        batches: Of each node.
        vocab_size: Every id must be below.

    Raises:
        UsageError: If the batches would not fit in memory.
        InputError: If a node's shards are too short, or an id is outside the vocabulary.
    """
    window, count = plan.seq_len + 1, batches * plan.batch_size
    if (asked := len(dealt) * count * window) > MOST_IDS:
        raise UsageError(
            f"expected at most {MOST_IDS:,} tokens in all batches of nodes, which are held in memory, got {asked:,}: "
            f"{len(dealt):,} × {batches:,} batches of {plan.batch_size:,} × {window:,}",
            "lower --nodes or --node-batches, --batch-size or --seq-len",
        )
    judged = np.concatenate([plan.evaluation_starts, plan.heldout_starts])
    every = _taken(np.concatenate([judged, plan.train_starts]), window)
    least = _taken(judged, window)
    drawn, shared = [], []
    for node, shards in enumerate(dealt):
        rows = _Rows(shards, every)
        if rows.room(window) < count:
            shared.append(node)
            rows = _Rows(shards, least)
        if (room := rows.room(window)) < count:
            raise InputError(
                f"expected room for {count:,} windows of {window:,} tokens in the shard of node {node + 1} "
                f"({named(shards)}), {batches} batches of {plan.batch_size:,}, got room for {room:,}",
                "lower --node-batches, --batch-size or --seq-len, or --nodes, so that nodes hold more, or give it more "
                "text",
            )
        rng = np.random.default_rng(derive_seed(plan.seed, "shards", node))
        found = []
        for start in rows.place(count, window, rng):
            pieces = rows.ranges(int(start), int(start) + window)
            for begin, stop in pieces:
                check_beyond(tokens, begin, stop, vocab_size)
            found.append(np.concatenate([tokens.read(begin, stop) for begin, stop in pieces]))
        drawn.append([np.stack(found[i : i + plan.batch_size]) for i in range(0, count, plan.batch_size)])
    return ShardPlan(batches=drawn, shared=shared)


def named(shards: Sequence[Shard]) -> str:
    """Return the names of a few shards for people."""
    names = [shown_name(shard.name, 60) for shard in shards[:_NAMES_SHOWN]]
    return ", ".join(names) + (" …" if len(shards) > _NAMES_SHOWN else "")


class _Rows:
    """The tokens of some shards one behind another, and the gaps in them that windows may lie in.

    Args:
        shards: No gap reaches from one to the next.
        taken: (t, 2) ranges of the stream, ascending and disjoint, that no gap reaches into.
    """

    def __init__(self, shards: Sequence[Shard], taken: Sequence[tuple[int, int]]) -> None:
        self._ranges = [pair for shard in shards for pair in shard.ranges]
        self._firsts = [0, *accumulate(stop - start for start, stop in self._ranges)]
        stops = [stop for _, stop in taken]
        gaps: list[tuple[int, int]] = []  # first and last position + 1
        begin = row = 0
        for shard in shards:
            for start, stop in shard.ranges:
                for place in range(bisect_right(stops, start), len(taken)):
                    first, last = taken[place]
                    if first >= stop:
                        break
                    gaps.append((begin, row + max(first, start) - start))
                    begin = row + min(last, stop) - start
                row += stop - start
            gaps.append((begin, row))
            begin = row
        bounds = np.array(gaps, dtype=np.int64)
        self._gap_starts = bounds[:, 0]
        self._gap_sizes = bounds[:, 1] - bounds[:, 0]

    def room(self, window: int) -> int:
        """Return how many windows the gaps hold."""
        return int((self._gap_sizes // window).sum())

    def place(self, count: int, window: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the first positions of windows, in random order."""
        return place_windows(self._gap_starts, self._gap_sizes, count, window, rng)

    def ranges(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return where in the stream the tokens of a range lie."""
        found = []
        place = bisect_right(self._firsts, start) - 1
        while start < stop:
            end = min(stop, self._firsts[place + 1])
            shift = self._ranges[place][0] - self._firsts[place]
            found.append((start + shift, end + shift))
            start, place = end, place + 1
        return found


def _taken(starts: NDArray[np.int64], window: int) -> list[tuple[int, int]]:
    """Return the ranges that windows cover, ascending, joined where they overlap."""
    ranges: list[tuple[int, int]] = []
    for start in np.sort(starts).tolist():
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], start + window)
        else:
            ranges.append((start, start + window))
    return ranges
