"""One browser for the tests of a file, and a page on everything, visited once per width and theme."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from lite_probe.reports.page import render_page
from lite_probe.reports.runs import Run
from tests.browser.visit import CHROMIUM, Visit
from tests.reports.fixtures import make_replay, make_spectrum, make_subspace
from tests.reports.steps_results import make_optimizer, make_steps
from tests.reports.tuning_results import make_test, make_tuning

HOSTILE = "</script><img src=x onerror=alert(1)>"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def whole_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every section, with two runs, names that are markup, a run that diverged and one seed alone."""
    early = Run(
        subspace=make_subspace(name=HOSTILE, step=500),
        steps=make_steps(name=HOSTILE, step=500, optimizers={HOSTILE: make_optimizer("muon", critical_only=True)}),
        replay=make_replay(name=HOSTILE, step=500, seeds=1, theory=False, swept=False),
        tuning=make_tuning(name=HOSTILE, step=500, ratios={HOSTILE: (2.0, 0.5), "qk": (3.0, 1.2)}),
    )
    late = Run(
        spectrum=make_spectrum(),
        subspace=make_subspace(others=(HOSTILE,), answers={"vo": "fails"}),
        steps=make_steps(),
        replay=make_replay(ablations=True, diverged=(("soap", 1, 7),)),
        tuning=make_tuning(replay=make_test()),
    )
    path = tmp_path_factory.mktemp("whole") / "report.html"
    path.write_text(render_page([early, late]))
    return path


@pytest.fixture(scope="module")
def visited(browser: Browser, whole_report: Path) -> Iterator[Callable[[int, str], Visit]]:
    """Return the page on everything, unfolded, at a width and in a theme; for tests that only look at it."""
    found: dict[tuple[int, str], Visit] = {}

    def at(width: int, scheme: str) -> Visit:
        if (width, scheme) not in found:
            found[width, scheme] = Visit(browser, whole_report, width, scheme)
            found[width, scheme].open_all()
        return found[width, scheme]

    yield at
    for visit in found.values():
        visit.context.close()
