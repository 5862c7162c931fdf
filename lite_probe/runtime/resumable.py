"""What one measurement keeps on disk between runs, until its result is there.

Nothing in the folder is trusted. What does not fit its own digest is noted, removed and measured anew; and every folder
in it is a real one, since a link that came with somebody's checkpoint would lead what is written and removed anywhere.
Of several ranks the first sees to that, and each for the folders that are its own.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from lite_probe.errors import InputError, UsageError
from lite_probe.results.provenance import Note
from lite_probe.results.record import decode_record, encode_record
from lite_probe.results.sealing import seal, unseal
from lite_probe.results.store import find_result, save, write_atomically
from lite_probe.vectors.ranks import ALONE, Ranks

Finished = TypeVar("Finished")

_LAYOUT = "layout.json"
_RANKS = "ranks.json"
_READ_BYTES = 1 << 16
_LONGEST_INTERVAL = 50.0  # seconds between saves; a kill loses at most about a minute
_COST_FACTOR = 20.0  # a save that took s seconds is followed by at least 20 s without one: at most 5% overhead


class SaveClock:
    """Says when to save what is in progress: once a minute, and more often where that is cheap."""

    def __init__(self) -> None:
        self._last_end = time.monotonic()
        self._last_cost = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time: a minute has passed, or saving is cheap beside what passed."""
        return time.monotonic() - self._last_end >= min(_LONGEST_INTERVAL, _COST_FACTOR * self._last_cost)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Time a save."""
        started = time.monotonic()
        yield
        self._last_end = time.monotonic()
        self._last_cost = self._last_end - started


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What an interrupted run keeps to, since another choice rounds differently; a kind says what that is.

    Attributes:
        memory: The least that was asked for since it began, `--memory`; None where it never was.
    """

    memory: int | None = field(default=None, compare=False)


Choice = TypeVar("Choice", bound=Begun)


class ResumableRun:
    """Finished stages and small values of a measurement, each with the measurement's fingerprint, and its progress.

    Args:
        path: Of the folder, which need not exist; None keeps nothing.
        fingerprint: Of the measurement; what has another one is not continued from.
        on_progress: Told `(done, expected, label)`.
        ranks: That measure together. Rank 0 alone keeps stages and values; what it finds, all have.

    Attributes:
        notes: What was damaged.
        done: Steps of progress so far, those of an earlier process among them.
        expected: All of them, as far as is known.
        tell: Who is told of it.
    """

    def __init__(
        self,
        path: Path | None,
        fingerprint: str,
        on_progress: Callable[[int, int, str], None] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.path = path
        self.ranks = ranks
        self.fingerprint = fingerprint
        self.notes: list[Note] = []
        self.done = self.expected = 0
        self.tell = on_progress

    def advance(self, steps: int, label: str) -> None:
        """Count some steps of progress, and tell."""
        self.done += steps
        if self.tell is not None:
            self.tell(self.done, max(self.expected, self.done), label)

    def folder(self, *parts: str) -> Path | None:
        """Return the folder of a part, which need not exist; links and files in its place are removed."""
        folder = self.path
        for part in ("", *parts):
            folder = folder / part if folder is not None else None
            if self.ranks.is_first and folder is not None:
                real_folder(folder)
        return folder

    def begun(self, kind: type[Choice]) -> Choice | None:
        """Return what an interrupted run of this measurement chose, None where there is none; nothing is changed.

        Args:
            kind: What does not have its fields, each of its type, is none.
        """
        return self.ranks.once(lambda: self._begun(kind))

    def _begun(self, kind: type[Choice]) -> Choice | None:
        if self.path is None or not os.path.lexists(self.path / _LAYOUT):
            return None
        with suppress(InputError):  # `pin` says what is damaged
            return _choice_of(kind, self._unsealed(self.path / _LAYOUT))
        return None

    def pin(self, chosen: Choice) -> Choice:
        """Begin with these choices, where no run with the same is to be continued; of another one nothing stays.

        Args:
            chosen: What the run keeps to.

        Returns:
            It, with the least memory that was asked for so far; on every rank rank 0's.

        Raises:
            OutputError: If the folder cannot be made.
        """
        return self.ranks.once(lambda: self._pin(chosen))

    def _pin(self, chosen: Choice) -> Choice:
        if self.folder() is None:
            return chosen
        saved = self._read(_LAYOUT)
        begun = _choice_of(type(chosen), saved)
        if begun is not None and begun == chosen:
            asked = [one.memory for one in (begun, chosen) if one.memory is not None]
            chosen = replace(chosen, memory=min(asked, default=None))
        else:
            if saved is not None:
                why = "the memory allowed now has no room for it" if begun is not None else "it cannot be read"
                message = f"what an interrupted run had saved was measured from the start: as it was laid out, {why}"
                self.notes.append(Note(code="begun-anew", message=message))
            self.clear()
            self._mark()
        self.write(_LAYOUT, encode_record(chosen)[0])
        return chosen

    def require_ranks(self) -> None:
        """Refuse to continue what another number of ranks began: their slices and roundings do not fit together.

        Raises:
            UsageError: On every rank.
        """
        begun = self.ranks.once(self._begun_by)
        if begun not in (None, self.ranks.count):
            processes = f"{begun} rank{'' if begun == 1 else 's'}"
            raise UsageError(
                f"expected to continue in {self.path} with the {processes} that began, got {self.ranks.count}",
                f"start {processes} again, or remove that folder to begin anew",
            )
        self._mark()

    def _mark(self) -> None:
        """Say how many ranks have begun, where it is not one."""
        if self.ranks.count > 1:
            self.write(_RANKS, self.ranks.count)

    def _begun_by(self) -> int | None:
        """Return how many ranks have begun this measurement; None where none have."""
        folder = self.folder()
        if folder is None or not folder.is_dir():
            return None
        count = self._read(_RANKS)
        if isinstance(count, int):
            return count
        mark = self.fingerprint.encode()
        return 1 if any(_names(path, mark) for path in folder.rglob("*") if path.is_file()) else None

    def stage(
        self,
        part: str,
        kind: str,
        measure: Callable[[], Finished],
        shared: Callable[[Finished], Finished] = lambda found: found,
    ) -> Finished:
        """Return a finished stage: what an earlier process kept of it, else what `measure` returns, kept.

        What it saved of itself meanwhile, in its folder's `running`, goes then.

        Args:
            part: Its name.
            kind: Of the registered dataclass that it is kept as, which has the measurement's fingerprint.
            measure: Measures it.
            shared: What ranks above 0 are given of what was found.
        """
        found: Finished | None = self._find(part, kind) if self.ranks.is_first else None
        told = self.ranks.once(lambda: None if found is None else shared(found))
        found = found if self.ranks.is_first else told
        if found is None:
            found = measure()
            self.keep(part, found)
            self.forget(f"{part}/running")
        return found

    def from_file(self, part: str, kind: str, found: Finished) -> Finished:
        """Return a finished stage as its file has it, large arrays mapped; as it was found where this rank has none."""
        kept: Finished | None = self._find(part, kind) if self.ranks.is_first else None
        return found if kept is None else kept

    def find(self, part: str, kind: str) -> Any | None:
        """Return a finished stage, None where it has to be measured."""
        return self.ranks.once(lambda: self._find(part, kind))

    def _find(self, part: str, kind: str) -> Any | None:
        folder = self.folder(part)
        if folder is None:
            return None

        def begin_anew(error: InputError) -> None:
            self.note(error)
            remove(folder)

        return find_result(folder, kind, self.fingerprint, on_damaged=begin_anew)

    def keep(self, part: str, finished: object) -> None:
        """Save a finished stage, an instance of a registered dataclass."""
        folder = self.folder(part)
        if folder is not None and self.ranks.is_first:
            save(finished, folder)

    def read(self, name: str) -> Any | None:
        """Return a value that `write` left, None where there is none of this measurement."""
        return self.ranks.once(lambda: self._read(name))

    def _read(self, name: str) -> Any | None:
        folder = self.folder()
        if folder is None or not os.path.lexists(folder / name):
            return None
        try:
            return self._unsealed(folder / name)
        except InputError as error:
            self.note(error)
            remove(folder / name)
            return None

    def _unsealed(self, path: Path) -> Any | None:
        """Return the value of a file, None where it is another measurement's.

        Raises:
            InputError: If it is damaged.
        """
        saved = unseal(path, "saved state")
        is_ours = isinstance(saved, dict) and saved.get("fingerprint") == self.fingerprint
        return saved.get("value") if is_ours else None

    def write(self, name: str, value: Any) -> None:
        """Save a JSON value."""
        folder = self.folder()
        if folder is not None and self.ranks.is_first:
            content = seal({"fingerprint": self.fingerprint, "value": value})
            write_atomically(folder / name, lambda file: file.write(content))

    def forget(self, *parts: str) -> None:
        """Remove finished stages."""
        for part in parts:
            if self.path is not None and self.ranks.is_first:
                remove(self.path / part)

    def clear(self) -> None:
        """Remove everything."""
        if self.path is not None and self.ranks.is_first:
            remove(self.path)

    def note(self, error: InputError) -> None:
        """Keep for the reader of the result that something was damaged."""
        self.notes.append(damage_note(error))


def _choice_of(kind: type[Choice], saved: Any) -> Choice | None:
    """Return a saved choice; None where it is none of a kind."""
    try:
        choice: Choice = decode_record(kind, saved, None)
    except (ValueError, OverflowError):
        return None
    return choice


def _names(path: Path, fingerprint: bytes) -> bool:
    """Whether a file of a state names a measurement in its first bytes."""
    with path.open("rb") as file:
        return fingerprint in file.read(_READ_BYTES)


def damage_note(error: InputError) -> Note:
    """Say that a state was not continued from, and why."""
    return Note(code="damaged-state", message=f"the saved state was damaged, measured from the start: {error.message}")


def real_folder(path: Path) -> Path:
    """Return the path of a folder, which need not exist; a link or a file in its place is removed."""
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
        remove(path)
    return path


def remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link, which is not followed, as far as the system lets us."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)
