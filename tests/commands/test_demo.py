"""What the demo does and says, on a model a hundred times smaller; how long the real one takes is for `make demo`."""

import functools
import json
from pathlib import Path

import pytest

from lite_probe import training
from lite_probe.commands import demo
from tests.commands.running import run

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden": 16, "layers": 1, "heads": 2, "seq_len": 128, "batch_size": 2, "eval_batches": 1}
    monkeypatch.setattr(training, "train_byte_llama", functools.partial(training.train_byte_llama, **shape))
    monkeypatch.setattr(demo, "_STEPS", (2, 4))
    monkeypatch.setattr(demo, "_SUBSPACE", {"probes": 2, "warm_batches": 2})
    monkeypatch.setattr(demo, "_REPLAY", {"steps": 2, "seeds": 1, "lr": 0.001, "warm_batches": 2})


@pytest.mark.usefixtures("small")
def test_one_page_has_spectra_subspaces_and_the_replay(tmp_path: Path) -> None:
    found = run("demo", "--out", tmp_path / "demo", "--threads", 1, "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout, parse_constant=pytest.fail)
    assert told["report"] == str(tmp_path / "demo" / "report.html")
    assert [len(told[name]) for name in ("spectra", "subspaces")] == [2, 2]
    # The second checkpoint is compared with the first.
    assert [one["kind"] for one in told["subspaces"][0]["overlaps"]] == ["batches", "operators"]
    last = told["subspaces"][1]["overlaps"][-1]
    assert (last["kind"], last["first"], last["second"]) == ("checkpoints", "step-00002", "step-00004")
    assert list(told["replay"]["optimizers"]) == ["muon", "muon-lite", "soap", "soap-lite"]
    assert found.stderr.splitlines()[-1].startswith("From step-00002 to step-00004 the loss ")
    for name, kinds in (
        ("step-00002", {"spectrum", "subspace", "replay"}),
        ("step-00004", {"spectrum", "subspace"}),
    ):
        folder = tmp_path / "demo" / name
        assert {path.stem for path in folder.glob("*.json")} == kinds | {"checkpoint"}
    page = (tmp_path / "demo" / "report.html").read_text()
    own = (tmp_path / "demo" / "step-00002" / "report.html").read_text()
    # A page of one run knows what was measured last, too.
    for text in (page, own):
        assert "soap-lite minus soap" in text
    again = run("demo", "--out", tmp_path / "demo", "--threads", 1)
    assert again.exit_code == 0, again.stderr
    assert again.stdout == f"{told['report']}\n"
    assert "already trained" in again.stderr
    assert again.stderr.count("already measured") == 5
    assert Path(told["report"]).read_text() == page
