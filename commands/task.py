"""What commands that measure share: the task they are asked for, how it is opened, and its spectrum."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lite_probe.commands.console import Terminal
from lite_probe.commands.wording import count, plural
from lite_probe.errors import InputError, UsageError

if TYPE_CHECKING:
    from lite_probe.checkpoints import Checkpoint
    from lite_probe.commands.spectrum import SpectrumOptions
    from lite_probe.results.checkpoint import CheckpointSummary
    from lite_probe.results.provenance import Note
    from lite_probe.results.spectrum import Spectrum
    from lite_probe.spectra import SpectrumPlan
    from lite_probe.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Which model on which batches, and where; the fields are options of every command that measures."""

    checkpoint: str | None
    task_file: str | None
    trust_pickle: bool
    model_config: str | None
    data_path: str | None
    tokenizer: str | None
    text_field: str
    seq_len: int | None
    batch_size: int
    batches: int
    memory: int | None
    device: str
    precision: str | None
    threads: int | None
    seed: int
    out: str | None
    fresh: bool
    as_json: bool
    dry_run: bool
    scratch: str | None = None
    blocks_file: str | None = None

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

    @property
    def task_options(self) -> dict[str, Any]:
        """These options alone, without those of one command."""
        return {field.name: getattr(self, field.name) for field in fields(TaskOptions)}


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
    num_parameters = _size(task)
    what = [info.checkpoint_format, info.architecture, f"{count(num_parameters)} parameters"]
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


def _size(task: "Task") -> int:
    return sum(parameter.numel() for parameter in task.model.parameters() if parameter.requires_grad)


def find_spectrum(terminal: Terminal, opened: Opened, asked: TaskOptions, folder: Path) -> "Spectrum | None":
    """Return the spectrum that a run directory holds; None, said why, where one has to be measured first.

    Raises:
        InputError: If the one there is damaged, or of other batches or another checkpoint; `--fresh` measures anew.
    """
    from lite_probe.results.store import load
    from lite_probe.spectra import require_same_task

    path = folder / "spectrum.json"
    if not path.is_file():
        terminal.line(f"no spectrum in {folder} yet: it comes first, with the defaults of lite-probe spectrum")
        return None
    try:
        found: Spectrum = load(folder, "spectrum")
        require_same_task(found, opened.task)
    except InputError as error:
        if not asked.fresh:
            hint = error.hint if "--fresh" in error.hint else f"{error.hint}; --fresh replaces it"
            raise InputError(f"{path}: {error.message}", hint) from error
        terminal.line(f"replacing {path}: {error.message}")
        return None
    return found


def plan_spectrum_first(
    terminal: Terminal, opened: Opened, asked: TaskOptions, folder: Path, pairs: int = 0
) -> "tuple[SpectrumPlan, SpectrumOptions]":
    """Plan the spectrum that another command starts from; say what it costs.

    It is of at least so many pairs, and of no more by itself than there are parameters.
    """
    from lite_probe.commands import spectrum as command

    own = command.SpectrumOptions(**asked.task_options, **command.defaults())
    top = max(min(own.top, _size(opened.task)), pairs)
    own = replace(own, top=top, bottom=min(own.bottom, max(_size(opened.task) - top, 0)))
    return command.plan_and_tell(terminal, opened.task, own, folder), own


def measure_spectrum_first(
    terminal: Terminal, opened: Opened, asked: TaskOptions, folder: Path, pairs: int = 0
) -> "Spectrum":
    """Measure and save the spectrum that another command starts from, of at least so many pairs."""
    from lite_probe.commands import spectrum as command

    plan, own = plan_spectrum_first(terminal, opened, asked, folder, pairs)
    return command.measure(terminal, opened.task, opened.notes, plan, own, folder)


def spectrum_plan_object(
    terminal: Terminal, opened: Opened, asked: TaskOptions, folder: Path, pairs: int = 0
) -> dict[str, Any]:
    """Return what `--dry-run --json` prints where the spectrum is not there yet: all that can be planned by then."""
    from lite_probe.commands import spectrum as command

    plan, own = plan_spectrum_first(terminal, opened, asked, folder, pairs)
    terminal.line("what follows can be planned once the spectrum is there")
    return {"spectrum": command.plan_object(plan, own, folder)}


def reusable(terminal: Terminal, folder: Path, kind: str, fingerprint: str, *, fresh: bool) -> Any | None:
    """Return the saved result with this fingerprint, None where it has to be measured; say which it is."""
    from lite_probe.results.store import find_result

    damage: list[InputError] = []
    found = None if fresh else find_result(folder, kind, fingerprint, on_damaged=damage.append)
    path = folder / f"{kind}.json"
    if found is not None:
        terminal.line(f"already measured: {path}; --fresh measures again")
    elif not fresh and path.exists():
        why = damage[0].message if damage else "it is of another checkpoint, other batches or options"
        terminal.line(f"replacing {path}: {why}")
    return found


def write_page(opened: Opened, folder: Path, kind: str) -> list[Path]:
    """Write what goes with a saved result; return the paths for the user, the page first."""
    from lite_probe.reports.page import write_report
    from lite_probe.results.store import save

    if opened.summary is not None:
        save(opened.summary, folder)
    return [write_report([folder], folder / "report.html"), folder / f"{kind}.json"]
