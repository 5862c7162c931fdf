"""Commands under torchrun: two ranks write what one process writes, stop together, and go on where they were."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lite_probe.results.store import load
from tests.commands.conftest import save_llama
from tests.commands.running import SUBSPACE, run
from tests.launching import RANKS, finished, killed_once_there, started

pytestmark = pytest.mark.slow

BATCH = ("--tokenizer", "bytes", "--seq-len", "16", "--batch-size", "4", "--batches", "2", "--threads", "1")
SPECTRUM = ("--precision", "float64", "--top", "4", "--bottom", "1", "--probes", "3")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of more than two chunks of parameters, so that both ranks hold something of a vector."""
    return save_llama(tmp_path_factory.mktemp("checkpoints") / "llama", seed=5, hidden=64)


def arguments(kind: str, checkpoint: Path, text: Path, out: Path, *more: object) -> list[str]:
    return [kind, str(checkpoint), "--data", str(text), "--out", str(out), *BATCH, *map(str, more)]


def by_ranks(*asked: str) -> Any:
    return started(["-m", "lite_probe", *asked])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def alone(llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    done = run(*arguments("spectrum", llama, text, out, *SPECTRUM))
    assert done.exit_code == 0, done.stderr
    return out


def require_same_spectrum(found: Path, alone: Path) -> None:
    """Compare two runs in float64."""
    one, other = load(found, "spectrum"), load(alone, "spectrum")
    assert one.fingerprint == other.fingerprint
    assert one.notes == other.notes
    # Probes are deflated by Ritz vectors, which turn by a rounding over the gap to the next one, here 1e-2; and the
    # recurrence of a probe blows up roundings once its outer nodes have converged, to 2e-8 on one processor.
    tolerances = {"eigenvalues": 1e-12, "lower_eigenvalues": 1e-12, "nodes": 1e-6, "weights": 1e-6}
    for name, tolerance in tolerances.items():
        np.testing.assert_allclose(
            getattr(one.whole, name), getattr(other.whole, name), rtol=tolerance, atol=tolerance, err_msg=name
        )
    assert one.whole.trace.value == pytest.approx(other.whole.trace.value, rel=1e-12)
    assert one.whole.num_hvps == other.whole.num_hvps
    assert one.loss == other.loss
    overlaps = (one.eigenvectors.astype(np.float64) * other.eigenvectors).sum(axis=0)
    np.testing.assert_allclose(np.abs(overlaps), 1.0, atol=1e-6)


def test_a_killed_rank_ends_all_and_the_same_command_goes_on(
    llama: Path, text: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    asked = arguments("spectrum", llama, text, out, *SPECTRUM)
    head = out / "spectrum.state" / "whole" / "running" / "head.json"
    killed_once_there(by_ranks(*asked), head)
    assert names(head.parent) == {"head.json", *(f"rank-{rank}-of-{RANKS}" for rank in range(RANKS))}
    # Two ranks' slices are no other number's: one process refuses them.
    refused = run(*asked)
    assert refused.exit_code == 2, refused.stderr
    assert "with the 2 ranks that began, got 1" in refused.stderr
    assert "start 2 ranks again, or remove that folder to begin anew" in refused.stderr
    saved = json.loads(head.read_text())["content"]["head"]["num_products"]
    assert saved > 0
    code, printed, said = finished(by_ranks(*asked))
    assert code == 0, said
    assert printed.split() == [str(out / "report.html"), str(out / "spectrum.json")]
    assert said.count("plan: ") == 1  # rank 0 alone speaks
    assert ", on each of 2 ranks" in said
    require_same_spectrum(out, alone)
    assert names(out) == names(alone)
    assert load(out, "spectrum").provenance.details["ranks"] == str(RANKS)
    assert "ranks" not in load(alone, "spectrum").provenance.details


def test_several_checkpoints_are_measured_together(
    tiny_llama: Path, other_llama: Path, text: Path, tmp_path: Path
) -> None:
    more = ("--top", "2", "--probes", "2")
    for checkpoint in (tiny_llama, other_llama):
        found = run("spectrum", checkpoint, "--data", text, "--out", tmp_path / checkpoint.name, *BATCH, *more)
        assert found.exit_code == 0, found.stderr
    asked = ("--data", text, "--out", tmp_path, *BATCH, *SUBSPACE, "--size", 2)
    code, printed, said = finished(by_ranks("subspace", *map(str, (tiny_llama, other_llama, *asked))))
    assert code == 0, said
    folders = [tmp_path / checkpoint.name for checkpoint in (tiny_llama, other_llama)]
    assert printed.split() == [str(folder / name) for folder in folders for name in ("report.html", "subspace.json")]
    assert said.count("plan: ") == 2  # rank 0 alone speaks
    later = load(folders[1], "subspace")
    assert later.provenance.details["ranks"] == str(RANKS)
    compared = [{row.first, row.second} for row in later.overlaps if row.kind == "checkpoints"]
    assert compared == [{tiny_llama.name, other_llama.name}]
