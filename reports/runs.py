"""A run directory's results, as far as they were measured."""

from collections.abc import Mapping
from pathlib import Path

from lite_probe.reports.sections.section import Record
from lite_probe.results.kinds import KINDS
from lite_probe.results.provenance import Provenance
from lite_probe.results.store import load


class Run:
    """What a page knows of one checkpoint.

    Args:
        results: By kind; None where it was not measured.

    Raises:
        ValueError: If there is none, or one of an unknown kind.
    """

    def __init__(self, **results: Record | None) -> None:
        if unknown := sorted(results.keys() - KINDS.keys()):
            raise ValueError(f"expected results of {', '.join(KINDS)}, got {', '.join(unknown)}")
        found = {kind: result for kind in KINDS if (result := results.get(kind)) is not None}
        if not found:
            raise ValueError(f"expected a result in a run, of {', '.join(KINDS)}, got none")
        self.results: Mapping[str, Record] = found

    @property
    def provenance(self) -> Provenance:
        """Of the first result, which names the checkpoint."""
        return next(iter(self.results.values())).provenance

    @property
    def num_parameters(self) -> int:
        """N."""
        return next(iter(self.results.values())).num_parameters


def load_run(path: str | Path) -> Run:
    """Read every result of a run directory.

    Args:
        path: The directory, or a result in it.

    Raises:
        InputError: If it has no result, or one that was damaged.
    """
    folder = Path(path)
    if folder.is_file():
        load(folder, thorough=False)  # a file that is no result is an error of its own
        folder = folder.parent
    present = [kind for kind in KINDS if (folder / f"{kind}.json").is_file()]
    # Without any, the first kind's error says what was expected.
    # A page shows nothing of the arrays that are large: eigenvectors.
    return Run(**{kind: load(folder, kind, thorough=False) for kind in present or [next(iter(KINDS))]})
