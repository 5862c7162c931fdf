"""docs/callbacks.md: its code runs, in order, and gets what the page says."""

import os
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

import lite_probe as lp
from lite_probe.callbacks import Recorder
from tests.commands.running import run

PAGE = (Path(__file__).parents[2] / "docs" / "callbacks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_its_code_runs_and_leaves_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "page.py").write_text("\n".join(BLOCKS))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:lite_probe", "page.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert lp.load(tmp_path / "probe" / "run").steps.tolist() == [0, 10, 20, 30, 40]
    assert lp.load(tmp_path / "probe" / "twin").steps.tolist() == [0, 10, 20]
    assert lp.load(tmp_path / "probe" / "loop").steps.tolist() == [0, 1, 2, 4, 8, 16, 32, 50, 100, 150]
    for name in ("run", "twin", "loop"):
        training = lp.load(tmp_path / "probe" / name)
        assert training.notes == ()
        assert training.converged.all()
    assert run("report", tmp_path / "probe" / "run").exit_code == 0


def test_it_names_every_option_with_its_default() -> None:
    for name, parameter in signature(Recorder).parameters.items():
        if name not in ("task", "folder", "clock"):
            assert f"| `{name}={parameter.default}` |" in PAGE
