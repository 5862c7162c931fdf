"""What is said of a replay: a difference inside its error never becomes a claim."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lite_probe.reports.sections.replay import SECTION, list_replay
from lite_probe.reports.sections.replay_rate_figures import draw_rates
from lite_probe.reports.sections.replay_verdict import judge_replay, mean_oscillation, told_horizon
from lite_probe.reports.sections.section import Grid
from lite_probe.reports.table import Cell, estimate_cell
from lite_probe.results.estimate import Estimate
from lite_probe.results.replay import LinearTheory, Replay
from tests.reports.fixtures import make_replay, make_sweep, with_same_batches
from tests.reports.horizons import with_horizons

BATCH = " All at 1,024 tokens a batch."  # what is said of LITE names the size of batches


def lead(replay: Replay) -> str:
    return judge_replay(replay).lead.replace("\u00a0", " ")


def points(replay: Replay) -> list[tuple[str, str]]:
    return [(point.tone, point.text.replace("\u00a0", " ")) for point in judge_replay(replay).points]


def about(replay: Replay, start: str) -> tuple[str, str]:
    (match,) = [(tone, text) for tone, text in points(replay) if text.startswith(start)]
    return match


def outcome(replay: Replay) -> tuple[tuple[Cell, ...], ...]:
    return list_replay("outcome", replay).rows


def terminal_share(replay: Replay) -> str:
    """The first optimizer's flat share in the terminal."""
    (found,) = [one for one in SECTION.summary(replay) if isinstance(one, Grid) and one.header[0] == "change"]
    return found.rows[0][3]


def shifted(replay: Replay, name: str, changes: list[float]) -> Replay:
    """Move one optimizer's final loss by `changes`, seed by seed; the rest stays."""
    runs = []
    for run in replay.runs:
        if run.optimizer == name and run.ablation == "none":
            losses = run.losses.copy()
            losses[-1] += changes[run.seed]
            run = replace(run, losses=losses)
        runs.append(run)
    return replace(replay, runs=tuple(runs))


@pytest.fixture(scope="module")
def found() -> Replay:
    return make_replay(optimizers=("muon", "muon-lite"))


@pytest.fixture(scope="module")
def same() -> Replay:
    """Two optimizers with one and the same outcome on every seed."""
    replay = make_replay(optimizers=("muon", "muon-lite"))
    runs = [run for run in replay.runs if run.optimizer == "muon"]
    return replace(replay, runs=(*runs, *(replace(run, optimizer="muon-lite") for run in runs)))


def test_leads_with_who_ends_lowest_and_below_whom(found):
    assert lead(found) == (
        "After 20 steps muon-lite ends lowest, 0.0391 nats below the start's 1.472 (95%: 0.0354 to 0.0429), below muon "
        "(3 seeds, paired)."
    )
    assert about(found, "muon-lite ends") == (
        "good",
        "muon-lite ends 0.0076 nats below muon (95%: 0.0065 to 0.0087). muon-lite makes 0.0077 nats more progress than "
        "muon along flat directions (95%: 0.0065 to 0.0089). muon-lite makes 1.01 × 10⁻⁴ nats less progress than muon "
        f"along the 10 sharp directions (95%: 0.37 × 10⁻⁴ to 1.66 × 10⁻⁴).{BATCH}",
    )


def test_a_difference_within_its_error_is_none(same):
    # ±2e-3 over three seeds, mean −1e-4: far inside t₂ = 4.3 standard errors of 1.2e-3.
    vague = shifted(same, "muon-lite", [2e-3, -2e-3, -3e-4])
    assert lead(vague) == (
        "After 20 steps muon and muon-lite cannot be told apart and end 0.0315 to 0.0316 nats below the start's 1.472 "
        "(3 seeds, paired)."
    )
    tone, text = about(vague, "muon-lite minus muon: ")
    assert tone == "plain"
    assert text.startswith(
        "muon-lite minus muon: −0.0001 nats of final loss (95%: −0.0051 to 0.0049), not beyond the error. "
    )
    claims = (lead(vague), *(text for _, text in points(vague)))
    assert not [text for text in claims if " below muon" in text or " above muon" in text]


@pytest.mark.parametrize("seeds", [1, 3])
def test_no_winner_is_named_within_rounding(same, seeds):
    """float32 losses of 1.47 are 1.2e-7 apart at the least, float64 ones 2e-16."""
    start = replace(same, num_seeds=seeds, runs=tuple(run for run in same.runs if run.seed < seeds))
    tied = shifted(start, "muon-lite", [-1e-7] * 3)
    assert lead(tied).startswith("After 20 steps muon and muon-lite cannot be told apart and end 0.0")
    told = "muon-lite and muon cannot be told apart: their losses differ by rounding alone"
    assert about(tied, "muon-lite and muon") == ("plain", f"{told}{' (1 seed)' if seeds == 1 else ''}.{BATCH}")
    assert outcome(tied)[1][5].tone == ""
    texts = (lead(tied), *(text for _, text in points(tied)))
    assert not [text for text in texts if "lowest," in text or " below muon" in text or "minus" in text]
    third = [replace(run, optimizer="soap", losses=run.losses + np.linspace(0, 0.01, 21)) for run in start.runs[:seeds]]
    recipes = {**tied.recipes, "soap": tied.recipes["muon"]}
    behind = replace(tied, recipes=recipes, runs=(*tied.runs, *third))
    assert lead(behind).startswith("After 20 steps muon and muon-lite cannot be told apart and end lowest, 0.0")
    exact = replace(tied, provenance=replace(tied.provenance, precision="float64"))
    assert lead(exact).startswith("After 20 steps muon-lite ends lowest")


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_loss_that_did_not_move_is_no_progress(same, seeds):
    kept = [replace(run, losses=np.full(21, run.losses[0])) for run in same.runs if run.seed < seeds]
    still = replace(same, num_seeds=seeds, runs=tuple(kept))
    where = "where the loss began, at 1.472, but for rounding"
    assert lead(still).startswith(f"After 20 steps muon and muon-lite cannot be told apart and end {where}")
    alone = replace(still, runs=tuple(run for run in kept if run.optimizer == "muon"))
    assert lead(alone).startswith(f"After 20 steps muon ends {where}")
    assert ("plain", "No loss change was allotted to directions.") in points(still)
    assert not [text for _, text in points(still) if "account" in text]
    cell = outcome(still)[0][14]
    assert (cell.text, cell.tone) == ("–", "")


def test_a_difference_beyond_its_error_is_told_either_way(same):
    better = shifted(same, "muon-lite", [-1.00e-3, -1.01e-3, -0.99e-3])
    tone, text = about(better, "muon-lite ends")
    assert tone == "good"
    assert text.startswith("muon-lite ends 0.001000 nats below muon (95%: 0.000975 to 0.001025). ")
    # The losses were moved, the allocations were not.
    assert "muon-lite minus muon along flat directions: 0 nats of progress" in text
    worse = shifted(same, "muon-lite", [1.00e-3, 1.01e-3, 0.99e-3])
    tone, text = about(worse, "muon-lite ends")
    assert tone == "caution"
    assert "nats above muon" in text
    assert "After 20 steps muon ends lowest" in lead(worse)


def test_one_seed_claims_nothing():
    replay = make_replay(optimizers=("muon", "muon-lite"), seeds=1, ablations=True)
    assert lead(replay).startswith("After 20 steps muon-lite ends lowest, 0.03")
    assert lead(replay).endswith("it is one seed, which has no error, so that no difference is claimed.")
    assert about(replay, "muon-lite minus muon")[1].endswith(f" nats on one seed, which has no error.{BATCH}")
    for text in (lead(replay), *(text for _, text in points(replay))):
        assert "±" not in text
        assert "not beyond" not in text
        assert "the whole" not in text
        assert "is along flat" not in text
    assert judge_replay(replay).claims == ()
    alone = make_replay(optimizers=("muon",), seeds=1)
    assert lead(alone).startswith("After 20 steps muon ends 0.0")
    assert "lowest" not in lead(make_replay(optimizers=("muon",)))


def test_a_change_within_its_own_error_has_no_flat_share(same):
    vague = shifted(shifted(same, "muon", [0.1, 0.03, -0.05]), "muon-lite", [0.1, 0.03, -0.05])
    assert lead(replace(vague, runs=vague.runs_of("muon"))).endswith(
        "muon ends 0.005 nats below the start's 1.472 (95%: −0.18 to 0.19), not beyond the error, over 3 seeds."
    )
    assert about(vague, "muon changes the loss by")[1].startswith(
        "muon changes the loss by −0.005 nats (95%: −0.19 to 0.18), not beyond the error. "
    )
    assert "is along flat" not in about(vague, "muon changes the loss by")[1]
    assert "is along flat" in about(same, "muon lowers the loss")[1]


def test_a_sharp_part_that_raised_the_loss_is_named(found):
    def reversed_sharp(run):
        sharp = -4.0 * run.sharp_allocations
        return replace(run, sharp_allocations=sharp)

    raised = replace(found, runs=tuple(reversed_sharp(run) for run in found.runs))
    text = about(raised, "muon lowers")[1]
    assert text.endswith(
        ". muon raises the loss by 0.003525 nats along the 10 sharp directions (95%: 0.003497 to 0.003552)."
    )
    assert "is along flat" not in text  # more than all of it
    (claim,) = [one for one in judge_replay(raised).claims if one.sentence in text and "sharp" in one.quantity]
    assert (claim.subject, claim.quantity, claim.status) == ("muon", "progress along the 10 sharp directions", "fails")


def test_divergence_names_optimizer_seed_and_step():
    replay = make_replay(diverged=(("soap", 1, 7), ("soap", 2, 3)), ablations=True)
    assert points(replay)[0] == ("caution", "soap diverged at step 7 of seed 1; soap diverged at step 3 of seed 2.")
    assert ", below muon and soap-lite, but not compared with soap for want of two common seeds (3 seeds" in lead(
        replay
    )
    assert "lowest" not in lead(replay)
    assert "on one seed, which has no error" in about(replay, "soap-lite minus soap")[1]
    apart = make_replay(
        optimizers=("muon", "muon-lite"), diverged=(("muon", 0, 1), ("muon-lite", 1, 1), ("muon-lite", 2, 1))
    )
    assert ("caution", f"muon-lite and muon have no seed that both finished.{BATCH}") in points(apart)


def test_one_optimizer_rests_on_the_seeds_that_reached_the_end():
    whole = make_replay(optimizers=("muon",))
    assert (
        lead(whole)
        == "After 20 steps muon ends 0.0315 nats below the start's 1.472 (95%: 0.0286 to 0.0344), over 3 seeds."
    )
    rest = make_replay(optimizers=("muon",), diverged=(("muon", 0, 4), ("muon", 2, 4)))
    assert re.fullmatch(
        r"After 20 steps muon ends 0\.0\d+ nats below the start's 1\.472, on 1 of 3 seeds\.", lead(rest)
    )
    assert judge_replay(rest).claims == ()


def test_all_may_diverge():
    names = ("muon", "muon-lite")
    replay = make_replay(optimizers=names, seeds=2, diverged=tuple((n, s, 2) for n in names for s in (0, 1)))
    assert lead(replay) == "Every run diverged: there is nothing to compare."
    texts = [text for _, text in points(replay)]
    assert texts[0] == "muon diverged at step 2 of seed 0; muon diverged at step 2 of seed 1."
    assert texts[-1] == "No loss change was allotted to directions."


def test_manners_have_their_errors(found):
    for start in (
        "Isotropy of the updates",
        "Curvature along the updates",
        "Directional edge ratio",
        "Exponent a",
        "Oscillation along",
    ):
        text = about(found, start)[1]
        assert "muon " in text
        assert text.count("(95%: ") == 2, text
        assert "±" not in text
    oscillation = mean_oscillation(found, "muon")
    runs = found.runs_of("muon")
    assert oscillation.value == pytest.approx(np.mean([run.oscillations.mean() for run in runs]))
    assert mean_oscillation(found, "soap") is None


def test_an_exponent_that_some_seeds_do_not_have_says_so(found):
    """One of three alone was printed like a mean, and without an error."""
    backwards = [
        replace(run, sharp_updates=-run.sharp_updates) if run.optimizer == "muon" and run.seed else run
        for run in found.runs
    ]
    _, text = about(replace(found, runs=tuple(backwards)), "Exponent a")
    assert re.search(r"muon [\d.]+ \(on 1 of 3 seeds\), muon-lite 0\.51 \(95%: 0\.40 to 0\.61\)\.$", text)


def test_ablations_are_compared_with_the_whole():
    replay = make_replay(optimizers=("muon",), ablations=True)
    assert about(replay, "muon projected on the sharp subspace changes")[1] == (
        "muon projected on the sharp subspace changes the loss by −6.30 × 10⁻⁴ nats (95%: −6.88 × 10⁻⁴ to "
        "−5.73 × 10⁻⁴). muon projected on the sharp subspace ends 0.0309 nats above the whole (95%: 0.0281 to 0.0337). "
        "muon projected off the sharp subspace changes the loss by −0.0306 nats (95%: −0.0334 to −0.0278). muon "
        "projected off the sharp subspace ends 0.000945 nats above the whole (95%: 0.000859 to 0.001032)."
    )
    runs = tuple(
        replace(run, losses=replay.runs_of("muon")[run.seed].losses) if run.ablation == "bulk" else run
        for run in replay.runs
    )
    text = about(replace(replay, runs=runs), "muon projected on the sharp subspace changes")[1]
    assert text.endswith("cannot be told from the whole: the losses differ by rounding alone.")
    failed = tuple(replace(run, diverged_at=20) if run.ablation == "dominant" else run for run in replay.runs)
    text = about(replace(replay, runs=failed), "muon projected on the sharp subspace reached")[1]
    assert text.startswith("muon projected on the sharp subspace reached the end on no seed. muon projected off")
    texts = [text for _, text in points(replace(replay, runs=failed))]
    assert texts[0].startswith("muon (updates projected on the sharp subspace) diverged at step 20 of seed 0; ")


def test_learning_rates_say_how_they_were_chosen(found):
    tone, text = about(found, "Learning rates")
    assert tone == "plain"
    assert text == (
        "Learning rates were swept by factors of two for the lowest evaluation loss: muon 0.0039, muon-lite 0.0039."
    )
    given = make_replay(swept=False)
    assert "were given: muon 0.0039" in about(given, "Learning rates")[1]
    assert about(given, "Learning rates")[1].endswith("may favour one optimizer over another.")
    tone, text = about(make_replay(is_inside=False, optimizers=("muon", "soap")), "Learning rates")
    assert tone == "caution"
    assert text.endswith("The best of muon and soap is at the limit of its grid: a better one may lie beyond.")
    failed = replace(make_sweep(is_inside=False), diverged=np.ones(3, dtype=bool))
    text = about(replace(found, sweeps={"muon": failed}), "Learning rates")[1]
    assert text.endswith("muon diverged at every rate that was tried.")


def test_starts_that_differ_are_said(found):
    recipes = {**found.recipes, "muon": replace(found.recipes["muon"], state="checkpoint")}
    differing = replace(found, recipes=recipes)
    assert points(differing)[0] == about(differing, "muon went on")  # before what it puts in question
    tone, text = about(differing, "muon went on")
    assert tone == "caution"
    assert text == (
        "muon went on from the checkpoint's optimizer state; muon-lite started from averages warmed at fixed weights: "
        "part of a difference between them may be that of their starts."
    )
    alike = {name: replace(recipe, state="checkpoint") for name, recipe in found.recipes.items()}
    tone, text = about(replace(found, recipes=alike), "muon and muon-lite went on")
    assert (tone, text) == ("plain", "muon and muon-lite went on from the checkpoint's optimizer state.")
    assert not [text for _, text in points(found) if "warmed" in text]


def test_the_closure_error_is_always_stated(found):
    tone, text = about(found, "Allocations add up")
    assert tone == "good"
    assert text.startswith("Allocations add up to the true loss change within 0.0")
    # Errors of a tenth of each step's change, of either sign, cancel in part.
    assert about(make_replay(closure=0.1), "Allocations add up")[0] == "caution"


def missed(replay: Replay, name: str, share: float) -> Replay:
    """Let one optimizer's allocations miss this share of its loss change."""
    runs = []
    for run in replay.runs:
        if run.optimizer == name:
            errors = np.zeros(run.num_steps)
            errors[0] = share * run.loss_change
            run = replace(run, closure_errors=errors)
        runs.append(run)
    return replace(replay, runs=tuple(runs))


def test_allocations_that_miss_the_change_are_not_taken_for_it(found):
    wrong = missed(found, "muon", 1.01)
    tone, text = about(wrong, "Allocations")
    assert tone == "caution"
    assert text.startswith(
        "Allocations do not account for the loss change of muon (101% of it is missed): what they say of its parts is "
        "not to be relied on, and no share is shown. Allocations add up to the true loss change within 0.0"
    )
    assert text.endswith("of it (worst of the others: muon-lite).")
    told = about(wrong, "muon lowers")[1]
    assert " muon: progress of 0.0306 nats (95%: 0.0278 to 0.0335) along flat directions and of 8.812 × 10⁻⁴" in told
    assert told.endswith(", which do not account for its loss change.")
    assert "is along flat" in about(wrong, "muon-lite lowers")[1]
    assert {claim.subject for claim in judge_replay(wrong).claims if "progress" in claim.quantity} == {"muon-lite"}
    # Where the difference fell is told by the parts of both.
    assert about(wrong, "muon-lite ends")[1].endswith(
        f" Where the difference falls cannot be told: the allocations do not account for the loss changes.{BATCH}"
    )
    rows = outcome(wrong)
    assert [row[8].text == "–" for row in rows] == [True, False]
    assert [row[14].tone for row in rows] == ["caution", ""]
    assert about(missed(wrong, "muon-lite", 0.5), "Allocations")[1].endswith("and no share is shown.")


def test_what_is_no_share_is_not_printed_as_one(found):
    """Where the sharp part raised the loss, the flat one is more than the whole."""

    def share_of(factor: float) -> tuple[str, str, str]:
        runs = [replace(run, sharp_allocations=factor * run.sharp_allocations) for run in found.runs]
        replay = replace(found, runs=tuple(runs))
        row = outcome(replay)[0]
        return row[8].text, terminal_share(replay), about(replay, "muon lowers")[1].replace("95%: ", "")

    assert replace(found).flat_share("muon").value < 1.0
    for factor in (-4.0, 40.0):
        page, terminal, text = share_of(factor)
        assert (page, terminal) == ("–", "–")
        assert "%" not in text
    page, terminal, text = share_of(1.0)
    assert all("%" in shown for shown in (page, terminal, text))


def test_a_share_is_printed_with_its_whole_interval_within_one(found):
    """At 40 times the sharp allocations the share of muon is 3%, of which the interval goes below zero."""
    scattered = [
        replace(run, sharp_allocations=(1.0 + 15.0 * run.seed) * run.sharp_allocations) if run.seed else run
        for run in found.runs
    ]
    replay = replace(found, runs=tuple(scattered))
    share = replay.flat_share("muon")
    assert 0.0 < share.value < 1.0
    assert share.low < 0.0 or share.high > 1.0
    assert terminal_share(replay) == outcome(replay)[0][8].text == "–"
    assert "is along flat" not in about(replay, "muon lowers")[1]


SAME = "On the batches that the eigenvectors were measured on"


def test_claims_that_are_found_on_the_same_batches_too_say_so(found):
    both = with_same_batches(found)
    assert lead(both).endswith(f"below muon (3 seeds, paired). {SAME} the same is found.")
    assert about(both, "Losses and progress") == (
        "good",
        f"Losses and progress are of held-out batches. {SAME} the same is found, for all 9 claims.",
    )
    assert len([claim for claim in judge_replay(both).claims if claim.status != "open"]) == 9
    assert SAME not in lead(found)
    assert not [text for _, text in points(found) if SAME in text]


def test_claims_that_are_not_found_on_the_same_batches_are_named(found):
    """Sharp progress is turned round there; and muon-lite's lead is all taken away."""
    turned = with_same_batches(found, sharp=-1.0)
    tone, text = about(turned, "Losses and progress")
    assert tone == "caution"
    assert text.startswith(f"Losses and progress are of held-out batches. {SAME} the same is found for 6 of 9 claims; ")
    assert (
        "; not found are muon-lite's progress along the 10 sharp directions minus that of muon (−1.01 × 10⁻⁴ nats held "
        "out, 1.01 × 10⁻⁴ nats (95%: 0.37 × 10⁻⁴ to 1.66 × 10⁻⁴) there), muon's progress along the 10 sharp directions "
        "(8.81 × 10⁻⁴ nats held out, −8.812 × 10⁻⁴ nats (95%: "
    ) in text
    assert lead(turned).endswith(f"{SAME} the same is found.")
    muon = with_same_batches(found)
    level = [replace(run, same_batch_losses=muon.runs_of("muon")[run.seed].same_batch_losses) for run in muon.runs]
    tied = replace(muon, runs=tuple(level))
    assert lead(tied).endswith(f"{SAME} muon-lite's lead over muon is not found.")
    assert "muon-lite's final loss minus that of muon (−0.0076" in about(tied, "Losses and progress")[1]
    alone = replace(found, recipes={"muon": found.recipes["muon"]}, runs=found.runs_of("muon"))
    assert lead(with_same_batches(alone, flat=-1.0)).endswith(f"over 3 seeds. {SAME} that is not found.")


def test_parts_that_cannot_be_asked_there_are_not_found(found):
    """Allocations that miss the loss change on the eigenvectors' batches say nothing of its parts."""
    both = with_same_batches(found)
    runs = [replace(run, same_batch_closure_errors=run.same_batch_allocations) for run in both.runs]
    text = about(replace(both, runs=tuple(runs)), "Losses and progress")[1]
    assert "muon's progress along flat directions (0.0306 nats held out, there the allocations do not account" in text


def test_what_falls_into_the_ramp_is_said(found):
    """Nearly all of what muon does along sharp directions falls into five steps, of the flat ones a third does."""

    def early(run):
        factors = np.where(np.arange(20) < 5, 1.0, 0.01)[:, None]
        return replace(run, sharp_allocations=run.sharp_allocations * factors) if run.optimizer == "muon" else run

    ramped = replace(found, ramp=5, runs=tuple(early(run) for run in found.runs))
    text = about(ramped, "muon lowers")[1]
    assert re.search(
        r" Most of this progress along the 10 sharp directions falls into the ramp, the first 5 steps: [\d.]+ × 10⁻⁴ "
        r"nats \(95%: ",
        text,
    )
    assert text.count("Most of this") == 1
    assert "Most of this" not in about(ramped, "muon-lite lowers")[1]
    back = [
        replace(run, sharp_allocations=run.sharp_allocations * np.where(np.arange(20) < 5, 1.0, -10.0)[:, None])
        for run in ramped.runs
    ]
    text = about(replace(ramped, runs=tuple(back)), "muon lowers")[1]
    assert "All of this progress along the 10 sharp directions falls into the ramp, the first 5 steps: " in text
    raised = [replace(run, sharp_allocations=-4.0 * run.sharp_allocations) for run in ramped.runs]
    text = about(replace(ramped, runs=tuple(raised)), "muon lowers")[1]
    assert "Most of this rise along the 10 sharp directions falls into the ramp, the first 5 steps: 0.00" in text


def test_a_rate_of_the_theory_above_one_is_a_sentence_and_no_point(found):
    rates = np.array([79.0, 20.0, -3.8, 1.5, 1.2, 1.1, 1.05, 0.9, 0.8, 0.7])
    known = found.theory["muon"].effective_lrs
    one = LinearTheory(effective_lrs=known, rates=np.where(rates < 70.0, 0.5, rates))
    theory = {"muon": LinearTheory(effective_lrs=known, rates=rates), "muon-lite": one}
    unstable = replace(found, theory=theory)
    assert about(unstable, "At these rates") == (
        "caution",
        "At these rates linear theory has muon diverge along 7 of 10 sharp directions (factors 1.1 to 79 per step) and "
        "muon-lite diverge along 1 of 10 sharp directions (a factor of 79 per step): what it predicts along them is "
        "not drawn. It rests on the curvature at the start: for how many steps that predicts the loss, --horizon "
        "measures.",
    )
    asked = with_horizons(unstable, {"muon": [4, 4, 4], "muon-lite": [2, 0, 4]})
    assert about(asked, "At these rates")[1].endswith(
        "what it predicts along them is not drawn. The quadratic model at the start predicts the loss change within a "
        "tenth up to its horizon: muon between 2 and 4 steps and muon-lite between 1 and over 20 steps."
    )
    assert [len(trace["x"]) for trace in draw_rates("rates", unstable).figure["data"][2:4]] == [3, 9]
    assert not [text for _, text in points(found) if "linear theory" in text]


def test_the_horizon_is_told_where_it_was_measured(found):
    assert not [text for _, text in points(found) if "quadratic model at the start" in text]
    asked = with_horizons(found, {"muon": [4, 8, 2], "muon-lite": [1, 1, 2]})
    assert about(asked, "The quadratic model at the start") == (
        "plain",
        "The quadratic model at the start predicts the loss change within a tenth up to its horizon: muon between 1 "
        "and 8 steps and muon-lite less than 2 steps. What rests on the curvature at the start, such as the linear "
        "theory, says nothing of later steps.",
    )
    beyond = with_horizons(found, {"muon": [0, 0, 0], "muon-lite": [1, 1, 1]})
    text = about(beyond, "The quadratic model at the start")[1]
    assert "up to its horizon: muon more than 20 steps and muon-lite less than 1 step. " in text
    assert told_horizon(found, "muon") == ""
    (table,) = [one for one in SECTION.summary(asked) if isinstance(one, Grid) and one.header[0] == "steps"]
    assert table.header == ["steps", "edge ratio", "past the edge", "horizon"]
    assert [row[3] for row in table.rows] == ["between 1 and 8 steps", "less than 2 steps"]


def test_a_sweep_that_left_its_best_rate_says_so(found):
    sweep = replace(make_sweep(), rises=np.array([False, True, True]))
    left = replace(sweep, chosen=float(sweep.lrs[0]))
    tone, text = about(replace(found, sweeps={"muon": left}), "Learning rates")
    assert tone == "plain"
    assert text.endswith(
        " At the best rate of muon, 0.0039, the loss first rises above the start's: 0.0020 is the largest of those "
        "tried at which it does not."
    )
    everywhere = replace(sweep, rises=np.ones(3, dtype=bool))
    tone, text = about(replace(found, sweeps={"muon": everywhere}), "Learning rates")
    assert tone == "caution"
    assert text.endswith(" The loss of muon first rises above the start's at every rate that was tried.")
    assert about(replace(found, sweeps={"muon": sweep}), "Learning rates")[1].endswith("every rate that was tried.")


def test_estimates_in_words():
    assert estimate_cell(None).text == "–"
    assert estimate_cell(Estimate(value=0.5, stderr=0.0, low=0.5, high=0.5, num_samples=1)).text == "0.5000"
