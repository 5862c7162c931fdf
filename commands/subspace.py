"""`lite-probe subspace`: which directions are sharp, how firm they are, and whether LITE's proxies find them."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lite_probe.commands.console import Terminal, print_stdout
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
    scratch_option,
    seed_option,
    task_option,
)
from lite_probe.commands.run_directory import measuring_into, run_directory
from lite_probe.commands.scratch import leave, tell_disk, working_directory
from lite_probe.commands.task import (
    OPENING,
    Opened,
    TaskOptions,
    find_spectrum,
    measure_spectrum_first,
    open_task,
    reusable,
    spectrum_plan_object,
    tell_task,
    write_page,
)
from lite_probe.errors import InputError, UsageError

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
@scratch_option
@fresh_option
@dry_run_option
@json_option
@config_option
@console_options
@click.pass_obj
def command(terminal: Terminal, /, checkpoints: tuple[str, ...], **options: Any) -> None:
    """Measure the sharp subspace of a checkpoint, and LITE's proxies of it.

    How much of the gradient lies in it, whether it is the data's or the batch's, the true curvature of what AdamW,
    Muon and SOAP call sharp and flat, and how far each evens it out. Of several checkpoints each is compared with those
    before it. Starts from the spectrum in the run directory, or measures it.
    """
    asked = [SubspaceOptions(checkpoint=checkpoint, **options) for checkpoint in checkpoints or (None,)]
    with terminal.waiting(OPENING):
        from lite_probe.reports.sections.section import describe, summarize
        from lite_probe.subspaces import require_measurable

        require_comparable(asked)
    earlier: list[tuple[str, Spectrum]] = []
    objects, paths = [], []
    for one in asked:
        with terminal.waiting(OPENING):
            opened = open_task(one, train_batches=one.warm_batches)
        name = opened.task.info.name
        require_measurable(opened.task)
        folder = run_directory(terminal, one.out, opened.task.info, is_one_of_several=len(asked) > 1)
        with nullcontext() if one.dry_run else measuring_into(terminal, folder, opened.task.info):
            tell_task(terminal, opened.task, opened.task.evaluation)
            spectrum = find_spectrum(terminal, opened, one, folder)
            if spectrum is None and one.dry_run:
                objects.append(spectrum_plan_object(terminal, opened, one, folder, pairs=one.size or 0))
                continue
            spectrum = spectrum or measure_spectrum_first(terminal, opened, one, folder, pairs=one.size or 0)
            plan = plan_and_tell(terminal, opened, spectrum, one, folder, earlier)
            if one.dry_run:
                objects.append(plan_object(plan, one, folder))
            else:
                found = measure(terminal, opened, spectrum, plan, one, folder, earlier)
                paths += write_page(opened, folder, "subspace")
                terminal.show(summarize("subspace", found))
                objects.append(describe("subspace", found))
        earlier.append((name, spectrum))
    if options["as_json"]:
        print_stdout(json.dumps(objects if len(asked) > 1 else objects[0]))
    elif paths:
        print_stdout("\n".join(map(str, paths)))


def require_comparable(asked: Sequence[SubspaceOptions]) -> None:
    """Refuse checkpoints that share a run directory, or are of different models, before the first is measured.

    Raises:
        UsageError: If two have the same name.
        InputError: If one is no checkpoint, or has not as many parameters as the first.
    """
    from lite_probe.checkpoints import open_checkpoint

    if len(asked) == 1:
        return  # a task of the user's own, or nothing to compare with
    seen: dict[str, str] = {}
    sizes: list[int] = []
    for one in asked:
        path = str(one.checkpoint)
        checkpoint = open_checkpoint(path, trust_pickle=one.trust_pickle, model_config=one.model_config)
        if checkpoint.name in seen:
            raise UsageError(
                f"expected checkpoints of different names, got {checkpoint.name} twice: {seen[checkpoint.name]} and "
                f"{path}",
                "rename one of them",
            )
        seen[checkpoint.name] = path
        sizes.append(checkpoint.num_parameters)
        if sizes[-1] != sizes[0]:
            raise InputError(
                f"expected checkpoints of {sizes[0]:,} parameters, as {asked[0].checkpoint} has, got {path} with "
                f"{sizes[-1]:,}",
                "compare checkpoints of one model",
            )


def plan_and_tell(
    terminal: Terminal,
    opened: Opened,
    spectrum: "Spectrum",
    asked: SubspaceOptions,
    folder: Path,
    earlier: "Sequence[tuple[str, Spectrum]]",
) -> "SubspacePlan":
    """Plan the measurement; say what it costs, and what it puts on which disk."""
    from lite_probe.subspaces import plan_subspace

    with terminal.progress() as on_progress:
        plan = plan_subspace(opened.task, spectrum, **asked.measurement, others=earlier, on_progress=on_progress)
    terminal.line(f"plan: {plan.summary()}", style="bold")
    tell_disk(terminal, working_directory(asked.scratch, folder), plan.scratch_bytes, folder)
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
    from lite_probe.results.provenance import join_notes
    from lite_probe.results.store import save
    from lite_probe.runtime.disk import require_room
    from lite_probe.subspaces import discard_state, measure_subspace

    working = working_directory(asked.scratch, folder)
    found: SubspaceMeasurement | None = reusable(terminal, folder, "subspace", plan.fingerprint, fresh=asked.fresh)
    if found is None:
        require_room([(working, plan.scratch_bytes)])
        terminal.resumable = True
        with terminal.progress() as on_progress:
            found = measure_subspace(
                opened.task,
                spectrum,
                **asked.measurement,
                others=earlier,
                label=opened.task.info.name,
                plan=plan,
                state_directory=working,
                on_progress=on_progress,
                command=terminal.command_line,
            )
        found = replace(found, notes=join_notes(opened.notes, found.notes))
        save(found, folder)
    discard_state(working)
    leave(working, folder)
    return found


def plan_object(plan: "SubspacePlan", asked: SubspaceOptions, folder: Path) -> dict[str, Any]:
    """Return what `--dry-run --json` prints."""
    names = (
        *("size", "num_parameters", "num_hvps", "num_gradients", "seconds", "memory_bytes", "scratch_bytes"),
        "fingerprint",
    )
    places = {"scratch": str(working_directory(asked.scratch, folder)), "directory": str(folder)}
    return {**{name: getattr(plan, name) for name in names}, **places}
