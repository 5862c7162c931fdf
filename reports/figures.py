"""Views drawn as Plotly figures, as plain JSON values.

Colours are names of the page's CSS variables (`var(--series-1)`); the page's script puts in the values of the
theme, so that one figure serves light, dark and print.
"""

import math
from typing import Any

import plotly.graph_objects as go

from lite_probe.reports.numbers import format_number, power_label
from lite_probe.reports.view import BlockSeries, BlocksView, Curve, DensityView, EndView, PageView, PairSeries

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
        "tickangle": 0,
        "tickfont": {"size": 12, "color": "var(--muted)"},
    }
    return style | settings


def _log_axis(title: str, **settings: Any) -> dict[str, Any]:
    """Return a logarithmic axis with one label per power of ten."""
    return _axis(title, type="log", **settings)


def log_ticks(low: float, high: float) -> dict[str, list[Any]]:
    """Place labels on a logarithmic axis: powers of ten, at most nine, or finer steps below two decades.

    Plotly's own labels leave the power of ten out between decades and enlarge it at them.
    """
    first, last = math.floor(_log10(low)), math.ceil(_log10(high))
    span = _log10(high) - _log10(low)
    if span < 2:
        digits = (1, 2, 5) if span > 1 else (1, 1.5, 2, 3, 4, 5, 7)
        steps = [(digit, power) for power in range(first, last + 1) for digit in digits]
        values = [digit * 10.0**power for digit, power in steps if low <= digit * 10.0**power <= high]
        return {
            "tickvals": values,
            "ticktext": [f"{value:.2g}" if 1e-3 <= value < 100 else format_number(value, 2) for value in values],
        }
    powers = range(first, last + 1, max(1, -(-(last - first) // 8)))
    return {"tickvals": [10.0**power for power in powers], "ticktext": [power_label(power) for power in powers]}


def draw_density(view: DensityView) -> go.Figure:
    """Draw densities on a logarithmic axis, each with its band over probes and its atoms as stems."""
    figure = go.Figure()
    is_alone = len(view.curves) == 1
    for place, curve in enumerate(view.curves):
        _add_band(figure, curve, place)
        figure.add_scatter(
            x=curve.position,
            y=curve.value,
            customdata=curve.curvature,
            name="density, with its range over probes" if is_alone else curve.label,
            legendgroup=curve.label,
            mode="lines",
            line={"color": _colour(place), "width": 2, "dash": DASHES[place % 6]},
            hovertemplate="λ = %{customdata:.4~g} loss/param²<br>φ = %{y:.3~g} param²/loss"
            f"<extra>{'' if is_alone else '%{fullData.name}'}</extra>",
        )
        _add_atoms(figure, curve, place, view.floor, is_alone)
    ticks = {}
    if view.ticks:
        ticks = {"tickvals": [at for at, _ in view.ticks], "ticktext": [text for _, text in view.ticks]}
    figure.layout = _layout(
        430,
        xaxis=_axis(view.axis_title, **ticks),
        yaxis=_log_axis(
            "density φ(λ) (param²/loss)",
            range=[_log10(view.floor), _log10(view.ceiling)],
            **log_ticks(view.floor, view.ceiling),
        ),
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


def _log10(value: float) -> float:
    """Return log₁₀ to four decimals."""
    return round(math.log10(value), 4)


def _add_band(figure: go.Figure, curve: Curve, place: int) -> None:
    """Add the range over probes as a filled outline."""
    figure.add_scatter(
        x=curve.position + curve.position[::-1],
        y=curve.high + curve.low[::-1],
        fill="toself",
        fillcolor=_colour(place),
        opacity=0.22,
        line={"width": 0, "color": _colour(place)},
        mode="lines",
        legendgroup=curve.label,
        showlegend=False,
        hoverinfo="skip",
    )


def _add_atoms(figure: go.Figure, curve: Curve, place: int, floor: float, is_alone: bool) -> None:
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
        name="converged eigenvalues" if is_alone else f"{curve.label}: eigenvalues",
        legendgroup=curve.label,
        marker={"color": _colour(place), "size": 7, "symbol": SYMBOLS[place % 6]},
        hovertemplate="λ = %{customdata:.5~g} loss/param²<br>one eigenvalue, weight 1/N"
        f"<extra>{'' if is_alone else '%{fullData.name}'}</extra>",
    )


def draw_end(view: EndView) -> go.Figure:
    """Draw eigenvalues against their index with residuals as bars; open markers have not converged."""
    figure = go.Figure()
    for place, series in enumerate(view.series):
        _add_pairs(figure, series, place, "−" if view.is_negated else "")
    values = _axis(view.axis_title)
    if view.is_log:
        sizes = [value for series in view.series for value in series.value]
        low, high = 0.8 * min(sizes), 1.25 * max(sizes)
        values = _log_axis(view.axis_title, range=[_log10(low), _log10(high)], **log_ticks(low, high))
    longest = max(len(series.index) for series in view.series)
    figure.layout = _layout(
        330,
        xaxis=_axis("index i", dtick=max(1, longest // 10), range=[0.4, longest + 0.6]),
        yaxis=values,
        showlegend=len(view.series) > 1,
    )
    return figure


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


MARKERS = {
    "λ₁": {"symbol": "circle", "size": 10},
    "mean λ": {"symbol": "diamond-open", "size": 9},
    "median |λ|": {"symbol": "line-ns-open", "size": 12},
    "upper bound of it": {"symbol": "triangle-left-open", "size": 10},
}


def draw_blocks(view: BlocksView) -> go.Figure:
    """Draw, per block, median |λ|, mean λ and λ₁ on one logarithmic axis, joined by a line."""
    figure = go.Figure()
    count = len(view.series)
    for place, series in enumerate(view.series):
        offset = 0.5 * ((place + 0.5) / count - 0.5)
        rows = [row + offset for row in range(len(view.blocks))]
        _add_spans(figure, series, rows, place, is_alone=count == 1)
        _add_block_markers(figure, view.blocks, series, rows, place)
    _add_marker_legend(figure, view)
    shown = [
        value
        for series in view.series
        for values in (series.sharpest, series.mean, series.median)
        for value in values
        if value is not None
    ]
    low, high = (0.6 * min(shown), 1.7 * max(shown)) if shown else (0.1, 10.0)
    figure.layout = _layout(
        110 + len(view.blocks) * max(34, 22 * count),
        xaxis=_log_axis("curvature (loss/param²)", range=[_log10(low), _log10(high)], **log_ticks(low, high)),
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


def _add_spans(figure: go.Figure, series: BlockSeries, rows: list[float], place: int, *, is_alone: bool) -> None:
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
        name=series.label,
        line={"color": _colour(place), "width": 2, "dash": DASHES[place % 6]},
        opacity=0.5,
        showlegend=not is_alone,
        hoverinfo="skip",
    )


def _add_block_markers(
    figure: go.Figure, blocks: tuple[str, ...], series: BlockSeries, rows: list[float], place: int
) -> None:
    """Add three curvatures per block; a median that is only bounded has a marker of its own."""
    medians = ["upper bound of it" if bound else "median |λ|" for bound in series.median_is_bound]
    kinds = (
        (["λ₁"] * len(rows), series.sharpest),
        (["mean λ"] * len(rows), series.mean),
        (medians, series.median),
    )
    for names, values in kinds:
        texts = [
            f"{block}: {'median |λ| ≤' if name == 'upper bound of it' else f'{name} ='} {format_number(value)}"
            for block, name, value in zip(blocks, names, values, strict=True)
        ]
        figure.add_scatter(
            x=values,
            y=rows,
            customdata=texts,
            mode="markers",
            name=series.label,
            showlegend=False,
            marker={
                "color": _colour(place),
                "size": [MARKERS[name]["size"] for name in names],
                "symbol": [MARKERS[name]["symbol"] for name in names],
                "line": {"width": 2, "color": _colour(place)},
                "opacity": 1,
            },
            hovertemplate="%{customdata} loss/param²<extra>%{fullData.name}</extra>",
        )


def _add_marker_legend(figure: go.Figure, view: BlocksView) -> None:
    """Explain the markers once, in the colour of text: a series' colour would belong to one checkpoint."""
    bounds = [bound for series in view.series for bound in series.median_is_bound]
    for name, marker in MARKERS.items():
        if (name == "median |λ|" and all(bounds)) or (name == "upper bound of it" and not any(bounds)):
            continue
        shown = "upper bound of median |λ|" if name == "upper bound of it" else name
        style = marker | {"color": "var(--muted)", "line": {"width": 2, "color": "var(--muted)"}}
        figure.add_scatter(x=[None], y=[None], mode="markers", name=shown, marker=style, hoverinfo="skip")
