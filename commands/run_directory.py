"""The folder that one checkpoint's results lie in: `probe/NAME` unless `--out` says otherwise."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lite_probe.errors import OutputError


def run_directory(out: str | None, name: str, *, is_one_of_several: bool = False) -> Path:
    """Return the run directory, checked but not yet made.

    Args:
        out: What `--out` says; of several checkpoints each has its own folder in it.
        name: The checkpoint's name; characters that a shell or a file system minds become `-`.
        is_one_of_several: Whether there are more.

    Raises:
        OutputError: If the folder, or one above it, is a file.
    """
    own = re.sub(r"[^\w.+-]+", "-", name).strip(".-") or "run"
    folder = Path(out or "probe") / own if out is None or is_one_of_several else Path(out)
    for path in (folder, *folder.parents):
        if path.is_dir():
            break
        if path.exists():
            raise OutputError(f"expected a folder at {path}, got a file", "name another one with --out")
    return folder


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
