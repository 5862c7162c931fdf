"""The page is sealed: nothing gets in, nothing gets out, and no name from a file is more than text."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from lite_probe.reports.page import render_page
from lite_probe.reports.runs import Run
from lite_probe.results.provenance import Note
from tests.browser.visit import NEEDS_CHROMIUM, Visit
from tests.reports.fixtures import make_replay, make_spectrum, make_subspace
from tests.reports.landscapes import make_landscape

pytestmark = [*NEEDS_CHROMIUM, pytest.mark.slow]

# What plotly.js takes for markup in a label, and what HTML does.
LINK = '<a href="https://evil.invalid" target="_blank">click</a>'
SCRIPT = "<a href='javascript:document.title=1'>x</a>"
LOUD = '<b>bold</b><br><span style="font-size:99px">&lt;i&gt;'
HTML = "</script><img src=x onerror=console.error(1)>"


def rename(names: dict[str, Any], new: dict[str, str]) -> dict[str, Any]:
    return {new.get(name, name): value for name, value in names.items()}


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory) -> Path:
    """Checkpoints, blocks, optimizers, notes and provenance that are all markup."""
    blocks = {"emb": LINK, "qk": SCRIPT, "ffn": LOUD, "vo": HTML}
    optimizers = {"muon": LINK, "muon-lite": SCRIPT, "soap": LOUD, "soap-lite": HTML, "adamw-lite": LOUD}
    notes = (Note(code=LINK, message=LINK),)
    strange: dict[str, Any] = {"notes": notes, "command": LINK, "architecture": LINK, "data_name": LINK}
    spectrum = make_spectrum(name=LINK, details={LINK: LINK}, **strange)
    subspace = make_subspace(name=LINK, others=(SCRIPT,), **strange)
    calibrations = {
        optimizers[name]: replace(one, optimizer=optimizers[name], blocks=rename(dict(one.blocks), blocks))
        for name, one in subspace.calibrations.items()
    }
    replay = make_replay(name=LINK, ablations=True, diverged=(("soap", 1, 7),), **strange)
    bands = replace(replay.bands, optimizer=LINK, blocks=tuple(blocks.get(name, name) for name in replay.bands.blocks))
    recipes = {name: replace(one, state=LINK, lr_source=LINK) for name, one in replay.recipes.items()}
    runs = tuple(replace(run, optimizer=optimizers[run.optimizer]) for run in replay.runs)
    names = [optimizers[name] for name in replay.optimizers]
    first = Run(
        spectrum=replace(spectrum, blocks=rename(dict(spectrum.blocks), blocks), operator=LINK),
        subspace=replace(subspace, calibrations=calibrations),
        replay=replace(
            replay,
            bands=bands,
            rule=LINK,
            recipes=rename(recipes, optimizers),
            sweeps=rename(dict(replay.sweeps), optimizers),
            theory=rename(dict(replay.theory), optimizers),
            runs=runs,
            landscape=make_landscape(names, runs, replay.eigenvalues, replay.start_loss),
        ),
    )
    path = tmp_path_factory.mktemp("hostile") / "report.html"
    path.write_text(render_page([first, Run(spectrum=make_spectrum(name=LOUD, step=500))]))
    return path


def draw_every_figure(visit: Visit):
    """Show each figure of the page in turn, behind its switch too; yields its plot."""
    page = visit.page
    visit.open_all()
    for plot in page.locator(".plot").all():
        name = plot.get_attribute("id")
        yield plot
        for button in page.locator(f"button[aria-controls='{name}'][aria-pressed='false']").all():
            button.click()
            page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            yield plot


def test_figures_offer_nothing_that_leads_out(browser, whole_report):
    with Visit(browser, whole_report) as visit:
        seen = 0
        for plot in draw_every_figure(visit):
            assert plot.locator(".modebar-btn, a, button").count() == 0
            seen += 1
        figures = "Object.keys(JSON.parse(document.getElementById('figures').textContent)).length"
        assert seen == visit.page.evaluate(figures)
        assert visit.page.evaluate("document.getElementById('plot-density')._context.plotlyServerURL") == ""
        tools = visit.page.locator(".tools button").evaluate_all("all => all.map(one => one.dataset.do)")
        assert set(tools) == {"scale", "zoom", "csv", "svg", "png"}
        assert visit.page.locator("figure a").count() == 0
        assert visit.complaints == []


def test_tables_download(browser, whole_report):
    with Visit(browser, whole_report) as visit:
        page = visit.page
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        links = page.locator("a[download]").all()
        assert len(links) > 10
        for link in links:
            with page.expect_download() as download:
                link.click()
            assert download.value.suggested_filename == link.get_attribute("download")
            text = unquote(link.get_attribute("href").partition(",")[2])
            assert Path(download.value.path()).read_text() == text
        assert visit.complaints == []
        assert visit.requests[0] == whole_report.as_uri()
        assert all(url.startswith(("data:", "blob:")) for url in visit.requests[1:])


APPEND = "document.body.append(Object.assign(document.createElement('{}'), {{{}}}))"
INTRUSIONS = {
    "connect-src": "fetch('https://evil.invalid/').catch(() => null)",
    "img-src": "new Image().src = 'https://evil.invalid/x.png'",
    "script-src-elem": APPEND.format("script", "textContent: 'window.ran = 1'"),
    "script-src-attr": "document.body.setAttribute('onclick', 'window.ran = 1'); document.body.click()",
    "style-src-elem": APPEND.format("link", "rel: 'stylesheet', href: 'https://evil.invalid/x.css'"),
    "font-src": "new FontFace('x', 'url(https://evil.invalid/x.woff)').load().catch(() => null)",
    "frame-src": APPEND.format("iframe", "src: 'https://evil.invalid/'"),
    "object-src": APPEND.format("object", "data: 'https://evil.invalid/'"),
    "base-uri": APPEND.format("base", "href: 'https://evil.invalid/'"),
    "form-action": APPEND.format("form", "id: 'out', action: 'https://evil.invalid/'") + "; out.submit()",
}


def test_nothing_is_let_in_or_out(browser, whole_report):
    with Visit(browser, whole_report) as visit:
        page = visit.page
        page.evaluate(
            "window.refused = [];"
            "document.addEventListener('securitypolicyviolation', event => refused.push(event.effectiveDirective))"
        )
        for directive, intrusion in INTRUSIONS.items():
            page.evaluate(f"() => {{ {intrusion} }}")
            page.wait_for_function("directive => refused.includes(directive)", arg=directive)
        assert page.evaluate("window.ran") is None


def test_a_script_that_was_changed_does_not_run(browser, whole_report, tmp_path):
    changed = tmp_path / "changed.html"
    changed.write_text(whole_report.read_text().replace('"use strict";', '"use strict"; window.ran = 1;'))
    context = browser.new_context()
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(changed.as_uri())
    assert any("violates the following Content Security Policy" in complaint for complaint in complaints)
    assert page.evaluate("window.ran") is None
    context.close()


def test_names_in_figures_are_text(browser, hostile_report):
    with Visit(browser, hostile_report) as visit:
        page = visit.page
        seen = set()
        for plot in draw_every_figure(visit):
            assert plot.locator("svg a").count() == 0
            assert plot.locator("svg tspan[style*='bold'], svg tspan[style*='99px']").count() == 0
            labels = plot.locator(".legendtext, .ytick text, .xtick text")
            seen |= set(labels.evaluate_all("all => all.map(one => one.dataset.unformatted && one.textContent)"))
        assert {LINK, SCRIPT, LOUD, HTML} <= seen
        links = page.evaluate("[...document.querySelectorAll('a')].map(one => one.getAttribute('href'))")
        assert all(link.startswith(("#", "data:text/csv")) for link in links)
        assert page.locator("img").count() == 0
        assert visit.complaints == []
        assert visit.requests == [hostile_report.as_uri()]


def test_names_in_labels_that_hover_are_text(browser, hostile_report):
    with Visit(browser, hostile_report) as visit:
        page = visit.page
        for plot, trace in (("plot-blocks", 1), ("plot-contrast-1", 1), ("plot-progress-1", 0), ("plot-loss-1", 1)):
            page.evaluate(f"Plotly.Fx.hover('{plot}', [{{curveNumber: {trace}, pointNumber: 0}}])")
            label = page.locator(f"#{plot} .hoverlayer .hovertext")
            assert label.count() == 1, plot
            assert "<" in label.text_content(), plot
            assert page.locator(f"#{plot} .hoverlayer a").count() == 0
        assert visit.complaints == []
