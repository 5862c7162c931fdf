"""Every example runs as its own docstring says."""

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from lite_probe.commands.main import cli

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_it_says(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    line = next(line for line in example.read_text(encoding="utf-8").splitlines() if "lite-probe " in line)
    arguments = shlex.split(line)[1:]
    found = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path), "--json"])
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    assert len(told["eigenvalues"]) == 5
    assert told["loss"] > 0
    assert (tmp_path / "report.html").is_file()
