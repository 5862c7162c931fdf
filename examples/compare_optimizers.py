"""Which optimizer takes a small Llama furthest on the same tokens: learning rates swept for each, several seeds.

    python examples/compare_optimizers.py --optimizers adamw muon --steps 4 --hidden 32 --eval-batches 4 --seeds 2

Without options it is a real comparison, 20 to 40 minutes of two cores; what came of it is in docs/optimizers.md. A
byte-level Llama of 918,656 parameters learns from 300 batches of 8 windows of 128 bytes of the Python documentation,
with three seeds, each with weights and batches of its own that are the same for all optimizers. The learning rate goes
up over a tenth of the steps, and down to a tenth along a cosine; weight decay is 0.1, gradients are clipped to a norm
of 1. All else is as `make_optimizer` has it. For LITE that is nearly what the published runs had: β₂ = 1 after its
ramp, χ = 2 for hidden matrices, 4 for embedding and norms, 1 for the head, a tenth of the directions sharp; but β₁ = 0,
not −0.25.

Learning rates are powers of two: a grid grows while the best of it, by the mean over seeds, is at an edge. The loss is
that at the end, nats per byte, on 320 windows of text that was not trained on. Results are kept after every run, in
`--out`: the same command continues where it stopped.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from lite_probe.errors import LiteProbeError, NumericsError, OutputError, UsageError
from lite_probe.optim import OPTIMIZERS
from lite_probe.training import train_byte_llama

COMPARED = ("adamw", "muon", "muon-lite", "soap", "soap-lite")
FIRST_EXPONENTS = (-8, -7)
HYPERPARAMETERS = {"weight_decay": 0.1}
HEAD_WIDTH = 32
INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all runs share."""

    steps: int
    batch_size: int
    seq_len: int
    hidden: int
    layers: int
    eval_batches: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training."""

    optimizer: str
    exponent: int  # the learning rate is 2 to this
    seed: int

    def __str__(self) -> str:
        return f"{self.optimizer} at 2^{self.exponent}, seed {self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one."""

    loss: float  # at the end, on text that was not trained on, nats per byte; infinite where numbers went bad
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over seeds."""

    mean: float
    stderr: float  # of the mean

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Estimate from at least two values; one that is infinite makes both so."""
        if not all(map(math.isfinite, values)):
            return cls(mean=math.inf, stderr=math.inf)
        return cls(mean=statistics.fmean(values), stderr=statistics.stdev(values) / math.sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.stderr:.4f}" if math.isfinite(self.mean) else "diverged"


class Results:
    """What is known so far: in memory, and in a file that is written whole after every run."""

    def __init__(self, path: Path, setting: Setting) -> None:
        self.outcomes: dict[Run, Outcome] = {}
        self.setting = setting
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            known = json.loads(path.read_text(encoding="utf-8"))
            if known["setting"] != self._described():
                raise UsageError(
                    f"expected the results of {self._described()} in {path}, got those of {known['setting']}",
                    "choose another --out",
                )
            for entry in known["runs"]:
                run = Run(optimizer=entry["optimizer"], exponent=entry["exponent"], seed=entry["seed"])
                loss = math.inf if entry["loss"] is None else entry["loss"]
                self.outcomes[run] = Outcome(loss=loss, seconds=entry["seconds"])

    def add(self, run: Run, outcome: Outcome) -> None:
        """Keep an outcome."""
        self.outcomes[run] = outcome
        runs = [
            {**asdict(run), "loss": outcome.loss if math.isfinite(outcome.loss) else None, "seconds": outcome.seconds}
            for run, outcome in self.outcomes.items()
        ]
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps({"setting": self._described(), "runs": runs}, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._path)

    def _described(self) -> dict[str, object]:
        return {**asdict(self.setting), "hyperparameters": HYPERPARAMETERS}


def losses(outcomes: Mapping[Run, Outcome], optimizer: str, exponent: int, seeds: int) -> list[float]:
    """Return the losses of an optimizer at one learning rate, by seed."""
    return [outcomes[Run(optimizer=optimizer, exponent=exponent, seed=seed)].loss for seed in range(seeds)]


def best_of(outcomes: Mapping[Run, Outcome], optimizer: str, exponents: Sequence[int], seeds: int) -> int:
    """Return the learning rate with the lowest mean loss."""
    return min(exponents, key=lambda exponent: statistics.fmean(losses(outcomes, optimizer, exponent, seeds)))


def grid(outcomes: Mapping[Run, Outcome], optimizer: str, seeds: int) -> list[int]:
    """Return the learning rates to try, as exponents, ascending; beyond an edge that is the best so far is one more."""
    exponents = list(FIRST_EXPONENTS)
    while not missing(outcomes, optimizer, exponents, seeds):
        best = best_of(outcomes, optimizer, exponents, seeds)
        if best == exponents[0]:
            exponents.insert(0, best - 1)
        elif best == exponents[-1]:
            exponents.append(best + 1)
        else:
            break
    return exponents


def missing(outcomes: Mapping[Run, Outcome], optimizer: str, exponents: Sequence[int], seeds: int) -> list[Run]:
    """Return the runs of a grid without an outcome."""
    runs = [Run(optimizer=optimizer, exponent=e, seed=seed) for e in exponents for seed in range(seeds)]
    return [run for run in runs if run not in outcomes]


def train(run: Run, setting: Setting) -> Outcome:
    """Make one run; nothing is saved."""
    started = time.monotonic()
    try:
        record = train_byte_llama(
            Path(),
            optimizer=run.optimizer,
            hyperparameters=HYPERPARAMETERS,
            learning_rate=2.0**run.exponent,
            steps=setting.steps,
            save_at=(),
            eval_batches=setting.eval_batches,
            seed=run.seed,
            hidden=setting.hidden,
            layers=setting.layers,
            heads=setting.hidden // HEAD_WIDTH,
            seq_len=setting.seq_len,
            batch_size=setting.batch_size,
        )
        loss = record.evaluation_losses[-1]
    except NumericsError:
        loss = math.inf
    return Outcome(loss=loss, seconds=time.monotonic() - started)


def compare(results: Results, optimizers: Sequence[str], seeds: int, processes: int) -> None:
    """Make all runs that the grids ask for, one thread each, and keep what comes of them."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running: dict[Future[Outcome], Run] = {}
        while asked := to_come(results.outcomes, optimizers, seeds):
            # A grid depends on what is known, so no more is handed out than can run at once.
            free = [run for run in asked if run not in running.values()]
            for run in free[: processes - len(running)]:
                running[pool.submit(train, run, results.setting)] = run
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run, outcome = running.pop(future), future.result()
                results.add(run, outcome)
                ahead = len(to_come(results.outcomes, optimizers, seeds))
                tell(f"{run}: loss {outcome.loss:.4f}, {outcome.seconds:.0f} s; at least {ahead} more runs")


def to_come(outcomes: Mapping[Run, Outcome], optimizers: Sequence[str], seeds: int) -> list[Run]:
    """Return the runs that the grids ask for, as far as is known now."""
    return [run for o in optimizers for run in missing(outcomes, o, grid(outcomes, o, seeds), seeds)]


def table(outcomes: Mapping[Run, Outcome], optimizers: Sequence[str], seeds: int) -> str:
    """Return the comparison at each optimizer's best learning rate, in Markdown.

    Differences are means of differences between runs of one seed, which share weights and batches.
    """
    best = {o: losses(outcomes, o, best_of(outcomes, o, grid(outcomes, o, seeds), seeds), seeds) for o in optimizers}

    def difference(optimizer: str, other: str) -> str:
        if other == optimizer or other not in best:
            return "–"
        return str(Estimate.of([a - b for a, b in zip(best[optimizer], best[other], strict=True)]))

    lines = [
        "| optimizer | learning rate | evaluation loss | minus adamw | minus its base | seconds a run |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for optimizer in optimizers:
        exponent = best_of(outcomes, optimizer, grid(outcomes, optimizer, seeds), seeds)
        seconds = statistics.fmean(outcome.seconds for run, outcome in outcomes.items() if run.optimizer == optimizer)
        lines.append(
            f"| {optimizer} | 2^{exponent} = {2.0**exponent:.2g} | {Estimate.of(best[optimizer])} | "
            f"{difference(optimizer, 'adamw')} | {difference(optimizer, OPTIMIZERS[optimizer].base or optimizer)} | "
            f"{seconds:.0f} |"
        )
    return "\n".join(lines)


def sweep_table(outcomes: Mapping[Run, Outcome], optimizers: Sequence[str], seeds: int) -> str:
    """Return the mean evaluation loss of every optimizer at every learning rate, in Markdown."""
    grids = {optimizer: grid(outcomes, optimizer, seeds) for optimizer in optimizers}
    exponents = sorted({exponent for own in grids.values() for exponent in own})
    lines = [
        "| optimizer | " + " | ".join(f"2^{exponent}" for exponent in exponents) + " |",
        "| --- |" + " --- |" * len(exponents),
    ]
    for optimizer, own in grids.items():
        cells = [str(Estimate.of(losses(outcomes, optimizer, e, seeds))) if e in own else "" for e in exponents]
        lines.append(f"| {optimizer} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tell(text: str) -> None:
    """Say something to whoever watches; stdout is for the tables."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Enter from the shell; return the exit code."""
    parser = argparse.ArgumentParser(description="Compare optimizers on a small Llama.")
    add = parser.add_argument
    add("--optimizers", choices=OPTIMIZERS, nargs="+", default=COMPARED, help=", ".join(COMPARED))
    add("--seeds", type=int, default=3, help="%(default)s")
    add("--steps", type=int, default=300, help="%(default)s")
    add("--batch-size", type=int, default=8, help="windows per step, %(default)s")
    add("--seq-len", type=int, default=128, help="tokens per window, %(default)s")
    add("--hidden", type=int, default=128, help=f"width, a multiple of {HEAD_WIDTH}, %(default)s")
    add("--layers", type=int, default=4, help="%(default)s")
    add("--eval-batches", type=int, default=40, help="%(default)s")
    add("--processes", type=int, default=2, help="runs at a time, one thread each, %(default)s")
    add("--out", type=Path, default=Path("probe/comparison"), metavar="DIR", help="%(default)s")
    asked = parser.parse_args(arguments)
    setting = Setting(**{field.name: getattr(asked, field.name) for field in fields(Setting)})
    try:
        if asked.seeds < 2:
            raise UsageError(f"expected --seeds ≥ 2, for a standard error, got {asked.seeds}")
        results = Results(asked.out / "results.json", setting)
        compare(results, asked.optimizers, asked.seeds, asked.processes)
    except LiteProbeError as error:
        tell(f"error: {error}")
        return error.exit_code
    except OSError as error:
        tell(f"error: expected to write {asked.out}, got {error.strerror}; choose another --out")
        return OutputError.exit_code
    except KeyboardInterrupt:
        tell("error: interrupted; the same command continues where it stopped")
        return INTERRUPTED
    print(table(results.outcomes, asked.optimizers, asked.seeds))
    print()
    print(sweep_table(results.outcomes, asked.optimizers, asked.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
