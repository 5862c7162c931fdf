"""`lite-probe tune` from end to end on a tiny checkpoint: files, stdout, the replay, reuse, ranks, refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from lite_probe.results.store import load
from lite_probe.results.tuning import Tuning
from tests.commands.running import BATCH, run

pytestmark = pytest.mark.slow

SMALL = ("--nodes", "2", "--node-batches", "1", "--warm-batches", "2", "--step-batches", "16", "--lr", "0.01")
SMALL += ("--topology", "complete", "--iterations", "40")
REPLAY = ("--replay-steps", "2", "--seeds", "2")
Measured = tuple[Path, Result]


def tune(checkpoint: Path, text: Path, out: Path, *more: object) -> Result:
    """Of options given twice the last counts."""
    return run("tune", checkpoint, "--data", text, "--out", out, *BATCH, *SMALL, *REPLAY, *more)


@pytest.fixture(scope="module")
def whole(tiny_llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """All that there is; to be left as it is."""
    out = tmp_path_factory.mktemp("probe") / "whole"
    return out, tune(tiny_llama, text, out, "--json")


def saved(out: Path) -> Tuning:
    found: Tuning = load(out, "tuning")
    return found


def test_the_settings_are_saved_shown_and_replayed(whole: Measured) -> None:
    out, found = whole
    assert found.exit_code == 0, found.stderr
    json.loads(found.stdout, parse_constant=pytest.fail)
    tuning = saved(out)
    assert tuning.num_nodes == 2
    assert tuning.replay is not None
    names = [f"muon-lite@{label}" for label in ("published", "profile", "tuned", "pooled")]
    assert tuning.replay.optimizers == ("muon", *names)
    assert list(tuning.candidates) == names
    assert tuning.settings == tuning.candidates["muon-lite@tuned"]
    assert set(tuning.spread) == {one.block for one in tuning.tuned.blocks}
    for one in tuning.tuned.blocks:
        low, high = tuning.spread[one.block]
        assert 1.0 <= low <= high <= 8.0
    assert "tuned" in (out / "report.html").read_text()
    assert not [path for path in out.iterdir() if path.name.endswith(".state")]


def test_the_settings_are_what_was_replayed(whole: Measured) -> None:
    tuning = saved(whole[0])
    assert tuning.replay is not None
    recipe = tuning.replay.recipes["muon-lite@tuned"]
    assert recipe.lr == tuning.lr == 0.01
    assert recipe.hyperparameters["beta2"] == tuning.tuned.damping
    told = recipe.hyperparameters["flat_lr_ratio"]
    assert told == {one.block: float(f"{one.ratio:.3g}") for one in tuning.tuned.blocks}


def test_every_node_measured_on_batches_of_its_own(whole: Measured) -> None:
    details = saved(whole[0]).provenance.details
    parts = ("shard of node 1", "shard of node 2", "batches of the steps", "batches of the replay")
    assert len({details[part] for part in parts}) == 4
    assert not [note for note in saved(whole[0]).notes if note.code == "batches-shared"]


def test_the_same_command_knows_its_result_at_once(whole: Measured, tiny_llama: Path, text: Path) -> None:
    found = tune(tiny_llama, text, whole[0], "--json")
    assert found.exit_code == 0, found.stderr
    assert "already measured" in found.stderr
    assert found.stdout == whole[1].stdout


def test_a_dry_run_says_the_plan_and_writes_nothing(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    found = tune(tiny_llama, text, tmp_path / "out", "--dry-run", "--json", "--replay-steps", 0)
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["num_products"] > 0
    assert told["num_gradients"] == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        (("--optimizer", "muon"), 2, "expected a LITE variant to tune, adamw-lite, muon-lite or soap-lite, got 'muon'"),
        (("--optimizer", "mine"), 2, "expected an optimizer among"),
        (("--optimizer", "muon-lite@mine"), 2, "without a label"),
        (("--lr", "muon=0.1"), 2, "expected one learning rate to tune at"),
        (("--topology", "torus", "--nodes", "3"), 2, "a product for a torus, got 3"),
        (("--topology", "nowhere.txt"), 3, "expected a topology, ring, adjusted-ring"),
        (("--nodes", "1"), 2, "≥ 2"),
        (("--node-batches", "100000"), 2, "expected a whole number ≤ 1,000, got 100,000"),
        (("--upper", "best"), 2, "got best"),
    ],
)
def test_what_cannot_be_is_refused(
    asked: tuple[str, ...], code: int, said: str, tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    found = tune(tiny_llama, text, tmp_path / "out", *asked)
    assert found.exit_code == code, found.stderr
    assert said in " ".join(found.stderr.split())
    assert "Traceback" not in found.stderr


def test_a_disconnected_file_of_edges_is_refused(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    edges = tmp_path / "edges.txt"
    edges.write_text("0 1\n2 3\n")
    found = tune(tiny_llama, text, tmp_path / "out", "--topology", edges, "--nodes", 4)
    assert found.exit_code == 3
    assert "expected a connected graph, got no path from node 0 to 2, 3" in " ".join(found.stderr.split())


def on_ranks(checkpoint: Path, text: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the command on two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["lite_probe", "tune", str(checkpoint), "--data", str(text), "--out", str(out)]
    command += [str(word) for word in (*BATCH, *SMALL, *REPLAY)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=600, check=False)


def test_a_node_on_each_rank_recommends_the_same(whole: Measured, tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    found = on_ranks(tiny_llama, text, tmp_path / "out", "--threads", "1")
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == [str(tmp_path / "out" / name) for name in ("report.html", "tuning.json")]
    one, many = saved(whole[0]), saved(tmp_path / "out")
    figures: list[Any] = [(run.damping_logs, run.multiples, run.models.gains) for run in (one, many)]
    for alone, apart in zip(*figures, strict=True):
        # Products of the models round otherwise on other numbers of threads; all that follows is in float64.
        np.testing.assert_allclose(apart, alone, rtol=1e-4, atol=1e-6)
    assert many.replay is not None
    assert saved(tmp_path / "out" / "rank-1").replay is None
    # Rank 0 may be killed in its replay, when the others have ended: it needs them again.
    (tmp_path / "out" / "tuning.json").unlink()
    assert on_ranks(tiny_llama, text, tmp_path / "out", "--threads", "1").returncode == 0
    np.testing.assert_allclose(saved(tmp_path / "out").damping_logs, many.damping_logs, rtol=1e-9)


def test_ranks_that_are_not_as_many_as_nodes_are_refused(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    found = on_ranks(tiny_llama, text, tmp_path / "out", "--nodes", "4")
    assert found.returncode != 0
    assert "expected as many nodes as ranks, 2, got 4" in " ".join(found.stderr.split())
