"""A replay drawn as Plotly figures."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from lite_probe.reports.drawing import (
    Drawing,
    Figure,
    axis,
    band_axis,
    colour,
    error_bars,
    layout,
    log_axis,
    log_between,
    reference_line,
    rounded,
    series_line,
    series_marker,
)
from lite_probe.reports.numbers import count_of, format_number, format_uncertain
from lite_probe.reports.sections.replay_verdict import EDGE, told_horizon
from lite_probe.reports.table import estimate_cell, half_width
from lite_probe.results.estimate import Estimate, t_reach
from lite_probe.results.replay import HORIZON_SHARE, FloatArray, Means, Replay

_LEVEL = 56  # letters that fit below a narrow figure
_PROGRESS = "progress (nats)"
_ERROR = "half of the 95% interval (nats)"
RANGE = "<br>%{customdata[0]:.5~g} to %{customdata[1]:.5~g} over seeds"  # the page reads both off the band
_BY_NAME = "<extra>%{fullData.name}</extra>"


def by_optimizer(replay: Replay, measure: Callable[[str], Means | None]) -> dict[str, Means]:
    """Return what is measured of every optimizer that was watched, with halves of 95% intervals; one seed has none."""
    found = {}
    for name in replay.optimizers:
        if (measured := measure(name)) is not None:
            reach = t_reach(sum(run.is_recorded for run in replay.runs_of(name)))
            found[name] = (measured[0], None if measured[1] is None else reach * measured[1])
    return found


def draw_loss(name: str, replay: Replay) -> Drawing:
    """Draw loss against step, mean and range over seeds; a run that diverged ends in a cross.

    The axis belongs to the runs that reached the end, where there are any, so that others do not flatten them.
    """
    figure, ends, sentences = Figure(), [], []
    label = "step %{x}<br>L = %{y:.5~g} nats"
    for place, optimizer in enumerate(replay.optimizers):
        runs, shade = replay.runs_of(optimizer), colour(place)
        sentences.append(f"{optimizer}: every run diverged.")
        if runs:
            losses = np.stack([run.losses for run in runs])
            ends += [float(losses.min()), float(losses.max())]
            steps = list(range(losses.shape[1]))
            mean, low, high = (of(losses, axis=0).tolist() for of in (np.mean, np.min, np.max))
            sentences[-1] = f"{optimizer}: from {format_number(mean[0])} to {format_number(mean[-1])}."
            outline = {"fill": "toself", "fillcolor": shade, "opacity": 0.18, "line": {"width": 0, "color": shade}}
            hidden = {"showlegend": False, "hoverinfo": "skip", "legendgroup": optimizer, "mode": "lines"}
            meta = {"optimizer": optimizer}
            figure.add_scatter(x=steps + steps[::-1], y=high + low[::-1], meta=meta, **outline, **hidden)
            named = {"name": optimizer, "legendgroup": optimizer, "mode": "lines", "line": series_line(place, 2)}
            reach = RANGE if len(runs) > 1 else ""
            figure.add_scatter(x=steps, y=mean, meta=meta, hovertemplate=f"{label}{reach}{_BY_NAME}", **named)
        for number, run in enumerate(replay.diverged(optimizer)):
            figure.add_scatter(
                x=list(range(len(run.losses))),
                y=run.losses.tolist(),
                mode="lines+markers",
                name=f"{optimizer}, diverged",
                meta={"optimizer": optimizer},
                legendgroup=f"{optimizer}, diverged",
                showlegend=number == 0,
                line={"color": shade, "width": 1, "dash": "dot"},
                marker={"color": shade, "size": [0] * (len(run.losses) - 1) + [9], "symbol": "x"},
                hovertemplate=f"{label}, seed {run.seed}{_BY_NAME}",
            )
    room = 0.06 * (max(ends) - min(ends)) or 0.01 if ends else 0.0
    limits = {"range": [min(ends) - room, max(ends) + room]} if ends else {}
    vertical = axis("evaluation loss (nats)", **limits)
    figure.layout = layout(360, xaxis=axis("step"), yaxis=vertical, showlegend=True)
    return Drawing.of(figure, name, " ".join(["Evaluation loss by step.", *sentences]))


def part_progress(replay: Replay) -> dict[str, tuple[Estimate, Estimate]]:
    """Return flat and sharp progress of every optimizer of which they were recorded."""
    return {
        optimizer: (flat, sharp)
        for optimizer in replay.optimizers
        if (flat := replay.flat_progress(optimizer)) and (sharp := replay.sharp_progress(optimizer))
    }


def draw_progress(name: str, replay: Replay) -> Drawing | None:
    """Draw flat and sharp progress per optimizer as bars with 95% intervals."""
    found = part_progress(replay)
    if not found:
        return None
    figure = Figure()
    for place, part in enumerate(("flat", "sharp")):
        estimates = [pair[place] for pair in found.values()]
        figure.add_bar(
            x=list(found),
            y=[one.value for one in estimates],
            name=f"{part} directions",
            marker={"color": colour(place), "opacity": 0.85},
            meta={"optimizer": list(found)},
            customdata=[(estimate_cell(one).text, half_width(one)) for one in estimates],
            error_y=error_bars([half_width(one) or 0.0 for one in estimates], "var(--text)"),
            hovertemplate=f"%{{x}}<br>%{{customdata[0]}} nats{_BY_NAME}",
        )
    bars = {"barmode": "group", "bargap": 0.35, "shapes": [reference_line(y=0)]}
    figure.layout = layout(
        360, xaxis=axis("", type="category", ticks="", tickangle=_tilt(found)), yaxis=axis(_PROGRESS), **bars
    )
    sentences = [
        f"{optimizer}: {estimate_cell(flat).text} nats flat, {estimate_cell(sharp).text} nats sharp."
        for optimizer, (flat, sharp) in found.items()
    ]
    columns = [("part", "name"), ("optimizer", "x"), (_PROGRESS, "y"), (_ERROR, "customdata.1")]
    summary = " ".join(["Progress along flat and sharp directions.", *sentences])
    return Drawing.of(figure, name, summary, columns=columns)


def _tilt(names: Collection[str]) -> int:
    """Return the angle of names below a narrow figure: level where they fit side by side."""
    return 0 if len(names) * max(map(len, names)) <= _LEVEL else -30


def draw_edge(name: str, replay: Replay) -> Drawing | None:
    """Draw the directional edge ratio against step; a step that does not descend, over all seeds, is a gap.

    The axis belongs to nine steps in ten, so that one that hardly descends does not flatten the rest.
    """
    figure, found, sentences = Figure(), [], []
    for place, optimizer in enumerate(replay.optimizers):
        ratios = replay.directional_edge_curve(optimizer)
        if ratios is None:
            continue
        is_known = ~np.isnan(ratios)
        found.append(ratios[is_known])
        figure.add_scatter(
            x=list(range(1, len(ratios) + 1)),
            y=[float(one) if known else None for one, known in zip(ratios, is_known, strict=True)],
            name=optimizer,
            meta={"optimizer": optimizer},
            mode="lines+markers",
            line=series_line(place, 1.5),
            marker=series_marker(place, 5),
            hovertemplate=f"step %{{x}}<br>dᵀHd/(−g·d) = %{{y:.3~g}}{_BY_NAME}",
        )
        sentences.append(
            f"{optimizer}: {estimate_cell(replay.directional_edge_ratio(optimizer)).text} after the ramp, past the "
            f"edge at {replay.steps_past_edge(optimizer)} of {count_of(len(ratios), 'step')}."
        )
    known = np.concatenate(found) if found else np.zeros(0)
    if not len(known):
        return None
    low, high = min(0.0, float(np.quantile(known, 0.05))), max(EDGE, float(np.quantile(known, 0.95)))
    room = 0.08 * (high - low)
    figure.layout = layout(
        330,
        xaxis=axis("step", rangemode="tozero"),
        yaxis=axis("dᵀHd / (−g·d)", range=[round(low - room, 6), round(high + room, 6)]),
        shapes=[reference_line(y=EDGE)],
        showlegend=True,
    )
    return Drawing.of(figure, name, " ".join(["Directional edge ratio by step.", *sentences]))


def draw_horizon(name: str, replay: Replay) -> Drawing | None:
    """Draw by how much of the loss change the quadratic model at the start misses it, against step, with its bound.

    A miss of nothing has no place on a logarithmic axis, nor one of a change that is no more than rounding.
    """
    figure, sentences = Figure(), []
    steps: list[int] = []
    misses: list[float] = []
    for place, optimizer in enumerate(replay.optimizers):
        shown = [(one.step, one.miss) for one in replay.modelled_changes(optimizer) if one.miss]
        if not shown:
            continue
        sentences.append(f"{optimizer}: {told_horizon(replay, optimizer)}.")
        steps += [step for step, _ in shown]
        misses += [miss for _, miss in shown]
        figure.add_scatter(
            x=[step for step, _ in shown],
            y=[miss for _, miss in shown],
            name=optimizer,
            meta={"optimizer": optimizer},
            mode="lines+markers",
            line=series_line(place, 1.5),
            marker=series_marker(place, 7),
            hovertemplate=f"step %{{x}}<br>%{{y:.2~p}} of ΔL missed{_BY_NAME}",
        )
    if not steps:
        return None
    low, high = min(*misses, HORIZON_SHARE), max(*misses, HORIZON_SHARE)
    powers = [2**power for power in range(max(steps).bit_length())]
    figure.layout = layout(
        330,
        xaxis=log_axis("step", tickvals=powers, ticktext=[f"{power:,}" for power in powers]),
        yaxis=log_between("|model − ΔL| / |ΔL|", 0.7 * max(low, 1e-3 * HORIZON_SHARE), 1.4 * min(high, 1e4)),
        shapes=[reference_line(y=HORIZON_SHARE) | {"layer": "above"}],  # a line of the grid lies there
        showlegend=True,
    )
    start = "Share of the loss change that the quadratic model at the start misses; it is within a tenth for these."
    return Drawing.of(figure, name, " ".join([start, *sentences]))


def add_points(
    figure: Figure,
    series: tuple[str, str, int],
    x: FloatArray,
    labels: Sequence[str],
    measured: Means,
    at: Sequence[int],
    *,
    unit: str = "",
    block: str = "",
    low: float | FloatArray = -np.inf,
    high: float = np.inf,
    **style: Any,
) -> tuple[float, ...]:
    """Add entries of a series with 95% intervals cut to what it can be; return them.

    A series has a name, an optimizer and a place.
    """
    (name, optimizer, place), values = series, measured[0]
    halves = np.zeros(len(values)) if measured[1] is None else measured[1]
    shown, places = rounded(values[at], 8), list(at)
    above, below = (rounded(np.minimum(halves, room)[places]) for room in (high - values, values - low))
    look = {"mode": "lines+markers", "line": series_line(place, 1.2), "marker": series_marker(place, 7), **style}
    figure.add_scatter(
        x=rounded(x[places], 8),
        y=shown,
        name=name,
        meta={"optimizer": optimizer} | ({"block": block} if block else {}),
        customdata=[
            (
                f"{format_uncertain(float(values[one]), float(halves[one]))}{unit}",
                None if measured[1] is None else float(halves[one]),
                labels[one],
            )
            for one in places
        ],
        error_y=error_bars(above, colour(place), below),
        hovertemplate=f"%{{customdata[2]}}: %{{customdata[0]}}{_BY_NAME}",
        **look,
    )
    return tuple(shown)


def name_eigenvectors(replay: Replay) -> list[str]:
    """Name every sharp direction by its index and curvature."""
    return [f"i = {at}, λ = {format_number(value, 3)}" for at, value in enumerate(replay.eigenvalues.tolist(), 1)]


def draw_by_index(name: str, replay: Replay, *, is_progress: bool) -> Drawing | None:
    """Draw progress, or oscillation, along each eigenvector against its index."""
    measured = by_optimizer(replay, replay.eigenvector_progress if is_progress else replay.oscillation)
    count = len(replay.eigenvalues)
    if not (measured and count):
        return None
    figure, x, labels = Figure(), np.arange(1.0, count + 1), name_eigenvectors(replay)
    sentences = ["Oscillation along each sharp eigenvector, 0 straight and 1 back where it began."]
    look: dict[str, Any] = {"low": 0.0, "high": 1.0}
    vertical = axis("oscillation", range=[-0.03, 1.03])
    if is_progress:
        sentences, vertical, look = ["Progress along each sharp eigenvector."], axis(_PROGRESS), {"unit": " nats"}
    for optimizer, one in measured.items():
        series = (optimizer, optimizer, replay.optimizers.index(optimizer))
        total = sum(add_points(figure, series, x, labels, one, range(count), **look))
        text = f"{format_number(total, 3)} nats over all of them" if is_progress else ""
        sentences.append(f"{optimizer}: {text or f'{format_number(total / count, 2)} on average'}.")
    figure.layout = layout(
        330,
        xaxis=axis("eigenvector i, the sharpest first", dtick=max(1, count // 10), range=[0.5, count + 0.5]),
        yaxis=vertical,
        shapes=[reference_line(y=0)],
        showlegend=True,
    )
    value, error = (_PROGRESS, _ERROR) if is_progress else ("oscillation", "half of the 95% interval")
    columns = [("optimizer", "name"), ("eigenvector i", "x"), (value, "y"), (error, "customdata.1")]
    return Drawing.of(figure, name, " ".join(sentences), columns=columns)


def draw_bands(name: str, replay: Replay) -> list[Drawing]:
    """Draw progress against band, a figure per block."""
    bands, found = replay.bands, []
    measured, labels = by_optimizer(replay, replay.band_progress), bands.labels
    for number, (block, own) in enumerate(bands.places.items() if measured else (), 1):
        figure, sentences = Figure(), [f"Progress in {block} by band of {bands.optimizer}'s proxy."]
        for optimizer, one in measured.items():
            series = (optimizer, optimizer, replay.optimizers.index(optimizer))
            x = 50.0 * (bands.low + bands.high)
            values = add_points(figure, series, x, labels, one, own, unit=" nats", block=block)
            sentences.append(f"{optimizer}: {format_number(sum(values), 3)} nats in all.")
        figure.layout = layout(
            360,
            xaxis=band_axis("band of the block's directions, the sharpest by the proxy first (%)"),
            yaxis=axis(_PROGRESS),
            shapes=[reference_line(y=0)],
            showlegend=True,
        )
        columns = [("optimizer", "name"), ("band", "customdata.2"), (_PROGRESS, "y"), (_ERROR, "customdata.1")]
        found.append(Drawing.of(figure, f"{name}-{number}", " ".join(sentences), block, columns))
    return found
