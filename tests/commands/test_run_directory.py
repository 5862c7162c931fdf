from pathlib import Path

import pytest

from lite_probe.commands.run_directory import made, run_directory
from lite_probe.errors import OutputError


def test_the_default_is_named_after_the_checkpoint() -> None:
    assert run_directory(None, "ckpt") == Path("probe/ckpt")
    assert run_directory(None, "my run/../2") == Path("probe/my-run-..-2")
    assert run_directory(None, "..") == Path("probe/run")
    assert run_directory("here", "ckpt") == Path("here")


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below" / "that"):
        with pytest.raises(OutputError, match=r"expected a folder at .*file, got a file"):
            run_directory(str(out), "ckpt")


def test_folders_made_for_nothing_go_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), made(tmp_path / "probe" / "ckpt"):
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
