"""How long a step the loss tolerates, drawn as Plotly figures. Multiples of the step taken, on logarithmic axes."""

from collections.abc import Sequence
from typing import Any

from lite_probe.reports.drawing import (
    DASHES,
    SYMBOLS,
    Drawing,
    Figure,
    axis,
    colour,
    error_bars,
    layout,
    log_between,
    name_axis,
    reference_line,
    row_of,
    series_line,
    series_marker,
    spans,
    times,
)
from lite_probe.reports.numbers import format_number
from lite_probe.reports.sections.steps_verdict import (
    critical_multiple,
    critical_words,
    curvature_edge,
    interval_of,
    rate_of,
    where_of,
)
from lite_probe.results.blocks import order_blocks
from lite_probe.results.estimate import Estimate
from lite_probe.results.steps import CriticalSteps, StepRow, Steps

NO_EDGE = "no edge found"
RAISES = "raises the loss"
_BOUNDS = {"triangle-left": "one batch, at most", "triangle-right": "one batch, at least"}
_LOOSE = 30.0  # times a value, beyond which the end of its interval does not stretch the axis
_LEVEL = 6  # bands whose names fit below a narrow figure side by side
_ORDER = ("rank 1", "ranks 2–4", "ranks 5–8", "to 0.1%", "to 1%", "1–10%", "10–40%", "40–100%", "unordered")


def interval_text(one: Estimate | None, missing: str = NO_EDGE) -> str:
    """Write a value with its 95% interval: `0.65 (0.41 to 1.55)`; a single batch has none."""
    if one is None:
        return missing
    if one.num_samples == 1 or one.low == one.high:
        return format_number(one.value, 3)
    value, interval = interval_of(one)
    return f"{value} ({interval})"


def order_bands(names: Sequence[str]) -> list[str]:
    """Put names of bands in their order, the sharpest first, each once; strangers last."""
    present = list(dict.fromkeys(names))
    return sorted(present, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))


def draw_profiles(number: int, steps: Steps) -> list[Drawing]:
    """Draw a figure per block: the own optimum of every band, a series per optimizer."""
    blocks = order_blocks(block for one in steps.optimizers.values() for block in one.blocks)
    return [_draw_profile(f"profile-{number}-{place}", block, steps) for place, block in enumerate(blocks, 1)]


def _draw_profile(name: str, block: str, steps: Steps) -> Drawing:
    """Draw own optima with 95% intervals; bands without an edge stand at the top, those that raise the loss below."""
    rows = {key: [row for row in one.rows if row.block == block] for key, one in steps.optimizers.items()}
    rows = {key: own for key, own in rows.items() if own}
    bands = order_bands([row.name for own in rows.values() for row in own])
    optima = [row.optimum for own in rows.values() for row in own if row.optimum is not None]
    positive = [one for one in optima if one.value > 0.0]
    low = 0.5 * min([0.5, *(max(one.low, one.value / _LOOSE) for one in positive)])
    high = 1.5 * max([2.0, *(max(min(one.high, _LOOSE * one.value), 2.0 * one.value) for one in positive)])
    bottom, top = low, 1.6 * high  # where what has no place on the axis stands
    figure, sentences, marks = Figure(), [], set()
    for place, (optimizer, own) in enumerate(rows.items()):
        at = [bands.index(row.name) + 0.5 * ((place + 0.5) / len(rows) - 0.5) for row in own]
        shared = {"name": optimizer, "legendgroup": optimizer, "meta": {"optimizer": optimizer, "block": block}}
        texts = [f"{row.name}: {interval_text(row.optimum)}" for row in own]
        told = [
            text if row.optimum is None else f"{text} × the step taken" for row, text in zip(own, texts, strict=True)
        ]
        drawn = [row.optimum if row.optimum is not None and row.optimum.value > 0.0 else None for row in own]
        figure.add_scatter(
            **shared,
            x=at,
            y=[None if one is None else _rounded(one.value) for one in drawn],
            customdata=[(text, _state(row), *_ends(row.optimum)) for row, text in zip(own, told, strict=True)],
            error_y=error_bars(
                [0.0 if one is None else _rounded(min(one.high, 2.0 * top) - one.value) for one in drawn],
                colour(place),
                [0.0 if one is None else _rounded(one.value - max(one.low, 0.5 * bottom)) for one in drawn],
            ),
            mode="lines+markers",
            line=series_line(place, 1.5),
            marker=series_marker(place, 8),
            hovertemplate="%{customdata[0]}<extra>%{fullData.name}</extra>",
        )
        edges = [(x, one) for x, one in zip(at, drawn, strict=True) if one is not None]
        if edges:
            marks.add("edge")
            _add_marks(
                figure,
                shared,
                place,
                [
                    (x, 2.0 * one.value, f"edge: {format_number(2.0 * one.value, 3)} × the step taken")
                    for x, one in edges
                ],
                "line-ew-open",
            )
        for symbol, height, what, is_of in (
            ("triangle-up-open", top, NO_EDGE, _has_no_edge),
            ("triangle-down", bottom, RAISES, _raises),
        ):
            found = [(x, height, text) for x, row, text in zip(at, own, told, strict=True) if is_of(row)]
            if found:
                marks.add(what)
                _add_marks(figure, shared, place, found, symbol)
        sentences.append(f"{optimizer} at {rate_of(steps.optimizers[optimizer])}: {'; '.join(texts)}.")
    for key, symbol, label in (
        ("edge", "line-ew-open", "edge, at twice the optimum"),
        (NO_EDGE, "triangle-up-open", NO_EDGE),
        (RAISES, "triangle-down", RAISES),
    ):
        if key in marks:
            marker = {
                "color": "var(--muted)",
                "size": 9,
                "symbol": symbol,
                "line": {"width": 2, "color": "var(--muted)"},
            }
            figure.add_scatter(x=[None], y=[None], mode="markers", name=label, marker=marker)
    figure.layout = layout(
        380,
        xaxis=axis(
            "band of the block’s directions, the sharpest first",
            tickvals=list(range(len(bands))),
            ticktext=[short_band(band) for band in bands],
            range=[-0.6, len(bands) - 0.4],
            tickangle=0 if len(bands) <= _LEVEL else -40,
        ),
        yaxis=log_between("own optimum (× the step taken)", 0.8 * bottom, 1.3 * top),
        shapes=[_step_taken(y=1.0)],
    )
    opening = f"{block}: own optimum of every band, in multiples of the step taken, with 95% intervals."
    columns = [("optimizer", "name"), ("band", "x"), ("state", "customdata.1"), *_columns("own optimum", 2)]
    return Drawing.of(figure, name, " ".join([opening, *sentences]), block, columns)


def _columns(what: str, place: int) -> list[tuple[str, str]]:
    """Return the columns of a multiple and its 95% interval, which are at a place of a trace's customdata."""
    titles = (what, "lower end of the 95% interval", "upper end of the 95% interval")
    return [(f"{title} (× the step taken)", f"customdata.{at}") for at, title in enumerate(titles, place)]


def _ends(one: Estimate | None) -> tuple[float | None, float | None, float | None]:
    """Return a value and its 95% interval; a single batch has none."""
    if one is None:
        return (None, None, None)
    return (one.value, None, None) if one.num_samples == 1 else (one.value, one.low, one.high)


def _state(row: StepRow) -> str:
    return NO_EDGE if _has_no_edge(row) else RAISES if _raises(row) else "edge found"


def _has_no_edge(row: StepRow) -> bool:
    return row.optimum is None


def _raises(row: StepRow) -> bool:
    return row.optimum is not None and row.optimum.value <= 0.0


def _add_marks(
    figure: Figure, shared: dict[str, Any], place: int, found: Sequence[tuple[float, float, str]], symbol: str
) -> None:
    """Add marks without a line, (x, y, text)."""
    marker = {"color": colour(place), "size": 9, "symbol": symbol, "line": {"width": 2, "color": colour(place)}}
    figure.add_scatter(
        **shared,
        x=[x for x, _, _ in found],
        y=[_rounded(y) for _, y, _ in found],
        customdata=[text for _, _, text in found],
        mode="markers",
        marker=marker,
        showlegend=False,
        hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
    )


def short_band(name: str) -> str:
    """Name a band below a figure or above a column: `2–4` for `ranks 2–4`."""
    return name.removeprefix("ranks ")


def draw_critical(number: int, steps: Steps) -> Drawing | None:
    """Draw the critical step of every optimizer on each set of batches, and the edge that curvature gives it."""
    names = list(steps.optimizers)
    kinds = list(dict.fromkeys(kind for one in steps.optimizers.values() for kind in one.critical))
    if not kinds:
        return None
    has_curvature = any(one.whole is not None for one in steps.optimizers.values())
    count, figure, ends = len(kinds) + has_curvature, Figure(), [1.0]
    sentences = {name: f"{name} at {rate_of(one)}:" for name, one in steps.optimizers.items()}
    for place, kind in enumerate(kinds):
        rows = row_of(names, place, count, 0.6)
        pairs = [(steps.optimizers[name].critical.get(kind), row) for name, row in zip(names, rows, strict=True)]
        found = [(critical_multiple(one), one, row) for one, row in pairs]
        _add_series(figure, where_of(kind), place, names, [(mean, row) for mean, _, row in found], ends)
        samples = [
            (x, row, symbol, name)
            for name, (_, one, row) in zip(names, found, strict=True)
            if one is not None
            for x, symbol in _samples(one)
        ]
        ends += [x for x, *_ in samples]
        figure.add_scatter(
            name=where_of(kind),
            legendgroup=where_of(kind),
            meta={"optimizer": [name for *_, name in samples]},
            x=[_rounded(x) for x, *_ in samples],
            y=[row for _, row, *_ in samples],
            customdata=[("", _BOUNDS.get(symbol, "one batch"), x, None, None) for x, _, symbol, _ in samples],
            mode="markers",
            showlegend=False,
            marker={
                "color": colour(place),
                "size": 5,
                "symbol": [symbol for _, _, symbol, _ in samples],
                "opacity": 0.55,
            },
            hovertemplate="%{customdata[1]}: %{x:.3g} × the step taken<extra>%{fullData.name}</extra>",
        )
        for name, (mean, one, _) in zip(names, found, strict=True):
            if one is not None:
                words = critical_words(one) or interval_text(mean)
                sentences[name] += f" {where_of(kind)} {words};"
    if has_curvature:
        rows = row_of(names, len(kinds), count, 0.6)
        edges = [curvature_edge(steps.optimizers[name]) for name in names]
        _add_series(figure, "by curvature", len(kinds), names, list(zip(edges, rows, strict=True)), ends)
        for name, edge in zip(names, edges, strict=True):
            sentences[name] += f" by curvature {interval_text(edge)};"
    figure.layout = layout(
        110 + len(names) * max(44, 22 * count),
        xaxis=log_between("critical step (× the step taken)", 0.6 * min(ends), 1.6 * max(ends)),
        yaxis=name_axis(names),
        shapes=[_step_taken(x=1.0)],
    )
    told = " ".join(f"{sentence.rstrip(';')}." for sentence in sentences.values())
    summary = f"Critical step in multiples of the step taken, with 95% intervals. {told}"
    columns = [("batches", "name"), ("optimizer", "y"), ("of", "customdata.1"), *_columns("critical step", 2)]
    return Drawing.of(figure, f"critical-{number}", summary, columns=columns)


def _add_series(
    figure: Figure,
    name: str,
    place: int,
    optimizers: Sequence[str],
    found: Sequence[tuple[Estimate | None, float]],
    ends: list[float],
) -> None:
    """Add means with their intervals, (estimate, row) of each optimizer, and what the axis has to hold of them."""
    known = [(key, one, row) for key, (one, row) in zip(optimizers, found, strict=True) if one and one.value > 0.0]
    owners, drawn = [key for key, _, _ in known], [(one, row) for _, one, row in known]
    bounds = [(max(one.low, one.value / _LOOSE), row, min(one.high, _LOOSE * one.value), row) for one, row in drawn]
    ends += [end for low, _, high, _ in bounds for end in (low, high)]
    line = {"color": colour(place), "width": 2, "dash": DASHES[place % 6]}
    figure.add_scatter(
        name=name,
        legendgroup=name,
        meta={"optimizer": times(owners, 3)},
        **spans(bounds),
        mode="lines",
        line=line,
        showlegend=False,
        hoverinfo="skip",
    )
    figure.add_scatter(
        name=name,
        legendgroup=name,
        meta={"optimizer": owners},
        x=[_rounded(one.value) for one, _ in drawn],
        y=[row for _, row in drawn],
        customdata=[(f"{interval_text(one)} × the step taken", "all batches", *_ends(one)) for one, _ in drawn],
        mode="markers",
        showlegend=False,
        marker=series_marker(place, 10),
        hovertemplate="%{customdata[0]}<extra>%{fullData.name}</extra>",
    )
    # A legend of its own, which shows also where nothing was found.
    figure.add_scatter(
        name=name, legendgroup=name, x=[None], y=[None], mode="lines+markers", line=line, marker=series_marker(place, 9)
    )


def _samples(critical: CriticalSteps) -> list[tuple[float, str]]:
    """Return (multiple, symbol) per batch: the middle of its bracket, or the end that it is beyond."""
    found = []
    for low, high in zip(critical.low.tolist(), critical.high.tolist(), strict=True):
        if low == 0.0:
            found.append((high, "triangle-left"))
        elif low == high:
            found.append((low, "triangle-right"))
        else:
            found.append((0.5 * (low + high), SYMBOLS[0]))
    return found


def _step_taken(*, x: float | None = None, y: float | None = None) -> dict[str, Any]:
    """Return the line at the step taken, which stands out from the grid's."""
    return reference_line(x=x, y=y) | {"line": {"color": "var(--muted)", "width": 1.6}}


def _rounded(value: float) -> float:
    """Keep six digits."""
    return float(f"{value:.6g}")
