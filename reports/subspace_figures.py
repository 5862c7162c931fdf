"""Sharp and flat directions drawn as Plotly figures."""

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
from lite_probe.reports.subspace_view import CalibrationView, ContrastView, SubspaceView


def draw_subspaces(view: SubspaceView) -> dict[str, dict[str, Any]]:
    """Draw calibrations and contrasts, by name."""
    figures = {one.name: plain(draw_calibration(one)) for one in view.calibrations}
    return figures | {one.name: plain(draw_contrast(one)) for one in view.contrasts}


def draw_calibration(view: CalibrationView) -> go.Figure:
    """Draw mean curvature against band, a line per block, with standard errors."""
    figure = go.Figure()
    for curve in view.curves:
        figure.add_scatter(
            x=curve.share,
            y=curve.position,
            customdata=list(zip(curve.band, curve.text, strict=True)),
            error_y={
                "type": "data",
                "array": [high - at for high, at in zip(curve.high, curve.position, strict=True)],
                "arrayminus": [at - low for low, at in zip(curve.low, curve.position, strict=True)],
                "color": colour(curve.place),
                "thickness": 1.2,
                "width": 3,
            },
            mode="lines+markers",
            name=curve.block,
            line={"color": colour(curve.place), "width": 1.5, "dash": DASHES[curve.place % 6]},
            marker={"color": colour(curve.place), "size": 7, "symbol": SYMBOLS[curve.place % 6]},
            hovertemplate="%{customdata[0]}<br>κ = %{customdata[1]} loss/param²<extra>%{fullData.name}</extra>",
        )
    title = "mean curvature κ (loss/param²)"
    if view.ticks:
        vertical = axis(title, tickvals=[at for at, _ in view.ticks], ticktext=[text for _, text in view.ticks])
    else:
        low = 0.7 * min(low for curve in view.curves for low in curve.low)
        high = 1.4 * max(high for curve in view.curves for high in curve.high)
        vertical = log_axis(title, range=[log10(low), log10(high)], **log_ticks(low, high))
    figure.layout = layout(
        430,
        xaxis=band_axis("band of the block's directions, the sharpest by the proxy first (%)"),
        yaxis=vertical,
        shapes=[reference_line(y=0)] if view.ticks else [],
    )
    return figure


def draw_contrast(view: ContrastView) -> go.Figure:
    """Draw κ_sharp/κ_flat per block with 95% intervals; one that is open upwards runs to the edge."""
    figure = go.Figure()
    count = len(view.series)
    ends = [end for one in view.series for values in (one.low, one.high) for end in values if end is not None]
    low, high = 0.6 * min(1.0, *ends, 1.0), 2.0 * max(1.0, *ends, 1.0)
    for place, series in enumerate(view.series):
        rows = [row + 0.55 * ((place + 0.5) / count - 0.5) for row in range(len(view.blocks))]
        spans_x: list[float | None] = []
        spans_y: list[float | None] = []
        for row, least, most in zip(rows, series.low, series.high, strict=True):
            if least is not None:
                spans_x += [least, most if most is not None else high, None]
                spans_y += [row, row, None]
        figure.add_scatter(
            x=spans_x,
            y=spans_y,
            mode="lines",
            line={"color": colour(place), "width": 2},
            legendgroup=series.optimizer,
            showlegend=False,
            hoverinfo="skip",
        )
        is_open = [most is None for most in series.high]
        figure.add_scatter(
            x=[
                least if opened else value
                for value, least, opened in zip(series.value, series.low, is_open, strict=True)
            ],
            y=rows,
            customdata=[f"{block}: {text}" for block, text in zip(view.blocks, series.text, strict=True)],
            mode="markers",
            name=series.optimizer,
            legendgroup=series.optimizer,
            showlegend=False,
            marker={
                "color": colour(place),
                "size": 9,
                "symbol": ["triangle-right" if opened else SYMBOLS[place % 6] for opened in is_open],
            },
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
        )
        # The legend would show the first block's marker, which may be a bound's.
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines+markers",
            name=series.optimizer,
            legendgroup=series.optimizer,
            line={"color": colour(place), "width": 2},
            marker={"color": colour(place), "size": 9, "symbol": SYMBOLS[place % 6]},
        )
    figure.layout = layout(
        110 + len(view.blocks) * max(34, 20 * count),
        xaxis=log_axis("κ sharp / κ flat", range=[log10(low), log10(high)], **log_ticks(low, high)),
        yaxis=axis(
            "",
            tickvals=list(range(len(view.blocks))),
            ticktext=list(view.blocks),
            range=[len(view.blocks) - 0.4, -0.6],
            showgrid=False,
            ticks="",
        ),
        shapes=[reference_line(x=1)],
    )
    return figure
