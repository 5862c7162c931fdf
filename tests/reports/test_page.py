"""The page: one file, no network, nothing that a name could break, the same bytes every time."""

import base64
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from plotly.offline import get_plotlyjs_version

from lite_probe.errors import InputError, OutputError
from lite_probe.reports.bundle import BUNDLE, CDN, FILE_NAME, VERSION
from lite_probe.reports.page import breakable, csv_link, render_page, script_json, write_report
from lite_probe.reports.runs import Run
from lite_probe.results.provenance import Note
from lite_probe.results.store import save
from tests.reports.fixtures import make_replay, make_spectrum, make_subspace
from tests.reports.landscapes import make_landscape
from tests.reports.steps_results import BLOCKS, make_optimizer, make_steps

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
def runs(spectra):
    return [Run(spectrum=spectrum) for spectrum in spectra]


@pytest.fixture(scope="module")
def rendered(runs):
    return render_page(runs)


@pytest.fixture(scope="module")
def page(rendered):
    return Page(rendered)


@pytest.fixture(scope="module")
def whole_runs(spectra):
    """Everything that a page can show, and the same with as little as there can be of each."""
    rich = Run(
        spectrum=spectra[0],
        subspace=make_subspace(others=("gpt-500",), answers={"vo": "fails"}),
        steps=make_steps(),
        replay=make_replay(steps=5, ablations=True, diverged=(("soap", 1, 3),)),
    )
    poor = Run(
        subspace=make_subspace(name="gpt-500", step=500, overlaps=False, preconditioned=False, optimizers=()),
        steps=make_steps(name="gpt-500", step=500, optimizers={"muon": make_optimizer("muon", critical_only=True)}),
        replay=make_replay(name="gpt-500", step=500, steps=5, seeds=1, theory=False, swept=False),
    )
    return [rich, poor]


@pytest.fixture(scope="module")
def whole_rendered(whole_runs):
    return render_page(whole_runs)


@pytest.fixture(scope="module")
def whole_page(whole_rendered):
    return Page(whole_rendered)


@pytest.mark.slow
def test_is_the_same_to_the_byte(runs, rendered, whole_runs, whole_rendered):
    assert render_page(runs) == rendered
    assert render_page(whole_runs) == whole_rendered


@pytest.mark.parametrize("which", ["page", "whole_page"])
def test_asks_for_nothing_from_outside(which, request):
    page = request.getfixturevalue(which)
    for tag, attributes in page.tags:
        assert "src" not in attributes, tag
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        href = attributes.get("href")
        assert href is None or href.startswith(("#", "data:text/csv")), href


def policy_of(page: Page) -> dict[str, str]:
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    return dict(part.split(" ", 1) for part in policy.split("; "))


@pytest.mark.parametrize("which", ["page", "whole_page"])
def test_its_policy_allows_its_own_scripts_and_nothing_from_outside(which, request):
    page = request.getfixturevalue(which)
    found = policy_of(page)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts]
    # Between the two programs are the figures, which are no program.
    assert found.pop("script-src") == f"'sha256-{digests[0]}' 'sha256-{digests[2]}'"
    assert found.pop("style-src") == "'unsafe-inline'"
    assert found.pop("img-src") == "data: blob:"
    assert found == dict.fromkeys(("default-src", "connect-src", "form-action", "base-uri"), "'none'")
    # A policy holds for what comes after it.
    assert [tag for tag, _ in page.tags[:4]] == ["html", "head", "meta", "meta"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


@pytest.mark.parametrize("which", ["page", "whole_page"])
def test_holds_plotly_once(which, request):
    page = request.getfixturevalue(which)
    assert [script.count(f"plotly.js (cartesian - minified) v{VERSION}") for script in page.scripts] == [1, 0, 0]
    assert len(page.scripts) == 3


def test_a_hostile_name_is_text(spectra):
    hostile = make_spectrum(
        name=HOSTILE,
        architecture=HOSTILE,
        command=HOSTILE,
        details={HOSTILE: HOSTILE},
        notes=(Note(code="x", message=HOSTILE),),
    )
    page = Page(render_page([Run(spectrum=hostile), Run(spectrum=spectra[1])]))
    assert len(page.scripts) == 3
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert page.text.count(HOSTILE) >= 5
    figures = json.loads(page.scripts[1])
    # plotly.js takes labels for markup of its own, and turns entities back.
    assert figures["upper-end"]["data"][1]["name"] == escape(HOSTILE, quote=False)


def test_hostile_names_of_every_part_are_text():
    notes = (Note(code="x", message=HOSTILE),)
    subspace = make_subspace(name=HOSTILE, others=(HOSTILE,), notes=notes, command=HOSTILE)
    calibration = subspace.calibrations["soap-lite"]
    renamed = replace(calibration, optimizer=HOSTILE, blocks={HOSTILE: calibration.blocks["qk"]})
    replay = make_replay(name=HOSTILE, steps=3, notes=notes, command=HOSTILE, ablations=True)
    bands = replace(replay.bands, blocks=tuple(HOSTILE if name == "qk" else name for name in replay.bands.blocks))
    recipes = {HOSTILE if name == "muon" else name: recipe for name, recipe in replay.recipes.items()}
    runs = tuple(replace(run, optimizer=HOSTILE) if run.optimizer == "muon" else run for run in replay.runs)
    landscape = make_landscape(tuple(recipes), runs, replay.eigenvalues, replay.start_loss)
    bare = {HOSTILE: BLOCKS["emb"], "qk": (replace(BLOCKS["qk"][0], name=HOSTILE), *BLOCKS["qk"][1:])}
    steps = make_steps(
        name=HOSTILE, notes=notes, command=HOSTILE, optimizers={HOSTILE: make_optimizer("muon", blocks=bare)}
    )
    run = Run(
        steps=steps,
        subspace=replace(subspace, calibrations={HOSTILE: renamed}),
        replay=replace(
            replay,
            bands=bands,
            recipes=recipes,
            sweeps={HOSTILE: replay.sweeps["muon"]},
            runs=runs,
            landscape=landscape,
        ),
    )
    page = Page(render_page([run, Run(subspace=make_subspace(name="other"))]))
    assert len(page.scripts) == 3
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert page.text.count(HOSTILE) > 50


def test_figures_are_json_that_scripts_can_hold(page):
    own = {one for one in json.loads(page.scripts[1]) if not one.startswith("comparison-")}
    assert own == {"density", "density-linear", "upper-end", "lower-end", "blocks"}
    text = script_json({"a": "</script><!-- & \u2028"})
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == {"a": "</script><!-- & \u2028"}
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        script_json(float("nan"))


def test_csv_links_hold_the_whole_table(page):
    links = {a["download"]: a["href"] for tag, a in page.tags if tag == "a" and "download" in a}
    own = {"key-numbers.csv", "eigenpairs.csv", "blocks.csv", "verification.csv"}
    assert set(links) == {*own, "provenance.csv", "provenance-differences.csv", "comparison-landscape.csv"}
    head, _, body = links["eigenpairs.csv"].partition(",")
    assert head == "data:text/csv;charset=utf-8"
    assert len(unquote(body).splitlines()) == 1 + 2 * 15
    assert csv_link("a,b\n#%é") == "data:text/csv;charset=utf-8,a,b%0A%23%25%C3%A9"


def test_numbers_may_be_broken_before_their_errors():
    assert breakable("(8.8\u00a0±\u00a00.1)\u00a0×\u00a010⁻⁴") == ("(8.8<wbr>\u00a0±\u00a00.1)<wbr>\u00a0×\u00a010⁻⁴")
    assert breakable("<b>\u00a0±") == "&lt;b&gt;<wbr>\u00a0±"


@pytest.mark.parametrize("which", ["page", "whole_page"])
def test_is_accessible(which, request):
    page = request.getfixturevalue(which)
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
    assert tags.count("caption") == tags.count("table") == (7 if which == "page" else 31)
    assert next(a for tag, a in page.tags if tag == "html")["lang"] == "en"


def test_answers_first_and_gives_the_command_last(page):
    text = " ".join(page.text.split())
    order = [
        "gpt-500 and gpt-5000",
        "From gpt-500 to gpt-5000",
        "How to read this",
        "How to interpret the density",
        "To measure it again",
        "--per-block",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_every_part_has_a_section_with_its_findings(whole_page):
    identifiers = {a["id"] for _, a in whole_page.tags if "id" in a}
    anchors = {"overview", "spectrum", "blocks", "subspace", "steps", "replay", "replay-1", "replay-2", "provenance"}
    assert anchors <= identifiers
    text = " ".join(whole_page.text.split())
    parts = [
        *(
            "gpt-5000 After 5 steps",
            "Sharp and flat gpt-500",
            "Tolerated steps gpt-500",
            "How to interpret tolerated steps",
        ),
        *("Replay gpt-500", "How to interpret the replay"),
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "soap diverged at step 3 of seed 1" in text
    assert "lite-probe subspace runs/gpt/ckpt.pt" in text
    assert "lite-probe replay runs/gpt/ckpt.pt --data val.bin --optimizers muon,muon-lite,soap,soap-lite" in text
    plots = [a["data-figure"] for _, a in whole_page.tags if a.get("class") == "plot"]
    buttons = [a["data-figure"] for tag, a in whole_page.tags if tag == "button" and "data-figure" in a]
    assert set(plots) | set(buttons) == set(json.loads(whole_page.scripts[1]))


def test_csv_names_differ(whole_page):
    names = [a["download"] for tag, a in whole_page.tags if tag == "a" and "download" in a]
    assert len(set(names)) == len(names) == 30
    assert {"overlaps.csv", "contrast.csv", "calibration.csv", "metrics.csv", "gradient-energy.csv"} <= set(names)
    assert {f"steps-{name}.csv" for name in ("critical", "groups", "blocks", "bands", "lines")} <= set(names)
    assert {"replay-1-bands.csv", "replay-2.csv", "replay-2-ablations.csv", "replay-2-sweeps.csv"} <= set(names)
    assert not {"replay-1-ablations.csv", "replay-1-sweeps.csv"} & set(names)


def test_sections_without_numbers_are_left_out():
    page = Page(render_page([Run(spectrum=make_spectrum(blocks=False, verified=None, notes=()))]))
    identifiers = {a["id"] for _, a in page.tags if "id" in a}
    assert {"spectrum", "plot-density", "plot-upper-end", "provenance"} <= identifiers
    assert not {"blocks", "notes", "subspace", "steps", "replay", "replay-1"} & identifiers


def test_renders_from_files_alone(spectra, rendered, tmp_path):
    folders = [save(spectrum, tmp_path / str(place)).parent for place, spectrum in enumerate(spectra)]
    out = write_report([folders[0], folders[1] / "spectrum.json"], tmp_path / "pages" / "report.html")
    assert out.read_text() == rendered


@pytest.mark.slow
def test_renders_every_result_of_a_run(whole_runs, whole_rendered, tmp_path):
    for place, run in enumerate(whole_runs):
        for result in run.results.values():
            head = save(result, tmp_path / str(place))
    out = write_report([tmp_path / "0" / "spectrum.json", head], tmp_path / "report.html")
    assert out.read_text() == whole_rendered


def test_refuses_what_it_cannot_read_or_write(spectra, tmp_path):
    with pytest.raises(InputError, match=r"expected one of spectrum\.json in the run directory"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(InputError, match="found nothing at"):
        write_report([tmp_path / "missing"], tmp_path / "report.html")
    run = save(spectra[0], tmp_path / "run").parent
    (run / "replay.json").write_text("{}")
    with pytest.raises(InputError, match=r"got other JSON in replay\.json"):
        write_report([run], tmp_path / "report.html")
    with pytest.raises(InputError, match=r"got other JSON in replay\.json"):
        write_report([run / "replay.json"], tmp_path / "report.html")
    (run / "replay.json").unlink()
    with pytest.raises(OutputError, match="expected a file's name, got the folder"):
        write_report([run], tmp_path)


def test_plotly_lies_beside_the_page_or_comes_from_the_network_where_that_was_asked(runs, spectra, tmp_path):
    text = render_page(runs, "cdn")
    page = Page(text)
    (script,) = [attributes for tag, attributes in page.tags if tag == "script" and "src" in attributes]
    digest = base64.b64encode(hashlib.sha384(BUNDLE.read_bytes()).digest()).decode()
    assert script == {"src": CDN, "integrity": f"sha384-{digest}", "crossorigin": "anonymous"}
    assert policy_of(page)["script-src"].split()[0] == CDN
    assert "its figures need plotly.js from cdn.jsdelivr.net" in page.text
    assert len(text) < 600_000

    run = save(spectra[0], tmp_path / "run").parent
    out = write_report([run], tmp_path / "pages" / "report.html", "directory")
    page = Page(out.read_text())
    assert [attributes["src"] for tag, attributes in page.tags if "src" in attributes] == [FILE_NAME]
    assert policy_of(page)["script-src"].split()[0] == "'self'"
    beside = out.parent / FILE_NAME
    assert beside.read_bytes() == BUNDLE.read_bytes()
    written = beside.stat().st_mtime_ns
    write_report([run], out, "directory")
    assert beside.stat().st_mtime_ns == written
    beside.write_text("damaged")
    write_report([run], out, "directory")
    assert beside.read_bytes() == BUNDLE.read_bytes()


def test_the_bundle_is_the_published_one():
    """The digest is that of plotly-cartesian.min.js in plotly.js-cartesian-dist-min 4.1.1 on npm."""
    digest = hashlib.sha256(BUNDLE.read_bytes()).hexdigest()
    assert digest == "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"
    origin = (BUNDLE.parent / "README.md").read_text()
    assert digest in origin
    assert f"version {VERSION}" in origin
    # Figures are made by plotly for Python, which knows the attributes of the plotly.js that it brings.
    assert get_plotlyjs_version() == VERSION


@pytest.mark.slow
def test_a_page_of_everything_fits_in_a_mail(whole_runs):
    assert len(render_page(whole_runs[:1]).encode()) < 2_500_000


@pytest.mark.slow
def test_needs_no_torch():
    code = "import sys, lite_probe.reports.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_page_of_one_block_has_no_filter_of_blocks():
    steps = make_steps(optimizers={name: make_optimizer(name, critical_only=True) for name in ("muon", "soap")})
    page = render_page([Run(steps=steps)])
    assert 'data-key="optimizer"' in page
    assert 'data-key="block"' not in page
    assert "Click a block" not in page
