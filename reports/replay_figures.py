"""A replay drawn as Plotly figures."""

from typing import Any

import plotly.graph_objects as go

from lite_probe.reports.drawing import (
    DASHES,
    SYMBOLS,
    axis,
    band_axis,
    colour,
    layout,
    log10,
    log_axis,
    log_ticks,
    plain,
    reference_line,
)
from lite_probe.reports.replay_view import LossView, PointSeries, PointsView, ProgressView, ReplayView


def draw_replay(view: ReplayView) -> dict[str, dict[str, Any]]:
    """Draw every figure of one replay, by name."""
    figures = {f"loss-{view.number}": plain(draw_loss(view.loss))}
    if view.progress is not None:
        figures[f"progress-{view.number}"] = plain(draw_progress(view.progress))
    if view.eigenvectors is not None:
        figures[view.eigenvectors.name] = plain(draw_by_index(view.eigenvectors, "progress (nats)"))
    if view.rates is not None:
        figures[view.rates.name] = plain(draw_rates(view.rates))
    if view.oscillation is not None:
        figures[view.oscillation.name] = plain(draw_by_index(view.oscillation, "oscillation", limits=(-0.03, 1.03)))
    return figures | {one.name: plain(draw_bands(one)) for one in view.bands}


def draw_loss(view: LossView) -> go.Figure:
    """Draw loss against step, mean and range over seeds; a run that diverged ends in a cross."""
    figure = go.Figure()
    for curve in view.curves:
        if curve.mean:
            _add_range(figure, curve.step, curve.low, curve.high, curve.place, curve.optimizer)
            figure.add_scatter(
                x=curve.step,
                y=curve.mean,
                mode="lines",
                name=curve.optimizer,
                legendgroup=curve.optimizer,
                line={"color": colour(curve.place), "width": 2, "dash": DASHES[curve.place % 6]},
                hovertemplate="after %{x} steps<br>L = %{y:.5~g} nats<extra>%{fullData.name}</extra>",
            )
        for losses in curve.diverged:
            figure.add_scatter(
                x=list(range(len(losses))),
                y=losses,
                mode="lines+markers",
                name=f"{curve.optimizer}, diverged",
                legendgroup=f"{curve.optimizer}, diverged",
                showlegend=losses is curve.diverged[0],
                line={"color": colour(curve.place), "width": 1, "dash": "dot"},
                marker={"color": colour(curve.place), "size": [0] * (len(losses) - 1) + [9], "symbol": "x"},
                hovertemplate="after %{x} steps<br>L = %{y:.5~g} nats<extra>%{fullData.name}</extra>",
            )
    limits = {"range": list(view.limits)} if view.limits is not None else {}
    figure.layout = layout(360, xaxis=axis("step"), yaxis=axis("evaluation loss (nats)", **limits), showlegend=True)
    return figure


def _add_range(
    figure: go.Figure,
    steps: tuple[int, ...],
    low: tuple[float, ...],
    high: tuple[float, ...],
    place: int,
    group: str,
) -> None:
    """Add the range over seeds as a filled outline."""
    figure.add_scatter(
        x=steps + steps[::-1],
        y=high + low[::-1],
        fill="toself",
        fillcolor=colour(place),
        opacity=0.18,
        line={"width": 0, "color": colour(place)},
        mode="lines",
        legendgroup=group,
        showlegend=False,
        hoverinfo="skip",
    )


def draw_progress(view: ProgressView) -> go.Figure:
    """Draw flat and sharp progress per optimizer as bars with 95% intervals."""
    figure = go.Figure()
    parts = (("flat directions", view.flat, view.flat_error), ("sharp directions", view.sharp, view.sharp_error))
    for place, (name, values, errors) in enumerate(parts):
        figure.add_bar(
            x=view.optimizers,
            y=values,
            name=name,
            marker={"color": colour(place), "opacity": 0.85},
            error_y={"type": "data", "array": errors, "color": "var(--text)", "thickness": 1.2, "width": 4},
            hovertemplate="%{x}<br>%{y:.4~g} nats<extra>%{fullData.name}</extra>",
        )
    figure.layout = layout(
        360,
        xaxis=axis("", type="category", ticks=""),
        yaxis=axis("progress (nats)"),
        barmode="group",
        bargap=0.35,
        shapes=[reference_line(y=0)],
    )
    return figure


def _add_points(figure: go.Figure, series: PointSeries, *, unit: str = "", mode: str = "lines+markers") -> None:
    """Add one optimizer's points with 95% intervals."""
    figure.add_scatter(
        x=series.x,
        y=series.value,
        customdata=series.text,
        error_y={"type": "data", "array": series.error, "color": colour(series.place), "thickness": 1.2, "width": 3},
        mode=mode,
        name=series.optimizer,
        line={"color": colour(series.place), "width": 1.2, "dash": DASHES[series.place % 6]},
        marker={"color": colour(series.place), "size": 7, "symbol": SYMBOLS[series.place % 6]},
        hovertemplate=f"%{{customdata}}{unit}<extra>%{{fullData.name}}</extra>",
    )


def draw_by_index(view: PointsView, title: str, limits: tuple[float, float] | None = None) -> go.Figure:
    """Draw a quantity along each eigenvector against its index."""
    figure = go.Figure()
    for series in view.series:
        _add_points(figure, series, unit=" nats" if limits is None else "")
    longest = max(len(series.x) for series in view.series)
    figure.layout = layout(
        330,
        xaxis=axis("eigenvector i, the sharpest first", dtick=max(1, longest // 10), range=[0.5, longest + 0.5]),
        yaxis=axis(title, **({"range": list(limits)} if limits is not None else {})),
        shapes=[reference_line(y=0)],
        showlegend=True,
    )
    return figure


def draw_bands(view: PointsView) -> go.Figure:
    """Draw progress against band in one block."""
    figure = go.Figure()
    for series in view.series:
        _add_points(figure, series, unit=" nats")
    figure.layout = layout(
        360,
        xaxis=band_axis("band of the block's directions, the sharpest by the proxy first (%)"),
        yaxis=axis("progress (nats)"),
        shapes=[reference_line(y=0)],
        showlegend=True,
    )
    return figure


def draw_rates(view: PointsView) -> go.Figure:
    """Draw effective learning rate against curvature, both logarithmic; open markers are the linear theory's."""
    figure = go.Figure()
    for series in view.series:
        _add_rates(figure, series)
    for series in view.predicted:
        figure.add_scatter(
            x=series.x,
            y=series.value,
            customdata=series.text,
            mode="markers",
            name=f"{series.optimizer}, theory",
            marker={
                "color": colour(series.place),
                "size": 8,
                "symbol": f"{SYMBOLS[series.place % 6]}-open",
                "line": {"width": 1.3, "color": colour(series.place)},
            },
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
        )
    points = [point for one in (*view.series, *view.predicted) for point in zip(one.x, one.value, strict=True)]
    left, right = 0.85 * min(x for x, _ in points), 1.18 * max(x for x, _ in points)
    low, high = 0.6 * min(y for _, y in points), 1.7 * max(y for _, y in points)
    figure.layout = layout(
        400,
        xaxis=log_axis("curvature λ (loss/param²)", range=[log10(left), log10(right)], **log_ticks(left, right)),
        yaxis=log_axis("effective learning rate η", range=[log10(low), log10(high)], **log_ticks(low, high)),
        showlegend=True,
    )
    return figure


def _add_rates(figure: go.Figure, series: PointSeries) -> None:
    """Add measured rates; an error that reaches zero is cut where the axis still has a place for it."""
    figure.add_scatter(
        x=series.x,
        y=series.value,
        customdata=series.text,
        error_y={
            "type": "data",
            "array": series.error,
            "arrayminus": [min(error, 0.9 * value) for error, value in zip(series.error, series.value, strict=True)],
            "color": colour(series.place),
            "thickness": 1.2,
            "width": 3,
        },
        mode="markers",
        name=series.optimizer,
        marker={"color": colour(series.place), "size": 8, "symbol": SYMBOLS[series.place % 6]},
        hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
    )
