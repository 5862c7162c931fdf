"""One HTML page: text, tables and figures in a single file, which needs no network unless it was asked to."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote

import jinja2
from markupsafe import Markup, escape

from lite_probe.reports.bundle import Place, hash_source, load_from, put_beside
from lite_probe.reports.drawing import choices_of
from lite_probe.reports.runs import Run, load_run
from lite_probe.reports.sections.section import TEMPLATES, shown_as
from lite_probe.reports.view import make_view
from lite_probe.results.store import write_atomically

SCRIPTS = ("numbers.js", "picture.js", "page.js")


def render_page(runs: Sequence[Run], plotlyjs: Place = "inline", *, is_comparison: bool = False) -> str:
    """Render the results of one run, or of several side by side, as a page.

    The page depends on the results alone: rendered twice it is the same to the byte.

    Args:
        runs: At least one.
        plotlyjs: Where the page has plotly.js: inside it, beside it, or on the network.
        is_comparison: Leave what is of one checkpoint alone to the page of that.

    Returns:
        HTML; with plotly.js inside about 2 MB, most of it plotly.js.

    Raises:
        ValueError: If no run came.
    """
    view, environment = make_view(runs, is_comparison=is_comparison), _environment()
    loading = load_from(plotlyjs)
    sections = [
        (
            kind,
            shown_as(kind).heading,
            part,
            Markup(environment.from_string(shown_as(kind).template.read_text()).render(part=part.view)),
        )
        for kind, part in view.parts.items()
    ]
    script = "".join((TEMPLATES / name).read_text() for name in SCRIPTS)
    return environment.get_template("page.html.j2").render(
        view=view,
        sections=sections,
        choices=choices_of(view.figures),
        loading=loading,
        page_js=Markup(script),
        policy=content_policy([loading.source, hash_source(script)]),
    )


def write_report(
    runs: Sequence[str | Path], out: str | Path, plotlyjs: Place = "inline", *, is_comparison: bool = False
) -> Path:
    """Render everything saved in run directories into one page.

    Args:
        runs: Run directories, or results in them, which name their directory.
        out: The HTML file to write.
        plotlyjs: Where the page has plotly.js; "directory" writes it beside the page, unless it lies there.
        is_comparison: Leave what is of one checkpoint alone to the page of that.

    Returns:
        Its path.

    Raises:
        InputError: If a run has no result, or one that was damaged.
        OutputError: If the page cannot be written.
    """
    text = render_page([load_run(run) for run in runs], plotlyjs, is_comparison=is_comparison)
    write_atomically(out, lambda file: file.write(text.encode(errors="backslashreplace")))
    if plotlyjs == "directory":
        put_beside(Path(out))
    return Path(out)


@cache
def _environment() -> jinja2.Environment:
    """Return templates that escape whatever they are given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_json"] = script_json
    environment.filters["csv_link"] = csv_link
    environment.filters["breakable"] = breakable
    return environment


def content_policy(sources: Sequence[str]) -> str:
    """Return the Content-Security-Policy of a page: it runs its own scripts and reaches nothing else.

    A script may run whose digest or place is named, so that markup that found its way into the page could not. Styles
    may be inline, since plotly.js sets them; pictures are those it makes for a download.

    Args:
        sources: What the policy allows for each script.
    """
    directives = {
        "default-src": "'none'",
        "script-src": " ".join(sources),
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "connect-src": "'none'",
        "form-action": "'none'",
        "base-uri": "'none'",
    }
    return "; ".join(f"{directive} {allowed}" for directive, allowed in directives.items())


def script_json(value: object) -> Markup:
    r"""Write a value as JSON that is safe inside `<script>`: `<`, `>` and `&` as \u escapes.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # U+2028 and U+2029 end a line in a script but not in JSON.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def breakable(text: str) -> Markup:
    """Let a number that is too wide for a sheet of paper be broken before its error and its power of ten."""
    return Markup(str(escape(text)).replace("\u00a0±", "<wbr>\u00a0±").replace("\u00a0×", "<wbr>\u00a0×"))


def csv_link(text: str) -> str:
    """Return a link that holds a CSV file; it works without a network and without scripts."""
    return "data:text/csv;charset=utf-8," + quote(text, errors="backslashreplace")
