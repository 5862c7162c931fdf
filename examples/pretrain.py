"""Train a small Llama with any of the optimizers; every lite-probe command opens what it saves.

    python examples/pretrain.py --optimizer muon-lite --steps 20 --hidden 32 --threads 1 --out probe/pretrain

A byte-level Llama learns from the Python documentation: 918,656 parameters by default, 5.2 million with
`--hidden 256 --layers 6`. The default run takes about a minute on two cores. `--set` reaches every hyperparameter of
the optimizer, as in `--set flat_lr_ratio=3 --set sharp_ratio='{"ffn": 0.2}'`; LITE's ramps follow the schedule.

`--out` receives the checkpoints, `step-00300` and so on, with the optimizer's state, and `log.jsonl`: what was run, an
object for each step, and what came of it.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from lite_probe.errors import LiteProbeError, OutputError, UsageError
from lite_probe.optim import OPTIMIZERS, Schedule
from lite_probe.optim.schedules import ScheduleName
from lite_probe.training import TrainingRecord, TrainingStep, train_byte_llama
from lite_probe.version import __version__

HEAD_WIDTH = 32
EVAL_BATCHES = 16
SECONDS_BETWEEN_LINES = 5.0
INTERRUPTED = 130


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a small Llama on the Python documentation.")
    add = parser.add_argument
    add("--optimizer", choices=OPTIMIZERS, default="adamw", help="%(default)s unless given")
    add("--lr", type=float, default=4e-3, help="learning rate at the peak, %(default)s")
    add("--set", type=setting, action="append", default=[], metavar="KEY=VALUE", help="a hyperparameter, in JSON")
    add("--schedule", choices=get_args(ScheduleName), default="cosine", help="of the learning rate, %(default)s")
    add("--warmup", type=int, metavar="STEPS", help="steps until the peak, a tenth of all")
    add("--min-lr-ratio", type=float, default=0.1, metavar="RATIO", help="of the last step to the peak, %(default)s")
    add("--steps", type=count, default=300, help="%(default)s")
    add("--batch-size", type=count, default=8, help="windows per step, %(default)s")
    add("--seq-len", type=count, default=128, help="tokens per window, %(default)s")
    add("--hidden", type=count, default=128, help=f"width, a multiple of {HEAD_WIDTH}, %(default)s")
    add("--layers", type=count, default=4, help="%(default)s")
    add("--seed", type=int, default=0, help="of weights and batches, %(default)s")
    add("--save-at", type=count, nargs="+", metavar="STEP", help="the last step")
    add("--eval-every", type=count, metavar="STEPS", help="where not only at checkpoints")
    add("--threads", type=count, help="of the CPU")
    add("--out", type=Path, default=Path("probe/pretrain"), metavar="DIR", help="%(default)s")
    asked = parser.parse_args(arguments)
    asked.warmup = asked.steps // 10 if asked.warmup is None else asked.warmup
    asked.save_at = asked.save_at or [asked.steps]
    asked.set = dict(asked.set)
    return asked


def count(text: str) -> int:
    """Read a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number ≥ 1, got {text!r}")
    return int(text)


def setting(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE; what is not JSON is a word."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


class Log:
    """`log.jsonl` and what the terminal shows of it. The file begins with the first step: a refused run leaves none."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self._path = asked.out / "log.jsonl"
        self._steps = asked.steps
        self._pending = [{"run": {**vars(asked), "out": str(asked.out), "lite_probe": __version__}}]
        self._mode = "w"
        self._started = self._told = time.monotonic()

    def step(self, done: TrainingStep) -> None:
        """Record a step; tell of it now and then, and of every evaluation."""
        entry = {"step": done.step, "loss": done.loss, "learning_rate": done.learning_rate}
        words = f"step {done.step}/{self._steps} · loss {done.loss:.3f}"
        if done.evaluation_loss is not None:
            entry["evaluation_loss"] = done.evaluation_loss
            words += f" · evaluation loss {done.evaluation_loss:.4f}"
        self._write(entry)
        now = time.monotonic()
        if done.evaluation_loss is not None or now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            left = int((now - self._started) / done.step * (self._steps - done.step))
            tell(f"{words} · {left // 60}:{left % 60:02d} left")

    def finish(self, record: TrainingRecord) -> None:
        """Record what came of the run."""
        seconds = round(time.monotonic() - self._started, 1)
        summary = {
            "evaluation_loss": record.evaluation_losses[-1],
            "byte_entropy": record.byte_entropy,
            "num_parameters": record.num_parameters,
            "checkpoints": [str(path) for path in record.checkpoints],
            "seconds": seconds,
        }
        self._write({"summary": summary})
        tell(
            f"trained {record.num_parameters:,} parameters in {seconds} s: loss {record.evaluation_losses[-1]:.4f} "
            f"nats per byte on text they have not seen; counting bytes alone reaches {record.byte_entropy:.2f}"
        )

    def _write(self, entry: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open(self._mode, encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in [*self._pending, entry])
        self._pending, self._mode = [], "a"


def tell(text: str) -> None:
    """Say something to whoever watches; stdout is for paths."""
    print(text, file=sys.stderr, flush=True)


def pretrain(asked: argparse.Namespace) -> TrainingRecord:
    """Train as asked.

    Raises:
        LiteProbeError: If the request makes no sense, numbers go bad, or the place is taken.
        OSError: If the log cannot be written.
    """
    if asked.hidden % HEAD_WIDTH:
        raise UsageError(f"expected --hidden to be a multiple of {HEAD_WIDTH}, the width of a head, got {asked.hidden}")
    if any(asked.out.glob("step-*")):
        raise OutputError(f"expected no checkpoints in {asked.out}, got some", "remove them or choose another --out")
    if asked.threads:
        torch.set_num_threads(asked.threads)
    log = Log(asked)
    record = train_byte_llama(
        asked.out,
        optimizer=asked.optimizer,
        hyperparameters=asked.set,
        learning_rate=asked.lr,
        schedule=Schedule(
            name=asked.schedule,
            total_steps=asked.steps,
            warmup_steps=asked.warmup,
            min_lr_ratio=asked.min_lr_ratio,
        ),
        steps=asked.steps,
        save_at=asked.save_at,
        eval_every=asked.eval_every,
        eval_batches=EVAL_BATCHES,
        seed=asked.seed,
        hidden=asked.hidden,
        layers=asked.layers,
        heads=asked.hidden // HEAD_WIDTH,
        seq_len=asked.seq_len,
        batch_size=asked.batch_size,
        on_step=log.step,
    )
    log.finish(record)
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Enter from the shell; return the exit code."""
    asked = parse_arguments(arguments)
    try:
        record = pretrain(asked)
    except LiteProbeError as error:
        tell(f"error: {error}")
        return error.exit_code
    except OSError as error:
        tell(f"error: expected to write {asked.out}, got {error.strerror}; choose another --out")
        return OutputError.exit_code
    except KeyboardInterrupt:
        tell(f"error: interrupted; what was saved is in {asked.out}")
        return INTERRUPTED
    print(*record.checkpoints, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
