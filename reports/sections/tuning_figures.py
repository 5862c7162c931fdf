"""A tuning drawn as Plotly figures: damping against curvature, χ with its spread, convergence, the replay's gaps."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lite_probe.reports.drawing import (
    SYMBOLS,
    Drawing,
    Figure,
    axis,
    colour,
    layout,
    log_axis,
    log_between,
    name_axis,
    reference_line,
    rounded,
    row_of,
    series_line,
    series_marker,
    spans,
    times,
)
from lite_probe.reports.numbers import format_number
from lite_probe.reports.sections.replay_figures import RANGE
from lite_probe.reports.sections.tuning_verdict import label_of, steps_to_pooled
from lite_probe.results.blocks import order_blocks
from lite_probe.results.replay import FloatArray
from lite_probe.results.tuning import Tuning

_BY_NAME = "<extra>%{fullData.name}</extra>"
_LEAST_GAP = 1e-6  # of the pooled loss change, below which a method is drawn at the lower edge
_DAMPINGS = (1e-3, 1e3)  # of the scale, beyond which a damping stands at the edge: it is none, or leaves no step
_SIZES = {"sharp": 12, "rest": 7}
WORDS = {"sharp": "sharp", "rest": "non-sharp"}


def own_curvatures(tuning: Tuning) -> FloatArray:
    """Return (k,) each group's own curvature, mean over nodes, in units of that on the evaluation batches."""
    return np.asarray(np.diagonal(tuning.models.curvatures, axis1=1, axis2=2).mean(axis=0))


def dampings(tuning: Tuning) -> tuple[FloatArray, FloatArray]:
    """Return (k,) e^x of each group, the nodes' mean logarithm and the pooled one."""
    return np.exp(tuning.damping_logs.mean(axis=0)), np.exp(tuning.pooled_damping_logs)


def draw_damping(name: str, tuning: Tuning) -> Drawing | None:
    """Draw the damping of every group against its curvature; pooled ones are hollow, sharp groups larger.

    A curvature that is not positive has no place on a logarithmic axis: its group stands at the left.
    """
    curvatures = own_curvatures(tuning)
    if not len(curvatures):
        return None
    found = dict(zip(("tuned", "pooled"), dampings(tuning), strict=True))
    positive = curvatures[curvatures > 0.0]
    low, high = (float(positive.min()), float(positive.max())) if len(positive) else (1.0, 1.0)
    left = 0.4 * low
    blocks, parts = tuning.models.blocks, tuning.models.parts
    figure, sentences = Figure(), []
    for place, block in enumerate(order_blocks(blocks)):
        at = [one for one, own in enumerate(blocks) if own == block]
        shown = [float(curvatures[one]) if curvatures[one] > 0.0 else left for one in at]
        symbol = SYMBOLS[(place + place // 6) % 6]
        for kind, values in found.items():
            is_tuned = kind == "tuned"
            marker = {
                "color": colour(place),
                "size": [_SIZES.get(parts[one], 7) for one in at],
                "opacity": 1.0,
                "symbol": symbol if is_tuned else f"{symbol}-open",
                "line": {"width": 0 if is_tuned else 1.6, "color": colour(place)},
            }
            figure.add_scatter(
                name=block if is_tuned else f"{block}, pooled",
                legendgroup=block,
                meta={"block": block},
                showlegend=is_tuned,
                x=[_six(one) for one in shown],
                y=rounded(np.clip(values[at], *_DAMPINGS)),
                customdata=[
                    (
                        f"{WORDS.get(parts[one], parts[one])}: {_damping_words(tuning, one, kind)}",
                        WORDS.get(parts[one], parts[one]),
                        float(curvatures[one]),
                        float(values[one]),
                    )
                    for one in at
                ],
                mode="markers",
                marker=marker,
                hovertemplate=f"%{{customdata[0]}}{_BY_NAME}",
            )
        sentences += [
            f"{block} {WORDS.get(parts[one], parts[one])}: {_damping_words(tuning, one, 'tuned')}, pooled "
            f"{format_number(float(found['pooled'][one]), 3)}."
            for one in at
        ]
    ends = np.clip(np.concatenate([*found.values()]), *_DAMPINGS)
    span = [0.6 * min(left if len(positive) < len(curvatures) else low, 1.0), 1.7 * max(high, 1.0)]
    figure.add_scatter(
        name="damping = curvature: the step is halved",
        x=[_six(one) for one in span],
        y=[_six(one) for one in span],
        mode="lines",
        line={"color": "var(--muted)", "width": 1.2, "dash": "dot"},
        hoverinfo="skip",
    )
    bottom, top = 0.5 * float(ends.min()), 2.0 * float(ends.max())
    figure.layout = layout(
        400,
        xaxis=log_between("own curvature (of that on the evaluation batches)", *span),
        yaxis=log_between("damping eˣ (in the same unit)", min(bottom, 0.5 * span[0]), max(top, span[1])),
        showlegend=True,
    )
    opening = "Damping of every group of directions against its own curvature."
    unit = "of that on the evaluation batches"
    columns = [("block", "name"), ("directions", "customdata.1"), (f"own curvature ({unit})", "customdata.2")]
    columns += [(f"damping eˣ ({unit})", "customdata.3")]
    return Drawing.of(figure, name, " ".join([opening, *sentences]), columns=columns)


def _damping_words(tuning: Tuning, at: int, kind: str) -> str:
    curvature = format_number(float(own_curvatures(tuning)[at]), 3)
    damping = dampings(tuning)[0 if kind == "tuned" else 1][at]
    return f"damping {format_number(float(damping), 3)} at curvature {curvature}"


def draw_ratios(name: str, tuning: Tuning) -> Drawing | None:
    """Draw χ of every block: tuned with its range over nodes, pooled, and by the step profile alone."""
    blocks = [one.block for one in tuning.tuned.blocks]
    if not blocks:
        return None
    profile = profile_ratios(tuning)
    series: list[tuple[str, dict[str, float], dict[str, tuple[float, float]]]] = [
        ("tuned", {one.block: one.ratio for one in tuning.tuned.blocks}, dict(tuning.spread)),
        ("pooled", {one.block: one.ratio for one in tuning.pooled.blocks}, {}),
        ("step profile alone", {block: profile[block] for block in blocks if block in profile}, {}),
    ]
    figure, ends = Figure(), [1.0]
    for place, (label, values, ranges) in enumerate(series):
        rows = dict(zip(blocks, row_of(blocks, place, len(series), 0.6), strict=True))
        drawn = [block for block in blocks if block in values]
        ends += [values[block] for block in drawn] + [end for block in drawn for end in ranges.get(block, ())]
        figure.add_scatter(
            name=label,
            legendgroup=label,
            meta={"block": times([block for block in drawn if block in ranges], 3)},
            **spans([(_six(ranges[b][0]), rows[b], _six(ranges[b][1]), rows[b]) for b in drawn if b in ranges]),
            mode="lines",
            line=series_line(place, 2),
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_scatter(
            name=label,
            legendgroup=label,
            x=[_six(values[block]) for block in drawn],
            y=[rows[block] for block in drawn],
            meta={"block": drawn},
            customdata=[
                (_ratio_words(block, values, ranges), values[block], *ranges.get(block, (None, None)))
                for block in drawn
            ],
            mode="markers",
            marker=series_marker(place, 10),
            hovertemplate=f"%{{customdata[0]}}{_BY_NAME}",
        )
    figure.layout = layout(
        110 + 60 * len(blocks),
        xaxis=log_between("χ", 0.8 * min(ends), 1.25 * max(ends)),
        yaxis=name_axis(blocks),
        shapes=[reference_line(x=1.0)],
        showlegend=True,
    )
    sentences = [
        f"{label}: {'; '.join(_ratio_words(block, values, ranges) for block in blocks if block in values) or 'none'}."
        for label, values, ranges in series
    ]
    columns = [("series", "name"), ("block", "y"), ("χ", "customdata.1")]
    columns += [("least χ over nodes", "customdata.2"), ("largest χ over nodes", "customdata.3")]
    summary = " ".join(["χ by block, with its range over nodes.", *sentences])
    return Drawing.of(figure, name, summary, columns=columns)


def _ratio_words(block: str, values: dict[str, float], ranges: dict[str, tuple[float, float]]) -> str:
    text = f"{block} {format_number(values[block], 3)}"
    if block in ranges:
        text += f" ({' to '.join(format_number(end, 3) for end in ranges[block])})"
    return text


def profile_ratios(tuning: Tuning) -> dict[str, float]:
    """Return χ of the step profile alone by block, as it was replayed."""
    found = tuning.candidates.get(f"{tuning.optimizer}@profile", {}).get("flat_lr_ratio")
    return {str(block): float(value) for block, value in found.items()} if isinstance(found, Mapping) else {}


def draw_convergence(name: str, tuning: Tuning, *, by_floats: bool) -> Drawing | None:
    """Draw how far every method is from the pooled solution, against gradients per node or floats sent."""
    unit = max(abs(tuning.pooled_loss), 1e-300)
    figure, sentences = Figure(), []
    ends: list[float] = []
    spent: list[int] = []
    for place, method in enumerate(tuning.methods):
        costs = method.floats if by_floats else method.gradients
        gaps = np.abs(method.upper_loss - tuning.pooled_loss) / unit
        shown = np.isfinite(gaps) & (costs > 0)
        if not shown.any():
            continue
        drawn = np.clip(gaps[shown], _LEAST_GAP, None)
        ends += [float(drawn.min()), float(drawn.max())]
        spent += costs[shown].tolist()
        figure.add_scatter(
            name=f"{method.name}, chosen" if method.is_chosen else method.name,
            x=costs[shown].tolist(),
            y=rounded(drawn),
            customdata=gaps[shown].tolist(),
            mode="lines",
            line=series_line(place, 3.5 if method.is_chosen else 1.4),
            hovertemplate=f"{'%{x:.3~s} floats' if by_floats else '%{x:,} gradients'}"
            f"<br>%{{customdata:.2~e}} of the pooled gain{_BY_NAME}",
        )
        arrived = steps_to_pooled(tuning, method)
        when = "not within 1%" if arrived is None else f"within 1% from step {arrived:,} on"
        sentences.append(f"{method.name}: {format_number(float(gaps[shown][-1]), 2)} at the end, {when}.")
    if not ends:
        return None
    what = "floats sent, over all edges" if by_floats else "gradients of each node"
    low, high = 0.6 * min(ends), 1.7 * max(ends)
    first, last = min(spent), max(spent)
    figure.layout = layout(
        360,
        xaxis=log_between(what, 0.9 * first, 1.1 * last) if last > first else log_axis(what),
        yaxis=log_between("|upper loss − pooled| / |pooled|", low, high),
        shapes=[reference_line(y=0.01)],
        showlegend=True,
    )
    opening = f"Distance of every method’s upper loss from the pooled solution’s, of that, against {what}."
    columns = [("method", "name"), (what, "x"), ("|upper loss − pooled| / |pooled|", "customdata")]
    return Drawing.of(figure, name, " ".join([opening, *sentences]), columns=columns)


def draw_gaps(name: str, tuning: Tuning) -> Drawing | None:
    """Draw every candidate's loss minus the base's by step, paired by seed: mean, least and largest."""
    replay = tuning.replay
    if replay is None:
        return None
    bases = {run.seed: run for run in replay.runs_of(tuning.base)}
    figure, sentences = Figure(), []
    for place, optimizer in enumerate(one for one in replay.optimizers if one != tuning.base):
        runs = [run for run in replay.runs_of(optimizer) if run.seed in bases]
        if not runs:
            continue
        gaps = np.stack([run.losses - bases[run.seed].losses for run in runs])
        steps = list(range(gaps.shape[1]))
        mean, low, high = (of(gaps, axis=0).tolist() for of in (np.mean, np.min, np.max))
        shade, label = colour(place), label_of(tuning, optimizer)
        outline: dict[str, Any] = {"fill": "toself", "fillcolor": shade, "opacity": 0.14}
        meta, reach = {"optimizer": optimizer}, RANGE if len(runs) > 1 else ""
        hidden = {"showlegend": False, "hoverinfo": "skip", "legendgroup": label, "mode": "lines"}
        figure.add_scatter(
            x=steps + steps[::-1], y=high + low[::-1], line={"width": 0, "color": shade}, meta=meta, **outline, **hidden
        )
        figure.add_scatter(
            x=steps,
            y=mean,
            name=label,
            legendgroup=label,
            meta=meta,
            mode="lines",
            line=series_line(place, 3 if optimizer.endswith("@tuned") else 1.6),
            hovertemplate=f"step %{{x}}<br>%{{y:.3~g}} nats{reach}{_BY_NAME}",
        )
        sentences.append(
            f"{label}: {format_number(mean[-1], 3)} nats ({format_number(low[-1], 3)} to {format_number(high[-1], 3)})."
        )
    if not sentences:
        return None
    figure.layout = layout(
        360,
        xaxis=axis("step"),
        yaxis=axis(f"loss − that of {tuning.base} (nats)"),
        shapes=[reference_line(y=0.0)],
        showlegend=True,
    )
    opening = f"Evaluation loss minus that of {tuning.base} by step, paired by seed; at the end, with the range:"
    return Drawing.of(figure, name, " ".join([opening, *sentences]))


def _six(value: float) -> float:
    """Keep six digits."""
    return float(f"{value:.6g}")
