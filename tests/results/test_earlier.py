"""What the version before wrote is read and reported: `earlier/` is a run directory of it, without its eigenvectors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lite_probe.results.store import load
from tests.commands.running import run

EARLIER = Path(__file__).parent / "earlier"


@pytest.mark.parametrize("kind", ["checkpoint", "spectrum", "subspace", "replay"])
def test_every_kind_is_read(kind: str) -> None:
    saved = json.loads((EARLIER / f"{kind}.json").read_text())
    found = load(EARLIER, kind)
    assert saved["schema_version"] == 1
    if kind == "spectrum":
        # Named otherwise then.
        assert saved["result"]["whole"]["atoms"] == {"array": "whole.atoms"}
        assert found.loss == saved["result"]["loss"]
        whole = found.whole
        known = len(whole.deflated_eigenvalues)
        assert known > 0
        sums = np.bincount(whole.probe_index, weights=whole.weights)
        np.testing.assert_allclose(sums, 1.0 - known / whole.num_parameters, rtol=1e-12)
    if kind == "replay":
        assert found.ramp == 0
        assert found.parts == ("whole",)
        assert found.on_same_batches() is None
        assert (found.bands.num_probes, len(found.bands.curvatures), len(found.curved_bands)) == (0, 0, 0)
        for name in found.optimizers:
            assert found.band_effective_lrs(name) is None
            assert found.wide_exponent(name) is None
        assert not any(len(sweep.rises) or sweep.first_rises(sweep.chosen) for sweep in found.sweeps.values())


def test_all_of_it_is_reported(tmp_path: Path) -> None:
    shutil.copytree(EARLIER, tmp_path / "run")
    found = run("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert found.exit_code == 0, found.stderr
    page = (tmp_path / "page.html").read_text()
    for text in ("step-00002", "Spectral density", "muon-lite", "sharp directions"):
        assert text in page
