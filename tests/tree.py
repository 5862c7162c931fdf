"""Tests test the tree they stand in, not another checkout that the interpreter has installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest

PACKAGES = {"lite_probe": "lite_probe", "lite_probe.reports": "reports", "lite_probe.commands": "commands"}


def open_tree(root: Path) -> None:
    """Let all packages be found where none is installed, as on a machine that is lent: two lie beside the first."""
    if find_spec("lite_probe.commands") is None:
        import lite_probe

        lite_probe.__path__.append(str(root))


def require_tree(root: Path) -> None:
    """Refuse to run where a package comes from elsewhere: an editable install maps `reports/` and `commands/` by path.

    Args:
        root: The checkout that the tests belong to.

    Raises:
        UsageError: Naming what was expected, what came, and how to install this tree.
    """
    for package, folder in PACKAGES.items():
        found = find_spec(package)
        origin = None if found is None or found.origin is None else Path(found.origin).resolve().parent
        if origin != (root / folder).resolve():
            raise pytest.UsageError(
                f"expected {package} from {root / folder}, got {origin or 'none'}: this interpreter has another tree "
                f"installed; run `make test`, or `pip install -e .` in {root}"
            )
