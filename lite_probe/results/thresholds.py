"""Thresholds on a comparison: `muon-lite.loss_change > muon.loss_change`, decided as claims are.

A threshold is missed where the difference of its two sides is beyond zero after Holm's correction over all thresholds
and checkpoints, and not where it may be by chance. Expressions are taken apart by the names that there are; nothing in
them is run.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lite_probe.errors import UsageError, shown
from lite_probe.results.claim import decide
from lite_probe.results.comparison import LANDSCAPE, QUANTITIES, Comparison, Quantity, Side, over_samples
from lite_probe.results.estimate import Estimate

_MOST_LETTERS = 1000
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?")
EXAMPLE = "write NAME.QUANTITY > NAME.QUANTITY, or a number on the right: --fail-if 'muon-lite.loss_change > 0'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """One side of a threshold."""

    subject: str
    quantity: Quantity
    checkpoint: str | None  # None where all are meant


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """What must not be."""

    text: str
    left: Operand
    is_above: bool  # whether it is missed where the left side is above the right one
    right: Operand | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One threshold at one checkpoint.

    Attributes:
        threshold: What was asked.
        checkpoint: Where.
        status: "missed", "kept", or "open" where neither can be told.
        estimate: Left minus right, or the logarithm of their ratio where the quantity is compared by ratios; None where
            there is nothing to compare.
        comparisons: That were decided together.
        reason: Why there is no estimate, or what decided without one.
    """

    threshold: Threshold
    checkpoint: str
    status: str
    estimate: Estimate | None
    comparisons: int
    reason: str = ""


def parse_threshold(text: str, optimizers: Sequence[str], checkpoints: Sequence[str]) -> Threshold:
    """Read an expression by the names that there are.

    Args:
        text: LEFT > RIGHT or LEFT < RIGHT.
        optimizers: Their names.
        checkpoints: Their names.

    Raises:
        UsageError: If it is none: it says which names there are.
    """
    if len(text) > _MOST_LETTERS:
        raise UsageError(f"expected --fail-if of at most {_MOST_LETTERS:,} characters, got {len(text):,}", EXAMPLE)
    signs = [place for place, letter in enumerate(text) if letter in "<>"]
    if not signs:
        raise UsageError(f"expected > or < in --fail-if, got {shown(text)}", EXAMPLE)
    # A name may have a sign in it: the one is taken at which both sides are known.
    unknown: list[UsageError] = []
    for place in signs:
        try:
            left = _operand(text[:place], optimizers, checkpoints)
            right = _side(text[place + 1 :], optimizers, checkpoints)
        except UsageError as error:
            unknown.append(error)
            continue
        _require_like(text, left, right)
        return Threshold(text=text.strip(), left=left, is_above=text[place] == ">", right=right)
    raise unknown[0]


def _side(text: str, optimizers: Sequence[str], checkpoints: Sequence[str]) -> Operand | float:
    number = text.strip()
    if _NUMBER.fullmatch(number) and math.isfinite(float(number)):
        return float(number)
    return _operand(text, optimizers, checkpoints)


def _operand(text: str, optimizers: Sequence[str], checkpoints: Sequence[str]) -> Operand:
    """Read NAME.QUANTITY, or NAME@CHECKPOINT.QUANTITY.

    Raises:
        UsageError: If a part of it is not known.
    """
    name, dot, word = text.strip().rpartition(".")
    if not (dot and name):
        raise UsageError(f"expected NAME.QUANTITY in --fail-if, got {shown(text.strip())}", EXAMPLE)
    owners = dict.fromkeys(one.of for one in LANDSCAPE.values())
    subject, checkpoint = _find(name, [*optimizers, *owners], checkpoints)
    known = {key: one for key, one in LANDSCAPE.items() if one.of == subject} or QUANTITIES
    if word not in known:
        raise UsageError(
            f"expected a quantity of {subject} in --fail-if, got {shown(word)}", f"there are {', '.join(known)}"
        )
    return Operand(subject=subject, quantity=known[word], checkpoint=checkpoint)


def _find(name: str, subjects: Sequence[str], labels: Sequence[str]) -> tuple[str, str | None]:
    """Find whose name it is, and of which checkpoint; both may have @ in them, and a user's function has its file.

    Raises:
        UsageError: If nobody's.
    """
    places = [place for place, letter in enumerate(name) if letter == "@"]
    for one, label in [(name, None), *((name[:place], name[place + 1 :]) for place in reversed(places))]:
        if label is not None and label not in labels:
            continue
        for candidate in (one, one.rpartition(":")[2]):
            if candidate in subjects:
                return candidate, label
    raise UsageError(
        f"expected an optimizer, spectrum or subspace in --fail-if, or one of these @ a checkpoint, got {shown(name)}",
        f"there are {', '.join(subjects)}; checkpoints are {', '.join(labels)}",
    )


def _require_like(text: str, left: Operand, right: Operand | float) -> None:
    """Refuse to compare what has other units, or other samples.

    Raises:
        UsageError: If the sides have.
    """
    if isinstance(right, float):
        if left.quantity.is_factor and right <= 0.0:
            raise UsageError(f"expected a number above 0 for {left.quantity.name} in --fail-if, got {text.strip()!r}")
        return
    kinds = [(one.quantity.unit, one.quantity.of, one.quantity.samples) for one in (left, right)]
    if kinds[0] != kinds[1] or (left.quantity.is_factor and left.quantity != right.quantity):
        names = " and ".join(one.quantity.name for one in (left, right))
        raise UsageError(f"expected two quantities of one unit in --fail-if, got {names}", EXAMPLE)


def decide_thresholds(thresholds: Sequence[Threshold], comparison: Comparison) -> tuple[Outcome, ...]:
    """Decide every threshold at every checkpoint that it is meant for, all together."""
    asked = [(one, label) for one in thresholds for label in _labels(one, comparison)]
    found = [_difference(one, label, comparison) for one, label in asked]
    decided = [estimate for estimate in found if estimate is not None and estimate.num_samples != 1]
    least = max((one.rounding for one in comparison.checkpoints), default=0.0)
    signs = iter(decide(decided, rounding=least))
    outcomes = []
    for (one, label), estimate in zip(asked, found, strict=True):
        status, reason = "open", ""
        if lost := _diverged(one, label, comparison):
            status, reason = lost
        elif estimate is None:
            reason = "there is nothing to compare"
        elif estimate.num_samples == 1:
            reason = "one sample has no error"
        sign = next(signs) if estimate is not None and estimate.num_samples != 1 else 0
        if not reason and sign:
            status = "missed" if (sign > 0) == one.is_above else "kept"
        outcomes.append(
            Outcome(
                threshold=one,
                checkpoint=label,
                status=status,
                estimate=estimate,
                comparisons=len(decided),
                reason=reason,
            )
        )
    return tuple(outcomes)


def _labels(threshold: Threshold, comparison: Comparison) -> Sequence[str]:
    """Return the checkpoints that a threshold is meant for: the one it names, else all."""
    named = threshold.left.checkpoint
    if named is None and isinstance(threshold.right, Operand):
        named = threshold.right.checkpoint
    return comparison.labels if named is None else [named]


def _sides(threshold: Threshold, label: str) -> tuple[Side, Side | None]:
    """Return whose values are compared at a checkpoint; no second one where the right side is a number."""
    left, right = threshold.left, threshold.right
    first = Side(subject=left.subject, checkpoint=left.checkpoint or label)
    if isinstance(right, float):
        return first, None
    return first, Side(subject=right.subject, checkpoint=right.checkpoint or label)


def _difference(threshold: Threshold, label: str, comparison: Comparison) -> Estimate | None:
    first, second = _sides(threshold, label)
    quantity, right = threshold.left.quantity, threshold.right
    if second is not None and isinstance(right, Operand):
        return comparison.subtract(quantity.name, first, second, right.quantity.name)
    limit = float(right) if isinstance(right, float) else 0.0
    if quantity.name in LANDSCAPE:
        value = comparison.value(first, quantity.name)
        return None if value is None else _less(value, limit)
    entry = comparison.at(first.checkpoint).entries.get(first.subject)
    if entry is None:
        return None
    samples, scaled = entry.samples.get(quantity.name, {}), math.log(limit) if quantity.is_factor else limit
    width = entry.widths.get(quantity.name, 0.0)
    return over_samples([samples[key] - scaled for key in sorted(samples)], width)


def _less(value: Estimate, limit: float) -> Estimate:
    return Estimate(
        value=value.value - limit,
        stderr=value.stderr,
        low=value.low - limit,
        high=value.high - limit,
        num_samples=value.num_samples,
    )


def _diverged(threshold: Threshold, label: str, comparison: Comparison) -> tuple[str, str] | None:
    """Say what runs that diverged decide: they end above every loss, and have no other quantity.

    A threshold on the loss is missed where only the side that should not be above diverged; any other is open.
    """
    first, second = _sides(threshold, label)
    lost = []
    for side in (first, second):
        entry = None if side is None else comparison.at(side.checkpoint).entries.get(side.subject)
        lost.append(entry.diverged if entry is not None and threshold.left.quantity.samples == "seed" else ())
    if not any(lost):
        return None
    names = [side.subject for side, seeds in zip((first, second), lost, strict=True) if side is not None and seeds]
    count = max(map(len, lost))
    reason = f"{' and '.join(names)} diverged on {count} {'seed' if count == 1 else 'seeds'}"
    is_loss = threshold.left.quantity.name == "loss_change"
    upper, other = lost if threshold.is_above else lost[::-1]
    return ("missed" if is_loss and upper and not other else "open"), reason
