"""The task that commands are asked to measure, and how it is opened."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lite_probe.commands.console import Terminal
from lite_probe.commands.wording import count, plural
from lite_probe.errors import UsageError
from lite_probe.measurements.requests import option

if TYPE_CHECKING:
    from lite_probe.checkpoints import Checkpoint
    from lite_probe.results.checkpoint import CheckpointSummary
    from lite_probe.results.provenance import Note
    from lite_probe.task import Task


# More than a few for each processor only wait for each other; a million end the process.
_MOST_THREADS = 4 * max(os.cpu_count() or 1, 16)


FEWER_BITS = ("tf32", "bf16")  # of `--precision`: for matrix products alone


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Which model on which batches, and where it computes."""

    checkpoint: str | None = None
    data_path: str | None = option(
        None,
        "Text, .jsonl, .jsonl.zst, parquet, .bin or .npy tokens, a folder of these, or builtin:python-docs.",
        flag="--data",
        metavar="PATH",
    )
    tokenizer: str | None = option(None, "By default the checkpoint's own; `bytes` for bytes.", metavar="PATH")
    text_field: str = option("text", "Of .jsonl and parquet rows.")
    seq_len: int | None = option(None, "Tokens per sample; by default 256, or what model and text allow.", least=1)
    batch_size: int = option(8, "Samples per batch.", least=1)
    batches: int = option(4, "Batches to measure on.", least=1)
    task_file: str | None = option(
        None, "A function that returns a Task, in place of CKPT.", flag="--task", metavar="FILE.py:FUNCTION"
    )
    trust_pickle: bool = option(False, "Unpickle names outside the allow-list: this runs code from the file.")
    model_config: str | None = option(None, "A config.json, for a checkpoint without one.", metavar="FILE")
    blocks_file: str | None = option(
        None,
        "TOML lines pattern = block, for parameters whose block is not known.",
        flag="--blocks",
        metavar="FILE",
    )
    device: str = option(
        "auto",
        "Where to compute; auto takes CUDA where there is one, and leaves a --task where it is.",
        among=("auto", "cpu", "cuda"),
    )
    precision: str | None = option(
        None,
        "Of weights, by default float32, and a --task keeps its own; tf32 and bf16 are what products of float32 "
        "weights are multiplied in, as by default where that pays.",
        among=("float32", *FEWER_BITS, "float64"),
    )
    threads: int | None = option(
        None, "CPU threads; by default torch's own choice.", least=1, most=_MOST_THREADS, metavar="N"
    )
    seed: int = 0  # the request's: --seed draws batches and probes

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if (self.checkpoint is None) == (self.task_file is None):
            got = "neither" if self.checkpoint is None else "both"
            raise UsageError(f"expected either CKPT or --task, got {got}")
        if self.checkpoint is not None and self.data_path is None:
            raise UsageError(
                "expected --data with a checkpoint, got none",
                "pass the text or tokens to measure on, or builtin:python-docs",
            )


def require_whole_products(precision: str | None, word: str) -> None:
    """Refuse fewer bits for what takes no products in them.

    Raises:
        UsageError: If `--precision` asks for it.
    """
    if precision in FEWER_BITS:
        raise UsageError(
            f"expected --precision float32 or float64 for {word}, got {precision}",
            "only lite-probe spectrum multiplies in fewer bits: measure the spectrum with it first",
        )


COMPUTE = ("device", "precision", "threads")  # the fields that say where


OPENING = "opening the checkpoint"  # what takes seconds of imports before anything can be said


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A task, and what was found on the way to it."""

    task: "Task"
    checkpoint: "Checkpoint | None"  # None for a task of the user's own
    summary: "CheckpointSummary | None"
    notes: Sequence["Note"]


def open_task(asked: TaskOptions, *, train_batches: int = 0) -> Opened:
    """Build the task asked for, with so many training batches; a task of the user's own brings what it has."""
    from lite_probe.blocks import read_blocks
    from lite_probe.checkpoints import open_checkpoint
    from lite_probe.commands.compute import choose_device, choose_dtype, choose_threads, move_task
    from lite_probe.runtime.fingerprint import task_fingerprint
    from lite_probe.task.build import load_task_file, make_task

    device = choose_device(asked.device)
    choose_threads(asked.threads)
    blocks = None if asked.blocks_file is None else read_blocks(Path(asked.blocks_file))
    if asked.task_file is not None:
        task = load_task_file(asked.task_file)
        if blocks is not None:
            task.give_blocks(blocks)
        if not task.info.checkpoint_fingerprint:
            # Before anything is converted: the same weights have the same run directory, whatever the precision.
            weights = task_fingerprint(replace(task, evaluation=()), "evaluation", {})
            task.info = replace(task.info, checkpoint_fingerprint=weights)
        move_task(task, asked.device, asked.precision)
        return Opened(task=task, checkpoint=None, summary=None, notes=())
    notes: list[Note] = []
    checkpoint = open_checkpoint(
        str(asked.checkpoint), trust_pickle=asked.trust_pickle, model_config=asked.model_config
    )
    task = make_task(
        checkpoint,
        data=str(asked.data_path),
        tokenizer=asked.tokenizer,
        text_field=asked.text_field,
        seq_len=asked.seq_len,
        batch_size=asked.batch_size,
        eval_batches=asked.batches,
        train_batches=train_batches,
        seed=asked.seed,
        device=device,
        dtype=choose_dtype(asked.precision or "float32"),
        blocks=blocks,
        on_note=notes.append,
    )
    summary = checkpoint.summary(blocks)
    noted = tuple(dict.fromkeys((*summary.notes, *notes)))
    return Opened(task=task, checkpoint=checkpoint, summary=summary, notes=noted)


def tell_task(terminal: Terminal, task: "Task", batches: Sequence[object]) -> None:
    """Say in a line what will be measured, and on what."""
    import torch

    info = task.info
    what = [info.checkpoint_format, info.architecture, f"{count(size_of(task))} parameters"]
    if info.checkpoint_step is not None:
        what.append(f"step {info.checkpoint_step:,}")
    # A task of the user's own may tell neither the size of its batches nor where they come from.
    shape = plural(len(batches), "batch")
    if info.batch_size:
        shape = f"{len(batches)} × {info.batch_size}"
        shape += (
            f" × {plural(info.seq_len, 'token')}"
            if info.seq_len
            else f" {'sample' if info.batch_size == 1 else 'samples'}"
        )
    shape += f" of {info.data_name}" if info.data_name else ""
    precision = str(next(task.model.parameters()).dtype).removeprefix("torch.")
    threads = torch.get_num_threads()
    where = plural(threads, "thread") if task.device.type == "cpu" else str(task.device)
    terminal.sides(
        " · ".join(part for part in what if part),
        f"{shape}, {precision}, {where}",
    )


def size_of(task: "Task") -> int:
    """Return the number of parameters that are trained."""
    return sum(parameter.numel() for parameter in task.model.parameters() if parameter.requires_grad)
