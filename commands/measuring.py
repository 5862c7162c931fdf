"""How commands measure, all in one way: open, find what is there, plan, run, save, show.

A command's options are the fields of its kind's request. What one kind does beside is a class of its own.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import click

from lite_probe.commands.console import Terminal, print_stdout
from lite_probe.commands.options import (
    ConfiguredCommand,
    bundle,
    config_option,
    console_options,
    example,
    options_from,
    taken_from,
)
from lite_probe.commands.reuse import find_unchanged, note_asked, stamp_of
from lite_probe.commands.run_directory import likely_folders, measuring_into, run_directory
from lite_probe.commands.scratch import leave, tell_disk, working_directory
from lite_probe.commands.tables import FORMATS, asked_format, print_tables
from lite_probe.commands.task import (
    FEWER_BITS,
    OPENING,
    Opened,
    TaskOptions,
    open_task,
    require_whole_products,
    size_of,
    tell_task,
)
from lite_probe.commands.torchrun import joined
from lite_probe.errors import InputError
from lite_probe.measurements.requests import OnProgress, option
from lite_probe.results.kinds import KINDS

if TYPE_CHECKING:
    from lite_probe.measurements.base import Plan
    from lite_probe.results.spectrum import Spectrum
    from lite_probe.vectors.ranks import Ranks

Watch = tuple[OnProgress, Callable[[Any], None] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Where results go, and what is done with what is there."""

    out: str | None = option(None, "The run directory; by default probe/NAME.", metavar="DIR")
    scratch: str | None = option(
        None, "For working files, on a disk with room; by default the run directory.", metavar="DIR"
    )
    fresh: bool = option(False, "Measure again what is already there.")
    dry_run: bool = option(False, "Say what would be measured and what that costs, and stop.")
    as_json: bool = option(False, "Print one JSON object on stdout.", flag="--json")
    as_format: str | None = option(
        None, "Print the object, or the tables of the page, on stdout.", flag="--format", among=FORMATS
    )
    only_table: str | None = option(None, "Print the table of this name alone.", flag="--table", metavar="NAME")


@dataclass(frozen=True, slots=True)
class Shown:
    """What came of one checkpoint."""

    printed: dict[str, Any]  # by --json
    paths: Sequence[Path] = ()  # for the user, the page first
    result: Any = None  # None where it was only planned


class Measuring:
    """One checkpoint and one kind of measurement; the docstring of a kind's own class is its command's help.

    Args:
        terminal: Told what goes on.
        asked: The task.
        how: What is done with results.
        request: The kind's.
        own: Values of options that only this command has.
    """

    kind: ClassVar[str]
    arguments: ClassVar[str] = "checkpoint"  # "checkpoints" where there may be several
    by_ranks: ClassVar[bool] = True  # whether the ranks of torchrun measure one thing together
    examples: ClassVar[tuple[str, ...]] = ()
    own_options: ClassVar[tuple[Callable[..., Any], ...]] = ()

    def __init__(
        self, terminal: Terminal, asked: TaskOptions, how: RunOptions, request: Any, own: Mapping[str, Any] = {}
    ) -> None:
        self.terminal = terminal
        self.asked = replace(asked, seed=request.seed)
        self.how = how
        self.request = self._multiplied(request)
        self.own = own
        self.ranks: Ranks | None = None
        self._ready: Plan[Any] | None = None

    def _multiplied(self, request: Any) -> Any:
        """Return the request with what its products are multiplied in, where `--precision` says so.

        Raises:
            UsageError: If that is fewer bits, and the kind takes no products in them.
        """
        precision = self.asked.precision
        if precision is None:
            return request
        if hasattr(request, "products"):
            return replace(request, products=precision if precision in FEWER_BITS else "float32")
        require_whole_products(precision, KINDS[self.kind].word)
        return request

    # -- what a kind may add -------------------------------------------------------------------------------------

    def vet(self) -> None:
        """Refuse what can be refused before anything is opened."""
        self._plans.vet(self.request)

    def prepared(self, opened: Opened) -> Any:
        """Return the request with what the checkpoint brings along."""
        return self.request

    def folder_for(self, opened: Opened) -> Path:
        """Return the run directory."""
        return run_directory(self.terminal, self.how.out, opened.task.info)

    @contextmanager
    def watching(self, plan: "Plan[Any]") -> Iterator[Watch]:
        """Show progress while a plan runs; yields who is told of it."""
        with self.terminal.progress() as on_progress:
            yield on_progress, None

    @classmethod
    def is_complete(cls, result: Any, own: Mapping[str, Any]) -> bool:
        """Whether a saved result has all that was asked for, by the command's own options."""
        return True

    def completed(self, opened: Opened, result: Any, folder: Path) -> Any:
        """Return a result with what is asked for beside the measurement."""
        return result

    def show(self, result: Any) -> None:
        """Write what came of it to the terminal."""
        from lite_probe.reports.sections.section import summarize

        self.terminal.show(summarize(self.kind, result))

    @classmethod
    def require_success(cls, result: Any) -> None:
        """Fail where a result, which is saved, says that it failed; it is None where it was only planned."""

    # -- the command ---------------------------------------------------------------------------------------------

    @classmethod
    def command(cls) -> click.Command:
        """Return the command."""
        request = KINDS[cls.kind].load("request")
        options = bundle(
            click.argument(cls.arguments, metavar="[CKPT...]", nargs=-1, type=click.Path())
            if cls.arguments == "checkpoints"
            else click.argument(cls.arguments, metavar="[CKPT]", required=False, type=click.Path()),
            options_from(TaskOptions),
            options_from(request),
            *cls.own_options,
            options_from(RunOptions),
            config_option,
            console_options,
        )

        def call(terminal: Terminal, /, **given: Any) -> None:
            cls.main(terminal, given)

        call.__doc__ = cls.__doc__
        examples = cls.examples or (f"{cls.kind} runs/gpt/ckpt.pt --data val.bin",)
        return click.command(KINDS[cls.kind].word, cls=ConfiguredCommand, epilog=example(*examples))(
            options(click.pass_obj(call))
        )

    @classmethod
    def main(cls, terminal: Terminal, given: dict[str, Any]) -> None:
        """Measure one checkpoint, and show the result."""
        form = asked_format(given)
        with joined(terminal) if cls.by_ranks else nullcontext() as ranks:
            is_first = ranks is None or ranks.is_first
            shown = cls.unchanged(terminal, given) if is_first else None
            is_there = shown is not None if ranks is None else ranks.once(partial(bool, shown))
            if not is_there:
                one = cls.asked_for(terminal, dict(given))
                one.ranks = ranks
                opened = one.open()
                folder = opened.task.ranks.once(partial(one.folder_for, opened))
                shown = one.go(opened, folder)
                if shown.result is not None and is_first:
                    note_asked(folder, cls.kind, cls.stamp(given, folder), shown.result.fingerprint)
        if shown is None or not is_first:
            return
        print_shown(cls.kind, [shown], form, given["only_table"])
        cls.require_success(shown.result)

    @classmethod
    def unchanged(cls, terminal: Terminal, given: Mapping[str, Any]) -> "Shown | None":
        """Show the result of what was asked before, where neither that nor a file has changed since.

        Nothing heavy is loaded for it.
        """
        from lite_probe.reports.sections.section import describe, summarize

        if given["fresh"] or given["dry_run"] or given["checkpoint"] is None:
            return None
        for folder in likely_folders(given["out"], given["checkpoint"]):
            result = find_unchanged(folder, cls.kind, cls.stamp(given, folder))
            paths = [folder / "report.html", folder / f"{cls.kind}.json"]
            if result is not None and cls.is_complete(result, given) and all(path.is_file() for path in paths):
                terminal.line(f"already measured: {paths[-1]}; --fresh measures again")
                terminal.show(summarize(cls.kind, result))
                return Shown(describe(cls.kind, result), paths, result)
        return None

    @classmethod
    def stamp(cls, given: Mapping[str, Any], folder: Path) -> str | None:
        """Return what tells this request from others: see `stamp_of`."""
        starts_from_one = hasattr(KINDS[cls.kind].load("request"), "spectrum")
        return stamp_of(given, folder, ["spectrum"] if starts_from_one else [])

    @classmethod
    def asked_for(cls, terminal: Terminal, given: dict[str, Any]) -> Self:
        """Return what a command line asks for."""
        with terminal.waiting(OPENING):
            how = RunOptions(**taken_from(RunOptions, given))
            request = KINDS[cls.kind].load("request")
            asked = TaskOptions(**taken_from(TaskOptions, {**given}))
            return cls(terminal, asked, how, request(**taken_from(request, given)), given)

    def open(self) -> Opened:
        """Open the task; refuse what cannot be measured on it."""
        with self.terminal.waiting(OPENING):
            self.vet()
            opened = self.loaded()
            self.request = self.prepared(opened).checked(opened.task)
        return opened

    def loaded(self) -> Opened:
        """Return the task asked for, for the ranks that there are."""
        opened = open_task(self.asked, train_batches=self.request.train_batches(self.asked.batches))
        if self.ranks is not None:
            opened.task.ranks = self.ranks
        return opened

    def go(self, opened: Opened, folder: Path) -> "Shown":
        """Measure into a run directory and show the result, or say what would be measured."""
        from lite_probe.reports.sections.section import describe
        from lite_probe.results.store import load

        ranks = opened.task.ranks
        is_writer = ranks.is_first and not self.how.dry_run
        with measuring_into(self.terminal, folder, opened.task.info) if is_writer else nullcontext():
            tell_task(self.terminal, opened.task, opened.task.batches(self._plans.split(self.request)))
            missing = self.find_spectrum(opened, folder)
            _require_same(ranks, missing is None, folder)
            if self.how.dry_run:
                return Shown(missing.planned(opened, folder, first=True) if missing else self.planned(opened, folder))
            if missing is not None:
                self._start_from(opened, missing.measured(opened, folder) or load(folder, "spectrum"))
            result = self.measured(opened, folder)
            if not ranks.is_first:
                return Shown({})
            paths = self._write_page(opened, folder)
        self.show(result)
        return Shown(describe(self.kind, result), paths, result)

    # -- the steps -----------------------------------------------------------------------------------------------

    def planned(self, opened: Opened, folder: Path, *, first: bool = False) -> dict[str, Any]:
        """Plan, and say what it costs; return what `--dry-run --json` prints."""
        plan = self._plan(opened, folder)
        values: dict[str, Any] = {}
        for name in plan.shown:
            value = getattr(plan, name)
            values |= asdict(value) if is_dataclass(value) and not isinstance(value, type) else {name: value}
        if opened.task.ranks.count > 1:
            values |= {"ranks": opened.task.ranks.count}
        values |= {"scratch": str(self._working(folder)), "directory": str(folder)}
        if first:
            self.terminal.line("what follows can be planned once the spectrum is there")
            return {self.kind: values}
        return values

    def measured(self, opened: Opened, folder: Path) -> Any:
        """Return the result asked for: the one saved where it is the same, else a new one, saved.

        Of several ranks the first returns and saves it, and decides what is there; the others return None.
        """
        from lite_probe.measurements.base import discard_state
        from lite_probe.results.provenance import join_notes
        from lite_probe.results.store import save
        from lite_probe.runtime.disk import require_room
        from lite_probe.vectors.ranks import ALONE

        working, ranks = self._working(folder), opened.task.ranks
        path, plan = folder / f"{self.kind}.json", None
        result, why_not = self.reusable(opened, folder) if ranks.is_first else (None, "")
        is_there = ranks.once(lambda: result is not None)
        if not is_there:
            plan = self._plan(opened, folder)
            if ranks.is_first:
                result, why_not = self.saved(folder, lambda saved: bool(saved.fingerprint == plan.fingerprint))
            is_there = ranks.once(lambda: result is not None)
        if is_there:
            self.terminal.line(f"already measured: {path}; --fresh measures again")
        elif plan is not None:
            if why_not:
                self.terminal.line(f"replacing {path}: {why_not}")
            require_room([plan.room(working), (folder, plan.result_bytes)])
            self.terminal.resumable = True
            with self.watching(plan) as (on_progress, on_event):
                result = plan.run(
                    opened.task,
                    state_directory=working,
                    on_progress=on_progress,
                    on_event=on_event,
                    command=self.terminal.command_line,
                )
            if ranks.is_first:
                result = replace(result, notes=join_notes(opened.notes, result.notes))
                save(result, folder)
        ranks.once(lambda: None)  # it is saved
        if not ranks.is_first:
            discard_state(working, self.kind)
            return None
        if ranks.count > 1:
            opened = replace(opened, task=replace(opened.task, ranks=ALONE))  # the others have finished
        if not self.is_complete(result, self.own):
            result = self.completed(opened, result, folder)
            save(result, folder)
        discard_state(working, self.kind)  # a kill may have come between saving and this
        leave(working, folder)
        return result

    def reusable(self, opened: Opened, folder: Path) -> tuple[Any | None, str]:
        """Return the saved result where it is what is asked for, before anything is computed, else why it is not.

        A task of the user's own is known by its loss, too, which a plan evaluates.
        """
        if opened.checkpoint is None or opened.task.ranks.is_sharded:  # no rank can tell a sharded model alone
            return None, ""
        spectrum = getattr(self.request, "spectrum", None)

        def is_asked_for(saved: Any) -> bool:
            loss = saved.loss if spectrum is None else spectrum.loss
            return bool(self._plans.key(opened.task, self.request, loss) == saved.fingerprint)

        return self.saved(folder, is_asked_for)

    def saved(self, folder: Path, is_asked_for: Callable[[Any], bool]) -> tuple[Any | None, str]:
        """Return the saved result where it is the one asked for, else why it is not; no reason where there is none."""
        from lite_probe.results.store import load

        path = folder / f"{self.kind}.json"
        if self.how.fresh or not path.exists():
            return None, ""
        try:
            saved = load(folder, self.kind)
        except InputError as error:
            return None, error.message
        if is_asked_for(saved):
            return saved, ""
        return None, "it is of another checkpoint, other batches or options"

    def choose(self, opened: Opened, folder: Path, variants: Sequence[Mapping[str, Any]], seconds: float) -> int | None:
        """Ask for the first of some variants that is there already or, by its plan, takes no more than so long.

        Args:
            opened: The task.
            folder: The run directory.
            variants: Fields of the request, the dearest first.
            seconds: That there are.

        Returns:
            Which; None where there is none, and the last one is asked for.
        """
        self.find_spectrum(opened, folder)
        asked = [replace(self.request, **variant).checked(opened.task) for variant in variants]
        for place, self.request in enumerate(asked):
            if self.reusable(opened, folder)[0] is not None:
                return place
        for place, self.request in enumerate(asked):
            with self.terminal.progress() as on_progress:
                self._ready = self.request.plan(opened.task, on_progress)
            if self._ready.seconds <= seconds:
                return place
        return None

    def _plan(self, opened: Opened, folder: Path) -> "Plan[Any]":
        plan = self._ready
        if plan is None:
            with self.terminal.progress() as on_progress:
                plan = self.request.plan(opened.task, on_progress)
        plan = plan.as_begun(opened.task, self._working(folder))
        each = f", on each of {opened.task.ranks.count} ranks" if opened.task.ranks.count > 1 else ""
        self.terminal.line(f"plan: {plan.summary()}{each}", style="bold")
        tell_disk(self.terminal, self._working(folder), plan.scratch_bytes, folder, plan.result_bytes)
        return plan

    def find_spectrum(self, opened: Opened, folder: Path) -> "Measuring | None":
        """Start from the spectrum in the run directory; return who measures it first where there is none.

        Raises:
            InputError: If the one there is damaged, or of other batches or another checkpoint; `--fresh` measures anew.
        """
        if not hasattr(self.request, "spectrum") or self.request.spectrum is not None:
            return None
        from lite_probe.results.store import load

        path = folder / "spectrum.json"
        if not path.is_file():
            self.terminal.line(f"no spectrum in {folder} yet: it comes first, with the defaults of lite-probe spectrum")
        else:
            try:
                self._start_from(opened, load(folder, "spectrum"))
                return None
            except InputError as error:
                if not self.how.fresh:
                    hint = error.hint if "--fresh" in error.hint else f"{error.hint}; --fresh replaces it"
                    raise InputError(f"{path}: {error.message}", hint) from error
                self.terminal.line(f"replacing {path}: {error.message}")
        request = KINDS["spectrum"].load("request")
        asked = request(memory=self.request.memory, seed=self.request.seed)
        num_parameters = size_of(opened.task)
        # As many pairs as are asked for, and by itself no more than there are parameters.
        top = max(min(asked.top, num_parameters), getattr(self.request, "size", None) or 0)
        asked = replace(asked, top=top, bottom=min(asked.bottom, max(num_parameters - top, 0)))
        return of_kind("spectrum")(self.terminal, self.asked, self.how, asked)

    def _start_from(self, opened: Opened, spectrum: "Spectrum") -> None:
        self.request = replace(self.request, spectrum=spectrum).checked(opened.task)

    def _write_page(self, opened: Opened, folder: Path) -> list[Path]:
        """Write what goes with a saved result; return the paths for the user, the page first."""
        from lite_probe.reports.page import write_report
        from lite_probe.results.store import save

        if opened.summary is not None:
            save(opened.summary, folder)
        return [write_report([folder], folder / "report.html"), folder / f"{self.kind}.json"]

    def _working(self, folder: Path) -> Path:
        return working_directory(self.how.scratch, folder)

    @property
    def _plans(self) -> "type[Plan[Any]]":
        plans: type[Plan[Any]] = KINDS[self.kind].load("plan")
        return plans


def _require_same(ranks: "Ranks", found: bool, folder: Path) -> None:
    """Refuse ranks that see different files.

    Raises:
        InputError: On every rank.
    """
    if len(set(ranks.from_every(found))) > 1:
        raise InputError(
            f"expected every rank to see the same spectrum in {folder}, got ranks without one",
            "put the run directory (--out) on a disk that all of them share",
        )


def print_shown(kind: str, shown: Sequence[Shown], form: str | None, only_table: str | None) -> None:
    """Write to stdout what came of one checkpoint, or of several, in a format of `asked_format`."""
    results = [one.result for one in shown if one.result is not None]
    if form == "json":
        objects = [one.printed for one in shown]
        print_stdout(json.dumps(objects if len(objects) > 1 else objects[0]))
    elif form is not None and results:
        from lite_probe.reports.runs import Run

        print_tables([Run(**{kind: result}) for result in results], form, only_table)
    elif paths := [str(path) for one in shown for path in one.paths]:
        print_stdout("\n".join(paths))


def of_kind(name: str) -> type[Measuring]:
    """Return how a kind is measured that adds nothing of its own."""

    class OfKind(Measuring):
        kind = name

    OfKind.__doc__ = KINDS[name].load("request").__doc__.partition("\n")[0]
    return OfKind
