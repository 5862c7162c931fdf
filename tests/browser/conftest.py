"""One browser for the tests of a file."""

import pytest
from playwright.sync_api import sync_playwright

from tests.browser.visit import ARGUMENTS, CHROMIUM


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()
