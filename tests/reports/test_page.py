"""The page: one file, no network, nothing that a name could break, the same bytes every time."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from lite_probe.errors import InputError, OutputError
from lite_probe.reports.page import csv_link, render_page, script_json, write_report
from lite_probe.results.provenance import Note
from lite_probe.results.store import save
from tests.reports.fixtures import make_spectrum

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"


class Page(HTMLParser):
    """Collects tags, and the text of scripts and of everything else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, text):
        if self._inside == "script":
            self.scripts[-1] += text
        elif not self._inside:
            self.text += text


@pytest.fixture(scope="module")
def spectra():
    return [make_spectrum(), make_spectrum(name="gpt-500", step=500, loss=2.41, sharpest=12.3, seed=4)]


@pytest.fixture(scope="module")
def rendered(spectra):
    return render_page(spectra)


@pytest.fixture(scope="module")
def page(rendered):
    return Page(rendered)


def test_is_the_same_to_the_byte(spectra, rendered):
    assert render_page(spectra) == rendered


def test_asks_for_nothing_from_outside(page):
    for tag, attributes in page.tags:
        assert "src" not in attributes, tag
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        href = attributes.get("href")
        assert href is None or href.startswith(("#", "data:text/csv")), href


def test_holds_plotly_once(page):
    assert sum("plotly.js v" in script[:1000] for script in page.scripts) == 1
    assert len(page.scripts) == 3


def test_a_hostile_name_is_text(spectra):
    hostile = make_spectrum(
        name=HOSTILE,
        architecture=HOSTILE,
        command=HOSTILE,
        details={HOSTILE: HOSTILE},
        notes=(Note(code="x", message=HOSTILE),),
    )
    page = Page(render_page([hostile, spectra[1]]))
    assert len(page.scripts) == 3
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert page.text.count(HOSTILE) >= 5
    figures = json.loads(page.scripts[1])
    assert figures["upper-end"]["data"][1]["name"] == HOSTILE


def test_figures_are_json_that_scripts_can_hold(page):
    assert set(json.loads(page.scripts[1])) == {"density", "density-linear", "upper-end", "lower-end", "blocks"}
    text = script_json({"a": "</script><!-- & \u2028"})
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == {"a": "</script><!-- & \u2028"}
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        script_json(float("nan"))


def test_csv_links_hold_the_whole_table(page):
    links = {a["download"]: a["href"] for tag, a in page.tags if tag == "a" and "download" in a}
    assert set(links) == {"key-numbers.csv", "eigenpairs.csv", "blocks.csv", "verification.csv", "provenance.csv"}
    head, _, body = links["eigenpairs.csv"].partition(",")
    assert head == "data:text/csv;charset=utf-8"
    assert len(unquote(body).splitlines()) == 1 + 2 * 15
    assert csv_link("a,b\n#%é") == "data:text/csv;charset=utf-8,a%2Cb%0A%23%25%C3%A9"


def test_is_accessible(page):
    headings = [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert headings.count("h1") == 1
    assert headings[0] == "h1"
    identifiers = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(identifiers)) == len(identifiers)
    for _, attributes in page.tags:
        if attributes.get("class") == "plot":
            assert attributes["role"] == "img"
            assert len(attributes["aria-label"]) > 40
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in identifiers
        if "aria-controls" in attributes:
            assert attributes["aria-controls"] in identifiers
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") == 5
    assert next(a for tag, a in page.tags if tag == "html")["lang"] == "en"


def test_says_the_verdict_first_and_the_command_last(page):
    text = " ".join(page.text.split())
    order = [
        "Verdict",
        "From gpt-500 to gpt-5000",
        "How to interpret the density",
        "To measure it again",
        "--per-block",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_sections_without_numbers_are_left_out():
    page = Page(render_page([make_spectrum(blocks=False, verified=None, notes=())]))
    identifiers = {a["id"] for _, a in page.tags if "id" in a}
    assert {"numbers", "density", "ends", "provenance"} <= identifiers
    assert not {"blocks", "verification", "notes"} & identifiers


def test_renders_from_files_alone(spectra, rendered, tmp_path):
    runs = [save(spectrum, tmp_path / str(place)).parent for place, spectrum in enumerate(spectra)]
    out = write_report([runs[0], runs[1] / "spectrum.json"], tmp_path / "pages" / "report.html")
    assert out.read_text() == rendered


def test_refuses_what_it_cannot_read_or_write(spectra, tmp_path):
    with pytest.raises(InputError, match=r"expected one of spectrum\.json in the run directory"):
        write_report([tmp_path], tmp_path / "report.html")
    run = save(spectra[0], tmp_path / "run").parent
    with pytest.raises(OutputError, match="expected a file's name, got the folder"):
        write_report([run], tmp_path)


def test_needs_no_torch():
    code = "import sys, lite_probe.reports.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
