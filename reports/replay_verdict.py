"""What a replay allows one to say. A difference is claimed where its 95% interval, paired over seeds, excludes zero."""

from collections.abc import Sequence

import numpy as np

from lite_probe.reports.numbers import count_of, format_number, format_share, format_uncertain
from lite_probe.reports.verdict import Point, Verdict
from lite_probe.results.estimate import Estimate
from lite_probe.results.replay import Replay

# Closure errors, of |ΔL|: above which allocations deserve a warning, and above which they do not explain the change.
_CLOSURE, _UNEXPLAINED = 0.01, 0.1
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
_ABLATED = {"dominant": "projected on the sharp subspace", "bulk": "projected off the sharp subspace"}


def rounding(replay: Replay) -> float:
    """Return the least difference of two losses that is more than rounding, nats: ε·|L(θ₀)|.

    ε is float64's where the model is in it, else float32's: lower precisions have their losses computed in that.
    """
    kind = np.float64 if replay.provenance.precision == "float64" else np.float32
    return float(np.finfo(kind).eps) * abs(replay.start_loss)


def is_rounding(replay: Replay, estimate: Estimate) -> bool:
    """Return whether a loss difference is no more than rounding, on every seed alike."""
    return max(abs(estimate.value), estimate.stderr) <= rounding(replay)


def is_certain(replay: Replay, estimate: Estimate | None) -> bool:
    """Return whether a loss difference is beyond its 95% interval over seeds and rounding; one seed's never is."""
    if estimate is None or estimate.num_samples < 2 or abs(estimate.value) <= rounding(replay):
        return False
    return not estimate.low <= 0.0 <= estimate.high


def closure_of(replay: Replay, name: str) -> float | None:
    """Return an optimizer's worst closure error over its loss change; None where that is no more than rounding."""
    change = replay.loss_change(name)
    return None if change is None or is_rounding(replay, change) else replay.closure(name)


def is_explained(replay: Replay, name: str) -> bool:
    """Return whether the allocations account for an optimizer's loss change, so that parts of it mean something."""
    closure = closure_of(replay, name)
    return closure is not None and closure <= _UNEXPLAINED


def format_estimate(estimate: Estimate | None) -> str:
    """Write an estimate with its standard error over seeds; one seed has none."""
    if estimate is None:
        return format_number(None)
    return format_uncertain(estimate.value, estimate.stderr if estimate.num_samples > 1 else None)


def mean_oscillation(replay: Replay, name: str) -> Estimate | None:
    """Return an optimizer's oscillation, mean over the eigenvectors, with its error over seeds; None without a run."""
    means = [float(run.oscillations.mean()) for run in replay.runs_of(name) if run.is_recorded]
    if len(means) > 1:
        return Estimate.from_samples(np.array(means))
    return Estimate(value=means[0], stderr=0.0, low=means[0], high=means[0], num_samples=1) if means else None


def judge_replay(replay: Replay) -> Verdict:
    """Say who lowered the loss, by how much, and along which directions."""
    names = [name for name in replay.optimizers if replay.runs_of(name)]
    points = [point for name in replay.optimizers for point in _divergence(replay, name)]
    for name in names:
        base = name.removesuffix("-lite")
        if base != name and base in names:
            points.append(_against_base(replay, name, base))
    points += [_where(replay, name) for name in names]
    points += _manner(replay, names)
    for name in names:
        points += _ablations(replay, name)
    points += [*_starts(replay), _learning_rates(replay), _closure(replay, names)]
    return Verdict(lead=_lead(replay, names), points=tuple(points))


def _lead(replay: Replay, names: Sequence[str]) -> str:
    """Say who ends lowest, and below whom beyond the error."""
    if not names:
        return "Every run diverged: there is nothing to compare."
    changes = {name: change for name in names if (change := replay.loss_change(name)) is not None}
    best = min(changes, key=lambda name: changes[name].value)
    change = changes[best]
    differences = {name: replay.difference(best, name) for name in names}
    lowest = [name for name, one in differences.items() if one is not None and is_rounding(replay, one)]
    text = f"After {count_of(replay.steps, 'step')} {_who_ends_where(replay, names, lowest, change)}"
    if replay.num_seeds == 1:
        return f"{text}; it is one seed, which has no error, so that no difference is claimed."
    text += f" ({replay.num_seeds} seeds{', paired' if len(names) > 1 else ''})"
    if not is_certain(replay, change):
        text += ", which is within its own error"
    below, level, alone = [], [], []
    for name, difference in differences.items():
        if name in lowest:
            continue
        if difference is None or difference.num_samples < 2:
            alone.append(name)
        elif is_certain(replay, difference):
            below.append(f"{name} by {_size(difference)}")
        else:
            level.append(name)
    parts = [f"below {_list(below)}"] if below else []
    parts += [f"no different beyond the error from {_list(level)}"] if level else []
    parts += [f"not compared with {_list(alone)}, for want of two common seeds"] if alone else []
    return f"{text}; {', '.join(parts)}." if parts else f"{text}."


def _who_ends_where(replay: Replay, names: Sequence[str], lowest: Sequence[str], change: Estimate) -> str:
    """Name those that end lowest, one where it can be told from the others, and where that is."""
    start = format_number(replay.start_loss)
    where = f"{_size(change)} nats {'below' if change.value < 0.0 else 'above'} the start's {start}"
    if is_rounding(replay, change):
        where = f"where the loss began, at {start}, but for rounding"
    if len(lowest) > 1:
        rank = "" if len(lowest) == len(names) else "lowest, "
        return f"{_list(lowest)} cannot be told apart and end {rank}{where}"
    return f"{lowest[0]} ends {'' if len(names) == 1 else 'lowest, '}{where}"


def _against_base(replay: Replay, name: str, base: str) -> Point:
    """Say whether a LITE variant beats its base, and where the difference fell."""
    difference = replay.difference(name, base)
    if difference is None:
        return Point(tone="caution", text=f"{name} and {base} have no seed that both finished.")
    seeds = count_of(difference.num_samples, "seed")
    if is_rounding(replay, difference):
        text = f"{name} and {base} cannot be told apart: their losses differ by rounding alone ({seeds})."
        return Point(tone="plain", text=text)
    if difference.num_samples == 1:
        text = f"{name} minus {base}: {format_estimate(difference)} nats on one seed, which has no error."
        return Point(tone="plain", text=text)
    count = f"{seeds}, paired, 95% from {_interval(difference)}"
    if not is_certain(replay, difference):
        text = f"{name} minus {base}: {format_estimate(difference)} nats, no difference beyond the error ({count})."
        return Point(tone="plain", text=text)
    lower = difference.value < 0.0
    text = f"{name} ends {_size(difference)} nats {'below' if lower else 'above'} {base} ({count})"
    places = []
    for where, found in (
        ("flat", replay.flat_difference(name, base)),
        ("sharp", replay.sharp_difference(name, base)),
    ):
        if (
            is_explained(replay, name)
            and is_explained(replay, base)
            and found is not None
            and is_certain(replay, found)
        ):
            places.append(f"{_size(found)} nats {'more' if found.value > 0.0 else 'less'} along {where} directions")
    text += f"; it makes {' and '.join(places)}." if places else "; where it falls cannot be told beyond the error."
    return Point(tone="good" if lower else "caution", text=text)


def _where(replay: Replay, name: str) -> Point:
    """Say along which directions one optimizer made its progress; as a share only of a change beyond its error."""
    flat, sharp = replay.flat_progress(name), replay.sharp_progress(name)
    change, share = replay.loss_change(name), replay.flat_share(name)
    count = len(replay.eigenvalues)
    if flat is None or sharp is None or change is None or share is None:
        return Point(tone="plain", text=f"{name}: progress per direction was not recorded.")
    text = (
        f"{name}: {format_estimate(flat)} nats of progress along flat directions, {format_estimate(sharp)} along the "
        f"{f'{count} sharp ones' if count != 1 else 'sharp one'}"
    )
    if has_share(replay, name):
        text += f", {format_share(share.value, share.stderr)} of it flat"
    closure = closure_of(replay, name)
    if closure is not None and closure > _UNEXPLAINED:
        text += f", which do not account for its loss change of {format_estimate(change)}"
    elif is_certain(replay, sharp) and sharp.value < 0.0:
        text += f"; along the sharp one{'s' if count != 1 else ''} it raised the loss"
    return Point(tone="plain", text=f"{text}.")


def has_share(replay: Replay, name: str) -> bool:
    """Return whether an optimizer's flat share says something.

    Its loss must have fallen beyond the error, the allocations account for that, and the share be one: where the sharp
    part raised the loss, the flat one is more than the whole.
    """
    change, share = replay.loss_change(name), replay.flat_share(name)
    if change is None or share is None or change.value >= 0.0 or not is_certain(replay, change):
        return False
    return is_explained(replay, name) and 0.0 <= share.value <= 1.0


def _manner(replay: Replay, names: Sequence[str]) -> list[Point]:
    """Say how the optimizers move: how isotropic, along what curvature, with what step per curvature."""
    quantities = (
        ("Isotropy of the updates (1 is isotropic)", "", replay.isotropy_entropy),
        ("Curvature along the updates, dᵀHd/‖d‖²", " loss/param²", replay.directional_sharpness),
        ("Exponent a of η ∝ λ⁻ᵃ where η is positive (0 gradient descent, 1 Newton)", "", replay.exponent),
        (
            "Oscillation along sharp directions (0 straight, 1 to and fro)",
            "",
            lambda name: mean_oscillation(replay, name),
        ),
    )
    points = []
    for title, unit, measure in quantities:
        found = {name: value for name in names if (value := measure(name)) is not None}
        if found:
            parts = ", ".join(
                f"{name} {format_estimate(value)}{of_seeds(value, len(replay.runs_of(name)))}"
                for name, value in found.items()
            )
            points.append(Point(tone="plain", text=f"{title}: {parts}{unit}."))
    return points


def of_seeds(estimate: Estimate | None, runs: int) -> str:
    """Say on how many seeds an estimate rests, where some have none: an error over one would be missing unsaid."""
    if estimate is None or estimate.num_samples == runs:
        return ""
    return f" (on {estimate.num_samples} of {count_of(runs, 'seed')})"


def _ablations(replay: Replay, name: str) -> list[Point]:
    """Say what either part of the update does alone, as far as the seeds allow."""
    whole = replay.loss_change(name)
    parts = []
    for ablation in replay.ablations:
        change = replay.loss_change(name, ablation)
        words = _ABLATED.get(ablation, ablation)
        if change is None:
            parts.append(f"{words}, they reached the end on no seed")
            continue
        part = f"{words}, they change the loss by {format_estimate(change)}"
        difference = replay.difference(name, name, ablation, "none")
        if difference is not None and difference.num_samples > 1:
            if not is_certain(replay, difference):
                part += " (no different from the whole beyond the error)"
            else:
                part += f" ({'better' if difference.value < 0.0 else 'worse'} than the whole by {_size(difference)})"
        parts.append(part)
    if not parts or whole is None:
        return []
    text = f"{name}: whole updates change the loss by {format_estimate(whole)} nats; {'; '.join(parts)}."
    return [Point(tone="plain", text=text)]


def _divergence(replay: Replay, name: str) -> list[Point]:
    """Name every run of an optimizer that diverged."""
    texts = []
    for ablation in ("none", *replay.ablations):
        part = "" if ablation == "none" else f" (updates {_ABLATED.get(ablation, ablation)})"
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
    edges = [name for name, sweep in replay.sweeps.items() if not sweep.is_inside and name not in failed]
    if edges:
        text += f" The best of {_list(edges)} is at the limit of its grid: a better one may lie beyond."
    if failed:
        text += f" {_list(failed)} diverged at every rate that was tried."
    if any(recipe.lr_source != "sweep" for recipe in replay.recipes.values()):
        text += " Rates that were not swept may favour one optimizer over another."
    return Point(tone="caution" if edges or failed else "plain", text=text)


def _closure(replay: Replay, names: Sequence[str]) -> Point:
    """State the worst closure error, and of whom the allocations do not explain the loss change."""
    closures = {name: value for name in names if (value := closure_of(replay, name)) is not None}
    if not closures:
        return Point(tone="plain", text="No loss change was allotted to directions.")
    missed = {name: value for name, value in closures.items() if value > _UNEXPLAINED}
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


def _size(estimate: Estimate) -> str:
    """Write the size of an estimate, its sign told in words."""
    return format_uncertain(abs(estimate.value), estimate.stderr if estimate.num_samples > 1 else None)


def _interval(estimate: Estimate) -> str:
    """Write a 95% interval."""
    return f"{format_number(estimate.low, 2)} to {format_number(estimate.high, 2)}"


def _list(names: Sequence[str]) -> str:
    """Join names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
