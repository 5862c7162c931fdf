"""`lite-probe compare`: optimizers by checkpoints, from what is saved and what is missing is measured."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lite_probe.commands.console import Terminal, print_stdout
from lite_probe.commands.measuring import RunOptions
from lite_probe.commands.options import (
    ConfiguredCommand,
    config_option,
    console_options,
    example,
    options_from,
    taken_from,
)
from lite_probe.commands.replay import ReplayMeasuring
from lite_probe.commands.run_directory import made, run_directory
from lite_probe.commands.steps import StepsMeasuring
from lite_probe.commands.tables import asked_format, write_tables
from lite_probe.commands.task import OPENING, Opened, TaskOptions
from lite_probe.commands.wording import plural
from lite_probe.errors import InputError, ThresholdError, UsageError
from lite_probe.measurements.requests.replay import ReplayRequest
from lite_probe.measurements.requests.steps import StepsRequest
from lite_probe.results.kinds import KINDS

if TYPE_CHECKING:
    from lite_probe.results.thresholds import Outcome

_OUT = "probe/compare"
_TASK = tuple(field.name for field in fields(TaskOptions) if "option" in field.metadata and field.name != "task_file")


class ComparedReplay(ReplayMeasuring):
    """A replay that the comparison shows."""

    def show(self, result: Any) -> None:
        """Leave it to the comparison."""


class ComparedSteps(StepsMeasuring):
    """Steps that the comparison shows."""

    def show(self, result: Any) -> None:
        """Leave it to the comparison."""


@click.command(
    "compare",
    cls=ConfiguredCommand,
    epilog=example(
        "compare runs/early.pt runs/late.pt --data val.bin --optimizers muon,muon-lite,mine.py:make_mine",
        "compare probe/early probe/late",
        "compare probe/early probe/late --fail-if 'muon-lite.loss_change > muon.loss_change'",
    ),
)
@click.argument("checkpoints", metavar="CKPT-OR-RUN...", nargs=-1, required=True, type=click.Path())
@options_from(TaskOptions, *_TASK)
@options_from(ReplayRequest)
@options_from(StepsRequest, "step_batches")
@click.option("--no-steps", is_flag=True, help="Leave out how long a step lite-probe's own optimizers tolerate.")
@click.option(
    "--fail-if",
    "fail_if",
    multiple=True,
    metavar="EXPR",
    help="Exit with 5 where it holds, as 'muon-lite.loss_change > muon.loss_change', told from chance; may repeat.",
)
@options_from(RunOptions)
@config_option
@console_options
@click.pass_obj
def command(
    terminal: Terminal,
    /,
    checkpoints: tuple[str, ...],
    no_steps: bool,
    step_batches: int,
    fail_if: tuple[str, ...],
    **given: Any,
) -> None:
    """Compare optimizers over checkpoints: one table and one page.

    Of checkpoints it measures what is not there yet, spectrum, replay and steps, each into its own run directory; run
    directories are taken as they are, and nothing heavy is loaded for them. It says how the spectrum, the progress and
    the tolerated step move with training, who ends lowest where, and where nobody does. What was measured on other
    data, another segment or by another measure is refused.
    """
    form = asked_format(given)
    runs = [_is_run(Path(one)) for one in checkpoints]
    measured = [one for one, is_run in zip(checkpoints, runs, strict=True) if not is_run]
    asked = None
    if measured:
        asked = _Asked(terminal, given, {"step_batches": step_batches}, has_steps=not no_steps, checkpoints=measured)
        asked.vet(fail_if, [one for one, is_run in zip(checkpoints, runs, strict=True) if is_run])
    folders, planned = [], []
    for one, is_run in zip(checkpoints, runs, strict=True):
        if is_run or asked is None:
            folders.append(Path(one))
        elif given["dry_run"]:
            planned.append(asked.planned(one))
        else:
            folders.append(asked.measured(one))
    if given["dry_run"]:
        terminal.line(f"{plural(len(folders), 'run')} would be read, {plural(len(planned), 'checkpoint')} measured")
        if form == "json":
            print_stdout(json.dumps({"runs": [str(one) for one in folders], "checkpoints": planned}))
        return
    _compare(terminal, folders, given, fail_if)


def _is_run(path: Path) -> bool:
    """Whether it is a run directory, or a result in one.

    Raises:
        InputError: If nothing is there.
    """
    if not path.exists():
        raise InputError(f"expected a checkpoint or a run directory at {path}, got nothing", "check the path")
    names = {f"{kind}.json" for kind in KINDS}
    return any((path / name).is_file() for name in names) if path.is_dir() else path.name in names


class _Asked:
    """What is measured of every checkpoint alike.

    Args:
        terminal: Told what goes on.
        given: The command's options.
        steps: Fields of the request of steps.
        has_steps: Whether steps are measured.
        checkpoints: To be measured, in order.
    """

    def __init__(
        self,
        terminal: Terminal,
        given: Mapping[str, Any],
        steps: Mapping[str, Any],
        *,
        has_steps: bool,
        checkpoints: Sequence[str],
    ) -> None:
        self.terminal = terminal
        self.given = given
        self.steps = steps
        self.has_steps = has_steps
        self.checkpoints = checkpoints
        with terminal.waiting(OPENING):
            self.how = RunOptions(**taken_from(RunOptions, {**given}))
            self.request = ReplayRequest(**taken_from(ReplayRequest, {**given}))

    def vet(self, fail_if: Sequence[str], runs: Sequence[str]) -> None:
        """Refuse what can be refused before the first checkpoint is measured.

        Raises:
            UsageError: Options or thresholds that make no sense.
            InputError: Checkpoints that cannot be read, or are of models of other sizes.
        """
        from lite_probe.checkpoints import open_checkpoint
        from lite_probe.results.comparison import compare
        from lite_probe.results.thresholds import parse_threshold

        if len({Path(path).resolve() for path in self.checkpoints}) < len(self.checkpoints):
            raise UsageError(f"expected every checkpoint once, got {', '.join(self.checkpoints)}", "name each once")
        names, labels, sizes = [*self.request.names], [], {}
        if runs:
            read = compare(runs)
            names, labels = [*names, *read.optimizers], [*read.labels]
        for path in self.checkpoints:
            self._task(path)
            trust, config = self.given["trust_pickle"], self.given["model_config"]
            with self.terminal.waiting(OPENING):
                found = open_checkpoint(path, trust_pickle=trust, model_config=config)
            sizes[path] = found.num_parameters
            labels += [found.name, f"{found.name}, step {found.step or 0:,}"]
        if len(set(sizes.values())) > 1:
            said = ", ".join(f"{size:,} in {path}" for path, size in sizes.items())
            raise InputError(f"expected checkpoints of one model, got numbers of parameters {said}")
        for text in fail_if:
            parse_threshold(text, names, labels)

    def planned(self, path: str) -> dict[str, Any]:
        """Say what would be measured of a checkpoint, and what that costs."""
        self._tell(path)
        replay = self._replay(path)
        opened = replay.open()
        folder = self._folder(opened)
        values = {"checkpoint": path, "replay": replay.go(opened, folder).printed}
        if self._stepping:
            steps = self._steps(path, {name: self.request.rates[name] for name in self._stepping})
            values["steps"] = steps.go(steps.open(), folder).printed
        return values

    def measured(self, path: str) -> Path:
        """Measure what is missing of a checkpoint; return its run directory."""
        self._tell(path)
        replay = self._replay(path)
        opened = replay.open()
        folder = self._folder(opened)
        result = replay.go(opened, folder).result
        replay.require_success(result)
        if self._stepping:
            # At the rates of the replay, so that none is swept twice.
            steps = self._steps(path, {name: result.recipes[name].lr for name in self._stepping})
            steps.go(steps.open(), folder)
        self.terminal.line()
        return folder

    def _tell(self, path: str) -> None:
        place = self.checkpoints.index(path) + 1
        self.terminal.line(f"checkpoint {place} of {len(self.checkpoints)}: {path}", style="bold")

    def _task(self, path: str) -> TaskOptions:
        return TaskOptions(**taken_from(TaskOptions, {**self.given, "checkpoint": path}))

    def _folder(self, opened: Opened) -> Path:
        return run_directory(self.terminal, self.how.out, opened.task.info, is_one_of_several=True)

    def _replay(self, path: str) -> ReplayMeasuring:
        return ComparedReplay(self.terminal, self._task(path), self.how, self.request)

    def _steps(self, path: str, rates: Mapping[str, Any]) -> StepsMeasuring:
        kept = {name: getattr(self.request, name) for name in ("state", "warm_batches", "memory", "seed")}
        settings = {name: one for name, one in self.request.hyperparameters.items() if name in rates}
        request = StepsRequest(**kept, **self.steps, optimizers=tuple(rates), lr=dict(rates), hyperparameters=settings)
        return ComparedSteps(self.terminal, self._task(path), self.how, request, {"relative_path": None})

    @property
    def _stepping(self) -> list[str]:
        """The optimizers whose steps are measured: lite-probe's own."""
        from lite_probe.replays.entrants import entrants_of

        return [one.name for one in entrants_of(self.request.asked).values() if one.is_ours] if self.has_steps else []


def _compare(terminal: Terminal, folders: Sequence[Path], given: Mapping[str, Any], fail_if: Sequence[str]) -> None:
    """Compare run directories, write and show it; fail where a threshold is missed.

    Raises:
        UsageError: A threshold on what there is not.
        InputError: Runs that cannot be compared.
        ThresholdError: One that is missed.
    """
    from lite_probe.reports.page import write_report
    from lite_probe.reports.sections.comparison import comparison_object, comparison_tables, summarize_comparison
    from lite_probe.results.comparison import compare
    from lite_probe.results.store import write_atomically
    from lite_probe.results.thresholds import decide_thresholds, parse_threshold

    comparison, form, out = compare(folders), asked_format(given), Path(given["out"] or _OUT)
    thresholds = [parse_threshold(text, comparison.optimizers, comparison.labels) for text in fail_if]
    outcomes = decide_thresholds(thresholds, comparison)
    printed = comparison_object(comparison, outcomes)
    text = json.dumps(printed, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    page, path = out / "compare.html", out / "comparison.json"
    with made(out):
        write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))
        write_report(folders, page, is_comparison=True)
    terminal.show(summarize_comparison(comparison, outcomes))
    if form in (None, "json"):
        print_stdout(json.dumps(printed) if form else f"{page}\n{path}")
    else:
        write_tables(comparison_tables(comparison), str(form), given["only_table"])
    _require_kept(outcomes)


def _require_kept(outcomes: "Sequence[Outcome]") -> None:
    """Fail where a threshold is missed.

    Raises:
        ThresholdError: It says which, where.
    """
    missed = [f"{one.threshold.text} at {one.checkpoint}" for one in outcomes if one.status == "missed"]
    if missed:
        raise ThresholdError(
            f"expected no threshold of --fail-if to be missed, got {len(missed)} of {len(outcomes)}: "
            f"{'; '.join(missed)}"
        )
