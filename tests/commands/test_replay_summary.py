"""A replay as the terminal and programs get it."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from lite_probe.reports.page import render_page
from lite_probe.reports.runs import Run
from lite_probe.reports.sections.replay import SECTION, explanations, minus_base
from lite_probe.reports.sections.section import Grid, describe, summarize
from lite_probe.results.replay import Replay
from tests.commands.running import lines_on, on_screen
from tests.reports.fixtures import make_replay, with_same_batches
from tests.reports.horizons import with_horizons

Rows = Sequence[Sequence[str]]


def grids(replay: Replay) -> dict[str, tuple[Sequence[str], Rows]]:
    """Return header and rows of every table by the title of its first column."""
    blocks = SECTION.summary(replay)
    return {block.header[0]: (block.header, block.rows) for block in blocks if isinstance(block, Grid)}


@pytest.fixture(scope="module")
def found() -> Replay:
    return make_replay(gains={"muon-lite": 4e-4}, diverged=(("soap", 1, 7),))


def test_the_outcome_has_a_row_per_optimizer_with_its_errors(found: Replay) -> None:
    header, rows = grids(found)["optimizer"]
    assert [row[0] for row in rows] == list(found.optimizers)
    assert {len(row) for row in rows} == {len(header)}
    assert [row[1:3] for row in rows] == [["0.0039", "sweep"]] * 4
    assert {row[2] for row in grids(make_replay(is_inside=False))["optimizer"][1]} == {"sweep, at its limit"}
    assert all("±" in row[3] for row in rows)
    # A base has none; its LITE variant's is paired by seed.
    assert [row[4] == "–" for row in rows] == [True, False, True, False]


def test_what_each_started_from_is_told_where_not_all_were_warmed(found: Replay) -> None:
    assert "start" not in grids(found)
    recipes = {**found.recipes, "muon": replace(found.recipes["muon"], state="checkpoint")}
    table = grids(replace(found, recipes=recipes))["start"]
    assert table[0] == ["start", "state"]
    assert [row[1] for row in table[1]] == ["the checkpoint's", *["warmed at fixed weights"] * 3]


def test_minus_base_is_paired(found: Replay) -> None:
    difference = minus_base(found, "muon-lite")
    assert difference is not None
    by_seed = {name: {run.seed: run.loss_change for run in found.runs_of(name)} for name in ("muon", "muon-lite")}
    expected = [by_seed["muon-lite"][seed] - by_seed["muon"][seed] for seed in range(3)]
    assert difference.value == pytest.approx(np.mean(expected), rel=1e-12)
    assert minus_base(found, "muon") is None
    assert minus_base(make_replay(optimizers=("muon-lite", "soap")), "muon-lite") is None
    # Seed 1 of soap did not reach the end.
    paired = minus_base(found, "soap-lite")
    assert paired is not None
    assert paired.num_samples == 2


def test_progress_is_a_loss_change_here(found: Replay) -> None:
    header, rows = grids(found)["change"]
    assert {len(row) for row in rows} == {len(header)}
    flat = found.flat_progress("muon")
    assert flat is not None
    assert flat.value > 0.0
    assert rows[0][1].lstrip("(").startswith("−")
    assert all(row[3].endswith("%") and row[4].endswith("%") for row in rows)


def test_ramp_and_same_batches_have_a_table_of_their_own() -> None:
    found = replace(with_same_batches(make_replay(optimizers=("muon", "soap")), flat=2.0), ramp=5)
    header, rows = grids(found)["of it"]
    assert {len(row) for row in rows} == {len(header)}
    assert [row[0] for row in rows[:4]] == ["muon ramp", "muon after it", "muon same batches", "soap ramp"]
    whole = _value(grids(found)["change"][1][0][1])
    ramp, after, same = (_value(row[1]) for row in rows[:3])
    assert ramp + after == pytest.approx(whole, rel=0.02)
    assert same == pytest.approx(2.0 * whole, rel=0.02)
    assert "of it" not in grids(make_replay())
    assert explanations(found) == [
        "±: half of the 95% interval over seeds; loss changes in nats",
        "ramp: the first 5 steps, over which the learning rate rises",
        "same batches: those that the eigenvectors were measured on; all else is of held-out ones",
        "edge ratio: dᵀHd/(−g·d) after the ramp, edge at 2; past it the quadratic model has the loss rise",
    ]
    asked = with_horizons(found, {"muon": [4, 4, 4]})
    assert explanations(asked)[-1] == (
        "horizon: while the quadratic model at the start predicts the loss change within a tenth"
    )
    diverged = tuple((name, 0, 2) for name in ("muon", "soap"))
    assert explanations(make_replay(optimizers=("muon", "soap"), seeds=1, diverged=diverged)) == []


def _value(cell: str) -> float:
    """Read a cell such as (−3.06±0.16)e-2."""
    number, _, power = cell.partition("e")
    return float(number.strip("()").split("±")[0].replace("−", "-")) * 10.0 ** float(power or 0)


def test_the_json_object_holds_parts_and_same_batches() -> None:
    plain = describe("replay", make_replay(optimizers=("muon", "muon-lite")))
    assert plain["ramp"] == 0
    muon = plain["optimizers"]["muon"]
    assert muon["ramp"] == dict.fromkeys(("loss_change", "flat_progress", "sharp_progress"))
    assert muon["same_batches"] is None
    assert muon["sweep"]["rises"] is None
    assert {claim["same_batches"] for claim in plain["claims"]} == {None}
    found = replace(with_same_batches(make_replay(optimizers=("muon", "muon-lite")), sharp=-1.0), ramp=5)
    told = json.loads(json.dumps(describe("replay", found), allow_nan=False))
    muon = told["optimizers"]["muon"]
    for name in ("loss_change", "flat_progress", "sharp_progress"):
        assert muon["ramp"][name]["value"] + muon["after"][name]["value"] == pytest.approx(muon[name]["value"])
    assert muon["same_batches"]["sharp_progress"]["value"] == pytest.approx(-muon["sharp_progress"]["value"])
    assert muon["same_batches"]["flat_progress"] == muon["flat_progress"]
    assert muon["same_batches"]["closure"] > 0.0
    assert 0.0 < muon["flat_share"]["value"] < 1.0
    assert muon["same_batches"]["flat_share"] is None  # more than all of it: along sharp directions the loss rose
    by_quantity = {(one["subject"], one["quantity"]): one["same_batches"] for one in told["claims"]}
    assert by_quantity["muon", "progress along flat directions"]["is_found"] is True
    sharp = by_quantity["muon", "progress along the 10 sharp directions"]
    assert sharp["is_found"] is False
    assert sharp["value"] == pytest.approx(-muon["sharp_progress"]["value"])


def test_the_directional_edge_ratio_stands_in_terminal_and_json() -> None:
    """Curvatures of 3/2, 3 and 9/2 of the steps' descents; nothing of a replay that climbs."""
    found = replace(make_replay(optimizers=("muon", "soap"), steps=4), ramp=1)
    factors = {0: 1.5, 1: 3.0, 2: 4.5}
    runs = tuple(
        replace(run, curvatures=-factors[run.seed] * run.slopes)
        if run.optimizer == "muon"
        else replace(run, slopes=-run.slopes)
        for run in found.runs
    )
    found = replace(found, runs=runs)
    header, rows = grids(found)["steps"]
    assert header == ["steps", "edge ratio", "past the edge"]
    # Student's t with two degrees of freedom is 4.303, the standard error 1.5/√3.
    assert rows == [["muon", "3.0±3.7", "4 of 4"], ["soap", "–", "4 of 4"]]
    told = json.loads(json.dumps(describe("replay", found), allow_nan=False))["optimizers"]
    assert told["muon"]["directional_edge_ratio"]["value"] == pytest.approx(3.0, rel=1e-12)
    assert len(told["muon"]["directional_edge_curve"]) == 4
    assert all(1.5 < one < 4.5 for one in told["muon"]["directional_edge_curve"])
    assert told["soap"]["directional_edge_ratio"] is None
    assert told["soap"]["directional_edge_curve"] == [None] * 4
    assert (told["muon"]["steps_past_edge"], told["soap"]["steps_past_edge"]) == (4, 4)


def test_a_share_of_nothing_is_not_given() -> None:
    """Flat progress over a loss change that is not told from zero is any number."""
    level = make_replay(noise=3.0, optimizers=("muon",))
    assert level.flat_share("muon") is not None
    assert grids(level)["change"][1][0][3] == "–"


def test_the_manner_has_no_error_that_was_not_measured(found: Replay) -> None:
    header, rows = grids(found)["updates"]
    assert {len(row) for row in rows} == {len(header)}
    assert rows[0][-1] == "0.21"  # seconds a step
    assert not [cell for _, rows in grids(make_replay(seeds=1)).values() for row in rows for cell in row if "±" in cell]


def test_an_exponent_that_some_seeds_do_not_have_says_so() -> None:
    found = make_replay(steps=5)
    runs = tuple(replace(run, sharp_updates=-run.sharp_updates) if run.seed else run for run in found.runs)
    assert grids(replace(found, runs=runs))["updates"][1][0][3].endswith(" (1/3)")


def test_the_manner_fits_where_errors_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    found = make_replay()
    runs = tuple(replace(run, sharp_updates=(-1.0) ** (run.seed == 2) * run.sharp_updates) for run in found.runs)
    header, rows = grids(replace(found, runs=runs))["updates"]
    assert all(row[3].endswith(" (2/3)") for row in rows)
    assert [len(row[1].split("±")[1].lstrip("0.")) for row in rows] == [1] * 4
    terminal, screen = on_screen(monkeypatch, 80)
    terminal.table(header, rows)
    assert "…" not in "".join(lines_on(screen))


@pytest.mark.parametrize("verbosity", [0, 1])
def test_details_of_the_verdict_are_shown_where_they_are_asked_for(
    verbosity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal, screen = on_screen(monkeypatch, 10_000, color=False)
    terminal.verbosity = verbosity
    unstable = make_replay(closure=1e-4)
    rates = replace(unstable.theory["muon"], rates=1.5 * np.ones(10))
    found = with_same_batches(replace(unstable, theory={"muon": rates}))
    terminal.show(summarize("replay", found))
    shown = "\n".join(lines_on(screen))
    always = ("After 20 steps ", "muon-lite ends ", "muon lowers the loss ", "Losses and progress are of held-out")
    assert all(f"\n{start}" in shown for start in (*always, "At these rates linear theory", "Learning rates were"))
    details = (
        "Isotropy of the updates",
        "Curvature along",
        "Exponent a",
        "Oscillation along",
        "Differences are claimed",
    )
    assert [f"\n{start}" in shown for start in (*details, "Allocations add up")] == [verbosity > 0] * 6
    page = render_page([Run(replay=found)])
    assert all(f">{start}" in page for start in (*details, "Allocations add up"))


def test_a_detail_of_which_to_beware_is_always_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, screen = on_screen(monkeypatch, 10_000, color=False)
    terminal.show(summarize("replay", make_replay(closure=0.1)))
    assert "\nAllocations add up" in "\n".join(lines_on(screen))


def test_ablations_stand_below_their_optimizer() -> None:
    rows = grids(make_replay(ablations=True, optimizers=("muon", "soap")))["optimizer"][1]
    assert [row[0] for row in rows] == ["muon", "… dominant", "… bulk", "soap", "… dominant", "… bulk"]


def test_an_optimizer_of_which_nothing_reached_the_end_has_dashes() -> None:
    found = make_replay(optimizers=("muon", "soap"), diverged=tuple(("soap", seed, 3) for seed in range(3)))
    assert grids(found)["optimizer"][1][1] == ["soap", "0.0039", "sweep", "–", "–"]
    assert grids(found)["change"][1][1] == ["soap", "–", "–", "–", "–"]
    assert grids(found)["updates"][1][1] == ["soap", "–", "–", "–", "–", "–"]
    assert grids(found)["steps"][1][1] == ["soap", "–", "–"]
    assert describe("replay", found)["optimizers"]["soap"]["directional_edge_curve"] is None


def test_the_json_object_holds_all_of_the_tables(found: Replay) -> None:
    told = json.loads(json.dumps(describe("replay", found), allow_nan=False))
    assert (told["steps"], told["seeds"], told["rule"], told["fingerprint"]) == (20, 3, "simpson", found.fingerprint)
    one = told["optimizers"]["muon-lite"]
    assert set(one["loss_change"]) == {"value", "stderr", "low", "high"}
    estimates = {"minus_base", "flat_progress", "sharp_progress", "flat_share", "isotropy", "directional_sharpness"}
    assert all(one[name]["stderr"] > 0.0 for name in estimates | {"exponent"})
    assert (one["lr"], one["lr_source"], one["state"]) == (2.0**-8, "sweep", "warm")
    assert one["hyperparameters"] == {"flat_lr_ratio": 2.0}
    assert one["state_lines"] == ["warmed on 50 batches at fixed parameters"]
    assert one["closure"] > 0.0
    assert one["seconds_per_step"] == pytest.approx(0.21)
    assert len(one["oscillation"]) == len(one["effective_lrs"]) == 10
    assert one["sweep"]["losses"] == [pytest.approx(1.414), pytest.approx(1.41), None]
    assert told["optimizers"]["muon"]["minus_base"] is None
    assert told["optimizers"]["soap"]["diverged"] == [{"seed": 1, "step": 7}]
    assert [note["code"] for note in told["notes"]] == ["refined"]


def test_every_pair_has_its_difference_both_ways(found: Replay) -> None:
    differences = describe("replay", found)["differences"]
    assert len(differences) == 4 * 3
    one, other = differences["muon-lite - muon"], differences["muon - muon-lite"]
    assert one["value"] == pytest.approx(-other["value"], rel=1e-12)
    assert one["low"] == pytest.approx(-other["high"], rel=1e-12)


def test_one_seed_has_a_value_and_null_for_its_error() -> None:
    one = describe("replay", make_replay(seeds=1))["optimizers"]["muon"]["loss_change"]
    assert one["value"] < 0.0
    assert (one["stderr"], one["low"], one["high"]) == (None, None, None)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 30.0])
def test_no_table_breaks_or_cuts_a_number(monkeypatch: pytest.MonkeyPatch, width: int, scale: float) -> None:
    """A number whose end stands on the next line reads as another number."""
    made = make_replay(ablations=True, noise=0.001, optimizers=("adamw-lite", "muon", "muon-lite", "soap-lite"))
    runs = tuple(
        replace(
            run,
            losses=run.losses[0] + scale * (run.losses - run.losses[0]),
            allocations=scale * run.allocations,
            closure_errors=scale * run.closure_errors,
            sharp_allocations=scale * run.sharp_allocations,
            curvatures=scale * run.curvatures,
        )
        for run in made.runs
    )
    recipes = {name: replace(recipe, lr_source="checkpoint", lr=9.765625e-4) for name, recipe in made.recipes.items()}
    recipes["muon"] = replace(recipes["muon"], state="cold")
    names = ("adamw-lite", "muon", "muon-lite")
    found = with_horizons(
        with_same_batches(replace(made, runs=runs, recipes=recipes, ramp=5)), {name: [8, 16, 0] for name in names}
    )
    shown = grids(found)
    assert list(shown) == ["start", "optimizer", "change", "of it", "updates", "steps"]
    for header, rows in shown.values():
        terminal, screen = on_screen(monkeypatch, width)
        terminal.table(header, rows)
        drawn = [line for line in lines_on(screen) if line.strip()]
        assert len(drawn) == 1 + len(rows)
        assert not [line for line in drawn if "…" in line.removeprefix("… ")]
