"""`--format` and `--table`: tables of results on stdout, to paste."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lite_probe.commands.console import print_stdout
from lite_probe.errors import UsageError

if TYPE_CHECKING:
    from lite_probe.reports.runs import Run
    from lite_probe.reports.table import Table

FORMATS = ("json", "csv", "md", "latex")


def asked_format(given: Mapping[str, Any]) -> str | None:
    """Return what stdout is to carry: one of `FORMATS`, or None for paths.

    Args:
        given: A command's options.

    Raises:
        UsageError: If they contradict one another.
    """
    form, table = given["as_format"], given["only_table"]
    if given["as_json"] and form not in (None, "json"):
        raise UsageError(f"expected one format, got --json and --format {form}", "leave one of them out")
    if given["as_json"]:
        form = "json"
    if table is not None and form in (None, "json"):
        raise UsageError(
            f"expected --format csv, md or latex with --table {table}, got {form or 'none'}", "say how to write it"
        )
    return None if form is None else str(form)


def print_tables(runs: "Sequence[Run]", form: str, only: str | None) -> None:
    """Write the tables of runs, or the one of a name.

    Args:
        runs: In order.
        form: "csv", "md" or "latex".
        only: A table's name; None for all.

    Raises:
        UsageError: If there is none of that name.
    """
    from lite_probe.reports.view import list_tables

    write_tables(list_tables(runs), form, only)


def write_tables(tables: "Sequence[Table]", form: str, only: str | None) -> None:
    """Write tables, or the one of a name; arguments and errors as of `print_tables`."""
    from lite_probe.reports.formats import to_text

    chosen = [table for table in tables if only in (None, table.name)]
    if only is not None and not chosen:
        raise UsageError(f"expected a table of {', '.join(table.name for table in tables)}, got {only!r}")
    print_stdout(to_text(chosen, form).removesuffix("\n"))
