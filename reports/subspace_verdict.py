"""What a subspace measurement allows one to say. An interval that holds "no difference" is never a claim."""

from collections.abc import Sequence

from lite_probe.reports.numbers import format_number, format_share, format_uncertain
from lite_probe.reports.verdict import Point, Verdict
from lite_probe.results.estimate import Ratio
from lite_probe.results.subspace import (
    BlockCalibration,
    Overlap,
    ProxyCalibration,
    SubspaceMeasurement,
    root_mean_square_condition,
)

# Overlaps below and above which two subspaces are called different, and alike.
_LITTLE, _MUCH = 0.2, 0.8
_UNBOUNDED = 20.0  # a ratio whose upper limit is so many times its value says no more than its lower limit
_RESIDUAL = 0.05  # relative, above which the vectors themselves are in doubt


def judge_subspace(found: SubspaceMeasurement) -> Verdict:
    """Say how sharp directions lie, and whether LITE's proxies find them."""
    points = [_overlap(one) for one in found.overlaps]
    for calibration in found.calibrations.values():
        points.append(_assumption(calibration))
    points += _metrics(found)
    return Verdict(lead=_gradient(found), points=tuple(points))


def _gradient(found: SubspaceMeasurement) -> str:
    batch = found.batch_gradient_share
    times = found.gradient_share / found.expected_share if found.expected_share else 0.0
    words = (
        f"{format_share(found.gradient_share)} of the gradient's energy lies in the {found.size} sharpest of "
        f"{found.num_parameters:,} directions"
    )
    # Random shares scatter about k/N by √(2k)/N: a share within a few of that is no concentration.
    if found.gradient_share > found.random_share.high and times > 10:
        words += f", {format_number(times, 2)} times as much as in {found.size} random ones"
    elif found.gradient_share <= found.random_share.high:
        words += ", no more than in random ones"
    return f"{words}; of single training batches it is {format_share(batch.value, batch.stderr)}."


def _overlap(one: Overlap) -> Point:
    value = f"{format_share(one.overlap)} (mean cos² of {len(one.angles)} angles; at random "
    value += f"{format_number(one.expected_at_random, 2)})"
    doubt = ""
    if one.residual > _RESIDUAL:
        doubt = f" Their vectors are known to a relative residual of {format_number(one.residual, 1)} only."
    if one.kind == "batches":
        if one.overlap >= _MUCH:
            text = f"The sharp subspace is the data's: those of two halves of the batches overlap by {value}."
        elif one.overlap <= _LITTLE:
            text = f"The sharp subspace is the batch's: those of two halves of the batches overlap by only {value}."
        else:
            text = f"The sharp subspace is in part the batch's: those of two halves of the batches overlap by {value}."
        return Point(tone="plain" if one.overlap >= _MUCH else "caution", text=text + doubt)
    if one.kind == "operators":
        return Point(tone="plain", text=f"{one.first} and {one.second} share {value} of the sharp subspace.{doubt}")
    moved = "stayed" if one.overlap >= _MUCH else "turned" if one.overlap > _LITTLE else "turned away"
    return Point(
        tone="plain", text=f"From {one.first} to {one.second} the sharp subspace {moved}: overlap {value}.{doubt}"
    )


def _assumption(calibration: ProxyCalibration) -> Point:
    """Say in which blocks what LITE calls sharp is sharper than what it calls flat."""
    by_answer: dict[str, list[str]] = {}
    for name, block in calibration.blocks.items():
        by_answer.setdefault(block.assumption, []).append(_with_contrast(name, block))
    parts = []
    if held := by_answer.get("holds"):
        parts.append(f"what it calls sharp is sharper than what it calls flat in {_list(held)}")
    if failed := by_answer.get("fails"):
        parts.append(f"it is the other way round in {_list(failed)}")
    if still_open := by_answer.get("open"):
        parts.append(f"not decided within the error in {_list(still_open)}")
    if unused := by_answer.get("not used"):
        parts.append(f"no difference is made in {_list(unused)}")
    tone = "caution" if failed else "good" if held and not still_open else "plain"
    return Point(tone=tone, text=f"{calibration.optimizer}: {'; '.join(parts) or 'no block was calibrated'}.")


def _with_contrast(name: str, block: BlockCalibration) -> str:
    if block.assumption not in ("holds", "fails"):
        return name
    text = contrast_text(block.contrast)
    if text:
        return f"{name} ({text})"
    flat = block.flat_curvature
    return f"{name} (its flat directions curve downward)" if flat is not None and flat.high < 0.0 else name


def contrast_text(contrast: Ratio | None) -> str:
    """Write κ_sharp/κ_flat with what is known of it; empty where nothing is."""
    if contrast is None or contrast.low is None or (contrast.low <= 1.0 and contrast.high is None):
        return ""
    if contrast.high is None or contrast.value is None or contrast.high > _UNBOUNDED * contrast.value:
        return f"at least ×{format_number(contrast.low, 2)}"
    return f"×{format_number(contrast.value, 2)}, {format_number(contrast.low, 2)} to {format_number(contrast.high, 2)}"


def _metrics(found: SubspaceMeasurement) -> list[Point]:
    """Say how far each geometry evens the curvature out."""
    plain = root_mean_square_condition(found.spectrum)
    points = []
    for name, calibration in found.calibrations.items():
        measured = calibration.preconditioned
        condition = root_mean_square_condition(measured) if measured is not None else None
        if measured is None or condition is None or plain is None or not bool(measured.converged[:1].all()):
            continue
        error = _relative_error(found) + 0.5 * measured.trace_h2.stderr / max(measured.trace_h2.value, 1e-300)
        factor = plain / condition
        doubt = 2.0 * factor * error
        change = f"from {format_number(plain, 3)} to {format_number(condition, 3)}"
        what, metric = "λ₁ over the root mean square |λ|", name.removesuffix("-lite")
        if abs(factor - 1.0) <= doubt:
            text = f"In the metric of {metric} {what} does not change beyond its error ({change})."
        elif factor > 1.0:
            size = format_uncertain(factor, factor * error)
            text = f"The metric of {metric} evens the curvature out: {what} falls {change} (÷{size})."
        else:
            size = format_uncertain(1.0 / factor, error / factor)
            text = f"The metric of {metric} makes the curvature less even: {what} rises {change} (×{size})."
        points.append(Point(tone="plain", text=text))
    return points


def _relative_error(found: SubspaceMeasurement) -> float:
    squares = found.spectrum.trace_h2
    return 0.5 * squares.stderr / squares.value if squares.value > 0.0 else 0.0


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
