"""Views drawn as Plotly figures, as plain JSON values.

Colours are names of the page's CSS variables (`var(--series-1)`); the page's script puts in the values of the
theme, so that one figure serves light, dark and print.
"""

import math
from typing import Any

import plotly.graph_objects as go

from lite_probe.reports.numbers import format_number
from lite_probe.reports.view import BlocksView, Curve, DensityView, EndView, PageView, PairSeries

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


def draw_figures(view: PageView) -> dict[str, dict[str, Any]]:
    """Draw every figure of a page.

    Returns:
        Name → `{"data": …, "layout": …}` for plotly.js, only for what the view has.
    """
    figures = {}
    if view.density is not None and view.density_linear is not None:
        figures["density"] = _plain(draw_density(view.density))
        figures["density-linear"] = _plain(draw_density(view.density_linear))
    if view.upper is not None:
        figures["upper-end"] = _plain(draw_end(view.upper))
    if view.lower is not None:
        figures["lower-end"] = _plain(draw_end(view.lower))
    if view.blocks is not None:
        figures["blocks"] = _plain(draw_blocks(view.blocks))
    return figures


def _plain(figure: go.Figure) -> dict[str, Any]:
    """Return a figure's traces and layout, without Plotly's own theme."""
    described: dict[str, Any] = figure.to_plotly_json()
    described["layout"].pop("template", None)
    return {"data": described["data"], "layout": described["layout"]}


def _colour(place: int) -> str:
    """Return the colour of a series."""
    return f"var(--series-{place % 6 + 1})"


def _layout(height: int, **axes: Any) -> go.Layout:
    """Return what all figures share."""
    return go.Layout(
        height=height,
        margin={"l": 12, "r": 12, "t": 12, "b": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13, "color": "var(--text)"},
        hoverlabel={
            "bgcolor": "var(--surface)",
            "bordercolor": "var(--line)",
            "font": {"family": FONT, "color": "var(--text)"},
        },
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        hovermode="closest",
        dragmode=False,
        **axes,
    )


def _axis(title: str, **settings: Any) -> dict[str, Any]:
    """Return an axis in the page's style."""
    style = {
        "title": {"text": title, "font": {"size": 12, "color": "var(--muted)"}, "standoff": 10},
        "automargin": True,
        "gridcolor": "var(--grid)",
        "linecolor": "var(--line)",
        "showline": True,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "var(--line)",
        "tickfont": {"size": 12, "color": "var(--muted)"},
    }
    return style | settings


def _log_axis(title: str, **settings: Any) -> dict[str, Any]:
    """Return a logarithmic axis with one label per power of ten."""
    return _axis(title, type="log", exponentformat="power", dtick=1, **settings)


def draw_density(view: DensityView) -> go.Figure:
    """Draw densities on a logarithmic axis, each with its band over probes and its atoms as stems."""
    figure = go.Figure()
    for place, curve in enumerate(view.curves):
        _add_band(figure, curve, place)
        figure.add_scatter(
            x=curve.position,
            y=curve.value,
            customdata=curve.curvature,
            name=curve.label,
            legendgroup=curve.label,
            mode="lines",
            line={"color": _colour(place), "width": 2, "dash": DASHES[place % 6]},
            hovertemplate="λ = %{customdata:.4~g} loss/param²<br>φ = %{y:.3~g} param²/loss"
            "<extra>%{fullData.name}</extra>",
        )
        _add_atoms(figure, curve, place, view.floor)
    ticks = {}
    if view.ticks:
        ticks = {"tickvals": [at for at, _ in view.ticks], "ticktext": [text for _, text in view.ticks]}
    decades = _decades(view.floor, view.ceiling)
    figure.layout = _layout(
        430,
        xaxis=_axis(view.axis_title, **ticks),
        yaxis=_log_axis("density φ(λ) (param²/loss)", range=decades) | {"dtick": _tick_every(decades)},
        shapes=[
            {
                "type": "line",
                "x0": 0,
                "x1": 0,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "layer": "below",
                "line": {"color": "var(--muted)", "width": 1, "dash": "dot"},
            }
        ],
    )
    return figure


def _decades(low: float, high: float) -> list[float]:
    """Return the range of a logarithmic axis."""
    return [float(format(value, ".4f")) for value in (_log10(low), _log10(high))]


def _log10(value: float) -> float:
    """Return log₁₀, of the smallest positive number in place of 0."""
    return math.log10(max(value, 1e-300))


def _tick_every(decades: list[float]) -> int:
    """Return how many powers of ten lie between labels, for at most eight of them."""
    return max(1, -(-int(decades[1] - decades[0]) // 8))


def _add_band(figure: go.Figure, curve: Curve, place: int) -> None:
    """Add the range over probes as a filled outline."""
    figure.add_scatter(
        x=curve.position + curve.position[::-1],
        y=curve.high + curve.low[::-1],
        fill="toself",
        fillcolor=_colour(place),
        opacity=0.22,
        line={"width": 0},
        mode="lines",
        name=f"{curve.label}: range over probes",
        legendgroup=curve.label,
        showlegend=False,
        hoverinfo="skip",
    )


def _add_atoms(figure: go.Figure, curve: Curve, place: int, floor: float) -> None:
    """Add converged eigenvalues as stems as high as a Gaussian of weight 1/N."""
    if not curve.atom_position:
        return
    stems_x: list[float | None] = []
    stems_y: list[float | None] = []
    for position, height in zip(curve.atom_position, curve.atom_height, strict=True):
        stems_x += [position, position, None]
        stems_y += [floor, height, None]
    figure.add_scatter(
        x=stems_x,
        y=stems_y,
        mode="lines",
        line={"color": _colour(place), "width": 1},
        legendgroup=curve.label,
        showlegend=False,
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=curve.atom_position,
        y=curve.atom_height,
        customdata=curve.atom_curvature,
        mode="markers",
        name=f"{curve.label}: converged eigenvalues",
        legendgroup=curve.label,
        marker={"color": _colour(place), "size": 7, "symbol": SYMBOLS[place % 6]},
        hovertemplate="λ = %{customdata:.5~g} loss/param²<br>one eigenvalue, weight 1/N<extra>%{fullData.name}</extra>",
    )


def draw_end(view: EndView) -> go.Figure:
    """Draw eigenvalues against their index with residuals as bars; open markers have not converged."""
    figure = go.Figure()
    for place, series in enumerate(view.series):
        _add_pairs(figure, series, place, "−" if view.is_negated else "")
    values = _log_axis(view.axis_title) if view.is_log else _axis(view.axis_title)
    longest = max(len(series.index) for series in view.series)
    figure.layout = _layout(
        330,
        xaxis=_axis("index i", dtick=max(1, longest // 10), range=[0.4, longest + 0.6]),
        yaxis=values,
        showlegend=len(view.series) > 1,
    )
    if view.is_log:
        figure.layout.yaxis.update(dtick="D1" if _span(view) < 1.5 else 1, exponentformat="none")
    return figure


def _span(view: EndView) -> float:
    """Return the decades an end covers."""
    values = [value for series in view.series for value in series.value]
    return _log10(max(values)) - _log10(min(values))


def _add_pairs(figure: go.Figure, series: PairSeries, place: int, sign: str) -> None:
    """Add one spectrum's pairs."""
    states = ["converged" if done else "not converged" for done in series.converged]
    symbol = SYMBOLS[place % 6]
    residuals = [format_number(residual, 2) for residual in series.residual]
    figure.add_scatter(
        x=series.index,
        y=series.value,
        customdata=list(zip(states, residuals, strict=True)),
        error_y={
            "type": "data",
            "array": series.residual,
            "color": _colour(place),
            "thickness": 1.5,
            "width": 4,
        },
        mode="lines+markers",
        name=series.label,
        line={"color": _colour(place), "width": 1, "dash": DASHES[place % 6]},
        marker={
            "color": _colour(place),
            "size": 8,
            "line": {"color": _colour(place), "width": 1.5},
            "symbol": [symbol if done else f"{symbol}-open" for done in series.converged],
        },
        hovertemplate=f"i = %{{x}}<br>λ = {sign}%{{y:.5~g}} ± %{{customdata[1]}} loss/param²"
        "<br>%{customdata[0]}<extra>%{fullData.name}</extra>",
    )


def draw_blocks(view: BlocksView) -> go.Figure:
    """Draw, per block, median |λ|, mean λ and λ₁ on one logarithmic axis, joined by a line."""
    figure = go.Figure()
    count = len(view.series)
    for place, series in enumerate(view.series):
        offset = 0.5 * ((place + 0.5) / count - 0.5) if count > 1 else 0.0
        rows = [row + offset for row in range(len(view.blocks))]
        _add_spans(figure, series, rows, _colour(place))
        markers = (
            ("median |λ|", series.median, "line-ns-open", 12),
            ("mean λ", series.mean, "diamond-open", 9),
            ("λ₁", series.sharpest, SYMBOLS[0], 10),
        )
        for name, values, symbol, size in markers:
            is_median = values is series.median
            bounds = [is_median and bound for bound in series.median_is_bound]
            figure.add_scatter(
                x=values,
                y=rows,
                customdata=[[block, "≤" if bound else "="] for block, bound in zip(view.blocks, bounds, strict=True)],
                mode="markers",
                name=name if count == 1 else f"{series.label}: {name}",
                marker={
                    "color": _colour(place),
                    "size": size,
                    "line": {"width": 2, "color": _colour(place)},
                    "symbol": ["triangle-left-open" if bound else symbol for bound in bounds],
                },
                hovertemplate=f"%{{customdata[0]}}: {name} %{{customdata[1]}} %{{x:.4~g}} loss/param²"
                f"<extra>{'' if count == 1 else '%{fullData.name}'}</extra>",
            )
    figure.layout = _layout(
        110 + len(view.blocks) * max(34, 22 * count),
        xaxis=_log_axis("curvature (loss/param²)"),
        yaxis=_axis(
            "",
            tickvals=list(range(len(view.blocks))),
            ticktext=list(view.blocks),
            range=[len(view.blocks) - 0.4, -0.6],
            showgrid=False,
            ticks="",
        ),
    )
    return figure


def _add_spans(figure: go.Figure, series: Any, rows: list[float], colour: str) -> None:
    """Join the median and λ₁ of each block: the longer, the more anisotropic."""
    x: list[float | None] = []
    y: list[float | None] = []
    for row, median, sharpest in zip(rows, series.median, series.sharpest, strict=True):
        if median is not None and sharpest is not None:
            x += [median, sharpest, None]
            y += [row, row, None]
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": colour, "width": 2},
        opacity=0.45,
        showlegend=False,
        hoverinfo="skip",
    )
