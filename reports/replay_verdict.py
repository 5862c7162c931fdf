"""What a replay allows one to say: its claims in sentences, and what they are to be read with."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from lite_probe.reports.numbers import (
    count_of,
    format_interval,
    format_measured,
    format_measured_share,
    format_number,
    format_share,
    format_uncertain,
)
from lite_probe.reports.replay_claims import (
    ABLATED,
    PARTS,
    base_of,
    closure_of,
    compare_bases,
    compare_losses,
    compare_progress,
    correction,
    directions,
    echoes,
    finished,
    is_corrected_away,
    is_explained,
    is_missed,
    is_rounding,
    judge_ablations,
    judge_changes,
    judge_progress,
    rounding,
)
from lite_probe.reports.table import half_width
from lite_probe.reports.verdict import Point, Verdict
from lite_probe.results.claim import Claim
from lite_probe.results.estimate import Estimate
from lite_probe.results.replay import Replay

_CLOSURE = 0.01  # closure error, of |ΔL|, above which allocations deserve a warning
LR_SOURCES = {
    "given": "given",
    "checkpoint": "the checkpoint's",
    "sweep": "swept by factors of two for the lowest evaluation loss",
}
_STARTS = {
    "checkpoint": "went on from the checkpoint's optimizer state",
    "warm": "started from averages warmed at fixed weights",
    "cold": "started without averages",
}


def format_estimate(estimate: Estimate | None) -> str:
    """Write an estimate with half of its 95% interval over seeds; one seed has none."""
    if estimate is None:
        return format_number(None)
    return format_uncertain(estimate.value, half_width(estimate))


def mean_oscillation(replay: Replay, name: str) -> Estimate | None:
    """Return an optimizer's oscillation, mean over the eigenvectors, with its error over seeds; None without a run."""
    means = [float(run.oscillations.mean()) for run in replay.runs_of(name) if run.is_recorded]
    if len(means) > 1:
        return Estimate.from_samples(np.array(means))
    return Estimate(value=means[0], stderr=0.0, low=means[0], high=means[0], num_samples=1) if means else None


def judge_replay(replay: Replay) -> Verdict:
    """Say who lowered the loss, by how much, and along which directions."""
    names = finished(replay)
    points = [point for name in replay.optimizers for point in _divergence(replay, name)]
    points += _starts(replay)
    points += [_against_base(replay, name) for name in names if base_of(replay, name) in names]
    points += [*_between(replay), *_where(replay, names)]
    points += [*_manner(replay, names), *_theory(replay), *_ablations(replay, names)]
    points += _on_same_batches(replay, [claim for point in points for claim in point.claims])
    points += [*_corrected(replay), _learning_rates(replay), _closure(replay, names)]
    return Verdict(lead=f"{_lead(replay, names)}{_lead_on_same_batches(replay, names)}", points=tuple(points))


def _lead(replay: Replay, names: Sequence[str]) -> str:
    """Say who ends lowest: an optimizer that every other is told from, or that there is none."""
    if not names:
        return "Every run diverged: there is nothing to compare."
    changes = {name: change for name in names if (change := replay.loss_change(name)) is not None}
    opening = f"After {count_of(replay.steps, 'step')} "
    if replay.num_seeds == 1:
        text = _on_one_seed(replay, changes)
        return f"{opening}{text}; it is one seed, which has no error, so that no difference is claimed."
    if len(names) == 1:
        count, all_of_them = changes[names[0]].num_samples, count_of(replay.num_seeds, "seed")
        seeds = f"over {all_of_them}" if count == replay.num_seeds else f"on {count} of {all_of_them}"
        return f"{opening}{names[0]} ends {_end(replay, names[0])}, {seeds}."
    return f"{opening}{_ranking(replay, changes)} ({replay.num_seeds} seeds, paired)."


def _on_one_seed(replay: Replay, changes: dict[str, Estimate]) -> str:
    """Name those whose loss is lowest."""
    best = min(changes, key=lambda name: changes[name].value)
    lowest = [name for name in changes if changes[name].value - changes[best].value <= rounding(replay)]
    rank = "" if len(lowest) == len(changes) else "lowest, "
    if len(lowest) > 1:
        return f"{_list(lowest)} cannot be told apart and end {rank}{_end(replay, best)}"
    return f"{best} ends {rank}{_end(replay, best)}"


def _ranking(replay: Replay, changes: dict[str, Estimate]) -> str:
    """Say who ends below whom, after the correction for all pairs."""
    names = list(changes)
    claims = compare_losses(replay)
    below = {pair for pair, claim in claims.items() if claim.status == "holds"}
    below |= {pair[::-1] for pair, claim in claims.items() if claim.status == "fails"}
    unbeaten = [name for name in names if not any((other, name) in below for other in names)]
    if not unbeaten:  # where runs diverged, pairs share other seeds
        return f"none of {_list(names)} ends lowest: each ends above another on the seeds that both finished"
    best = min(unbeaten, key=lambda name: changes[name].value)
    beaten = [name for name in names if (best, name) in below]
    level = [name for name in names if name != best and name not in beaten]
    alone = [name for name in level if (best, name) not in claims and (name, best) not in claims]
    level = [name for name in level if name not in alone]
    lack = f", but not compared with {_list(alone)} for want of two common seeds" if alone else ""
    if not level:
        rank = "" if alone else "lowest, "
        under = f", below {_list(beaten)}" if beaten else ""
        return f"{best} ends {rank}{_end(replay, best)}{under}{lack}"
    lowest = [name for name in names if name == best or name in level]
    among = [claim for (one, other), claim in claims.items() if one in lowest and other in lowest]
    corrected = f" after {correction(len(claims))}" if any(is_corrected_away(replay, claim) for claim in among) else ""
    is_tied = not any((one, other) in below for one in lowest for other in lowest)
    if is_tied and not alone and all((one, other) in below for one in lowest for other in beaten):
        rank = "lowest, " if beaten else ""
        under = f", below {_list(beaten)}" if beaten else ""
        where = _span(replay, [changes[name] for name in lowest])
        return f"{_list(lowest)} cannot be told apart{corrected} and end {rank}{where}{under}"
    under = f"; it ends below {_list(beaten)}" if beaten else ""
    return f"{best} is ahead but cannot be told from {_list(level)}{corrected}{under}{lack}"


_SAME = "On the batches that the eigenvectors were measured on"


def _lead_on_same_batches(replay: Replay, names: Sequence[str]) -> str:
    """Say whether what the lead claims of the one in front is found on the eigenvectors' batches too."""
    changes = {name: change.value for name in names if (change := replay.loss_change(name)) is not None}
    if not changes:
        return ""
    best = min(changes, key=lambda name: changes[name])
    beaten = {
        claim: other if best == name else name
        for (name, other), claim in compare_losses(replay).items()
        if best in (name, other) and (claim.value < 0.0) == (best == name)
    }
    claims = [*beaten] if len(names) > 1 else [one for one in [judge_changes(replay).get(best)] if one is not None]
    found = echoes(replay, claims)
    if not found:
        return ""
    missing = [one.claim for one in found if not one.is_found]
    if not missing:
        return f" {_SAME} the same is found."
    if len(names) == 1:
        return f" {_SAME} that is not found."
    return f" {_SAME} {best}'s lead over {_list([beaten[one] for one in missing])} is not found."


def _on_same_batches(replay: Replay, claims: Sequence[Claim]) -> list[Point]:
    """Say of every claim whether it holds on the eigenvectors' batches too, which progress along them may flatter."""
    found = echoes(replay, claims)
    if not found:
        return []
    missing, count = [one for one in found if not one.is_found], count_of(len(found), "claim")
    held_out = "Losses and progress are of held-out batches."
    if not missing:
        every = "is found, for the one claim that is made" if len(found) == 1 else f"is found, for all {count}"
        return [Point(tone="good", text=f"{held_out} {_SAME} the same {every}.")]
    texts = []
    for one in missing:
        value = f"{format_number(one.claim.value, 3)} {one.claim.unit} held out"
        there = "there the allocations do not account for the loss change"
        if one.other is not None:
            there = f"{_of_claim(one.other)} there"
        texts.append(f"{one.claim.subject}'s {one.claim.quantity} ({value}, {there})")
    of = f"for {len(found) - len(missing)} of {count}" if len(found) > 1 else "for no claim"
    text = f"{held_out} {_SAME} the same is found {of}; not found {'is' if len(texts) == 1 else 'are'} {_list(texts)}."
    return [Point(tone="caution", text=text)]


def _of_claim(claim: Claim) -> str:
    return format_measured(claim.value, claim.low, claim.high, f" {claim.unit}").replace("\u00a0", " ")


def _end(replay: Replay, name: str) -> str:
    """Say where an optimizer's loss ends against the start's, with its 95% interval where there are seeds."""
    change, claim = replay.loss_change(name), judge_changes(replay).get(name)
    start = format_number(replay.start_loss)
    if change is None or is_rounding(replay, change):
        return f"where the loss began, at {start}, but for rounding"
    place, is_lower = f"the start's {start}", change.value < 0.0
    if claim is None:
        return f"{format_number(abs(change.value))} nats {'below' if is_lower else 'above'} {place}"
    ends = (-change.high, -change.low) if is_lower else (change.low, change.high)
    size, interval = format_interval(abs(change.value), *ends)
    reservation = ", not beyond the error" if claim.status == "open" else ""
    if is_corrected_away(replay, claim):
        reservation = f", not beyond {correction(claim.comparisons)}"
    return f"{size} nats {'below' if is_lower else 'above'} {place} ({interval}){reservation}"


def _span(replay: Replay, changes: Sequence[Estimate]) -> str:
    """Say between which means several losses end, against the start's."""
    start, values = f"the start's {format_number(replay.start_loss)}", [change.value for change in changes]
    if all(is_rounding(replay, change) for change in changes):
        return f"where the loss began, at {format_number(replay.start_loss)}, but for rounding"
    if min(values) < 0.0 < max(values):
        return f"between {format_number(-min(values), 2)} nats below and {format_number(max(values), 2)} above {start}"
    sizes = sorted(map(abs, values))
    texts = dict.fromkeys(format_number(size, 3) for size in (sizes[0], sizes[-1]))
    return f"{' to '.join(texts)} nats {'below' if values[0] <= 0.0 else 'above'} {start}"


def _against_base(replay: Replay, name: str) -> Point:
    """Say whether a LITE variant beats its base, and where the difference fell."""
    base = name.removesuffix("-lite")
    difference, claim = replay.difference(name, base), compare_bases(replay).get((name, base))
    if difference is None:
        return Point(tone="caution", text=f"{name} and {base} have no seed that both finished.")
    if claim is None:
        if is_rounding(replay, difference):
            text = f"{name} and {base} cannot be told apart: their losses differ by rounding alone (1 seed)."
        else:
            text = f"{name} minus {base}: {format_number(difference.value)} nats on one seed, which has no error."
        return Point(tone="plain", text=text)
    tone = {"holds": "good", "fails": "caution"}.get(claim.status, "plain")
    if is_rounding(replay, difference):
        return Point(tone=tone, text=claim.sentence, claims=(claim,))
    places = compare_progress(replay)
    claims = [claim, *(places[name, base, part] for part in PARTS if (name, base, part) in places)]
    text = _sentences(claims)
    if claim.status != "open" and _among_all(replay, name, base).status == "open":
        text += f" Among the {len(compare_losses(replay))} comparisons of all optimizers it is not told."
    if is_missed(replay, name) or is_missed(replay, base):
        text += " Where the difference falls cannot be told: the allocations do not account for the loss changes."
    return Point(tone=tone, text=text, claims=tuple(claims))


def _among_all(replay: Replay, name: str, base: str) -> Claim:
    """Return the claim on a pair among those on all pairs."""
    claims = compare_losses(replay)
    return claims[name, base] if (name, base) in claims else claims[base, name]


def _between(replay: Replay) -> list[Point]:
    """Say of every other pair who ends below whom."""
    bases = compare_bases(replay)
    claims = [one for pair, one in compare_losses(replay).items() if pair not in bases and pair[::-1] not in bases]
    return [Point(tone="plain", text=_sentences(claims), claims=tuple(claims))] if claims else []


def _where(replay: Replay, names: Sequence[str]) -> list[Point]:
    """Say how far every optimizer lowered the loss, and along which directions."""
    changes, parts = judge_changes(replay), judge_progress(replay)
    points = []
    for name in names:
        claims = [changes[name]] if name in changes else []
        claims += [parts[name, part] for part in PARTS if (name, part) in parts]
        texts = [claim.sentence for claim in claims]
        flat, sharp = replay.flat_progress(name), replay.sharp_progress(name)
        if flat is None or sharp is None:
            texts.append(f"{name}: progress per direction was not recorded.")
        elif (name, "flat") not in parts:
            missed = ", which do not account for its loss change" if is_missed(replay, name) else ""
            places = [
                f"{_measured(one, ' nats')} along {directions(replay, part)}"
                for part, one in zip(PARTS, (flat, sharp), strict=True)
            ]
            texts.append(f"{name}: progress of {' and of '.join(places)}{missed}.")
        share = replay.flat_share(name)
        if share is not None and has_share(replay, name):
            flat_part = format_measured_share(share.value, share.low, share.high)
            texts.append(f"Of the progress of {name} {flat_part} is along flat directions.")
        texts += [text for part in PARTS if (text := _on_ramp(replay, name, part, parts.get((name, part))))]
        points.append(Point(tone="plain", text=" ".join(texts), claims=tuple(claims)))
    return points


def _on_ramp(replay: Replay, name: str, part: str, claim: Claim | None) -> str:
    """Say where most of what an optimizer did along a part's directions falls into the ramp, as a shock does."""
    measure = {"flat": replay.flat_progress, "sharp": replay.sharp_progress}[part]
    ramp, whole = measure(name, "ramp"), measure(name)
    if ramp is None or whole is None or claim is None or claim.status == "open":
        return ""
    if ramp.value * whole.value <= 0.0 or abs(ramp.value) <= 0.5 * abs(whole.value):
        return ""
    steps = count_of(replay.ramp, "step")
    what, size = "progress", ramp
    if whole.value < 0.0:
        what, size = "rise", replace(ramp, value=-ramp.value, low=-ramp.high, high=-ramp.low)
    most = "Most" if abs(ramp.value) < abs(whole.value) else "All"
    return (
        f"{most} of this {what} along {directions(replay, part)} falls into the ramp, the first {steps}: "
        f"{_measured(size, ' nats')}."
    )


def _corrected(replay: Replay) -> list[Point]:
    """Say what was corrected for how many comparisons, and what the intervals cover."""
    families = (
        ("of final losses", compare_losses(replay)),
        ("with a base", compare_bases(replay)),
        ("of progress with a base's", compare_progress(replay)),
        ("of loss changes with zero", judge_changes(replay)),
        ("of progress with zero", judge_progress(replay)),
        ("of ablations with the whole", judge_ablations(replay)),
    )
    claims = [claim for _, family in families for claim in family.values()]
    counts = [f"{len(family)} {what}" for what, family in families if len(family) > 1]
    if not claims:
        return []
    text = "intervals are 95%, not corrected, over seeds, for one evaluation set"
    if counts:
        over = f"the comparisons of each question ({_list(counts)})"
        if len(counts) == 1:
            over = counts[0].replace(" ", " comparisons ", 1)
        text = f"Differences are claimed after Holm's correction over {over}; {text}"
    if any(claim.status == "open" for claim in claims):
        text += ". More seeds may tell what is not told"
    return [Point(tone="plain", text=f"{text[0].upper()}{text[1:]}.")]


def has_share(replay: Replay, name: str) -> bool:
    """Return whether an optimizer's flat share says something.

    Its loss must have fallen beyond the error, the allocations account for that, and the share be one with its whole
    95% interval: where the sharp part raised the loss, the flat one is more than the whole.
    """
    change, share = judge_changes(replay).get(name), replay.flat_share(name)
    if change is None or share is None or change.status != "holds":
        return False
    return is_explained(replay, name) and share.low >= 0.0 and share.high <= 1.0


def _manner(replay: Replay, names: Sequence[str]) -> list[Point]:
    """Say how the optimizers move: how isotropic, along what curvature, with what step per curvature."""
    quantities = (
        ("Isotropy of the updates (1 is isotropic)", "", lambda name: _within_one(replay.isotropy_entropy(name))),
        ("Curvature along the updates, dᵀHd/‖d‖²", " loss/param²", replay.directional_sharpness),
        ("Exponent a of η ∝ λ⁻ᵃ where η is positive (0 gradient descent, 1 Newton)", "", replay.exponent),
        (
            "Oscillation along sharp directions (0 straight, 1 back where it began)",
            "",
            lambda name: _within_one(mean_oscillation(replay, name)),
        ),
    )
    points = []
    for title, unit, measure in quantities:
        found = {name: value for name in names if (value := measure(name)) is not None}
        if found:
            parts = ", ".join(
                f"{name} {_measured(value)}{of_seeds(value, len(replay.runs_of(name)))}"
                for name, value in found.items()
            )
            points.append(Point(tone="plain", text=f"{title}: {parts}{unit}."))
    return points


def _theory(replay: Replay) -> list[Point]:
    """Say along how many sharp directions the linear theory has an optimizer diverge at its rate."""
    parts = []
    for name, theory in replay.theory.items():
        rates = np.abs(theory.rates)[np.abs(theory.rates) > 1.0]
        if not len(rates):
            continue
        texts = list(dict.fromkeys(format_number(rate, 2) for rate in (float(rates.min()), float(rates.max()))))
        factors = f"{'factors' if len(texts) > 1 else 'a factor of'} {' to '.join(texts)}"
        where = f"{len(rates)} of {count_of(len(theory.rates), 'sharp direction')}"
        parts.append(f"{name} diverge along {where} ({factors} per step)")
    if not parts:
        return []
    text = f"At these rates linear theory has {_list(parts)}: what it predicts along them is not drawn."
    return [Point(tone="caution", text=text)]


def of_seeds(estimate: Estimate | None, runs: int) -> str:
    """Say on how many seeds an estimate rests, where some have none: an error over one would be missing unsaid."""
    if estimate is None or estimate.num_samples == runs:
        return ""
    return f" (on {estimate.num_samples} of {count_of(runs, 'seed')})"


def _ablations(replay: Replay, names: Sequence[str]) -> list[Point]:
    """Say what either part of the update does alone, as far as the seeds allow."""
    claims, points = judge_ablations(replay), []
    for name in names:
        texts = []
        for ablation in replay.ablations:
            change, words = replay.loss_change(name, ablation), f"{name} {ABLATED.get(ablation, ablation)}"
            if change is None:
                texts.append(f"{words} reached the end on no seed.")
            else:
                texts.append(f"{words} changes the loss by {_measured(change, ' nats')}.")
            if (name, ablation) in claims:
                texts.append(claims[name, ablation].sentence)
        if texts:
            made = tuple(claims[name, one] for one in replay.ablations if (name, one) in claims)
            points.append(Point(tone="plain", text=" ".join(texts), claims=made))
    return points


def _divergence(replay: Replay, name: str) -> list[Point]:
    """Name every run of an optimizer that diverged."""
    texts = []
    for ablation in ("none", *replay.ablations):
        part = "" if ablation == "none" else f" (updates {ABLATED.get(ablation, ablation)})"
        texts += [
            f"{name}{part} diverged at step {run.diverged_at} of seed {run.seed}"
            for run in replay.diverged(name, ablation)
        ]
    return [Point(tone="caution", text=f"{'; '.join(texts)}.")] if texts else []


def _starts(replay: Replay) -> list[Point]:
    """Say what the optimizers' states were at the start, unless all were warmed or all cold."""
    by_state: dict[str, list[str]] = {}
    for name, recipe in replay.recipes.items():
        by_state.setdefault(recipe.state, []).append(name)
    if len(by_state) == 1 and "checkpoint" not in by_state:
        return []
    text = "; ".join(f"{_list(names)} {_STARTS.get(state, state)}" for state, names in by_state.items())
    if len(by_state) == 1:
        return [Point(tone="plain", text=f"{text}.")]
    return [Point(tone="caution", text=f"{text}: part of a difference between them may be that of their starts.")]


def _learning_rates(replay: Replay) -> Point:
    """Say how every learning rate was chosen; a comparison means nothing without."""
    parts = []
    for source in dict.fromkeys(recipe.lr_source for recipe in replay.recipes.values()):
        chosen = [recipe for recipe in replay.recipes.values() if recipe.lr_source == source]
        rates = ", ".join(f"{recipe.optimizer} {format_number(recipe.lr, 2)}" for recipe in chosen)
        parts.append(f"{LR_SOURCES.get(source, source)}: {rates}")
    text = f"Learning rates were {'; '.join(parts)}."
    failed = [name for name, sweep in replay.sweeps.items() if bool(sweep.diverged.all())]
    edges = [name for name, sweep in replay.sweeps.items() if sweep.is_at_limit and name not in failed]
    if edges:
        text += f" The best of {_list(edges)} is at the limit of its grid: a better one may lie beyond."
    left = [(name, sweep) for name, sweep in replay.sweeps.items() if name not in failed and sweep.chosen != sweep.best]
    for name, sweep in left:
        best, taken = format_number(sweep.best, 2), format_number(sweep.chosen, 2)
        text += (
            f" At the best rate of {name}, {best}, the loss first rises above the start's: {taken} is the largest of "
            "those tried at which it does not."
        )
    rising = [
        name
        for name, sweep in replay.sweeps.items()
        if name not in failed and sweep.chosen == sweep.best and sweep.first_rises(sweep.chosen)
    ]
    if rising:
        text += f" The loss of {_list(rising)} first rises above the start's at every rate that was tried."
    if failed:
        text += f" {_list(failed)} diverged at every rate that was tried."
    if any(recipe.lr_source != "sweep" for recipe in replay.recipes.values()):
        text += " Rates that were not swept may favour one optimizer over another."
    return Point(tone="caution" if edges or failed or rising else "plain", text=text)


def _closure(replay: Replay, names: Sequence[str]) -> Point:
    """State the worst closure error, and of whom the allocations do not explain the loss change."""
    closures = {name: value for name in names if (value := closure_of(replay, name)) is not None}
    if not closures:
        return Point(tone="plain", text="No loss change was allotted to directions.")
    missed = {name: value for name, value in closures.items() if is_missed(replay, name)}
    parts = []
    if missed:
        errors = _list([f"{name} ({format_share(value)} of it is missed)" for name, value in missed.items()])
        parts.append(
            f"Allocations do not account for the loss change of {errors}: what they say of its parts is not to be "
            "relied on, and no share is shown."
        )
    within = {name: value for name, value in closures.items() if name not in missed}
    if within:
        worst = max(within, key=lambda name: within[name])
        text = f"Allocations add up to the true loss change within {format_share(within[worst])} of it"
        parts.append(f"{text} (worst{' of the others' if missed else ''}: {worst}).")
    return Point(tone="good" if max(closures.values()) <= _CLOSURE else "caution", text=" ".join(parts))


def _measured(estimate: Estimate, unit: str = "") -> str:
    """Write an estimate with its 95% interval over seeds; one seed has none."""
    return format_measured(estimate.value, estimate.low, estimate.high, unit)


def _within_one(estimate: Estimate | None) -> Estimate | None:
    """Cut an interval to what the quantity can be, 0 to 1."""
    if estimate is None:
        return None
    return replace(estimate, low=max(estimate.low, 0.0), high=min(estimate.high, 1.0))


def _sentences(claims: Iterable[Claim]) -> str:
    """Join claims into a text."""
    return " ".join(claim.sentence for claim in claims)


def _list(names: Sequence[str]) -> str:
    """Join names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
