"""`lite-probe report`: a page from saved results alone. Neither torch nor a checkpoint is needed."""

import json
from pathlib import Path

import click

from lite_probe.commands.console import Terminal, emit
from lite_probe.commands.options import console_options, example, json_option
from lite_probe.commands.run_directory import made
from lite_probe.errors import InputError, OutputError


@click.command("report", epilog=example("report probe/early probe/late --out both.html"))
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path())
@click.option("--out", metavar="FILE", help="The page; by default report.html in the first RUN.")
@json_option
@console_options
@click.pass_obj
def command(terminal: Terminal, runs: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Write one HTML page from the results saved in one or more run directories.

    The page is self-contained and works offline.
    """
    from lite_probe.reports.page import write_report

    folders = [Path(run) for run in runs]
    for folder in folders:
        if not folder.is_dir():
            got = "a file" if folder.exists() else "nothing"
            raise InputError(f"expected a run directory at {folder}, got {got}", "see lite-probe spectrum")
    page = Path(out) if out is not None else folders[0] / "report.html"
    if page.is_dir():
        raise OutputError(f"expected a file name for the page, got the folder {page}", "name a file with --out")
    with made(page.parent):
        write_report(folders, page)
    terminal.line(f"wrote the report on {len(folders)} run{'s' if len(folders) > 1 else ''}")
    emit(json.dumps({"report": str(page)}) if as_json else str(page))
