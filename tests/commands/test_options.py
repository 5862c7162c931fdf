import os
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from lite_probe.commands.console import Terminal
from lite_probe.commands.main import cli
from lite_probe.commands.options import Among, MemorySize, Positive, Whole, read_config
from lite_probe.commands.spectrum import SpectrumMeasuring, command
from lite_probe.errors import InputError, UsageError


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("8GiB", 8 * 2**30), ("500MB", 500 * 10**6), ("1.5 gib", 3 * 2**29), ("4096B", 4096), ("2TB", 2 * 10**12)],
)
def test_memory_sizes(text: str, num_bytes: int) -> None:
    assert MemorySize().convert(text, None, None) == num_bytes


@pytest.mark.parametrize("text", ["8", "GiB", "8 apples", "-1GB", "0GB", "1e3GB", "1e400GiB", "0.5B", ""])
def test_a_size_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected a size with its unit, such as 8GiB"):
        MemorySize().convert(text, None, None)


@pytest.mark.parametrize("value", ["0", "-3", "2.5", "ten", True, ""])
def test_counts_are_whole_and_not_below_their_bound(value: Any) -> None:
    with pytest.raises(click.BadParameter, match="expected a whole number ≥ 1, got"):
        Whole(1).convert(value, None, None)


@pytest.mark.parametrize("value", ["9" * 5000, "-" + "9" * 5000, "0" * 5000 + "1"])
def test_a_number_of_thousands_of_digits_is_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(click.BadParameter, match=r"expected a whole number ≥ 1, got .{60}… ") as error:
        Whole(1).convert(value, None, None)
    assert len(error.value.message) < 150
    with pytest.raises(click.BadParameter, match=r"expected a number above 0 and below 1, got 9{60}… "):
        Positive(below=1.0).convert("9" * 5000, None, None)
    with pytest.raises(click.BadParameter, match=r"expected one of a, b, got 9{60}… "):
        Among(["a", "b"]).convert("9" * 5000, None, None)


def test_counts_have_an_upper_bound_too() -> None:
    assert Whole(1).convert("1000000000", None, None) == 10**9
    with pytest.raises(click.BadParameter, match="expected a whole number ≤ 1,000,000,000, got 1,000,000,001"):
        Whole(1).convert("1000000001", None, None)
    with pytest.raises(click.BadParameter, match="expected a whole number ≤ 9,223,372,036,854,775,807"):
        parse("ckpt.pt", "--data", "x", "--seed", str(2**63))


@pytest.mark.parametrize("threads", ["1000000", "1000000000000", "9" * 5000])
def test_more_threads_than_a_process_can_have_are_refused(threads: str) -> None:
    """Asked for, torch would end the process."""
    with pytest.raises(click.BadParameter, match="expected a whole number"):
        parse("ckpt.pt", "--data", "x", "--threads", threads)


@pytest.mark.parametrize("size", ["99999999999999GiB", "9" * 400 + "B", "8193TiB"])
def test_more_memory_than_there_is_is_refused(size: str) -> None:
    with pytest.raises(click.BadParameter, match="expected a size of at most 8,192TiB, got"):
        MemorySize().convert(size, None, None)


@pytest.mark.parametrize("value", ["0", "-1", "1", "nan", "inf", "x", [1]])
def test_tolerances_lie_strictly_between_their_bounds(value: Any) -> None:
    with pytest.raises(click.BadParameter, match="expected a number above 0 and below 1, got"):
        Positive(below=1.0).convert(value, None, None)


def parse(*arguments: str) -> SpectrumMeasuring:
    terminal = Terminal("lite-probe")
    with click.Context(cli, obj=terminal) as parent:
        given = command.make_context("spectrum", list(arguments), parent=parent).params
    return SpectrumMeasuring.asked_for(terminal, given)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with nothing in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_file_in_the_working_directory_supplies_defaults_and_flags_win(here: Path) -> None:
    (here / "lite-probe.toml").write_text('top = 4\nper-block = true\ndata = "val.bin"\ntol = 1e-4\nmemory = "2GiB"\n')
    asked = parse("elsewhere/ckpt.pt", "--top", "7")
    request = asked.request
    assert (request.top, request.per_block, request.tolerance, request.memory) == (7, True, 1e-4, 2**31)
    assert asked.asked.data_path == "val.bin"


def test_a_path_in_a_named_file_is_taken_from_its_folder(here: Path, tmp_path: Path) -> None:
    (tmp_path / "named.toml").write_text('data = "val.bin"\ntokenizer = "bytes"\nseq_len = 32\n')
    request = parse("ckpt.pt", "--config", str(tmp_path / "named.toml")).asked
    assert (request.data_path, request.tokenizer, request.seq_len) == (str(tmp_path / "val.bin"), "bytes", 32)


def test_config_names_another_file_and_that_of_the_working_directory_is_not_read(here: Path, tmp_path: Path) -> None:
    (here / "lite-probe.toml").write_text("top = 4\nprobes = 9\n")
    other = tmp_path / "other.toml"
    other.write_text("top = 5\n")
    request = parse("ckpt.pt", "--data", "x", "--config", str(other)).request
    assert (request.top, request.probes) == (5, 4)


@pytest.mark.parametrize("checkpoint", ["come", "come/ckpt.pt"])
@pytest.mark.usefixtures("here")
def test_what_lies_beside_a_checkpoint_supplies_nothing_and_that_is_said(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("come").mkdir()
    Path("come/lite-probe.toml").write_text("top = 4\nno toml at all")
    assert parse(checkpoint, "--data", "x").request.top == 10
    assert capsys.readouterr().err == (
        "note: come/lite-probe.toml, beside the checkpoint, is not read: pass --config come/lite-probe.toml if it is "
        "yours, or move it to the working directory\n"
    )
    # Who names a file knows which one is read.
    Path("mine.toml").write_text("top = 5\n")
    assert parse(checkpoint, "--data", "x", "--config", "mine.toml").request.top == 5
    assert parse(checkpoint, "--data", "x", "-q").request.top == 10
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("here")
def test_one_note_for_each_folder(capsys: pytest.CaptureFixture[str]) -> None:
    from lite_probe.commands import subspace

    Path("come").mkdir()
    Path("come/lite-probe.toml").touch()
    with click.Context(cli, obj=Terminal("lite-probe")) as parent:
        subspace.command.make_context("subspace", ["come/a.pt", "come/b.pt", "x" * 5000, "c.pt"], parent=parent)
    assert capsys.readouterr().err.count("is not read") == 1


def test_a_file_of_the_working_directory_is_read_when_the_checkpoint_lies_there_too(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "lite-probe.toml").write_text("top = 4\n")
    for checkpoint in ("ckpt.pt", ".", str(here / "ckpt.pt")):
        assert parse(checkpoint, "--data", "x").request.top == 4
    assert capsys.readouterr().err == ""


class RunsCode:
    """Pickles into a call of os.system."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("where", ["beside", "working directory", "--config"])
def test_a_configuration_never_makes_a_pickle_run(here: Path, where: str) -> None:
    come = here if where == "working directory" else here / "come"
    come.mkdir(exist_ok=True)
    torch.save({"model": RunsCode()}, come / "ckpt.pt")
    (come / "lite-probe.toml").write_text("trust-pickle = true\n")
    more = ["--config", str(come / "lite-probe.toml")] if where == "--config" else []
    found = CliRunner().invoke(cli, ["inspect", str(come / "ckpt.pt"), *more])
    assert found.exit_code == (3 if where == "beside" else 2)
    assert not (here / "ran").exists()


@pytest.mark.parametrize(
    "text", ["trust-pickle = true", 'task = "a.py:f"', 'out = "/"', "fresh = true", "dry_run = true", 'config = "x"']
)
def test_a_key_that_belongs_on_the_command_line_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lite-probe.toml"
    path.write_text(text)
    key = text.split()[0]
    with pytest.raises(UsageError, match=rf"expected {key} on the command line only, got it in .*toml") as error:
        read_config(path)
    assert error.value.hint == f"remove it there, and pass --{key.replace('_', '-')} where you mean it"


@pytest.mark.parametrize(
    "value",
    ["1979-05-27", "07:32:00", "[1, 2]", "{a = 1}", "[" * 50 + "1" + "]" * 50, '"a\\u0000b"', "0x" + "f" * 9000],
)
def test_a_value_of_a_kind_that_no_option_takes_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "lite-probe.toml"
    path.write_text(f"data = {value}")
    with pytest.raises(UsageError, match=r"expected a text, number, true or false for data in .*toml, got"):
        read_config(path)


def test_an_option_that_may_be_repeated_takes_a_list(tmp_path: Path) -> None:
    path = tmp_path / "lite-probe.toml"
    path.write_text('set = ["muon.momentum=0.9", "soap.eps=1e-9"]')
    assert read_config(path) == {"hyperparameters": ["muon.momentum=0.9", "soap.eps=1e-9"]}
    path.write_text('set = "muon.momentum=0.9"')
    assert read_config(path) == {"hyperparameters": ["muon.momentum=0.9"]}
    path.write_text('set = [["muon.momentum=0.9"]]')
    with pytest.raises(UsageError, match="expected a text, number, true or false for set"):
        read_config(path)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lite-probe.toml"
    path.write_text("batch-size = 4\nbatch_size = 5\n")
    with pytest.raises(UsageError, match=r"expected one value for batch_size in .*toml, got two"):
        read_config(path)


@pytest.mark.parametrize("text", ["top = " + "[" * 20_000, "top = " + "9" * 5000])
def test_toml_that_no_parser_takes_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.toml"
    path.write_text(text)
    with pytest.raises(InputError, match="expected TOML in"):
        read_config(path)


def test_a_configuration_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a configuration file at /dev/zero, which is no regular file"):
        read_config(Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"expected a configuration file at .*, which is no regular file"):
        read_config(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="expected a configuration file of at most 1,048,576 bytes"):
        read_config(tmp_path / "large")


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


def test_a_bad_value_in_the_file_is_refused_like_a_flag(here: Path) -> None:
    (here / "lite-probe.toml").write_text('top = "ten"\n')
    with pytest.raises(click.BadParameter, match="expected a whole number ≥ 1, got ten"):
        parse("ckpt.pt", "--data", "x")


def test_checkpoint_and_task_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="expected either CKPT or --task, got neither"):
        parse()
    with pytest.raises(UsageError, match="expected either CKPT or --task, got both"):
        parse("ckpt.pt", "--task", "a.py:f")
    with pytest.raises(UsageError, match="expected --data with a checkpoint, got none"):
        parse("ckpt.pt")
