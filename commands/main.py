"""The `lite-probe` command: a group that loads its commands when asked, and the one place errors end.

Every way out has its exit code: 0 done, 1 a defect of lite-probe, 128 + N ended by signal N (130 for Ctrl-C), else
what the error's kind says. A traceback is for `-v` only.
"""

import errno
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from lite_probe.commands.console import Terminal, forgiving_stderr
from lite_probe.commands.options import command_names, example, find_command
from lite_probe.commands.wording import plain
from lite_probe.errors import InputError, LiteProbeError, OutputError
from lite_probe.measurements.requests.tune import rank

DEFECT = 1
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_UNREACHABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP)


class Terminated(BaseException):
    """A signal that asks the process to end; what holds something lets go of it on the way out.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class ProbeGroup(click.Group):
    """A group whose commands are modules of `lite_probe.commands`, imported when needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of a user's way through them."""
        return command_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        return find_command(cmd_name)

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *,
        ends_process: bool = False,
        **extra: Any,
    ) -> NoReturn:
        """Run a command and leave with its exit code.

        Where the process ends with it, a signal that ended it counts once to the very end.
        """
        arguments = sys.argv[1:] if args is None else list(args)
        terminal = Terminal(plain(shlex.join(["lite-probe", *arguments])))
        # Loading bars and advice of the libraries underneath are not what was asked for.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        with forgiving_stderr(), _signals_raise(ends_process):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    super().main(arguments, "lite-probe", standalone_mode=False, obj=terminal)
                code = 0
            except (Exception, Terminated) as error:  # noqa: BLE001 - the one boundary: whatever comes leaves as a code
                code = _report(error, terminal)
        sys.exit(code)


@contextmanager
def _signals_raise(ends_process: bool) -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `Terminated`, once: `timeout` and a closing terminal send theirs twice.

    A signal that is ignored, as `nohup` does, stays ignored. Where the process ends with what follows, the second one
    may come while Python shuts down: it is ignored then.
    """
    raised: list[int] = []

    def end(number: int, frame: object) -> None:
        if not raised:
            raised.append(number)
            raise Terminated(number)

    is_main = threading.current_thread() is threading.main_thread()
    taken = [one for one in (signal.SIGTERM, signal.SIGHUP) if is_main and signal.getsignal(one) is signal.SIG_DFL]
    for one in taken:
        signal.signal(one, end)
    try:
        yield
    finally:
        for one in taken:
            signal.signal(one, signal.SIG_IGN if ends_process and raised else signal.SIG_DFL)


def _report(error: Exception | Terminated, terminal: Terminal) -> int:
    """Say what went wrong; return the exit code."""
    if isinstance(error, click.Abort | Terminated):
        number = error.number if isinstance(error, Terminated) else signal.SIGINT
        how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        rest = "continues from what it saved last" if terminal.resumable else "starts again"
        if rank() == 0:  # one word for all ranks
            terminal.error(f"{how}; the same command {rest}")
        return 128 + number
    if terminal.verbosity > 0 and not isinstance(error, click.ClickException):
        terminal.traceback()
    if isinstance(error, LiteProbeError):
        terminal.error(error.message, error.hint, error.sample)
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return error.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "lite-probe"
        terminal.error(error.format_message(), f"see {path} --help")
        return error.exit_code
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        terminal.error(f"expected space left for {error.filename or 'the result'}, got {error.strerror}")
        return OutputError.exit_code
    if isinstance(error, OSError) and error.errno in _UNREACHABLE and error.filename is not None:
        terminal.error(
            f"expected to reach {os.fsdecode(error.filename)}, got: {error.strerror}", "check path and permissions"
        )
        return InputError.exit_code
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        terminal.error(
            "memory ran out", "a measurement takes less with --memory, or with a smaller --batch-size or --seq-len"
        )
        return DEFECT
    terminal.error(
        f"lite-probe met something it does not know: {type(error).__name__}: {error}",
        "this is a defect; run the command with -v and report the traceback with `lite-probe --version`",
    )
    return DEFECT


@click.group(
    cls=ProbeGroup,
    epilog=example(
        "demo",
        "inspect runs/gpt/ckpt.pt",
        "spectrum runs/gpt/ckpt.pt --data val.bin --per-block",
        "subspace runs/gpt/ckpt.pt --data val.bin",
        "steps runs/gpt/ckpt.pt --data val.bin --optimizers muon,soap",
        "replay runs/gpt/ckpt.pt --data val.bin --optimizers muon,muon-lite",
        "compare runs/early.pt runs/late.pt --data val.bin --optimizers muon,muon-lite",
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="lite-probe", prog_name="lite-probe")
def cli() -> None:
    """Where in this loss landscape is progress left, and does my optimizer make it?

    Point it at a checkpoint; it measures the Hessian's spectrum, its sharp and flat directions and how long a step each
    tolerates, replays a training segment under several optimizers, and writes files and a report.
    """


def main() -> NoReturn:
    """Enter from the shell."""
    # A standard stream that is closed would lend its number to the next file opened, and that its content.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    cli.main(ends_process=True)
