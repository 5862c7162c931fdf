"""`lite-probe report`: a page from saved results alone. Neither torch nor a checkpoint is needed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lite_probe.commands.console import Terminal, print_stdout
from lite_probe.commands.measuring import RunOptions
from lite_probe.commands.options import Among, console_options, example, options_from
from lite_probe.commands.tables import asked_format, print_tables
from lite_probe.commands.wording import plural

if TYPE_CHECKING:
    from lite_probe.reports.bundle import Place


@click.command(
    "report",
    epilog=example("report probe/early probe/late --out both.html", "report probe/run --format md --table key-numbers"),
)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path())
@click.option("--out", metavar="FILE", help="The page; by default report.html in the first RUN.")
@click.option(
    "--plotlyjs",
    type=Among(["inline", "directory", "cdn"]),
    default="inline",
    show_default=True,
    help="Where the page has plotly.js: inside it, in a file beside it, or on cdn.jsdelivr.net.",
)
@options_from(RunOptions, "as_json", "as_format", "only_table")
@console_options
@click.pass_obj
def command(terminal: Terminal, /, runs: tuple[str, ...], out: str | None, plotlyjs: "Place", **how: Any) -> None:
    """Write one HTML page from the results saved in one or more run directories.

    The page is self-contained and works offline, unless --plotlyjs says otherwise.
    """
    from lite_probe.reports.page import write_report
    from lite_probe.reports.runs import load_run

    form = asked_format(how)

    first = Path(runs[0])
    page = Path(out) if out is not None else (first if first.is_dir() else first.parent) / "report.html"
    write_report(runs, page, plotlyjs)
    terminal.line(f"wrote the report on {plural(len(runs), 'run')}")
    if form in (None, "json"):
        print_stdout(json.dumps({"report": str(page)}) if form else str(page))
    else:
        print_tables([load_run(run) for run in runs], form, how["only_table"])
