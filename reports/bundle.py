"""plotly.js for pages: the bundle that lies in this package, and the three ways in which a page gets it.

The cartesian bundle draws lines, bars, heatmaps and contours: all that the figures use, at a third of the size of
the whole. Where it comes from is told in plotlyjs/README.md.
"""

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from markupsafe import Markup

from lite_probe.results.store import write_atomically

VERSION = "4.1.1"
BUNDLE = Path(__file__).parent / "plotlyjs" / "plotly-cartesian.min.js"
FILE_NAME = f"plotly-cartesian-{VERSION}.min.js"
CDN = f"https://cdn.jsdelivr.net/npm/plotly.js-cartesian-dist-min@{VERSION}/plotly-cartesian.min.js"

Place = Literal["inline", "directory", "cdn"]
PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How a page gets plotly.js."""

    tag: Markup  # the script
    source: str  # what the page's policy allows for it
    needs: str  # what the page needs, for its reader


@cache
def bundle() -> str:
    """Return plotly.js, to the byte."""
    return BUNDLE.read_bytes().decode()


def load_from(place: Place) -> Loading:
    """Return how a page gets plotly.js: inside it, from the file beside it, or from a content delivery network.

    A browser checks what comes from the network against a digest; of a file on disk it cannot, so that a page beside
    its plotly.js runs any script of its own origin.
    """
    if place == "inline":
        return Loading(
            tag=Markup("<script>{}</script>").format(Markup(bundle())),
            source=hash_source(bundle()),
            needs="this file needs no network",
        )
    if place == "directory":
        return Loading(
            tag=Markup('<script src="{}"></script>').format(FILE_NAME),
            source="'self'",
            needs=f"its figures need {FILE_NAME} beside it, and no network",
        )
    digest = base64.b64encode(hashlib.sha384(bundle().encode()).digest()).decode()
    return Loading(
        tag=Markup('<script src="{}" integrity="sha384-{}" crossorigin="anonymous"></script>').format(CDN, digest),
        source=CDN,
        needs="its figures need plotly.js from cdn.jsdelivr.net",
    )


def hash_source(script: str) -> str:
    """Return what allows one script in a Content-Security-Policy: its text between the tags, to the byte."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def put_beside(page: Path) -> Path:
    """Write plotly.js beside a page, unless it lies there.

    Raises:
        OutputError: If it cannot be written.
    """
    path, content = page.parent / FILE_NAME, BUNDLE.read_bytes()
    if not (path.is_file() and path.read_bytes() == content):
        write_atomically(path, lambda file: file.write(content))
    return path
