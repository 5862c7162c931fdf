"""What a subspace measurement allows one to say. An interval that holds "no difference" is never a claim."""

import math
from collections.abc import Mapping

from lite_probe.reports.numbers import count_of, format_count, format_measured_share, format_number, format_share
from lite_probe.reports.sections.subspace_figures import format_ratio, upper_end
from lite_probe.reports.verdict import Point, Verdict, base_name, batch_words, join_names, make_claim, one_space
from lite_probe.results.blocks import order_blocks
from lite_probe.results.claim import Claim, decide
from lite_probe.results.estimate import Estimate, Ratio
from lite_probe.results.subspace import (
    BlockCalibration,
    Overlap,
    SubspaceMeasurement,
    evenness,
    root_mean_square_condition,
)

# Overlaps below and above which two subspaces are called different, and alike.
_LITTLE, _MUCH = 0.2, 0.8
_RESIDUAL = 0.05  # relative, above which the vectors themselves are in doubt
_CONCENTRATED = 10.0  # times k/N, above which a gradient is said to lie in the subspace
_BY_SIGN = {1: "holds", 0: "open", -1: "fails"}
_ANSWERS = {
    "holds": "In {} what {} calls sharp is sharper than what it calls flat{}.",
    "fails": "In {} what {} calls sharp is less sharp than what it calls flat{}.",
    "open": "In {} what {} calls sharp is not told from what it calls flat{}.",
}


def judge_subspace(found: SubspaceMeasurement) -> Verdict:
    """Say how sharp directions lie, and whether LITE's proxies find them."""
    lead = _gradient(found)
    answers = judge_blocks(found)
    points = [_overlap(one) for one in found.overlaps]
    points += [_assumption(found, name, answers) for name in found.calibrations]
    points += [*_metrics(found), *_corrected(found, answers)]
    return Verdict(lead=lead.sentence, points=tuple(points), leading=(lead,))


def _gradient(found: SubspaceMeasurement) -> Claim:
    """Say whether the gradient lies in the sharp subspace, against k/N and against random ones."""
    batch, random = found.batch_gradient_share, found.random_share
    sharpest = "sharpest" if found.size == 1 else f"{found.size} sharpest"
    text = (
        f"{format_share(found.gradient_share)} of the gradient's energy lies in the {sharpest} of "
        f"{format_count(found.num_parameters)} directions"
    )
    times = found.gradient_share / found.expected_share
    others = "a random one" if found.size == 1 else f"{found.size} random ones"
    # A share scatters over random subspaces by √(2k)/N; their own interval says by how much here.
    if found.gradient_share <= random.high:
        text += f", no more than in {others}"
    elif times >= _CONCENTRATED:
        text += f", {format_number(times, 2)} times as much as in {others}"
    else:
        text += f", {format_number(times, 2)} times k/N: not concentrated there"
    share = format_measured_share(batch.value, max(batch.low, 0.0), min(batch.high, 1.0))
    low = found.gradient_share - random.high
    return make_claim(
        ("gradient", "share of its energy in the sharp subspace minus that in random ones"),
        (found.gradient_share - random.value, low, found.gradient_share - random.low),
        int(low > 0.0),
        f"{text}; in the gradients of single training batches it is {share}.",
        unit="",
        covers=count_of(random.num_samples, "random subspace") if random.num_samples else "random subspaces",
    )


def _overlap(one: Overlap) -> Point:
    """Say how alike two sharp subspaces are; an overlap of vectors in doubt is a lower bound at best."""
    value = (
        f"{format_share(one.overlap)} (mean cos² of {len(one.angles)} angle{'' if len(one.angles) == 1 else 's'}; "
        f"at random {format_number(one.expected_at_random, 2)})"
    )
    is_doubtful = one.residual > _RESIDUAL and one.overlap < _MUCH
    doubt = ""
    if one.residual > _RESIDUAL:
        doubt = f" Their vectors are known to a relative residual of {format_number(one.residual, 1)} only"
        doubt += ", so that the true overlap may be larger." if is_doubtful else "."
    tone = "caution" if is_doubtful else "plain"
    if one.kind == "batches":
        tone, text = _overlap_of_batches(one.overlap, value, is_doubtful)
    elif one.kind == "checkpoints":
        turned = "stayed" if one.overlap >= _MUCH else "turned in part" if one.overlap > _LITTLE else "turned away"
        change = "overlaps by" if is_doubtful else f"{turned}: overlap"
        text = f"From {one.first} to {one.second} the sharp subspace {change} {value}."
    else:
        alike = " and agree on it" if one.overlap >= _MUCH else ""
        text = f"{one.first} and {one.second} share {value} of the sharp subspace{alike}."
    return Point(tone=tone, text=one_space(text + doubt))


def _overlap_of_batches(overlap: float, value: str, is_doubtful: bool) -> tuple[str, str]:
    """Say whose the sharp subspace is, by two halves of the batches."""
    halves = f"those of two halves of the batches overlap by {value}."
    if is_doubtful:
        return "caution", f"Whether the sharp subspace is the data's is open: {halves}"
    if overlap >= _MUCH:
        return "good", f"The sharp subspace is the data's: {halves}"
    if overlap > _LITTLE:
        return "caution", f"The sharp subspace is in part the batch's: {halves}"
    return "caution", f"The sharp subspace is the batch's: {halves}"


def judge_blocks(found: SubspaceMeasurement) -> dict[tuple[str, str], Claim]:
    """Ask of every proxy and block whether what LITE calls sharp is sharper; decided together.

    Returns:
        (optimizer, block) → claim, where a difference between directions is made at all.
    """
    blocks = {
        (optimizer, name): calibration.blocks[name]
        for optimizer, calibration in found.calibrations.items()
        for name in order_blocks(calibration.blocks)
    }
    asked = {key: block.difference for key, block in blocks.items() if block.difference is not None}
    signs = dict(zip(asked, decide(list(asked.values())), strict=True))
    return {
        (optimizer, name): make_claim(
            (optimizer, f"κ sharp minus κ flat in {name}"),
            (one.value, one.low, one.high),
            signs[optimizer, name],
            _sentence(optimizer, name, blocks[optimizer, name], _BY_SIGN[signs[optimizer, name]]),
            comparisons=len(asked),
            covers=count_of(one.num_samples, "probe"),
        )
        for (optimizer, name), one in asked.items()
    }


def _assumption(found: SubspaceMeasurement, optimizer: str, answers: Mapping[tuple[str, str], Claim]) -> Point:
    """Say in which blocks what LITE calls sharp is sharper than what it calls flat."""
    claims = [claim for (name, _), claim in answers.items() if name == optimizer]
    blocks = found.calibrations[optimizer].blocks
    unused = [name for name in order_blocks(blocks) if blocks[name].difference is None]
    sentences = [claim.sentence for claim in claims]
    if unused:
        sentences.append(f"{optimizer} makes no difference between directions in {join_names(unused)}.")
    statuses, tone = {claim.status for claim in claims}, "plain"
    if "fails" in statuses:
        tone = "caution"
    elif statuses == {"holds"}:
        tone = "good"
    text = " ".join(sentences) or f"No block was calibrated for {optimizer}."
    batch = batch_words(found.provenance)
    if batch and claims:
        text += f" Its state was warmed on batches of {batch}."
    return Point(tone=tone, text=text, claims=tuple(claims))


def _sentence(optimizer: str, name: str, block: BlockCalibration, status: str) -> str:
    """Say of a block how much sharper its sharp directions are, as far as that is known."""
    ratio, flat, text = told_contrast(block, status), block.flat_curvature, ""
    if status != "open" and ratio is not None and ratio.low is not None and ratio.low > 0.0:
        text = f" (×{format_ratio(ratio).replace(' (', ', 95%: ')}"
        if upper_end(ratio) is None:
            text = f" (95%: at least ×{format_number(ratio.low, 2)})"
    elif status != "open" and flat is not None and flat.high < 0.0:
        text = ", whose directions curve downward"
    return _ANSWERS[status].format(name, optimizer, text)


def told_contrast(block: BlockCalibration, status: str) -> Ratio | None:
    """Return κ_sharp/κ_flat unless it says less than the difference did: a lower bound below 1 of what is sharper."""
    ratio = block.contrast
    return None if status == "holds" and ratio is not None and (ratio.low or 0.0) < 1.0 else ratio


def _metrics(found: SubspaceMeasurement) -> list[Point]:
    """Say how far each geometry evens the curvature out: λ₁ over the root mean square λ, with and without it."""
    measured = {
        base_name(name): (one.preconditioned, evenness(found.spectrum, one))
        for name, one in found.calibrations.items()
        if one.preconditioned is not None
    }
    plain, points = found.spectrum, {}
    asked: dict[str, Estimate] = {}
    for name, (spectrum, change) in measured.items():
        is_open = f"How far the metric of {name} evens the curvature out is open: "
        if change is None or change.value is None or (change.stderr is None and change.low is not None):
            text = f"In the metric of {name} λ₁ over the root mean square λ is not known."
            points[name] = Point(tone="plain", text=text)
        elif not (plain.converged[0] and spectrum.converged[0]):
            points[name] = Point(tone="caution", text=f"{is_open}λ₁ has not converged.")
        elif change.low is None or change.high is None or change.stderr is None:
            text = f"{is_open}how much its state depends on the batches was not measured."
            points[name] = Point(tone="caution", text=text)
        else:
            asked[name] = Estimate(
                value=math.log(change.value),
                stderr=change.stderr / change.value,
                low=math.log(change.low),
                high=math.log(change.high),
                num_samples=change.num_samples,
            )
    before = root_mean_square_condition(plain)
    for (name, one), sign in zip(asked.items(), decide(list(asked.values())), strict=True):
        after = root_mean_square_condition(measured[name][0])
        factors = [math.exp(bound) for bound in (one.value, one.low, one.high)]
        mark = "÷"
        if sign < 0:
            factors, mark = [1.0 / factors[place] for place in (0, 2, 1)], "×"
        value, low, high = (format_number(factor, 2) for factor in factors)
        moved = f"from {format_number(before, 3)} to {format_number(after, 3)} ({mark}{value}, 95%: {low} to {high}, "
        moved += "over probes and warm-up batches)."
        ratio = "λ₁ over the root mean square λ"
        sentence = {
            1: f"The metric of {name} evens the curvature out: {ratio} falls {moved}",
            0: f"In the metric of {name} {ratio} does not change beyond its error, {moved}",
            -1: f"The metric of {name} makes the curvature less even: {ratio} rises {moved}",
        }[sign]
        claim = make_claim(
            (name, "logarithm of λ₁ over the root mean square λ without the metric, minus that with it"),
            (one.value, one.low, one.high),
            sign,
            sentence,
            unit="",
            comparisons=len(asked),
            covers=f"probes and {count_of(one.num_samples, 'group')} of warm-up batches",
        )
        points[name] = Point(tone="plain", text=claim.sentence, claims=(claim,))
    return [points[name] for name in measured]


def _corrected(found: SubspaceMeasurement, answers: Mapping[tuple[str, str], Claim]) -> list[Point]:
    """Say what was corrected for how many comparisons, and what the intervals cover."""
    if not answers:
        return []
    text = (
        f"Which blocks are told was decided after Holm's correction over {count_of(len(answers), 'comparison')}; "
        f"intervals are 95%, not corrected, over {count_of(found.num_probes, 'probe')}, for these evaluation batches."
    )
    if any(claim.status == "open" for claim in answers.values()):
        text += " More probes may tell what is not told."
    return [Point(tone="plain", text=text)]
