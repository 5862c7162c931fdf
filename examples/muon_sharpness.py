"""Muon walks where the loss is less curved than Adam does: its normalised directional sharpness, at matched loss.

    python examples/muon_sharpness.py

NDS = dᵀHd/‖d‖² is the curvature along an update d. Found lower for Muon than for Adam wherever both are at the same
loss (arXiv 2606.04662). A small byte-level Llama, trained a little, is replayed under both, learning rates swept; steps
whose losses lie where both have been are compared. As ever, Muon leaves embedding, head and norms to AdamW.

It takes a minute and a half of one core and prints, with the seed it has,

    muon   lr 0.0078 (swept): loss -0.4799 ± 0.0201
    adamw  lr 0.00049 (swept): loss -0.1184 ± 0.0007
    NDS at matched loss: muon 0.0842 ± 0.0131, adamw 0.6388 ± 0.0593
    muon over adamw 0.131 ± 0.015
    known result reproduced

where ± is one standard error over three seeds of batches. The exit status is 1 where the ratio's 95% interval is not
below 1.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import lite_probe as lp
from lite_probe.replays import required_train_batches
from lite_probe.results.estimate import Estimate
from lite_probe.results.replay import ReplayRun
from lite_probe.training import train_byte_llama

STEPS, SEEDS, WARM_BATCHES = 30, 3, 10
SEQ_LEN = 64


def at_matched_loss(first: ReplayRun, second: ReplayRun) -> tuple[float, float] | None:
    """Return the mean NDS of both over steps that begin at losses where both have been; None where there are none."""
    starts = [run.losses[:-1] for run in (first, second)]
    low, high = max(one.min() for one in starts), min(one.max() for one in starts)
    inside = [(one >= low) & (one <= high) for one in starts]
    if not (inside[0].any() and inside[1].any()):
        return None
    found = [run.directional_sharpness[chosen] for run, chosen in zip((first, second), inside, strict=True)]
    return float(found[0].mean()), float(found[1].mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, replay, compare; return the exit status."""
    parser = argparse.ArgumentParser(description="Curvature along the updates of Muon and AdamW at matched loss.")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so small a model gains nothing by a second one, and loses much where cores are shared
    with tempfile.TemporaryDirectory() as folder:
        record = train_byte_llama(
            Path(folder), steps=60, save_at=[60], hidden=64, layers=2, seq_len=SEQ_LEN, seed=asked.seed
        )
        task = lp.make_task(
            lp.open_checkpoint(record.checkpoints[0]),
            data="builtin:python-docs",
            tokenizer="bytes",
            seq_len=SEQ_LEN,
            batch_size=8,
            eval_batches=2,
            train_batches=required_train_batches(steps=STEPS, seeds=SEEDS, warm_batches=WARM_BATCHES),
            seed=asked.seed,
        )
        spectrum = lp.measure_spectrum(task, top=5, bottom=0, probes=2, probe_steps=2, seed=asked.seed)
        replay = lp.replay(
            task,
            optimizers=["muon", "adamw"],
            spectrum=spectrum,
            steps=STEPS,
            seeds=SEEDS,
            warm_batches=WARM_BATCHES,
            seed=asked.seed,
        )
    for name, recipe in replay.recipes.items():
        change = replay.loss_change(name)
        if change is not None:
            print(f"{name:6} lr {recipe.lr:.2g} (swept): loss {change.value:+.4f} ± {change.stderr:.4f}")
    by_seed = [{run.seed: run for run in replay.runs_of(name)} for name in replay.optimizers]
    runs = [(by_seed[0][seed], by_seed[1][seed]) for seed in by_seed[0].keys() & by_seed[1].keys()]
    pairs = [pair for pair in (at_matched_loss(*both) for both in runs) if pair is not None]
    if len(pairs) < 2:
        print("the two have no losses in common: known result NOT reproduced")
        return 1
    muon, adamw = (Estimate.from_samples(np.array(side)) for side in zip(*pairs, strict=True))
    ratio = Estimate.from_samples(np.array([one / other for one, other in pairs]))
    print(
        f"NDS at matched loss: muon {muon.value:.4f} ± {muon.stderr:.4f}, adamw {adamw.value:.4f} ± {adamw.stderr:.4f}"
    )
    print(f"muon over adamw {ratio.value:.3f} ± {ratio.stderr:.3f}")
    held = ratio.high < 1.0
    print(f"known result {'reproduced' if held else 'NOT reproduced'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
