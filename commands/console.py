"""What people see: everything here goes to stderr, and Rich lives in this file only.

stdout is for data: the paths written, or one JSON object. A pipe or a file gets no control characters, and
`NO_COLOR` is honoured, both by Rich; text from outside is never read as markup.
"""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from lite_probe.commands.wording import plain
from lite_probe.errors import OutputError

if TYPE_CHECKING:
    from lite_probe.reports.sections.section import Block

OnProgress = Callable[[int, int, str], None]

_LOG_EVERY_SECONDS = 30.0  # a pipe gets a line now and then in place of a bar


def print_stdout(text: str) -> None:
    """Write data to stdout; a reader that has left, as `head` does, is no error.

    Raises:
        OutputError: If stdout is closed, or takes no more.
    """
    # A name that is no text in this locale leaves as the bytes that it is on disk.
    content = os.fsencode(text + "\n")
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon(sys.stdout)
    except OSError as error:
        _abandon(sys.stdout)
        raise OutputError(
            f"expected to write to stdout, got: {error.strerror}",
            "what was measured is saved: give the same command again, with another stdout",
        ) from error


def _abandon(stream: TextIO | None) -> None:
    """Let what a stream still holds go nowhere: Python flushes it once more at exit."""
    with suppress(AttributeError, OSError, ValueError):  # none, or one that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)


class _Forgiving:
    """A stream whose reader may leave while a measurement runs: what it does not take is dropped.

    Args:
        stream: stderr.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or don't."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: closed
            _abandon(self._stream)
            return len(text)

    def flush(self) -> None:
        """Flush, or don't."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            _abandon(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def forgiving_stderr() -> Iterator[None]:
    """Keep a reader of stderr that leaves, or a disk under it that is full, from ending what is under way."""
    before = sys.stderr
    if before is not None:
        sys.stderr = cast(TextIO, _Forgiving(before))
    try:
        yield
    finally:
        sys.stderr = before


class Terminal:
    """The stderr side of one command.

    `command_line` is what was typed, for provenance. `verbosity` is −1 (errors only), 0 or 1 (details,
    tracebacks too).
    `resumable` says that the command, interrupted now, continues when it is given again.
    """

    def __init__(self, command_line: str) -> None:
        self.command_line = command_line
        self.verbosity = 0
        self.resumable = False
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)

    @property
    def quiet(self) -> bool:
        """Whether only errors are shown."""
        return self.verbosity < 0

    def line(self, text: str = "", style: str = "") -> None:
        """Write one line, broken between words at the terminal's width."""
        if not self.quiet:
            self._write(text, style)

    def sides(self, left: str, right: str) -> None:
        """Write two texts at the two ends of a line, or on two lines where they don't fit on one."""
        gap = self._console.width - len(left) - len(right)
        if gap >= 3:
            self.line(left + " " * gap + right)
        else:
            self.line(left)
            self.line(right)

    def figures(self, items: Sequence[str]) -> None:
        """Write short texts side by side, three spaces apart, broken between them only."""
        row = ""
        for item in items:
            if row and len(row) + 3 + len(item) > self._console.width:
                self.line(row)
                row = ""
            row = f"{row}   {item}" if row else item
        if row:
            self.line(row)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Write a table, its first column to the left and numbers to the right."""
        if not self.quiet:
            self._console.print(_table(header, rows))

    def show(self, blocks: "Iterable[Block]") -> None:
        """Write what a result shows; details where more is asked for."""
        from lite_probe.reports.sections.section import Figures, Grid, Line, Sample

        for block in blocks:
            if isinstance(block, Figures):
                self.figures(block.texts)
            elif isinstance(block, Grid):
                self.table(block.header, block.rows)
            elif isinstance(block, Line):
                if not block.is_detail or self.verbosity > 0:
                    self.line(block.text, style="dim" if block.is_dim else "")
            elif isinstance(block, Sample):
                if not self.quiet:
                    self.sample(block.text)
            else:
                self.notes(block.messages)

    def notes(self, messages: Sequence[str]) -> None:
        """Write what the reader of a result should know, each thing once."""
        for message in dict.fromkeys(messages):
            self.line(f"note: {message}", style="yellow")

    def error(self, message: str, hint: str = "", sample: str = "") -> None:
        """Write an error and what to do about it, quiet or not."""
        self._write(f"error: {message}", "red")
        if hint:
            self._write(f"hint: {hint}", "")
        if sample:
            self.sample(sample)

    def sample(self, lines: str) -> None:
        """Write lines to copy, quiet or not: none is broken, however narrow the terminal."""
        self._console.print(Text(plain(lines)), soft_wrap=True)

    def _write(self, text: str, style: str) -> None:
        # A pipe gets each text on one line, where it can be searched for; a terminal breaks lines at words.
        self._console.print(Text(plain(text), style=style), soft_wrap=not self._console.is_terminal)

    def traceback(self) -> None:
        """Write the traceback of the exception in flight."""
        self._console.print_exception()

    @contextmanager
    def waiting(self, words: str) -> Iterator[None]:
        """Show that something without steps is under way, such as imports of some seconds; nothing on a pipe."""
        if self.quiet or not self._console.is_terminal:
            yield
        else:
            with self._console.status(Text(plain(words), style="dim")):
                yield

    @contextmanager
    def progress(self) -> Iterator[OnProgress]:
        """Show the progress of one slow thing; yields the `on_progress(done, total, label)` to call."""
        if self.quiet:
            yield lambda done, total, label: None
        elif self._console.is_terminal:
            words = TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
            )
            with Progress(BarColumn(bar_width=24), words, console=self._console, transient=True) as progress:
                yield _follow(progress)
        else:
            yield self._log()

    @contextmanager
    def live(self, header: Sequence[str]) -> Iterator[Callable[[Sequence[Sequence[str]], str], None]]:
        """Show a table that changes, and a line of progress below it; yields the `show(rows, words)` to call.

        A pipe gets the words alone, now and then.
        """
        if self.quiet:
            yield lambda rows, words: None
        elif self._console.is_terminal:
            with Live(console=self._console, transient=True, refresh_per_second=4) as screen:

                def draw(rows: Sequence[Sequence[str]], words: str) -> None:
                    below = Text(plain(words), style="dim", no_wrap=True, overflow="ellipsis")
                    screen.update(Group(_table(header, rows), below))

                yield draw
        else:
            last = time.monotonic()

            def show(rows: Sequence[Sequence[str]], words: str) -> None:
                nonlocal last
                if time.monotonic() - last >= _LOG_EVERY_SECONDS:
                    last = time.monotonic()
                    self.line(words)

            yield show

    def _log(self) -> OnProgress:
        last = time.monotonic()

        def on_progress(done: int, total: int, label: str) -> None:
            nonlocal last
            if time.monotonic() - last >= _LOG_EVERY_SECONDS:
                last = time.monotonic()
                self.line(f"{label}: {done}/{total}")

        return on_progress


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(Text(header[0]), overflow="fold")
    for title in header[1:]:
        # A number broken in two reads as another number: it is one piece or visibly cut.
        table.add_column(Text(title), justify="right", no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    return table


def _follow(progress: Progress) -> OnProgress:
    """Return what moves a bar: `61/84 · residual 3e-3 · 0:48 left`.

    The time left comes from the pace since the first call, which may start half-way, and survives a change of the
    total; Rich's own estimate starts anew at each.
    """
    bar = progress.add_task("", total=None)
    first: tuple[float, int] | None = None

    def on_progress(done: int, total: int, label: str) -> None:
        nonlocal first
        now = time.monotonic()
        first = first or (now, done)
        words = f"{done}/{total} · {plain(label)}"
        if done > first[1]:
            seconds = (now - first[0]) / (done - first[1]) * max(0, total - done)
            words += f" · {int(seconds) // 60}:{int(seconds) % 60:02d} left"
        progress.update(bar, completed=done, total=total, description=words)

    return on_progress
