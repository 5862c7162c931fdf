"""Where the working files of a measurement lie: in the run directory, or where `--scratch` says."""

import hashlib
from contextlib import suppress
from pathlib import Path

from lite_probe.commands.console import Terminal


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


def tell_disk(terminal: Terminal, working: Path, scratch_bytes: int, folder: Path, result_bytes: int = 0) -> None:
    """Say what a measurement puts on which disk, and what of it stays where that is worth a word."""
    from lite_probe.runtime.disk import disk_size

    stays = f", {disk_size(result_bytes)} stay in {folder}" if result_bytes else ""
    terminal.line(f"disk: up to {disk_size(scratch_bytes)} in {working} while it runs{stays}", style="dim")


def leave(working: Path, folder: Path) -> None:
    """Remove a working folder in which nothing is left; the run directory stays."""
    if working != folder:
        with suppress(OSError):  # what is of another measurement stays, to be continued
            working.rmdir()
