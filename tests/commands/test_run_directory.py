import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lite_probe.commands.console import Terminal
from lite_probe.commands.run_directory import checkpoints_in, made, measuring_into, own_folder, run_directory
from lite_probe.errors import OutputError
from lite_probe.results.spectrum import Spectrum
from lite_probe.results.store import save
from lite_probe.task import TaskInfo
from tests.commands.running import BATCH, SUBSPACE, run

MakeSpectrum = Callable[..., Spectrum]
TERMINAL = Terminal("lite-probe spectrum")
LOCK = ".lite-probe.lock"


def info(name: str = "ckpt", fingerprint: str = "mine") -> TaskInfo:
    return TaskInfo(name=name, checkpoint_name=name, checkpoint_fingerprint=fingerprint)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def result_of(make_spectrum: MakeSpectrum, fingerprint: str) -> Spectrum:
    found = make_spectrum()
    return replace(found, provenance=replace(found.provenance, checkpoint_fingerprint=fingerprint))


def test_the_default_is_named_after_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_directory(TERMINAL, None, info("ckpt")) == Path("probe/ckpt")
    assert run_directory(TERMINAL, None, info("my run/../2")) == Path("probe/my-run-..-2")
    assert run_directory(TERMINAL, None, info("..")) == Path("probe/run")
    assert run_directory(TERMINAL, "here", info("ckpt")) == Path("here")
    assert run_directory(TERMINAL, "here", info("ckpt"), is_one_of_several=True) == Path("here/ckpt")


@pytest.mark.parametrize("is_one_of_several", [False, True])
def test_a_file_in_the_way_is_refused(tmp_path: Path, is_one_of_several: bool) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below" / "that"):
        with pytest.raises(OutputError, match=r"expected a folder at .*file, got a file"):
            run_directory(TERMINAL, str(out), info(), is_one_of_several=is_one_of_several)


def test_a_name_that_no_file_system_takes_is_refused() -> None:
    with pytest.raises(OutputError, match=r"expected a folder at xxx.*, got: File name too long"):
        run_directory(TERMINAL, "x" * 5000, info())


def test_anothers_results_are_left_alone_and_ones_own_are_found_again(
    tmp_path: Path,
    make_spectrum: MakeSpectrum,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save(result_of(make_spectrum, "another"), "probe/ckpt")
    assert run_directory(TERMINAL, None, info()) == Path("probe/ckpt-2")
    assert capsys.readouterr().err == (
        "probe/ckpt has results of another checkpoint, tiny (fingerprint another): "
        "those of this one go to probe/ckpt-2\n"
    )
    save(result_of(make_spectrum, "mine"), "probe/ckpt-2")
    assert run_directory(TERMINAL, None, info(fingerprint="third")) == Path("probe/ckpt-3")
    assert run_directory(TERMINAL, None, info()) == Path("probe/ckpt-2")
    assert run_directory(TERMINAL, None, info(fingerprint="another")) == Path("probe/ckpt")
    # Also when the first has gone since, and where something else has the next name.
    shutil.rmtree("probe/ckpt")
    capsys.readouterr()
    assert run_directory(TERMINAL, None, info()) == Path("probe/ckpt-2")
    assert capsys.readouterr().err == "results of this checkpoint go to probe/ckpt-2\n"
    assert run_directory(TERMINAL, None, info(fingerprint="third")) == Path("probe/ckpt")
    save(result_of(make_spectrum, "another"), "probe/ckpt")
    Path("probe/ckpt-3").touch()
    assert own_folder(TERMINAL, Path("probe/ckpt"), info(fingerprint="third")) == Path("probe/ckpt-4")
    # What holds two is neither's.
    save(result_of(make_spectrum, "mine"), "probe/both")
    save(replace(result_of(make_spectrum, "another")), "probe/both-2")
    shutil.copy("probe/both/spectrum.json", "probe/both-2/subspace.json")
    assert own_folder(TERMINAL, Path("probe/both-2"), info()) == Path("probe/both-2-2")


def test_an_out_that_holds_anothers_results_is_refused(tmp_path: Path, make_spectrum: MakeSpectrum) -> None:
    save(result_of(make_spectrum, "another"), tmp_path / "ckpt")
    said = r"expected a run directory of ckpt \(fingerprint mine\) at .*, got one with results of another checkpoint"
    for out, several in ((tmp_path / "ckpt", False), (tmp_path, True)):
        with pytest.raises(OutputError, match=said) as error:
            run_directory(TERMINAL, str(out), info(), is_one_of_several=several)
        assert error.value.hint == "choose another --out; --fresh does not overwrite what is another checkpoint's"
    assert run_directory(TERMINAL, str(tmp_path / "ckpt"), info(fingerprint="another")) == tmp_path / "ckpt"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"result": []}', "[" * 100_000, '{"result": {"provenance": 1}}', "1"])
def test_what_is_damaged_is_nobodys(tmp_path: Path, text: str) -> None:
    (tmp_path / "spectrum.json").write_text(text)
    os.mkfifo(tmp_path / "replay.json")
    assert checkpoints_in(tmp_path) == {}


def test_unfinished_work_belongs_to_its_checkpoint(tmp_path: Path) -> None:
    def interrupted() -> None:
        with measuring_into(TERMINAL, tmp_path / "ckpt", info()) as folder:
            (folder / "spectrum.state").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert checkpoints_in(tmp_path / "ckpt") == {"mine": "ckpt"}
    assert own_folder(TERMINAL, tmp_path / "ckpt", info(fingerprint="another")) == tmp_path / "ckpt-2"
    with pytest.raises(OutputError, match="got one with results of another checkpoint, ckpt"):
        run_directory(TERMINAL, str(tmp_path / "ckpt"), info(fingerprint="another"))
    with measuring_into(TERMINAL, tmp_path / "ckpt", info()):
        pass
    assert names(tmp_path / "ckpt") == ["spectrum.state"]


@pytest.mark.slow
def test_a_second_process_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from tests.commands.test_run_directory import TERMINAL, info, measuring_into\n"
        "with measuring_into(TERMINAL, sys.argv[1], info()):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    ).replace("sys.argv[1]", "__import__('pathlib').Path(sys.argv[1])")
    folder = tmp_path / "ckpt"
    with subprocess.Popen([sys.executable, "-c", script, folder], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        for who in ("mine", "another"):
            with (
                pytest.raises(
                    OutputError, match=rf"another lite-probe is measuring into .*ckpt \(process {other.pid}\)"
                ),
                measuring_into(TERMINAL, folder, info(fingerprint=who)),
            ):
                pass
        assert names(folder) == [LOCK]
        other.send_signal(signal.SIGKILL)
    # Whatever became of it, the lock went with it.
    with measuring_into(TERMINAL, folder, info()):
        assert names(folder) == [LOCK]
    assert names(folder) == []


def test_a_lock_file_that_is_removed_while_it_is_opened_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a process that finishes between our open and our lock."""
    times = []

    def flock(descriptor: int, operation: int) -> None:
        times.append(descriptor)
        if len(times) == 1:
            (tmp_path / LOCK).unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    with measuring_into(TERMINAL, tmp_path, info()):
        assert (tmp_path / LOCK).is_file()
    assert len(times) == 2


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import errno

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with measuring_into(TERMINAL, tmp_path, info()):
        assert "cannot be locked (No locks available): let no other lite-probe measure" in capsys.readouterr().err


def test_what_lies_under_the_locks_name_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match="expected to make the file"), measuring_into(TERMINAL, tmp_path, info()):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
    (tmp_path / LOCK).unlink()
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(OutputError, match="expected a lock file at"), measuring_into(TERMINAL, tmp_path, info()):
        pass


def test_folders_made_for_nothing_go_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), made(tmp_path / "probe" / "ckpt"):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), measuring_into(TERMINAL, tmp_path / "probe" / "ckpt", info()):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_folders_with_something_in_them_stay(tmp_path: Path) -> None:
    def fail() -> None:
        with made(tmp_path / "probe" / "ckpt") as folder:
            (folder / "state").touch()
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert (tmp_path / "probe" / "ckpt" / "state").exists()


def test_a_folder_that_vanished_hides_no_error(tmp_path: Path) -> None:
    def fail() -> None:
        with made(tmp_path / "probe") as folder:
            folder.rmdir()
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), made(tmp_path):
        raise RuntimeError
    assert tmp_path.is_dir()


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="expected to make the folder"), made(tmp_path / "file" / "below"):
        pass


# -- through the commands ------------------------------------------------------------------------------------------

QUICK = ("--top", "2", "--bottom", "1", "--probes", "2")


@pytest.fixture
def two(tiny_llama: Path, other_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two checkpoints of one name in an empty working directory."""
    first, second = tmp_path / "a" / "ckpt", tmp_path / "b" / "ckpt"
    shutil.copytree(tiny_llama, first)
    shutil.copytree(other_llama, second)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return first, second


@pytest.mark.slow
def test_two_checkpoints_of_one_name_keep_their_results(two: tuple[Path, Path], text: Path) -> None:
    first, second = (run("spectrum", one, "--data", text, *BATCH, *QUICK) for one in two)
    assert (first.exit_code, second.exit_code) == (0, 0), second.stderr
    assert first.stdout.split() == ["probe/ckpt/report.html", "probe/ckpt/spectrum.json"]
    assert second.stdout.split() == ["probe/ckpt-2/report.html", "probe/ckpt-2/spectrum.json"]
    again = run("spectrum", two[1], "--data", text, *BATCH, *QUICK)
    assert "already measured: probe/ckpt-2/spectrum.json" in again.stderr
    # Every command that measures goes the same way.
    for command, more in (("subspace", SUBSPACE), ("replay", ("--steps", "1", "--dry-run"))):
        refused = run(command, two[1], "--data", text, *BATCH, *more, "--out", "probe/ckpt", "--fresh")
        assert refused.exit_code == 6, refused.stderr
        assert "expected a run directory of ckpt" in refused.stderr
    assert run("subspace", two[1], "--data", text, *BATCH, *SUBSPACE).stdout.split()[1] == "probe/ckpt-2/subspace.json"
    head = json.loads(Path("probe/ckpt/spectrum.json").read_text())
    assert head["result"]["provenance"]["command"].startswith(f"lite-probe spectrum {two[0]}")


@pytest.mark.usefixtures("two")
def test_tasks_of_ones_own_are_told_by_their_weights(tmp_path: Path) -> None:
    Path("mine.py").write_text(
        "import torch\n"
        "from lite_probe.criteria import squared_error\n"
        "from lite_probe.task import Task\n"
        "def build(fill=0.5):\n"
        "    model = torch.nn.Linear(3, 1)\n"
        "    torch.nn.init.constant_(model.weight, fill)\n"
        "    torch.nn.init.constant_(model.bias, fill)\n"
        "    batch = (torch.arange(6.0).reshape(2, 3) - 2, torch.ones(2, 1))\n"
        "    return Task(model=model, predict=lambda m, b: m(b[0]), criterion=squared_error, evaluation=[batch])\n"
        "def other():\n"
        "    return build(1.5)\n"
    )
    quick = ("--top", "1", "--bottom", "1", "--probes", "2", "--threads", "1")
    folders = [
        run("spectrum", "--task", f"mine.py:{name}", *quick, *more).stdout.split()[0]
        for name, more in (("build", ()), ("other", ()), ("build", ("--precision", "float64")), ("other", ()))
    ]
    assert folders == [f"probe/{name}/report.html" for name in ("task", "task-2", "task", "task-2")]
