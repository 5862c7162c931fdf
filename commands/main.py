"""The `lite-probe` command: a group that loads its commands when asked, and the one place errors end.

Every way out has its exit code: 0 done, 1 a defect of lite-probe, 130 interrupted, else what the error's kind
says. A traceback is for `-v` only.
"""

import errno
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from lite_probe.commands.console import Terminal
from lite_probe.commands.options import COMMANDS, example
from lite_probe.errors import LiteProbeError, OutputError

INTERRUPTED = 130
DEFECT = 1


class ProbeGroup(click.Group):
    """A group whose commands are modules of `lite_probe.commands`, imported when needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of a user's way through them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"lite_probe.commands.{cmd_name}").command
        return command

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run a command and leave with its exit code."""
        arguments = sys.argv[1:] if args is None else list(args)
        terminal = Terminal(shlex.join(["lite-probe", *arguments]))
        # Loading bars and advice of the libraries underneath are not what was asked for.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                super().main(arguments, "lite-probe", standalone_mode=False, obj=terminal)
        except Exception as error:  # noqa: BLE001 - the one boundary: whatever comes leaves as an exit code
            sys.exit(_report(error, terminal))
        sys.exit(0)


def _report(error: Exception, terminal: Terminal) -> int:
    """Say what went wrong; return the exit code."""
    if isinstance(error, click.Abort):
        rest = "continues where it stopped" if terminal.resumable else "starts again"
        terminal.error(f"interrupted; the same command {rest}")
        return INTERRUPTED
    if terminal.verbosity > 0 and not isinstance(error, click.ClickException):
        terminal.traceback()
    if isinstance(error, LiteProbeError):
        terminal.error(error.message, error.hint)
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return error.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "lite-probe"
        terminal.error(error.format_message(), f"see {path} --help")
        return error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        terminal.error(f"expected space left for {error.filename or 'the result'}, got {error.strerror}")
        return OutputError.exit_code
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        terminal.error("memory ran out", "set --memory, or a smaller --batch-size or --seq-len")
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
        "replay runs/gpt/ckpt.pt --data val.bin --optimizers muon,muon-lite",
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="lite-probe", prog_name="lite-probe")
def cli() -> None:
    """Where in this loss landscape is progress left, and does my optimizer make it?

    Point it at a checkpoint; it measures the Hessian's spectrum and its sharp and flat directions, replays a training
    segment under several optimizers, and writes files and a report.
    """


def main() -> NoReturn:
    """Enter from the shell."""
    cli.main()
