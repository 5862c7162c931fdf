"""A page as plain data: its title, the parts of every kind that was measured, notes, and what was run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lite_probe.errors import InputError
from lite_probe.reports.numbers import MISSING, count_of, format_bytes, format_count, format_duration
from lite_probe.reports.runs import Run
from lite_probe.reports.sections.comparison import comparison_part, comparison_tables
from lite_probe.reports.sections.section import Part, Record, section_of, shown_as
from lite_probe.reports.table import Cell, Column, Table, make_table, text_cell
from lite_probe.reports.verdict import join_names
from lite_probe.results.comparison import COMPARED, Comparison, compare_results
from lite_probe.results.kinds import KINDS
from lite_probe.results.provenance import Provenance

Labelled = Sequence[tuple[str, Run]]
Headed = tuple[str, Any]  # (heading, empty where there is one; what stands below it)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """Everything a page says."""

    title: str
    subtitle: str
    parts: Mapping[str, Part]  # by kind
    leads: tuple[tuple[str, str, Sequence[Any]], ...]  # (heading, empty where there is one; answer; points below it)
    notes: tuple[tuple[str, str, str], ...]  # (message, code, runs that carry it; empty where there is one)
    provenance: tuple[Headed, ...]  # tables
    commands: tuple[tuple[str, str], ...]  # (which result, command that measures it again)

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """Every figure by name, as plain JSON values for plotly.js."""
        return {name: figure for part in self.parts.values() for name, figure in part.figures.items()}


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
    parts = parts if comparison is None else {"comparison": comparison_part(comparison), **parts}
    return PageView(
        title=_title(labelled, present),
        subtitle=_subtitle(ordered),
        parts=parts,
        leads=_leads(parts),
        notes=(*_notes(labelled), *why_not),
        provenance=tuple(
            (
                section_of(kind).heading if len(present) > 1 else "",
                _provenance(kind, "provenance" if len(present) == 1 else f"provenance-{kind}", found),
            )
            for kind, found in present.items()
        ),
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
    labels = [label for label, _ in labelled]
    of = join_names(labels) if len(labels) <= 3 else f"{len(labels)} checkpoints"
    return f"{subject[0].upper()}{subject[1:]} of {of}"


def _subtitle(runs: Sequence[Run]) -> str:
    """Say in one line what was measured on what."""
    origin = runs[0].provenance
    parts = [origin.architecture] if len({run.provenance.architecture for run in runs}) == 1 else []
    parts.append(f"{format_count(runs[0].num_parameters)} parameters")
    if len(runs) == 1 and origin.checkpoint_step is not None:
        parts.append(f"step {origin.checkpoint_step:,}")
    parts += [_batches(origin), f"{origin.precision} on {origin.device}"]
    return " · ".join(part for part in parts if part)


def _batches(origin: Provenance) -> str:
    """Say how many batches of what size; a task of the user's own may tell neither size nor source."""
    text = count_of(origin.num_batches, "batch", "batches")
    if origin.batch_size:
        text += f" of {origin.batch_size}"
        text += f" × {origin.seq_len} tokens" if origin.seq_len is not None else ""
    return f"{text}{f' of {origin.data_name}' if origin.data_name else ''} ({origin.data_split})"


def _leads(parts: Mapping[str, Part]) -> tuple[tuple[str, str, Sequence[Any]], ...]:
    """Collect the answers of all parts, each under its name where there are several."""
    is_alone = sum(len(part.leads) for part in parts.values()) == 1
    return tuple(
        (
            "" if is_alone else f"{shown_as(kind).heading}, {label}" if label else shown_as(kind).heading,
            text,
            part.points if place == len(part.leads) else (),
        )
        for kind, part in parts.items()
        for place, (label, text) in enumerate(part.leads, 1)
    )


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


def _provenance(kind: str, name: str, results: Sequence[tuple[str, Record]]) -> Table:
    """List everything that was run, one row per fact."""
    facts = [_facts(kind, result) for _, result in results]
    names = list(dict.fromkeys(key for one in facts for key in one))
    columns = [Column(title=title, is_text=True) for title in ("what", *(label for label, _ in results))]
    rows = [[text_cell(key), *(one.get(key, Cell(text=MISSING)) for one in facts)] for key in names]
    return make_table(name, "Provenance: what exactly was run.", columns, rows)


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
