"""The page in a real browser, looked at: at two widths, in light and dark, drawn, whole and legible."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.browser.visit import NEEDS_CHROMIUM, Visit

pytestmark = [*NEEDS_CHROMIUM, pytest.mark.slow]

LOOKS = [(width, scheme) for width in (1440, 390) for scheme in ("light", "dark")]
AXE = Path(__file__).parent / "axe" / "axe.min.js"
At = Callable[[int, str], Visit]


@pytest.fixture(params=LOOKS, ids=[f"{width}-{scheme}" for width, scheme in LOOKS])
def visit(request: pytest.FixtureRequest, visited: At) -> Visit:
    return visited(*request.param)


def overlaps(boxes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Which boxes lie on one another by more than a pixel."""
    return [
        (one["id"], other["id"])
        for one, other in combinations(boxes, 2)
        if min(one["right"], other["right"]) - max(one["left"], other["left"]) > 1
        and min(one["bottom"], other["bottom"]) - max(one["top"], other["top"]) > 1
    ]


def test_every_figure_is_drawn_quietly(visit: Visit, whole_report: Path) -> None:
    assert visit.complaints == []
    assert visit.requests == [whole_report.as_uri()]
    plots = visit.page.locator(".plot").all()
    assert len(plots) > 30
    drawn = visit.page.evaluate(
        "[...document.querySelectorAll('.plot')].map(one => [one.id,"
        " one.querySelectorAll('.scatterlayer path, .barlayer path, .contourlayer path').length"
        " + 3 * one.querySelectorAll('.heatmaplayer image').length,"
        " one.querySelectorAll('.xtick text').length])"
    )
    assert [name for name, marks, labels in drawn if marks < 3 or labels < 2] == []


def test_nothing_is_wider_than_the_window_and_no_figures_overlap(visit: Visit) -> None:
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= visit.width
    boxes = visit.boxes("figure")
    assert len(boxes) > 30
    assert overlaps(boxes) == []
    assert all(box["left"] >= 0 and box["right"] <= visit.width for box in boxes)
    drawn = visit.page.evaluate(
        "[...document.querySelectorAll('.plot')]"
        ".map(one => [one.clientWidth, one.querySelector('.main-svg').clientWidth])"
    )
    assert all(outer == inner for outer, inner in drawn)


def test_no_text_is_cut(visit: Visit) -> None:
    cut = visit.page.evaluate(
        """[...document.querySelectorAll("h1, h2, h3, p, li, dt, dd, figcaption, summary, button, a, caption, pre")]
        .filter(one => one.clientWidth && !one.closest("caption, .hidden, pre"))
        .filter(one => one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).display !== "inline")
        .map(one => one.outerHTML.slice(0, 120))"""
    )
    assert cut == []
    outside = visit.page.evaluate(
        """[...document.querySelectorAll(".plot :is(.xtick, .ytick, .g-xtitle, .g-ytitle) text")]
        .map(one => [one, one.getBoundingClientRect(), one.closest(".plot").getBoundingClientRect()])
        .filter(([_, text, plot]) => text.left < plot.left - 2 || text.right > plot.right + 2 ||
                                     text.bottom > plot.bottom + 2 || text.top < plot.top - 2)
        .map(([one]) => `${one.closest(".plot").id}: ${one.textContent}`)"""
    )
    assert outside == []


def test_axe_finds_no_serious_fault(visit: Visit) -> None:
    visit.page.evaluate(AXE.read_text())
    found = visit.page.evaluate("axe.run().then(found => found.violations)")
    serious = [
        (one["id"], [node["html"][:200] for node in one["nodes"][:3]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []
