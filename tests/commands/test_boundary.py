"""Every way out of a command has its exit code and one clear message."""

import errno
import os
import signal
import subprocess
import sys
import time
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

from lite_probe import errors
from lite_probe.commands import main, options
from lite_probe.commands.console import Terminal
from lite_probe.commands.options import console_options


class OutOfMemoryError(RuntimeError):
    """Named like torch's own."""


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
        (MemoryError(), 1, "memory ran out\nhint: set --memory"),
        (OutOfMemoryError("CUDA out of memory"), 1, "memory ran out"),
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
    script = "import sys\nfrom lite_probe.commands.console import emit\nfor _ in range(20000):\n    emit('x' * 100)\n"
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        os.read(reader, 10)
        os.close(reader)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"")


def test_ctrl_c_in_a_true_process() -> None:
    script = (
        "import signal, sys, time, types, click\n"
        # A test run in the background inherits a Ctrl-C that is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from lite_probe.commands.main import cli\n"
        "@click.command('report')\n"
        "@click.pass_obj\n"
        "def command(terminal):\n"
        "    terminal.resumable = True\n"
        "    sys.stdout.write('ready\\n'); sys.stdout.flush()\n"
        "    time.sleep(60)\n"
        "module = types.ModuleType('lite_probe.commands.report')\n"
        "module.command = command\n"
        "sys.modules['lite_probe.commands.report'] = module\n"
        "cli.main(['report'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command continues" in said
    assert "Traceback" not in said
