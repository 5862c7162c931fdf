"""What a training run's points allow one to say: how λ₁ moved, and how near the steps were to the critical ones."""

from collections.abc import Sequence

from lite_probe.reports.numbers import count_of, format_bounded, format_number, format_share
from lite_probe.reports.verdict import Point, Verdict, make_claim, one_space
from lite_probe.results.claim import Claim
from lite_probe.results.training import Training, TrainingPoint

_NAMED = 5  # steps that a sentence names


def judge_training(training: Training) -> Verdict:
    """Say how curvature moved, and whether steps stayed below the critical ones."""
    if not training.points:
        return Verdict(lead="No step of this run was measured; the notes say why.", points=())
    claims = _change(training)
    opening = " ".join(claim.sentence for claim in claims) or _single(training)
    points = [point for point in (_beyond(training), _direction(training), _open(training)) if point is not None]
    return Verdict(lead=one_space(f"{opening} {_edge(training)}"), points=tuple(points), leading=claims)


def _sharp(training: Training) -> list[TrainingPoint]:
    return [point for point in training.points if point.eigenvalues]


def _change(training: Training) -> tuple[Claim, ...]:
    """Claim that λ₁ rose, by what the residuals allow; nothing where fewer than two were measured and converged."""
    found = [point for point, is_told in zip(training.points, training.converged, strict=True) if is_told]
    if len(found) < 2:
        return ()
    first, last = found[0], found[-1]
    before, after = first.eigenvalues[0], last.eigenvalues[0]
    reach = first.residual_norms[0] + last.residual_norms[0]
    change = after - before
    sign = 0 if abs(change) <= reach else 1 if change > 0.0 else -1
    texts = [format_bounded(point.eigenvalues[0], point.residual_norms[0]) for point in (first, last)]
    word = {1: "rose from", -1: "fell from", 0: "did not change beyond its error, from"}[sign]
    factor = f" (×{format_number(after / before, 3)})" if sign and before > 0.0 and after > 0.0 else ""
    sentence = f"From step {first.step:,} to {last.step:,} λ₁ {word} {texts[0]} to {texts[1]} loss/param²{factor}."
    bounds = (change, change - reach, change + reach)
    about = ("largest eigenvalue", f"at step {last.step} minus at step {first.step}")
    covers = "the residuals, on these batches"
    return (make_claim(about, bounds, sign, sentence, covers=covers, confidence=1.0),)


def _single(training: Training) -> str:
    """Say what λ₁ is where there is nothing to compare it with."""
    found = _sharp(training)
    if not found:
        return "No curvature was measured."
    last = found[-1]
    value = format_bounded(last.eigenvalues[0], last.residual_norms[0])
    return f"At step {last.step:,} λ₁ is {value} loss/param²."


def _edge(training: Training) -> str:
    """Say how long the steps were beside the critical ones."""
    ratios = [ratio for point in training.points if (ratio := point.edge_ratio) is not None]
    if not ratios:
        return "At none of its points was a critical step found."
    low, high = format_number(min(ratios), 2), format_number(max(ratios), 2)
    span = low if low == high else f"{low} to {high}"
    return f"The steps taken were {span} of the critical ones, at {count_of(len(ratios), 'point')}."


def _beyond(training: Training) -> Point | None:
    """Name the steps that raised the loss on these batches."""
    raised = [
        point.step
        for point in training.points
        if point.always_rises or ((bounds := point.critical_bounds) is not None and bounds[1] <= 1.0)
    ]
    if not raised:
        return None
    text = (
        f"The updates at {len(raised)} of {count_of(len(training.points), 'point')} raised the loss on these batches: "
        f"at step {_named(raised)}."
    )
    return Point(tone="caution", text=text)


def _direction(training: Training) -> Point | None:
    """Say how much of the gradient lies along the leading eigenvectors."""
    shares = [(point.step, share) for point in training.points if (share := point.gradient_share) is not None]
    if not shares:
        return None
    step, share = shares[-1]
    what = "the leading eigenvector" if training.top == 1 else f"the {training.top} leading eigenvectors"
    text = (
        f"At step {step:,} the gradient has {format_share(share)} of its squared norm along {what}; a random vector "
        f"has {format_number(training.expected_share, 2)}."
    )
    return Point(tone="plain", text=one_space(text))


def _open(training: Training) -> Point | None:
    """Name the points whose λ₁ has not converged."""
    found = [
        point.step
        for point, is_told in zip(training.points, training.converged, strict=True)
        if point.eigenvalues and not is_told
    ]
    if not found:
        return None
    text = (
        f"λ₁ has not converged at step {_named(found)}: it is a lower bound there, and its residual says how far off "
        "it may be."
    )
    return Point(tone="caution", text=text)


def _named(steps: Sequence[int]) -> str:
    more = f" and {len(steps) - _NAMED} more" if len(steps) > _NAMED else ""
    return ", ".join(f"{step:,}" for step in steps[:_NAMED]) + more
