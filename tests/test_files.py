"""Files of others: only regular ones, and no further than their bound."""

import os
from pathlib import Path

import pytest

from lite_probe.errors import InputError
from lite_probe.files import create_anew, open_regular, read_bounded


def test_a_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("real")
    for name in ("real", "link"):
        assert read_bounded(tmp_path / name, "three bytes", max_bytes=3) == b"abc"


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "linked").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "linked", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match=r"expected a config at .*, which is no regular file"):
            read_bounded(path, "a config", max_bytes=10)


@pytest.mark.parametrize("name", ["missing", "n" * 300, "nul\0"])
def test_what_cannot_be_opened_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a config at .*, got "):
        open_regular(tmp_path / name, "a config")


def test_more_than_allowed_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)  # sparse: reading it would fill the memory
    with pytest.raises(InputError, match=r"of at most 1,000 bytes at .*, got 1,099,511,627,776"):
        read_bounded(tmp_path / "large", "a config", max_bytes=1000)


def test_a_file_that_says_it_is_empty_has_its_bound_too() -> None:
    """Files of /proc have length 0 and content all the same."""
    assert b"cpu" in read_bounded(Path("/proc/stat"), "statistics", max_bytes=2**20)
    with pytest.raises(InputError, match="of at most 2 bytes"):
        read_bounded(Path("/proc/stat"), "statistics", max_bytes=2)


def test_a_file_is_created_in_place_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("mine")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "new"):
        with create_anew(tmp_path / name) as file:
            file.write(b"abc")
            file.seek(1)
            assert file.read() == b"bc"
        assert (tmp_path / name).read_bytes() == b"abc"
    assert (tmp_path / "mine").read_bytes() == b"precious"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        create_anew(tmp_path / "folder")
