"""What all figures share: Plotly figures as plain JSON values, axes in the page's style, the colours of series.

Colours are names of the page's CSS variables (`var(--series-1)`); the page's script puts in the values of the
theme, so that one figure serves light, dark and print.

A trace's `meta` names what it belongs to, by which the page filters: `{"optimizer": …, "block": …, "checkpoint": …}`,
as many of them as apply. A list is of the trace's points one by one.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lite_probe.reports.numbers import format_number, power_label
from lite_probe.results.blocks import order_blocks

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
FILTERS = ("optimizer", "block", "checkpoint")
_SHORT = ("error_x", "error_y", "customdata", "z")
_UNESCAPED = ("hovertemplate", "meta")  # the page keeps meta from plotly.js


class Figure:
    """Traces and a layout in plotly.js's own words, as plain values.

    Plotly's Python classes would check every property each time that a page is made, and take most of its time: the
    tests do that instead, on every figure.
    """

    def __init__(self) -> None:
        self.data: list[dict[str, Any]] = []
        self.layout: dict[str, Any] = {}

    def add_scatter(self, **trace: Any) -> None:
        """Add lines or markers."""
        self.data.append({"type": "scatter", **trace})

    def add_bar(self, **trace: Any) -> None:
        """Add bars."""
        self.data.append({"type": "bar", **trace})

    def add_heatmap(self, **trace: Any) -> None:
        """Add a field of cells."""
        self.data.append({"type": "heatmap", **trace})

    def add_contour(self, **trace: Any) -> None:
        """Add lines of equal height."""
        self.data.append({"type": "contour", **trace})


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A figure of a page."""

    name: str
    figure: dict[str, Any]  # for plotly.js
    summary: str  # for those who cannot see it
    title: str = ""  # above it, or of its button

    @classmethod
    def of(
        cls, figure: Figure, name: str, summary: str, title: str = "", columns: Sequence[tuple[str, str]] = ()
    ) -> "Drawing":
        """Return a figure as plain JSON values.

        Args:
            figure: Its numbers in full, errors and cells apart: they are those of its table and its CSV.
            name: Of the figure.
            summary: For those who cannot see it.
            title: Above it, or of its button.
            columns: (title, where in a trace) of its table, where that is not name, axes and errors: `name`, `x`, `y`,
                `z`, `low` and `high` of the band around a line, `error_y.array`, `customdata`, or one of its places,
                `customdata.1`. A row of which nothing is known from the third column on is left out.
        """
        numbers = [list(column) for column in columns or _columns(figure)]
        described = plain(figure) | {"summary": summary, "columns": numbers}
        return cls(name=name, figure=described, summary=summary, title=title)


def _columns(figure: Figure) -> list[tuple[str, str]]:
    """Return the columns of a figure's table: names, axes, and errors or the ends of a band where it has some."""
    x, y = (figure.layout.get(f"{one}axis", {}).get("title", {}).get("text") or one for one in "xy")
    found, described = [("series", "name"), (x, "x"), (y, "y")], figure.data
    bars = [trace["colorbar"] for trace in described if "colorbar" in trace]
    if any("z" in trace for trace in described):
        found.append((next((bar["title"]["text"] for bar in bars if "title" in bar), "z"), "z"))
    for title, key in ((x, "error_x"), (y, "error_y")):
        for words, side in (("error", "array"), ("error below", "arrayminus")):
            if any(trace.get(key, {}).get(side) is not None for trace in described):
                found.append((_with_words(title, words), f"{key}.{side}"))
    if any(trace.get("fill") == "toself" for trace in described):
        found += [(_with_words(y, end), end) for end in ("low", "high")]
    return found


def _with_words(title: str, words: str) -> str:
    """Put words behind a title, before its unit."""
    name, bracket, unit = title.partition(" (")
    return f"{name}, {words}{bracket}{unit}"


def by_name(drawings: Iterable[Drawing | None]) -> dict[str, dict[str, Any]]:
    """Return the figures that there are, by name."""
    return {one.name: one.figure for one in drawings if one is not None}


def by_checkpoint(labels: Sequence[str], drawings: Iterable[Iterable[Drawing | None]]) -> dict[str, dict[str, Any]]:
    """Return the figures that there are, by name; the traces of every checkpoint's are marked as its own."""
    figures = {}
    for label, own in zip(labels, drawings, strict=True):
        for name, figure in by_name(own).items():
            own_meta = {"checkpoint": label} if len(labels) > 1 else {}
            traces = [one | {"meta": one.get("meta", {}) | own_meta} for one in figure["data"]]
            figures[name] = figure | {"data": traces}
    return figures


def choices_of(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return the optimizers, blocks and checkpoints that traces belong to, where there is something to choose."""
    found: dict[str, dict[str, None]] = {key: {} for key in FILTERS}
    for trace in (trace for figure in figures.values() for trace in figure["data"]):
        for key, value in trace.get("meta", {}).items():
            found[key] |= dict.fromkeys([value] if isinstance(value, str) else value)
    found["block"] = dict.fromkeys(order_blocks(found["block"]))
    return {key: tuple(names) for key, names in found.items() if len(names) > 1}


def plain(figure: Figure) -> dict[str, Any]:
    """Return a figure's traces and layout, every name as text.

    plotly.js takes `<a href=…>`, `<b>` or `&lt;` in any label for markup, and names come from files. Only templates of
    hover labels are markup: they say where a name goes, and hold none.
    """
    return {"data": _literal(figure.data), "layout": _literal(figure.layout)}


def _literal(value: Any) -> Any:
    """Escape all text in a figure but its hover templates and meta, so that plotly.js shows it as it is written."""
    if isinstance(value, str):
        return html.escape(value, quote=False)
    if isinstance(value, Mapping):
        return {key: _entry(key, item) for key, item in value.items()}
    return [_literal(item) for item in value] if isinstance(value, list | tuple) else value


def _entry(key: str, value: Any) -> Any:
    """Return what is under a key: errors and fields of cells to six digits, which keeps pages small."""
    if key in _UNESCAPED:
        return value
    return _short(_literal(value)) if key in _SHORT else _literal(value)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value


def colour(place: int) -> str:
    """Return the colour of a series."""
    return f"var(--series-{place % 6 + 1})"


def series_line(place: int, width: float) -> dict[str, Any]:
    """Return the line of a series, told by colour and dashes."""
    return {"color": colour(place), "width": width, "dash": DASHES[place % 6]}


def series_marker(place: int, size: int) -> dict[str, Any]:
    """Return the marker of a series, told by colour and symbol."""
    return {"color": colour(place), "size": size, "symbol": SYMBOLS[place % 6]}


def error_bars(halves: Sequence[float], shade: str, below: Sequence[float] | None = None) -> dict[str, Any]:
    """Return error bars up and down; of other lengths below where those are given."""
    down = {} if below is None else {"arrayminus": below}
    return {"array": halves, **down, "color": shade}


def layout(height: int, **settings: Any) -> dict[str, Any]:
    """Return a figure's layout; the page's script adds what all have in common."""
    return {"height": height, **settings}


def axis(title: str, **settings: Any) -> dict[str, Any]:
    """Return an axis; likewise."""
    return {"title": {"text": title}, **settings}


def log_axis(title: str, **settings: Any) -> dict[str, Any]:
    """Return a logarithmic axis with one label per power of ten."""
    return axis(title, type="log", **settings)


def log_between(title: str, low: float, high: float) -> dict[str, Any]:
    """Return a logarithmic axis from one value to another, with its labels."""
    return log_axis(title, range=[log10(low), log10(high)], **log_ticks(low, high))


def log_ticks(low: float, high: float) -> dict[str, list[Any]]:
    """Place labels on a logarithmic axis: powers of ten, at most nine, or finer steps below two decades.

    Plotly's own labels leave the power of ten out between decades and enlarge it at them.
    """
    first, last = math.floor(log10(low)), math.ceil(log10(high))
    span = log10(high) - log10(low)
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


def log10(value: float) -> float:
    """Return log₁₀ to four decimals."""
    return round(math.log10(value), 4)


def band_axis(title: str) -> dict[str, Any]:
    """Return an axis of shares in percent, logarithmic: the sharpest bands are the narrowest."""
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    return log_axis(title, range=[log10(0.35), log10(115.0)], tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def reference_line(*, x: float | None = None, y: float | None = None) -> dict[str, Any]:
    """Return a dotted line across the figure at one value of either axis."""
    along = {"yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x}
    if y is not None:
        along = {"xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y}
    return {"type": "line", **along}


def name_axis(names: Sequence[str]) -> dict[str, Any]:
    """Return an axis with a row per name, the first on top."""
    style = {"showgrid": False, "ticks": "", "range": [len(names) - 0.4, -0.6]}
    return axis("", tickvals=list(range(len(names))), ticktext=list(names), **style)


def row_of(names: Sequence[str], place: int, count: int, spread: float) -> list[float]:
    """Return where the marks of one of so many series stand, a row per name."""
    return [row + spread * ((place + 0.5) / count - 0.5) for row in range(len(names))]


def asinh_ticks(scale: float, largest: float) -> tuple[tuple[float, str], ...]:
    """Place ticks at 0 and at ± powers of ten from the scale upward.

    Returns:
        (asinh(t/s), label of t), ascending; ±s stay unlabelled beside 0 where there are more than three powers.
    """
    start = round(math.log10(scale))
    powers = range(start, max(start, math.floor(math.log10(largest))) + 1)
    is_crowded = len(powers) > 3
    positive = [
        (math.asinh(10.0**power / scale), "" if is_crowded and power == start else power_label(power))
        for power in powers
    ]
    negative = [(-position, f"−{label}" if label else "") for position, label in reversed(positive)]
    return (*negative, (0.0, "0"), *positive)


def rounded(values: np.ndarray, digits: int = 6) -> tuple[float, ...]:
    """Keep so many digits."""
    return tuple(float(f"{value:.{digits}g}") for value in values.tolist())


def times(names: Sequence[str], count: int) -> list[str]:
    """Return each name so many times: whose point is whose, where a name has several."""
    return [name for name in names for _ in range(count)]


def spans(starts: Iterable[tuple[Any, Any, Any, Any]]) -> dict[str, list[Any]]:
    """Return x and y of separate lines, each from (x₀, y₀) to (x₁, y₁)."""
    ends = list(starts)
    return {
        "x": [value for x0, _, x1, _ in ends for value in (x0, x1, None)],
        "y": [value for _, y0, _, y1 in ends for value in (y0, y1, None)],
    }
