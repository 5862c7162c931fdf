"""A measurement as the terminal and programs get it: every number with its error, and nothing broken in two."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lite_probe.commands.subspace_summary import (
    calibration_table,
    json_object,
    lines,
    metric_table,
    overlap_table,
    ratio,
)
from lite_probe.results.estimate import Ratio
from lite_probe.results.subspace import SubspaceMeasurement
from tests.commands.running import lines_on, on_screen
from tests.reports.fixtures import make_subspace


@pytest.fixture(scope="module")
def found() -> SubspaceMeasurement:
    return make_subspace(others=("step-00060",), name="step-00300", answers={"qk": "fails"})


def test_the_gradient_is_held_against_random_directions(found: SubspaceMeasurement) -> None:
    (line,) = lines(found)
    assert line.startswith("gradient energy in the 10 sharp directions: 26.1%; of single training batches ")
    # k/N = 10/10,724,352
    assert line.endswith("(expected k/N = 9.3e-7)")


def test_overlaps_say_what_is_compared(found: SubspaceMeasurement) -> None:
    header, rows = overlap_table(found)
    assert [row[0] for row in rows] == [
        "one half / the other half",
        "Hessian / Gauss–Newton",
        "step-00060 / step-00300",
    ]
    assert [row[1] for row in rows] == ["0.55", "0.83", "0.31"]
    assert {len(row) for row in rows} == {len(header)}


def test_angles_are_in_degrees(found: SubspaceMeasurement) -> None:
    one = replace(found.overlaps[0], angles=np.radians([15.0, 60.0]))
    assert overlap_table(replace(found, overlaps=(one,)))[1][0][3] == "15°–60°"


def test_each_block_says_what_is_sharp_and_whether_lite_finds_it(found: SubspaceMeasurement) -> None:
    header, rows = calibration_table(found.calibrations["muon-lite"])
    assert header[0] == "muon-lite"
    answers = {row[0]: row[-1] for row in rows}
    assert answers == {
        "emb": "holds", "qk": "fails", "vo": "holds", "ffn": "holds", "norm": "open", "out": "not used",
    }  # fmt: skip
    nothing = next(row for row in rows if row[0] == "out")
    assert nothing[1:4] == ["–", "–", "–"]


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (7.7, 5.4, 11.2, "7.7 (5.4–11)"),
        (120.0, 80.0, None, "≥ 80"),
        (120.0, 80.0, 2401.0, "≥ 80"),  # an end beyond 20 times the ratio bounds nothing
        (None, 80.0, None, "≥ 80"),
        (3.0, None, None, "–"),
    ],
)
def test_ratios(value: float | None, low: float | None, high: float | None, text: str) -> None:
    assert ratio(Ratio(value=value, stderr=None, low=low, high=high, num_samples=16)) == text


def test_a_ratio_that_was_not_measured() -> None:
    assert ratio(None) == "–"


def test_the_metrics_stand_beside_none(found: SubspaceMeasurement) -> None:
    header, rows = metric_table(found)
    assert [row[0] for row in rows] == ["none", "adamw-lite", "muon-lite", "soap-lite"]
    assert rows[0][1] == "38.21"
    assert {len(row) for row in rows} == {len(header)}
    assert [row[0] for row in metric_table(make_subspace(preconditioned=False))[1]] == ["none"]


def test_the_json_object_has_plain_numbers_and_null(found: SubspaceMeasurement) -> None:
    told = json.loads(json.dumps(json_object(found), allow_nan=False))
    assert told["gradient_share"] == 0.261
    assert set(told["batch_gradient_share"]) == {"value", "stderr", "low", "high"}
    assert [one["kind"] for one in told["overlaps"]] == ["batches", "operators", "checkpoints"]
    blocks = told["calibrations"]["soap-lite"]["blocks"]
    assert blocks["out"]["contrast"] is None
    assert blocks["out"]["sharp_curvature"] is None
    assert blocks["qk"]["assumption"] == "fails"
    assert len(blocks["ffn"]["curvature"]) == len(blocks["ffn"]["shares"]) - 1
    assert told["calibrations"]["soap-lite"]["preconditioned"]["eigenvalues"][0] == 5.2
    assert (told["num_probes"], told["num_warm_batches"], told["fingerprint"]) == (16, 50, found.fingerprint)
    assert [note["code"] for note in told["notes"]] == ["metric-bounded"]
    without = json_object(make_subspace(preconditioned=False))
    assert without["calibrations"]["soap-lite"]["preconditioned"] is None


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
    tables = [overlap_table(found), metric_table(found), calibration_table(replace(calibration, blocks=blocks))]
    for header, rows in tables:
        terminal, screen = on_screen(monkeypatch, width)
        terminal.table(header, rows)
        drawn = [line for line in lines_on(screen) if line.strip()]
        assert len(drawn) == 1 + len(rows)
        assert "…" not in screen.getvalue()
