"""Where a descending order of numbers would be cut, found without sorting them.

Non-negative floating-point numbers are ordered as the whole numbers that have their bits. The one at which an edge
falls is found digit by digit, 16 bits at a time, from histograms; equal numbers are told apart by their positions, as a
stable sort would. Nothing but a label per entry and tables of 65,536 counts outlives a stretch of entries.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STRETCH = 2**20  # entries that are looked at together

_DIGIT = 16
_VALUES = 2**_DIGIT
_BITS = {torch.float32: (torch.int32, 2), torch.float64: (torch.int64, 4)}  # type of the bits, and digits


def stretches(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the entries of a tensor, flat, a stretch at a time."""
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), STRETCH):
        yield flat[start : start + STRETCH]


def sums_by_label(values: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the sum of the values of each label, (n,) float64 and (n,) → (count,) float64.

    Memory: on an accelerator `count` numbers for each entry of a stretch.
    """
    if values.device.type == "cpu":
        return torch.bincount(labels, weights=values, minlength=count)
    # On an accelerator `bincount` waits for the largest label, and adds in any order.
    total = values.new_zeros(count)
    own = torch.arange(count, dtype=labels.dtype, device=labels.device).unsqueeze(1)
    for start in range(0, len(values), STRETCH):
        part = slice(start, start + STRETCH)
        total += torch.where(labels[part] == own, values[part], 0.0).sum(1)
    return total


@dataclass(frozen=True, slots=True)
class Order:
    """Directions in descending order of a proxy, the first of equal ones first.

    Attributes:
        proxies: Per piece, one entry per direction, or a single number for all of them.
        counts: Directions of each piece.
        depths: Dimensions of each direction of a piece.
    """

    proxies: Sequence[Tensor]
    counts: Sequence[int]
    depths: Sequence[int]

    @property
    def size(self) -> int:
        """Dimensions of all."""
        return sum(count * depth for count, depth in zip(self.counts, self.depths, strict=True))

    def places(self, edges: Sequence[float], *, of_seen: bool = False) -> list[Tensor]:
        """Return how many edges lie before or at the middle of each direction, for proxies of 0 or less one more.

        A direction covers its dimensions of the order; its middle is a share of all of them.

        Args:
            edges: Shares, ascending, between 0 and 1.
            of_seen: Shares are of the dimensions with a proxy above 0.

        Returns:
            Per piece, int16, flat.

        Cost: four passes over the proxies in float32, six in float64.
        """
        thresholds, ties = self._thresholds(edges, of_seen)
        device = self.proxies[0].device
        labels = []
        for piece, count in enumerate(self.counts):
            own = torch.empty(count, dtype=torch.int16, device=device)
            before, on_edge = ties.before[piece].tolist(), ties.counts[piece].tolist()
            # Where no direction on a threshold lies before the edge, all of them are past it.
            limits = sorted(key + (first == 0) for key, first in zip(thresholds, before, strict=True))
            ascending = torch.tensor(limits, dtype=torch.int64, device=device)
            is_near = self._first_digits(limits)
            beyond = len(edges) - torch.bucketize(torch.arange(_VALUES, device=device) << self._top, ascending)
            divided = {
                edge: before[edge]
                for edge, key in enumerate(thresholds)
                if key and 0 < before[edge] < on_edge[edge]  # proxies of 0 share a label whatever falls on them
            }
            for part, keys in self._keys(piece):
                label, near = beyond.take(keys >> self._top), self._near(keys, is_near)
                label[near] = len(edges) - torch.bucketize(keys[near], ascending, right=True)
                for edge, left in divided.items():
                    positions = (keys == thresholds[edge]).nonzero()[:, 0]
                    label[positions[left:]] += 1
                    divided[edge] = max(left - len(positions), 0)
                own[part] = label.masked_fill_(keys == 0, len(edges) + 1).to(torch.int16)
            labels.append(own)
        return labels

    def tally(self, labels: Sequence[Tensor], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the dimensions of each label, and the mean proxy over them; (count,) each. Cost: a pass."""
        both = torch.zeros(2, count, dtype=torch.float64, device=self.proxies[0].device)
        for piece, (own, depth) in enumerate(zip(labels, self.depths, strict=True)):
            for part, values in self._values(piece):
                label, exact = own[part], values.double()
                both[0] += depth * sums_by_label(torch.ones_like(exact), label, count)
                both[1] += depth * sums_by_label(exact, label, count)
        sizes, sums = both.cpu().numpy()
        return sizes.astype(np.int64), sums / np.maximum(sizes, 1.0)

    def _thresholds(self, edges: Sequence[float], of_seen: bool) -> tuple[list[int], "_Ties"]:
        """Return the key that each edge falls on, and how those that equal it are divided."""
        shifts = range(self._top, -1, -_DIGIT)
        total = self.size
        if of_seen:
            total -= self._unseen()
        middles = [_first_past(edge, total) for edge in edges]
        prefixes, above = [0] * len(edges), [0] * len(edges)
        for shift in shifts:
            distinct = sorted(set(prefixes))
            counts = self._histogram(shift, distinct, is_first=shift == self._top)
            for edge, twice in enumerate(middles):
                own = counts[distinct.index(prefixes[edge])]
                behind = above[edge] + np.cumsum(own[::-1])  # with each digit, from the largest
                place = int(np.searchsorted(2 * behind, twice, side="right"))
                place = min(place, _VALUES - 1)
                above[edge] = int(behind[place] - own[_VALUES - 1 - place])
                prefixes[edge] = (prefixes[edge] << _DIGIT) + _VALUES - 1 - place
        return prefixes, self._divided(prefixes, above, middles)

    def _divided(self, thresholds: Sequence[int], above: Sequence[int], middles: Sequence[int]) -> "_Ties":
        """Return how many of a piece's directions lie on a threshold, and how many of those before the edge."""
        distinct = sorted(set(thresholds))
        lookup = torch.tensor(distinct, dtype=torch.int64, device=self.proxies[0].device)
        is_near = self._first_digits(distinct)
        found = torch.zeros(len(self.counts), len(distinct), dtype=torch.int64, device=lookup.device)
        for piece in range(len(self.counts)):
            for _, keys in self._keys(piece):
                group, matches = _group(lookup, keys[self._near(keys, is_near)])
                found[piece].index_add_(0, group, matches.long())
        table = found.cpu().numpy()
        counts = np.stack([table[:, distinct.index(one)] for one in thresholds], axis=1)
        before = np.zeros_like(counts)
        for edge, twice in enumerate(middles):
            passed = above[edge]
            for piece, depth in enumerate(self.depths):
                # Whole directions up to the edge, and one more that it cuts before its middle has come.
                whole = (twice - 2 * passed) // (2 * depth)
                is_past = 2 * (passed + whole * depth) + depth >= twice
                before[piece, edge] = min(max(whole + (not is_past), 0), counts[piece, edge])
                passed += int(counts[piece, edge]) * depth
        return _Ties(counts, before)

    def _histogram(self, shift: int, prefixes: Sequence[int], *, is_first: bool) -> NDArray[np.int64]:
        """Return the dimensions of each value of a digit, behind each prefix, (prefixes, 65536)."""
        lookup = torch.tensor(prefixes, dtype=torch.int64, device=self.proxies[0].device)
        counts = torch.zeros(len(prefixes) * _VALUES, dtype=torch.int64, device=lookup.device)
        is_near = self._first_digits([prefix << (shift + _DIGIT) for prefix in prefixes])
        for piece, depth in enumerate(self.depths):
            for _, keys in self._keys(piece):
                digits = (keys if is_first else keys[self._near(keys, is_near)]) >> shift
                weight = torch.full_like(digits, depth)
                if not is_first:
                    group, matches = _group(lookup, digits >> _DIGIT)
                    digits, weight = group * _VALUES + (digits & (_VALUES - 1)), weight * matches
                counts.index_add_(0, digits, weight)
        return counts.view(len(prefixes), _VALUES).cpu().numpy()

    def _unseen(self) -> int:
        """Return the dimensions with a proxy of 0 or less."""
        found = torch.zeros((), dtype=torch.int64, device=self.proxies[0].device)
        for piece, depth in enumerate(self.depths):
            for _, keys in self._keys(piece):
                found += depth * (keys == 0).sum()
        return int(found)

    def _first_digits(self, keys: Sequence[int]) -> Tensor:
        """Return which first digits those of some keys are, (65536,)."""
        table = torch.zeros(_VALUES, dtype=torch.bool)
        table[[key >> self._top for key in keys]] = True
        return table.to(self.proxies[0].device)

    def _near(self, keys: Tensor, is_near: Tensor) -> Tensor:
        """Return where keys have one of these first digits: few of them have, and only these are looked up."""
        return is_near.take(keys >> self._top).nonzero()[:, 0]

    @property
    def _top(self) -> int:
        """Bits behind the first digit of a key."""
        return _DIGIT * (_BITS[self._dtype][1] - 1)

    @property
    def _dtype(self) -> torch.dtype:
        is_double = any(one.dtype == torch.float64 for one in self.proxies)
        return torch.float64 if is_double else torch.float32

    def _values(self, piece: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield the proxies of a piece, flat, stretch by stretch."""
        proxy, count = self.proxies[piece], self.counts[piece]
        flat = proxy.reshape(-1).expand(count)
        for start in range(0, count, STRETCH):
            part = slice(start, min(start + STRETCH, count))
            yield part, flat[part]

    def _keys(self, piece: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield them as int64 in the same order, 0 for those that are 0 or less."""
        for part, values in self._values(piece):
            bits = values.to(self._dtype).contiguous().view(_BITS[self._dtype][0])
            yield part, bits.to(torch.int64).clamp_(min=0)


@dataclass(frozen=True, slots=True)
class _Ties:
    """Directions whose key is that of an edge, (pieces, edges)."""

    counts: NDArray[np.int64]
    before: NDArray[np.int64]  # of them, those before the edge


def _group(lookup: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the place of each key in an ascending table, and whether it is there."""
    group = torch.bucketize(keys, lookup).clamp_(max=len(lookup) - 1)
    return group, lookup[group] == keys


def _first_past(edge: float, total: int) -> int:
    """Return twice the least middle, in dimensions, whose share of the total is not below the edge."""
    whole = float(max(total, 1))
    twice = math.ceil(2.0 * edge * whole)
    while twice > 0 and (twice - 1) / 2.0 / whole >= edge:
        twice -= 1
    while twice / 2.0 / whole < edge:
        twice += 1
    return twice
