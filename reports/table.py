"""Tables as plain data: what is shown, and the numbers in full for the CSV."""

import csv
import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from lite_probe.reports.numbers import MISSING, format_number, format_share, format_uncertain, terse
from lite_probe.reports.sections.section import Grid
from lite_probe.results.estimate import Estimate

CURVATURE = "loss/param²"
Raw = str | float | int | bool | None


@dataclass(frozen=True, slots=True)
class Column:
    """A column's head."""

    title: str
    unit: str = ""
    is_text: bool = False  # text is set flush left, numbers flush right
    hint: str = ""
    has_error: bool = False  # the CSV gives the error a column of its own
    short: str = ""  # its title in a terminal; empty where it has no room there


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One entry: what is shown, and the number behind it."""

    text: str
    raw: Raw = None
    error: float | None = None
    unit: str = ""
    tone: str = ""  # "", "good" or "caution"
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A captioned table and its CSV."""

    name: str  # stem of the CSV's file name
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    csv: str


def make_table(name: str, caption: str, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> Table:
    """Make a table whose CSV has its columns, with the raw numbers in place of the shown ones."""
    header: list[str] = []
    body: list[list[Raw]] = [[] for _ in rows]
    for place, column in enumerate(columns):
        suffix = f" ({column.unit})" if column.unit else ""
        header += [column.title + suffix] + ([f"{column.title} error{suffix}"] if column.has_error else [])
        for line, row in zip(body, rows, strict=True):
            line += [row[place].raw] + ([row[place].error] if column.has_error else [])
    return Table(
        name=name,
        caption=caption,
        columns=tuple(columns),
        rows=tuple(tuple(row) for row in rows),
        csv=write_csv(header, body),
    )


def text_cell(text: str, tone: str = "") -> Cell:
    """Return a cell of text."""
    return Cell(text=text, raw=text, tone=tone)


def number_cell(value: float | None, digits: int = 4) -> Cell:
    """Return a cell of a number; a whole one is written whole."""
    return Cell(text=f"{value:,}" if isinstance(value, int) else format_number(value, digits), raw=value)


def share_cell(value: float | None) -> Cell:
    """Return a cell of a share of one."""
    return Cell(text=format_share(value), raw=value)


def half_width(estimate: Estimate) -> float | None:
    """Return half of a 95% interval; a single sample has none."""
    return estimate.high - estimate.value if estimate.num_samples != 1 else None


def estimate_cell(estimate: Estimate | None, *, is_share: bool = False) -> Cell:
    """Return a cell of an estimate, which may be of a share of one, with half of its 95% interval."""
    if estimate is None:
        return Cell(text=MISSING)
    half, written = half_width(estimate), format_share if is_share else format_uncertain
    return Cell(text=written(estimate.value, half), raw=estimate.value, error=half)


def band_label(low: float, high: float) -> str:
    """Name a band by its edges, which are shares."""
    return f"{100 * low:.3g}–{100 * high:.3g}%"


def tabulate(
    name: str,
    caption: str,
    columns: Sequence[tuple[Column, Callable[[Any], Cell]]],
    rows: Sequence[tuple[str, Any]],
    *,
    is_alone: bool,
) -> Table | None:
    """Make a table of things by checkpoint: each column says how it is read off a thing.

    Args:
        name: Stem of the CSV's file name.
        caption: Of the table.
        columns: Beside that of the checkpoint, which comes first.
        rows: (checkpoint's label, thing).
        is_alone: Whether there is one checkpoint: its column is hidden then, and left to the CSV.

    Returns:
        None where there are no rows.
    """
    if not rows:
        return None
    heads = [Column(title="checkpoint", is_text=True), *(column for column, _ in columns)]
    cells = [[text_cell(label), *(read(thing) for _, read in columns)] for label, thing in rows]
    table = make_table(name, caption, heads, cells)
    hidden = 1 if is_alone else 0
    return Table(
        name=name,
        caption=caption,
        columns=table.columns[hidden:],
        rows=tuple(row[hidden:] for row in table.rows),
        csv=table.csv,
    )


def to_grid(
    table: Table,
    *,
    take: Collection[str] = (),
    brief: Collection[str] = (),
    bare: Collection[str] = (),
    where: str = "",
    first: str = "",
) -> Grid:
    """Return the columns of a table that have a short title, for a terminal.

    Args:
        table: Of a page.
        take: Titles of the columns to take; all, unless told.
        brief: Titles of columns whose errors have one digit, for want of room.
        bare: Titles of columns that leave errors out, for want of room.
        where: Text of the first column of the rows to take; all, unless told.
        first: Title of the first column taken, in place of its short one.
    """
    places = [at for at, column in enumerate(table.columns) if column.short and (not take or column.title in take)]
    heads = [table.columns[at] for at in places]
    digits = {**dict.fromkeys(brief, 1), **dict.fromkeys(bare, 0)}
    texts = [
        [terse(_written(row[at], digits.get(table.columns[at].title))) for at in places]
        for row in table.rows
        if where in ("", row[0].text)
    ]
    return Grid([first or heads[0].short, *(head.short for head in heads[1:])], texts)


def _written(cell: Cell, digits: int | None) -> str:
    """Return the text of a cell, or its number with so many digits of the error."""
    if digits is None or not isinstance(cell.raw, float):
        return cell.text
    return format_uncertain(cell.raw, cell.error if digits else None, digits)


def write_csv(header: Sequence[str], rows: Sequence[Sequence[Raw]]) -> str:
    """Write rows as CSV; a missing number is an empty field.

    Text that a spreadsheet would run as a formula is quoted with an apostrophe: names come from files.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([_field(value) for value in row] for row in (header, *rows))
    return file.getvalue()


def _field(value: Raw) -> Raw:
    """Return what goes into the CSV for one value."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return f"'{value}"
    return value
