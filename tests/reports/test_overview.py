"""The first screen: what it answers, and that it is never stronger than the numbers."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from lite_probe.reports.overview import Overview
from lite_probe.reports.runs import Run
from lite_probe.reports.sections import replay_overview
from lite_probe.reports.sections.tiles import make_tiles
from lite_probe.reports.view import make_view
from lite_probe.results.estimate import t_reach
from lite_probe.results.replay import Replay
from tests.reports.fixtures import make_replay, make_spectrum, make_subspace
from tests.reports.steps_results import make_steps


@pytest.fixture(scope="module")
def found() -> Replay:
    return make_replay(steps=12)


def overview_of(*runs: Run) -> Overview:
    return make_view(runs).overview


def sharp_scaled(replay: Replay, name: str, factor: float) -> Replay:
    """Move so much of an optimizer's allocations from flat directions to sharp ones."""
    runs = [
        replace(run, sharp_allocations=factor * run.sharp_allocations) if run.optimizer == name else run
        for run in replay.runs
    ]
    return replace(replay, runs=tuple(runs))


def test_says_who_ends_lowest_and_how_each_stands(found):
    overview = overview_of(Run(replay=found))
    (answer,) = overview.answers
    assert answer.lead.startswith("After 12 steps muon-lite ")
    assert answer.sentences[0] == "muon lowers the loss mostly along flat directions, and steps past the edge."
    assert answer.sentences[1] == (
        "muon-lite lowers the loss mostly along flat directions, ends below muon, and steps past the edge."
    )
    assert len(answer.sentences) == len(found.optimizers)
    assert overview.on[:3] == ("nanoGPT · 6 layers · hidden 384", "10.73 million parameters", "step 5,000")
    assert "12 steps × 3 seeds, batches of 1,024 tokens" in overview.on


def test_two_equal_optimizers_are_not_told_apart(found):
    """A LITE variant with its base's runs, seeds dealt otherwise: neither is below the other."""
    base = {run.seed: run for run in found.runs if run.optimizer == "muon"}
    twins = tuple(replace(base[(run.seed + 1) % 3], optimizer="muon-lite", seed=run.seed) for run in base.values())
    same = replace(found, runs=tuple(run for run in found.runs if run.optimizer != "muon-lite") + twins)
    sentence = replay_overview.tell(same, "muon-lite")
    assert "is not told from muon" in sentence
    assert "below" not in sentence


def test_where_the_loss_fell_follows_the_claims(found):
    for factor, where in (
        (25.0, "mostly along sharp directions"),
        (-3.0, "along flat directions but raises it along sharp ones"),
        (100.0, "along sharp directions but raises it along flat ones"),
    ):
        sentence = replay_overview.tell(sharp_scaled(found, "muon", factor), "muon")
        assert sentence == f"muon lowers the loss {where}, and steps past the edge."
    runs = [replace(run, closure_errors=run.closure_errors + 0.5 * run.loss_change / 12) for run in found.runs]
    missed = replace(found, runs=tuple(runs))
    assert "lowers the loss (which its directions do not account for)" in replay_overview.tell(missed, "muon")


def test_one_seed_claims_nothing():
    one = make_replay(steps=12, seeds=1)
    overview = overview_of(Run(replay=one))
    assert overview.warnings[0] == "One seed has no error: no difference is claimed."
    assert overview.settling[0] == "Errors: --seeds 5 or more."
    for sentence in overview.answers[0].sentences:
        assert "which has no error" in sentence
        assert "ends below" not in sentence
    table = overview.outcome
    assert table is not None
    assert table.rows[1][1].hint == ""  # no interval


def test_an_optimizer_that_always_diverged_says_so():
    lost = make_replay(steps=12, diverged=tuple(("soap", seed, 3) for seed in range(3)))
    assert replay_overview.tell(lost, "soap") == "soap diverged on every seed."
    rows = list(csv.DictReader(io.StringIO(overview_of(Run(replay=lost)).outcome.csv)))
    assert rows[2]["loss change (nats)"] == ""


def test_the_table_holds_the_replays_numbers(found):
    table = overview_of(Run(replay=found)).outcome
    assert [column.title for column in table.columns] == [
        "optimizer",
        "loss change",
        "against its base",
        "where it fell",
        "edge ratio",
    ]
    rows = {row["optimizer"]: row for row in csv.DictReader(io.StringIO(table.csv))}
    for name in found.optimizers:
        change = found.loss_change(name)
        assert float(rows[name]["loss change (nats)"]) == change.value
        assert float(rows[name]["loss change error (nats)"]) == pytest.approx(change.high - change.value, rel=1e-12)
        assert float(rows[name]["edge ratio (edge at 2)"]) == found.directional_edge_ratio(name).value
    assert float(rows["soap-lite"]["against its base (nats)"]) == found.difference("soap-lite", "soap").value
    assert rows["soap"]["against its base (nats)"] == ""
    assert table.rows[0][2].text == "is the base"


def test_gaps_are_paired_by_seed_and_banded_by_t(found):
    drawing = replay_overview.draw_gaps("gap", found)
    best = min(found.optimizers, key=lambda name: found.loss_change(name).value)
    lines = {trace["name"]: trace for trace in drawing.figure["data"] if "name" in trace}
    assert set(lines) == set(found.optimizers)
    assert set(lines[best]["y"]) == {0.0}
    gaps = np.stack(
        [
            one.losses - other.losses
            for one, other in zip(found.runs_of("soap"), found.runs_of(best), strict=True)
            if one.seed == other.seed
        ]
    )
    assert lines["soap"]["y"] == pytest.approx(gaps.mean(axis=0), rel=1e-5)
    (band,) = [one for one in drawing.figure["data"] if one.get("fill") and one["meta"]["optimizer"] == "soap"]
    half = t_reach(3) * gaps.std(axis=0, ddof=1) / np.sqrt(3)
    assert band["y"][:13] == pytest.approx(gaps.mean(axis=0) + half, rel=1e-4, abs=1e-9)
    assert best in drawing.title
    assert replay_overview.draw_gaps("gap", make_replay(steps=3, optimizers=("muon",))) is None


def test_bars_are_the_progress_along_either_part(found):
    drawing = replay_overview.draw_parts("parts", found)
    for bar in drawing.figure["data"]:
        name = bar["meta"]["optimizer"]
        wanted = [found.flat_progress(name).value, found.sharp_progress(name).value]
        assert bar["y"] == pytest.approx(wanted, rel=1e-5)


def test_tiles_answer_both_questions_per_block():
    tiles = make_tiles(make_subspace(answers={"vo": "fails", "out": "not used", "norm": "open"}), make_steps())
    rows = dict(tiles.rows)
    assert set(rows) == {"adamw", "muon", "soap"}
    muon = dict(zip(tiles.blocks, rows["muon"], strict=True))
    assert (muon["vo"].answer, muon["vo"].tone) == ("fails", "caution")
    assert (muon["qk"].answer, muon["qk"].tone) == ("holds", "good")
    assert muon["out"].answer == "not used"
    assert muon["norm"].answer == "open"
    assert muon["ffn"].ratio.startswith("χ̂ ")
    assert rows["adamw"][0].ratio == ""  # its steps were not measured
    assert make_tiles(None, None) is None
    alone = make_tiles(None, make_steps())
    assert {tile.answer for _, row in alone.rows for tile in row} == {""}


def test_warns_of_few_seeds_and_tokens(found):
    assert replay_overview.warn(found) == [
        "3 seeds tell large differences alone.",
        "Losses are of 4,096 tokens: another evaluation set may say otherwise.",
    ]
    many = make_replay(steps=2, seeds=5, num_tokens=100_000)
    assert replay_overview.warn(many) == []


def test_open_questions_say_what_would_settle_them():
    """A difference with a spread that few more seeds would overcome, and one that no seeds would."""
    replay = make_replay(steps=4, optimizers=("muon", "muon-lite"), noise=0.0)

    def with_gaps(*gaps: float) -> Replay:
        base = {run.seed: run for run in replay.runs if run.optimizer == "muon"}
        runs = []
        for seed, gap in enumerate(gaps):
            losses = base[seed].losses.copy()
            losses[-1] += gap
            runs.append(replace(base[seed], optimizer="muon-lite", losses=losses))
        return replace(replay, runs=(*base.values(), *runs))

    (told, *_) = replay_overview.settle(with_gaps(-0.01, -0.02, 0.0))
    # |x̄|/s = 1: n with √n above t's 97.5% point of n − 1 degrees, which is 7 (2.65 > 2.45; at 6 it is 2.45 < 2.57).
    assert told == "Seeds, were the differences to stay what they are: about 7 would tell muon-lite from muon."
    (hopeless, *_) = replay_overview.settle(with_gaps(-0.01, 0.0099, 0.0))
    assert hopeless.endswith("over 60 would be needed for muon-lite and muon.")
    assert replay_overview.settle(with_gaps(-0.01, -0.0101, -0.0099))[0].startswith("More --batches")


def test_without_a_replay_each_measurement_answers_for_itself():
    overview = overview_of(Run(spectrum=make_spectrum(), subspace=make_subspace()))
    assert [answer.heading for answer in overview.answers] == ["Spectrum", "Sharp and flat"]
    assert overview.outcome is None
    assert overview.settling == (
        "Not measured here: who makes the progress: lite-probe replay; "
        "how long a step each direction tolerates: lite-probe steps.",
    )
    (alone,) = overview_of(Run(spectrum=make_spectrum())).answers
    assert alone.heading == ""


def test_several_runs_have_a_row_and_an_answer_each(found):
    early = make_replay(name="gpt-500", step=500, steps=12)
    overview = overview_of(Run(replay=found), Run(replay=early))
    (answer,) = overview.answers
    assert answer.lead.startswith("At both checkpoints")
    assert [one.name for one in overview.pictures] == ["first-comparison-loss-change", "first-comparison-flat-progress"]
    other = make_replay(name="gpt-500", step=500, steps=3)
    apart = overview_of(Run(replay=found), Run(replay=other))  # other segments are not compared
    assert [answer.heading for answer in apart.answers] == ["gpt-500", "gpt-5000"]
    assert [one.name for one in apart.pictures] == ["gap", "parts"]
    assert [row[0].hint for row in overview.outcome.rows] == ["gpt-500"] * 4 + ["gpt-5000"] * 4
    assert overview.outcome.csv.splitlines()[1].startswith("muon at gpt-500,")
    assert overview.of_last == "gpt-5000"


def test_provenance_tells_what_is_shared_from_what_differs(found):
    spectrum = make_spectrum()
    shared, differing = make_view([Run(spectrum=spectrum, replay=found)]).provenance
    facts = {row[0].text: row[1].text for row in shared.rows}
    assert facts["checkpoint name"] == "gpt-5000"
    assert [column.title for column in differing.columns] == ["what", "Spectrum", "Replay"]
    differences = {row[0].text: (row[1].text, row[2].text) for row in differing.rows}
    assert differences["config: steps"] == ("–", "12")
    assert not set(facts) & set(differences)
    (alone,) = make_view([Run(replay=found)]).provenance
    assert {"checkpoint name", "config: steps", "wall"} <= {row[0].text for row in alone.rows}
