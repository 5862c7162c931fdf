"""Spectra drawn as Plotly figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lite_probe.reports.drawing import (
    SYMBOLS,
    Drawing,
    Figure,
    asinh_ticks,
    axis,
    colour,
    layout,
    log_between,
    name_axis,
    reference_line,
    rounded,
    row_of,
    series_line,
    spans,
    times,
)
from lite_probe.reports.numbers import count_of, format_number
from lite_probe.reports.smoothing import SmoothedDensity, smooth_asinh, smooth_linear
from lite_probe.reports.table import CURVATURE
from lite_probe.results.blocks import order_blocks
from lite_probe.results.spectrum import OperatorSpectrum

Labelled = Sequence[tuple[str, OperatorSpectrum]]


# Density


def draw_density(name: str, wholes: Labelled, scale: float | None) -> Drawing | None:
    """Draw densities on a logarithmic axis, each with its band over probes and its atoms as stems.

    Args:
        name: Of the figure.
        wholes: (label, spectrum).
        scale: Curvature within which the horizontal axis is linear, asinh beyond; None: linear everywhere.

    Returns:
        None where no spectrum has probes.
    """
    if not any(len(whole.nodes) for _, whole in wholes):
        return None
    smoothed = [smooth_linear(one) if scale is None else smooth_asinh(one, scale) for _, one in wholes]
    peak = max(float(one.high.max()) for one in smoothed)
    least = min((float(one.atom_height.min()) for one in smoothed if len(one.atom_height)), default=peak * 1e-6)
    floor, ceiling = max(least / 4, peak * 1e-14), peak * 3
    figure = Figure()
    for place, ((label, whole), one) in enumerate(zip(wholes, smoothed, strict=True)):
        _add_density(figure, label, one, whole.deflated_eigenvalues, place, floor, is_alone=len(wholes) == 1)
    ticks: dict[str, Any] = {}
    if scale is not None:
        places, texts = zip(
            *asinh_ticks(scale, max(float(np.abs(one.curvature).max()) for one in smoothed)), strict=True
        )
        ticks = {"tickvals": list(places), "ticktext": list(texts)}
    figure.layout = layout(
        430,
        xaxis=axis(f"curvature λ ({CURVATURE})", **ticks),
        yaxis=log_between("density φ(λ) (param²/loss)", floor, ceiling),
        shapes=[reference_line(x=0)],
    )
    columns = [
        ("series", "name"),
        (f"curvature λ ({CURVATURE})", "customdata"),
        ("density φ (param²/loss)", "y"),
        ("least φ over probes (param²/loss)", "low"),
        ("largest φ over probes (param²/loss)", "high"),
    ]
    return Drawing.of(figure, name, _density_summary(wholes), columns=columns)


def _add_density(
    figure: Figure,
    label: str,
    smoothed: SmoothedDensity,
    atoms: np.ndarray,
    place: int,
    floor: float,
    *,
    is_alone: bool,
) -> None:
    """Add a curve, its range over probes, and atoms as stems as high as a Gaussian of weight 1/N."""
    position, low, high = rounded(smoothed.position), _drawable(smoothed.low), _drawable(smoothed.high)
    shared = {"legendgroup": label, "meta": {"checkpoint": label}}
    extra = f"<extra>{'' if is_alone else '%{fullData.name}'}</extra>"
    figure.add_scatter(
        **shared,
        x=position + position[::-1],
        y=high + low[::-1],
        fill="toself",
        fillcolor=colour(place),
        opacity=0.22,
        line={"width": 0, "color": colour(place)},
        mode="lines",
        showlegend=False,
        hoverinfo="skip",
    )
    figure.add_scatter(
        **shared,
        x=position,
        y=_drawable(smoothed.value),
        customdata=rounded(smoothed.curvature),
        name="density, with its range over probes" if is_alone else label,
        mode="lines",
        line=series_line(place, 2),
        hovertemplate=f"λ = %{{customdata:.4~g}} loss/param²<br>φ = %{{y:.3~g}} param²/loss{extra}",
    )
    if not len(atoms):
        return
    positions, heights = rounded(smoothed.atom_position), _drawable(smoothed.atom_height)
    figure.add_scatter(
        **shared,
        **spans((at, floor, at, height) for at, height in zip(positions, heights, strict=True)),
        mode="lines",
        line={"color": colour(place), "width": 1},
        showlegend=False,
        hoverinfo="skip",
    )
    figure.add_scatter(
        **shared,
        x=positions,
        y=heights,
        customdata=atoms.tolist(),
        mode="markers",
        name="converged eigenvalues" if is_alone else f"{label}: eigenvalues",
        marker={"color": colour(place), "size": 7, "symbol": SYMBOLS[place % 6]},
        hovertemplate=f"λ = %{{customdata:.5~g}} loss/param²<br>one eigenvalue, weight 1/N{extra}",
    )


def _drawable(values: np.ndarray) -> tuple[float, ...]:
    """Keep six digits; below 1e-30 a density is drawn as 1e-30, which every logarithmic axis here cuts off."""
    return rounded(np.maximum(values, 1e-30))


def _density_summary(wholes: Labelled) -> str:
    """Describe the densities in words."""
    sentences = []
    for label, whole in wholes:
        known = whole.deflated_eigenvalues
        tail = count_of(len(known), "converged eigenvalue") if len(known) else "no converged eigenvalues"
        if len(known):
            tail += f" from {format_number(float(known.min()))} to {format_number(float(known.max()))}"
        spread = format_number(whole.quantile_abs(0.9), 2)
        sentences.append(f"{label}: 90% of the mass within ±{spread}, {tail}.")
    return "Spectral density. " + " ".join(sentences)


# Both ends


def draw_end(name: str, wholes: Labelled, *, is_lower: bool) -> Drawing | None:
    """Draw eigenvalues of one end against their index with residuals as bars; open markers have not converged.

    The axis is logarithmic where all are of one sign; of negative ones their sizes are drawn.
    """
    ends = [(label, whole.lower_end if is_lower else whole.upper_end) for label, whole in wholes]
    ends = [(label, pairs) for label, pairs in ends if len(pairs[0])]
    if not ends:
        return None
    is_negated = all(bool((values < 0).all()) for _, (values, _, _) in ends)
    is_log = is_negated or all(bool((values > 0).all()) for _, (values, _, _) in ends)
    sign = "−" if is_negated else ""
    figure = Figure()
    for place, (label, (values, residuals, converged)) in enumerate(ends):
        symbol, shade = SYMBOLS[place % 6], colour(place)
        states = ["converged" if done else "not converged" for done in converged]
        texts = [format_number(float(residual), 2) for residual in residuals]
        figure.add_scatter(
            x=list(range(1, len(values) + 1)),
            y=(-values if is_negated else values).tolist(),
            customdata=list(zip(states, texts, strict=True)),
            error_y={"type": "data", "array": residuals.tolist(), "color": shade, "thickness": 1.5, "width": 4},
            mode="lines+markers",
            name=label,
            meta={"checkpoint": label},
            line=series_line(place, 1),
            marker={
                "color": shade,
                "size": 8,
                "line": {"color": shade, "width": 1.5},
                "symbol": [symbol if done else f"{symbol}-open" for done in converged],
            },
            hovertemplate=f"i = %{{x}}<br>λ = {sign}%{{y:.5~g}} ± %{{customdata[1]}} loss/param²"
            "<br>%{customdata[0]}<extra>%{fullData.name}</extra>",
        )
    title = f"{sign}λ ({CURVATURE})" if is_lower else f"{sign}λᵢ ({CURVATURE})"
    vertical = axis(title)
    if is_log:
        sizes = np.abs(np.concatenate([values for _, (values, _, _) in ends]))
        low, high = 0.8 * float(sizes.min()), 1.25 * float(sizes.max())
        vertical = log_between(title, low, high)
    longest = max(len(values) for _, (values, _, _) in ends)
    horizontal = axis("index i", dtick=max(1, longest // 10), range=[0.4, longest + 0.6])
    figure.layout = layout(330, xaxis=horizontal, yaxis=vertical, showlegend=len(ends) > 1)
    heading = "Smallest eigenvalues" if is_lower else "Largest eigenvalues"
    sentences = [
        f"{label}: {len(values)} from {format_number(float(values[0]))} to {format_number(float(values[-1]))}, "
        f"{int(converged.sum())} converged."
        for label, (values, _, converged) in ends
    ]
    scale = "Logarithmic axis, of sizes." if is_negated else "Logarithmic axis." if is_log else "Linear axis."
    summary = " ".join([f"{heading} against their index.", *sentences, scale])
    columns = [("checkpoint", "name"), ("index i", "x"), (title, "y")]
    columns += [(f"residual ({CURVATURE})", "error_y.array"), ("state", "customdata.0")]
    return Drawing.of(figure, name, summary, heading, columns)


# Blocks

MARKERS = {
    "λ₁": {"symbol": "circle", "size": 10},
    "mean λ": {"symbol": "diamond-open", "size": 9},
    "median |λ|": {"symbol": "line-ns-open", "size": 12},
    "upper bound of it": {"symbol": "triangle-left-open", "size": 10},
}
Marks = dict[str, tuple[str, float | None]]  # λ₁, mean and median: (marker, value or None where it has no place)


def draw_blocks(blocks: Sequence[tuple[str, dict[str, OperatorSpectrum]]]) -> Drawing | None:
    """Draw, per block, median |λ|, mean λ and λ₁ on one logarithmic axis, joined by a line."""
    blocks = [(label, found) for label, found in blocks if found]
    names = order_blocks(name for _, found in blocks for name in found)
    if not names:
        return None
    figure, sentences = Figure(), []
    shown: list[float] = []
    used: dict[str, None] = {}
    for place, (label, found) in enumerate(blocks):
        marks = [_marks(found.get(name)) for name in names]
        _add_blocks(figure, label, names, marks, place, len(blocks))
        shown += [value for one in marks for _, value in one.values() if value is not None]
        used |= {marker: None for one in marks for marker, _ in one.values()}
        sharpest = [
            (value, name) for one, name in zip(marks, names, strict=True) if (value := one["λ₁"][1]) is not None
        ]
        if sharpest:
            (low, flattest), (high, top) = min(sharpest), max(sharpest)
            sentences.append(
                f"{label}: λ₁ is largest in {top} ({format_number(high)}) and smallest in {flattest} "
                f"({format_number(low)})."
            )
    # The markers are explained once, in the colour of text: a series' colour would belong to one checkpoint.
    for name, marker in MARKERS.items():
        if name in used:
            title = "upper bound of median |λ|" if name == "upper bound of it" else name
            style = marker | {"color": "var(--muted)", "line": {"width": 2, "color": "var(--muted)"}}
            figure.add_scatter(x=[None], y=[None], mode="markers", name=title, marker=style, hoverinfo="skip")
    least, most = (0.6 * min(shown), 1.7 * max(shown)) if shown else (0.1, 10.0)
    figure.layout = layout(
        110 + len(names) * max(34, 22 * len(blocks)),
        xaxis=log_between(f"curvature ({CURVATURE})", least, most),
        yaxis=name_axis(names),
    )
    columns = [("checkpoint", "name"), ("block", "y"), ("quantity", "customdata.1"), (f"value ({CURVATURE})", "x")]
    return Drawing.of(figure, "blocks", " ".join(["Curvature of each block.", *sentences]), columns=columns)


def _marks(block: OperatorSpectrum | None) -> Marks:
    """Return what of a block has a place on a logarithmic axis; a bound of the median has a marker of its own."""
    if block is None:
        return {"λ₁": ("λ₁", None), "mean": ("mean λ", None), "median": ("median |λ|", None)}
    is_bound = not block.median_is_resolved
    values = {
        "λ₁": ("λ₁", float(block.eigenvalues[0]) if len(block.eigenvalues) else None),
        "mean": ("mean λ", block.trace.value / block.num_parameters),
        "median": ("upper bound of it", block.median_abs_bound)
        if is_bound
        else ("median |λ|", block.median_abs_eigenvalue),
    }
    return {what: (name, value if value and value > 0 else None) for what, (name, value) in values.items()}


def _add_blocks(figure: Figure, label: str, names: list[str], marks: list[Marks], place: int, count: int) -> None:
    """Add one checkpoint's blocks; the line from median to λ₁ is the longer, the more anisotropic a block is."""
    rows = row_of(names, place, count, 0.5)
    ends = {
        block: (one["median"][1], row, one["λ₁"][1], row) for block, one, row in zip(names, marks, rows, strict=True)
    }
    ends = {block: end for block, end in ends.items() if None not in end}
    figure.add_scatter(
        **spans(ends.values()),
        mode="lines",
        name=label,
        meta={"block": times(list(ends), 3), "checkpoint": label},
        line=series_line(place, 2),
        opacity=0.5,
        showlegend=count > 1,
        hoverinfo="skip",
    )
    for what in ("λ₁", "mean", "median"):
        kinds, values = zip(*(one[what] for one in marks), strict=True)
        texts = [
            f"{block}: {'median |λ| ≤' if kind == 'upper bound of it' else f'{kind} ='} {format_number(value)}"
            for block, kind, value in zip(names, kinds, values, strict=True)
        ]
        figure.add_scatter(
            x=values,
            y=rows,
            customdata=list(zip(texts, kinds, strict=True)),
            mode="markers",
            name=label,
            meta={"block": names, "checkpoint": label},
            showlegend=False,
            marker={
                "color": colour(place),
                "size": [MARKERS[kind]["size"] for kind in kinds],
                "symbol": [MARKERS[kind]["symbol"] for kind in kinds],
                "line": {"width": 2, "color": colour(place)},
                "opacity": 1,
            },
            hovertemplate="%{customdata[0]} loss/param²<extra>%{fullData.name}</extra>",
        )
