"""What the demo does and says, on a model a hundred times smaller; how long the real one takes is for `make demo`."""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lite_probe import training
from lite_probe.commands import demo
from lite_probe.commands.console import Terminal
from lite_probe.commands.measuring import RunOptions
from lite_probe.commands.spectrum import SpectrumMeasuring
from lite_probe.commands.task import TaskOptions
from lite_probe.measurements.requests.spectrum import SpectrumRequest
from lite_probe.measurements.spectrum import SpectrumPlan
from tests.commands.running import run

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden": 16, "layers": 1, "heads": 2, "seq_len": 128, "batch_size": 2, "eval_batches": 1}
    monkeypatch.setattr(training, "train_byte_llama", functools.partial(training.train_byte_llama, **shape))
    monkeypatch.setattr(demo, "_STEPS", (2, 4))
    subspace, short = {"probes": 2, "warm_batches": 2}, {"steps": 2, "seeds": 1, "lr": 0.001, "warm_batches": 2}
    lean = {**subspace, "preconditioned": False}
    monkeypatch.setattr(demo, "_SUBSPACE", (demo._Variant(subspace), demo._Variant(lean, "its metrics")))
    muon = demo._Variant({**short, "optimizers": ("muon",)}, "all but muon")
    monkeypatch.setattr(demo, "_REPLAY", (demo._Variant(short), muon))
    steps = {"optimizers": ("muon",), "lr": 0.001, "warm_batches": 2, "step_batches": 16, "critical_batches": 1}
    critical = demo._Variant({**steps, "critical_only": True}, "all but the critical step")
    monkeypatch.setattr(demo, "_TOLERATED", (demo._Variant(steps), critical))
    few = {"nodes": 2, "topology": "complete", "node_batches": 1, "iterations": 20, "seeds": 2}
    tuned = {"lr": 0.001, "warm_batches": 2, "step_batches": 16, **few}
    untested = demo._Variant({**tuned, "replay_steps": 0}, "its replay")
    monkeypatch.setattr(demo, "_TUNED", (demo._Variant({**tuned, "replay_steps": 2}), untested))


@pytest.mark.usefixtures("small")
def test_one_page_has_spectra_subspaces_and_the_replay(tmp_path: Path) -> None:
    found = run("demo", "--out", tmp_path / "demo", "--threads", 1, "--full", "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout, parse_constant=pytest.fail)
    assert told["report"] == str(tmp_path / "demo" / "report.html")
    assert [len(told[name]) for name in ("spectra", "subspaces", "steps")] == [2, 2, 2]
    # The second checkpoint is compared with the first.
    assert [one["kind"] for one in told["subspaces"][0]["overlaps"]] == ["batches", "operators"]
    last = told["subspaces"][1]["overlaps"][-1]
    assert (last["kind"], last["first"], last["second"]) == ("checkpoints", "step-00002", "step-00004")
    assert told["tuning"]["optimizer"] == "muon-lite"
    assert list(told["replay"]["optimizers"]) == ["muon", "muon-lite", "soap", "soap-lite"]
    assert found.stderr.splitlines()[-1].startswith("From step-00002 to step-00004 the loss ")
    for name, kinds in (
        ("step-00002", {"spectrum", "subspace", "replay", "steps", "tuning"}),
        ("step-00004", {"spectrum", "subspace", "steps"}),
    ):
        folder = tmp_path / "demo" / name
        assert {path.stem for path in folder.glob("*.json")} == kinds | {"checkpoint"}
    page = (tmp_path / "demo" / "report.html").read_text()
    own = (tmp_path / "demo" / "step-00002" / "report.html").read_text()
    # A page of one run knows what was measured last, too.
    for text in (page, own):
        assert "soap-lite minus soap" in text
    assert told["left_out"] == []
    again = run("demo", "--out", tmp_path / "demo", "--threads", 1, "--full")
    assert again.exit_code == 0, again.stderr
    assert again.stdout == f"{told['report']}\n"
    assert "already trained" in again.stderr
    assert again.stderr.count("already measured") == 8
    assert Path(told["report"]).read_text() == page


@pytest.mark.usefixtures("small")
def test_on_a_machine_too_slow_for_all_of_it_the_rest_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_SECONDS", 0.0)
    found = run("demo", "--out", tmp_path / "demo", "--threads", 1, "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["left_out"] == [
        "training beyond step 2, and all that is measured there",
        "of step-00002's spectrum the spectra of its blocks, and half of its eigenpairs",
        "the replay of step-00002",
        "the steps of step-00002",
        "the subspace of step-00002",
        "the tuning of step-00002",
    ]
    assert (len(told["spectra"]), told["subspaces"], told["replay"]) == (1, [], None)
    assert len(told["spectra"][0]["eigenvalues"]) == 5
    assert told["spectra"][0]["blocks"] == {}
    assert f"left out, to end within five minutes here: {'; '.join(told['left_out'])}; --full has it all" in (
        found.stderr
    )


@pytest.mark.parametrize(("seconds", "chosen"), [(60.0, 0), (59.0, 1), (0.5, None)])
def test_the_richest_variant_that_fits_is_chosen(
    seconds: float,
    chosen: int | None,
    tiny_llama: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By what plans say, which are given here: a spectrum per block takes a minute, one without a second."""
    of = SpectrumPlan.of

    def planned(task: Any, request: Any, on_progress: Any) -> SpectrumPlan:
        return replace(of(task, request, on_progress), seconds=60.0 if request.per_block else 1.0)

    monkeypatch.setattr(SpectrumPlan, "of", planned)
    asked = TaskOptions(
        checkpoint=str(tiny_llama), data_path=str(text), tokenizer="bytes", seq_len=16, batch_size=4, batches=1
    )
    one = SpectrumMeasuring(Terminal(""), asked, RunOptions(), SpectrumRequest(), {"verify": False, "sharded": False})
    variants = [{"top": 2, "bottom": 1, "probes": 2, "per_block": rich} for rich in (True, False)]
    opened = one.open()
    assert one.choose(opened, tmp_path, variants, seconds) == chosen
    assert one.request.per_block is (chosen == 0)
    # What is there is asked for again, whatever it would take.
    one.measured(opened, tmp_path)
    again = SpectrumMeasuring(Terminal(""), asked, RunOptions(), SpectrumRequest(), {"verify": False, "sharded": False})
    assert again.choose(again.open(), tmp_path, variants, 0.0) == (0 if chosen == 0 else 1)
