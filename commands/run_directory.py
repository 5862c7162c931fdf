"""The folder that one checkpoint's results lie in: `probe/NAME` unless `--out` says otherwise.

It belongs to one checkpoint, told by its content: every nanoGPT file is called ckpt.pt. Its results say whose they are;
while one is being measured, or was left unfinished, a lock file does. The lock itself goes with the process.
"""

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lite_probe.commands.console import Terminal
from lite_probe.errors import InputError, OutputError
from lite_probe.files import read_bounded
from lite_probe.results.kinds import KINDS

if TYPE_CHECKING:
    from lite_probe.task import TaskInfo

_LOCK = ".lite-probe.lock"
_MOST_HEAD_BYTES = 2**28


def run_directory(terminal: Terminal, out: str | None, info: "TaskInfo", *, is_one_of_several: bool = False) -> Path:
    """Return the run directory of a checkpoint, checked but not yet made.

    Without `--out` it is `probe/NAME`, or where that holds another checkpoint's results the first of `probe/NAME-2`,
    `probe/NAME-3`, … that does not; the same checkpoint finds its own again.

    Args:
        terminal: Told where results go when it is not where they would be looked for.
        out: What `--out` says; of several checkpoints each has its own folder in it.
        info: Of the checkpoint's task; characters of its name that a shell or a file system minds become `-`.
        is_one_of_several: Whether there are more.

    Raises:
        OutputError: If the folder, or one above it, is a file, or `--out` holds another checkpoint's results.
    """
    own = _folder_name(info.name)
    folder = Path(out or "probe") / own if out is None or is_one_of_several else Path(out)
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        is_folder = there.is_dir()
    except OSError as error:
        raise OutputError(
            f"expected a folder at {folder}, got: {error.strerror}", "name another one with --out"
        ) from error
    if not is_folder:
        raise OutputError(f"expected a folder at {there}, got a file", "name another one with --out")
    return own_folder(terminal, folder, info) if out is None else _checked(folder, info)


def likely_folders(out: str | None, checkpoint: str) -> list[Path]:
    """Return the run directories that a checkpoint's results may be in, before it is opened."""
    if out is not None:
        return [Path(out)]
    try:
        path = Path(checkpoint).resolve()
        own = _folder_name(path.name if path.is_dir() else path.stem)
        return sorted(folder for folder in Path("probe").glob("*") if folder.name.startswith(own))
    except (OSError, ValueError, RuntimeError):
        return []


def _folder_name(name: str) -> str:
    """Return a checkpoint's name without what a shell or a file system minds."""
    return re.sub(r"[^\w.+-]+", "-", name).strip(".-") or "run"


def own_folder(terminal: Terminal, folder: Path, info: "TaskInfo") -> Path:
    """Return a folder, or the one with a number after its name that is this checkpoint's or nobody's yet."""
    pattern = re.compile(re.escape(folder.name) + r"-([1-9][0-9]{0,8})")
    found = [pattern.fullmatch(path.name) for path in folder.parent.glob("*")]
    numbers = [1, *sorted(int(match[1]) for match in found if match)]
    mine = (
        number for number in numbers if set(checkpoints_in(_numbered(folder, number))) == {info.checkpoint_fingerprint}
    )
    chosen = next(mine, None) or next(number for number in count(1) if _is_free(_numbered(folder, number)))
    own = _numbered(folder, chosen)
    if chosen > 1:
        holders = checkpoints_in(folder)
        taken = f"{folder} has {_whose(holders)}: those of this one" if holders else "results of this checkpoint"
        terminal.line(f"{taken} go to {own}")
    return own


def _numbered(folder: Path, number: int) -> Path:
    return folder if number == 1 else folder.with_name(f"{folder.name}-{number}")


def _is_free(folder: Path) -> bool:
    return not folder.is_file() and not checkpoints_in(folder)


@contextmanager
def measuring_into(terminal: Terminal, folder: Path, info: "TaskInfo") -> Iterator[Path]:
    """Make a run directory and keep other processes from measuring into it.

    If what follows fails, folders made here and still empty go again; in one with a saved state to continue from, the
    lock file stays and says whose it is.

    Raises:
        OutputError: If the folder cannot be made or written, another process is at work in it, or it holds another
            checkpoint's results.
    """
    with made(folder):
        lock = _take_lock(terminal, folder)
        try:
            _checked(folder, info)
            _sign(lock, info)
            yield folder
        except BaseException:
            if not any(folder.glob("*.state")):
                (folder / _LOCK).unlink(missing_ok=True)
            raise
        else:
            (folder / _LOCK).unlink(missing_ok=True)
        finally:
            os.close(lock)


@contextmanager
def made(folder: Path) -> Iterator[Path]:
    """Make a folder for what follows; if that fails, the folders made here and still empty go again.

    Raises:
        OutputError: If it cannot be made.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"expected to make the folder {folder}, got: {error.strerror}", "name another one with --out"
        ) from error
    try:
        yield folder
    except BaseException:
        for path in new:
            if path.is_dir():
                if any(path.iterdir()):
                    break
                path.rmdir()
        raise


def checkpoints_in(folder: Path) -> dict[str, str]:
    """Return fingerprint → name of the checkpoints that a folder holds results or unfinished work of.

    What is damaged does not count: measuring replaces it.
    """
    found = {}
    for name in ("checkpoint.json", *(f"{kind}.json" for kind in KINDS), _LOCK):
        try:
            head = json.loads(read_bounded(folder / name, "the head of a result", max_bytes=_MOST_HEAD_BYTES))
            result: Any = head.get("result", head)
            origin = result.get("provenance", result)  # a checkpoint's own facts have none
            mark = origin.get("checkpoint_fingerprint", origin.get("fingerprint"))
            label = origin.get("checkpoint_name", origin.get("name"))
        except (InputError, ValueError, RecursionError, AttributeError):
            continue
        if isinstance(mark, str):
            found[mark] = str(label)
    return found


def _checked(folder: Path, info: "TaskInfo") -> Path:
    """Return a folder that holds nothing of another checkpoint.

    Raises:
        OutputError: If it does.
    """
    others = {mark: name for mark, name in checkpoints_in(folder).items() if mark != info.checkpoint_fingerprint}
    if others:
        raise OutputError(
            f"expected a run directory of {info.name} (fingerprint {info.checkpoint_fingerprint[:12]}) at {folder}, "
            f"got one with {_whose(others)}",
            "choose another --out; --fresh does not overwrite what is another checkpoint's",
        )
    return folder


def _whose(holders: dict[str, str]) -> str:
    """Say whose results a folder holds."""
    names = ", ".join(f"{name} (fingerprint {mark[:12] or 'unknown'})" for mark, name in holders.items())
    return f"results of another checkpoint, {names}"


def _take_lock(terminal: Terminal, folder: Path) -> int:
    """Return the open lock file of a folder; closing it, or the end of the process, lets go of it.

    Raises:
        OutputError: If another process has it, or no file can be made there.
    """
    path = folder / _LOCK
    while True:
        try:
            # Whatever lies there under this name, a link out of the folder or a pipe, is not written to.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            lock = os.open(path, flags, 0o644)
        except OSError as error:
            raise OutputError(
                f"expected to make the file {path}, got: {error.strerror}", "name another folder with --out"
            ) from error
        try:
            if not stat.S_ISREG(os.fstat(lock).st_mode):
                raise OutputError(f"expected a lock file at {path}, which is no regular file", "remove it")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), path.stat()):
                    return lock
        except BlockingIOError as error:
            owner = _owner(lock)
            os.close(lock)
            raise OutputError(
                f"another lite-probe is measuring into {folder}{owner}", "wait for it, or choose another --out"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            terminal.notes([f"{folder} cannot be locked ({error.strerror}): let no other lite-probe measure into it"])
            return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # another process has finished and removed it in between: take a new one


def _sign(lock: int, info: "TaskInfo") -> None:
    """Write into a lock file who works in the folder, on what."""
    owner = {
        "process": os.getpid(),
        "checkpoint_name": info.name,
        "checkpoint_fingerprint": info.checkpoint_fingerprint,
    }
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(owner).encode(), 0)
    except OSError as error:
        raise OutputError(f"expected space for a lock file, got: {error.strerror}", "choose another --out") from error


def _owner(lock: int) -> str:
    """Say which process a lock file names; nothing where it has not yet signed."""
    try:
        return f" (process {int(json.loads(os.pread(lock, 4096, 0))['process'])})"
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
