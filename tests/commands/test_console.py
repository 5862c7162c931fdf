"""What reaches a pipe is plain; what reaches a terminal fits it."""

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from lite_probe.commands import console
from lite_probe.commands.console import Terminal


def on_screen(monkeypatch: pytest.MonkeyPatch, width: int, *, color: bool = True) -> tuple[Terminal, io.StringIO]:
    """A terminal of this width whose screen is a string."""
    screen = io.StringIO()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not color:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal("lite-probe spectrum")
    terminal._console = Console(file=screen, width=width, force_terminal=True, highlight=False, markup=False)
    return terminal, screen


def say_everything(terminal: Terminal) -> None:
    terminal.sides(
        "nanoGPT · 6 layers · 10.7 M parameters · step 5,000", "16 × 256 tokens of val.bin, float32, 2 threads"
    )
    terminal.line("plan: 84 Hessian products", style="bold")
    terminal.figures([f"λ{index} 38.2{index} ± 0.01" for index in range(9)])
    terminal.table(["block", "params", "λ₁", "trace"], [["[red]qk[/red]", "1,234", "−0.83", "1912 ± 41"]] * 3)
    terminal.notes(["some parameters are not used: " + ", ".join(f"layer.{index}" for index in range(20))])
    terminal.error("expected 1, got 2", "try 1")


def test_a_pipe_gets_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal("lite-probe spectrum")
    say_everything(terminal)
    with terminal.progress() as on_progress:
        on_progress(1, 10, "products")
    terminal.line("a file named \x1b[31m.bin")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(char.isprintable() or char == "\n" for char in captured.err)
    assert "note: some parameters are not used: layer.0, layer.1" in captured.err
    # Text from outside is no markup.
    assert "[red]qk[/red]" in captured.err


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    terminal, screen = on_screen(monkeypatch, width)
    terminal._console.no_color = True
    say_everything(terminal)
    lines = screen.getvalue().splitlines()
    assert max(cell_len(_without_styles(line)) for line in lines) <= width
    header = [line for line in lines if "nanoGPT" in line]
    assert ("val.bin" in header[0]) == (width == 120)


def _without_styles(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    colors = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    terminal, screen = on_screen(monkeypatch, 80)
    say_everything(terminal)
    assert colors.search(screen.getvalue())
    terminal, screen = on_screen(monkeypatch, 80, color=False)
    say_everything(terminal)
    assert not colors.search(screen.getvalue())


def test_a_bar_shows_count_label_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, screen = on_screen(monkeypatch, 80)
    with terminal.progress() as on_progress:
        start = console.time.monotonic()
        monkeypatch.setattr(console.time, "monotonic", lambda: start)
        on_progress(41, 84, "residual 9e-1")
        monkeypatch.setattr(console.time, "monotonic", lambda: start + 60.0)
        on_progress(61, 84, "residual 3e-3")
    # 20 products took 60 s; 23 are left, and take 69 s.
    assert "61/84 · residual 3e-3 · 1:09 left" in screen.getvalue()


def test_a_long_label_does_not_break_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, screen = on_screen(monkeypatch, 80, color=False)
    with terminal.progress() as on_progress:
        on_progress(1, 2, "x" * 200)
    assert max(cell_len(_without_styles(line)) for line in re.split(r"[\r\n]", screen.getvalue())) <= 80


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 1.0, 31.0, 31.0, 40.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with Terminal("lite-probe").progress() as on_progress:
        for done in (1, 2, 3):
            on_progress(done, 84, "products")
    assert capsys.readouterr().err == "products: 2/84\n"


def test_quiet_says_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal("lite-probe")
    terminal.verbosity = -1
    say_everything(terminal)
    with terminal.progress() as on_progress:
        on_progress(1, 2, "x")
    assert capsys.readouterr().err == "error: expected 1, got 2\nhint: try 1\n"


def test_data_goes_to_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    console.emit('{"a": 1}')
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ('{"a": 1}\n', "")
