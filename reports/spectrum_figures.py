"""Spectra drawn as Plotly figures."""

from typing import Any

import plotly.graph_objects as go

from lite_probe.reports.drawing import (
    DASHES,
    SYMBOLS,
    axis,
    colour,
    layout,
    log10,
    log_axis,
    log_ticks,
    plain,
    reference_line,
)
from lite_probe.reports.numbers import format_number
from lite_probe.reports.spectrum_view import (
    BlockSeries,
    BlocksView,
    Curve,
    DensityView,
    EndView,
    PairSeries,
    SpectrumView,
)


def draw_spectra(view: SpectrumView) -> dict[str, dict[str, Any]]:
    """Draw density, both ends and blocks, as far as the view has them, by name."""
    figures = {}
    if view.density is not None and view.density_linear is not None:
        figures["density"] = plain(draw_density(view.density))
        figures["density-linear"] = plain(draw_density(view.density_linear))
    if view.upper is not None:
        figures["upper-end"] = plain(draw_end(view.upper))
    if view.lower is not None:
        figures["lower-end"] = plain(draw_end(view.lower))
    if view.blocks is not None:
        figures["blocks"] = plain(draw_blocks(view.blocks))
    return figures


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
            line={"color": colour(place), "width": 2, "dash": DASHES[place % 6]},
            hovertemplate="λ = %{customdata:.4~g} loss/param²<br>φ = %{y:.3~g} param²/loss"
            f"<extra>{'' if is_alone else '%{fullData.name}'}</extra>",
        )
        _add_atoms(figure, curve, place, view.floor, is_alone)
    ticks = {}
    if view.ticks:
        ticks = {"tickvals": [at for at, _ in view.ticks], "ticktext": [text for _, text in view.ticks]}
    figure.layout = layout(
        430,
        xaxis=axis(view.axis_title, **ticks),
        yaxis=log_axis(
            "density φ(λ) (param²/loss)",
            range=[log10(view.floor), log10(view.ceiling)],
            **log_ticks(view.floor, view.ceiling),
        ),
        shapes=[reference_line(x=0)],
    )
    return figure


def _add_band(figure: go.Figure, curve: Curve, place: int) -> None:
    """Add the range over probes as a filled outline."""
    figure.add_scatter(
        x=curve.position + curve.position[::-1],
        y=curve.high + curve.low[::-1],
        fill="toself",
        fillcolor=colour(place),
        opacity=0.22,
        line={"width": 0, "color": colour(place)},
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
        line={"color": colour(place), "width": 1},
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
        marker={"color": colour(place), "size": 7, "symbol": SYMBOLS[place % 6]},
        hovertemplate="λ = %{customdata:.5~g} loss/param²<br>one eigenvalue, weight 1/N"
        f"<extra>{'' if is_alone else '%{fullData.name}'}</extra>",
    )


def draw_end(view: EndView) -> go.Figure:
    """Draw eigenvalues against their index with residuals as bars; open markers have not converged."""
    figure = go.Figure()
    for place, series in enumerate(view.series):
        _add_pairs(figure, series, place, "−" if view.is_negated else "")
    values = axis(view.axis_title)
    if view.is_log:
        sizes = [value for series in view.series for value in series.value]
        low, high = 0.8 * min(sizes), 1.25 * max(sizes)
        values = log_axis(view.axis_title, range=[log10(low), log10(high)], **log_ticks(low, high))
    longest = max(len(series.index) for series in view.series)
    figure.layout = layout(
        330,
        xaxis=axis("index i", dtick=max(1, longest // 10), range=[0.4, longest + 0.6]),
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
            "color": colour(place),
            "thickness": 1.5,
            "width": 4,
        },
        mode="lines+markers",
        name=series.label,
        line={"color": colour(place), "width": 1, "dash": DASHES[place % 6]},
        marker={
            "color": colour(place),
            "size": 8,
            "line": {"color": colour(place), "width": 1.5},
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
    figure.layout = layout(
        110 + len(view.blocks) * max(34, 22 * count),
        xaxis=log_axis("curvature (loss/param²)", range=[log10(low), log10(high)], **log_ticks(low, high)),
        yaxis=axis(
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
        line={"color": colour(place), "width": 2, "dash": DASHES[place % 6]},
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
                "color": colour(place),
                "size": [MARKERS[name]["size"] for name in names],
                "symbol": [MARKERS[name]["symbol"] for name in names],
                "line": {"width": 2, "color": colour(place)},
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
