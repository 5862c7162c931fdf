"""Settings and inputs that every test may use."""

import os
from pathlib import Path

import pytest

from tests.tree import open_tree, require_tree

# One thread everywhere: results are then the same whatever the machine and however many tests run at once, and these
# don't fight over cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say where `tests/gpu` computes."""
    own = parser.getgroup("lite-probe")
    own.addoption("--device", default="cuda", help="where tests/gpu compute; cpu tries the suite itself")
    own.addoption("--tiny", action="store_true", help="let tests/gpu take the smallest models")


def pytest_configure() -> None:
    """Refuse to test another checkout than this one."""
    root = Path(__file__).parents[1]
    open_tree(root)
    require_tree(root)
