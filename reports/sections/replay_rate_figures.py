"""Effective learning rate against curvature, along sharp eigenvectors and over the bands of all blocks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lite_probe.reports.drawing import (
    SYMBOLS,
    Drawing,
    Figure,
    colour,
    layout,
    log10,
    log_between,
    series_line,
    series_marker,
)
from lite_probe.reports.numbers import count_of, format_number, format_uncertain
from lite_probe.reports.sections.replay_figures import add_points, by_optimizer, name_eigenvectors
from lite_probe.reports.sections.replay_verdict import of_seeds
from lite_probe.reports.table import estimate_cell
from lite_probe.results.estimate import Estimate
from lite_probe.results.replay import FloatArray, Means, Replay

_OF_BANDS = ("cross-thin", "x-thin", "asterisk", "y-up", "y-down", "line-ew")  # symbols, by optimizer
_SLOPES = ((0.0, "gradient descent"), (-1.0, "Newton"))  # of log η against log curvature, and whose they are
_FLOOR = 0.1  # of a value, where an interval that reaches zero is cut: a logarithmic axis has no place for it


def draw_rates(name: str, replay: Replay) -> Drawing | None:
    """Draw effective learning rate against curvature where both are positive.

    Filled markers are eigenvectors, thin ones bands whose curvature is above zero beyond its error, open ones what the
    linear theory has along eigenvectors. Lines are fits; two more have the slopes of gradient descent and of Newton.
    """
    figure, x, labels = Figure(), replay.eigenvalues, name_eigenvectors(replay)
    measured = by_optimizer(replay, replay.effective_lrs)
    sentences = [f"Effective learning rate against curvature along sharp eigenvectors{_and_bands(replay)}."]
    shown: list[tuple[FloatArray, FloatArray]] = []
    for optimizer, one in measured.items():
        place, at = replay.optimizers.index(optimizer), np.flatnonzero((x > 0) & (one[0] > 0))
        look: dict[str, Any] = {"legendgroup": optimizer, "mode": "markers"}
        low, marker = _FLOOR * one[0], series_marker(place, 8)
        series = (optimizer, optimizer, place)
        add_points(figure, series, x, labels, one, at.tolist(), low=low, marker=marker, **look)
        shown.append((x[at], one[0][at]))
        sentences.append(f"{optimizer}: {len(at)} of {len(x)} positive, {_told_exponents(replay, optimizer)}.")
    for optimizer in (name for name in measured if name in replay.theory):
        theory, place = replay.theory[optimizer], replay.optimizers.index(optimizer)
        lrs, marker = theory.effective_lrs, series_marker(place, 8)
        at = np.flatnonzero((x > 0) & (lrs > 0) & (np.abs(theory.rates) <= 1.0))
        marker |= {"symbol": f"{marker['symbol']}-open", "line": {"width": 1.3, "color": marker["color"]}}
        look = {"legendgroup": optimizer, "mode": "markers", "showlegend": False}
        series = (f"{optimizer}, theory", optimizer, place)
        add_points(figure, series, x, labels, (lrs, None), at.tolist(), marker=marker, **look)
        shown.append((x[at], lrs[at]))
    for optimizer, rates in _band_rates(replay).items():
        place, placed = replay.optimizers.index(optimizer), _placed(replay, rates)
        marker = {"color": colour(place), "size": 6, "symbol": _OF_BANDS[place % 6]}
        marker["line"] = {"width": 1.2, "color": colour(place)}
        look = {"legendgroup": optimizer, "mode": "markers", "showlegend": False}
        series, bare = (f"{optimizer}, bands", optimizer, place), (rates[0], None)
        curvatures = replay.bands.curvatures
        add_points(figure, series, curvatures, name_bands(replay), bare, placed, marker=marker, **look)
        shown.append((curvatures[placed], rates[0][placed]))
        sentences.append(f"{_told_bands(replay, optimizer, rates)}.")
    if not any(len(curvature) for curvature, _ in shown):
        return None
    for optimizer in measured:
        _add_fit(figure, replay, optimizer, legendgroup=optimizer)
    _finish(figure, shown)
    return Drawing.of(figure, name, " ".join(sentences), "all")


def draw_rates_of(name: str, replay: Replay) -> list[Drawing]:
    """Draw the same of each optimizer alone, bands by block with their intervals; none where bands have no place."""
    found, x = [], replay.eigenvalues
    measured, names = by_optimizer(replay, replay.effective_lrs), name_bands(replay)
    curvatures, halves = replay.bands.curvatures, replay.bands.curvature_halves
    for number, (optimizer, rates) in enumerate(_band_rates(replay).items(), 1):
        figure, one, placed = Figure(), measured[optimizer], _placed(replay, rates)
        at = np.flatnonzero((x > 0) & (one[0] > 0))
        shown = [(x[at], one[0][at]), (curvatures[placed], rates[0][placed])]
        if not placed:
            continue
        look: dict[str, Any] = {"mode": "markers"}
        marker = {"color": "var(--text)", "size": 8, "symbol": "star"}
        low, labels = _FLOOR * one[0], name_eigenvectors(replay)
        series = ("eigenvectors", optimizer, 0)
        add_points(figure, series, x, labels, one, at.tolist(), low=low, marker=marker, **look)
        figure.data[0]["error_y"]["color"] = "var(--text)"
        below, is_placed = np.minimum(halves, (1.0 - _FLOOR) * curvatures), set(placed)
        for place, (block, members) in enumerate(replay.bands.places.items()):
            own = [band for band in members if band in is_placed]
            if not own:
                continue
            look = {
                "mode": "markers",
                "block": block,
                "marker": {"color": colour(place), "size": 6, "symbol": SYMBOLS[place % 6]},
                "opacity": 0.85,
                "error_x": {
                    "type": "data",
                    "array": halves[own].tolist(),
                    "arrayminus": below[own].tolist(),
                    "color": colour(place),
                    "thickness": 0.7,
                    "width": 0,
                },
            }
            low = _FLOOR * rates[0]
            series = (block, optimizer, place)
            add_points(figure, series, curvatures, names, rates, own, low=low, **look)
            figure.data[-1]["error_y"] |= {"thickness": 0.7, "width": 0}
        _add_fit(figure, replay, optimizer)
        _finish(figure, shown)
        text = f"Effective learning rate of {optimizer} against curvature, {_told_exponents(replay, optimizer)}."
        told = f"{text} {_told_bands(replay, optimizer, rates)}."
        found.append(Drawing.of(figure, f"{name}-{number}", told, optimizer))
    return found


def name_bands(replay: Replay) -> list[str]:
    """Name every band with its mean curvature."""
    bands = replay.bands
    if not len(bands.curvatures):
        return list(bands.labels)
    told = zip(bands.labels, bands.curvatures.tolist(), bands.curvature_halves.tolist(), strict=True)
    return [f"{label}, κ = {format_uncertain(value, half)}" for label, value, half in told]


def rates_caption(replay: Replay) -> str:
    """Say what the markers are, and which bands have no place in the figure."""
    bands, curved = replay.bands, replay.curved_bands
    sentences = [
        "Filled markers are sharp eigenvectors, open ones the linear theory’s at the start, where it is stable."
    ]
    intervals = "Bars are 95% intervals over seeds."
    if not len(curved):
        return " ".join([*sentences, intervals, "What is not positive has no place here; the table has it."])
    below = int((bands.curvatures < -bands.curvature_halves).sum())
    sentences += [
        "Thin markers are bands at their mean curvature κ. Lines that run through both are fits.",
        intervals,
        "Of one optimizer alone, stars are eigenvectors and other markers bands by block, with intervals over probes "
        "across.",
        f"The curvature of {len(curved) - int(curved.sum())} of {count_of(len(curved), 'band')} is not above zero "
        f"beyond its 95% interval over {count_of(bands.num_probes, 'probe')}, of {below} it is below: they have no "
        "place here.",
    ]
    negative = {name: int((rates[0][curved] <= 0.0).sum()) for name, rates in _band_rates(replay).items()}
    if any(negative.values()):
        told = ", ".join(f"{count} of {name}" for name, count in negative.items() if count)
        sentences.append(f"Nor have bands whose rate is not positive: {told}.")
    return " ".join(sentences)


def _band_rates(replay: Replay) -> dict[str, Means]:
    """Return η of every band by optimizer, with halves of intervals; nothing where bands have no curvature."""
    return by_optimizer(replay, replay.band_effective_lrs) if replay.curved_bands.any() else {}


def _placed(replay: Replay, rates: Means) -> list[int]:
    """Return the bands that have a place: their curvature is above zero beyond its error, and their rate positive."""
    places: NDArray[np.intp] = np.flatnonzero(replay.curved_bands & (rates[0] > 0.0))
    return [int(place) for place in places]


def _and_bands(replay: Replay) -> str:
    return " and over bands" if _band_rates(replay) else ""


def _told_exponents(replay: Replay, optimizer: str) -> str:
    """Write the exponents along eigenvectors, and with bands."""

    def told(exponent: Estimate | None) -> str:
        return f"{estimate_cell(exponent).text}{of_seeds(exponent, len(replay.runs_of(optimizer)))}"

    text = f"exponent {told(replay.exponent(optimizer))}"
    if not _band_rates(replay):
        return text
    return f"{text} along eigenvectors, {told(replay.wide_exponent(optimizer))} with bands"


def _told_bands(replay: Replay, optimizer: str, rates: Means) -> str:
    """Write how many bands have a place, and what they span."""
    placed, curved = _placed(replay, rates), replay.curved_bands
    text = f"{optimizer}: {len(placed)} of {int(curved.sum())} bands with a curvature have a positive rate"
    if not placed:
        return text
    curvatures = replay.bands.curvatures[placed]
    low, high = (format_number(float(one), 2) for one in (curvatures.min(), curvatures.max()))
    return f"{text}, at curvatures from {low} to {high}"


def _add_fit(figure: Figure, replay: Replay, optimizer: str, **look: Any) -> None:
    """Add the power law of the exponent, through the middle of the points that it was fitted to."""
    rates = _band_rates(replay).get(optimizer)
    measured = replay.effective_lrs(optimizer)
    exponent = replay.exponent(optimizer) if rates is None else replay.wide_exponent(optimizer)
    if exponent is None or measured is None:
        return
    at = np.flatnonzero((replay.eigenvalues > 0) & (measured[0] > 0))
    x, y = replay.eigenvalues[at], measured[0][at]
    if rates is not None:
        placed = _placed(replay, rates)
        x, y = np.append(x, replay.bands.curvatures[placed]), np.append(y, rates[0][placed])
    if not len(x):
        return
    middle = float(np.log(y).mean() + exponent.value * np.log(x).mean())
    ends = np.array([x.min(), x.max()])
    place = replay.optimizers.index(optimizer)
    figure.add_scatter(
        x=[float(f"{end:.6g}") for end in ends],
        y=[float(f"{value:.6g}") for value in np.exp(middle - exponent.value * np.log(ends))],
        name=f"{optimizer}, fit",
        showlegend=False,
        mode="lines",
        line=series_line(place, 1.4),
        **look,
        opacity=0.8,
        hovertemplate=f"η ∝ λ^−a, a = {estimate_cell(exponent).text}<extra>%{{fullData.name}}</extra>",
        meta={"optimizer": optimizer},
    )


def _finish(figure: Figure, shown: Sequence[tuple[FloatArray, FloatArray]]) -> None:
    """Lay out the figure around its points, with lines of the slopes to compare with through their middle."""
    x, y = (np.concatenate([pair[at] for pair in shown]) for at in (0, 1))
    wide = (0.7 * float(x.min()), 1.4 * float(x.max()))
    tall = (0.6 * float(y.min()), 1.7 * float(y.max()))
    middle_x, middle_y = float(np.exp(np.log(x).mean())), float(np.exp(np.log(y).mean()))
    notes = []
    for slope, whose in _SLOPES:
        ends = list(wide)
        if slope:  # cut where the line leaves the figure
            crossing = [middle_x * (end / middle_y) ** (1.0 / slope) for end in tall]
            ends = [max(wide[0], min(crossing)), min(wide[1], max(crossing))]
        values = [middle_y * (end / middle_x) ** slope for end in ends]
        figure.add_scatter(
            x=ends,
            y=values,
            name=f"slope {slope:g}",
            showlegend=False,
            mode="lines",
            line={"color": "var(--muted)", "width": 1, "dash": "dot"},
            hoverinfo="skip",
        )
        label = {"text": f"slope {slope:g}".replace("-", "−") + f", {whose}", "showarrow": False}
        spot = {
            "x": log10(ends[0]),
            "y": log10(values[0]),
            "xanchor": "left",
            "yanchor": "top" if slope else "bottom",
            "xshift": 8,
        }
        notes.append(label | spot | {"font": {"size": 11, "color": "var(--muted)"}})
    figure.layout = layout(
        420,
        xaxis=log_between("curvature λ or κ (loss/param²)", *wide),
        yaxis=log_between("effective learning rate η", *tall),
        annotations=notes,
        showlegend=True,
    )
