"""What a replay claims, question by question.

The comparisons that answer one question are decided together, by t-tests over seeds after Holm's correction; each is
printed with its own 95% interval. Differences of optimizers are paired by seed. One seed claims nothing, nor does a
difference no larger than rounding.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np

from lite_probe.reports.numbers import count_of, format_interval
from lite_probe.results.claim import Claim, decide
from lite_probe.results.estimate import Estimate
from lite_probe.results.replay import Replay

_UNEXPLAINED = 0.1  # closure error, of |ΔL|, above which allocations do not explain the change
ABLATED = {"dominant": "projected on the sharp subspace", "bulk": "projected off the sharp subspace"}
PARTS = ("flat", "sharp")

Key = TypeVar("Key", bound=Hashable)


def rounding(replay: Replay) -> float:
    """Return the least difference of two losses that is more than rounding, nats: ε·|L(θ₀)|.

    ε is float64's where the model is in it, else float32's: lower precisions have their losses computed in that.
    """
    kind = np.float64 if replay.provenance.precision == "float64" else np.float32
    return float(np.finfo(kind).eps) * abs(replay.start_loss)


def is_rounding(replay: Replay, estimate: Estimate) -> bool:
    """Return whether a loss difference is no more than rounding, on every seed alike."""
    return max(abs(estimate.value), estimate.stderr) <= rounding(replay)


def closure_of(replay: Replay, name: str) -> float | None:
    """Return an optimizer's worst closure error over its loss change; None where that is no more than rounding."""
    change = replay.loss_change(name)
    return None if change is None or is_rounding(replay, change) else replay.closure(name)


def is_missed(replay: Replay, name: str) -> bool:
    """Return whether the allocations do not account for an optimizer's loss change."""
    closure = closure_of(replay, name)
    return closure is not None and closure > _UNEXPLAINED


def is_explained(replay: Replay, name: str) -> bool:
    """Return whether the allocations account for an optimizer's loss change, so that parts of it mean something."""
    return closure_of(replay, name) is not None and not is_missed(replay, name)


def finished(replay: Replay) -> list[str]:
    """Return the optimizers of which some run reached the end."""
    return [name for name in replay.optimizers if replay.runs_of(name)]


def base_of(replay: Replay, name: str) -> str | None:
    """Return the optimizer that a LITE variant is a variant of, where it was replayed too."""
    base = name.removesuffix("-lite")
    return base if base != name and base in replay.recipes else None


def directions(replay: Replay, part: str) -> str:
    """Name the directions of a part: flat directions, the 10 sharp directions."""
    if part == "flat":
        return "flat directions"
    count = len(replay.eigenvalues)
    return "the sharp direction" if count == 1 else f"the {count} sharp directions"


def correction(comparisons: int) -> str:
    """Name the correction for so many comparisons."""
    return f"the correction for {count_of(comparisons, 'comparison')}"


def is_corrected_away(replay: Replay, claim: Claim) -> bool:
    """Return whether a claim would be made were it the only one of its question."""
    return claim.status == "open" and abs(claim.value) > rounding(replay) and not claim.low <= 0.0 <= claim.high


# Questions


def compare_losses(replay: Replay) -> dict[tuple[str, str], Claim]:
    """Ask of every pair of optimizers whether the first ends below the second."""
    pairs = combinations(finished(replay), 2)
    return _compare_losses(replay, {pair: replay.difference(*pair) for pair in pairs})


def compare_bases(replay: Replay) -> dict[tuple[str, str], Claim]:
    """Ask of every LITE variant whether it ends below its base."""
    pairs = [(name, base) for name in replay.optimizers if (base := base_of(replay, name)) is not None]
    return _compare_losses(replay, {pair: replay.difference(*pair) for pair in pairs})


def compare_progress(replay: Replay) -> dict[tuple[str, str, str], Claim]:
    """Ask of every LITE variant whether it makes more progress than its base along flat, and along sharp directions.

    Nothing is asked where allocations miss the loss change of one of them.
    """
    asked: dict[tuple[str, str, str], Estimate | None] = {}
    for name, base in compare_bases(replay):
        if is_explained(replay, name) and is_explained(replay, base):
            asked[name, base, "flat"] = replay.flat_difference(name, base)
            asked[name, base, "sharp"] = replay.sharp_difference(name, base)
    found = {}
    for (name, base, part), answer in _ask(replay, asked).items():
        where = f"along {directions(replay, part)}"
        sentence = f"{name} minus {base} {where}: {answer.size} of progress ({answer.interval}), {answer.reservation}."
        if answer.sign:
            more = "more" if answer.sign > 0 else "less"
            sentence = f"{name} makes {answer.size} {more} progress than {base} {where} ({answer.interval})."
        quantity = f"progress {where} minus that of {base}"
        found[name, base, part] = answer.claim(name, quantity, sentence, wanted=1)
    return found


def judge_changes(replay: Replay) -> dict[str, Claim]:
    """Ask of every optimizer whether it lowers the loss."""
    found = {}
    for name, answer in _ask(replay, {name: replay.loss_change(name) for name in replay.optimizers}).items():
        sentence = f"{name} changes the loss by {answer.size} ({answer.interval}), {answer.reservation}."
        if answer.is_rounding:
            sentence = f"{name} leaves the loss where it was but for rounding."
        elif answer.sign:
            sentence = (
                f"{name} {'lowers' if answer.sign < 0 else 'raises'} the loss by {answer.size} ({answer.interval})."
            )
        found[name] = answer.claim(name, "loss change", sentence, wanted=-1)
    return found


def judge_progress(replay: Replay) -> dict[tuple[str, str], Claim]:
    """Ask of every optimizer whether it makes progress along flat, and along sharp directions.

    Nothing is asked where allocations miss its loss change.
    """
    asked: dict[tuple[str, str], Estimate | None] = {}
    for name in replay.optimizers:
        if is_explained(replay, name):
            asked[name, "flat"] = replay.flat_progress(name)
            asked[name, "sharp"] = replay.sharp_progress(name)
    found = {}
    for (name, part), answer in _ask(replay, asked).items():
        where = f"along {directions(replay, part)}"
        sentence = f"{name} makes {answer.size} of progress {where} ({answer.interval})"
        if answer.sign < 0:
            sentence = f"{name} raises the loss by {answer.size} {where} ({answer.interval})"
        sentence += "." if answer.sign else f", {answer.reservation}."
        found[name, part] = answer.claim(name, f"progress {where}", sentence, wanted=1)
    return found


def judge_ablations(replay: Replay) -> dict[tuple[str, str], Claim]:
    """Ask of every optimizer whether either part of its updates ends below the whole."""
    asked = {
        (name, ablation): replay.difference(name, name, ablation, "none")
        for name in replay.optimizers
        for ablation in replay.ablations
    }
    found = {}
    for (name, ablation), answer in _ask(replay, asked).items():
        subject = f"{name} {ABLATED.get(ablation, ablation)}"
        sentence = f"{subject} minus the whole: {answer.size} of final loss ({answer.interval}), {answer.reservation}."
        if answer.is_rounding:
            sentence = f"{subject} cannot be told from the whole: the losses differ by rounding alone."
        elif answer.sign:
            place = "below" if answer.sign < 0 else "above"
            sentence = f"{subject} ends {answer.size} {place} the whole ({answer.interval})."
        found[name, ablation] = answer.claim(subject, "final loss minus that of whole updates", sentence, wanted=-1)
    return found


# The same on other batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """A claim, and what became of it on the batches that the eigenvectors were measured on."""

    claim: Claim
    other: Claim | None  # None where it cannot be asked there: the allocations do not account for the loss change
    is_found: bool  # whether that is beyond its error too, on the same side of zero


def echoes(replay: Replay, claims: Iterable[Claim]) -> tuple[Echo, ...]:
    """Look for claims on the batches that the eigenvectors were measured on; none where those are the evaluation set.

    Args:
        replay: Whose claims they are.
        claims: Those that claim something are looked for, each once.
    """
    same = replay.on_same_batches()
    if same is None:
        return ()
    known = {(one.subject, one.quantity): one for one in all_claims(same)}
    wanted = {(one.subject, one.quantity): one for one in claims if one.status != "open"}
    found = []
    for key, claim in wanted.items():
        other = known.get(key)
        is_found = (
            other is not None
            and not other.low <= 0.0 <= other.high
            and abs(other.value) > rounding(same)
            and (other.value > 0.0) == (claim.value > 0.0)
        )
        found.append(Echo(claim=claim, other=other, is_found=is_found))
    return tuple(found)


def all_claims(replay: Replay) -> list[Claim]:
    """Return the claims of every question; what two of them ask has one number."""
    questions = (
        *(compare_losses, compare_bases, compare_progress),
        *(judge_changes, judge_progress, judge_ablations),
    )
    return [claim for ask in questions for claim in ask(replay).values()]


# Answers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What one comparison came to, and its parts of a sentence."""

    estimate: Estimate
    sign: int  # 0 where it is not told from zero
    is_rounding: bool
    comparisons: int
    num_seeds: int  # of the replay

    @property
    def _texts(self) -> tuple[str, str]:
        one = self.estimate
        if self.sign < 0:
            return format_interval(-one.value, -one.high, -one.low)
        return format_interval(one.value, one.low, one.high)

    @property
    def size(self) -> str:
        """Write the value; where it is told from zero its sign is left to words."""
        return f"{self._texts[0]} nats"

    @property
    def interval(self) -> str:
        """Write the 95% interval, with the seeds it rests on where some are missing."""
        interval = self._texts[1]
        if self.estimate.num_samples < self.num_seeds:
            return f"on {self.estimate.num_samples} of {count_of(self.num_seeds, 'seed')}, {interval}"
        return interval

    @property
    def reservation(self) -> str:
        """Say why nothing is claimed."""
        if self.is_rounding:
            return "not beyond rounding"
        if self.estimate.low <= 0.0 <= self.estimate.high:
            return "not beyond the error"
        return f"not beyond {correction(self.comparisons)}"

    def claim(self, subject: str, quantity: str, sentence: str, *, wanted: int) -> Claim:
        """Return the claim, which holds where the value is beyond zero on the side wanted."""
        one = self.estimate
        return Claim(
            subject=subject,
            quantity=quantity,
            value=one.value,
            low=one.low,
            high=one.high,
            unit="nats",
            status="open" if self.sign == 0 else "holds" if self.sign == wanted else "fails",
            sentence=sentence.replace("\u00a0", " "),  # the same in a terminal
            comparisons=self.comparisons,
            covers=count_of(one.num_samples, "seed"),
        )


def _ask(replay: Replay, asked: Mapping[Key, Estimate | None]) -> dict[Key, _Answer]:
    """Decide the comparisons of one question together; those without two seeds are none."""
    estimates = {key: one for key, one in asked.items() if one is not None and one.num_samples > 1}
    signs = decide(list(estimates.values()), rounding=rounding(replay))
    return {
        key: _Answer(
            estimate=one,
            sign=sign,
            is_rounding=is_rounding(replay, one),
            comparisons=len(estimates),
            num_seeds=replay.num_seeds,
        )
        for (key, one), sign in zip(estimates.items(), signs, strict=True)
    }


def _compare_losses(replay: Replay, asked: Mapping[tuple[str, str], Estimate | None]) -> dict[tuple[str, str], Claim]:
    """Say of each pair who ends below whom."""
    found = {}
    for (name, other), answer in _ask(replay, asked).items():
        sentence = f"{name} minus {other}: {answer.size} of final loss ({answer.interval}), {answer.reservation}."
        if answer.is_rounding:
            sentence = f"{name} and {other} cannot be told apart: their losses differ by rounding alone."
        elif answer.sign:
            sentence = (
                f"{name} ends {answer.size} {'below' if answer.sign < 0 else 'above'} {other} ({answer.interval})."
            )
        found[name, other] = answer.claim(name, f"final loss minus that of {other}", sentence, wanted=-1)
    return found
