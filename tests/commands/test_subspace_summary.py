"""A measurement as the terminal and programs get it: every number with its error, and nothing broken in two."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lite_probe.reports.sections.section import Grid, Line, describe, summarize
from lite_probe.results.subspace import SubspaceMeasurement
from tests.commands.running import lines_on, on_screen
from tests.reports.fixtures import make_subspace


@pytest.fixture(scope="module")
def found() -> SubspaceMeasurement:
    return make_subspace(others=("step-00060",), name="step-00300", answers={"qk": "fails"})


def grids(found: SubspaceMeasurement) -> dict[str, Grid]:
    """Return the tables by the title of their first column."""
    return {block.header[0]: block for block in summarize("subspace", found) if isinstance(block, Grid)}


def test_the_gradient_is_held_against_random_directions(found: SubspaceMeasurement) -> None:
    (row,) = grids(found)["sharp directions"].rows
    assert row[:3] == ["10", "26.1%", "(25.0±2.0)%"]
    assert row[-1] == "9.3e-7"  # k/N = 10/10,724,352
    told = describe("subspace", found)
    assert told["lead"].startswith("26.1% of the gradient's energy lies in the 10 sharpest of 10.72 million directions")
    (claim,) = [one for one in told["claims"] if one["subject"] == "gradient"]
    assert claim["sentence"] == told["lead"]
    assert claim["low"] == found.gradient_share - found.random_share.high


def test_overlaps_say_what_is_compared(found: SubspaceMeasurement) -> None:
    grid = grids(found)["sharp subspace"]
    assert [list(row[:2]) for row in grid.rows] == [
        ["one half", "the other half"],
        ["Hessian", "Gauss–Newton"],
        ["step-00060", "step-00300"],
    ]
    assert [row[2] for row in grid.rows] == ["55.0%", "82.7%", "31.0%"]
    assert {len(row) for row in grid.rows} == {len(grid.header)}


def test_angles_are_in_degrees(found: SubspaceMeasurement) -> None:
    one = replace(found.overlaps[0], angles=np.radians([15.0, 60.0]))
    grid = grids(replace(found, overlaps=(one,)))["sharp subspace"]
    assert dict(zip(grid.header, grid.rows[0], strict=True))["from °"] == "15"
    assert dict(zip(grid.header, grid.rows[0], strict=True))["to °"] == "60"


def test_each_block_says_what_is_sharp_and_whether_lite_finds_it(found: SubspaceMeasurement) -> None:
    grid = grids(found)["muon-lite"]
    answers = {row[0]: row[-1] for row in grid.rows}
    assert answers == {
        "emb": "holds", "qk": "fails", "vo": "holds", "ffn": "holds", "norm": "open", "out": "not used",
    }  # fmt: skip
    nothing = next(row for row in grid.rows if row[0] == "out")
    assert list(nothing[1:4]) == ["–", "–", "–"]


def test_the_metrics_stand_beside_none(found: SubspaceMeasurement) -> None:
    grid = grids(found)["metric"]
    assert [row[0] for row in grid.rows] == ["none", "adamw", "muon", "soap"]
    assert grid.rows[0][1] == "38.21"
    assert {len(row) for row in grid.rows} == {len(grid.header)}
    muon = dict(zip(grid.header, grid.rows[2], strict=True))
    assert (muon["S, own norm"], muon["edge lr"]) == ("≥ 22,100", "≤ 0.00322")
    assert dict(zip(grid.header, grid.rows[0], strict=True))["S, own norm"] == "–"
    assert "metric" not in grids(make_subspace(preconditioned=False))
    explained = [
        any(isinstance(block, Line) and block.text.startswith("S: largest") for block in summarize("subspace", one))
        for one in (found, make_subspace(preconditioned=False))
    ]
    assert explained == [True, False]


def test_the_json_object_has_plain_numbers_and_null(found: SubspaceMeasurement) -> None:
    told = json.loads(json.dumps(describe("subspace", found), allow_nan=False))
    assert told["gradient_share"] == 0.261
    assert told["expected_share"] == pytest.approx(9.3e-7, rel=0.01)
    assert set(told["batch_gradient_share"]) == {"value", "stderr", "low", "high"}
    assert [one["kind"] for one in told["overlaps"]] == ["batches", "operators", "checkpoints"]
    blocks = told["calibrations"]["soap-lite"]["blocks"]
    assert blocks["out"]["contrast"] is None
    assert blocks["out"]["sharp_curvature"] is None
    assert blocks["qk"]["assumption"] == "fails"
    assert len(blocks["ffn"]["curvature"]) == len(blocks["ffn"]["shares"]) - 1
    assert told["calibrations"]["soap-lite"]["preconditioned"]["eigenvalues"][0] == 5.2
    own = told["calibrations"]["muon-lite"]["own_norm"]
    assert (own["sharpness_at_least"], own["edge_lr_at_most"]) == (22_130.0, pytest.approx(0.003217, rel=1e-3))
    assert (own["values"], own["num_agreeing"], own["num_hvps"]) == ([22_130.0, 21_950.0, 20_100.0], 2, 13)
    assert (told["num_probes"], told["num_warm_batches"], told["fingerprint"]) == (16, 50, found.fingerprint)
    assert [note["code"] for note in told["notes"]] == ["metric-bounded"]
    without = describe("subspace", make_subspace(preconditioned=False))
    assert without["calibrations"]["soap-lite"]["preconditioned"] is None
    assert without["calibrations"]["soap-lite"]["own_norm"] is None


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("strength", [1.0, -3.3333e-5])
def test_no_table_breaks_or_cuts_a_number(
    found: SubspaceMeasurement, monkeypatch: pytest.MonkeyPatch, width: int, strength: float
) -> None:
    calibration = found.calibrations["adamw-lite"]
    blocks = {
        name: replace(
            block,
            sharp_curvature=block.sharp_curvature
            and replace(block.sharp_curvature, value=strength * block.sharp_curvature.value),
        )
        for name, block in calibration.blocks.items()
    }
    changed = replace(calibration, blocks=blocks)
    shown = replace(found, calibrations={**found.calibrations, "adamw-lite": changed})
    for grid in grids(shown).values():
        terminal, screen = on_screen(monkeypatch, width)
        terminal.show([grid])
        drawn = [line for line in lines_on(screen) if line.strip()]
        assert len(drawn) == 1 + len(grid.rows)
        assert "…" not in screen.getvalue()
