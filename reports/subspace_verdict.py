"""What a subspace measurement allows one to say. An interval that holds "no difference" is never a claim."""

from collections.abc import Sequence

from lite_probe.reports.numbers import format_count, format_measured_share, format_number, format_share
from lite_probe.reports.verdict import Point, Verdict
from lite_probe.results.estimate import Ratio
from lite_probe.results.spectrum import OperatorSpectrum
from lite_probe.results.subspace import (
    BlockCalibration,
    Overlap,
    ProxyCalibration,
    SubspaceMeasurement,
    evenness,
    root_mean_square_condition,
)

# Overlaps below and above which two subspaces are called different, and alike.
_LITTLE, _MUCH = 0.2, 0.8
_RESIDUAL = 0.05  # relative, above which the vectors themselves are in doubt
_CONCENTRATED = 10.0  # times k/N, above which a gradient is said to lie in the subspace
LOOSE = 20.0  # times the ratio, beyond which an interval's upper end bounds nothing


def judge_subspace(found: SubspaceMeasurement) -> Verdict:
    """Say how sharp directions lie, and whether LITE's proxies find them."""
    points = [_overlap(one) for one in found.overlaps]
    points += [_assumption(calibration) for calibration in found.calibrations.values()]
    points += [
        _metric(found.spectrum, name, calibration, calibration.preconditioned)
        for name, calibration in found.calibrations.items()
        if calibration.preconditioned is not None
    ]
    return Verdict(lead=_gradient(found), points=tuple(points))


def _gradient(found: SubspaceMeasurement) -> str:
    """Say whether the gradient lies in the sharp subspace, against k/N and against random ones."""
    batch = found.batch_gradient_share
    sharpest = "sharpest" if found.size == 1 else f"{found.size} sharpest"
    text = (
        f"{format_share(found.gradient_share)} of the gradient's energy lies in the {sharpest} of "
        f"{format_count(found.num_parameters)} directions"
    )
    times = found.gradient_share / found.expected_share
    random = "a random one" if found.size == 1 else f"{found.size} random ones"
    # A share scatters over random subspaces by √(2k)/N; their own interval says by how much here.
    if found.gradient_share <= found.random_share.high:
        text += f", no more than in {random}"
    elif times >= _CONCENTRATED:
        text += f", {format_number(times, 2)} times as much as in {random}"
    else:
        text += f", {format_number(times, 2)} times k/N: not concentrated there"
    share = format_measured_share(batch.value, max(batch.low, 0.0), min(batch.high, 1.0))
    return f"{text}; in the gradients of single training batches it is {share}."


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
    return Point(tone=tone, text=text + doubt)


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


def _assumption(calibration: ProxyCalibration) -> Point:
    """Say in which blocks what LITE calls sharp is sharper than what it calls flat."""
    by_answer: dict[str, list[str]] = {}
    for name, block in calibration.blocks.items():
        by_answer.setdefault(block.assumption, []).append(_with_contrast(name, block))
    words = (
        ("holds", "what it calls sharp is sharper than what it calls flat in"),
        ("fails", "it is the other way round in"),
        ("open", "not decided within the error in"),
        ("not used", "no difference is made in"),
    )
    parts = [f"{sentence} {_list(by_answer[answer])}" for answer, sentence in words if answer in by_answer]
    tone = "plain"
    if "fails" in by_answer:
        tone = "caution"
    elif "holds" in by_answer and "open" not in by_answer:
        tone = "good"
    return Point(tone=tone, text=f"{calibration.optimizer}: {'; '.join(parts) or 'no block was calibrated'}.")


def _with_contrast(name: str, block: BlockCalibration) -> str:
    """Name a block with how much sharper its sharp directions are, as far as that is known."""
    if block.assumption not in ("holds", "fails"):
        return name
    text = contrast_text(block.contrast)
    # A lower bound below 1 says less than the difference did.
    says_less = block.assumption == "holds" and block.contrast is not None and (block.contrast.low or 0.0) < 1.0
    if text and not says_less:
        return f"{name} ({text})"
    flat = block.flat_curvature
    return f"{name} (its flat directions curve downward)" if flat is not None and flat.high < 0.0 else name


def contrast_text(contrast: Ratio | None) -> str:
    """Write κ_sharp/κ_flat with what is known of it; empty where nothing is."""
    if contrast is None or contrast.low is None or contrast.low <= 0.0:
        return ""
    if contrast.high is None or contrast.value is None or contrast.high > LOOSE * contrast.value:
        return f"95%: at least ×{format_number(contrast.low, 2)}"
    return f"×{_interval(contrast.value, contrast.low, contrast.high)}"


def _metric(plain: OperatorSpectrum, name: str, calibration: ProxyCalibration, measured: OperatorSpectrum) -> Point:
    """Say how far a geometry evens the curvature out: λ₁ over the root mean square λ, with and without it."""
    geometry = name.removesuffix("-lite")
    before, after = (root_mean_square_condition(one) for one in (plain, measured))
    change = evenness(plain, calibration)
    if change is None or change.value is None or before is None or after is None:
        return Point(tone="plain", text=f"In the metric of {geometry} λ₁ over the root mean square λ is not known.")
    is_open = f"How far the metric of {geometry} evens the curvature out is open: "
    if not (plain.converged[0] and measured.converged[0]):
        return Point(tone="caution", text=f"{is_open}λ₁ has not converged.")
    if change.low is None or change.high is None:
        return Point(tone="caution", text=f"{is_open}how much its state depends on the batches was not measured.")
    words = f"λ₁ over the root mean square λ {{}} from {format_number(before, 3)} to {format_number(after, 3)}"
    covered = ", over probes and warm-up batches"
    if change.low > 1.0:
        size = f"÷{_interval(change.value, change.low, change.high)}{covered}"
        text = f"The metric of {geometry} evens the curvature out: {words.format('falls')} ({size})."
    elif change.high < 1.0:
        size = f"×{_interval(1.0 / change.value, 1.0 / change.high, 1.0 / change.low)}{covered}"
        text = f"The metric of {geometry} makes the curvature less even: {words.format('rises')} ({size})."
    else:
        size = f"÷{_interval(change.value, change.low, change.high)}{covered}"
        text = f"In the metric of {geometry} {words.format('does not change beyond its error,')} ({size})."
    return Point(tone="plain", text=text)


def _interval(value: float, low: float, high: float) -> str:
    """Write a factor with its 95% interval."""
    return f"{format_number(value, 2)}, 95%: {format_number(low, 2)} to {format_number(high, 2)}"


def _list(names: Sequence[str]) -> str:
    """Join names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
