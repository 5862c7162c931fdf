"""Every way out of a command has its exit code and one clear message."""

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

from lite_probe import errors
from lite_probe.commands import main, options
from lite_probe.commands.console import Terminal
from lite_probe.commands.options import console_options

pytestmark = pytest.mark.slow


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """Stand a command in for `report` that raises what the list holds."""
    raised: list[BaseException] = []

    @click.command("report")
    @console_options
    @click.pass_obj
    def command(terminal: Terminal) -> None:
        raise raised[0]

    module = ModuleType("lite_probe.commands.report")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lite_probe.commands.report", module)
    return raised


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errors.UsageError("expected 1, got 2", "try 1"), 2, "error: expected 1, got 2\nhint: try 1\n"),
        (errors.InputError("expected a, got b"), 3, "error: expected a, got b\n"),
        (errors.UnsafePickleError("expected a, got os.system"), 3, "got os.system"),
        (errors.NumericsError("expected finite, got NaN"), 4, "got NaN"),
        (errors.ReplayError("expected a, got b"), 5, "got b"),
        (errors.OutputError("expected a folder, got a file"), 6, "got a file"),
        (OSError(errno.ENOSPC, "No space left on device", "x.part"), 6, "expected space left for x.part"),
        (OSError(errno.EROFS, "Read-only file system", "x.part"), 6, "expected space left for x.part"),
        (
            PermissionError(errno.EACCES, "Permission denied", "locked/x"),
            3,
            "expected to reach locked/x, got: Permission",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", b"\xff"),
            3,
            "expected to reach \\udcff, got: File name too",
        ),
        (MemoryError(), 1, "memory ran out\nhint: a measurement takes less with --memory"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"),
            1,
            "memory ran out: CUDA out of memory. Tried to allocate 2.00 GiB.\nhint: a measurement takes less",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
            1,
            "memory ran out: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), 1, "memory ran out: CUDA"),
        (
            RuntimeError("boom"),
            1,
            "lite-probe met something it does not know: RuntimeError: boom\nhint: this is a defect",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted; the same command starts again\n"),
    ],
)
def test_each_error_has_its_exit_code_and_no_traceback(
    failing: list[BaseException], error: BaseException, code: int, said: str
) -> None:
    failing.append(error)
    found = CliRunner().invoke(main.cli, ["report"])
    assert found.exit_code == code
    assert said in found.stderr
    assert "Traceback" not in found.stderr
    assert found.stdout == ""


def test_verbose_shows_the_traceback_and_quiet_still_shows_the_error(failing: list[BaseException]) -> None:
    failing.append(RuntimeError("boom"))
    assert "Traceback" in CliRunner().invoke(main.cli, ["report", "-v"]).stderr
    assert "RuntimeError: boom" in CliRunner().invoke(main.cli, ["report", "-q"]).stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["spectrum", "x", "--top", "0"], "expected a whole number ≥ 1, got 0"),
        (["spectrum", "x", "--device", "tpu"], "expected one of auto, cpu, cuda, got tpu"),
        (["spectrum", "x", "--memory", "8"], "expected a size with its unit"),
        (["spectrum", "--nope"], "No such option"),
        (["inspec"], "No such command 'inspec'"),
        (["report"], "Missing argument"),
    ],
)
def test_usage_errors_say_where_help_is(arguments: list[str], said: str) -> None:
    found = CliRunner().invoke(main.cli, arguments)
    assert found.exit_code == 2
    assert said in found.stderr
    assert "--help" in found.stderr


def test_nothing_asked_shows_help() -> None:
    found = CliRunner().invoke(main.cli, [])
    assert found.exit_code == 2
    for name in options.COMMANDS:
        assert f"  {name} " in found.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    script = (
        "from lite_probe.commands.console import print_stdout\nfor _ in range(20000):\n    print_stdout('x' * 100)\n"
    )
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        os.read(reader, 10)
        os.close(reader)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"")


# A command that says when it is at work, and then sleeps.
SLEEPER = """
import signal, sys, time, types, click
if {default}:
    # A test run in the background inherits a Ctrl-C that is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
from lite_probe.commands.main import cli
@click.command('report')
@click.pass_obj
def command(terminal):
    terminal.resumable = True
    sys.stdout.write('ready\\n'); sys.stdout.flush()
    time.sleep({seconds})
module = types.ModuleType('lite_probe.commands.report')
module.command = command
sys.modules['lite_probe.commands.report'] = module
cli.main(['report'], ends_process=True)
"""


def sleeping(*, default: bool = True, seconds: float = 60.0, **streams: Any) -> "subprocess.Popen[str]":
    script = SLEEPER.format(default=default, seconds=seconds)
    process = subprocess.Popen(
        [sys.executable, "-c", script], **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams), text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    return process


@pytest.mark.parametrize(
    ("number", "code", "how"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGHUP, 129, "ended by SIGHUP"),
    ],
)
def test_a_signal_in_a_true_process(number: signal.Signals, code: int, how: str) -> None:
    with sleeping() as process:
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert said.strip() == f"error: {how}; the same command continues from what it saved last"


def test_a_signal_sent_twice_counts_once() -> None:
    """`timeout` sends its own to the process and to its group; the second may come while Python shuts down."""
    for seconds in (0.0, 0.02, 0.1, 0.2, 0.4):
        with sleeping() as process:
            process.send_signal(signal.SIGTERM)
            time.sleep(seconds)
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=30)
        assert (process.returncode, said.count("ended by SIGTERM")) == (143, 1), seconds


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with sleeping(default=False, seconds=1.0, preexec_fn=ignore) as process:
        process.send_signal(signal.SIGHUP)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")


def test_signals_mean_after_a_command_what_they_meant_before() -> None:
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)]
    stderr = sys.stderr
    CliRunner().invoke(main.cli, ["report", "nothing"])
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)] == before
    assert sys.stderr is stderr


def test_the_reader_of_stderr_may_leave_before_an_interruption() -> None:
    reader, writer = os.pipe()
    with sleeping(stderr=writer) as process:
        os.close(writer)
        os.close(reader)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


# Says much on stderr, then something on stdout.
TALKER = (
    "import sys\n"
    "import click, types\n"
    "from lite_probe.commands.console import print_stdout\n"
    "@click.command('report')\n"
    "@click.pass_obj\n"
    "def command(terminal):\n"
    "    for index in range(20000):\n"
    "        terminal.line('x' * 50)\n"
    "    open('done', 'w').write('done')\n"
    "    print_stdout('path')\n"
    "module = types.ModuleType('lite_probe.commands.report')\n"
    "module.command = command\n"
    "sys.modules['lite_probe.commands.report'] = module\n"
    "sys.argv[1:] = ['report']\n"
    "from lite_probe.commands.main import main\n"
    "main()\n"
)


@pytest.mark.parametrize(
    ("redirection", "code", "out"),
    [
        ("2>&1 | head -1", 0, "x" * 50 + "\n"),
        ("2>&1 >out | head -1", 0, "x" * 50 + "\n"),
        ("2>/dev/full", 0, "path\n"),
        ("2>&-", 0, "path\n"),
        (">/dev/full 2>err", 6, ""),
        (">&- 2>err", 6, ""),
        (">&- 2>&-", 6, ""),
        ("<&- >out 2>&-", 0, ""),
    ],
)
def test_streams_that_take_nothing(tmp_path: Path, redirection: str, code: int, out: str) -> None:
    (tmp_path / "talk.py").write_text(TALKER)
    line = f"set -o pipefail; {shlex.quote(sys.executable)} talk.py {redirection}"
    found = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout, found.stderr) == (code, out, "")
    # Whoever listens, the work is done, and nothing that was said went into it.
    assert (tmp_path / "done").read_text() == "done"
    if "2>err" in redirection:
        last = (tmp_path / "err").read_text().splitlines()[-2:]
        reason = "No space left on device" if "full" in redirection else "Bad file descriptor"
        assert last[0] == f"error: expected to write to stdout, got: {reason}"
        assert last[1].startswith("hint: what was measured is saved")
