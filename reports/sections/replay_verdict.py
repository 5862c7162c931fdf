"""What a replay allows one to say: its claims, question by question, and what they are to be read with.

The comparisons that answer one question are decided together, by t-tests over seeds after Holm's correction; each is
printed with its own 95% interval. Differences of optimizers are paired by seed. One seed claims nothing, nor does a
difference no larger than rounding.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, TypeVar

import numpy as np

from lite_probe.reports.numbers import (
    count_of,
    format_interval,
    format_measured,
    format_measured_share,
    format_number,
    format_share,
)
from lite_probe.reports.verdict import (
    TONES,
    Point,
    Verdict,
    base_name,
    batch_words,
    join_names,
    make_claim,
    one_space,
)
from lite_probe.results.claim import Claim, decide
from lite_probe.results.estimate import Estimate
from lite_probe.results.replay import Replay

_CLOSURE, _UNEXPLAINED = 0.01, 0.1  # closure error, of |ΔL|, that deserves a warning; that explains nothing
EDGE = 2.0  # of the directional edge ratio: above it the quadratic model has a step raise the loss
_SAME = "On the batches that the eigenvectors were measured on"
ABLATED = {"dominant": "projected on the sharp subspace", "bulk": "projected off the sharp subspace"}
PARTS = ("flat", "sharp")
LR_SOURCES = {
    "given": "given",
    "checkpoint": "the checkpoint's",
    "sweep": "swept by factors of two for the lowest evaluation loss",
}
_STARTS = {
    "checkpoint": "went on from the checkpoint's optimizer state",
    "warm": "started from averages warmed at fixed weights",
    "cold": "started without averages",
}

Key = TypeVar("Key", bound=Hashable)
Pair = tuple[str, str]


def judge_replay(replay: Replay) -> Verdict:
    """Say who lowered the loss, by how much, and along which directions."""
    names = finished(replay)
    points = [point for name in replay.optimizers for point in _divergence(replay, name)]
    points += _starts(replay)
    against = [_against_base(replay, name, base) for name in names if (base := base_of(replay, name)) in names]
    points += [_at_batch(replay, point) for point in against]
    points += [*_between(replay), *_where(replay, names)]
    points += [*_manner(replay, names), *_theory(replay), *_ablations(replay, names)]
    points += _on_same_batches(replay, [claim for point in points for claim in point.claims])
    points += [*_corrected(replay), _learning_rates(replay), _closure(replay, names)]
    return Verdict(lead=f"{lead_of(replay, names)}{_lead_on_same_batches(replay, names)}", points=tuple(points))


# What may be told


def is_rounding(replay: Replay, estimate: Estimate) -> bool:
    """Return whether a loss difference is no more than rounding, on every seed alike."""
    return max(abs(estimate.value), estimate.stderr) <= replay.rounding


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


def told_share(replay: Replay, name: str) -> Estimate | None:
    """Return an optimizer's flat share where it says something.

    Its loss must have fallen beyond the error, the allocations account for that, and the share be one with its whole
    95% interval: where the sharp part raised the loss, the flat one is more than the whole.
    """
    change, share = judge_changes(replay).get(name), replay.flat_share(name)
    if change is None or share is None or change.status != "holds" or not is_explained(replay, name):
        return None
    return share if share.low >= 0.0 and share.high <= 1.0 else None


def finished(replay: Replay) -> list[str]:
    """Return the optimizers of which some run reached the end."""
    return [name for name in replay.optimizers if replay.runs_of(name)]


def base_of(replay: Replay, name: str) -> str | None:
    """Return the optimizer that a LITE variant is a variant of, where it was replayed too."""
    base = base_name(name)
    return base if base != name and base in replay.recipes else None


def mean_oscillation(replay: Replay, name: str) -> Estimate | None:
    """Return an optimizer's oscillation, mean over the eigenvectors, with its error over seeds; None without a run."""
    means = [float(run.oscillations.mean()) for run in replay.runs_of(name) if run.is_recorded]
    if len(means) > 1:
        return Estimate.from_samples(np.array(means))
    return replace(Estimate.certain(means[0]), num_samples=1) if means else None


# Questions


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What one comparison came to, and its parts of a sentence."""

    estimate: Estimate
    sign: int  # 0 where it is not told from zero
    is_rounding: bool
    comparisons: int
    num_seeds: int  # of the replay

    @property
    def size(self) -> str:
        """Write the value; where it is told from zero its sign is left to words."""
        return f"{_interval(self.estimate, is_turned=self.sign < 0)[0]} nats"

    @property
    def interval(self) -> str:
        """Write the 95% interval, with the seeds it rests on where some are missing."""
        interval, count = _interval(self.estimate, is_turned=self.sign < 0)[1], self.estimate.num_samples
        return f"on {count} of {count_of(self.num_seeds, 'seed')}, {interval}" if count < self.num_seeds else interval

    def claim(self, about: Pair, told: str, untold: str, *, tied: str = "", wanted: int) -> Claim:
        """Return the claim on (subject, quantity), which holds where the value is beyond zero on the side wanted.

        `told` is the sentence where it is beyond zero, `untold` with a reason where it is not, `tied` within rounding.
        """
        one, reason = self.estimate, f"beyond {_correction(self.comparisons)}"
        if self.is_rounding:
            reason = "beyond rounding"
        elif one.low <= 0.0 <= one.high:
            reason = "beyond the error"
        return make_claim(
            about,
            (one.value, one.low, one.high),
            self.sign * wanted,
            tied if tied and self.is_rounding else told if self.sign else f"{untold}, not {reason}.",
            unit="nats",
            comparisons=self.comparisons,
            covers=count_of(one.num_samples, "seed"),
        )


def _ask(replay: Replay, asked: Mapping[Key, Estimate | None]) -> dict[Key, _Answer]:
    """Decide the comparisons of one question together; those without two seeds are none."""
    estimates = {key: one for key, one in asked.items() if one is not None and one.num_samples > 1}
    signs = decide(list(estimates.values()), rounding=replay.rounding)
    shared = {"comparisons": len(estimates), "num_seeds": replay.num_seeds}
    return {
        key: _Answer(estimate=one, sign=sign, is_rounding=is_rounding(replay, one), **shared)
        for (key, one), sign in zip(estimates.items(), signs, strict=True)
    }


def compare_losses(replay: Replay) -> dict[Pair, Claim]:
    """Ask of every pair of optimizers whether the first ends below the second."""
    return compare_pairs(replay, combinations(finished(replay), 2))


def compare_bases(replay: Replay) -> dict[Pair, Claim]:
    """Ask of every LITE variant whether it ends below its base."""
    return compare_pairs(replay, [(name, base) for name in replay.optimizers if (base := base_of(replay, name))])


def compare_pairs(replay: Replay, pairs: Iterable[Pair]) -> dict[Pair, Claim]:
    """Ask of each pair whether the first ends below the second, all together."""
    return {
        (name, other): answer.claim(
            (name, f"final loss minus that of {other}"),
            f"{name} ends {answer.size} {'below' if answer.sign < 0 else 'above'} {other} ({answer.interval}).",
            f"{name} minus {other}: {answer.size} of final loss ({answer.interval})",
            tied=f"{name} and {other} cannot be told apart: their losses differ by rounding alone.",
            wanted=-1,
        )
        for (name, other), answer in _ask(replay, {pair: replay.difference(*pair) for pair in pairs}).items()
    }


def compare_progress(replay: Replay) -> dict[tuple[str, str, str], Claim]:
    """Ask of every LITE variant whether it makes more progress than its base along flat, and along sharp directions.

    Nothing is asked where allocations miss the loss change of one of them.
    """
    asked = {
        (name, base, part): measure(name, base)
        for name, base in compare_bases(replay)
        if is_explained(replay, name) and is_explained(replay, base)
        for part, measure in zip(PARTS, (replay.flat_difference, replay.sharp_difference), strict=True)
    }
    found = {}
    for (name, base, part), answer in _ask(replay, asked).items():
        where, more = f"along {_directions(replay, part)}", "more" if answer.sign > 0 else "less"
        found[name, base, part] = answer.claim(
            (name, f"progress {where} minus that of {base}"),
            f"{name} makes {answer.size} {more} progress than {base} {where} ({answer.interval}).",
            f"{name} minus {base} {where}: {answer.size} of progress ({answer.interval})",
            wanted=1,
        )
    return found


def judge_changes(replay: Replay) -> dict[str, Claim]:
    """Ask of every optimizer whether it lowers the loss."""
    return {
        name: answer.claim(
            (name, "loss change"),
            f"{name} {'lowers' if answer.sign < 0 else 'raises'} the loss by {answer.size} ({answer.interval}).",
            f"{name} changes the loss by {answer.size} ({answer.interval})",
            tied=f"{name} leaves the loss where it was but for rounding.",
            wanted=-1,
        )
        for name, answer in _ask(replay, {name: replay.loss_change(name) for name in replay.optimizers}).items()
    }


def judge_progress(replay: Replay) -> dict[Pair, Claim]:
    """Ask of every optimizer whether it makes progress along flat, and along sharp directions.

    Nothing is asked where allocations miss its loss change.
    """
    asked = {
        (name, part): measure(name)
        for name in replay.optimizers
        if is_explained(replay, name)
        for part, measure in zip(PARTS, (replay.flat_progress, replay.sharp_progress), strict=True)
    }
    found = {}
    for (name, part), answer in _ask(replay, asked).items():
        where = f"along {_directions(replay, part)}"
        made = f"{name} makes {answer.size} of progress {where} ({answer.interval})"
        raised = f"{name} raises the loss by {answer.size} {where} ({answer.interval})"
        told = f"{raised if answer.sign < 0 else made}."
        found[name, part] = answer.claim((name, f"progress {where}"), told, made, wanted=1)
    return found


def judge_ablations(replay: Replay) -> dict[Pair, Claim]:
    """Ask of every optimizer whether either part of its updates ends below the whole."""
    asked = {
        (name, ablation): replay.difference(name, name, ablation, "none")
        for name in replay.optimizers
        for ablation in replay.ablations
    }
    found = {}
    for (name, ablation), answer in _ask(replay, asked).items():
        subject = f"{name} {ABLATED.get(ablation, ablation)}"
        found[name, ablation] = answer.claim(
            (subject, "final loss minus that of whole updates"),
            f"{subject} ends {answer.size} {'below' if answer.sign < 0 else 'above'} the whole ({answer.interval}).",
            f"{subject} minus the whole: {answer.size} of final loss ({answer.interval})",
            tied=f"{subject} cannot be told from the whole: the losses differ by rounding alone.",
            wanted=-1,
        )
    return found


_QUESTIONS: dict[
    str, Callable[[Replay], Mapping[Any, Claim]]
] = {  # what is compared → who asks; what two of them ask has one number
    "of final losses": compare_losses,
    "with a base": compare_bases,
    "of progress with a base's": compare_progress,
    "of loss changes with zero": judge_changes,
    "of progress with zero": judge_progress,
    "of ablations with the whole": judge_ablations,
}


# The same on other batches


def echoes(replay: Replay, claims: Iterable[Claim]) -> dict[Claim, tuple[Claim | None, bool]]:
    """Look for claims on the batches that the eigenvectors were measured on; none where those are the evaluation set.

    Returns:
        Of each that claims something, once: what it is there, None where it cannot be asked since allocations do not
        account for the loss change; and whether that is beyond its error too, on the same side of zero.
    """
    same = replay.on_same_batches()
    if same is None:
        return {}
    known = {(one.subject, one.quantity): one for ask in _QUESTIONS.values() for one in ask(same).values()}
    wanted = {(one.subject, one.quantity): one for one in claims if one.status != "open"}
    least, found = same.rounding, {}
    for key, claim in wanted.items():
        other = known.get(key)
        is_found = other is not None and not other.low <= 0.0 <= other.high and abs(other.value) > least
        found[claim] = (other, is_found and other is not None and (other.value > 0.0) == (claim.value > 0.0))
    return found


def _lead_on_same_batches(replay: Replay, names: Sequence[str]) -> str:
    """Say whether what the lead claims of the one in front is found on the eigenvectors' batches too."""
    changes = {name: change.value for name in names if (change := replay.loss_change(name)) is not None}
    if not changes:
        return ""
    best = min(changes, key=lambda name: changes[name])
    beaten = {
        claim: other if best == name else name
        for (name, other), claim in compare_losses(replay).items()
        if best in (name, other) and (claim.value < 0.0) == (best == name)
    }
    claims = [*beaten] if len(names) > 1 else [one for one in [judge_changes(replay).get(best)] if one is not None]
    found = echoes(replay, claims)
    missing = [claim for claim, (_, is_found) in found.items() if not is_found]
    if not found:
        return ""
    if not missing:
        return f" {_SAME} the same is found."
    if len(names) == 1:
        return f" {_SAME} that is not found."
    return f" {_SAME} {best}'s lead over {join_names([beaten[one] for one in missing])} is not found."


def _on_same_batches(replay: Replay, claims: Sequence[Claim]) -> list[Point]:
    """Say of every claim whether it holds on the eigenvectors' batches too, which progress along them may flatter."""
    found = echoes(replay, claims)
    if not found:
        return []
    missing, count = {claim: other for claim, (other, is_found) in found.items() if not is_found}, len(found)
    held_out = "Losses and progress are of held-out batches."
    if not missing:
        every = "is found, for the one claim that is made" if count == 1 else f"is found, for all {count} claims"
        return [Point(tone="good", text=f"{held_out} {_SAME} the same {every}.")]
    texts = []
    for claim, other in missing.items():
        there = "there the allocations do not account for the loss change"
        if other is not None:
            there = one_space(f"{_measured(other, ' nats')} there")
        value = f"{format_number(claim.value, 3)} {claim.unit} held out"
        texts.append(f"{claim.subject}'s {claim.quantity} ({value}, {there})")
    of = f"for {count - len(missing)} of {count} claims" if count > 1 else "for no claim"
    verb = "is" if len(texts) == 1 else "are"
    text = f"{held_out} {_SAME} the same is found {of}; not found {verb} {join_names(texts)}."
    return [Point(tone="caution", text=text)]


# The lead


def lead_of(replay: Replay, names: Sequence[str]) -> str:
    """Say who ends lowest: an optimizer that every other is told from, or that there is none."""
    if not names:
        return "Every run diverged: there is nothing to compare."
    changes = {name: change for name in names if (change := replay.loss_change(name)) is not None}
    opening = f"After {count_of(replay.steps, 'step')} "
    if replay.num_seeds == 1:
        text = _on_one_seed(replay, changes)
        return f"{opening}{text}; it is one seed, which has no error, so that no difference is claimed."
    if len(names) == 1:
        count, all_of_them = changes[names[0]].num_samples, count_of(replay.num_seeds, "seed")
        seeds = f"over {all_of_them}" if count == replay.num_seeds else f"on {count} of {all_of_them}"
        return f"{opening}{names[0]} ends {_end(replay, names[0])}, {seeds}."
    return f"{opening}{_ranking(replay, changes)} ({replay.num_seeds} seeds, paired)."


def _on_one_seed(replay: Replay, changes: dict[str, Estimate]) -> str:
    """Name those whose loss is lowest."""
    best = min(changes, key=lambda name: changes[name].value)
    lowest = [name for name in changes if changes[name].value - changes[best].value <= replay.rounding]
    rank = "" if len(lowest) == len(changes) else "lowest, "
    verb = "cannot be told apart and end" if len(lowest) > 1 else "ends"
    return f"{join_names(lowest)} {verb} {rank}{_end(replay, best)}"


def _ranking(replay: Replay, changes: dict[str, Estimate]) -> str:
    """Say who ends below whom, after the correction for all pairs."""
    names, claims = list(changes), compare_losses(replay)
    below = {pair for pair, claim in claims.items() if claim.status == "holds"}
    below |= {pair[::-1] for pair, claim in claims.items() if claim.status == "fails"}
    unbeaten = [name for name in names if not any((other, name) in below for other in names)]
    if not unbeaten:  # where runs diverged, pairs share other seeds
        return f"none of {join_names(names)} ends lowest: each ends above another on the seeds that both finished"
    best = min(unbeaten, key=lambda name: changes[name].value)
    beaten = [name for name in names if (best, name) in below]
    level = [name for name in names if name != best and name not in beaten]
    alone = [name for name in level if (best, name) not in claims and (name, best) not in claims]
    level = [name for name in level if name not in alone]
    lack = f", but not compared with {join_names(alone)} for want of two common seeds" if alone else ""
    under = f", below {join_names(beaten)}" if beaten else ""
    if not level:
        return f"{best} ends {'' if alone else 'lowest, '}{_end(replay, best)}{under}{lack}"
    lowest = [name for name in names if name == best or name in level]
    among = [claim for (one, other), claim in claims.items() if one in lowest and other in lowest]
    corrected = f" after {_correction(len(claims))}" if any(_is_corrected(replay, claim) for claim in among) else ""
    is_tied = not any((one, other) in below for one in lowest for other in lowest)
    if is_tied and not alone and all((one, other) in below for one in lowest for other in beaten):
        where = f"{'lowest, ' if beaten else ''}{_span(replay, [changes[name] for name in lowest])}"
        return f"{join_names(lowest)} cannot be told apart{corrected} and end {where}{under}"
    under = f"; it ends below {join_names(beaten)}" if beaten else ""
    return f"{best} is ahead but cannot be told from {join_names(level)}{corrected}{under}{lack}"


def _end(replay: Replay, name: str) -> str:
    """Say where an optimizer's loss ends against the start's, with its 95% interval where there are seeds."""
    change, claim = replay.loss_change(name), judge_changes(replay).get(name)
    start = format_number(replay.start_loss)
    if change is None or is_rounding(replay, change):
        return f"where the loss began, at {start}, but for rounding"
    place = f"{'below' if change.value < 0.0 else 'above'} the start's {start}"
    if claim is None:
        return f"{format_number(abs(change.value))} nats {place}"
    size, interval = _interval(change, is_turned=change.value < 0.0)
    reservation = ", not beyond the error" if claim.status == "open" else ""
    if _is_corrected(replay, claim):
        reservation = f", not beyond {_correction(claim.comparisons)}"
    return f"{size} nats {place} ({interval}){reservation}"


def _span(replay: Replay, changes: Sequence[Estimate]) -> str:
    """Say between which means several losses end, against the start's."""
    start, values = format_number(replay.start_loss), [change.value for change in changes]
    if all(is_rounding(replay, change) for change in changes):
        return f"where the loss began, at {start}, but for rounding"
    if min(values) < 0.0 < max(values):
        ends = f"{format_number(-min(values), 2)} nats below and {format_number(max(values), 2)} above"
        return f"between {ends} the start's {start}"
    sizes = sorted(map(abs, values))
    texts = dict.fromkeys(format_number(size, 3) for size in (sizes[0], sizes[-1]))
    return f"{' to '.join(texts)} nats {'below' if values[0] <= 0.0 else 'above'} the start's {start}"


# What it rests on


def _at_batch(replay: Replay, point: Point) -> Point:
    """Say at which batch size a LITE variant was held against its base."""
    batch = batch_words(replay.provenance)
    return replace(point, text=f"{point.text} All at {batch} a batch.") if batch else point


def _against_base(replay: Replay, name: str, base: str) -> Point:
    """Say whether a LITE variant beats its base, and where the difference fell."""
    difference, claim = replay.difference(name, base), compare_bases(replay).get((name, base))
    if difference is None:
        return Point(tone="caution", text=f"{name} and {base} have no seed that both finished.")
    if claim is None:
        text = f"{name} minus {base}: {format_number(difference.value)} nats on one seed, which has no error."
        if is_rounding(replay, difference):
            text = f"{name} and {base} cannot be told apart: their losses differ by rounding alone (1 seed)."
        return Point(tone="plain", text=text)
    tone = TONES.get(claim.status, "plain")
    if is_rounding(replay, difference):
        return Point(tone=tone, text=claim.sentence, claims=(claim,))
    places, every = compare_progress(replay), compare_losses(replay)
    claims = [claim, *(places[name, base, part] for part in PARTS if (name, base, part) in places)]
    texts = [one.sentence for one in claims]
    if claim.status != "open" and (every.get((name, base)) or every[base, name]).status == "open":
        texts.append(f"Among the {len(every)} comparisons of all optimizers it is not told.")
    if is_missed(replay, name) or is_missed(replay, base):
        texts.append("Where the difference falls cannot be told: the allocations do not account for the loss changes.")
    return Point(tone=tone, text=" ".join(texts), claims=tuple(claims))


def _between(replay: Replay) -> list[Point]:
    """Say of every other pair who ends below whom."""
    bases = compare_bases(replay)
    claims = [one for pair, one in compare_losses(replay).items() if pair not in bases and pair[::-1] not in bases]
    text = " ".join(claim.sentence for claim in claims)
    return [Point(tone="plain", text=text, claims=tuple(claims))] if claims else []


def _where(replay: Replay, names: Sequence[str]) -> list[Point]:
    """Say how far every optimizer lowered the loss, and along which directions."""
    changes, parts = judge_changes(replay), judge_progress(replay)
    points = []
    for name in names:
        claims = [changes[name]] if name in changes else []
        claims += [parts[name, part] for part in PARTS if (name, part) in parts]
        texts = [claim.sentence for claim in claims]
        flat, sharp, share = replay.flat_progress(name), replay.sharp_progress(name), told_share(replay, name)
        if flat is None or sharp is None:
            texts.append(f"{name}: progress per direction was not recorded.")
        elif (name, "flat") not in parts:
            places = " and of ".join(
                f"{_measured(one, ' nats')} along {_directions(replay, part)}"
                for part, one in zip(PARTS, (flat, sharp), strict=True)
            )
            missed = ", which do not account for its loss change" if is_missed(replay, name) else ""
            texts.append(f"{name}: progress of {places}{missed}.")
        if share is not None:
            flat_part = format_measured_share(share.value, share.low, share.high)
            texts.append(f"Of the progress of {name} {flat_part} is along flat directions.")
        texts += [text for part in PARTS if (text := _on_ramp(replay, name, part, parts.get((name, part))))]
        points.append(Point(tone="plain", text=" ".join(texts), claims=tuple(claims)))
    return points


def _on_ramp(replay: Replay, name: str, part: str, claim: Claim | None) -> str:
    """Say where most of what an optimizer did along a part's directions falls into the ramp, as a shock does."""
    measure = {"flat": replay.flat_progress, "sharp": replay.sharp_progress}[part]
    ramp, whole = measure(name, "ramp"), measure(name)
    if ramp is None or whole is None or claim is None or claim.status == "open":
        return ""
    if ramp.value * whole.value <= 0.0 or abs(ramp.value) <= 0.5 * abs(whole.value):
        return ""
    what, size = ("progress", ramp) if whole.value > 0.0 else ("rise", negative(ramp))
    most = "Most" if abs(ramp.value) < abs(whole.value) else "All"
    return (
        f"{most} of this {what} along {_directions(replay, part)} falls into the ramp, the first "
        f"{count_of(replay.ramp, 'step')}: {_measured(size, ' nats')}."
    )


def _manner(replay: Replay, names: Sequence[str]) -> list[Point]:
    """Say how the optimizers move: how isotropic, along what curvature, with what step per curvature."""
    quantities = (
        ("Isotropy of the updates (1 is isotropic)", "", lambda name: _within_one(replay.isotropy_entropy(name))),
        ("Curvature along the updates, dᵀHd/‖d‖²", " loss/param²", replay.directional_sharpness),
        (
            "Directional edge ratio dᵀHd/(−g·d) after the ramp (above 2 the quadratic model has the steps raise the "
            "loss)",
            "",
            replay.directional_edge_ratio,
        ),
        ("Exponent a of η ∝ λ⁻ᵃ where η is positive (0 gradient descent, 1 Newton)", "", replay.exponent),
        (
            "Oscillation along sharp directions (0 straight, 1 back where it began)",
            "",
            lambda name: _within_one(mean_oscillation(replay, name)),
        ),
    )
    points = []
    for title, unit, measure in quantities:
        parts = [
            f"{name} {_measured(value)}{of_seeds(value, len(replay.runs_of(name)))}"
            for name in names
            if (value := measure(name)) is not None
        ]
        text = f"{title}: {', '.join(parts)}{unit}."
        points += [Point(tone="plain", text=text, is_detail=True)] if parts else []
    return points


def told_horizon(replay: Replay, name: str) -> str:
    """Say for how many steps of an optimizer the start's curvature predicts the loss; empty where nobody asked."""
    found = replay.horizons(name)
    ends = [one.high for one in found if one.high is not None]
    if not found:
        return ""
    low, most = min(one.low for one in found), max(one.low for one in found)
    if not ends:
        return f"more than {count_of(low, 'step')}"
    if len(ends) < len(found):
        return f"between {low} and over {count_of(most, 'step')}"
    last = count_of(max(ends), "step")
    return f"between {low} and {last}" if low else f"less than {last}"


def _horizon(replay: Replay) -> str:
    """Say for how many steps the start's curvature predicts the loss; empty where nobody asked."""
    told = {name: words for name in replay.optimizers if (words := told_horizon(replay, name))}
    if not told:
        return ""
    parts = join_names([f"{name} {words}" for name, words in told.items()])
    return f"The quadratic model at the start predicts the loss change within a tenth up to its horizon: {parts}."


def _theory(replay: Replay) -> list[Point]:
    """Say along how many sharp directions the linear theory has an optimizer diverge, and how long its curvature holds.

    It rests on the curvature at the start.
    """
    parts, horizon = [], _horizon(replay)
    for name, theory in replay.theory.items():
        rates = np.abs(theory.rates)[np.abs(theory.rates) > 1.0]
        if len(rates):
            texts = list(dict.fromkeys(format_number(float(rate), 2) for rate in (rates.min(), rates.max())))
            factors = f"{'factors' if len(texts) > 1 else 'a factor of'} {' to '.join(texts)}"
            where = f"{len(rates)} of {count_of(len(theory.rates), 'sharp direction')}"
            parts.append(f"{name} diverge along {where} ({factors} per step)")
    if not parts:
        beyond = "What rests on the curvature at the start, such as the linear theory, says nothing of later steps."
        return [Point(tone="plain", text=f"{horizon} {beyond}")] if horizon else []
    text = f"At these rates linear theory has {join_names(parts)}: what it predicts along them is not drawn."
    asked = "It rests on the curvature at the start: for how many steps that predicts the loss, --horizon measures."
    return [Point(tone="caution", text=f"{text} {horizon or asked}")]


def _ablations(replay: Replay, names: Sequence[str]) -> list[Point]:
    """Say what either part of the update does alone, as far as the seeds allow."""
    claims, points = judge_ablations(replay), []
    for name in names if replay.ablations else ():
        texts = []
        for ablation in replay.ablations:
            change, words = replay.loss_change(name, ablation), f"{name} {ABLATED.get(ablation, ablation)}"
            did = (
                "reached the end on no seed" if change is None else f"changes the loss by {_measured(change, ' nats')}"
            )
            texts.append(f"{words} {did}.")
            texts += [claims[name, ablation].sentence] if (name, ablation) in claims else []
        made = tuple(claims[name, one] for one in replay.ablations if (name, one) in claims)
        points.append(Point(tone="plain", text=" ".join(texts), claims=made))
    return points


def _divergence(replay: Replay, name: str) -> list[Point]:
    """Name every run of an optimizer that diverged."""
    texts = []
    for ablation in ("none", *replay.ablations):
        part = "" if ablation == "none" else f" (updates {ABLATED.get(ablation, ablation)})"
        runs = replay.diverged(name, ablation)
        texts += [f"{name}{part} diverged at step {run.diverged_at} of seed {run.seed}" for run in runs]
    return [Point(tone="caution", text=f"{'; '.join(texts)}.")] if texts else []


def _starts(replay: Replay) -> list[Point]:
    """Say what the optimizers' states were at the start, unless all were warmed or all cold."""
    by_state: dict[str, list[str]] = {}
    for name, recipe in replay.recipes.items():
        by_state.setdefault(recipe.state, []).append(name)
    if len(by_state) == 1 and "checkpoint" not in by_state:
        return []
    text = "; ".join(f"{join_names(names)} {_STARTS.get(state, state)}" for state, names in by_state.items())
    if len(by_state) == 1:
        return [Point(tone="plain", text=f"{text}.")]
    return [Point(tone="caution", text=f"{text}: part of a difference between them may be that of their starts.")]


def _corrected(replay: Replay) -> list[Point]:
    """Say what was corrected for how many comparisons, and what the intervals cover."""
    families = {what: list(ask(replay).values()) for what, ask in _QUESTIONS.items()}
    counts = [f"{len(family)} {what}" for what, family in families.items() if len(family) > 1]
    statuses = {claim.status for family in families.values() for claim in family}
    if not statuses:
        return []
    text = "intervals are 95%, not corrected, over seeds, for one evaluation set"
    if counts:
        over = f"the comparisons of each question ({join_names(counts)})"
        if len(counts) == 1:
            over = counts[0].replace(" ", " comparisons ", 1)
        text = f"Differences are claimed after Holm's correction over {over}; {text}"
    more = ". More seeds may tell what is not told" if "open" in statuses else ""
    return [Point(tone="plain", text=f"{text[0].upper()}{text[1:]}{more}.", is_detail=True)]


def _learning_rates(replay: Replay) -> Point:
    """Say how every learning rate was chosen; a comparison means nothing without."""
    parts: dict[str, list[str]] = {}
    for recipe in replay.recipes.values():
        parts.setdefault(recipe.lr_source, []).append(f"{recipe.optimizer} {format_number(recipe.lr, 2)}")
    chosen = "; ".join(f"{LR_SOURCES.get(source, source)}: {', '.join(rates)}" for source, rates in parts.items())
    texts = [f"Learning rates were {chosen}."]
    failed = [name for name, sweep in replay.sweeps.items() if bool(sweep.diverged.all())]
    tried = {name: sweep for name, sweep in replay.sweeps.items() if name not in failed}
    edges = [name for name, sweep in tried.items() if sweep.is_at_limit]
    if edges:
        texts.append(f"The best of {join_names(edges)} is at the limit of its grid: a better one may lie beyond.")
    texts += [
        f"At the best rate of {name}, {format_number(sweep.best, 2)}, the loss first rises above the start's: "
        f"{format_number(sweep.chosen, 2)} is the largest of those tried at which it does not."
        for name, sweep in tried.items()
        if sweep.chosen != sweep.best
    ]
    rising = [name for name, one in tried.items() if one.chosen == one.best and one.first_rises(one.chosen)]
    if rising:
        texts.append(f"The loss of {join_names(rising)} first rises above the start's at every rate that was tried.")
    if failed:
        texts.append(f"{join_names(failed)} diverged at every rate that was tried.")
    if set(parts) != {"sweep"}:
        texts.append("Rates that were not swept may favour one optimizer over another.")
    return Point(tone="caution" if edges or failed or rising else "plain", text=" ".join(texts))


def _closure(replay: Replay, names: Sequence[str]) -> Point:
    """State the worst closure error, and of whom the allocations do not explain the loss change."""
    closures = {name: value for name in names if (value := closure_of(replay, name)) is not None}
    if not closures:
        return Point(tone="plain", text="No loss change was allotted to directions.")
    missed = [name for name in closures if is_missed(replay, name)]
    texts = []
    if missed:
        errors = join_names([f"{name} ({format_share(closures[name])} of it is missed)" for name in missed])
        texts.append(
            f"Allocations do not account for the loss change of {errors}: what they say of its parts is not to be "
            "relied on, and no share is shown."
        )
    within = {name: value for name, value in closures.items() if name not in missed}
    if within:
        worst = max(within, key=lambda name: within[name])
        text = f"Allocations add up to the true loss change within {format_share(within[worst])} of it"
        texts.append(f"{text} (worst{' of the others' if missed else ''}: {worst}).")
    is_good = max(closures.values()) <= _CLOSURE
    return Point(tone="good" if is_good else "caution", text=" ".join(texts), is_detail=is_good)


# Words


def of_seeds(estimate: Estimate | None, runs: int) -> str:
    """Say on how many seeds an estimate rests, where some have none: an error over one would be missing unsaid."""
    if estimate is None or estimate.num_samples == runs:
        return ""
    return f" (on {estimate.num_samples} of {count_of(runs, 'seed')})"


def negative(estimate: Estimate) -> Estimate:
    """Return the negative: of progress, the loss change."""
    return replace(estimate, value=-estimate.value, low=-estimate.high, high=-estimate.low)


def _directions(replay: Replay, part: str) -> str:
    """Name the directions of a part: flat directions, the 10 sharp directions."""
    count = len(replay.eigenvalues)
    many = "the sharp direction" if count == 1 else f"the {count} sharp directions"
    return "flat directions" if part == "flat" else many


def _correction(comparisons: int) -> str:
    """Name the correction for so many comparisons."""
    return f"the correction for {count_of(comparisons, 'comparison')}"


def _is_corrected(replay: Replay, claim: Claim) -> bool:
    """Return whether a claim would be made were it the only one of its question."""
    return claim.status == "open" and abs(claim.value) > replay.rounding and not claim.low <= 0.0 <= claim.high


def _interval(one: Estimate, *, is_turned: bool) -> tuple[str, str]:
    """Write a value and its 95% interval, their signs turned where words tell them."""
    one = negative(one) if is_turned else one
    return format_interval(one.value, one.low, one.high)


def _measured(one: Estimate | Claim, unit: str = "") -> str:
    """Write a value with its 95% interval over seeds; one seed has none."""
    return format_measured(one.value, one.low, one.high, unit)


def _within_one(estimate: Estimate | None) -> Estimate | None:
    """Cut an interval to what the quantity can be, 0 to 1."""
    return estimate and replace(estimate, low=max(estimate.low, 0.0), high=min(estimate.high, 1.0))
