"""A page as plain data: its title, the parts of every kind that was measured, notes, and what was run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lite_probe.errors import InputError
from lite_probe.reports.numbers import MISSING, format_bytes, format_duration
from lite_probe.reports.overview import Overview, make_overview
from lite_probe.reports.runs import Run
from lite_probe.reports.sections.comparison import comparison_part, comparison_tables
from lite_probe.reports.sections.section import Part, Record, section_of
from lite_probe.reports.table import Cell, Column, Table, make_table, text_cell
from lite_probe.reports.verdict import join_names
from lite_probe.results.comparison import COMPARED, Comparison, compare_results
from lite_probe.results.kinds import KINDS

Labelled = Sequence[tuple[str, Run]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """Everything a page says."""

    title: str
    subject: str  # the checkpoints
    overview: Overview  # the first screen
    parts: Mapping[str, Part]  # by kind
    notes: tuple[tuple[str, str, str], ...]  # (message, code, runs that carry it; empty where there is one)
    provenance: tuple[Table, ...]  # what all results share, and what differs
    commands: tuple[tuple[str, str], ...]  # (which result, command that measures it again)

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """Every figure by name, as plain JSON values for plotly.js."""
        first = {one.name: one.figure for one in self.overview.pictures}
        return first | {name: figure for part in self.parts.values() for name, figure in part.figures.items()}


def make_view(runs: Sequence[Run], *, is_comparison: bool = False) -> PageView:
    """Decide what a page of these runs says.

    Args:
        runs: At least one; shown by step where each has one, else in the order given.
        is_comparison: Leave what is of one checkpoint alone to the page of that.

    Raises:
        ValueError: If none came.
    """
    if not runs:
        raise ValueError("expected at least one run for a page, got none")
    ordered = _order(runs)
    labelled = list(zip(make_labels(ordered), ordered, strict=True))
    present = _by_kind(labelled)
    own = [kind for kind in present if kind == "training" or not is_comparison]
    parts = {kind: section_of(kind).part(present[kind]) for kind in own}
    comparison, why_not = _compared(labelled, least=1 if is_comparison else 2)
    if comparison is not None:
        parts = {"comparison": comparison_part(comparison, is_alone=is_comparison), **parts}
    return PageView(
        title=_title(labelled, present),
        subject=_subject(labelled),
        overview=make_overview(labelled, parts),
        parts=parts,
        notes=(*_notes(labelled), *why_not),
        provenance=_provenance(labelled),
        commands=tuple(
            (
                label if len(run.results) == 1 else f"{label}: {section_of(kind).heading.lower()}",
                result.provenance.command,
            )
            for label, run in labelled
            for kind, result in run.results.items()
            if result.provenance.command  # a measurement from Python may have none
        ),
    )


def list_tables(runs: Sequence[Run]) -> list[Table]:
    """Return all tables of a page of these runs, but for provenance, in its order."""
    ordered = _order(runs)
    labelled = list(zip(make_labels(ordered), ordered, strict=True))
    comparison, _ = _compared(labelled)
    first = [] if comparison is None else comparison_tables(comparison)
    of_kinds = [table for kind, found in _by_kind(labelled).items() for table in section_of(kind).tables(found)]
    return [*first, *of_kinds]


def _compared(labelled: Labelled, least: int = 2) -> tuple[Comparison | None, tuple[tuple[str, str, str], ...]]:
    """Compare runs, where there are so many; return a note that says why, where they cannot be."""
    known = [(label, run.results) for label, run in labelled if run.results.keys() & set(COMPARED)]
    if len(known) < least:
        return None, ()
    try:
        return compare_results(known), ()
    except InputError as error:
        return None, ((f"The runs are not compared: {error.message}.", "not-compared", ""),)


def _by_kind(labelled: Labelled) -> dict[str, list[tuple[str, Record]]]:
    """Return (run's label, result) by kind, in the order of the kinds."""
    return {
        kind: found
        for kind in KINDS
        if (found := [(label, run.results[kind]) for label, run in labelled if kind in run.results])
    }


def _order(runs: Sequence[Run]) -> list[Run]:
    """Sort by step if every run has one."""
    steps = [run.provenance.checkpoint_step for run in runs]
    known = [step for step in steps if step is not None]
    if len(known) < len(steps):
        return list(runs)
    return [runs[place] for place in sorted(range(len(known)), key=known.__getitem__)]


def make_labels(runs: Sequence[Run]) -> list[str]:
    """Name runs by checkpoint, adding step, what tells their results apart, and number until all names differ."""
    labels = [run.provenance.checkpoint_name for run in runs]
    steps = [run.provenance.checkpoint_step for run in runs]
    further = (
        ["" if step is None else f"step {step:,}" for step in steps],
        [
            ", ".join(fact for kind, one in run.results.items() for fact in section_of(kind).facts(one).values())
            for run in runs
        ],
        [f"run {number}" for number in range(1, len(runs) + 1)],
    )
    for added in further:
        if len(set(labels)) == len(labels):
            break
        labels = [f"{label}, {one}" if one else label for label, one in zip(labels, added, strict=True)]
    return labels


def _title(labelled: Labelled, present: Mapping[str, Sequence[tuple[str, Record]]]) -> str:
    """Say what was measured of which checkpoints."""
    subject = join_names([section_of(kind).subject([one for _, one in found]) for kind, found in present.items()])
    return f"{subject[0].upper()}{subject[1:]} of {_subject(labelled)}"


def _subject(labelled: Labelled) -> str:
    """Name the checkpoints, or count them."""
    labels = [label for label, _ in labelled]
    return join_names(labels) if len(labels) <= 3 else f"{len(labels)} checkpoints"


def _notes(labelled: Labelled) -> tuple[tuple[str, str, str], ...]:
    """Collect notes, each once, with the runs that carry it."""
    codes: dict[str, str] = {}
    carriers: dict[str, dict[str, None]] = {}
    for label, run in labelled:
        for note in (note for result in run.results.values() for note in result.notes):
            codes.setdefault(note.message, note.code)
            carriers.setdefault(note.message, {})[label] = None
    return tuple(
        (message, codes[message], ", ".join(names) if len(labelled) > 1 else "") for message, names in carriers.items()
    )


def _provenance(labelled: Labelled) -> tuple[Table, ...]:
    """List what exactly was run, a row per fact: what all results have in common, and what differs, with its time."""
    several = len(labelled) > 1
    results = [
        (f"{label}: {section_of(kind).heading}" if several else section_of(kind).heading, _facts(kind, result))
        for label, run in labelled
        for kind, result in run.results.items()
    ]
    names = list(dict.fromkeys(key for _, facts in results for key in facts))
    missing = Cell(text=MISSING)
    rows = [(name, [facts.get(name, missing) for _, facts in results]) for name in names]
    shared = [(name, cells[0]) for name, cells in rows if len({cell.text for cell in cells}) == 1]
    differing = [(name, cells) for name, cells in rows if len({cell.text for cell in cells}) > 1]
    what = Column(title="what", is_text=True)
    caption = "Provenance: what exactly was run." if len(results) == 1 else "Provenance: what all results share."
    found = [
        make_table(
            "provenance",
            caption,
            [what, Column(title="value", is_text=True)],
            [[text_cell(name), cell] for name, cell in shared],
        )
    ]
    if differing:
        columns = [what, *(Column(title=title, is_text=True) for title, _ in results)]
        found.append(
            make_table(
                "provenance-differences",
                "Provenance: what differs, with the time that each measurement took.",
                columns,
                [[text_cell(name), *cells] for name, cells in differing],
            )
        )
    return tuple(found)


def _facts(kind: str, result: Record) -> dict[str, Cell]:
    """Return every field of provenance and config by a readable name."""
    origin = result.provenance
    readable = {
        "wall_seconds": format_duration(origin.wall_seconds),
        "peak_memory_bytes": format_bytes(origin.peak_memory_bytes),
        "num_tokens": f"{origin.num_tokens:,}",
        "batch_size": str(origin.batch_size or MISSING),
    }
    facts = {name: text_cell(text) for name, text in section_of(kind).facts(result).items()}
    for name, value in ((field.name, getattr(origin, field.name)) for field in fields(origin)):
        if name != "details":
            title = name.removesuffix("_seconds").removesuffix("_bytes").replace("_", " ")
            shown = readable.get(name, MISSING if value is None or value == "" else str(value))
            facts[title.replace("lite probe", "lite-probe")] = Cell(text=shown, raw=value)
    for key, asked in result.config.items():
        facts[f"config: {key}"] = text_cell(
            asked if isinstance(asked, str) else json.dumps(asked, ensure_ascii=False, default=str)
        )
    facts |= {key: text_cell(text) for key, text in origin.details.items()}
    return facts | {"result fingerprint": text_cell(result.fingerprint)}
