"""Imports run downward, and each outside library stays in its room."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A room may import rooms of a lower rank, and itself.
RANK = {
    "errors": 0,
    "files": 1,
    "user_code": 1,
    "seeds": 0,
    "version": 0,
    "results": 2,
    "blocks": 3,
    "data": 4,
    "checkpoints": 4,
    "criteria": 4,
    "vectors": 4,
    "task": 5,
    "runtime": 6,
    "optim": 6,
    "operators": 6,
    "training": 7,
    "spectra": 7,
    "subspaces": 8,
    "replays": 9,
    "steps": 10,
    "bilevel": 10,
    "measurements": 11,
    "callbacks": 11,
    "reports": 12,
    "commands": 13,
    "__main__": 14,
}
ONLY_IN: dict[str, set[str]] = {"click": {"commands"}, "rich": {"commands"}, "plotly": set(), "jinja2": {"reports"}}
# These alone know torch.distributed.
RANKS = {"lite_probe.operators.ranks", "lite_probe.operators.sharding"}
NEVER_IN = {"results": {"torch", "transformers"}, "reports": {"torch", "transformers"}}


def modules() -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and file of every module of the package, as it is installed."""
    for folder, package in (
        ("lite_probe", "lite_probe"),
        ("reports", "lite_probe.reports"),
        ("commands", "lite_probe.commands"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join([package, *(part for part in parts if part != "__init__")]), path


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield every absolute name that is imported, wherever the statement stands; `.` for a relative one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else f"{node.module}.{node.names[0].name}"


def _is_foreign(room: str, name: str) -> bool:
    top = name.partition(".")[0]
    forbidden = NEVER_IN.get(room, set())
    return (
        room not in ONLY_IN.get(top, {room})
        or top in forbidden
        or (bool(forbidden) and name.startswith("safetensors.torch"))
    )


def violations(module: str, source: str) -> list[str]:
    """Return what a module does that the house forbids."""
    tree, room = ast.parse(source), module.split(".")[1]
    found = [f"{module} has no rank"] if room not in RANK else []
    for name in imported(tree):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if top == "":
            found.append(f"{module} imports relatively")
        elif top == "lite_probe" and other != room and RANK.get(other, 99) >= RANK.get(room, -1):
            found.append(f"{module} imports {name}, which is not below it")
        elif _is_foreign(room, name) or (name.startswith("torch.distributed") and module not in RANKS):
            found.append(f"{module} imports {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(f"{module} prints")
    return found


def test_every_module_keeps_to_its_room() -> None:
    everything = list(modules())
    assert len(everything) > 20
    # The root only names what it exports, and imports it when asked.
    found = [
        problem for name, path in everything if name != "lite_probe" for problem in violations(name, path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("lite_probe.results.store", "import torch", "imports torch"),
        (
            "lite_probe.results.store",
            "def f():\n    from safetensors.torch import save_file",
            "imports safetensors.torch",
        ),
        ("lite_probe.reports.page", "from torch import nn", "imports torch"),
        ("lite_probe.spectra.lanczos", "import click", "imports click"),
        ("lite_probe.operators.base", "from rich.console import Console", "imports rich"),
        ("lite_probe.commands.spectrum", "import plotly.graph_objects", "imports plotly"),
        ("lite_probe.operators.base", "from lite_probe.spectra.lanczos import lanczos", "not below it"),
        ("lite_probe.data.stream", "from lite_probe.checkpoints.opening import Checkpoint", "not below it"),
        ("lite_probe.results.store", "from lite_probe import spectra", "not below it"),
        ("lite_probe.data.stream", "from . import stream", "imports relatively"),
        ("lite_probe.data.stream", "print('hello')", "prints"),
        ("lite_probe.bilevel.solve", "import torch.distributed as dist", "imports torch.distributed"),
        ("lite_probe.operators.base", "from torch import distributed", "imports torch.distributed"),
        ("lite_probe.operators.sharded", "import torch.distributed.fsdp", "imports torch.distributed"),
        ("lite_probe.shed.tools", "", "has no rank"),
    ],
)
def test_the_check_finds_each_kind_of_trespass(module: str, source: str, problem: str) -> None:
    assert any(problem in found for found in violations(module, source))


def test_help_loads_neither_torch_nor_plotly() -> None:
    script = (
        "import sys\n"
        "from lite_probe.commands.main import cli\n"
        "try:\n"
        "    cli.main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'plotly', 'transformers', 'scipy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for arguments in (["--help"], ["spectrum", "--help"], ["report", "--help"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "Usage: lite-probe" in done.stdout


@pytest.mark.slow
def test_importing_the_package_loads_no_torch() -> None:
    script = "import sys, lite_probe; assert 'torch' not in sys.modules; lite_probe.Task; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_a_page_loads_no_statistics() -> None:
    script = (
        "import sys, lite_probe.reports.page; assert 'scipy.stats' not in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
