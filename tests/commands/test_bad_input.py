"""Bad input: its own exit code, what was expected and what came, no traceback, nothing half-written."""

import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from lite_probe.commands.main import cli
from lite_probe.results.store import load
from tests.commands.running import BATCH, run

SMALL = [
    "--tokenizer",
    "bytes",
    "--seq-len",
    "16",
    "--batch-size",
    "4",
    "--batches",
    "1",
    "--top",
    "2",
    "--bottom",
    "1",
]
SMALL += ["--probes", "2", "--threads", "1"]


class RunsCode:
    """Pickles into a call of os.system."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def edited(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def no_checkpoint(folder: Path) -> Path:
    path = folder / "notes.txt"
    path.write_text("not a checkpoint")
    return path


def truncated(folder: Path) -> Path:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def bit_flipped_header(folder: Path) -> Path:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[20] ^= 0xFF
    weights.write_bytes(content)
    return folder


def evil_pickle(folder: Path) -> Path:
    path = folder / "evil.pt"
    torch.save({"model": RunsCode()}, path)
    return path


def raw_pickle(folder: Path) -> Path:
    path = folder / "evil.pkl"
    path.write_bytes(pickle.dumps(RunsCode()))
    return path


def missing_shard(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def wrong_shape(folder: Path) -> Path:
    return edited(folder, lambda weights: weights.update({"lm_head.weight": torch.zeros(8, 16)}))


def unknown_architecture(folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "perceiver-9000", "architectures": ["No"]}))
    return folder


def nan_weights(folder: Path) -> Path:
    return edited(folder, lambda weights: weights["lm_head.weight"].fill_(float("nan")))


def fine(folder: Path) -> Path:
    return folder


def empty_text(folder: Path) -> list[str]:
    (folder / "empty.txt").touch()
    return ["--data", str(folder / "empty.txt")]


def short_text(folder: Path) -> list[str]:
    (folder / "short.txt").write_text("too short")
    return ["--data", str(folder / "short.txt")]


def large_ids(folder: Path) -> list[str]:
    import numpy as np

    np.full(4000, 50256, dtype=np.uint16).tofile(folder / "val.bin")
    return ["--data", str(folder / "val.bin")]


def out_is_a_file(folder: Path) -> list[str]:
    (folder / "taken").touch()
    return ["--out", str(folder / "taken")]


def nothing_more(folder: Path) -> list[str]:
    return []


@pytest.mark.parametrize(
    ("make", "more", "code", "said"),
    [
        (no_checkpoint, nothing_more, 3, "expected .*got"),
        (lambda folder: folder / "nothing.pt", nothing_more, 3, "expected .*(got|found)"),
        (truncated, nothing_more, 3, "expected .*got"),
        (bit_flipped_header, nothing_more, 3, "expected .*got"),
        (evil_pickle, nothing_more, 3, r"system.*\n?.*--trust-pickle"),
        (raw_pickle, nothing_more, 3, "expected|system"),
        (missing_shard, nothing_more, 3, "expected .*model-00001-of-00002.safetensors"),
        (wrong_shape, nothing_more, 3, "expected .*lm_head.*got|lm_head.*expected .*got"),
        (unknown_architecture, nothing_more, 3, "perceiver-9000"),
        (nan_weights, nothing_more, 4, "expected .*finite.*|NaN"),
        (fine, empty_text, 3, "expected .*got"),
        (fine, short_text, 3, "expected .*got"),
        (fine, large_ids, 3, "expected .*256.*got 50,?256"),
        (fine, out_is_a_file, 6, "expected a folder at .*taken, got a file"),
        (fine, lambda folder: ["--top", "100000"], 2, "expected .*got 100,?000"),
        (fine, lambda folder: ["--device", "cuda"], 2, "expected a CUDA device"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_input(
    tiny_llama: Path,
    text: Path,
    tmp_path: Path,
    make: Callable[[Path], Path],
    more: Callable[[Path], list[str]],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "cuda" in said.lower() and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_llama, folder)
    arguments = [
        "spectrum",
        str(make(folder)),
        "--data",
        str(text),
        "--out",
        str(tmp_path / "out"),
        *SMALL,
        *more(folder),
    ]
    found = CliRunner().invoke(cli, arguments)
    assert found.exit_code == code, found.stderr
    assert found.stderr.splitlines()[-1].startswith(("error: ", "hint: "))
    assert re.search(said, found.stderr), found.stderr
    assert "Traceback" not in found.stderr
    assert found.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


@pytest.mark.parametrize("command", ["subspace", "replay"])
@pytest.mark.parametrize(
    ("make", "more", "code", "said"),
    [
        (lambda folder: folder / "nothing.pt", nothing_more, 3, "expected a LITE training folder.*got nothing there"),
        (evil_pickle, nothing_more, 3, r"system.*\n?.*--trust-pickle"),
        (nan_weights, nothing_more, 4, "expected finite.*NaN|NaN"),
        (fine, short_text, 3, "expected at least .* tokens"),
        (fine, large_ids, 3, "expected .*256.*got 50,?256"),
        (fine, out_is_a_file, 6, "expected a folder at .*taken, got a file"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_input_of_what_starts_from_a_spectrum(
    tiny_llama: Path,
    text: Path,
    tmp_path: Path,
    command: str,
    make: Callable[[Path], Path],
    more: Callable[[Path], list[str]],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_llama, folder)
    found = run(command, make(folder), "--data", text, "--out", tmp_path / "out", *BATCH, *more(folder))
    assert found.exit_code == code, found.stderr
    assert re.search(said, found.stderr), found.stderr
    assert found.stderr.splitlines()[-1].startswith(("error: ", "hint: "))
    assert "Traceback" not in found.stderr
    assert found.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_a_folder_that_cannot_be_written(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        # Root may write anywhere; a file system that is full says no to root too.
        out = Path("/dev/full/out")
    else:
        out = tmp_path / "closed" / "out"
        out.parent.mkdir()
        out.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    found = CliRunner().invoke(cli, ["spectrum", str(tiny_llama), "--data", str(text), "--out", str(out), *SMALL])
    assert found.exit_code == 6
    assert "expected" in found.stderr
    assert "Traceback" not in found.stderr


def test_no_space_left_while_saving(
    tiny_llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from lite_probe.results import store

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "fsync", full)
    out = tmp_path / "out"
    found = CliRunner().invoke(cli, ["spectrum", str(tiny_llama), "--data", str(text), "--out", str(out), *SMALL])
    assert found.exit_code == 6
    assert "expected space" in found.stderr
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_names_that_are_no_text_leave_as_they_are_on_disk(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    shutil.copy(text, tmp_path / f"{name}.txt")
    line = [sys.executable, "-c", "from lite_probe.commands.main import main; main()", "spectrum", str(tiny_llama)]
    line += ["--data", str(tmp_path / f"{name}.txt"), "--out", str(tmp_path / name), *SMALL]
    found = subprocess.run(line, capture_output=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == [
        os.fsencode(tmp_path) + b"/caf\xe9/" + b for b in (b"report.html", b"spectrum.json")
    ]
    assert b"of caf\\udce9.txt" in found.stderr
    spectrum = load(tmp_path / name, "spectrum")
    assert spectrum.provenance.data_name == f"{name}.txt"
    assert "caf\\udce9" in spectrum.provenance.command
    assert r"caf\udce9.txt" in (tmp_path / name / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inspect", "x" * 5000), "expected a LITE training folder.*File name too long|expected .*got"),
        (("spectrum", "--task", "x" * 5000 + ".py:f"), "expected a Python file, got File name too long"),
        (("report", "x" * 5000), "expected to reach xxx.*, got: File name too long|expected a result"),
    ],
)
def test_names_that_are_too_long(arguments: tuple[str, ...], said: str) -> None:
    found = run(*arguments)
    assert found.exit_code == 3, found.stderr
    assert re.search(said, found.stderr)
