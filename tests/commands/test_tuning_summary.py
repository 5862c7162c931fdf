"""A tuning as a terminal shows it: at 80 and 120 columns, nothing cut and nothing broken in two."""

import pytest
from rich.cells import cell_len

from lite_probe.reports.sections.section import Grid, summarize
from lite_probe.reports.sections.tuning_settings import config_lines, replay_command
from lite_probe.results.tuning import Tuning
from tests.commands.running import lines_on, on_screen
from tests.reports.tuning_results import make_test, make_tuning


@pytest.fixture(scope="module")
def tuning() -> Tuning:
    return make_tuning(replay=make_test())


@pytest.mark.parametrize("width", [80, 120])
def test_every_table_fits(tuning: Tuning, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, screen = on_screen(monkeypatch, width, color=False)
    blocks = summarize("tuning", tuning)
    terminal.show(blocks)
    lines = lines_on(screen)
    samples = {*config_lines(tuning).splitlines(), replay_command(tuning)}
    assert [line for line in lines if cell_len(line) > width and line not in samples] == []
    text = "\n".join(lines)
    grids = [block for block in blocks if isinstance(block, Grid)]
    assert [grid.header[0] for grid in grids] == ["block", "optimizer", "method"]
    for grid in grids:
        for row in grid.rows:
            assert [line for line in lines if all(cell in line for cell in row)], row
    assert lines[0] == "muon-lite at 0.0078: β₂ = 0.850, learned by 8 nodes (ring, spectral gap 0.098)"
    assert config_lines(tuning) in text
    assert replay_command(tuning) in lines


def test_without_a_replay_there_are_two_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, screen = on_screen(monkeypatch, 80, color=False)
    blocks = summarize("tuning", make_tuning())
    terminal.show(blocks)
    assert [block.header[0] for block in blocks if isinstance(block, Grid)] == ["block", "method"]
    assert "±" not in "\n".join(lines_on(screen))
