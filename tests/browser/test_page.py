"""The page in a real browser: drawn, quiet, offline, at two widths, in light and dark."""

import csv
import io
from pathlib import Path

import pytest
from playwright.sync_api import Page

from lite_probe.reports.page import render_page
from lite_probe.reports.runs import Run
from tests.browser.visit import NEEDS_CHROMIUM, Visit
from tests.reports.fixtures import make_replay, make_spectrum, make_subspace
from tests.reports.steps_results import make_optimizer, make_steps
from tests.reports.tuning_results import make_test, make_tuning

PLOTS = ("density", "upper-end", "lower-end", "blocks")

pytestmark = [*NEEDS_CHROMIUM, pytest.mark.slow]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    hostile = "</script><script>console.error('ran')</script>"
    early = make_spectrum(name=hostile, step=500, loss=2.41, sharpest=12.3, verified=None, unconverged=2, seed=4)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page([Run(spectrum=early), Run(spectrum=make_spectrum())]))
    return path


@pytest.fixture(scope="module")
def whole_report(tmp_path_factory) -> Path:
    """Every section, with two runs, names that are markup, a run that diverged and one seed alone."""
    hostile = "</script><script>console.error('ran')</script>"
    early = Run(
        subspace=make_subspace(name=hostile, step=500),
        steps=make_steps(name=hostile, step=500, optimizers={hostile: make_optimizer("muon", critical_only=True)}),
        replay=make_replay(name=hostile, step=500, seeds=1, theory=False, swept=False),
        tuning=make_tuning(name=hostile, step=500, ratios={hostile: (2.0, 0.5), "qk": (3.0, 1.2)}),
    )
    late = Run(
        spectrum=make_spectrum(),
        subspace=make_subspace(others=(hostile,), answers={"vo": "fails"}),
        steps=make_steps(),
        replay=make_replay(ablations=True, diverged=(("soap", 1, 7),)),
        tuning=make_tuning(replay=make_test()),
    )
    path = tmp_path_factory.mktemp("whole") / "report.html"
    path.write_text(render_page([early, late]))
    return path


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1280, "light")])
def test_is_drawn_quietly_and_fits(browser, report, width, scheme):
    with Visit(browser, report, width, scheme) as visit:
        page = visit.page
        assert visit.complaints == []
        assert visit.requests == [report.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for name in PLOTS:
            plot = page.locator(f"#plot-{name}")
            assert plot.locator("svg .scatterlayer path").count() > 3, name
            assert plot.locator("svg .xtick text").count() > 2, name
            box = plot.bounding_box()
            assert box["width"] <= width
            drawn = plot.locator("svg.main-svg").first.bounding_box()
            assert drawn["width"] == pytest.approx(box["width"], abs=2)


@pytest.mark.parametrize(("width", "scheme"), [(800, "dark"), (1280, "light")])
def test_every_section_is_drawn_quietly_and_fits(browser, whole_report, width, scheme):
    with Visit(browser, whole_report, width, scheme) as visit:
        page = visit.page
        assert visit.complaints == []
        assert visit.requests == [whole_report.as_uri()]
        for details in page.locator("details").all():
            details.evaluate("one => { one.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        plots = page.locator(".plot").all()
        assert len(plots) == 4 + 2 + 1 + 7 + 2 * 9 + 4 + 5
        for plot in plots:
            name = plot.get_attribute("id")
            marks = plot.locator("svg .scatterlayer path, svg .barlayer path, svg .scatterlayer .point")
            assert marks.count() > 2, name
            assert plot.locator("svg .xtick text").count() > 1, name
            assert plot.bounding_box()["width"] <= width
        assert page.locator("section h2").count() == len(set(page.locator("section h2").all_inner_texts()))


def test_a_switch_shows_another_proxy_and_block(browser, whole_report):
    with Visit(browser, whole_report) as visit:
        page = visit.page
        for plot, button in (("calibration-1-1", "gpt-5000: muon-lite"), ("bands-2-1", "ffn")):
            path = f"document.querySelector('#plot-{plot} .js-line').getAttribute('d')"
            before = page.evaluate(path)
            group = page.locator(f"button[aria-controls='plot-{plot}']")
            group.filter(has_text=button).click()
            page.wait_for_function(f"before => {path} != before", arg=before)
        assert visit.complaints == []


def test_figures_follow_the_theme_and_print_in_light(browser, report):
    stroke = "document.querySelector('#plot-density .js-line').style.stroke"

    def colours(page: Page) -> list[str]:
        text = "document.querySelector('#plot-density .xtick text').style.fill"
        return page.evaluate(f"[getComputedStyle(document.body).backgroundColor, {text}, {stroke}]")

    with Visit(browser, report, scheme="light") as visit:
        page = visit.page
        light = colours(page)
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(f"before => {stroke} != before", arg=light[2])
        dark = colours(page)
        assert all(one != other for one, other in zip(light, dark, strict=True))
        assert "var(" not in "".join(light + dark)
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.wait_for_function(f"wanted => {stroke} == wanted", arg=light[2])
        assert colours(page) == light
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        page.wait_for_function(f"wanted => {stroke} == wanted", arg=dark[2])
        assert colours(page) == dark
        assert visit.complaints == []


def test_axis_switches_from_the_keyboard_and_a_table_downloads(browser, report):
    with Visit(browser, report) as visit:
        page = visit.page
        before = page.locator("#plot-density .xtick text").all_inner_texts()
        linear = page.get_by_role("button", name="linear axis")
        linear.focus()
        page.keyboard.press("Enter")
        page.wait_for_function(
            "before => document.querySelectorAll('#plot-density .xtick text')[0].textContent != before", arg=before[0]
        )
        assert linear.get_attribute("aria-pressed") == "true"
        assert page.get_by_role("button", name="bulk and outliers").get_attribute("aria-pressed") == "false"
        with page.expect_download() as download:
            page.locator("a[download='eigenpairs.csv']").click()
        assert download.value.suggested_filename == "eigenpairs.csv"
        rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
        assert len(rows) == 30
        assert float(rows[15]["λ (loss/param²)"]) == 38.21
        assert visit.complaints == []


def test_a_figure_that_is_not_drawn_would_be_noticed(browser, report, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(report.read_text().replace("Plotly.react(plot", "Plotly.missing(plot"))
    context = browser.new_context(bypass_csp=True)  # the policy stops a script that was changed, see test_sealed.py
    page = context.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(broken.as_uri())
    assert any("Plotly.missing is not a function" in complaint for complaint in complaints)
    assert page.locator("html[data-drawn]").count() == 0
    assert page.locator("#plot-density svg").count() == 0
    context.close()
