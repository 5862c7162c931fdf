"""`lite-probe subspace`: which directions are sharp, how firm they are, and whether LITE's proxies find them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lite_probe.commands.console import Terminal, emit
from lite_probe.commands.options import (
    ConfiguredCommand,
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
    seed_option,
    task_option,
)
from lite_probe.commands.run_directory import made, run_directory
from lite_probe.commands.subspace_summary import (
    calibration_table,
    json_object,
    lines,
    metric_table,
    overlap_table,
)
from lite_probe.commands.task import (
    Opened,
    TaskOptions,
    has_spectrum,
    open_task,
    reusable,
    spectrum_of,
    tell_task,
    tell_what_is_missing,
    write_page,
)
from lite_probe.errors import UsageError

if TYPE_CHECKING:
    from lite_probe.results.spectrum import Spectrum
    from lite_probe.results.subspace import SubspaceMeasurement
    from lite_probe.subspaces import SubspacePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class SubspaceOptions(TaskOptions):
    """What `lite-probe subspace` was asked of one checkpoint; the fields are its options."""

    size: int | None
    probes: int
    warm_batches: int

    @property
    def measurement(self) -> dict[str, Any]:
        """The options of `plan_subspace` and `measure_subspace`."""
        names = ("size", "probes", "warm_batches", "seed", "memory")
        return {name: getattr(self, name) for name in names}


@click.command(
    "subspace",
    cls=ConfiguredCommand,
    epilog=example(
        "subspace runs/gpt/ckpt.pt --data val.bin",
        "subspace runs/early.pt runs/late.pt --data val.bin --out probe/both",
    ),
)
@click.argument("checkpoints", metavar="[CKPT...]", nargs=-1, type=click.Path())
@checkpoint_options
@batch_options
@task_option
@click.option("--size", type=Whole(1), metavar="K", help="Sharp directions; by default all that the spectrum has.")
@click.option("--probes", type=Whole(2), default=16, show_default=True, help="Random probes of the calibration.")
@click.option(
    "--warm-batches",
    type=Whole(2),
    default=50,
    show_default=True,
    help="Training batches that optimizer states are warmed on.",
)
@memory_option
@compute_options
@seed_option
@out_option
@fresh_option
@dry_run_option
@json_option
@config_option
@console_options
@click.pass_obj
def command(terminal: Terminal, /, checkpoints: tuple[str, ...], **options: Any) -> None:
    """Measure the sharp subspace of a checkpoint, and LITE's proxies of it.

    How much of the gradient lies in it, whether it is the data's or the batch's, the true curvature of what AdamW,
    Muon and SOAP call sharp and flat, and how far each evens it out. Several checkpoints are compared with the first.
    Starts from the spectrum in the run directory, or measures it.
    """
    several = len(checkpoints) > 1
    asked = [SubspaceOptions(checkpoint=checkpoint, **options) for checkpoint in checkpoints or (None,)]
    earlier: list[tuple[str, Spectrum]] = []
    folders: list[Path] = []
    objects, paths = [], []
    for one in asked:
        opened = open_task(one, train_batches=one.warm_batches)
        name = opened.task.info.name
        folder = run_directory(one.out, name, is_one_of_several=several)
        if folder in folders:
            raise UsageError(f"expected checkpoints of different names, got {name} twice", "rename one of them")
        folders.append(folder)
        if one.dry_run and not has_spectrum(folder):
            objects.append(tell_what_is_missing(terminal, opened, one))
            continue
        with made(folder):
            spectrum = spectrum_of(terminal, opened, one, folder)
            plan = plan_and_tell(terminal, opened, spectrum, one, earlier)
            if one.dry_run:
                objects.append(plan_object(plan))
                continue
            found = measure(terminal, opened, spectrum, plan, one, folder, earlier)
            paths += write_page(opened, folder, "subspace")
        tell(terminal, found)
        objects.append(json_object(found))
        earlier.append((name, spectrum))
    if one.as_json:
        emit(json.dumps(objects if several else objects[0]))
    elif paths:
        emit("\n".join(map(str, paths)))


def plan_and_tell(
    terminal: Terminal,
    opened: Opened,
    spectrum: "Spectrum",
    asked: SubspaceOptions,
    earlier: "Sequence[tuple[str, Spectrum]]",
) -> "SubspacePlan":
    """Plan the measurement; say what will be measured and what it costs."""
    from lite_probe.subspaces import plan_subspace

    tell_task(terminal, opened.task, opened.task.evaluation)
    plan = plan_subspace(opened.task, spectrum, **asked.measurement, others=earlier)
    terminal.line(f"plan: {plan.summary()}", style="bold")
    return plan


def measure(
    terminal: Terminal,
    opened: Opened,
    spectrum: "Spectrum",
    plan: "SubspacePlan",
    asked: SubspaceOptions,
    folder: Path,
    earlier: "Sequence[tuple[str, Spectrum]]",
) -> "SubspaceMeasurement":
    """Return what was asked: the result saved where its fingerprint is the same, else a new one, saved."""
    from lite_probe.results.store import save
    from lite_probe.subspaces import discard_state, measure_subspace

    found: SubspaceMeasurement | None = reusable(terminal, folder, "subspace", plan.fingerprint, fresh=asked.fresh)
    if found is None:
        terminal.resumable = True
        with terminal.progress() as on_progress:
            found = measure_subspace(
                opened.task,
                spectrum,
                **asked.measurement,
                others=earlier,
                label=opened.task.info.name,
                plan=plan,
                state_directory=folder,
                on_progress=on_progress,
                command=terminal.command_line,
            )
        found = replace(found, notes=(*opened.notes, *found.notes))
        save(found, folder)
    discard_state(folder)
    return found


def tell(terminal: Terminal, found: "SubspaceMeasurement") -> None:
    """Show a measurement in a few tables, and what they say."""
    from lite_probe.reports.subspace_verdict import judge_subspace

    for line in lines(found):
        terminal.line(line)
    if found.overlaps:
        terminal.table(*overlap_table(found))
    for calibration in found.calibrations.values():
        terminal.line()
        terminal.table(*calibration_table(calibration))
    if any(one.preconditioned is not None for one in found.calibrations.values()):
        terminal.line()
        terminal.table(*metric_table(found))
    terminal.line()
    verdict = judge_subspace(found)
    for text in (verdict.lead, *(point.text for point in verdict.points)):
        terminal.line(text)
    terminal.notes([note.message for note in found.notes])


def plan_object(plan: "SubspacePlan") -> dict[str, Any]:
    """Return what `--dry-run --json` prints."""
    names = ("size", "num_parameters", "num_hvps", "num_gradients", "seconds", "memory_bytes", "fingerprint")
    return {name: getattr(plan, name) for name in names}
