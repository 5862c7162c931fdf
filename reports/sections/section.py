"""What every kind of measurement shows: a verdict, a summary for the terminal, an object for programs, a part of pages.

A kind's section is named in `lite_probe.results.kinds` and loaded when something of the kind is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lite_probe.reports.verdict import Verdict
from lite_probe.results.claim import Claim
from lite_probe.results.estimate import Estimate
from lite_probe.results.kinds import KINDS
from lite_probe.results.provenance import Note, Provenance

if TYPE_CHECKING:
    from lite_probe.reports.table import Table

TEMPLATES = Path(__file__).parents[1] / "templates"


class Record(Protocol):
    """What every result has, whatever was measured."""

    @property
    def num_parameters(self) -> int:
        """N."""

    @property
    def config(self) -> Mapping[str, object]:
        """What was asked."""

    @property
    def fingerprint(self) -> str:
        """Of checkpoint content, batches and config."""

    @property
    def notes(self) -> tuple[Note, ...]:
        """What its reader should know."""

    @property
    def provenance(self) -> Provenance:
        """What exactly was run."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Short texts side by side."""

    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text; empty, a gap."""

    text: str = ""
    is_dim: bool = False
    is_detail: bool = False  # shown where more was asked for


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of texts."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Remarks:
    """Notes of a result."""

    messages: Sequence[str]


@dataclass(frozen=True, slots=True)
class Sample:
    """Lines to copy, never broken."""

    text: str


Block = Figures | Line | Grid | Remarks | Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one kind puts on a page."""

    view: Any  # what its template calls `part`
    leads: Sequence[tuple[str, str]]  # (run, empty where there is one; answer)
    links: Sequence[tuple[str, str]] = ()  # (anchor within it, its name in the contents), beside its own
    figures: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # by name, for plotly.js


class Section(Protocol):
    """How results of one kind are shown."""

    heading: str  # "Sharp and flat"
    template: Path  # of its part of a page; Jinja's, with `part`

    def subject(self, results: Sequence[Any]) -> str:
        """Name what was measured, for a title."""

    def facts(self, result: Any) -> Mapping[str, str]:
        """Return what tells two results of one checkpoint apart, by name; for labels and provenance."""
        return {}

    def verdict(self, result: Any) -> Verdict:
        """Say what a result shows, in claims."""

    def summary(self, result: Any) -> Sequence[Block]:
        """Return its numbers for a terminal, before the verdict."""

    def follow_up(self, result: Any) -> Sequence[Block]:
        """Return what to do next, for a terminal, behind the verdict."""
        return ()

    def json_object(self, result: Any) -> dict[str, Any]:
        """Return its numbers for programs: plain ones, null where there is none."""

    def claim_objects(self, result: Any, claims: Sequence[Claim]) -> list[dict[str, Any]]:
        """Return what programs get of a verdict's claims."""
        return [asdict(claim) for claim in claims]

    def tables(self, labelled: Sequence[tuple[str, Any]]) -> "Sequence[Table]":
        """Return the page's tables of results, in its order; arguments as of `part`."""
        return ()

    def part(self, labelled: Sequence[tuple[str, Any]]) -> Part:
        """Decide what a page says of results; (run's label, result) in the order of the page."""


def section_of(kind: str) -> Section:
    """Load how a kind is shown."""
    section: Section = KINDS[kind].load("section")
    return section


@dataclass(frozen=True, slots=True)
class Across:
    """A part of a page that is of several runs together, and of no one kind."""

    heading: str
    template: Path


def shown_as(kind: str) -> Section | Across:
    """Return heading and template of a part of a page."""
    return COMPARISON if kind == "comparison" else section_of(kind)


COMPARISON = Across("Comparison", TEMPLATES / "comparison.html.j2")


def summarize(kind: str, result: Record) -> list[Block]:
    """Return what the terminal shows of a result: its numbers, its verdict, its notes."""
    section = section_of(kind)
    verdict = section.verdict(result)
    lines = [Line(verdict.lead), *(Line(point.text, is_detail=point.is_detail) for point in verdict.points)]
    notes = Remarks([note.message for note in result.notes])
    return [*section.summary(result), *lines, *section.follow_up(result), notes]


def describe(kind: str, result: Record) -> dict[str, Any]:
    """Return what `--json` prints of a result: its numbers, its verdict, its notes and where it comes from."""
    section = section_of(kind)
    verdict = section.verdict(result)
    return {
        **section.json_object(result),
        "lead": verdict.lead,
        "claims": section.claim_objects(result, verdict.claims),
        "notes": [{"code": note.code, "message": note.message} for note in result.notes],
        "wall_seconds": result.provenance.wall_seconds,
        "peak_memory_bytes": result.provenance.peak_memory_bytes,
        "fingerprint": result.fingerprint,
    }


def estimate_object(estimate: Estimate | None) -> dict[str, float | None] | None:
    """Return an estimate with its error and 95% interval; null where there is none, as for the error of one sample."""
    if estimate is None:
        return None
    names = ("stderr", "low", "high")
    return {
        "value": estimate.value,
        **{name: None if estimate.num_samples == 1 else getattr(estimate, name) for name in names},
    }


def attributes(thing: Any, *names: str) -> dict[str, Any]:
    """Return attributes by name as plain numbers and lists."""
    values = {name: getattr(thing, name) for name in names}
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in values.items()}
