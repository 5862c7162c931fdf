"""Tables as plain data: what is shown, and the numbers in full for the CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

Raw = str | float | int | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column's head."""

    title: str
    unit: str = ""
    is_text: bool = False  # text is set flush left, numbers flush right
    hint: str = ""
    has_error: bool = False  # the CSV gives the error a column of its own


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


def without_lone_label(table: Table, labels: Sequence[str]) -> Table:
    """Hide the checkpoint's column where there is one checkpoint; the CSV keeps it."""
    if len(labels) > 1:
        return table
    return Table(
        name=table.name,
        caption=table.caption,
        columns=table.columns[1:],
        rows=tuple(row[1:] for row in table.rows),
        csv=table.csv,
    )


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
