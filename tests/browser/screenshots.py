"""Pictures of a report's first screen, in light and in dark, for the front page.

    python -m tests.browser.screenshots RUN... --out docs/images

RUN is a run directory, or one page. The pictures are 1440 by 900 pixels: report-light.png and report-dark.png.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, sync_playwright

from lite_probe.reports.page import write_report
from tests.browser.visit import CHROMIUM, Visit

WIDTH, HEIGHT = 1440, 900
SCHEMES = ("light", "dark")


def take(browser: Browser, page: Path, out: Path) -> list[Path]:
    """Save the first screen of a page in both schemes, and return where; a page that complains is an error."""
    out.mkdir(parents=True, exist_ok=True)
    taken = []
    for scheme in SCHEMES:
        with Visit(browser, page, WIDTH, scheme) as visit:
            picture = out / f"report-{scheme}.png"
            visit.page.screenshot(path=picture, clip={"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT})
            if visit.complaints:
                raise RuntimeError(f"expected a page without complaints, got {visit.complaints}")
        taken.append(picture)
    return taken


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Render a page of the runs that are given, and take its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args(arguments)
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = asked.runs[0]
        if page.suffix != ".html":
            page = Path(folder) / "report.html"
            write_report(asked.runs, page)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        return take(browser, page.resolve(), asked.out)


if __name__ == "__main__":
    main()
