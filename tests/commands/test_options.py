from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from lite_probe.commands.main import cli
from lite_probe.commands.options import MemorySize, Positive, Whole, read_config
from lite_probe.commands.spectrum import SpectrumOptions, command
from lite_probe.errors import InputError, UsageError


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("8GiB", 8 * 2**30), ("500MB", 500 * 10**6), ("1.5 gib", 3 * 2**29), ("4096B", 4096), ("2TB", 2 * 10**12)],
)
def test_memory_sizes(text: str, num_bytes: int) -> None:
    assert MemorySize().convert(text, None, None) == num_bytes


@pytest.mark.parametrize("text", ["8", "GiB", "8 apples", "-1GB", "0GB", "1e3GB", ""])
def test_a_size_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected a size with its unit, such as 8GiB"):
        MemorySize().convert(text, None, None)


@pytest.mark.parametrize("value", ["0", "-3", "2.5", "ten", True, ""])
def test_counts_are_whole_and_not_below_their_bound(value: Any) -> None:
    with pytest.raises(click.BadParameter, match="expected a whole number ≥ 1, got"):
        Whole(1).convert(value, None, None)


@pytest.mark.parametrize("value", ["0", "-1", "1", "nan", "inf", "x", [1]])
def test_tolerances_lie_strictly_between_their_bounds(value: Any) -> None:
    with pytest.raises(click.BadParameter, match="expected a number above 0 and below 1, got"):
        Positive(below=1.0).convert(value, None, None)


def parse(*arguments: str) -> SpectrumOptions:
    with click.Context(cli) as parent:
        return SpectrumOptions(**command.make_context("spectrum", list(arguments), parent=parent).params)


def test_the_file_beside_the_checkpoint_supplies_defaults_and_flags_win(tmp_path: Path) -> None:
    (tmp_path / "lite-probe.toml").write_text(
        'top = 4\nper-block = true\ndata = "val.bin"\ntol = 1e-4\nmemory = "2GiB"\n'
    )
    request = parse(str(tmp_path / "ckpt.pt"), "--top", "7")
    assert (request.top, request.per_block, request.tolerance, request.memory) == (7, True, 1e-4, 2**31)
    # A path in the file is taken from the file's folder.
    assert request.data_path == str(tmp_path / "val.bin")


def test_a_checkpoint_folder_holds_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "lite-probe.toml").write_text('data = "builtin:python-docs"\ntokenizer = "bytes"\nseq_len = 32\n')
    request = parse(str(tmp_path))
    assert (request.data_path, request.tokenizer, request.seq_len) == ("builtin:python-docs", "bytes", 32)


def test_config_names_another_file_and_the_one_beside_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "lite-probe.toml").write_text("top = 4\nprobes = 9\n")
    other = tmp_path / "other.toml"
    other.write_text("top = 5\n")
    request = parse(str(tmp_path / "ckpt.pt"), "--data", "x", "--config", str(other))
    assert (request.top, request.probes) == (5, 4)


def test_a_key_that_no_command_knows_is_refused_with_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "lite-probe.toml"
    path.write_text("tpo = 4\n")
    with pytest.raises(UsageError, match=r"expected the keys .*batch-size.*top.* got 'tpo'"):
        read_config(path)


def test_a_key_of_another_command_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lite-probe.toml").write_text("per_block = true\n")
    assert read_config(tmp_path / "lite-probe.toml") == {"per_block": True}
    found = CliRunner().invoke(cli, ["inspect", str(tmp_path / "nothing.pt")])
    assert found.exit_code == 3


@pytest.mark.parametrize("text", ["top = ", "= 3", "\x00"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(InputError, match="expected TOML in"):
        read_config(path)


def test_a_configuration_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a configuration file at"):
        read_config(tmp_path / "none.toml")


def test_a_bad_value_in_the_file_is_refused_like_a_flag(tmp_path: Path) -> None:
    (tmp_path / "lite-probe.toml").write_text('top = "ten"\n')
    with pytest.raises(click.BadParameter, match="expected a whole number ≥ 1, got ten"):
        parse(str(tmp_path / "ckpt.pt"), "--data", "x")


def test_checkpoint_and_task_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="expected either CKPT or --task, got neither"):
        parse()
    with pytest.raises(UsageError, match="expected either CKPT or --task, got both"):
        parse("ckpt.pt", "--task", "a.py:f")
    with pytest.raises(UsageError, match="expected --data with a checkpoint, got none"):
        parse("ckpt.pt")
