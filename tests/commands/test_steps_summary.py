"""Tolerated steps as a terminal shows them: at 80 and 120 columns, nothing cut and nothing broken in two."""

from dataclasses import replace

import pytest
from rich.cells import cell_len

from lite_probe.reports.sections.section import Grid, Sample, summarize
from lite_probe.reports.sections.steps import brief
from lite_probe.reports.sections.steps_settings import doubtful, replay_command
from lite_probe.results.estimate import Estimate
from lite_probe.results.steps import Steps
from tests.commands.running import lines_on, on_screen
from tests.reports.steps_results import BLOCKS, Band, make_critical, make_optimizer, make_steps

ALL_BANDS = ("rank 1", "ranks 2–4", "ranks 5–8", "to 0.1%", "to 1%", "1–10%", "10–40%", "40–100%")


@pytest.fixture(scope="module")
def steps() -> Steps:
    return make_steps()


@pytest.fixture(scope="module")
def noisy() -> Steps:
    """Eight blocks with as many bands as there can be, and the scatter of a small measurement."""
    optima = (0.3, 1.7, 2.6, 5.0, 0.9, 14.0, 9.0, -1.0)
    blocks = {
        name: tuple(Band(band, 1e-2, optimum, noise=0.8) for band, optimum in zip(ALL_BANDS, optima, strict=True))
        for name in ("emb", "qk", "vo", "ffn", "router", "norm", "out", "other")
    }
    blocks["qk"] = (*blocks["qk"], Band("unordered", 0.0, None))
    return make_steps(optimizers={"muon": make_optimizer("muon", blocks=blocks)})


def grids(found: Steps) -> list[Grid]:
    return [block for block in summarize("steps", found) if isinstance(block, Grid)]


def shown(found: Steps, width: int, monkeypatch: pytest.MonkeyPatch, verbosity: int = 0) -> list[str]:
    terminal, screen = on_screen(monkeypatch, width, color=False)
    terminal.verbosity = verbosity
    terminal.show(summarize("steps", found))
    return lines_on(screen)


def test_the_whole_step_is_held_against_the_critical_one(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    line = shown(steps, 120, monkeypatch)[0]
    assert line == (
        "muon at 0.0078: the whole step is 0.400 ± 0.021 of the critical one on its own batch, 0.500 ± 0.033 held out"
    )


def test_where_there_is_no_critical_step_words_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    critical = {"own batch": make_critical(2.0, 2.2), "held out": make_critical(0.0, 0.0)}
    one = make_optimizer("muon", critical=critical, critical_only=True)
    lines = shown(make_steps(optimizers={"muon": one}), 120, monkeypatch)
    assert lines[0].startswith("muon at 0.0078: the whole step is 0.48 ± ")
    assert lines[0].endswith(" of the critical one on its own batch; held out every step raises the loss")
    lone = make_optimizer("muon", critical={"held out": make_critical(4.0)}, critical_only=True)
    lines = shown(make_steps(optimizers={"muon": lone}), 120, monkeypatch)
    assert lines[0] == "muon at 0.0078: the whole step is 0.25 of the critical one held out"


def test_an_edge_ratio_that_reaches_far_has_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    far = make_optimizer("muon", critical={"held out": make_critical(0.4, 20.0, 30.0, 40.0)}, critical_only=True)
    lines = shown(make_steps(optimizers={"muon": far}), 120, monkeypatch)
    assert lines[0] == "muon at 0.0078: the whole step is 0.10 (95%: 0.0033 to 3.1) of the critical one held out"


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("which", ["steps", "noisy"])
def test_tables_fit_and_are_not_cut(
    which: str, width: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = request.getfixturevalue(which)
    lines = shown(found, width, monkeypatch)
    assert "…" not in "\n".join(lines)
    command = replay_command(found)
    assert all(cell_len(line) <= width for line in lines if line != command)
    for grid in grids(found):
        for row in (grid.header, *grid.rows):
            (line,) = [line for line in lines if line.split() == " ".join(row).split() and line.split()][:1]
            assert line.startswith(row[0])


def test_bands_are_columns_and_blocks_rows(noisy: Steps) -> None:
    *bands, blocks = grids(noisy)
    heads = [title for grid in bands for title in grid.header[1:]]
    assert heads == ["rank 1", "2–4", "5–8", "to 0.1%", "to 1%", "1–10%", "10–40%", "40–100%"]
    assert [grid.header[0] for grid in (*bands, blocks)] == ["muon"] * (len(bands) + 1)
    assert [row[0] for row in blocks.rows] == list(noisy.optimizers["muon"].blocks)


def test_a_dash_is_no_edge_and_a_gap_no_band(steps: Steps) -> None:
    first, second = grids(steps)[:2]
    cells = {
        (row[0], title): cell
        for grid in (first, second)
        for row in grid.rows
        for title, cell in zip(grid.header, row, strict=True)
    }
    assert cells["qk", "40–100%"] == "–"
    assert cells["emb", "rank 1"] == ""
    assert cells["ffn", "rank 1"] == "0.82±0.03"
    assert cells["out", "40–100%"].startswith("−1.9")


def test_blocks_have_ratio_share_signal_joint_and_line_check(steps: Steps) -> None:
    table = next(grid for grid in grids(steps) if "joint" in grid.header)
    rows = {row[0]: row[1:] for row in table.rows}
    assert table.header == ["muon", "χ̂ (95%)", "r̂_s", "signal", "joint", "line"]
    assert rows["ffn"] == ["7.9 (7.4 to 8.5)", "10% (10 to 40)", "31% (1)", "2.0/4.0", "=/<"]
    assert rows["qk"] == ["≥ 41", "–", "8% (1)", "4.0/0.50", "=/–"]
    assert rows["emb"][-2:] == ["0.50/2.0", "=/>"]


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.41, 0.38, 0.44, "0.41±0.03"),
        (2.65, 1.73, 5.29, "3±2"),
        (2.65, 1.73, 5.79, "≥1.7"),
        (14.4, 10.2, 24.8, "14±7"),
        (16.7, 5.0, 29.0, "17±12"),
        (9.47, 4.99, 109.0, "≥5.0"),
        (-9.47, -109.0, -4.99, "≤−5.0"),
        (-2.0, -2.1, -1.9, "−2.0±0.1"),
        (0.1, -0.4, 0.6, "0.1±0.5"),
    ],
)
def test_an_optimum_is_brief_and_never_says_more_than_its_interval(
    value: float, low: float, high: float, text: str
) -> None:
    assert brief(Estimate(value=value, stderr=0.1, low=low, high=high, num_samples=16)) == text
    assert brief(None) == "–"


def test_the_command_is_one_line_to_copy(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    (sample,) = [block for block in summarize("steps", steps) if isinstance(block, Sample)]
    assert sample.text == replay_command(steps)
    lines = shown(steps, 80, monkeypatch)
    at = lines.index(sample.text)
    assert lines[at - 1] == "To replay LITE at the ratios that are told, at 16,384 tokens a batch:"
    assert " ".join(" ".join(lines[at + 1 :]).split()) == doubtful(steps)
    assert sample.text not in shown(steps, 80, monkeypatch, verbosity=-1)


def test_what_stands_in_the_tables_is_explained_below(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    said = " ".join(" ".join(shown(steps, 80, monkeypatch)).split())
    for words in (
        "no edge found",
        "half of the 95% interval",
        "the band raises the loss",
        "= the quadratic holds up to",
        "≥: its lower end, where flat ones have no edge",
        "lower the loss together, sharp/non-sharp",
    ):
        assert words in said
    only = make_steps(optimizers={"muon": make_optimizer("muon", critical_only=True)})
    brief_words = " ".join(shown(only, 80, monkeypatch))
    assert "±: half of the 95% interval over training batches" in brief_words
    assert "no edge found" not in brief_words


def test_details_come_with_v(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    brief_lines, long_lines = (" ".join(shown(steps, 120, monkeypatch, verbosity)) for verbosity in (0, 1))
    assert "Hessian products over all evaluation batches" not in brief_lines
    assert "Hessian products over all evaluation batches" in long_lines


def test_names_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "muon\x1b[31m"
    one = replace(make_optimizer("muon", blocks={"ffn": BLOCKS["ffn"]}))
    assert "\x1b[31m" not in "\n".join(shown(make_steps(optimizers={name: one}), 80, monkeypatch))


def test_an_optimizer_that_orders_no_directions_has_one_column() -> None:
    own = {"ffn": (Band("unordered", 1e-2, 5.0),), "out": (Band("unordered", 1e-2, None),)}
    grid = grids(make_steps(optimizers={"sgd": make_optimizer("sgd", blocks=own)}))[0]
    assert grid.header == ("sgd", "unordered")
    assert [row[0] for row in grid.rows] == ["ffn", "out"]
    assert grid.rows[0][1].startswith(("4.", "5."))
    assert grid.rows[1][1] == "–"
