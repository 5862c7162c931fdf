"""The loss around the start of a replay as figures: lines with the quadratic model, and a plane with every path."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lite_probe.reports.drawing import (
    Drawing,
    Figure,
    axis,
    colour,
    layout,
    reference_line,
    rounded,
    series_line,
    series_marker,
)
from lite_probe.reports.numbers import count_of, format_number, format_share
from lite_probe.results.landscape import FloatArray, Landscape, LossLine, LossPlane

_BY_NAME = "<extra>%{fullData.name}</extra>"
_CHANGE = "loss change from the start (nats)"
_ROOM = 0.06  # of an axis, beyond what it shows
_DEPTHS = 4.0  # above the start's loss that updates are shown, in depths of the lowest
_LEVELS = 5  # of the plane's contours, between the start's loss and the lowest
_WALL = 3  # depths above the start's loss up to which there are some


def told_reach(line: LossLine) -> str:
    """Say how far the quadratic model holds along a line: `to 0.12`, `to 1.7 steps`, `beyond 4 steps`."""
    steps = ""
    if line.kind == "update":
        steps = " step" if line.holds_to == 1.0 else " steps"
    return f"{'beyond' if line.holds_throughout else 'to'} {format_number(line.holds_to, 2)}{steps}"


def draw_lines(name: str, landscape: Landscape) -> list[Drawing]:
    """Draw the loss along eigenvectors and the random flat direction, a figure each, with the quadratic model."""
    return [_draw_line(f"{name}-{number}", line) for number, line in enumerate(landscape.eigenvectors, 1)]


def _draw_line(name: str, line: LossLine) -> Drawing:
    figure = Figure()
    _add_model(figure, line, "quadratic model", "var(--muted)", showlegend=True)
    figure.add_scatter(
        x=rounded(line.distances),
        y=rounded(line.changes),
        name="loss",
        mode="lines+markers",
        line={"color": colour(0), "width": 2},
        marker=series_marker(0, 6),
        hovertemplate=f"s = %{{x:.3~g}}<br>%{{y:.4~g}} nats{_BY_NAME}",
    )
    figure.layout = layout(
        340,
        xaxis=axis(f"s along {'a ' * (line.kind == 'flat')}{line.name} (parameter units)"),
        yaxis=axis(_CHANGE, range=_range(line.changes)),
        shapes=[reference_line(y=0), *(reference_line(x=end) for end in line.bounds)],
        showlegend=True,
    )
    return Drawing.of(figure, name, _told(line), _capital(line.name))


def draw_updates(name: str, landscape: Landscape, optimizers: Sequence[str]) -> Drawing | None:
    """Draw the loss along each optimizer's own update, in its steps, with the quadratic model.

    The axis belongs to the losses below and a few depths above the start's: further out walls would flatten them.
    """
    if not landscape.updates:
        return None
    figure, sentences = Figure(), ["Loss along each optimizer's own step from the start, in such steps."]
    for line in landscape.updates:
        place = optimizers.index(line.optimizer)
        of: dict[str, Any] = {"legendgroup": line.optimizer, "meta": {"optimizer": line.optimizer}}
        _add_model(figure, line, f"{line.optimizer}, model", colour(place), showlegend=False, **of)
        figure.add_scatter(
            x=rounded(line.distances),
            y=rounded(line.changes),
            name=line.optimizer,
            mode="lines+markers",
            line={"color": colour(place), "width": 1.8},
            marker=series_marker(place, 6),
            hovertemplate=f"%{{x:.3~g}} steps<br>%{{y:.4~g}} nats{_BY_NAME}",
            **of,
        )
        sentences.append(_told(line))
    changes = np.concatenate([line.changes for line in landscape.updates])
    low, high = _range(changes)
    depth = -float(changes.min())
    figure.layout = layout(
        380,
        xaxis=axis("steps of the optimizer; 1 is the step that it takes"),
        yaxis=axis(_CHANGE, range=[low, min(high, _DEPTHS * depth) if depth > 0.0 else high]),
        shapes=[reference_line(y=0), reference_line(x=1)],
        showlegend=True,
    )
    return Drawing.of(figure, name, " ".join(sentences))


def draw_plane(name: str, landscape: Landscape, optimizers: Sequence[str]) -> Drawing | None:
    """Draw the loss on the plane as contours, below and above the start's, with the path of every optimizer."""
    plane = landscape.plane
    if plane is None:
        return None
    changes = plane.losses - landscape.start_loss
    known = changes[~plane.is_missing]
    depth = max(-float(known.min()), 0.0) or 0.25 * float(known.max()) or 1.0
    level = _level(depth / _LEVELS)
    figure = Figure()
    figure.add_contour(
        x=rounded(plane.x),
        y=rounded(plane.y),
        z=[
            [None if gone else float(f"{value:.6g}") for value, gone in zip(row, lost, strict=True)]
            for row, lost in zip(changes.tolist(), plane.is_missing.tolist(), strict=True)
        ],
        zmin=-depth,
        zmax=depth,
        colorscale=[[0.0, "var(--good-wash)"], [0.5, "var(--surface)"], [1.0, "var(--caution-wash)"]],
        contours={
            "start": -level * math.ceil(depth / level),
            "end": float(f"{_WALL * depth:.6g}"),
            "size": level,
            "coloring": "heatmap",
            "showlabels": True,
            "labelformat": f".{max(0, -math.floor(math.log10(level)))}f",  # a level at zero is off it by a rounding
            "labelfont": {"size": 10, "color": "var(--muted)"},
        },
        line={"color": "var(--line)", "width": 1},
        showscale=False,
        name="loss on the plane",
        hovertemplate="x = %{x:.3~g}, y = %{y:.3~g}<br>%{z:.4~g} nats from the start<extra></extra>",
    )
    sentences = [
        "Loss on the plane of the sharpest eigenvector and the flat direction in which "
        f"{plane.optimizer} went, with the paths over the replay."
    ]
    for path in plane.paths:
        place, steps = optimizers.index(path.optimizer), len(path.x) - 1
        marker = series_marker(place, 5)
        figure.add_scatter(
            x=rounded(path.x),
            y=rounded(path.y),
            name=path.optimizer,
            mode="lines+markers",
            line=series_line(place, 1.6),
            marker=marker | {"size": [5] * steps + [10]},
            customdata=rounded(path.losses),
            hovertemplate=f"after %{{pointNumber}} steps<br>L = %{{customdata:.5~g}} nats on its way{_BY_NAME}",
            meta={"optimizer": path.optimizer},
        )
        sentences.append(
            f"{path.optimizer}: after {count_of(steps, 'step')} at {format_number(float(path.x[-1]), 2)} along the "
            f"sharpest and {format_number(float(path.y[-1]), 2)} along the flat direction, "
            f"{format_share(path.in_plane)} of its squared way in the plane."
        )
    figure.add_scatter(
        x=[0.0],
        y=[0.0],
        name="start",
        mode="markers",
        marker={"size": 13, "symbol": "cross-thin", "line": {"color": "var(--text)", "width": 2}},
        hovertemplate="start<extra></extra>",
    )
    figure.layout = layout(
        460,
        xaxis=axis("along the sharpest eigenvector (parameter units)", range=_ends(plane.x), showgrid=False),
        yaxis=axis(f"along {plane.optimizer}’s flat way (parameter units)", range=_ends(plane.y), showgrid=False),
        showlegend=True,
    )
    return Drawing.of(figure, name, " ".join(sentences))


def _level(wanted: float) -> float:
    """Return 1, 2 or 5 times a power of ten, the largest that is not above."""
    power = math.floor(math.log10(wanted))
    return float(f"{max(one for one in (1, 2, 5) if one * 10.0**power <= wanted or one == 1)}e{power}")


def told_in_plane(plane: LossPlane) -> str:
    """Say how much of each path lies in the plane: `muon 34%, soap 12%`."""
    return ", ".join(f"{path.optimizer} {format_share(path.in_plane)}" for path in plane.paths)


def _add_model(figure: Figure, line: LossLine, name: str, shade: str, **settings: Any) -> None:
    ways = np.linspace(line.distances[0], line.distances[-1], 61)
    figure.add_scatter(
        x=rounded(ways),
        y=rounded(line.slope * ways + 0.5 * line.curvature * ways**2),
        name=name,
        mode="lines",
        line={"color": shade, "width": 1.4, "dash": "dash"},
        hovertemplate=f"s = %{{x:.3~g}}<br>%{{y:.4~g}} nats{_BY_NAME}",
        **settings,
    )


def _told(line: LossLine) -> str:
    """Say a line's slope, curvature and reach in a sentence."""
    unit = "step" if line.kind == "update" else "parameter unit"
    cut = ", further out the loss is not finite" if line.is_cut else ""
    return (
        f"{_capital(line.name)}: slope {format_number(line.slope, 3)} nats per {unit}, curvature "
        f"{format_number(line.curvature, 3)}; the quadratic model holds {told_reach(line)}{cut}."
    )


def _capital(name: str) -> str:
    return f"{name[0].upper()}{name[1:]}"


def _range(values: FloatArray) -> list[float]:
    low, high = float(values.min()), float(values.max())
    room = _ROOM * (high - low) or 1.0
    return [float(f"{low - room:.6g}"), float(f"{high + room:.6g}")]


def _ends(values: FloatArray) -> list[float]:
    return list(rounded(values[[0, -1]]))
