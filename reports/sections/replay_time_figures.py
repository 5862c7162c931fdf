"""A replay's progress by direction and step: stacked areas, a map of all directions, and how even the updates are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lite_probe.reports.drawing import (
    Drawing,
    Figure,
    axis,
    band_axis,
    colour,
    layout,
    log_between,
    reference_line,
    rounded,
    series_marker,
)
from lite_probe.reports.numbers import count_of, format_number, format_share
from lite_probe.reports.sections.replay_figures import add_points, by_optimizer, name_eigenvectors
from lite_probe.reports.table import band_label
from lite_probe.results.blocks import order_blocks
from lite_probe.results.replay import FloatArray, Replay, ReplayRun

_FLAT_EDGES = (0.0, 0.01, 0.1, 0.3, 0.6, 1.0)  # of a block's directions: bands that are stacked as one area
_FADING = (0.9, 0.66, 0.46, 0.3, 0.17)  # of their colour, the sharpest first
_SHARP, _FLAT = 1, 0  # places of the two colours, as in the figure of progress
_BLOCKS = (0, 2, 3, 4)  # places of colours that are told apart where they are faint, and from that of sharp
_SHOWN = 0.95  # share of a map's cells whose colour is not at either end


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """What is stacked as one: the progress so far of some directions, mean over seeds."""

    label: str
    block: str  # empty where it is of several
    reached: FloatArray  # (K + 1,) nats, 0 before the first step
    shade: str
    opacity: float

    @property
    def parts(self) -> tuple[FloatArray, FloatArray]:
        """(K + 1,) and (K + 1,): where it lowered the loss, and where it raised it."""
        return np.maximum(self.reached, 0.0), np.minimum(self.reached, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfOptimizer:
    """An optimizer's figures: one, or several to switch between."""

    optimizer: str
    drawings: Sequence[Drawing]


def _recorded(replay: Replay, optimizer: str) -> list[ReplayRun]:
    return [run for run in replay.runs_of(optimizer) if run.is_recorded]


def _has_flat_bands(replay: Replay) -> bool:
    """Return whether what falls to the flat complement is known by band."""
    runs = [run for optimizer in replay.optimizers for run in _recorded(replay, optimizer)]
    return bool(runs) and all(len(run.band_flat_allocations) for run in runs)


def _reached(allocations: Sequence[FloatArray]) -> FloatArray:
    """Return (K + 1,) the progress so far, from (K,) allocations of every seed."""
    return np.concatenate([[0.0], -np.mean(allocations, axis=0).cumsum()])


# Stacked areas


def stack_by_band(replay: Replay, optimizer: str) -> list[Area]:
    """Return sharp directions and the flat rest of every band, bands of all blocks together."""
    runs, bands = _recorded(replay, optimizer), replay.bands
    place = np.searchsorted(_FLAT_EDGES, bands.low, side="right") - 1
    areas = [_sharp_area(runs)]
    for group, opacity in enumerate(_FADING):
        chosen = place == group
        if chosen.any():
            label = f"flat {band_label(_FLAT_EDGES[group], _FLAT_EDGES[group + 1])}"
            reached = _reached([run.band_flat_allocations[:, chosen].sum(axis=1) for run in runs])
            areas.append(Area(label=label, block="", reached=reached, shade=colour(_FLAT), opacity=opacity))
    return areas


def stack_by_block(replay: Replay, optimizer: str) -> list[Area]:
    """Return sharp directions and the flat rest of every block."""
    runs, blocks = _recorded(replay, optimizer), np.array(replay.bands.blocks)
    areas = [_sharp_area(runs)]
    shades = [colour(place) for place in _BLOCKS]
    for number, block in enumerate(order_blocks(replay.bands.blocks)):
        reached = _reached([run.band_flat_allocations[:, blocks == block].sum(axis=1) for run in runs])
        opacity = 0.85 if number < len(shades) else 0.4
        shade = shades[number % len(shades)]
        areas.append(Area(label=f"flat {block}", block=block, reached=reached, shade=shade, opacity=opacity))
    return areas


def stack_by_part(replay: Replay, optimizer: str) -> list[Area]:
    """Return sharp directions and the flat rest."""
    runs = _recorded(replay, optimizer)
    reached = _reached([run.flat_allocations for run in runs])
    return [_sharp_area(runs), Area(label="flat", block="", reached=reached, shade=colour(_FLAT), opacity=0.75)]


def _sharp_area(runs: Sequence[ReplayRun]) -> Area:
    reached = _reached([run.sharp_allocations.sum(axis=1) for run in runs])
    return Area(label="sharp", block="", reached=reached, shade=colour(_SHARP), opacity=0.85)


def draw_stacks(name: str, replay: Replay) -> list[OfOptimizer]:
    """Draw the progress so far against step, stacked by directions; the same axis for all optimizers.

    What has raised the loss so far is stacked below zero, apart from what has lowered it: the line is their sum.
    """
    stacks = {"": stack_by_part}
    if _has_flat_bands(replay):
        stacks = {"by band": stack_by_band, "by block": stack_by_block}
    watched = [optimizer for optimizer in replay.optimizers if _recorded(replay, optimizer)]
    areas = {(one, title): stack(replay, one) for one in watched for title, stack in stacks.items()}
    parts = [[area.parts for area in own] for own in areas.values()]
    high, low = (max((_most([p[at] for p in own]) for own in parts), default=0.0) for at in (0, 1))
    if high + low == 0.0:
        return []
    span = [round(-low - 0.04 * (high + low), 8), round(high + 0.04 * (high + low), 8)]
    return [
        OfOptimizer(
            optimizer=optimizer,
            drawings=[
                _draw_stack(f"{name}-{number}-{index}", optimizer, areas[optimizer, title], title, span)
                for index, title in enumerate(stacks, 1)
            ],
        )
        for number, optimizer in enumerate(watched, 1)
    ]


def _most(stacked: Sequence[FloatArray]) -> float:
    """Return how far from zero a stack of one sign reaches."""
    return float(np.abs(np.sum(stacked, axis=0)).max())


def _draw_stack(name: str, optimizer: str, areas: Sequence[Area], title: str, span: list[float]) -> Drawing:
    figure, whole = Figure(), np.sum([area.reached for area in areas], axis=0)
    steps = list(range(len(whole)))
    # Bars without gaps: unlike areas they stack what is above zero and what is below apart, and can be faint.
    for area in areas:
        figure.add_bar(
            x=steps[1:],
            y=rounded(area.reached[1:]),
            name=area.label,
            marker={"color": area.shade, "line": {"width": 0}},
            opacity=area.opacity,
            hovertemplate="after %{x} steps<br>%{fullData.name}: %{y:.3~g} nats<extra></extra>",
            meta={"optimizer": optimizer} | ({"block": area.block} if area.block else {}),
        )
    figure.add_scatter(
        x=steps,
        y=rounded(whole),
        name="all",
        mode="lines",
        line={"width": 1.6, "color": "var(--text)"},
        hovertemplate="after %{x} steps<br>all: %{y:.3~g} nats<extra></extra>",
        meta={"optimizer": optimizer},
    )
    figure.layout = layout(
        330,
        xaxis=axis("step"),
        yaxis=axis("progress so far (nats)", range=span),
        shapes=[reference_line(y=0) | {"layer": "above"}],
        barmode="relative",
        bargap=0,
        showlegend=True,
    )
    ends = ", ".join(f"{format_number(float(area.reached[-1]), 3)} {area.label}" for area in areas)
    text = f"Progress of {optimizer} at the end, in nats: {format_number(float(whole[-1]), 3)}, of it {ends}."
    return Drawing.of(figure, name, text, title)


# Every direction and step


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Neighbouring rows of a map: the sharp eigenvectors, or a block's bands."""

    name: str
    labels: Sequence[str]
    values: FloatArray  # (rows, K) nats per step


def rows_of(replay: Replay, optimizer: str) -> list[Rows]:
    """Return every direction's progress per step, mean over seeds; bands without their sharp part where it is known."""
    runs, bands = _recorded(replay, optimizer), replay.bands
    flat = [run.band_flat_allocations if _has_flat_bands(replay) else run.band_allocations for run in runs]
    sharp = -np.mean([run.sharp_allocations for run in runs], axis=0).T
    by_band = -np.mean(flat, axis=0).T
    found, labels = [Rows(name="sharp", labels=name_eigenvectors(replay), values=sharp)], bands.labels
    for block, chosen in bands.places.items():
        found.append(Rows(name=block, labels=[labels[at] for at in chosen], values=by_band[chosen]))
    return [rows for rows in found if len(rows.values)]


def map_caption(replay: Replay) -> str:
    """Say what the colours are, and whether rows add up."""
    sums = "Rows of bands are without their part along sharp eigenvectors, so that all rows add up to the loss change."
    if not _has_flat_bands(replay):
        sums = "Rows of bands hold their part along sharp eigenvectors, too."
    return (
        "Progress per step, mean over seeds: blue lowered the loss, orange raised it. The scale is the same for all "
        f"optimizers; one cell in twenty is beyond its ends. {sums}"
    )


def draw_maps(name: str, replay: Replay) -> list[OfOptimizer]:
    """Draw progress per step of every direction as colours, an optimizer each, with one scale around zero for all."""
    watched = {one: rows_of(replay, one) for one in replay.optimizers if _recorded(replay, one)}
    sizes = [np.abs(rows.values).ravel() for own in watched.values() for rows in own]
    limit = float(np.quantile(np.concatenate(sizes), _SHOWN)) if sizes else 0.0
    if limit == 0.0:
        return []
    return [
        OfOptimizer(optimizer=optimizer, drawings=[_draw_map(f"{name}-{number}", optimizer, rows, limit)])
        for number, (optimizer, rows) in enumerate(watched.items(), 1)
    ]


def _draw_map(name: str, optimizer: str, groups: Sequence[Rows], limit: float) -> Drawing:
    figure, labels = Figure(), [label for rows in groups for label in rows.labels]
    values = np.concatenate([rows.values for rows in groups])
    # One trace: plotly.js takes the rows of several on an axis of names for those of all names.
    figure.add_heatmap(
        x=list(range(1, values.shape[1] + 1)),
        y=labels,
        z=[[float(f"{value:.4g}") for value in row] for row in values.tolist()],
        coloraxis="coloraxis",
        hovertemplate="%{y}<br>step %{x}<br>%{z:.3~g} nats<extra></extra>",
        meta={"optimizer": optimizer},
    )
    ticks = [rows.labels[(len(rows.labels) - 1) // 2] for rows in groups]
    borders = np.cumsum([len(rows.labels) for rows in groups]) - 0.5
    rows_style = {"showgrid": False, "ticks": "", "type": "category", "categoryarray": labels}
    bar = {"thickness": 10, "outlinewidth": 0, "nticks": 5, "tickfont": {"size": 11, "color": "var(--muted)"}}
    title = {"text": "nats", "font": {"size": 11, "color": "var(--muted)"}}
    figure.layout = layout(
        140 + 5 * len(labels),
        xaxis=axis("step", showgrid=False),
        yaxis=axis(
            "",
            tickvals=ticks,
            ticktext=[rows.name for rows in groups],
            range=[len(labels) - 0.5, -0.5],
            **rows_style,
        ),
        shapes=[
            reference_line(y=border) | {"yref": "y", "layer": "above", "line": {"color": "var(--line)", "width": 1}}
            for border in borders[:-1].tolist()
        ],
        coloraxis={
            "cmin": -limit,
            "cmax": limit,
            "colorscale": [[0, "var(--series-2)"], [0.5, "var(--surface)"], [1, "var(--series-1)"]],
            "colorbar": bar | {"title": title, "exponentformat": "power"},
        },
    )
    lowered = [f"{rows.name} {format_share(float((rows.values > 0).mean()))}" for rows in groups]
    text = (
        f"Progress of {optimizer} per step along {count_of(len(labels), 'row')} of directions, colours up to "
        f"{format_number(limit, 2)} nats either way. Share of cells that lowered the loss: {', '.join(lowered)}."
    )
    return Drawing.of(figure, name, text, optimizer)


# How even the updates are


def draw_isotropy(name: str, replay: Replay) -> list[Drawing]:
    """Draw the updates' energy per dimension over the mean against band, a figure per block; 1 is as all others."""
    bands, found = replay.bands, []
    measured, labels = by_optimizer(replay, replay.band_isotropy), bands.labels
    for number, (block, places) in enumerate(bands.places.items() if measured else (), 1):
        figure, ends = Figure(), [1.0]
        sentences = [f"Energy of the updates per dimension in {block} by band, over the mean of all dimensions."]
        for optimizer, one in measured.items():
            place = replay.optimizers.index(optimizer)
            at = [band for band in places if one[0][band] > 0]
            style: dict[str, Any] = {"marker": series_marker(place, 7), "low": 0.1 * one[0]}
            series, x = (optimizer, optimizer, place), 50.0 * (bands.low + bands.high)
            values = add_points(figure, series, x, labels, one, at, block=block, **style)
            ends += values
            if values:
                first, last = (format_number(value, 2) for value in (values[0], values[-1]))
                sentences.append(f"{optimizer}: {first} in the first, {last} in the last.")
        figure.layout = layout(
            360,
            xaxis=band_axis("band, the sharpest by the proxy first (%)"),
            yaxis=log_between("energy per dimension / mean", 0.6 * min(ends), 1.7 * max(ends)),
            shapes=[reference_line(y=1)],
            showlegend=True,
        )
        found.append(Drawing.of(figure, f"{name}-{number}", " ".join(sentences), block))
    return found
