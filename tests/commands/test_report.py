"""`report` renders from files alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from lite_probe.commands.main import cli
from lite_probe.results.spectrum import Spectrum
from lite_probe.results.store import save

MakeSpectrum = Callable[..., Spectrum]


@pytest.fixture
def runs(make_spectrum: MakeSpectrum, tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "early", tmp_path / "late"]
    for folder in folders:
        save(make_spectrum(blocks=True), folder)
    return folders


def test_one_page_for_several_runs(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "pages" / "both.html"
    found = CliRunner().invoke(cli, ["report", *map(str, runs), "--out", str(page)])
    assert found.exit_code == 0, found.stderr
    assert found.stdout == f"{page}\n"
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")


def test_the_page_lies_in_the_first_run_by_default(runs: list[Path]) -> None:
    found = CliRunner().invoke(cli, ["report", str(runs[0]), "--json"])
    assert json.loads(found.stdout) == {"report": str(runs[0] / "report.html")}
    assert (runs[0] / "report.html").is_file()


def test_plotly_js_beside_the_page(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    found = CliRunner().invoke(cli, ["report", str(runs[0]), "--out", str(page), "--plotlyjs", "directory"])
    assert found.exit_code == 0, found.stderr
    (beside,) = tmp_path.glob("plotly-*.min.js")
    assert f'<script src="{beside.name}">' in page.read_text(encoding="utf-8")
    found = CliRunner().invoke(cli, ["report", str(runs[0]), "--plotlyjs", "nowhere"])
    assert found.exit_code == 2
    assert "expected one of inline, directory, cdn, got nowhere" in found.stderr


def test_neither_torch_nor_transformers_is_imported(runs: list[Path]) -> None:
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers'):\n"
        "            raise RuntimeError('imports ' + name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from lite_probe.commands.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "report", *map(str, runs)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing"], 3, "expected a result or a run directory, found nothing at nothing"),
        (["file"], 3, "expected the JSON head of a result at file, got"),
        (["empty"], 3, "expected .*got|found"),
        (["early", "--out", "folder"], 6, "expected a file's name, got the folder"),
        (["early", "--out", "file/page.html"], 6, "expected .*got"),
    ],
)
def test_bad_input(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("empty").mkdir()
    found = CliRunner().invoke(cli, ["report", *arguments])
    assert found.exit_code == code, found.stderr
    assert re.search(said, found.stderr), found.stderr
    assert not list(tmp_path.rglob("*.html"))


def test_its_tables_go_to_stdout(runs: list[Path]) -> None:
    def told(*arguments: str) -> str:
        found = CliRunner().invoke(cli, ["report", *map(str, runs), *arguments])
        assert found.exit_code == 0, found.stderr
        return found.stdout

    markdown = told("--format", "md")
    assert markdown.startswith("**± is the residual of an eigenvalue, else half of the 95% interval over probes.**\n\n")
    assert "| λ₁ (loss/param²) |" in markdown
    assert r"\begin{tabular}{lrr}" in told("--format", "latex")
    everything = told("--format", "csv")
    assert [line for line in everything.splitlines() if line.startswith("# ")] == [
        "# key-numbers",
        "# eigenpairs",
        "# blocks",
    ]
    alone = told("--format", "csv", "--table", "blocks")
    assert alone.startswith("checkpoint,block,")
    assert alone in everything
    assert json.loads(told("--format", "json")) == {"report": str(runs[0] / "report.html")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--table", "blocks"), "expected --format csv, md or latex with --table blocks, got none"),
        (("--json", "--format", "md"), "expected one format, got --json and --format md"),
        (
            ("--format", "md", "--table", "x"),
            "expected a table of key-numbers, eigenpairs, blocks, got 'x'",
        ),
        (("--format", "html"), "expected one of json, csv, md, latex, got html"),
    ],
)
def test_formats_that_make_no_sense_are_refused(runs: list[Path], arguments: tuple[str, ...], said: str) -> None:
    found = CliRunner().invoke(cli, ["report", str(runs[0]), *arguments])
    assert found.exit_code == 2
    assert said in " ".join(found.stderr.split())
