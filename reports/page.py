"""One HTML page that needs no network: text, tables, figures and plotly.js in a single file."""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote

import jinja2
import plotly.offline
from markupsafe import Markup

from lite_probe.reports.runs import Run, load_run
from lite_probe.reports.sections.section import TEMPLATES, shown_as
from lite_probe.reports.view import make_view
from lite_probe.results.store import write_atomically


def render_page(runs: Sequence[Run], *, is_comparison: bool = False) -> str:
    """Render the results of one run, or of several side by side, as a self-contained page.

    The page depends on the results alone: rendered twice it is the same to the byte.

    Args:
        runs: At least one.
        is_comparison: Leave what is of one checkpoint alone to the page of that.

    Returns:
        HTML with everything inline; about 5 MB, nearly all of it plotly.js.

    Raises:
        ValueError: If no run came.
    """
    view, environment = make_view(runs, is_comparison=is_comparison), _environment()
    sections = [
        (
            kind,
            shown_as(kind).heading,
            part,
            Markup(environment.from_string(shown_as(kind).template.read_text()).render(part=part.view)),
        )
        for kind, part in view.parts.items()
    ]
    return environment.get_template("page.html.j2").render(view=view, sections=sections)


def write_report(runs: Sequence[str | Path], out: str | Path, *, is_comparison: bool = False) -> Path:
    """Render everything saved in run directories into one page.

    Args:
        runs: Run directories, or results in them, which name their directory.
        out: The HTML file to write.
        is_comparison: Leave what is of one checkpoint alone to the page of that.

    Returns:
        Its path.

    Raises:
        InputError: If a run has no result, or one that was damaged.
        OutputError: If the page cannot be written.
    """
    text = render_page([load_run(run) for run in runs], is_comparison=is_comparison)
    write_atomically(out, lambda file: file.write(text.encode(errors="backslashreplace")))
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
    scripts = {"plotly_js": plotly.offline.get_plotlyjs(), "page_js": (TEMPLATES / "page.js").read_text()}
    environment.globals |= {name: Markup(text) for name, text in scripts.items()}
    environment.globals["policy"] = content_policy(list(scripts.values()))
    return environment


def content_policy(scripts: Sequence[str]) -> str:
    """Return the Content-Security-Policy of a page: it runs its own scripts and reaches nothing else.

    A script may run whose SHA-256 is named, so that markup that found its way into the page could not. Styles may be
    inline, since plotly.js sets them; pictures are those it makes for a download.

    Args:
        scripts: Texts between `<script>` and `</script>`, to the byte.
    """
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{digest}'" for digest in digests),
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "connect-src": "'none'",
        "form-action": "'none'",
        "base-uri": "'none'",
    }
    return "; ".join(f"{directive} {allowed}" for directive, allowed in sources.items())


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


def csv_link(text: str) -> str:
    """Return a link that holds a CSV file; it works without a network and without scripts."""
    return "data:text/csv;charset=utf-8," + quote(text, errors="backslashreplace")
