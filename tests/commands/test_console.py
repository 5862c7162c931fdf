"""What reaches a pipe is plain; what reaches a terminal fits it."""

import re

import pytest
from rich.cells import cell_len

from lite_probe.commands import console
from lite_probe.commands.console import Terminal
from tests.commands.running import lines_on, on_screen


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
    lines = lines_on(screen)
    assert max(cell_len(line) for line in lines) <= width
    header = [line for line in lines if "nanoGPT" in line]
    assert ("val.bin" in header[0]) == (width == 120)


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
    assert max(cell_len(line) for line in lines_on(screen)) <= 80


def test_a_number_that_does_not_fit_is_visibly_cut_and_names_go_on_below(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["a checkpoint with a long name", "−0.7561±0.0064", "(−2.74±0.61)e-2"]]
    terminal, screen = on_screen(monkeypatch, 45)
    terminal.table(["optimizer", "loss change", "minus base"], rows)
    header, first, *more = (line for line in lines_on(screen) if line)
    assert first.endswith("−0.7561±0.0064  (−2.74±0.61)e-2")
    assert more  # the rest of the name
    assert max(cell_len(line) for line in (header, first, *more)) <= 45
    terminal, screen = on_screen(monkeypatch, 20)
    terminal.table(["optimizer", "loss change", "minus base"], rows)
    # Half a number on a line of its own reads as a number.
    assert "…" in screen.getvalue()
    assert "0064" not in screen.getvalue()


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
    console.print_stdout('{"a": 1}')
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ('{"a": 1}\n', "")


def test_a_note_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal("lite-probe").notes(["one", "two", "one"])
    assert capsys.readouterr().err == "note: one\nnote: two\n"


def test_what_has_no_steps_shows_that_it_is_under_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal, screen = on_screen(monkeypatch, 80)
    with terminal.waiting("opening a\x1b[31m.pt"):
        terminal._console.print("meanwhile")
    shown = lines_on(screen)
    assert any("opening a\\x1b[31m.pt" in line for line in shown)
    assert "opening" not in shown[-1]  # nothing stays
    with pytest.raises(ZeroDivisionError), terminal.waiting("in vain"):
        raise ZeroDivisionError
    with Terminal("lite-probe spectrum").waiting("on a pipe"):
        pass
    terminal.verbosity = -1
    before = screen.getvalue()
    with terminal.waiting("quiet"):
        pass
    assert screen.getvalue() == before
    assert capsys.readouterr().err == ""
