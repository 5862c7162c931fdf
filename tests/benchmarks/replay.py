"""What watching a replay costs: a recorded step over one that only trains, and memory against the plan's estimate.

The evaluation set is as large as the batch, and all bands of all blocks are recorded, as `lite_probe.replay` does.
Times are medians over rounds in which a step of every kind takes its turn, on 2 threads, of steps that needed no
refinement. `make benchmark` runs it (about three minutes).
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import lite_probe as lp
from lite_probe.operators.guards import preserve_state
from lite_probe.replays import required_train_batches
from lite_probe.replays.allocation import evaluate, integrate_step
from lite_probe.replays.recorder import Recorder
from lite_probe.runtime.memory import peak_during
from lite_probe.subspaces import Subspace, cut_bands, optimizer_of, own_gradients, set_gradients, warm
from lite_probe.training import train_byte_llama
from lite_probe.vectors.layout import ParameterLayout
from tests.plans import plan_replay

OPTIMIZERS = ("adamw", "muon", "muon-lite", "soap", "soap-lite")
ROUNDS, WARM_BATCHES = 9, 12
STEPS, SEEDS = 4, 1


def make_task(folder: Path, **shape: int) -> lp.Task:
    """A byte-level Llama after 30 steps, with as many tokens to evaluate on as in a batch."""
    record = train_byte_llama(folder, steps=30, save_at=[30], **shape)  # type: ignore[arg-type]
    return lp.make_task(
        lp.open_checkpoint(record.checkpoints[0]),
        data="builtin:python-docs",
        tokenizer="bytes",
        seq_len=128,
        batch_size=8,
        eval_batches=1,
        train_batches=required_train_batches(steps=STEPS, seeds=SEEDS, warm_batches=WARM_BATCHES),
    )


def time_steps(task: lp.Task, spectrum: Any) -> list[dict[str, Any]]:
    """Return medians of a plain and of a recorded step of each optimizer, and where the difference goes."""
    layout = ParameterLayout(list(task.model.named_parameters()))
    subspace = Subspace.of_spectrum(spectrum, task)
    rows = []
    with preserve_state(task.model), own_gradients(layout.parameters):
        start = layout.read()
        soap = optimizer_of(task, "soap")
        warm(task, [soap], task.train[:WARM_BATCHES])
        recorder = Recorder(subspace, cut_bands(layout, soap.directions(), optimizer="soap"))
        point = evaluate(task, layout)
        for name in OPTIMIZERS:
            optimizer = optimizer_of(task, name)
            warm(task, [optimizer], task.train[:WARM_BATCHES])
            for group in optimizer.param_groups:
                group["lr"] = 1e-5  # a step that needs no refinement
            times: dict[str, list[float]] = {"step": [], "simpson": [], "trapezoid": [], "recording": []}
            for turn in range(ROUNDS + 1):
                for rule in ("simpson", "trapezoid"):
                    layout.write(start)
                    began = time.perf_counter()
                    set_gradients(task, layout.parameters, task.train[turn % WARM_BATCHES], "")
                    optimizer.step()
                    trained = time.perf_counter()
                    after = layout.read()
                    update = after - start
                    change = integrate_step(
                        task,
                        layout,
                        point,
                        start,
                        after,
                        update,
                        rule=rule,  # type: ignore[arg-type]
                        tolerance=0.5,
                        scale=1.0,
                    )
                    integrated = time.perf_counter()
                    recorder.record(change, point.gradient, update)
                    ended = time.perf_counter()
                    if turn:  # the first pays for the allocator
                        times["step"].append(trained - began)
                        times[rule].append(ended - began)
                        times["recording"].append(ended - integrated)
            medians = {key: statistics.median(values) for key, values in times.items()}
            rows.append(
                {
                    "optimizer": name,
                    "parameters": layout.size,
                    "milliseconds": {key: 1e3 * value for key, value in medians.items()},
                    "simpson_over_plain": medians["simpson"] / medians["step"],
                    "trapezoid_over_plain": medians["trapezoid"] / medians["step"],
                }
            )
        layout.write(start)
    return rows


def memory_of(task: lp.Task, spectrum: Any) -> dict[str, float]:
    """Return the plan's estimate of a replay's peak and the true one, in MiB."""
    asked: dict[str, Any] = {
        "optimizers": ["muon-lite", "soap-lite"],
        "spectrum": spectrum,
        "steps": STEPS,
        "seeds": SEEDS,
        "lr": 1e-3,
        "warm_batches": WARM_BATCHES,
    }
    plan = plan_replay(task, **asked)
    true = peak_during(task.device, lambda: plan.run(task))
    return {"planned": plan.memory_bytes / 2**20, "true": true / 2**20, "ratio": plan.memory_bytes / true}


def main() -> None:
    """Print one JSON object per line: memory, then a row per optimizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a model of 0.9M parameters instead of 5.2M")
    asked = parser.parse_args()
    torch.set_num_threads(2)
    shape = {"hidden": 128, "layers": 4, "heads": 4} if asked.small else {"hidden": 256, "layers": 6, "heads": 8}
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(Path(folder), **shape)
        spectrum = lp.measure_spectrum(task, top=10, bottom=0, probes=2, probe_steps=2, tolerance=1e-2)
        print(json.dumps({"memory_mib": memory_of(task, spectrum)}))
        for row in time_steps(task, spectrum):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
