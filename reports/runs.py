"""A run directory's results, as far as they were measured."""

from dataclasses import dataclass
from pathlib import Path

from lite_probe.results.provenance import Provenance
from lite_probe.results.replay import Replay
from lite_probe.results.spectrum import Spectrum
from lite_probe.results.store import load
from lite_probe.results.subspace import SubspaceMeasurement

Result = Spectrum | SubspaceMeasurement | Replay


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a page knows of one checkpoint."""

    spectrum: Spectrum | None = None
    subspace: SubspaceMeasurement | None = None
    replay: Replay | None = None

    def __post_init__(self) -> None:
        """Refuse a run without results."""
        if not self.results:
            raise ValueError("expected a spectrum, a subspace or a replay in a run, got none")

    @property
    def results(self) -> dict[str, Result]:
        """What was measured, by kind."""
        kinds = (("spectrum", self.spectrum), ("subspace", self.subspace), ("replay", self.replay))
        return {kind: result for kind, result in kinds if result is not None}

    @property
    def first(self) -> Result:
        """The first of its results, which names the checkpoint."""
        return next(iter(self.results.values()))

    @property
    def provenance(self) -> Provenance:
        """Of the first result."""
        return self.first.provenance

    @property
    def num_parameters(self) -> int:
        """N."""
        first = self.first
        return first.whole.num_parameters if isinstance(first, Spectrum) else first.num_parameters


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
    present = [kind for kind in ("spectrum", "subspace", "replay") if (folder / f"{kind}.json").is_file()]
    # Without any, the spectrum's error says what was expected.
    # A page shows nothing of the arrays that are large: eigenvectors.
    return Run(**{kind: load(folder, kind, thorough=False) for kind in present or ["spectrum"]})
