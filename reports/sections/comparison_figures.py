"""A comparison drawn: one picture per quantity against the step of training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lite_probe.reports.drawing import (
    Drawing,
    Figure,
    axis,
    error_bars,
    layout,
    log_between,
    reference_line,
    series_line,
    series_marker,
)
from lite_probe.reports.numbers import format_number
from lite_probe.reports.table import half_width
from lite_probe.results.blocks import order_blocks
from lite_probe.results.comparison import Comparison, Side
from lite_probe.results.estimate import Estimate, Ratio

Value = Estimate | Ratio
_APART = 0.012  # of the whole axis, between series


@dataclass(frozen=True, slots=True, kw_only=True)
class _Point:
    """One mark."""

    label: str
    value: float
    low: float | None  # None where nothing bounds it
    high: float | None


def draw_landscape(comparison: Comparison, quantity: str, title: str) -> Drawing | None:
    """Draw a quantity of the spectrum or the subspace against training; None below two checkpoints."""
    found = {"": _points(comparison, [one.landscape.get(quantity) for one in comparison.checkpoints])}
    return _draw(comparison, quantity.replace("_", "-"), title, found, "", is_log=False)


def draw_blocks_moved(comparison: Comparison) -> Drawing | None:
    """Draw λ₁ of every block against training."""
    measured = [one.block_lambda_1 for one in comparison.checkpoints]
    return _draw_blocks(comparison, "block-lambda-1", "λ₁ of blocks (loss/param²)", measured)


def draw_ratios(comparison: Comparison) -> list[Drawing]:
    """Draw χ̂ by block against training, a figure per optimizer."""
    drawings = []
    for number, name in enumerate(comparison.optimizers, 1):
        measured = [one.entries[name].ratios if name in one.entries else {} for one in comparison.checkpoints]
        drawing = _draw_blocks(comparison, f"chi-{number}", "χ̂", measured, line=1.0, title=name)
        drawings += [] if drawing is None else [drawing]
    return drawings


def _draw_blocks(
    comparison: Comparison,
    name: str,
    axis_title: str,
    measured: Sequence[Mapping[str, Value]],
    line: float | None = None,
    title: str = "",
) -> Drawing | None:
    """Draw what was measured of blocks at each checkpoint."""
    blocks = order_blocks(dict.fromkeys(block for values in measured for block in values))
    found = {block: _points(comparison, [values.get(block) for values in measured]) for block in blocks}
    return _draw(comparison, name, axis_title, found, "block", is_log=True, line=line, title=title)


def draw_optimizers(
    comparison: Comparison, quantity: str, title: str, *, is_log: bool = False, line: float | None = None
) -> Drawing | None:
    """Draw a quantity of every optimizer against training; None below two checkpoints."""
    found = {
        name: _points(
            comparison,
            [comparison.value(Side(subject=name, checkpoint=label), quantity) for label in comparison.labels],
        )
        for name in comparison.optimizers
    }
    return _draw(comparison, quantity.replace("_", "-"), title, found, "optimizer", is_log=is_log, line=line)


def _points(comparison: Comparison, values: Sequence[Value | None]) -> list[_Point]:
    """Return the marks of what was measured at each checkpoint."""
    found = []
    for label, value in zip(comparison.labels, values, strict=True):
        if value is None or value.value is None:
            continue
        has_error = isinstance(value, Ratio) or half_width(value) is not None
        low, high = (value.low, value.high) if has_error else (value.value, value.value)
        found.append(_Point(label=label, value=value.value, low=low, high=high))
    return found


def _draw(
    comparison: Comparison,
    name: str,
    axis_title: str,
    series: Mapping[str, Sequence[_Point]],
    what: str,
    *,
    is_log: bool,
    line: float | None = None,
    title: str = "",
) -> Drawing | None:
    """Draw series against training with their 95% intervals; None where no series has a value."""
    shown = {key: points for key, points in series.items() if points}
    if is_log:
        positive = {key: [point for point in points if point.value > 0.0] for key, points in shown.items()}
        shown = {key: points for key, points in positive.items() if points}
    if not shown or len(comparison.checkpoints) < 2:
        return None
    places, horizontal = _horizontal(comparison)
    reach = max(places.values()) - min(places.values())
    figure, sentences = Figure(), []
    for place, (key, points) in enumerate(series.items()):
        if key not in shown:
            continue
        points = shown[key]
        # Beside one another, so that each bar is seen.
        shift = _APART * reach * (place - (len(series) - 1) / 2)
        figure.add_scatter(
            x=[float(f"{places[one.label] + shift:.6g}") for one in points],
            y=[float(f"{one.value:.6g}") for one in points],
            customdata=[one.label for one in points],
            error_y=error_bars(
                [0.0 if one.high is None else one.high - one.value for one in points],
                series_line(place, 1)["color"],
                [0.0 if one.low is None or (is_log and one.low <= 0.0) else one.value - one.low for one in points],
            ),
            name=key,
            meta={what: key} if what else {},
            mode="lines+markers",
            line=series_line(place, 1.5),
            marker=series_marker(place, 7),
            showlegend=bool(key),
            hovertemplate=f"%{{customdata}}<br>%{{y:.4~g}}<extra>{'%{fullData.name}' if key else ''}</extra>",
        )
        ends = [format_number(one.value, 3) for one in (points[0], points[-1])]
        told = f"{ends[0]} at {points[0].label}, {ends[1]} at {points[-1].label}." if len(points) > 1 else f"{ends[0]}."
        sentences.append(f"{key}: {told}" if key else told)
    vertical = axis(axis_title)
    if is_log:
        marks = [mark for points in shown.values() for one in points for mark in (one.low, one.value, one.high)]
        positive_marks = [mark for mark in marks if mark is not None and mark > 0.0]
        vertical = log_between(axis_title, min(positive_marks) / 1.3, max(positive_marks) * 1.3)
    lines = {} if line is None else {"shapes": [reference_line(y=line)]}
    figure.layout = layout(340, xaxis=horizontal, yaxis=vertical, **lines)
    heading = f"{title}: {axis_title}" if title else axis_title
    return Drawing.of(figure, f"comparison-{name}", " ".join([f"{heading} by checkpoint.", *sentences]), title)


def _horizontal(comparison: Comparison) -> tuple[dict[str, float], dict[str, Any]]:
    """Return where each checkpoint stands, and the axis: its step, or its place where steps are not known or equal."""
    steps = {one.label: float(one.step) for one in comparison.checkpoints if one.step is not None}
    if len(set(steps.values())) == len(comparison.checkpoints):
        return steps, axis("step of training", tickformat=",d")
    order = comparison.labels
    ticks = {"tickvals": list(range(len(order))), "ticktext": list(order), "range": [-0.4, len(order) - 0.6]}
    return {label: float(place) for place, label in enumerate(order)}, axis("", **ticks)
