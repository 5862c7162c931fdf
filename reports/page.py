"""One HTML page that needs no network: text, tables, figures and plotly.js in a single file."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote

import jinja2
import plotly.offline
from markupsafe import Markup

from lite_probe.reports.figures import draw_figures
from lite_probe.reports.view import make_view
from lite_probe.results.spectrum import Spectrum
from lite_probe.results.store import load, write_atomically


def render_page(spectra: Sequence[Spectrum]) -> str:
    """Render one spectrum, or several side by side, as a self-contained page.

    The page depends on the spectra alone: rendered twice it is the same to the byte.

    Args:
        spectra: At least one.

    Returns:
        HTML with everything inline; about 5 MB, nearly all of it plotly.js.

    Raises:
        ValueError: If no spectrum came.
    """
    view = make_view(spectra)
    return _environment().get_template("page.html.j2").render(view=view, figures=draw_figures(view))


def write_report(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Render the spectra saved in run directories into one page.

    Args:
        runs: Run directories, or `spectrum.json` files in them.
        out: The HTML file to write.

    Returns:
        Its path.

    Raises:
        InputError: If a run has no spectrum, or one that was damaged.
        OutputError: If the page cannot be written.
    """
    spectra = [load(run, "spectrum") for run in runs]
    text = render_page(spectra)
    write_atomically(out, lambda file: file.write(text.encode()))
    return Path(out)


@cache
def _environment() -> jinja2.Environment:
    """Return templates that escape whatever they are given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_json"] = script_json
    environment.filters["csv_link"] = csv_link
    environment.globals["plotly_js"] = Markup(plotly.offline.get_plotlyjs())
    return environment


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
    return "data:text/csv;charset=utf-8," + quote(text)
