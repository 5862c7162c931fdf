"""How often a replay's claims are false, by simulation, and that each is one object wherever it is shown."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from numpy.typing import NDArray

from lite_probe.reports.page import render_page
from lite_probe.reports.runs import Run
from lite_probe.reports.sections.replay_verdict import (
    compare_bases,
    compare_losses,
    compare_progress,
    judge_changes,
    judge_progress,
    judge_replay,
)
from lite_probe.reports.sections.section import describe, summarize
from lite_probe.results.claim import Claim
from lite_probe.results.replay import Replay
from tests.commands.running import lines_on, on_screen
from tests.reports.fixtures import make_replay

FOUR = ("adamw", "muon", "soap", "sgd")
MOST = 20 + 2 * np.sqrt(400 * 0.05 * 0.95)  # 5% of 400 replays, and two standard errors of such a count


def replay_of(base: Replay, changes: dict[str, NDArray[np.float64]], sharp: float | None = None) -> Replay:
    """Give every optimizer these loss changes, a value a seed, of which the share `sharp` is along sharp directions.

    The base has one step and one sharp direction; without a share progress per direction is not recorded.
    """
    runs = []
    for run in base.runs:
        change = changes[run.optimizer][run.seed]
        runs.append(
            replace(
                run,
                losses=run.losses[0] + np.array([0.0, change]),
                allocations=np.array([] if sharp is None else [change]),
                closure_errors=np.zeros(1),
                sharp_allocations=np.array([[(sharp or 0.0) * change]]),
            )
        )
    return replace(base, runs=tuple(runs))


def base_of(optimizers: tuple[str, ...], seeds: int) -> Replay:
    found = make_replay(optimizers=optimizers, seeds=seeds, steps=1, theory=False)
    first = {name: getattr(found, name)[:1] for name in ("eigenvalues", "eigenvalue_errors")}
    names = ("sharp_allocations", "sharp_updates", "sharp_gradients")
    runs = tuple(replace(run, **{name: getattr(run, name)[:, :1] for name in names}) for run in found.runs)
    return replace(found, runs=runs, **first)


def replays(
    optimizers: tuple[str, ...],
    seeds: int,
    count: int,
    means: dict[str, float] | None = None,
    sharp: float | None = 0.25,
) -> Iterator[Replay]:
    """Draw replays: what a seed's batches do to all alike, and what they do to each, of unlike size."""
    rng = np.random.default_rng(seeds)
    base = base_of(optimizers, seeds)
    for _ in range(count):
        shared = 0.05 * rng.standard_normal(seeds)
        yield replay_of(
            base,
            {
                name: (means or {}).get(name, -0.3) + shared + 0.005 * (1 + place) * rng.standard_normal(seeds)
                for place, name in enumerate(optimizers)
            },
            sharp,
        )


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_of_four_equal_optimizers_a_winner_is_named_in_one_replay_of_twenty_at_most(seeds: int) -> None:
    """Some of the six differences is beyond its own 95% interval in more than 15% of replays."""
    named = ranked = single = 0
    for found in replays(FOUR, seeds, 400, sharp=None):
        lead = judge_replay(found).lead
        named += "ends lowest" in lead
        ranked += "lowest" in lead or any(f"below {name}" in lead for name in FOUR)
        single += any(not claim.low <= 0.0 <= claim.high for claim in compare_losses(found).values())
    assert named <= 20
    assert ranked <= MOST
    assert single >= 60  # the correction has something to correct


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_no_question_is_answered_falsely_in_more_than_one_replay_of_twenty(seeds: int) -> None:
    pairs = ("muon", "muon-lite", "soap", "soap-lite")
    false = Counter[str]()
    for found in replays(pairs, seeds, 400):
        for question in (compare_losses, compare_bases, compare_progress):
            false[question.__name__] += any(claim.status != "open" for claim in question(found).values())
    assert all(count <= MOST for count in false.values()), false


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_of_every_claim_covers(seeds: int) -> None:
    """Student's t: ± one standard error covers 50%, 58% and 63%."""
    means = {"muon": -0.30, "muon-lite": -0.31}
    drop = means["muon-lite"] - means["muon"]
    covered, narrow = Counter[object](), Counter[object]()
    for found in replays(tuple(means), seeds, 2000, means):
        known: list[tuple[Claim, float]] = []
        known += [(claim, -drop) for claim in compare_losses(found).values()]
        known += [(claim, drop) for claim in compare_bases(found).values()]
        known += [(one, -drop * _share(key[2])) for key, one in compare_progress(found).items()]
        known += [(claim, means[name]) for name, claim in judge_changes(found).items()]
        known += [(one, -means[key[0]] * _share(key[1])) for key, one in judge_progress(found).items()]
        t = {2: 12.706, 3: 4.303, 5: 2.776}[seeds]
        for claim, true in known:
            covered[claim.subject, claim.quantity] += claim.low <= true <= claim.high
            narrow[claim.subject, claim.quantity] += abs(claim.value - true) <= (claim.high - claim.value) / t
    assert len(covered) == 1 + 1 + 2 + 2 + 4
    assert all(0.93 * 2000 <= count <= 0.97 * 2000 for count in covered.values()), covered
    assert all(count < 0.70 * 2000 for count in narrow.values())


def _share(part: str) -> float:
    return {"flat": 0.75, "sharp": 0.25}[part]


def test_a_winner_is_named_where_there_is_one() -> None:
    means = {"adamw": -0.3, "muon": -0.5, "soap": -0.4, "sgd": -0.2}
    leads = [judge_replay(found).lead for found in replays(FOUR, 5, 40, means, sharp=None)]
    assert sum("muon ends lowest, 0." in lead and ", below adamw, soap and sgd (5 seeds" in lead for lead in leads) > 35


def made(**changes: list[float]) -> Replay:
    seeds = len(next(iter(changes.values())))
    names = {name.replace("_", "-"): np.array(values) for name, values in changes.items()}
    return replay_of(base_of(tuple(names), seeds), names)


def test_the_lead_says_who_cannot_be_told_apart() -> None:
    def lead(**changes: list[float]) -> str:
        return judge_replay(made(**changes)).lead

    low, high, lone = [-0.300, -0.302, -0.301], [-0.2001, -0.2020, -0.2011], [-0.5, -0.502, -0.501]
    near = [-0.299, -0.304, -0.300]
    assert lead(muon=low, soap=near) == (
        "After 1 step muon and soap cannot be told apart and end 0.301 nats below the start's 1.472 (3 seeds, paired)."
    )
    assert lead(muon=low, soap=near, sgd=high) == (
        "After 1 step muon and soap cannot be told apart and end lowest, 0.301 nats below the start's 1.472, below sgd "
        "(3 seeds, paired)."
    )
    assert ", below soap and sgd (3 seeds, paired)." in lead(muon=lone, soap=low, sgd=high)
    # muon is below sgd, soap below nobody: they are not alike.
    wide = [-0.29, -0.35, -0.20]
    assert lead(muon=low, soap=wide, sgd=high) == (
        "After 1 step muon is ahead but cannot be told from soap; it ends below sgd (3 seeds, paired)."
    )
    vague = {"sgd": [-0.26, -0.35, -0.28], "adamw": [-0.33, -0.23, -0.29]}
    assert lead(muon=[-0.310, -0.309, -0.3095], soap=[-0.300, -0.302, -0.3005], **vague) == (
        "After 1 step muon, soap, sgd and adamw cannot be told apart after the correction for 6 comparisons and end "
        "0.283 to 0.310 nats below the start's 1.472 (3 seeds, paired)."
    )
    assert lead(muon=[-0.3, 0.3, 0.1], soap=[0.3, -0.2, -0.3]) == (
        "After 1 step muon and soap cannot be told apart and end between 0.067 nats below and 0.033 above the start's "
        "1.472 (3 seeds, paired)."
    )


def test_pairs_that_share_other_seeds_may_go_round_in_a_circle() -> None:
    """muon is below soap on seeds 2 and 3, soap below sgd on 4 and 5, sgd below muon on 0 and 1."""
    found = made(
        muon=[-0.2, -0.2, -0.3, -0.3, 0.0, 0.0],
        soap=[0.0, 0.0, -0.2, -0.2, -0.3, -0.3],
        sgd=[-0.3, -0.3, 0.0, 0.0, -0.2, -0.2],
    )
    runs = [replace(run, diverged_at=0 if run.loss_change == 0.0 else None) for run in found.runs]
    assert judge_replay(replace(found, runs=tuple(runs))).lead == (
        "After 1 step none of muon, soap and sgd ends lowest: each ends above another on the seeds that both finished "
        "(6 seeds, paired)."
    )


def test_what_is_told_alone_and_not_among_several_says_why() -> None:
    # Differences of −0.010, −0.007 and −0.009: p = 1.0%, and three times that among three.
    near = {"muon": [-0.310, -0.309, -0.3095], "soap": [-0.300, -0.302, -0.3005]}
    (claim,) = compare_losses(made(**near)).values()
    assert (claim.status, claim.comparisons) == ("holds", 1)
    assert claim.sentence == "muon ends 0.0087 nats below soap (95%: 0.0049 to 0.0125)."
    claim = compare_losses(made(**near, sgd=[-0.26, -0.35, -0.28], adamw=[-0.33, -0.23, -0.29]))["muon", "soap"]
    assert (claim.status, claim.comparisons) == ("open", 6)
    assert claim.sentence == (
        "muon minus soap: −0.0087 nats of final loss (95%: −0.0125 to −0.0049), not beyond the correction for 6 "
        "comparisons."
    )


def test_no_claim_is_open_beside_an_interval_that_excludes_zero_without_the_reason() -> None:
    seen = Counter[str]()
    for found in replays(("muon", "muon-lite", "soap", "soap-lite"), 3, 150):
        for claim in judge_replay(found).claims:
            excludes = not claim.low <= 0.0 <= claim.high
            corrected = f"not beyond the correction for {claim.comparisons} comparisons" in claim.sentence
            assert corrected == (claim.status == "open" and excludes), claim
            assert ("not beyond the error" in claim.sentence) == (not excludes), claim
            seen[f"{claim.status} {excludes}"] += 1
    assert set(seen) >= {"holds True", "open True", "open False"}


def test_a_claim_decided_among_few_says_that_it_is_not_among_all() -> None:
    found = made(
        muon=[-0.300, -0.302, -0.3005],
        muon_lite=[-0.310, -0.309, -0.3095],
        soap=[-0.26, -0.35, -0.28],
        sgd=[-0.33, -0.23, -0.29],
    )
    (claim,) = compare_bases(found).values()
    assert (claim.status, claim.comparisons) == ("holds", 1)
    assert compare_losses(found)["muon", "muon-lite"].status == "open"
    (text,) = [point.text for point in judge_replay(found).points if claim in point.claims]
    assert text.endswith("Among the 6 comparisons of all optimizers it is not told. All at 1,024 tokens a batch.")


def test_the_verdict_says_once_what_was_corrected() -> None:
    def said(found: Replay) -> list[str]:
        return [point.text for point in judge_replay(found).points if "for one evaluation set" in point.text]

    pairs = make_replay(optimizers=("muon", "muon-lite", "soap", "soap-lite"), seeds=5, noise=0.001)
    cover = "ntervals are 95%, not corrected, over seeds, for one evaluation set."
    assert said(pairs) == [
        "Differences are claimed after Holm's correction over the comparisons of each question (6 of final losses, 2 "
        "with a base, 4 of progress with a base's, 4 of loss changes with zero and 8 of progress with zero); i" + cover
    ]
    assert said(make_replay(optimizers=("muon",), seeds=5, noise=0.001)) == [
        f"Differences are claimed after Holm's correction over 2 comparisons of progress with zero; i{cover}"
    ]
    assert said(make_replay(seeds=1)) == []
    assert said(make_replay(seeds=2))[0].endswith(" evaluation set. More seeds may tell what is not told.")


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_claim_is_worded_the_same_in_terminal_page_and_json(monkeypatch: pytest.MonkeyPatch, seeds: int) -> None:
    found = make_replay(seeds=seeds, ablations=True, diverged=(("soap", 0, 7),) if seeds > 1 else ())
    verdict = judge_replay(found)
    terminal, screen = on_screen(monkeypatch, 10_000, color=False)
    terminal.show(summarize("replay", found))
    shown = "\n".join(lines_on(screen))
    page = unescape(render_page([Run(replay=found)]))
    told = json.loads(json.dumps(describe("replay", found), allow_nan=False))
    sentences = [claim["sentence"] for claim in told["claims"]]
    assert sentences == [claim.sentence for claim in verdict.claims]
    assert len(set(sentences)) == len(sentences) == (0 if seeds == 1 else 6 + 4 + 4 + 8 + 8)
    for sentence in (told["lead"], *sentences):
        assert shown.count(sentence) == 1, sentence
        assert page.count(sentence) in (1, 2), sentence  # the first screen has the lead as well


def test_the_json_claim_has_its_number_interval_and_status() -> None:
    found = make_replay(seeds=5, noise=0.001)
    (told,) = [
        claim
        for claim in describe("replay", found)["claims"]
        if (claim["subject"], claim["quantity"]) == ("muon-lite", "final loss minus that of muon")
    ]
    difference = found.difference("muon-lite", "muon")
    assert difference is not None
    assert (told["value"], told["low"], told["high"]) == (difference.value, difference.low, difference.high)
    assert (told["unit"], told["status"], told["confidence"]) == ("nats", "holds", 0.95)
    assert (told["comparisons"], told["covers"]) == (2, "5 seeds")
