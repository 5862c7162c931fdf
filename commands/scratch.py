"""Where the working files of a measurement lie: in the run directory, or where `--scratch` says."""

import hashlib
from contextlib import suppress
from pathlib import Path


def working_directory(scratch: str | None, folder: Path) -> Path:
    """Return the folder that a run directory's working files lie in; the same at every call, so that one continues.

    Args:
        scratch: What `--scratch` says. Each run directory has a folder of its own in it.
        folder: The run directory.
    """
    if scratch is None:
        return folder
    own = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]
    return Path(scratch) / f"{folder.name}-{own}"


def leave(working: Path, folder: Path) -> None:
    """Remove a working folder in which nothing is left; the run directory stays."""
    if working != folder:
        with suppress(OSError):  # what is of another measurement stays, to be continued
            working.rmdir()
