"""What was asked last time, so that the same command knows at once that its result is there.

A result's own key is a hash of weights and batches, which takes a model, its text and torch to compute. Beside a result
lies a note of what was asked and of the files it was asked of, by size and time of change, as `make` knows what is new.
Where nothing has changed, the result that is there is the one; where anything has, the key decides.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lite_probe.errors import InputError, OutputError
from lite_probe.files import read_bounded
from lite_probe.results.store import load, write_atomically
from lite_probe.version import __version__

_NAME = ".lite-probe.asked"
_MOST_BYTES = 2**20
_MOST_FILES = 10_000
_FILES = ("checkpoint", "model_config", "blocks_file", "data_path", "relative_path", "tokenizer")
# What changes nothing of a result; and `verify`, which the result itself tells.
_APART = {"out", "scratch", "fresh", "dry_run", "as_json", "as_format", "only_table", "memory", "verify"}


def stamp_of(given: Mapping[str, Any], folder: Path, needs: Sequence[str]) -> str | None:
    """Return a hash of what is asked, and of the files it is asked of.

    Args:
        given: The command's options.
        folder: The run directory.
        needs: Kinds of results there that the measurement starts from.

    Returns:
        None where code of the user's takes part, whose imports nobody knows, or the files cannot be looked at.
    """
    if given.get("task_file") is not None or ":" in str(given.get("optimizers")):
        return None
    asked = {name: value for name, value in given.items() if name not in _APART}
    named = [Path(str(given[name])) for name in _FILES if given.get(name) is not None]
    try:
        files = [_state(path) for one in named for path in (*_beside(one), *_files_in(one))]
        files += [_state(folder / f"{kind}.json") for kind in needs]
    except (OSError, ValueError):
        return None
    versions = [__version__, *(version(name) for name in ("torch", "transformers", "numpy"))]
    known = [asked, files, versions, platform.python_version(), platform.node()]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()


def find_unchanged(folder: Path, kind: str, stamp: str | None) -> Any | None:
    """Return the saved result of what was asked, None where that has to be looked into."""
    try:
        noted = json.loads(read_bounded(folder / _NAME, "a note of what was asked", max_bytes=_MOST_BYTES))[kind]
        if stamp is None or noted["stamp"] != stamp:
            return None
        result = load(folder, kind)
    except (InputError, ValueError, RecursionError, LookupError, TypeError):
        return None
    return result if result.fingerprint == noted["fingerprint"] else None


def note_asked(folder: Path, kind: str, stamp: str | None, fingerprint: str) -> None:
    """Note beside a result what was asked."""
    if stamp is None:
        return
    try:
        noted = json.loads(read_bounded(folder / _NAME, "a note of what was asked", max_bytes=_MOST_BYTES))
    except (InputError, ValueError, RecursionError):
        noted = {}
    noted = noted if isinstance(noted, dict) else {}
    noted[kind] = {"stamp": stamp, "fingerprint": fingerprint}
    content = json.dumps(noted).encode()
    with suppress(OutputError):  # the result is saved: it is found more slowly next time
        write_atomically(folder / _NAME, lambda file: file.write(content))


def _files_in(path: Path) -> Iterator[Path]:
    """Yield a file, or all those in a folder; what is no file, as `builtin:…`, is itself all there is to know."""
    if path.is_dir():
        found = sorted(one for one in path.rglob("*") if one.is_file())
        if len(found) > _MOST_FILES:
            raise ValueError("too many files to look at")
        yield from found
    elif path.exists():
        yield path


def _beside(path: Path) -> Iterator[Path]:
    """Yield what lies beside a file: a config, a tokenizer or an optimizer's state may be read with it."""
    if path.is_file():
        yield from sorted(one for one in path.parent.iterdir() if one.is_file() and one != path)


def _state(path: Path) -> tuple[str, int, int]:
    seen = path.stat()
    return str(path.resolve()), seen.st_size, seen.st_mtime_ns
