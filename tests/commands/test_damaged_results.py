"""Results that were edited, damaged or exchanged for something else: an exit code and what to do, never a number."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lite_probe.results.store import save
from tests.commands.conftest import spectrum
from tests.commands.running import run, subspace


def edited(path: Path) -> None:
    head = json.loads(path.read_text())
    head["result"]["loss"] *= 0.5
    path.write_text(json.dumps(head, indent=2))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def of_a_terabyte(path: Path) -> None:
    os.truncate(path, 2**40)


def deep(path: Path) -> None:
    path.write_text("[" * 1_000_000)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (edited, "spectrum.json"),
        *((damage, "spectrum.json") for damage in (pipe, endless, of_a_terabyte, deep, flipped)),
        *((damage, "spectrum.safetensors") for damage in (pipe, endless, of_a_terabyte, deep, flipped)),
    ],
)
def test_no_page_is_made_of_it(damage: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    save(spectrum(), tmp_path / "run")
    damage(tmp_path / "run" / name)
    for path in (tmp_path / "run", tmp_path / "run" / "spectrum.json"):
        found = run("report", path, "--out", tmp_path / "page.html")
        assert found.exit_code == 3, found.stderr
        assert "expected" in found.stderr
        assert "defect" not in found.stderr
    assert not (tmp_path / "page.html").exists()


def test_an_edited_number_is_named_with_a_way_out(tmp_path: Path) -> None:
    edited(save(spectrum(), tmp_path))
    found = run("report", tmp_path)
    assert "expected spectrum.json as it was written" in found.stderr
    assert "measure again with --fresh" in found.stderr


@pytest.mark.slow
def test_an_edited_result_is_measured_again_and_said(run_folder: Path, tiny_llama: Path, text: Path) -> None:
    """Not reused, and not taken for one of another checkpoint."""
    path = run_folder / "subspace.json"
    before: dict[str, Any] = json.loads(path.read_text())["result"]
    head = json.loads(path.read_text())
    head["result"]["gradient_share"] = 0.9
    path.write_text(json.dumps(head))
    found = subspace(tiny_llama, text, run_folder)
    assert found.exit_code == 0, found.stderr
    assert f"replacing {path}: expected subspace.json as it was written" in found.stderr
    assert json.loads(path.read_text())["result"]["gradient_share"] == before["gradient_share"]
