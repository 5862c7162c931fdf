"""`lite-probe spectrum`: from a checkpoint to eigenpairs, density and trace, in files and on a page."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from lite_probe.commands.console import Terminal, print_stdout
from lite_probe.commands.options import (
    Among,
    ConfiguredCommand,
    Positive,
    Whole,
    batch_options,
    checkpoint_options,
    compute_options,
    config_option,
    console_options,
    dry_run_option,
    example,
    fresh_option,
    json_option,
    memory_option,
    out_option,
    scratch_option,
    seed_option,
    task_option,
)
from lite_probe.commands.run_directory import measuring_into, run_directory
from lite_probe.commands.scratch import leave, tell_disk, working_directory
from lite_probe.commands.task import OPENING, TaskOptions, open_task, tell_task, write_page

if TYPE_CHECKING:
    from lite_probe.errors import InputError
    from lite_probe.results.provenance import Note
    from lite_probe.results.spectrum import Spectrum
    from lite_probe.spectra import SpectrumPlan
    from lite_probe.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumOptions(TaskOptions):
    """What `lite-probe spectrum` was asked; the fields are its options."""

    split: Literal["evaluation", "train"]
    top: int
    bottom: int
    probes: int
    tolerance: float
    operator: Literal["hessian", "ggn"]
    method: Literal["autograd", "finite-differences"]
    per_block: bool
    verify: bool

    @property
    def measurement(self) -> dict[str, Any]:
        """The options of `plan_spectrum` and `measure_spectrum`."""
        return {
            "top": self.top,
            "bottom": self.bottom,
            "probes": self.probes,
            "tolerance": self.tolerance,
            "operator": self.operator,
            "method": self.method,
            "per_block": self.per_block,
            "split": self.split,
            "seed": self.seed,
            "memory": self.memory,
        }


@click.command(
    "spectrum",
    cls=ConfiguredCommand,
    epilog=example("spectrum runs/gpt/ckpt.pt --data val.bin --per-block"),
)
@click.argument("checkpoint", metavar="[CKPT]", required=False, type=click.Path())
@checkpoint_options
@batch_options
@task_option
@click.option(
    "--on",
    "split",
    type=Among(["evaluation", "train"]),
    default="evaluation",
    show_default=True,
    help="Which batches to measure on.",
)
@click.option("--top", type=Whole(1), default=10, show_default=True, help="Largest eigenpairs.")
@click.option("--bottom", type=Whole(0), default=3, show_default=True, help="Smallest eigenpairs.")
@click.option("--probes", type=Whole(2), default=4, show_default=True, help="Random probes of density and trace.")
@click.option(
    "--tol",
    "tolerance",
    type=Positive(below=1.0),
    default=1e-3,
    show_default=True,
    help="A pair has converged when its residual is below this share of |λ|.",
)
@click.option(
    "--operator",
    type=Among(["hessian", "ggn"]),
    default="hessian",
    show_default=True,
    help="The Hessian, or the generalised Gauss–Newton matrix.",
)
@click.option(
    "--method",
    type=Among(["autograd", "finite-differences"]),
    default="autograd",
    show_default=True,
    help="How Hessian products are taken.",
)
@click.option("--per-block", is_flag=True, help="Also the spectrum of every block alone.")
@memory_option
@click.option("--verify", is_flag=True, help="Ask PyHessian for a second opinion.")
@compute_options
@seed_option
@out_option
@scratch_option
@fresh_option
@dry_run_option
@json_option
@config_option
@console_options
@click.pass_obj
def command(terminal: Terminal, /, **options: Any) -> None:
    """Measure the Hessian spectrum of a checkpoint.

    Both ends of the spectrum with a residual for every pair, density, trace and anisotropy, as files and as a
    page in probe/NAME. Killed or interrupted, the same command continues.
    """
    asked = SpectrumOptions(**options)
    if asked.verify:
        from lite_probe.spectra import require_verifiable

        require_verifiable(asked.operator)
    with terminal.waiting(OPENING):
        opened = open_task(asked, train_batches=asked.batches if asked.split == "train" else 0)
    task = opened.task
    folder = run_directory(terminal, asked.out, task.info)
    with nullcontext() if asked.dry_run else measuring_into(terminal, folder, task.info):
        tell_task(terminal, task, task.batches(asked.split))
        plan = plan_and_tell(terminal, task, asked, folder)
        if asked.dry_run:
            if asked.as_json:
                print_stdout(json.dumps(plan_object(plan, asked, folder)))
            return
        spectrum = measure(terminal, task, opened.notes, plan, asked, folder)
        paths = write_page(opened, folder, "spectrum")
    from lite_probe.reports.sections.section import describe, summarize

    terminal.show(summarize("spectrum", spectrum))
    print_stdout(json.dumps(describe("spectrum", spectrum)) if asked.as_json else "\n".join(map(str, paths)))


def defaults() -> dict[str, Any]:
    """Return the options of this command alone at their defaults: the spectrum that other commands start from."""
    own = {field.name for field in fields(SpectrumOptions)} - {field.name for field in fields(TaskOptions)}
    return {str(param.name): param.get_default(click.Context(command)) for param in command.params if param.name in own}


def plan_and_tell(terminal: Terminal, task: "Task", asked: SpectrumOptions, folder: Path) -> "SpectrumPlan":
    """Plan the measurement; say what it costs, and what it puts on which disk."""
    from lite_probe.spectra import plan_spectrum

    with terminal.progress() as on_progress:
        plan = plan_spectrum(task, **asked.measurement, on_progress=on_progress)
    terminal.line(f"plan: {plan.summary()}", style="bold")
    tell_disk(terminal, working_directory(asked.scratch, folder), plan.scratch_bytes, folder, plan.result_bytes)
    return plan


def measure(
    terminal: Terminal,
    task: "Task",
    notes: Sequence["Note"],
    plan: "SpectrumPlan",
    asked: SpectrumOptions,
    folder: Path,
) -> "Spectrum":
    """Return the spectrum asked for: the one saved where its fingerprint is the same, else a new one, saved."""
    from lite_probe.results.provenance import join_notes
    from lite_probe.results.store import find_result, save
    from lite_probe.runtime.disk import require_room
    from lite_probe.spectra import discard_state, measure_spectrum, verify_spectrum

    working = working_directory(asked.scratch, folder)
    damage: list[InputError] = []
    found: Spectrum | None = None
    if not asked.fresh:
        found = find_result(folder, "spectrum", plan.fingerprint, on_damaged=damage.append)
    if found is not None and (found.verification is not None or not asked.verify):
        terminal.line(f"already measured: {folder / 'spectrum.json'}; --fresh measures again")
        discard_state(working)  # a kill may have come between saving and this
        leave(working, folder)
        return found
    if found is None and not asked.fresh and (folder / "spectrum.json").exists():
        why = damage[0].message if damage else "it is of another checkpoint, other batches or options"
        terminal.line(f"replacing {folder / 'spectrum.json'}: {why}")
    terminal.resumable = True
    spectrum = found
    if spectrum is None:
        require_room([(working, plan.scratch_bytes), (folder, plan.result_bytes)])
        with terminal.progress() as on_progress:
            spectrum = measure_spectrum(
                task,
                **asked.measurement,
                plan=plan,
                state_directory=working,
                on_progress=on_progress,
                command=terminal.command_line,
            )
        spectrum = replace(spectrum, notes=join_notes(notes, spectrum.notes))
    if asked.verify:
        save(spectrum, folder)  # a second opinion may be interrupted; what it is about is not lost then
        with terminal.progress() as on_progress:
            spectrum = verify_spectrum(task, spectrum, on_progress=on_progress)
    save(spectrum, folder)
    discard_state(working)
    leave(working, folder)
    return spectrum


def plan_object(plan: "SpectrumPlan", asked: SpectrumOptions, folder: Path) -> dict[str, Any]:
    """Return what `--dry-run --json` prints."""
    names = (
        *("num_parameters", "num_hvps", "seconds", "memory_bytes", "graph_mode", "kept_graphs", "vectors_per_pass"),
        *("basis_placement", "basis_columns", "scratch_bytes", "result_bytes", "fingerprint"),
    )
    places = {"scratch": str(working_directory(asked.scratch, folder)), "directory": str(folder)}
    return {**{name: getattr(plan, name) for name in names}, **places}
