"""Settings and inputs that every test may use."""

import os
from pathlib import Path

from tests.tree import require_tree

# Two threads everywhere: results are then the same whatever the machine, and tests don't fight over cores.
os.environ.setdefault("OMP_NUM_THREADS", "2")


def pytest_configure() -> None:
    """Refuse to test another checkout than this one."""
    require_tree(Path(__file__).parents[1])
