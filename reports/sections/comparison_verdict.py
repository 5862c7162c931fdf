"""What a comparison allows one to say: who ends lowest where, and what moves with training.

Its differences are decided already, question by question over all checkpoints; here they become claims in sentences.
"""

import math
from collections.abc import Sequence

from lite_probe.reports.numbers import count_of, format_interval, format_number
from lite_probe.reports.verdict import TONES, Point, Verdict, join_names, make_claim, one_space
from lite_probe.results.claim import Claim
from lite_probe.results.comparison import (
    LANDSCAPE,
    LANDSCAPE_MOVED,
    LOSSES,
    LOSSES_MOVED,
    PROGRESS,
    PROGRESS_MOVED,
    QUANTITIES,
    STEPS_MOVED,
    Comparison,
    Difference,
    Quantity,
    Side,
    Standing,
    Trajectory,
)
from lite_probe.results.estimate import Estimate
from lite_probe.results.thresholds import Outcome

_NOTHING = "Nothing here was measured at two checkpoints under two optimizers, or has moved."
_DETAILS = (LOSSES, LOSSES_MOVED)  # questions whose claims a terminal leaves to who asks for more
_FEW = 3  # checkpoints at each of which progress is told
_MOVED = (LANDSCAPE_MOVED, STEPS_MOVED, LOSSES_MOVED, PROGRESS_MOVED)


def judge_comparison(comparison: Comparison) -> Verdict:
    """Say who ends lowest at which checkpoint, and what moves with training."""
    # Along a long trajectory what moved from its first to its last checkpoint is told, and pictures have the rest.
    details = (*_DETAILS, *((PROGRESS,) if len(comparison.checkpoints) > _FEW else ()))
    points = [
        Point(
            tone=TONES.get(claim.status, "plain") if one.question in (LOSSES, PROGRESS) else "plain",
            text=claim.sentence,
            claims=(claim,),
            is_detail=one.question in details or not one.sign,
        )
        for one in comparison.differences
        for claim in [claim_of(one)]
    ]
    points += [Point(tone="plain", text=_of_trajectory(one)) for one in comparison.trajectories]
    return Verdict(lead=_lead(comparison), points=(*points, *_corrected(comparison)))


def quantity_of(one: Difference) -> Quantity:
    """Return what is compared."""
    return (QUANTITIES | LANDSCAPE)[one.quantity]


def claim_of(one: Difference) -> Claim:
    """Return a difference as a claim, which holds where the first side is better, or larger where neither is.

    A loss change is better below, progress above; of what only moves more holds.
    """
    quantity, estimate = quantity_of(one), one.estimate
    wanted = -1 if one.quantity == "loss_change" else 1
    about = f"{quantity.title} minus that of {one.second.subject} at {one.first.checkpoint}"
    if one.question in _MOVED:
        about = f"{quantity.title} at {one.first.checkpoint} minus that at {one.second.checkpoint}"
    return make_claim(
        (one.first.subject, f"logarithm of {about}" if quantity.is_factor else about),
        (estimate.value, estimate.low, estimate.high),
        wanted * one.sign,
        _sentence(one, quantity),
        unit="" if quantity.is_factor else quantity.unit,
        comparisons=one.comparisons,
        covers=covers(quantity, estimate),
    )


def covers(quantity: Quantity, estimate: Estimate) -> str:
    """Say what an interval covers."""
    count = estimate.num_samples
    if quantity.samples:
        return count_of(count, quantity.samples, f"{quantity.samples}es" if quantity.samples.endswith("ch") else "")
    return count_of(count, "probe") if count else "residuals"


def _sentence(one: Difference, quantity: Quantity) -> str:
    """Say a difference in a sentence."""
    if one.question == LOSSES:
        return _of_losses(one)
    if one.question == PROGRESS:
        return _of_progress(one, quantity)
    return _of_move(one, quantity)


def _of_losses(one: Difference) -> str:
    first, second, where = one.first.subject, one.second.subject, f"at {one.first.checkpoint}"
    size, interval = _sized(one)
    if one.is_rounding:
        return f"{first} and {second} cannot be told apart {where}: their losses differ by rounding alone."
    if one.sign:
        return f"{first} ends {size} {'below' if one.sign < 0 else 'above'} {second} {where} ({interval})."
    return f"{first} minus {second} {where}: {size} of final loss ({interval}), {_not_told(one)}."


def _of_progress(one: Difference, quantity: Quantity) -> str:
    part = "flat" if one.quantity == "flat_progress" else "sharp"
    first, second, where = one.first.subject, one.second.subject, f"at {one.first.checkpoint}"
    size, interval = _sized(one)
    if one.sign:
        more = "more" if one.sign > 0 else "less"
        return f"{first} makes {size} {more} progress than {second} along {part} directions {where} ({interval})."
    return f"{first} minus {second} {where}: {size} of {quantity.title} ({interval}), {_not_told(one)}."


def _of_move(one: Difference, quantity: Quantity) -> str:
    whose = quantity.title if one.quantity in LANDSCAPE else f"{one.first.subject}'s {quantity.title}"
    between = f"from {one.second.checkpoint} to {one.first.checkpoint}"
    if quantity.is_factor:
        factors = [math.exp(end) for end in (one.estimate.value, one.estimate.low, one.estimate.high)]
        value, interval = format_interval(*factors)
        told = f"changes by a factor of {value} {between} ({interval})"
        return f"{whose} {told}." if one.sign else f"{whose} {told}, {_not_told(one)}."
    size, interval = _sized(one)
    if one.sign:
        return f"{whose} {'rises' if one.sign > 0 else 'falls'} by {size} {between} ({interval})."
    return f"{whose} changes by {size} {between} ({interval}), {_not_told(one)}."


def _sized(one: Difference) -> tuple[str, str]:
    """Write the value, and its interval; where it is told from zero its sign is left to words."""
    estimate, unit = one.estimate, quantity_of(one).unit
    ends = (estimate.value, estimate.low, estimate.high)
    value, interval = format_interval(*((-ends[0], -ends[2], -ends[1]) if one.sign < 0 else ends))
    # Residuals bound a difference of eigenvalues: there is no level to it.
    return f"{value} {unit}".rstrip(), interval if estimate.num_samples else interval.replace("95%", "residuals")


def _not_told(one: Difference) -> str:
    if one.is_rounding:
        return "which is rounding"
    if one.estimate.low <= 0.0 <= one.estimate.high:
        return "not beyond the error"
    return f"not beyond the correction for {count_of(one.comparisons, 'comparison')}"


def _corrected(comparison: Comparison) -> list[Point]:
    """Say how many comparisons each question has."""
    counts = {one.question: one.comparisons for one in comparison.differences if one.estimate.num_samples}
    if not counts:
        return []
    text = "; ".join(f"{number} {question}" for question, number in counts.items())
    return [
        Point(
            tone="plain",
            text=f"Differences are decided after Holm's correction over all checkpoints: {text}. Each interval is for "
            "its own comparison.",
            is_detail=True,
        )
    ]


# The lead


def _lead(comparison: Comparison) -> str:
    """Say who ends lowest at which checkpoints, and where nobody does."""
    standings = comparison.standings
    told = [*_of_standings(comparison, standings)] if standings else []
    if not told or len(comparison.checkpoints) > 1:
        told += _of_landscape(comparison)
    if not told and comparison.trajectories:
        return f"{count_of(len(comparison.trajectories), 'training run')} on the same batches."
    return one_space(" ".join(told)) or _NOTHING


def _of_trajectory(one: Trajectory) -> str:
    """Say how λ₁ moved along a training run, and how close its steps came to the critical one."""
    said = []
    if found := one.values.get("lambda_1"):
        ends = [f"{format_number(value.value, 3)} at step {step:,}" for step, value in (found[0], found[-1])]
        said.append(f"λ₁ from {ends[0]} to {ends[1]}")
    if found := one.values.get("edge_ratio"):
        step, most = max(found, key=lambda point: point[1].value)
        said.append(f"steps of at most {format_number(most.value, 2)} of the critical one, at step {step:,}")
    return one_space(f"Along {one.label}: {'; '.join(said) or 'nothing but the loss was measured'}.")


def _of_standings(comparison: Comparison, standings: Sequence[Standing]) -> list[str]:
    """Group checkpoints by who is ahead."""
    groups: dict[tuple[str | None, tuple[str, ...]], list[str]] = {}
    for one in standings:
        groups.setdefault((one.winner, one.level if one.winner is None else ()), []).append(one.checkpoint)
    total, said = len(standings), []
    if all(len(one.level) == 1 and one.winner is None for one in standings):
        return []  # a single optimizer: nobody to be told from
    for (winner, level), labels in groups.items():
        where = _where(labels, total)
        if winner is not None:
            said.append(f"{winner} ends lowest {where}, below {_below(comparison, winner, labels)}")
        elif len(level) == 1:
            said.append(f"{where} there is {level[0]} alone")
        else:
            said.append(f"{where} {_level(comparison, level, labels)}")
    text = "; ".join(said)
    text = f"A{text[1:]}" if text.startswith("at ") else text  # a name is written as it is
    seeds = sorted({entry.finished for one in comparison.checkpoints for entry in one.entries.values()} - {0})
    if any(not one.has_error for one in standings):
        return [f"{text}. One seed has no error, so that no difference is claimed."]
    of = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    pairs = count_of(len(comparison.of_question(LOSSES)), "comparison")
    return [f"{text} (paired over {of} seeds, {pairs} corrected together)."]


def _where(labels: Sequence[str], total: int) -> str:
    if total == 1:
        return f"at {labels[0]}"
    if len(labels) == total:
        return "at both checkpoints" if total == 2 else f"at all {total} checkpoints"
    return f"at {join_names(labels)}" if len(labels) <= 3 else f"at {len(labels)} of {total} checkpoints"


def _below(comparison: Comparison, winner: str, labels: Sequence[str]) -> str:
    others = [
        name
        for name in comparison.optimizers
        if name != winner
        and any(comparison.value(Side(subject=name, checkpoint=label), "loss_change") for label in labels)
    ]
    return join_names(others) if len(others) <= 3 else f"all {len(others)} others"


def _level(comparison: Comparison, level: Sequence[str], labels: Sequence[str]) -> str:
    """Say that nobody is ahead, and who may be."""
    if all(one.has_error for one in comparison.standings if one.checkpoint in labels):
        return f"nobody ends lowest: {join_names(level)} cannot be told apart"
    return "nobody is told from the rest"


def _of_landscape(comparison: Comparison) -> list[str]:
    """Say how the sharpest direction moves."""
    moved = [one for one in comparison.of_question(LANDSCAPE_MOVED) if one.quantity == "lambda_1" and one.sign]
    said = []
    for one in moved:
        ends = [comparison.value(side, "lambda_1") for side in (one.second, one.first)]
        values = [format_number(end.value, 3) for end in ends if end is not None]
        verb = "rises" if one.sign > 0 else "falls"
        said.append(f"λ₁ {verb} from {values[0]} at {one.second.checkpoint} to {values[1]} at {one.first.checkpoint}.")
    return said


# Thresholds


def outcome_claim(outcome: Outcome) -> Claim | None:
    """Return a threshold's difference as a claim, which holds where the threshold is missed; None without one."""
    estimate, threshold = outcome.estimate, outcome.threshold
    if estimate is None:
        return None
    sign = {"missed": 1, "kept": -1}.get(outcome.status, 0)
    if estimate.low <= 0.0 <= estimate.high:
        sign = 0  # decided by runs that diverged
    return make_claim(
        (threshold.text, f"left minus right at {outcome.checkpoint}"),
        (estimate.value, estimate.low, estimate.high),
        sign,
        outcome_sentence(outcome),
        unit="logarithm" if threshold.left.quantity.is_factor else threshold.left.quantity.unit,
        comparisons=outcome.comparisons,
        covers=covers(threshold.left.quantity, estimate),
    )


def outcome_sentence(outcome: Outcome) -> str:
    """Say what became of a threshold at a checkpoint."""
    where = f"{outcome.threshold.text} at {outcome.checkpoint}"
    said = {"missed": "missed", "kept": "kept", "open": "open, which does not fail"}[outcome.status]
    estimate, quantity = outcome.estimate, outcome.threshold.left.quantity
    if outcome.reason or estimate is None:
        return one_space(f"{said}: {where} ({outcome.reason}).")
    if quantity.is_factor:
        value, interval = format_interval(*map(math.exp, (estimate.value, estimate.low, estimate.high)))
        return one_space(f"{said}: {where} (left over right {value}, {interval}).")
    value, interval = format_interval(estimate.value, estimate.low, estimate.high)
    return one_space(f"{said}: {where} (left minus right {f'{value} {quantity.unit}'.rstrip()}, {interval}).")
