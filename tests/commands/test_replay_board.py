"""The live table: what it says of every event, and that it fits a terminal."""

from collections.abc import Sequence

import pytest
from rich.cells import cell_len

from lite_probe.commands import console
from lite_probe.commands.console import Terminal
from lite_probe.commands.replay_board import HEADER, ReplayBoard
from lite_probe.measurements.replay_session import ReplayStep
from tests.commands.running import lines_on, on_screen

NAMES = ("muon", "muon-lite", "soap", "soap-lite")


def event(phase: str, optimizer: str, step: int = 0, *, seed: int = 0, **changes: object) -> ReplayStep:
    values: dict[str, object] = {
        "ablation": "none",
        "lr": None if phase == "warm" else 0.0078125,
        "steps": 50,
        "loss": 1.9 if phase == "replay" else None,
        "flat_share": 0.964 if phase == "replay" else None,
    }
    return ReplayStep(phase=phase, optimizer=optimizer, step=step, seed=seed, **(values | changes))  # type: ignore[arg-type]


class Clock:
    """Time that stands still until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def board(
    *events: ReplayStep, steps: int = 50, seeds: int = 3, ablations: bool = False, clock: Clock | None = None
) -> ReplayBoard:
    made = ReplayBoard(NAMES, steps=steps, seeds=seeds, ablations=ablations, start_loss=2.0, clock=clock or Clock())
    for one in events:
        made.on_step(one)
    return made


def row(made: ReplayBoard, optimizer: str) -> list[str]:
    return next(cells for cells in made.rows() if cells[0] == optimizer)


@pytest.mark.parametrize(("share", "shown"), [(0.964, "96.4%"), (0.0, "0%"), (3.35, "–"), (-0.2, "–"), (None, "–")])
def test_what_is_no_share_is_not_shown_as_one(share: float | None, shown: str) -> None:
    assert row(board(event("replay", "muon", 1, flat_share=share)), "muon")[6] == shown


def phases(made: ReplayBoard) -> list[str]:
    return [cells[1] for cells in made.rows()]


def test_all_wait_at_first() -> None:
    assert board().rows() == [[name, "waiting", "–", "–", "–", "–", "–", "–"] for name in NAMES]
    assert len(HEADER) == 8


def test_a_sweep_shows_the_rate_it_tries_and_no_loss() -> None:
    made = board(event("warm", "muon"), event("sweep", "muon", 12))
    assert row(made, "muon") == ["muon", "sweeping", "0.0078", "12/50", "–", "–", "–", "–"]


def test_a_replay_shows_step_run_loss_change_and_flat_share() -> None:
    made = board(event("warm", "muon"), event("replay", "muon", 31, seed=1))
    assert row(made, "muon") == ["muon", "replaying", "0.0078", "31/50 · 2/3", "1.900", "−0.10", "96.4%", "–"]


def test_phases_follow_one_another() -> None:
    made = board(event("warm", "muon"))
    assert phases(made) == ["warming", "waiting", "waiting", "waiting"]
    made.on_step(event("replay", "muon", 50, seed=2))
    made.on_step(event("warm", "muon-lite"))
    assert phases(made) == ["done", "warming", "waiting", "waiting"]


def test_what_an_earlier_process_finished_is_done() -> None:
    made = board(event("replay", "soap", 7, seed=2))
    assert phases(made) == ["done", "done", "replaying", "waiting"]
    # The runs of seeds 0 and 1 were made before: this is the third.
    assert row(made, "soap")[3] == "7/50 · 3/3"


@pytest.mark.parametrize(
    "events",
    [
        (event("replay", "muon", 20, seed=0), event("replay", "muon", 50, seed=1), event("replay", "muon", 50, seed=2)),
        (event("replay", "muon", 50, seed=0), event("replay", "muon", 50, seed=1), event("replay", "muon", 20, seed=2)),
        (event("warm", "muon"),),  # no run completed a step
        (event("warm", "muon"), event("sweep", "muon", 50)),
    ],
    ids=["the first run", "the last", "all, at once", "all, at once, after a sweep"],
)
def test_a_run_that_ended_early_has_diverged(events: tuple[ReplayStep, ...]) -> None:
    made = board(*events)
    assert phases(made)[0] != "diverged"  # a run may still be going on
    made.on_step(event("warm", "muon-lite"))
    assert phases(made)[:2] == ["diverged", "warming"]
    made.on_step(event("warm", "soap"))
    assert phases(made)[0] == "diverged"


def test_ablations_are_runs_of_their_own() -> None:
    made = board(event("replay", "muon", 5, seed=1, ablation="bulk", flat_share=None), ablations=True)
    # Three runs of seed 0, two before this of seed 1.
    assert row(made, "muon")[3] == "5/50 · 6/9"
    assert row(made, "muon")[6] == "–"


def test_the_time_left_comes_from_the_pace_since_the_first_step_seen() -> None:
    clock = Clock()
    made = board(event("replay", "muon", 21, seed=1), clock=clock)
    assert row(made, "muon")[-1] == "–"
    clock.now += 60.0
    made.on_step(event("replay", "muon", 41, seed=1))
    # 20 steps took 60 s; of 150, 91 are behind: 59 steps take 177 s.
    assert row(made, "muon")[-1] == "2:57"


def draw(terminal: Terminal, made: ReplayBoard) -> None:
    with terminal.live(HEADER) as show:
        show(made.rows(), made.words)


def crowded() -> ReplayBoard:
    """A long replay with wide cells: small rates, tiny changes, a share far from 100%, an hour to go."""
    clock = Clock()
    made = board(steps=200, seeds=10, ablations=True, clock=clock)
    for index, name in enumerate(NAMES):
        changes = {"lr": 9.765625e-4, "loss": 10.55 - 0.00123 * index, "flat_share": -12.3}
        made.on_step(event("replay", name, 198, seed=9, ablation="bulk", **changes))
        clock.now += 1799.0
        made.on_step(event("replay", name, 199, seed=9, ablation="bulk", **changes))
    made.on_progress(1_234, 12_000, "soap-lite, dominant part only, seed 9")
    return made


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_table_fits(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    terminal, screen = on_screen(monkeypatch, width)
    draw(terminal, crowded())
    lines = [line for line in lines_on(screen) if line.strip()]
    assert max(cell_len(line) for line in lines) <= width
    # A row per optimizer and the line of progress, none of them broken or cut.
    assert [line.split()[0] for line in lines] == ["optimizer", *NAMES, "1,234/12,000"]
    assert "…" not in screen.getvalue()
    assert "199/200 · 30/30" in lines[4]
    assert lines[5] == "1,234/12,000 gradients · soap-lite, dominant part only, seed 9"


def test_the_live_table_is_taken_away_again(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, screen = on_screen(monkeypatch, 80)

    def interrupted() -> None:
        with terminal.live(HEADER) as show:
            show(crowded().rows(), "words")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert screen.getvalue().endswith("\x1b[2K")  # the last of its lines, erased
    assert "\x1b[?25h" in screen.getvalue()  # and the cursor is back


def test_a_narrow_terminal_is_not_overrun(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, screen = on_screen(monkeypatch, 40)
    draw(terminal, crowded())
    lines = [line for line in lines_on(screen) if line.strip()]
    assert max(cell_len(line) for line in lines) <= 40
    assert lines[-1] == "1,234/12,000 gradients · soap-lite, dom…"


def test_a_pipe_gets_the_words_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1.0, 31.0, 31.0, 40.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    rows: Sequence[Sequence[str]] = board().rows()
    with Terminal("lite-probe").live(HEADER) as show:
        for done in (1, 2, 3):
            show(rows, f"{done}/84 gradients · a \x1b[31m name")
    assert capsys.readouterr().err == "2/84 gradients · a \\x1b[31m name\n"


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal("lite-probe")
    terminal.verbosity = -1
    draw(terminal, crowded())
    assert capsys.readouterr().err == ""
