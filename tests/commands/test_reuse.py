"""The same command on the same files says at once that its result is there; whatever changed is looked into."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lite_probe.commands import reuse
from tests.commands.running import BATCH, REPLAY, SUBSPACE, run

pytestmark = pytest.mark.slow

FEW = ("--top", "2", "--bottom", "1", "--probes", "2")
CRITICAL = ("--critical-only", "--optimizers", "muon", "--lr", "0.01", "--warm-batches", "4")


@pytest.fixture
def measured(tiny_llama: Path, text: Path, tmp_path: Path) -> tuple[str, ...]:
    """A command that has run, on files of its own."""
    checkpoint = Path(shutil.copytree(tiny_llama, tmp_path / "tiny"))
    shutil.copy(text, tmp_path / "text.txt")
    asked = ("spectrum", checkpoint, "--data", tmp_path / "text.txt", "--out", tmp_path / "out", *BATCH, *FEW)
    arguments = tuple(map(str, asked))
    found = run(*arguments)
    assert found.exit_code == 0, found.stderr
    return arguments


def is_known_at_once(arguments: tuple[str, ...], *more: str) -> bool:
    """Whether a command ends well without having opened the checkpoint."""
    found = run(*arguments, *more)
    assert found.exit_code == 0, found.stderr
    return "already measured" in found.stderr and "parameters" not in found.stderr.splitlines()[0]


@pytest.mark.parametrize("kind", ["spectrum", "subspace", "steps", "replay"])
def test_nothing_heavy_is_loaded_for_a_result_that_is_there(
    kind: str, tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    own = {"spectrum": FEW, "subspace": SUBSPACE, "steps": CRITICAL, "replay": REPLAY}[kind]
    arguments = [kind, str(tiny_llama), "--data", str(text), "--out", str(tmp_path / "out"), *BATCH, *own]
    first = run(*arguments)
    assert first.exit_code == 0, first.stderr
    script = (
        "import sys\n"
        "from lite_probe.commands.main import cli\n"
        "try:\n"
        "    cli.main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'jinja2', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    again = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.stdout
    said = again.stderr.splitlines()
    assert said[0] == f"already measured: {tmp_path / 'out' / f'{kind}.json'}; --fresh measures again"
    assert all(line in first.stderr for line in said[1:])


def test_what_changed_is_looked_into(measured: tuple[str, ...], tmp_path: Path) -> None:
    assert is_known_at_once(measured)
    assert is_known_at_once(measured, "--json")
    for more in (("--fresh",), ("--top", "1"), ("--seed", "1")):
        assert not is_known_at_once(measured, *more)
        run(*measured, "--fresh")
    # The same content, written anew: the key knows that the result is its.
    os.utime(tmp_path / "text.txt")
    found = run(*measured)
    assert "parameters" in found.stderr.splitlines()[0]
    assert "already measured" in found.stderr
    assert is_known_at_once(measured)
    (tmp_path / "text.txt").write_text((tmp_path / "text.txt").read_text()[::-1])
    found = run(*measured)
    assert "replacing" in found.stderr
    assert is_known_at_once(measured)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("spectrum.json", "", None),
        ("spectrum.json", '"seed": 0', '"seed": 1'),
        ("report.html", "", None),
        (".lite-probe.asked", "", None),
        (".lite-probe.asked", "stamp", "stump"),
    ],
)
def test_what_is_damaged_is_looked_into(
    name: str, before: str, after: str | None, measured: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "out" / name
    if after is None:
        path.unlink()
    else:
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))
    found = run(*measured)
    assert found.exit_code == 0, found.stderr
    assert "parameters" in found.stderr.splitlines()[0]
    assert is_known_at_once(measured)


@pytest.mark.parametrize("content", ["", "[]", '{"spectrum": 3}', '{"spectrum": {"stamp": null}}', "[" * 10_000])
def test_a_note_that_is_none_is_no_error(content: str, measured: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "out" / ".lite-probe.asked").write_text(content)
    assert not is_known_at_once(measured)
    assert is_known_at_once(measured)


def test_code_of_the_users_is_always_looked_into(tmp_path: Path) -> None:
    given = {"checkpoint": "ckpt.pt", "optimizers": "muon"}
    assert reuse.stamp_of(given, tmp_path, []) is not None
    assert reuse.stamp_of({**given, "optimizers": "muon,mine.py:make"}, tmp_path, []) is None
    assert reuse.stamp_of({**given, "optimizers": "muon,mine:make"}, tmp_path, []) is None
    assert reuse.stamp_of({**given, "task_file": "mine.py:task"}, tmp_path, []) is None
    assert reuse.stamp_of(given, tmp_path, ["spectrum"]) is None  # which is not there


def test_what_is_read_beside_a_file_is_looked_at(tmp_path: Path) -> None:
    """A checkpoint that is one file takes config and tokenizer from beside it."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    given = {"checkpoint": str(tmp_path / "model.safetensors")}
    before = reuse.stamp_of(given, tmp_path, [])
    assert reuse.stamp_of(given, tmp_path, []) == before
    (tmp_path / "config.json").write_text("{}")
    assert reuse.stamp_of(given, tmp_path, []) != before
