"""The pictures on the front page: one size, two schemes, made from a run directory or from its page."""

import struct
from pathlib import Path

import pytest

from lite_probe.reports.page import write_report
from lite_probe.results.store import save
from tests.browser import screenshots
from tests.browser.visit import NEEDS_CHROMIUM
from tests.reports.fixtures import make_spectrum

ROOT = Path(__file__).parents[2]
SIZE = (screenshots.WIDTH, screenshots.HEIGHT)

pytestmark = [*NEEDS_CHROMIUM, pytest.mark.slow]


def size_of(picture: Path) -> tuple[int, int]:
    """The width and height that a PNG says it has."""
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    return width, height


def test_pictures_have_one_size_and_show_two_schemes(browser, tmp_path):
    save(make_spectrum(), tmp_path / "run")
    write_report([tmp_path / "run"], tmp_path / "report.html")
    light, dark = screenshots.take(browser, tmp_path / "report.html", tmp_path / "pictures")
    assert (light.name, dark.name) == ("report-light.png", "report-dark.png")
    assert size_of(light) == size_of(dark) == SIZE
    assert light.read_bytes() != dark.read_bytes()


@pytest.mark.parametrize("scheme", screenshots.SCHEMES)
def test_the_front_page_has_pictures_of_that_size(scheme):
    picture = ROOT / "docs" / "images" / f"report-{scheme}.png"
    assert size_of(picture) == SIZE
    assert picture.stat().st_size <= 300_000
