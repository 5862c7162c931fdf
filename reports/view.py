"""A page as plain data: strings, numbers and tables, before anything is drawn.

Everything that has to be decided about a page is decided here and in the views of its parts, so it is tested without
a figure.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from lite_probe.reports.numbers import MISSING, count_of, format_bytes, format_count, format_duration
from lite_probe.reports.replay_view import ReplayView, make_replay_view
from lite_probe.reports.runs import Result, Run
from lite_probe.reports.spectrum_view import SpectrumView, make_spectrum_view
from lite_probe.reports.subspace_view import SubspaceView, make_subspace_view
from lite_probe.reports.table import Cell, Column, Raw, Table, make_table
from lite_probe.reports.verdict import OPERATOR_NAMES, Point
from lite_probe.results.provenance import Provenance
from lite_probe.results.spectrum import Spectrum

KINDS = {"spectrum": "Spectrum", "subspace": "Sharp and flat", "replay": "Replay"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeadView:
    """The answer of one part of the page; its section says what it rests on."""

    heading: str  # empty where the page has one part
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteView:
    """A note and the runs that carry it."""

    code: str
    message: str
    labels: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandView:
    """How to measure one result again."""

    label: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenanceView:
    """What exactly was run for one kind of result."""

    heading: str  # empty where the page has one kind
    table: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """Everything a page says."""

    title: str
    subtitle: str
    leads: tuple[LeadView, ...]
    points: tuple[Point, ...]  # of the spectra; other parts have theirs in their sections
    spectrum: SpectrumView | None
    subspace: SubspaceView | None
    replays: tuple[ReplayView, ...]
    notes: tuple[NoteView, ...]
    provenance: tuple[ProvenanceView, ...]
    commands: tuple[CommandView, ...]


def make_view(runs: Sequence[Run]) -> PageView:
    """Decide what a page of these runs says.

    Args:
        runs: At least one; shown by step where each has one, else in the order given.

    Raises:
        ValueError: If none came.
    """
    if not runs:
        raise ValueError("expected at least one run for a page, got none")
    ordered = _order(runs)
    labelled = list(zip(make_labels(ordered), ordered, strict=True))
    spectra = [(label, run.spectrum) for label, run in labelled if run.spectrum is not None]
    subspaces = [(label, run.subspace) for label, run in labelled if run.subspace is not None]
    replays = [(label, run.replay) for label, run in labelled if run.replay is not None]
    spectrum = make_spectrum_view([label for label, _ in spectra], [one for _, one in spectra]) if spectra else None
    subspace = make_subspace_view(subspaces) if subspaces else None
    replay = tuple(
        make_replay_view(label if len(replays) > 1 else "", number, one)
        for number, (label, one) in enumerate(replays, 1)
    )
    by_kind: dict[str, Sequence[tuple[str, Result]]] = {"spectrum": spectra, "subspace": subspaces, "replay": replays}
    present = {kind: results for kind, results in by_kind.items() if results}
    return PageView(
        title=_title(labelled, present),
        subtitle=_subtitle(ordered),
        leads=_leads(spectrum, subspace, replay),
        points=spectrum.verdict.points if spectrum is not None else (),
        spectrum=spectrum,
        subspace=subspace,
        replays=replay,
        notes=_notes(labelled),
        provenance=_provenances(present),
        commands=_commands(labelled),
    )


def _order(runs: Sequence[Run]) -> list[Run]:
    """Sort by step if every run has one."""
    steps = [run.provenance.checkpoint_step for run in runs]
    known = [step for step in steps if step is not None]
    if len(known) < len(steps):
        return list(runs)
    return [runs[place] for place in sorted(range(len(known)), key=known.__getitem__)]


def make_labels(runs: Sequence[Run]) -> list[str]:
    """Name runs by checkpoint, adding step, operator and number until all names differ."""
    provenances = [run.provenance for run in runs]
    labels = [p.checkpoint_name for p in provenances]
    if len(set(labels)) < len(labels):
        labels = [
            name if p.checkpoint_step is None else f"{name}, step {p.checkpoint_step:,}"
            for name, p in zip(labels, provenances, strict=True)
        ]
    if len(set(labels)) < len(labels):
        labels = [
            f"{name}, {run.spectrum.operator}" if run.spectrum is not None else name
            for name, run in zip(labels, runs, strict=True)
        ]
    if len(set(labels)) < len(labels):
        labels = [f"{name}, run {number}" for number, name in enumerate(labels, 1)]
    return labels


def _join(names: Sequence[str]) -> str:
    """Join names for a title."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _title(labelled: Sequence[tuple[str, Run]], present: Mapping[str, object]) -> str:
    """Say what was measured of which checkpoints."""
    spectra = [run.spectrum for _, run in labelled if run.spectrum is not None]
    operators = sorted({OPERATOR_NAMES.get(spectrum.operator, spectrum.operator) for spectrum in spectra})
    names = {
        "spectrum": f"{' and '.join(operators)} spectrum",
        "subspace": "sharp and flat directions",
        "replay": "replay",
    }
    subject = _join([names[kind] for kind in present])
    labels = [label for label, _ in labelled]
    of = _join(labels) if len(labels) <= 3 else f"{len(labels)} checkpoints"
    return f"{subject[0].upper()}{subject[1:]} of {of}"


def _subtitle(runs: Sequence[Run]) -> str:
    """Say in one line what was measured on what."""
    first = runs[0]
    origin = first.provenance
    parts = [origin.architecture] if len({run.provenance.architecture for run in runs}) == 1 else []
    parts.append(f"{format_count(first.num_parameters)} parameters")
    if len(runs) == 1 and origin.checkpoint_step is not None:
        parts.append(f"step {origin.checkpoint_step:,}")
    parts.append(_batches(origin))
    parts.append(f"{origin.precision} on {origin.device}")
    return " · ".join(part for part in parts if part)


def _batches(origin: Provenance) -> str:
    """Say how many batches of what size; a task of the user's own may tell neither size nor source."""
    text = count_of(origin.num_batches, "batch", "batches")
    if origin.batch_size:
        text += f" of {origin.batch_size}"
        text += f" × {origin.seq_len} tokens" if origin.seq_len is not None else ""
    return f"{text}{f' of {origin.data_name}' if origin.data_name else ''} ({origin.data_split})"


def _leads(
    spectrum: SpectrumView | None, subspace: SubspaceView | None, replays: Sequence[ReplayView]
) -> tuple[LeadView, ...]:
    """Collect the answers of all parts, each under its name where there are several."""
    found = [(KINDS["spectrum"], spectrum.verdict.lead)] if spectrum is not None else []
    if subspace is not None:
        found += [(_of(KINDS["subspace"], one.label), one.verdict.lead) for one in subspace.verdicts]
    found += [(_of(KINDS["replay"], one.label), one.verdict.lead) for one in replays]
    return tuple(LeadView(heading=heading if len(found) > 1 else "", text=text) for heading, text in found)


def _of(heading: str, label: str) -> str:
    """Add a run's name where there are several."""
    return f"{heading}, {label}" if label else heading


# Notes and provenance


def _notes(labelled: Sequence[tuple[str, Run]]) -> tuple[NoteView, ...]:
    """Collect notes, each once, with the runs that carry it."""
    codes: dict[str, str] = {}
    carriers: dict[str, dict[str, None]] = {}
    for label, run in labelled:
        for result in run.results.values():
            for note in result.notes:
                codes.setdefault(note.message, note.code)
                carriers.setdefault(note.message, {})[label] = None
    return tuple(
        NoteView(code=codes[message], message=message, labels=", ".join(names) if len(labelled) > 1 else "")
        for message, names in carriers.items()
    )


def _commands(labelled: Sequence[tuple[str, Run]]) -> tuple[CommandView, ...]:
    """Collect every result's command; a measurement from Python may have none."""
    found = []
    for label, run in labelled:
        for kind, result in run.results.items():
            if result.provenance.command:
                name = label if len(run.results) == 1 else f"{label}: {KINDS[kind].lower()}"
                found.append(CommandView(label=name, command=result.provenance.command))
    return tuple(found)


def _provenances(present: Mapping[str, Sequence[tuple[str, Result]]]) -> tuple[ProvenanceView, ...]:
    """List everything that was run, a table per kind of result."""
    return tuple(
        ProvenanceView(
            heading=KINDS[kind] if len(present) > 1 else "",
            table=_provenance("provenance" if len(present) == 1 else f"provenance-{kind}", results),
        )
        for kind, results in present.items()
    )


def _provenance(name: str, results: Sequence[tuple[str, Result]]) -> Table:
    """List everything that was run, one row per fact."""
    facts = [_facts(result) for _, result in results]
    names = list(dict.fromkeys(key for one in facts for key in one))
    columns = [Column(title="what", is_text=True)]
    columns += [Column(title=label, is_text=True) for label, _ in results]
    rows = [[Cell(text=key, raw=key), *(one.get(key, Cell(text=MISSING)) for one in facts)] for key in names]
    return make_table(name, "Provenance: what exactly was run.", columns, rows)


def _facts(result: Result) -> dict[str, Cell]:
    """Return every field of provenance and config by a readable name."""
    origin = result.provenance
    readable = {
        "wall_seconds": format_duration(origin.wall_seconds),
        "peak_memory_bytes": format_bytes(origin.peak_memory_bytes),
        "num_tokens": f"{origin.num_tokens:,}",
        "batch_size": str(origin.batch_size or MISSING),
    }
    facts = {"operator": Cell(text=result.operator, raw=result.operator)} if isinstance(result, Spectrum) else {}
    for field in fields(origin):
        value: Raw = getattr(origin, field.name)
        if field.name == "details":
            continue
        name = (
            field.name.removesuffix("_seconds")
            .removesuffix("_bytes")
            .replace("_", " ")
            .replace("lite probe", "lite-probe")
        )
        shown = readable.get(field.name, MISSING if value is None or value == "" else str(value))
        facts[name] = Cell(text=shown, raw=value)
    for key, asked in result.config.items():
        text = asked if isinstance(asked, str) else json.dumps(asked, ensure_ascii=False, default=str)
        facts[f"config: {key}"] = Cell(text=text, raw=text)
    facts |= {key: Cell(text=text, raw=text) for key, text in origin.details.items()}
    facts["result fingerprint"] = Cell(text=result.fingerprint, raw=result.fingerprint)
    return facts
