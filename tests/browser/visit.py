"""A page in a real browser, and what it complains about or asks for."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page

CHROMIUM = shutil.which("chromium")
NEEDS_CHROMIUM = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]
PATIENCE = 120_000  # ms; a busy machine parses and draws for long


class Visit:
    """A page that has been drawn, without a network, with everything it complained about or asked for."""

    def __init__(self, browser: Browser, report: Path, width: int = 1280, scheme: str = "light") -> None:
        self.width = width
        window = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=window, color_scheme=scheme, offline=True)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())
        self.page.wait_for_selector("html[data-drawn=all]")

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def plot(self, name: str) -> Locator:
        """Return where a figure is drawn."""
        return self.page.locator(f"#plot-{name}")

    def tool(self, name: str, does: str) -> Locator:
        """Return the button below a figure that does something: csv, svg, png or scale."""
        return self.page.locator(f"figure:has(#plot-{name}) button[data-do='{does}']")

    def open_all(self) -> None:
        """Unfold everything but the figures' numbers, and wait for what is drawn there."""
        self.page.evaluate("document.querySelectorAll('details:not(.numbers)').forEach(one => { one.open = true; })")
        self.until("[...document.querySelectorAll('.plot')].every(one => !one.clientWidth || one.querySelector('svg'))")

    def until(self, condition: str) -> None:
        """Wait for a condition; a text that is no function would need eval, which the page's policy forbids."""
        self.page.wait_for_function(f"() => {condition}")

    def shown(self, name: str) -> list[str]:
        """Return the names of the traces that a figure shows."""
        return self.page.evaluate(
            "id => document.getElementById(id).data.filter(one => (one.visible ?? true) === true).map(one => one.name)",
            f"plot-{name}",
        )

    def download(self, button: Locator) -> tuple[str, bytes]:
        """Press a button; return the name and content of the file."""
        with self.page.expect_download() as found:
            button.click()
        return found.value.suggested_filename, Path(found.value.path()).read_bytes()

    def boxes(self, selector: str) -> list[dict[str, Any]]:
        """Return where all that is visible lies on the page, in CSS pixels."""
        return self.page.evaluate(
            "selector => [...document.querySelectorAll(selector)]"
            ".filter(one => one.clientWidth && one.checkVisibility()).map(one => {"
            "  const box = one.getBoundingClientRect();"
            "  return {id: one.id || one.querySelector('.plot')?.id, left: box.left, right: box.right,"
            "          top: box.top + scrollY, bottom: box.bottom + scrollY}; })",
            selector,
        )
