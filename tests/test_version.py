"""One version, which a checkout that nobody installed knows too, as on a machine that is lent for an hour."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from lite_probe.version import __version__

ROOT = Path(__file__).parents[1]

# Everything that a GPU's tests import, where the package's metadata is missing.
UNINSTALLED = """
import sys
from importlib import metadata
from pathlib import Path

found = metadata.Distribution.from_name

def installed(name):
    if name == "lite-probe":
        raise metadata.PackageNotFoundError(name)
    return found(name)

metadata.Distribution.from_name = staticmethod(installed)
sys.path.insert(0, sys.argv[1])
from tests.tree import open_tree

open_tree(Path(sys.argv[1]))
import tests.gpu.test_against_the_cpu, tests.gpu.test_memory, tests.gpu.test_running, tests.optim.test_cuda
from lite_probe.commands.reuse import stamp_of

assert stamp_of({}, Path(sys.argv[1]), []) is not None
"""


def test_what_is_installed_has_the_version_of_the_code() -> None:
    assert metadata.version("lite-probe") == __version__


def test_a_checkout_runs_that_is_not_installed() -> None:
    found = subprocess.run([sys.executable, "-c", UNINSTALLED, str(ROOT)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
