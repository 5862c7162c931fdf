"""The first screen of a page: who made progress where, how sure that is, on what, and what would make it surer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lite_probe.reports.drawing import Drawing
from lite_probe.reports.numbers import count_of, format_count
from lite_probe.reports.runs import Run
from lite_probe.reports.sections import replay_overview
from lite_probe.reports.sections.section import Part, shown_as
from lite_probe.reports.sections.tiles import Tiles, make_tiles
from lite_probe.reports.table import Table
from lite_probe.results.provenance import Provenance
from lite_probe.results.replay import Replay
from lite_probe.results.steps import Steps
from lite_probe.results.subspace import SubspaceMeasurement

Labelled = Sequence[tuple[str, Run]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one run, or one kind of measurement, answers."""

    heading: str  # empty where there is one alone
    lead: str
    sentences: tuple[str, ...] = ()  # one per optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Everything the first screen says."""

    on: tuple[str, ...]  # checkpoint, model, data, segment, precision
    warnings: tuple[str, ...]
    answers: tuple[Answer, ...]
    outcome: Table | None
    pictures: tuple[Drawing, ...]
    of_last: str  # whose pictures and tiles these are, where there are several runs
    tiles: Tiles | None
    settling: tuple[str, ...]  # what would make it surer


def make_overview(labelled: Labelled, parts: Mapping[str, Part]) -> Overview:
    """Decide what the first screen says of runs, in the order of the page.

    Without a replay it is each measurement's own answer.
    """
    runs = [run for _, run in labelled]
    replays = [(label, replay) for label, run in labelled if isinstance(replay := run.results.get("replay"), Replay)]
    last = runs[-1].results
    subspace, steps = last.get("subspace"), last.get("steps")
    tiles = make_tiles(
        subspace if isinstance(subspace, SubspaceMeasurement) else None, steps if isinstance(steps, Steps) else None
    )
    if not replays:
        return Overview(
            on=_on(runs, None),
            warnings=(),
            answers=_own_answers(parts),
            outcome=None,
            pictures=(),
            of_last=labelled[-1][0] if tiles and len(runs) > 1 else "",
            tiles=tiles,
            settling=_missing(runs),
        )
    is_alone = len(labelled) == 1
    compared = parts.get("comparison")
    label, replay = replays[-1]
    if compared is not None:
        answers = [Answer(heading="", lead=" ".join(text for _, text in compared.leads))]
        pictures = [_small(compared.view["figures"][name], title) for name, title in _COMPARED.items()]
    else:
        answers = [_of_replay("" if len(replays) == 1 else one[0], one[1], is_alone=is_alone) for one in replays]
        pictures = [replay_overview.draw_gaps("gap", replay), replay_overview.draw_parts("parts", replay)]
    return Overview(
        on=_on(runs, replay),
        warnings=tuple(dict.fromkeys(text for _, one in replays for text in replay_overview.warn(one))),
        answers=tuple(answers),
        outcome=None if compared is not None and len(replays) > _FEW else replay_overview.outcome_table(replays),
        pictures=tuple(one for one in pictures if one is not None),
        of_last="" if is_alone else label,
        tiles=tiles,
        settling=(*replay_overview.settle(replay), *_missing(runs)),
    )


_FEW = 3  # checkpoints whose outcomes the first screen has; of more the comparison below has them
_COMPARED = {"loss_change": "Loss change by checkpoint", "flat": "Flat progress by checkpoint"}


def _of_replay(heading: str, replay: Replay, *, is_alone: bool) -> Answer:
    """Say who ends lowest, and of the only run how every optimizer stands."""
    return Answer(
        heading=heading,
        lead=replay_overview.compare_in_a_sentence(replay),
        sentences=tuple(replay_overview.tell(replay, name) for name in replay.optimizers) if is_alone else (),
    )


def _small(drawing: Drawing | None, title: str) -> Drawing | None:
    """Return a figure of a comparison for the first screen, where it is a second time."""
    if drawing is None:
        return None
    layout = drawing.figure["layout"] | {"height": replay_overview.HEIGHT}
    return replace(drawing, name=f"first-{drawing.name}", title=title, figure={**drawing.figure, "layout": layout})


def _own_answers(parts: Mapping[str, Part]) -> tuple[Answer, ...]:
    """Return the answers of all parts, each under its name where there are several."""
    leads = [(shown_as(kind).heading, label, text) for kind, part in parts.items() for label, text in part.leads]
    return tuple(
        Answer(heading="" if len(leads) == 1 else f"{heading}, {label}" if label else heading, lead=text)
        for heading, label, text in leads
    )


def _missing(runs: Sequence[Run]) -> tuple[str, ...]:
    """Name the commands that would answer what nothing here answers."""
    measured = {kind for run in runs for kind in run.results}
    questions = (
        ("replay", "who makes the progress: lite-probe replay"),
        ("subspace", "whether LITE’s shortcut holds: lite-probe subspace"),
        ("steps", "how long a step each direction tolerates: lite-probe steps"),
    )
    asked = [text for kind, text in questions if kind not in measured]
    return (f"Not measured here: {'; '.join(asked)}.",) if asked else ()


def _on(runs: Sequence[Run], replay: Replay | None) -> tuple[str, ...]:
    """Say in a few words on what all of it was measured."""
    origin = runs[-1].provenance if replay is None else replay.provenance
    origins = [run.provenance for run in runs]
    parts = [origin.architecture] if len({one.architecture for one in origins}) == 1 else []
    parts.append(f"{format_count(runs[-1].num_parameters)} parameters")
    if len(runs) == 1 and origin.checkpoint_step is not None:
        parts.append(f"step {origin.checkpoint_step:,}")
    if replay is not None:
        parts += replay_overview.describe_segment(replay)
    parts += [batches_of(origin), f"{origin.precision} on {origin.device}"]
    return tuple(part for part in parts if part)


def batches_of(origin: Provenance) -> str:
    """Say how many batches of what size; a task of the user's own may tell neither size nor source."""
    text = count_of(origin.num_batches, "batch", "batches")
    if origin.batch_size:
        text += f" of {origin.batch_size}"
        text += f" × {origin.seq_len} tokens" if origin.seq_len is not None else ""
    return f"losses of {text}{f' of {origin.data_name}' if origin.data_name else ''} ({origin.data_split})"
