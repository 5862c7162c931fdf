"""The page in a real browser, used: filters, axes, downloads, keys, print."""

import csv
import io
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from lite_probe.reports.drawing import Drawing, Figure, axis, error_bars, layout, name_axis
from lite_probe.reports.page import render_page, write_report
from lite_probe.reports.runs import Run
from lite_probe.results.store import save
from tests.browser.conftest import HOSTILE
from tests.browser.visit import NEEDS_CHROMIUM, Visit
from tests.reports.fixtures import make_replay, make_spectrum
from tests.reports.steps_results import make_steps

pytestmark = [*NEEDS_CHROMIUM, pytest.mark.slow]

RUN = Run(spectrum=make_spectrum(), steps=make_steps(), replay=make_replay())
EARLY = Run(spectrum=make_spectrum(name=HOSTILE, step=500, loss=2.41, sharpest=12.3, verified=None, seed=4))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page([EARLY, RUN]))
    return path


@pytest.fixture(scope="module")
def used(browser: Browser, report: Path) -> Iterator[Visit]:
    """One page for all tests of this file that leave it as it was."""
    with Visit(browser, report) as visit:
        visit.open_all()
        yield visit
        assert visit.complaints == []
        assert all(url.startswith(("data:", "blob:")) for url in visit.requests[1:])


def rows_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_optimizers_and_checkpoints_are_filtered_in_all_figures_at_once(used: Visit) -> None:
    page, everything = used.page, {name: used.shown(name) for name in ("loss-1", "edge-1", "density")}
    progress = "document.getElementById('plot-progress-1').data[0].x"
    page.locator(".filters").get_by_role("button", name="soap", exact=True).click()
    used.until(f"!{progress}.includes('soap')")
    assert "soap" in everything["loss-1"]
    assert "soap" not in used.shown("loss-1")
    assert "soap" not in used.shown("edge-1")
    assert page.evaluate(progress) == ["muon", "muon-lite", "soap-lite"]
    page.locator(".filters").get_by_role("button", name=HOSTILE, exact=True).click()
    page.wait_for_function(
        "before => document.getElementById('plot-density').data.filter(one => one.visible !== false).length < before",
        arg=len(everything["density"]),
    )
    page.get_by_role("button", name="Show all").click()
    used.until(f"{progress}.includes('soap')")
    assert {name: used.shown(name) for name in everything} == everything
    assert page.get_by_role("button", name="Show all").count() == 0


def test_a_block_that_is_clicked_is_shown_alone_until_it_is_clicked_again(used: Visit) -> None:
    page = used.page
    pressed = ".filters button[data-key=block][aria-pressed=true]"
    blocks = page.locator(pressed).all_inner_texts()
    assert len(blocks) == 6

    def click_on_qk() -> None:
        point = used.plot("blocks").locator(".points .point").nth(1)
        point.scroll_into_view_if_needed()
        box = point.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x - 1, y)
        page.mouse.move(x, y)
        page.mouse.click(x, y)

    click_on_qk()
    used.until(f"document.querySelectorAll('{pressed}').length == 1")
    assert page.locator(pressed).inner_text() == "qk"
    shown = page.locator("figure:visible .plot").evaluate_all("all => all.map(one => one.dataset.figure)")
    assert [name for name in shown if name.startswith(("profile", "bands"))] == ["profile-1-2", "bands-1-2"]
    views = page.locator("button[aria-controls='plot-bands-1-1']:visible")
    assert views.all_inner_texts() == ["qk"]
    click_on_qk()
    used.until(f"document.querySelectorAll('{pressed}').length == 6")
    assert page.locator("figure:visible .plot").count() > len(shown)
    page.locator("button[aria-controls='plot-bands-1-1']").first.click()


def test_what_the_legend_hides_stays_hidden(used: Visit) -> None:
    page = used.page
    before = used.shown("edge-1")
    used.plot("edge-1").locator(".legendtoggle").first.click()
    used.until("document.getElementById('plot-edge-1').data[0].visible === 'legendonly'")
    page.locator(".filters").get_by_role("button", name="soap", exact=True).click()
    used.until("document.getElementById('plot-edge-1').data[2].visible === false")
    assert used.shown("edge-1") == [name for name in before[1:] if name != "soap"]
    page.get_by_role("button", name="Show all").click()
    used.plot("edge-1").locator(".legendtoggle").first.click()
    used.until("document.getElementById('plot-edge-1').data.every(one => (one.visible ?? true) === true)")


def test_an_axis_turns_linear_from_the_keyboard(used: Visit) -> None:
    page, kind = used.page, "document.getElementById('plot-critical-1').layout.xaxis.type"
    button = used.tool("critical-1", "scale")
    assert page.evaluate(kind) == "log"
    button.focus()
    page.keyboard.press("Enter")
    used.until(f"{kind} == 'linear'")
    assert button.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Enter")
    used.until(f"{kind} == 'log'")
    # Twelve powers of ten would be one point, and a linear axis has nothing to switch.
    assert not used.tool("density", "scale").is_visible()
    assert not used.tool("loss-1", "scale").is_visible()


def test_dragging_zooms_where_that_was_asked(used: Visit) -> None:
    ends = "document.getElementById('plot-edge-1')._fullLayout.xaxis.range.join()"
    page, before = used.page, used.page.evaluate(ends)

    def drag() -> None:
        plot = used.plot("edge-1").locator(".nsewdrag")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 60, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + 180, box["y"] + 140, steps=4)
        page.mouse.up()

    drag()
    assert page.evaluate(ends) == before
    used.tool("edge-1", "zoom").click()
    assert used.tool("edge-1", "zoom").get_attribute("aria-pressed") == "true"
    drag()
    used.until(f"{ends} != '{before}'")
    used.tool("edge-1", "zoom").click()
    used.until(f"{ends} == '{before}'")


def test_a_switch_shows_another_figure_and_its_description(used: Visit) -> None:
    page = used.page
    before = used.plot("density").get_attribute("aria-label")
    ticks = used.plot("density").locator(".xtick text").all_inner_texts()
    page.get_by_role("button", name="linear axis", exact=True).click()
    page.wait_for_function(
        "before => document.querySelectorAll('#plot-density .xtick text')[0].textContent != before", arg=ticks[0]
    )
    used.page.locator("button[aria-controls='plot-bands-1-1']", has_text="ffn").click()
    assert "Progress in ffn" in str(used.plot("bands-1-1").get_attribute("aria-label"))
    page.get_by_role("button", name="bulk and outliers").click()
    assert used.plot("density").get_attribute("aria-label") == before


def test_csv_files_hold_the_stored_numbers(used: Visit) -> None:
    replay = RUN.results["replay"]
    name, content = used.download(used.tool("loss-1", "csv"))
    assert name == "loss-1.csv"
    rows = [row for row in rows_of(content) if row["series"] == "muon-lite"]
    losses = np.stack([run.losses for run in replay.runs_of("muon-lite")])
    assert [float(row["evaluation loss (nats)"]) for row in rows] == losses.mean(axis=0).tolist()
    assert [float(row["evaluation loss, low (nats)"]) for row in rows] == losses.min(axis=0).tolist()
    assert [float(row["evaluation loss, high (nats)"]) for row in rows] == losses.max(axis=0).tolist()

    rows = rows_of(used.download(used.tool("upper-end", "csv"))[1])
    whole = EARLY.results["spectrum"].whole
    assert [float(row["λᵢ (loss/param²)"]) for row in rows if row["checkpoint"] == HOSTILE] == (
        whole.upper_end[0].tolist()
    )
    rows = rows_of(used.download(used.tool("blocks", "csv"))[1])
    assert {row["block"] for row in rows} == {"emb", "qk", "vo", "ffn", "norm", "out"}
    rows = rows_of(used.download(used.tool("progress-1", "csv"))[1])
    flat = replay.flat_progress("soap")
    (row,) = [row for row in rows if (row["part"], row["optimizer"]) == ("flat directions", "soap")]
    assert float(row["progress (nats)"]) == flat.value
    assert float(row["half of the 95% interval (nats)"]) == pytest.approx(flat.high - flat.value)


def test_numbers_of_planes_areas_bars_and_rows(used: Visit) -> None:
    def csv_of(*traces: dict[str, object], **axes: object) -> list[list[str]]:
        figure = Figure()
        figure.data, figure.layout = list(traces), layout(100, **axes)
        described = Drawing.of(figure, "own", "A figure.").figure
        text = used.page.evaluate("spec => numbers.csv(spec)", described)
        return list(csv.reader(io.StringIO(text)))

    axes = {"xaxis": axis("α"), "yaxis": axis("β")}
    bar = {"title": {"text": "loss (nats)"}}
    plane = [["series", "α", "β", "loss (nats)"], ["plane", "-1", "0.5", "2"], ["plane", "1", "0.5", "3e-7"]]
    for kind in ("heatmap", "contour"):
        trace = {"type": kind, "name": "plane", "x": [-1, 1], "y": [0.5], "z": [[2.0, 3e-7]], "colorbar": bar}
        assert csv_of(trace, **axes) == plane
    # What a spreadsheet would run is quoted, and so is what would break a row.
    names = ["=1+1", 'a,"b"', "<b>"]
    areas = [{"type": "scatter", "name": name, "x": [1, 2], "y": [0.1, None], "stackgroup": "all"} for name in names]
    assert csv_of(*areas, **axes)[1:] == [["'=1+1", "1", "0.1"], ['a,"b"', "1", "0.1"], ["<b>", "1", "0.1"]]
    errors = {"type": "bar", "name": "flat", "x": ["muon"], "y": [2], "error_y": error_bars([0.25], "red")}
    assert csv_of(errors, xaxis=axis(""), yaxis=axis("progress (nats)")) == [
        ["series", "x", "progress (nats)", "progress, error (nats)"],
        ["flat", "muon", "2", "0.25"],
    ]
    rows = {"type": "scatter", "name": "λ₁", "x": [3, 4], "y": [0.2, 1.2], "mode": "markers"}
    assert csv_of(rows, yaxis=name_axis(["qk", "ffn"]))[1:] == [["λ₁", "3", "qk"], ["λ₁", "4", "ffn"]]


def test_planes_are_drawn_and_saved_under_the_policy(used: Visit) -> None:
    plane = {"x": [-1, 0, 1], "y": [-1, 1], "z": [[1.0, 2.0, 3.0], [2.0, 3.0, 5.0]]}
    traces = [{"type": "heatmap", **plane}, {"type": "contour", "contours": {"coloring": "lines"}, **plane}]
    picture = used.page.evaluate(
        """async (data) => {
            const place = document.body.appendChild(document.createElement("div"));
            await Plotly.newPlot(place, data, { width: 300, height: 300 });
            const found = [place.querySelectorAll(".heatmaplayer image").length,
                           place.querySelectorAll(".contourlayer path").length,
                           (await Plotly.toImage(place, { format: "png" })).slice(0, 22)];
            place.remove();
            return found; }""",
        traces,
    )
    assert picture[0] == 1
    assert picture[1] > 2
    assert picture[2] == "data:image/png;base64,"


def test_every_figure_has_its_numbers_in_a_table(used: Visit) -> None:
    page = used.page
    for details in page.locator("figure:visible details.numbers").all():
        details.locator("summary").click()
        details.locator("tbody tr").first.wait_for()
        name = details.evaluate("one => one.closest('figure').querySelector('.plot').id.slice(5)")
        content = rows_of(used.download(used.tool(name, "csv"))[1])
        assert details.locator("tbody tr").count() == len(content), name
        assert details.locator("thead th").all_inner_texts() == list(content[0]), name
        details.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_pictures_are_for_paper(used: Visit) -> None:
    used.page.emulate_media(color_scheme="dark")
    name, content = used.download(used.tool("loss-1", "svg"))
    assert name == "loss-1.svg"
    assert content.startswith(b"<svg")
    assert b"#1c2127" in content or b"rgb(28, 33, 39)" in content  # the text of the light theme
    name, content = used.download(used.tool("blocks", "png"))
    assert (name, content[:4]) == ("blocks.png", b"\x89PNG")
    used.page.emulate_media(color_scheme="light")


def test_figures_are_one_tab_stop_each_and_arrows_go_from_point_to_point(used: Visit) -> None:
    page = used.page
    assert page.locator(".plot :is(a, button, [tabindex])").count() == 0
    used.plot("edge-1").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    used.until("document.querySelector('#plot-edge-1 .hovertext')?.textContent.includes('step 2')")
    page.keyboard.press("Tab")
    focused = "document.activeElement.textContent"
    assert re.match("Zoom: ", page.evaluate(focused))
    for _ in range(5):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.plot') !== document.getElementById('plot-edge-1')")


def test_figures_follow_the_theme(used: Visit) -> None:
    page, stroke = used.page, "document.querySelector('#plot-density .js-line').style.stroke"
    text = "document.querySelector('#plot-density .xtick text').style.fill"

    def colours(page: Page) -> list[str]:
        return page.evaluate(f"[getComputedStyle(document.body).backgroundColor, {text}, {stroke}]")

    light = colours(page)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"before => {stroke} != before", arg=light[2])
    dark = colours(page)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    assert "var(" not in "".join(light + dark)
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"wanted => {stroke} == wanted", arg=light[2])


def test_is_printed_in_light_at_the_width_of_the_sheet(browser: Browser, report: Path) -> None:
    with Visit(browser, report, 1440, "dark") as visit:
        page = visit.page
        # What is seen here is what stands when the browser lays the sheets out: nothing is drawn later.
        page.evaluate(
            """addEventListener("beforeprint", () => {
                window.sheets = [...document.querySelectorAll(".plot")].map(one =>
                    [one.id, one.querySelector(".main-svg")?.clientWidth ?? 0,
                     one.querySelector(".xtick text")?.style.fill]); })"""
        )
        assert page.pdf(format="A4", prefer_css_page_size=True).startswith(b"%PDF")
        sheets = page.evaluate("sheets")
        assert {width for _, width, _ in sheets} == {640}
        assert {fill for *_, fill in sheets} == {"rgb(92, 102, 112)"}  # muted, in light
        visit.until(
            "[...document.querySelectorAll('.plot')].every(one => one.closest('details:not([open])') ||"
            " one.querySelector('.main-svg').clientWidth == one.clientWidth)"
        )
        page.set_viewport_size({"width": 718, "height": 1000})  # A4 less margins of 10 mm
        page.emulate_media(media="print", color_scheme="light")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        visit.until("document.querySelector('#plot-density .main-svg').clientWidth == 640")
        assert all(box["right"] <= 718 for box in visit.boxes("table, pre, p, li"))
        boxes = visit.boxes("figure")
        assert all(box["right"] <= 718 for box in boxes)
        assert all(box["bottom"] - box["top"] < 1000 for box in boxes)
        assert all(
            first["bottom"] <= second["top"] + 1 or first["right"] <= second["left"] + 1
            for first, second in pairwise(boxes)
        )
        assert page.locator(".filters:visible, .tools:visible").count() == 0
        assert page.evaluate("[...document.querySelectorAll('pre')].every(one => one.scrollWidth <= one.clientWidth)")
        assert visit.complaints == []


def test_a_folded_figure_is_drawn_when_it_is_opened(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_page([Run(spectrum=make_spectrum(blocks=False, verified=None))]))
    with Visit(browser, path) as visit:
        assert visit.plot("density").locator(".main-svg").count() > 0
        assert visit.plot("upper-end").locator(".main-svg").count() == 0
        visit.page.locator("details:has(#plot-upper-end) > summary").click()
        visit.until("document.querySelectorAll('#plot-upper-end .main-svg').length > 0")
        drawn = visit.page.evaluate("document.querySelector('#plot-upper-end .main-svg').clientWidth")
        assert drawn == visit.page.evaluate("document.getElementById('plot-upper-end').clientWidth") > 300
        assert visit.complaints == []
    with Visit(browser, path) as visit:
        visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert visit.plot("upper-end").locator(".main-svg").first.get_attribute("width") == "640"


def test_works_with_plotly_beside_it_and_says_so_without(browser: Browser, tmp_path: Path) -> None:
    page = write_report([save(make_spectrum(), tmp_path / "run").parent], tmp_path / "report.html", "directory")
    with Visit(browser, page) as visit:
        assert visit.plot("density").locator(".main-svg").count() > 0
        assert visit.complaints == []
    next(tmp_path.glob("plotly-*.min.js")).unlink()
    with Visit(browser, page) as visit:
        assert "plotly.js could not be loaded" in visit.plot("density").inner_text()
        visit.page.locator("details:has(#plot-upper-end) > summary").click()
        assert len(rows_of(visit.download(visit.tool("upper-end", "csv"))[1])) == 10
        assert any("ERR_FILE_NOT_FOUND" in complaint for complaint in visit.complaints)


def test_long_series_are_thinned_where_they_are_drawn_alone(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_page([Run(replay=make_replay(steps=1500))]))
    with Visit(browser, path) as visit:
        drawn = visit.page.evaluate("document.getElementById('plot-loss-1').data.map(one => one.x)")
        assert max(len(x) for x in drawn) <= 2 * 601
        assert drawn[1][:2] == [0, 3]
        assert drawn[1][-1] == 1500
        assert drawn[0][: len(drawn[1])] == drawn[1]
        assert "One point in 3 is drawn" in visit.page.locator("figure:has(#plot-loss-1) figcaption").inner_text()
        rows = rows_of(visit.download(visit.tool("loss-1", "csv"))[1])
        assert [int(row["step"]) for row in rows if row["series"] == "muon"] == list(range(1501))
        assert visit.complaints == []


def test_a_figure_that_is_not_drawn_would_be_noticed(browser: Browser, report: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(report.read_text().replace("Plotly.react(plot", "Plotly.missing(plot"))
    context = browser.new_context(bypass_csp=True)  # the policy stops a script that was changed, see test_sealed.py
    page = context.new_page()
    with page.expect_event("pageerror") as complaint:
        page.goto(broken.as_uri())
    assert "Plotly.missing is not a function" in str(complaint.value)
    assert page.locator("html[data-drawn=all]").count() == 0
    assert page.locator("#plot-density svg").count() == 0
    assert json.loads(page.locator("#figures").inner_text())
    context.close()
