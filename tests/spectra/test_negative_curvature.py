"""Every checkpoint of a language model is on a slope with negative curvature: λmin < 0 from the first steps on."""

from pathlib import Path

import pytest

import lite_probe as lp
from lite_probe.training import train_byte_llama

pytestmark = pytest.mark.slow


def test_the_smallest_eigenvalue_is_negative_at_every_checkpoint(tmp_path: Path) -> None:
    record = train_byte_llama(tmp_path, steps=40, save_at=[1, 5, 15, 40], hidden=48, layers=2, seq_len=48, seed=3)
    found = {}
    for folder in record.checkpoints:
        task = lp.make_task(
            lp.open_checkpoint(folder),
            data="builtin:python-docs",
            tokenizer="bytes",
            seq_len=48,
            batch_size=8,
            eval_batches=1,
            train_batches=0,
            seed=0,
        )
        spectrum = lp.measure_spectrum(task, top=1, bottom=1, probes=2, probe_steps=2, tolerance=1e-2)
        assert bool(spectrum.whole.lower_converged.all())
        found[folder.name] = (float(spectrum.whole.lower_eigenvalues[0]), float(spectrum.eigenvalues[0]))
    assert len(found) == 4
    # Beyond the residual, which is at most a hundredth of it.
    assert all(lowest < 0.0 < highest for lowest, highest in found.values()), found
