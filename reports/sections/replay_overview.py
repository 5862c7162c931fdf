"""A replay at a glance: a sentence per optimizer, a table of five columns, the gap to the best over steps."""

from collections.abc import Sequence

import numpy as np

from lite_probe.reports.drawing import (
    Drawing,
    Figure,
    axis,
    colour,
    error_bars,
    layout,
    reference_line,
    rounded,
    series_line,
)
from lite_probe.reports.numbers import MISSING, count_of, format_interval, format_number, format_uncertain
from lite_probe.reports.sections.replay_figures import part_progress
from lite_probe.reports.sections.replay_verdict import (
    EDGE,
    PARTS,
    base_of,
    compare_bases,
    compare_losses,
    finished,
    is_missed,
    judge_changes,
    judge_progress,
    lead_of,
    told_share,
)
from lite_probe.reports.table import Cell, Column, Table, half_width, make_table, text_cell
from lite_probe.reports.verdict import TONES, batch_words, join_names
from lite_probe.results.claim import Claim
from lite_probe.results.estimate import Estimate, samples_to_tell, t_reach
from lite_probe.results.replay import Replay

_FEW_SEEDS = 5  # below which only large differences can be told
_FEW_TOKENS = 16_384  # of the evaluation set, below which another one may well say otherwise
HEIGHT = 240
_MANY_SEEDS = 60  # that nobody runs


def compare_in_a_sentence(replay: Replay) -> str:
    """Say who ends lowest, and whether that is sure."""
    return lead_of(replay, finished(replay))


def tell(replay: Replay, name: str) -> str:
    """Say of one optimizer whether it lowers the loss, where, how it ends against its base, and how near the edge."""
    if not replay.runs_of(name):
        return f"{name} diverged on every seed."
    parts = [_change(replay, name), _against_base(replay, name), _edge(replay, name)]
    told = [part for part in parts if part]
    return f"{name} {', '.join(told[:-1])}, and {told[-1]}." if len(told) > 1 else f"{name} {told[0]}."


def _change(replay: Replay, name: str) -> str:
    change, claim = replay.loss_change(name), judge_changes(replay).get(name)
    if change is None:
        return "reached no end"
    if claim is None:
        verb = "lowers" if change.value < 0.0 else "raises"
        return f"{verb} the loss on its one seed, which has no error"
    if claim.status == "open":
        return "is not told from leaving the loss where it was"
    return f"{'lowers' if claim.status == 'holds' else 'raises'} the loss{_where(replay, name, claim)}"


def _where(replay: Replay, name: str, change: Claim) -> str:
    """Say along which directions, as far as the claims on either part allow."""
    if is_missed(replay, name):
        return " (which its directions do not account for)"
    share, parts = told_share(replay, name), judge_progress(replay)
    if share is not None and share.low > 0.5:
        return " mostly along flat directions"
    if share is not None and share.high < 0.5:
        return " mostly along sharp directions"
    found = {part: parts[name, part].status for part in PARTS if (name, part) in parts}
    down = [part for part, status in found.items() if status == "holds"]
    up = [part for part, status in found.items() if status == "fails"]
    lowers = change.status == "holds"
    with_it, against = (down, up) if lowers else (up, down)
    if not with_it:
        return " (along which directions is open)"
    text = f" along {join_names(with_it)} directions"
    turned = "raises" if lowers else "lowers"
    return f"{text} but {turned} it along {join_names(against)} ones" if against else text


def _against_base(replay: Replay, name: str) -> str:
    base = base_of(replay, name)
    if base is None:
        return ""
    claim = compare_bases(replay).get((name, base))
    if claim is None:
        return f"has no error to be held against {base} with"
    words = {"holds": "ends below", "fails": "ends above", "open": "is not told from"}
    return f"{words[claim.status]} {base}"


def _edge(replay: Replay, name: str) -> str:
    ratio = replay.directional_edge_ratio(name)
    if ratio is None:
        return ""
    if ratio.num_samples == 1:
        return f"steps at {format_number(ratio.value, 2)} of an edge ratio whose edge is 2"
    if ratio.high < EDGE:
        return "steps within the edge"
    return "steps past the edge" if ratio.low > EDGE else "is not told from stepping at the edge"


def _lowest(replay: Replay) -> str:
    """Name the optimizer whose mean ends lowest; empty where all diverged."""
    changes = {name: change.value for name in finished(replay) if (change := replay.loss_change(name)) is not None}
    return min(changes, key=changes.__getitem__, default="")


# What would make it surer


def warn(replay: Replay) -> list[str]:
    """Say where seeds or tokens are few."""
    found, origin = [], replay.provenance
    if replay.num_seeds == 1:
        found.append("One seed has no error: no difference is claimed.")
    elif replay.num_seeds < _FEW_SEEDS:
        found.append(f"{count_of(replay.num_seeds, 'seed')} tell large differences alone.")
    if 0 < origin.num_tokens < _FEW_TOKENS:
        found.append(f"Losses are of {origin.num_tokens:,} tokens: another evaluation set may say otherwise.")
    return found


def settle(replay: Replay) -> list[str]:
    """Say what would settle the questions of this replay that are open."""
    if replay.num_seeds == 1:
        return ["Errors: --seeds 5 or more."]
    best = _lowest(replay)
    # Who is lowest, and whether LITE beats its base: of other pairs nobody asks first.
    bases, pairs = compare_bases(replay), compare_losses(replay)
    asked = {pair: (claim, len(bases)) for pair, claim in bases.items()}
    asked |= {
        pair: (claim, len(pairs))
        for pair, claim in pairs.items()
        if best in pair and pair not in bases and pair[::-1] not in bases
    }
    needed: dict[int, list[str]] = {}
    small = []
    for (name, other), (claim, comparisons) in asked.items():
        if claim.status != "open":
            continue
        difference = replay.difference(name, other)
        count = None if difference is None else samples_to_tell(difference, comparisons, _MANY_SEEDS)
        if count is None:
            small.append(f"{name} and {other}")
        else:
            needed.setdefault(max(count, replay.num_seeds + 1), []).append(f"{name} from {other}")
    told = [f"about {count} would tell {join_names(pairs)}" for count, pairs in sorted(needed.items())]
    told += [f"over {_MANY_SEEDS} would be needed for {'; '.join(small)}"] if small else []
    texts = [f"Seeds, were the differences to stay what they are: {', '.join(told)}."] if told else []
    if replay.provenance.num_tokens < _FEW_TOKENS:
        texts.append("More --batches: the losses are then of more text.")
    return texts


# Table


def outcome_table(labelled: Sequence[tuple[str, Replay]]) -> Table:
    """List per optimizer the loss change, the difference to its base, where the loss fell, and the edge ratio."""
    is_alone = len(labelled) == 1
    columns = [
        Column("optimizer", is_text=True),
        Column("loss change", unit="nats", hint="over the segment, with its 95% interval over seeds", has_error=True),
        Column("against its base", unit="nats", hint="final loss minus the base's, paired by seed", has_error=True),
        Column("where it fell", unit="nats", hint="loss change along flat and along sharp directions", is_text=True),
        Column("edge ratio", unit="edge at 2", hint="dᵀHd/(−g·d) after the ramp", has_error=True),
    ]
    rows = [
        [
            # Below an optimizer stands its checkpoint, where there are several.
            text_cell(name) if is_alone else Cell(text=name, raw=f"{name} at {label}", hint=label),
            _interval_cell(replay.loss_change(name), judge_changes(replay).get(name)),
            _base_cell(replay, name),
            _fell_cell(replay, name),
            _edge_cell(replay, name),
        ]
        for label, replay in labelled
        for name in replay.optimizers
    ]
    return make_table("outcome", "Outcome by optimizer, with 95% intervals over seeds.", columns, rows)


def _interval_cell(found: Estimate | None, claim: Claim | None = None, tone: str = "") -> Cell:
    if found is None:
        return Cell(text=MISSING)
    if found.num_samples == 1 or found.high <= found.low:
        return Cell(text=format_number(found.value, 3), raw=found.value)
    value, interval = format_interval(found.value, found.low, found.high)
    return Cell(
        text=value,
        raw=found.value,
        error=found.high - found.value,
        hint=interval.removeprefix("95%: "),
        tone=tone or ("" if claim is None else TONES.get(claim.status, "")),
    )


def _base_cell(replay: Replay, name: str) -> Cell:
    base = base_of(replay, name)
    if base is None:
        is_base = any(base_of(replay, other) == name for other in replay.optimizers)
        return Cell(text="is the base" if is_base else MISSING)
    return _interval_cell(replay.difference(name, base), compare_bases(replay).get((name, base)))


def _fell_cell(replay: Replay, name: str) -> Cell:
    """Write the loss change along flat and along sharp directions, and that after the ramp."""
    flat, sharp = replay.flat_progress(name), replay.sharp_progress(name)
    if flat is None or sharp is None:
        return Cell(text=MISSING)
    text, later = f"flat {format_number(-flat.value, 2)}", [f"sharp {format_number(-sharp.value, 2)}"]
    if "after" in replay.parts and (after := replay.loss_change(name, part="after")) is not None:
        later.append(f"after the ramp {format_number(after.value, 2)}")
    return Cell(text=text, raw=", ".join([text, *later]), hint=",\n".join(later))


def _edge_cell(replay: Replay, name: str) -> Cell:
    found = replay.directional_edge_ratio(name)
    return _interval_cell(found, tone="caution" if found is not None and found.low > EDGE else "")


# The picture


def draw_gaps(name: str, replay: Replay) -> Drawing | None:
    """Draw each optimizer's loss minus that of the one whose mean ends lowest, with 95% bands paired by seed."""
    if len(finished(replay)) < 2:
        return None
    best = _lowest(replay)
    reference = {run.seed: run.losses for run in replay.runs_of(best)}
    figure, sentences = Figure(), [f"Loss minus that of {best}, by step."]
    means, ends = [np.zeros(1)], [np.zeros(1)]
    for place, optimizer in enumerate(replay.optimizers):
        gaps = [run.losses - reference[run.seed] for run in replay.runs_of(optimizer) if run.seed in reference]
        if not gaps:
            continue
        stacked = np.stack(gaps)
        steps, mean = list(range(stacked.shape[1])), stacked.mean(axis=0)
        means.append(mean)
        meta, shade = {"optimizer": optimizer}, colour(place)
        if len(gaps) > 1 and optimizer != best:
            half = t_reach(len(gaps)) * stacked.std(axis=0, ddof=1) / np.sqrt(len(gaps))
            ends += [mean + half, mean - half]
            figure.add_scatter(
                x=steps + steps[::-1],
                y=rounded(mean + half) + rounded(mean - half)[::-1],
                fill="toself",
                fillcolor=shade,
                opacity=0.15,
                line={"width": 0, "color": shade},
                mode="lines",
                showlegend=False,
                hoverinfo="skip",
                legendgroup=optimizer,
                meta=meta,
            )
        figure.add_scatter(
            x=steps,
            y=rounded(mean),
            name=optimizer,
            legendgroup=optimizer,
            mode="lines",
            line=series_line(place, 2),
            hovertemplate="after %{x} steps<br>%{y:.4~g} nats above<extra>%{fullData.name}</extra>",
            meta=meta,
        )
        if optimizer != best:
            sentences.append(f"{optimizer} ends {format_number(float(mean[-1]), 3)} nats above it.")
    # The axis belongs to the means and nine tenths of the bands: few seeds have steps at which a band is anything.
    bands, lines = np.concatenate(ends), np.concatenate(means)
    low, high = (float(np.quantile(bands, share)) for share in (0.05, 0.95))
    low, high = min(low, float(lines.min())), max(high, float(lines.max()))
    room = 0.06 * (high - low) or 0.01
    figure.layout = layout(
        HEIGHT,
        xaxis=axis("step", rangemode="tozero"),
        yaxis=axis(f"loss minus {best}’s (nats)", range=[float(f"{low - room:.6g}"), float(f"{high + room:.6g}")]),
        shapes=[reference_line(y=0)],
        showlegend=True,
    )
    return Drawing.of(figure, name, " ".join(sentences), f"Gap to {best}, lowest on average")


def draw_parts(name: str, replay: Replay) -> Drawing | None:
    """Draw flat and sharp progress, a bar per optimizer in its colour, with 95% intervals over seeds."""
    found = part_progress(replay)
    if not found:
        return None
    figure, sentences = Figure(), ["Progress along flat and along sharp directions."]
    for optimizer, pair in found.items():
        place = replay.optimizers.index(optimizer)
        halves = [half_width(one) or 0.0 for one in pair]
        told = [format_uncertain(one.value, half) for one, half in zip(pair, halves, strict=True)]
        figure.add_bar(
            x=["flat", "sharp"],
            y=rounded(np.array([one.value for one in pair])),
            name=optimizer,
            marker={"color": colour(place), "opacity": 0.85},
            error_y=error_bars(halves, "var(--text)"),
            customdata=told,
            hovertemplate="%{x} directions<br>%{customdata} nats<extra>%{fullData.name}</extra>",
            showlegend=False,  # the colours are those of the figure beside it
            meta={"optimizer": optimizer},
        )
        sentences.append(f"{optimizer}: {told[0]} nats flat, {told[1]} nats sharp.")
    figure.layout = layout(
        HEIGHT,
        xaxis=axis("directions", type="category", ticks=""),
        yaxis=axis("progress (nats)"),
        barmode="group",
        bargap=0.25,
        shapes=[reference_line(y=0)],
    )
    return Drawing.of(figure, name, " ".join(sentences), "Where the progress was made")


def describe_segment(replay: Replay) -> list[str]:
    """Say what was replayed on what."""
    batch = batch_words(replay.provenance)
    segment = f"{count_of(replay.steps, 'step')} × {count_of(replay.num_seeds, 'seed')}"
    return [segment + (f", batches of {batch}" if batch else "")]
