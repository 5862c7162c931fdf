"""One is singular, what is not known is not said, and nothing is said twice."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lite_probe.reports.numbers import count_of
from lite_probe.reports.runs import Run
from lite_probe.reports.sections.replay import SECTION
from lite_probe.reports.sections.replay_verdict import judge_replay
from lite_probe.reports.sections.spectrum_verdict import judge
from lite_probe.reports.sections.subspace_verdict import judge_subspace
from lite_probe.reports.verdict import Verdict
from lite_probe.reports.view import make_view
from lite_probe.results.estimate import Estimate
from lite_probe.results.provenance import Note
from lite_probe.results.replay import Replay
from lite_probe.results.spectrum import Spectrum
from tests.reports.fixtures import make_operator_spectrum, make_overlap, make_replay, make_spectrum, make_subspace

NOUNS = "steps|seeds|pairs|eigenvalues|directions|angles|batches|ones|probes"
ONE_OF_MANY = re.compile(rf"(?<![\d.,])1 (sharp |random |converged |largest )?({NOUNS})\b")


def test_counts_have_their_nouns() -> None:
    assert count_of(1, "seed") == "1 seed"
    assert count_of(0, "seed") == "0 seeds"
    assert count_of(1200, "batch", "batches") == "1,200 batches"
    assert count_of(1, "batch", "batches") == "1 batch"


def sentences(verdict: Verdict) -> list[str]:
    return [verdict.lead, *(point.text for point in verdict.points)]


def of_one_eigenvector() -> Replay:
    replay = make_replay(optimizers=("muon",), steps=1, seeds=3)
    sharp = ("sharp_allocations", "sharp_updates", "sharp_gradients")
    runs = tuple(replace(run, **{name: -np.abs(getattr(run, name)[:, :1]) for name in sharp}) for run in replay.runs)
    first = {name: getattr(replay, name)[:1] for name in ("eigenvalues", "eigenvalue_errors")}
    return replace(replay, runs=runs, theory={}, **first)


def test_one_of_anything_is_singular() -> None:
    replay = of_one_eigenvector()
    texts = [*sentences(judge_replay(replay)), SECTION.part([("", replay)]).view[0]["subtitle"]]
    assert texts[0].startswith("After 1 step muon ends")
    assert texts[-1] == "1 step · 3 seeds · simpson rule · 1 sharp direction · losses of the evaluation batches"
    assert any(" nats of progress along the sharp direction (95%: " in text for text in texts)
    raised = replace(replay, runs=tuple(replace(run, sharp_allocations=-run.sharp_allocations) for run in replay.runs))
    texts += sentences(judge_replay(raised))
    assert any(re.search(r"muon raises the loss by [^(]+ nats along the sharp direction", text) for text in texts)
    lone = replace(make_spectrum(blocks=False), whole=make_operator_spectrum(top=1, bottom=0))
    texts += sentences(judge([("a", lone)]))
    assert any(text.startswith("The pair asked for converged to") for text in texts)
    short = replace(lone, whole=replace(lone.whole, num_requested=3))
    texts += sentences(judge([("a", short)]))
    assert any("only 1 was found" in text for text in texts)
    view = make_view([Run(spectrum=lone)])
    texts.append(view.parts["spectrum"].view["density"].summary)
    for share in (0.3, 1e-9):
        subspace = replace(
            make_subspace(overlaps=False), size=1, gradient_share=share, overlaps=(make_overlap(),), calibrations={}
        )
        texts += sentences(judge_subspace(subspace))
    assert not [text for text in texts if ONE_OF_MANY.search(text.replace("\u00a0", " "))]


def with_batches(**changes: object) -> str:
    origin = replace(make_spectrum().provenance, **changes)  # type: ignore[arg-type]
    return " · ".join(make_view([Run(spectrum=replace(make_spectrum(), provenance=origin))]).overview.on)


def test_batches_of_unknown_size_are_not_of_zero() -> None:
    """A task from a user's own file may tell neither."""
    assert "4 batches of 4 × 256 tokens of val.bin (evaluation)" in with_batches()
    assert "2 batches (evaluation)" in with_batches(num_batches=2, batch_size=0, seq_len=None, data_name="")
    assert "1 batch of val.bin (evaluation)" in with_batches(num_batches=1, batch_size=0, seq_len=None)
    origin = replace(make_spectrum().provenance, batch_size=0)
    view = make_view([Run(spectrum=replace(make_spectrum(), provenance=origin))])
    facts = {row[0].text: row[1].text for row in view.provenance[0].rows}
    assert facts["batch size"] == "–"


def test_a_note_is_said_once() -> None:
    note = Note(code="a", message="The state is cold.")
    runs = [
        Run(spectrum=make_spectrum(notes=(note, note)), replay=make_replay(notes=(note,))),
        Run(subspace=make_subspace(name="other", step=None, notes=(replace(note, code="b"),))),
    ]
    assert make_view(runs).notes == (("The state is cold.", "a", "gpt-5000, other"),)


@pytest.mark.parametrize("trace", [5.0, -1.0])
def test_the_top_is_a_share_of_the_trace_only_where_it_is_one(trace: float) -> None:
    """Where negative eigenvalues cancel, ten of a sum of 100 are more than a trace of 5."""
    whole = make_operator_spectrum()
    assert whole.eigenvalues.sum() > 100.0
    estimate = Estimate(value=trace, stderr=0.1, low=trace - 0.2, high=trace + 0.2, num_samples=8)
    spectrum: Spectrum = replace(make_spectrum(blocks=False), whole=replace(whole, trace=estimate))
    view = make_view([Run(spectrum=spectrum)])
    rows = view.parts["spectrum"].view["key_numbers"].rows
    (cell,) = [row[1] for row in rows if row[0].text == "top pairs' share of trace"]
    assert cell.text == "–"
    texts = sentences(judge([("a", spectrum)]))
    shares = [float(number) for text in texts for number in re.findall(r"([\d.,]+)%", text)]
    assert all(share <= 100.0 for share in shares)


def test_negative_curvature_beyond_the_top_is_no_share_of_it() -> None:
    whole = make_operator_spectrum()
    deep = replace(whole, lower_eigenvalues=np.sort(-3.0 * whole.eigenvalues[:5]))
    texts = sentences(judge([("a", replace(make_spectrum(blocks=False), whole=deep))]))
    assert any("3.00 times λ₁ in size" in text for text in texts)
