"""The ground: what the wheel holds, what is pinned, what the root exports."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import lite_probe
from tests.tree import require_tree

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, and install it in a folder of its own."""
    base = tmp_path_factory.mktemp("wheel")
    source = base / "source"
    source.mkdir()
    for folder in ("lite_probe", "commands", "reports"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(base), str(source)]
    subprocess.run(build, check=True, timeout=120)
    (wheel,) = base.glob("lite_probe-*.whl")
    target = base / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, timeout=120)
    return target


@pytest.mark.slow
def test_the_wheel_holds_every_room_and_one_top_level_name(installed: Path) -> None:
    package = installed / "lite_probe"
    assert (package / "py.typed").is_file()
    for name in ("templates/page.js", "plotlyjs/plotly-cartesian.min.js", "plotlyjs/LICENSE"):
        assert (package / "reports" / name).is_file()
    for module in ("commands/main.py", "commands/spectrum.py", "reports/page.py", "spectra/__init__.py"):
        assert (package / module).is_file()
    tops = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert tops <= {"lite_probe", "bin"}


def test_the_wheel_holds_every_source_file(installed: Path) -> None:
    expected = {path.relative_to(ROOT / "lite_probe") for path in (ROOT / "lite_probe").rglob("*.py")}
    expected |= {path.relative_to(ROOT) for room in ("commands", "reports") for path in (ROOT / room).rglob("*.py")}
    package = installed / "lite_probe"
    assert expected <= {path.relative_to(package) for path in package.rglob("*.py")}


def test_the_installed_wheel_runs(installed: Path, tmp_path: Path) -> None:
    script = f"import sys; sys.path.insert(0, {str(installed)!r}); from lite_probe.commands import main; "
    script += f"assert main.__file__.startswith({str(installed)!r}), main.__file__; main.cli.main(['--version'])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("lite-probe, version "), done.stderr


def test_another_tree_is_not_tested_in_place_of_this_one(tmp_path: Path) -> None:
    require_tree(ROOT)
    with pytest.raises(pytest.UsageError, match=r"expected lite_probe from .*, got .*lite_probe: .* run `make test`"):
        require_tree(tmp_path)
    # A clone's own lite_probe comes first on the path of pytest; what is installed maps the rooms beside it.
    (tmp_path / "lite_probe").symlink_to(ROOT / "lite_probe")
    with pytest.raises(
        pytest.UsageError, match=r"expected lite_probe\.reports from .*, got .*reports: .*pip install -e"
    ):
        require_tree(tmp_path)


def test_every_dependency_is_pinned_and_nothing_asks_for_torchvision() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0].lower() for line in lines if "==" in line}
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert {name.split(">=")[0] for name in wanted} <= pins
    assert "torch==2.13.0" in lines
    assert "torchvision" not in pins
    assert not any("file:" in line or "@" in line for line in lines)


def test_the_root_exports_what_it_names() -> None:
    for name in lite_probe.__all__:
        assert getattr(lite_probe, name) is not None
    assert set(lite_probe.__all__) <= set(dir(lite_probe))
    with pytest.raises(AttributeError, match="has no attribute 'measure_everything'"):
        lite_probe.measure_everything  # noqa: B018


NOT_INSTALLED = """
import sys
from importlib.util import find_spec
from pathlib import Path

sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
root = Path(sys.argv[1])
sys.path.insert(0, str(root))
from tests.tree import open_tree, require_tree

assert find_spec("lite_probe.commands") is None
open_tree(root)
require_tree(root)
import lite_probe.commands.wording, lite_probe.reports.numbers
"""


def test_a_tree_that_is_not_installed_is_opened() -> None:
    done = subprocess.run([sys.executable, "-c", NOT_INSTALLED, str(ROOT)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
