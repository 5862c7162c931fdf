"""`lite-probe replay`: the same short segment under several optimizers, and who lowers the loss where."""

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lite_probe.commands.console import Terminal, print_stdout
from lite_probe.commands.options import (
    Among,
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
from lite_probe.commands.replay_board import HEADER, ReplayBoard
from lite_probe.commands.replay_summary import (
    explanations,
    json_object,
    manner_table,
    outcome_table,
    part_table,
    progress_table,
    start_table,
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
from lite_probe.errors import InputError, ReplayError, UsageError

if TYPE_CHECKING:
    from lite_probe.replays import ReplayPlan, ReplayStep, SavedOptimizer
    from lite_probe.results.replay import Replay
    from lite_probe.results.spectrum import Spectrum


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions(TaskOptions):
    """What `lite-probe replay` was asked; the fields are its options."""

    optimizers: str
    steps: int
    ramp: int | None
    seeds: int
    lr: str
    state: str
    warm_batches: int
    bands: str | None  # None: the first that can take the model
    rule: str
    ablations: bool
    settings: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The optimizers as tables call them, in order."""
        from lite_probe.replays import name_of

        return [name_of(one) for one in self.specs]

    @property
    def specs(self) -> list[str]:
        """The optimizers as they were asked for, in order."""
        return [one.strip() for one in self.optimizers.split(",") if one.strip()]

    @property
    def measurement(self) -> dict[str, Any]:
        """The options of `plan_replay` and `replay`."""
        names = ("steps", "ramp", "seeds", "state", "warm_batches", "bands", "rule", "ablations", "seed", "memory")
        return {
            "optimizers": self.specs,
            "lr": parse_learning_rates(self.lr),
            "hyperparameters": parse_settings(self.settings),
            **{name: getattr(self, name) for name in names},
        }


@click.command(
    "replay",
    cls=ConfiguredCommand,
    epilog=example(
        "replay runs/gpt/ckpt.pt --data val.bin --optimizers muon,muon-lite,soap,soap-lite",
        "replay runs/gpt/ckpt.pt --data val.bin --lr muon=0.002,muon-lite=0.002 --optimizers muon,muon-lite",
        "replay runs/gpt/ckpt.pt --data val.bin --optimizers muon-lite,torch.AdamW,mine.py:make_mine",
    ),
)
@click.argument("checkpoint", metavar="[CKPT]", required=False, type=click.Path())
@click.option(
    "--optimizers",
    metavar="NAME,…",
    default="muon,muon-lite,soap,soap-lite",
    show_default=True,
    help="Of adamw, adamw-lite, muon, muon-lite, soap, soap-lite and sgd; torch's own as torch.AdamW or torch.Muon; "
    "one of yours as FILE.py:FUNCTION, a function of the named parameters and lr.",
)
@click.option("--steps", type=Whole(1), default=50, show_default=True, help="Steps of the segment.")
@click.option(
    "--ramp",
    type=Whole(0),
    help="Steps over which the learning rate rises from zero, 0 for none; by default a tenth of them, at least five.",
)
@click.option("--seeds", type=Whole(1, 10_000), default=3, show_default=True, help="Segments of other batches.")
@click.option(
    "--lr",
    metavar="RATE",
    default="sweep",
    show_default=True,
    help="A number, sweep, or checkpoint (the peak of its schedule, where saved); or NAME=RATE,… for some, the rest "
    "being swept.",
)
@click.option(
    "--state",
    type=Among(["auto", "checkpoint", "warm", "cold"]),
    default="auto",
    show_default=True,
    help="What optimizers start from: the checkpoint's state with its hyperparameters but for those of --set, one "
    "warmed at fixed weights, or none.",
)
@click.option(
    "--warm-batches",
    type=Whole(2),
    default=50,
    show_default=True,
    help="Training batches that states are warmed on.",
)
@click.option(
    "--bands",
    type=Among(["adamw", "muon", "soap"]),
    help="Whose proxy orders the directions of each block; by default soap, or adamw where soap cannot take the model.",
)
@click.option(
    "--rule",
    type=Among(["simpson", "trapezoid"]),
    default="simpson",
    show_default=True,
    help="How the loss change of a step is allotted; the trapezoid rule takes a gradient less.",
)
@click.option("--ablations", is_flag=True, help="Also with updates projected on the sharp subspace, and off it.")
@click.option(
    "--set",
    "settings",
    metavar="NAME.KEY=VALUE",
    multiple=True,
    help="A hyperparameter of one optimizer, such as muon-lite.flat_lr_ratio=3; may be repeated.",
)
@batch_options
@task_option
@checkpoint_options
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
def command(terminal: Terminal, /, **options: Any) -> None:
    """Replay a short training segment from a checkpoint under several optimizers.

    All see the same batches. Per step and direction it says who lowers the evaluation loss: along the sharp
    eigenvectors, along everything flat, in every band of every block, each with its error. Starts from the spectrum in
    the run directory, or measures it. Killed or interrupted, the same command continues.
    """
    with terminal.waiting(OPENING):
        from lite_probe.replays import (
            entrants_of,
            learning_rates,
            ramp_steps,
            require_settings,
            required_train_batches,
        )
    asked = ReplayOptions(**options)
    ramp_steps(asked.steps, asked.ramp)
    require_settings(entrants_of(asked.specs), asked.measurement["hyperparameters"])
    rates = learning_rates(asked.names, asked.measurement["lr"])
    if "checkpoint" in rates.values() and asked.state in ("warm", "cold"):
        raise UsageError(
            f"expected --state auto or checkpoint with --lr checkpoint, got {asked.state}",
            "the checkpoint's rate belongs to its optimizer's state: take both, or give a rate",
        )
    needed = required_train_batches(steps=asked.steps, seeds=asked.seeds, warm_batches=asked.warm_batches)
    with terminal.waiting(OPENING):
        opened = open_task(asked, train_batches=needed)
    opened, asked = with_bands(opened, asked)
    require_made(opened, asked)
    folder = run_directory(terminal, asked.out, opened.task.info)
    with nullcontext() if asked.dry_run else measuring_into(terminal, folder, opened.task.info):
        tell_task(terminal, opened.task, opened.task.evaluation)
        spectrum = find_spectrum(terminal, opened, asked, folder)
        saved = saved_optimizer(opened, asked.state)
        if spectrum is None:
            require_batches(opened, asked)
            require_inherited(opened, saved, asked)
        if spectrum is None and asked.dry_run:
            found = spectrum_plan_object(terminal, opened, asked, folder)
            if asked.as_json:
                print_stdout(json.dumps(found))
            return
        spectrum = spectrum or measure_spectrum_first(terminal, opened, asked, folder)
        plan = plan_and_tell(terminal, opened, spectrum, saved, asked, folder)
        if asked.dry_run:
            if asked.as_json:
                print_stdout(json.dumps(plan_object(plan, asked, folder)))
            return
        result = measure(terminal, opened, spectrum, saved, plan, asked, folder)
        paths = write_page(opened, folder, "replay")
    print_summary(terminal, result)
    print_stdout(json.dumps(json_object(result)) if asked.as_json else "\n".join(map(str, paths)))
    require_some_finished(result)


def with_bands(opened: Opened, asked: ReplayOptions) -> tuple[Opened, ReplayOptions]:
    """Choose whose proxy orders the directions, where nobody was asked for; note where it is not SOAP's."""
    from lite_probe.results.provenance import Note
    from lite_probe.subspaces import can_take

    if asked.bands is not None:
        return opened, asked
    if can_take("soap", opened.task) or not can_take("adamw", opened.task):
        return opened, replace(asked, bands="soap")
    message = "Directions are ordered by the proxy of adamw: soap cannot take this model."
    return replace(opened, notes=(*opened.notes, Note(code="bands", message=message))), replace(asked, bands="adamw")


def require_made(opened: Opened, asked: ReplayOptions) -> None:
    """Refuse optimizers that cannot take the model, before anything is measured for them.

    Raises:
        UsageError: If a hyperparameter is out of range.
        InputError: If an optimizer, or that of the bands, cannot take a parameter.
    """
    from lite_probe.replays import entrants_of
    from lite_probe.subspaces import optimizer_of

    for name, entrant in entrants_of(asked.specs).items():
        try:
            entrant.make(opened.task, asked.measurement["hyperparameters"].get(name, {}))
        except InputError as error:
            hint = error.hint if error.sample else f"{error.hint} (--optimizers)".strip()
            raise InputError(error.message, hint, error.sample) from error
    try:
        optimizer_of(opened.task, str(asked.bands))
    except InputError as error:
        raise InputError(error.message, f"leave out --bands {asked.bands}, or use --bands adamw") from error


def require_batches(opened: Opened, asked: ReplayOptions) -> None:
    """Refuse batches on which nothing can be replayed, before a spectrum is measured for it.

    Raises:
        InputError: If there is too little to train on, or an evaluation sample is trained on.
    """
    from lite_probe.replays.segments import deal_segments, require_disjoint

    deal_segments(opened.task, steps=asked.steps, seeds=asked.seeds, warm_batches=asked.warm_batches, seed=asked.seed)
    require_disjoint(opened.task)


def require_inherited(opened: Opened, saved: "SavedOptimizer | None", asked: ReplayOptions) -> None:
    """Refuse a state or learning rate that the checkpoint does not have, before a spectrum is measured for it.

    Raises:
        InputError: If there is none, or not this optimizer's.
    """
    from lite_probe.replays import entrants_of, inherited, learning_rates

    inherited(
        opened.task,
        entrants_of(asked.specs),
        learning_rates(asked.names, asked.measurement["lr"]),
        hyperparameters=asked.measurement["hyperparameters"],
        state=asked.state,
        saved=saved,
    )


def plan_and_tell(
    terminal: Terminal,
    opened: Opened,
    spectrum: "Spectrum",
    saved: "SavedOptimizer | None",
    asked: ReplayOptions,
    folder: Path,
) -> "ReplayPlan":
    """Plan the replay; say what it costs, and what it puts on which disk."""
    from lite_probe.replays import plan_replay

    with terminal.progress() as on_progress:
        plan = plan_replay(opened.task, **asked.measurement, spectrum=spectrum, saved=saved, on_progress=on_progress)
    terminal.line(f"plan: {plan.summary()}", style="bold")
    tell_disk(terminal, working_directory(asked.scratch, folder), plan.scratch_bytes, folder, plan.result_bytes)
    return plan


def measure(
    terminal: Terminal,
    opened: Opened,
    spectrum: "Spectrum",
    saved: "SavedOptimizer | None",
    plan: "ReplayPlan",
    asked: ReplayOptions,
    folder: Path,
) -> "Replay":
    """Return the replay asked for: the one saved where its fingerprint is the same, else a new one, saved."""
    from lite_probe.replays import discard_state
    from lite_probe.replays import replay as run_replay
    from lite_probe.results.provenance import join_notes
    from lite_probe.results.store import save
    from lite_probe.runtime.disk import require_room

    working = working_directory(asked.scratch, folder)
    found: Replay | None = reusable(terminal, folder, "replay", plan.fingerprint, fresh=asked.fresh)
    if found is None:
        require_room([(working, plan.scratch_bytes), (folder, plan.result_bytes)])
        terminal.resumable = True
        board = ReplayBoard(
            asked.names, steps=asked.steps, seeds=asked.seeds, ablations=asked.ablations, start_loss=plan.start_loss
        )
        with terminal.live(HEADER) as show:

            def on_step(event: "ReplayStep") -> None:
                board.on_step(event)
                show(board.rows(), board.words)

            def on_progress(done: int, total: int, label: str) -> None:
                board.on_progress(done, total, label)
                show(board.rows(), board.words)

            found = run_replay(
                opened.task,
                **asked.measurement,
                spectrum=spectrum,
                saved=saved,
                plan=plan,
                state_directory=working,
                on_progress=on_progress,
                on_step=on_step,
                command=terminal.command_line,
            )
        found = replace(found, notes=join_notes(opened.notes, found.notes))
        save(found, folder)
    discard_state(working)
    leave(working, folder)
    return found


def print_summary(terminal: Terminal, found: "Replay") -> None:
    """Show a replay in tables, and what they say."""
    from lite_probe.reports.replay_verdict import judge_replay

    tables = (outcome_table(found), progress_table(found), part_table(found), manner_table(found))
    for table in (start_table(found), *tables):
        if table is not None:
            terminal.table(*table)
            terminal.line()
    for line in explanations(found):
        terminal.line(line, style="dim")
    verdict = judge_replay(found)
    for text in (verdict.lead, *(point.text for point in verdict.points)):
        terminal.line(text)
    terminal.notes([note.message for note in found.notes])


def require_some_finished(found: "Replay") -> None:
    """Fail a replay of which no run reached the end; what was measured is saved by then.

    Raises:
        ReplayError: If every run of every optimizer diverged.
    """
    if not any(found.runs_of(name) for name in found.optimizers):
        steps = [run.diverged_at for run in found.runs if run.diverged_at is not None]
        raise ReplayError(
            f"expected some run to reach its end, got all {len(steps)} diverged, the first at step {min(steps)}",
            "replay with smaller learning rates, or --lr sweep",
        )


def plan_object(plan: "ReplayPlan", asked: ReplayOptions, folder: Path) -> dict[str, Any]:
    """Return what `--dry-run --json` prints."""
    names = (
        *("num_parameters", "num_runs", "num_gradients", "seconds", "memory_bytes", "scratch_bytes", "result_bytes"),
        *("start_loss", "fingerprint"),
    )
    places = {"scratch": str(working_directory(asked.scratch, folder)), "directory": str(folder)}
    return {**{name: getattr(plan, name) for name in names}, "swept": list(plan.swept), **places}


def parse_learning_rates(text: str) -> float | str | dict[str, float | str]:
    """Read what `--lr` says.

    Raises:
        UsageError: If it is neither a number, sweep or checkpoint, nor NAME=RATE,… of such, each name once.
    """
    if "=" not in text:
        return _rate(text, text)
    rates: dict[str, float | str] = {}
    for part in text.split(","):
        name, _, rate = part.partition("=")
        if name.strip() in rates:
            raise UsageError(f"expected one rate for {name.strip()} in --lr, got two: {text!r}")
        rates[name.strip()] = _rate(rate, text)
    return rates


def _rate(text: str, whole: str) -> float | str:
    word = text.strip()
    if word in ("sweep", "checkpoint"):
        return word
    try:
        return float(word)
    except ValueError:
        raise UsageError(
            f"expected --lr with a number, sweep or checkpoint, or NAME=RATE,… of these, got {whole!r}",
            "such as --lr 0.002, or --lr muon=0.002,soap=sweep",
        ) from None


def parse_settings(settings: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Read what each `--set` says: optimizer → hyperparameter → value, as JSON where it is some.

    Raises:
        UsageError: If one is not NAME.KEY=VALUE.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in settings:
        target, equals, value = text.partition("=")
        name, dot, key = target.strip().rpartition(".")
        if not (equals and dot and name and key):
            raise UsageError(f"expected --set NAME.KEY=VALUE, got {text!r}", "such as --set muon-lite.flat_lr_ratio=3")
        try:
            found.setdefault(name, {})[key] = json.loads(value)
        except RecursionError:
            raise UsageError(f"expected a value in --set {target}, got one nested too deeply") from None
        except ValueError:
            found.setdefault(name, {})[key] = value.strip()
    return found


def saved_optimizer(opened: Opened, state: str) -> "SavedOptimizer | None":
    """Return the optimizer state that the checkpoint brought, where `--state` may take it."""
    from lite_probe.replays import SavedOptimizer

    checkpoint = opened.checkpoint
    if checkpoint is None or checkpoint.optimizer is None or state not in ("auto", "checkpoint"):
        return None
    return SavedOptimizer(states=checkpoint.optimizer_states(), step=checkpoint.step, read_schedule=checkpoint.schedule)
