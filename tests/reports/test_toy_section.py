"""A kind of measurement is shown once its parts are named in the table of kinds: nothing else knows it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lite_probe.reports.page import render_page, write_report
from lite_probe.reports.runs import Run
from lite_probe.reports.sections.section import Block, Figures, Line, Part, Remarks, Section, describe, summarize
from lite_probe.reports.verdict import Point, Verdict
from lite_probe.results.claim import Claim
from lite_probe.results.kinds import KINDS, Kind, register_kind
from lite_probe.results.provenance import Note, Provenance
from lite_probe.results.store import load, save
from tests.reports.fixtures import make_provenance, make_spectrum

HERE = "tests.reports.test_toy_section"
SENTENCE = "Noise is 0.5 of the signal (95%: 0.4 to 0.6)."


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How noisy a gradient is."""

    share: float
    num_parameters: int
    config: Mapping[str, object]
    fingerprint: str
    notes: tuple[Note, ...] = ()
    provenance: Provenance


class NoiseSection(Section):
    """How it is shown."""

    heading = "Noise"
    template = Path(__file__).with_name("toy.html.j2")

    def subject(self, results: Sequence[Noise]) -> str:
        return "noise"

    def facts(self, result: Noise) -> Mapping[str, str]:
        return {"share": str(result.share)}

    def verdict(self, result: Noise) -> Verdict:
        claim = Claim(
            subject="gradient",
            quantity="noise",
            value=result.share,
            low=0.4,
            high=0.6,
            unit="",
            status="holds",
            sentence=SENTENCE,
            comparisons=1,
            covers="8 batches",
        )
        return Verdict(lead=SENTENCE, points=(Point(tone="plain", text="It is <b>loud</b>."),), leading=(claim,))

    def summary(self, result: Noise) -> Sequence[Block]:
        return [Figures([f"noise {result.share}"])]

    def json_object(self, result: Noise) -> dict[str, Any]:
        return {"share": result.share}

    def part(self, labelled: Sequence[tuple[str, Noise]]) -> Part:
        verdicts = [(label, self.verdict(one)) for label, one in labelled]
        return Part(
            view={"shares": [(label, one.share) for label, one in labelled], "points": verdicts[-1][1].points},
            leads=[("" if len(labelled) == 1 else label, verdict.lead) for label, verdict in verdicts],
            links=[("loudest", "Loudest")],
            figures={"noise": {"data": [], "layout": {}}},
        )


SECTION = NoiseSection()


@pytest.fixture
def noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Noise]:
    """Register the kind for one test; its template is a file of the test's own."""
    template = tmp_path / "noise.html.j2"
    template.write_text(
        '{% from "macros.html.j2" import figure, points %}<h3 id="loudest">Loudest</h3>\n'
        "{% for label, share in part.shares %}<p>{{ label }} has {{ share }}.</p>{% endfor %}\n"
        '{{ points(part.points) }}{{ figure("noise", "Noise.", "x") }}\n'
    )
    monkeypatch.setattr(NoiseSection, "template", template)
    part = f"{HERE}:{{}}".format
    register_kind(
        Kind(name="noise", record=part("Noise"), request=part("Noise"), plan=part("Noise"), section=part("SECTION"))
    )
    try:
        yield Noise(
            share=0.5,
            num_parameters=10,
            config={},
            fingerprint="f",
            notes=(Note(code="quiet", message="Batches were few."),),
            provenance=make_provenance(checkpoint_name="<i>toy</i>", command=""),
        )
    finally:
        del KINDS["noise"]


def test_a_page_has_a_part_of_it_beside_a_spectrum(noise: Noise) -> None:
    page = render_page([Run(spectrum=make_spectrum(), noise=noise)])
    assert "<title>Hessian spectrum and noise of gpt-5000</title>" in page
    assert '<li><a href="#noise">Noise</a></li>\n<li><a href="#loudest">Loudest</a></li>' in page
    assert f'<h2 class="of">Noise</h2>\n<p class="lead">{SENTENCE}</p>' in page
    assert f'<h2 id="noise-heading">Noise</h2>\n<p class="lead">{SENTENCE}</p>' in page
    assert "It is &lt;b&gt;loud&lt;/b&gt;." in page
    assert page.index('<section id="spectrum"') < page.index('<section id="noise"')
    assert '<h3 id="loudest">Loudest</h3>\n<p>gpt-5000 has 0.5.</p>' in page
    assert '"noise":{"data":[],"layout":{}}' in page
    assert "Batches were few. <code>quiet</code>" in page
    # What comes from a file is text in a template of anyone's.
    alone = render_page([Run(noise=noise)])
    assert "<p>&lt;i&gt;toy&lt;/i&gt; has 0.5.</p>" in alone
    assert "<i>toy" not in alone


def test_it_is_saved_and_shown_from_its_run_directory(noise: Noise, tmp_path: Path) -> None:
    head = save(noise, tmp_path / "run")
    assert head.name == "noise.json"
    assert load(head) == noise
    save(make_spectrum(), tmp_path / "run")
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert '<section id="noise"' in page
    assert '<section id="spectrum"' in page


def test_the_terminal_and_programs_get_the_same_sentences(noise: Noise) -> None:
    assert summarize("noise", noise) == [
        Figures(["noise 0.5"]),
        Line(SENTENCE),
        Line("It is <b>loud</b>."),
        Remarks(["Batches were few."]),
    ]
    told = json.loads(json.dumps(describe("noise", noise)))
    assert (told["share"], told["lead"], told["claims"][0]["sentence"]) == (0.5, SENTENCE, SENTENCE)
    assert told["notes"] == [{"code": "quiet", "message": "Batches were few."}]


def test_another_kind_of_its_name_is_refused(noise: Noise) -> None:
    with pytest.raises(ValueError, match="got 'noise', which there is"):
        register_kind(Kind(name="noise", record="a:b", request="a:b", plan="a:b", section="a:b"))
