"""What a replay allows one to say. A difference is claimed where its 95% interval, paired over seeds, excludes zero."""

from collections.abc import Sequence

import numpy as np

from lite_probe.reports.numbers import format_number, format_share, format_uncertain
from lite_probe.reports.verdict import Point, Verdict
from lite_probe.results.estimate import Estimate
from lite_probe.results.replay import Replay

_CLOSURE = 0.01  # of |ΔL|, above which allocations deserve a warning
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


def is_certain(estimate: Estimate | None) -> bool:
    """Return whether an estimate over seeds differs from zero beyond its 95% interval; one seed never does."""
    return estimate is not None and estimate.num_samples > 1 and not estimate.low <= 0.0 <= estimate.high


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
    where = f"{_size(change)} nats {'below' if change.value <= 0.0 else 'above'} the start's "
    where += format_number(replay.start_loss)
    if replay.num_seeds == 1:
        ends = f"{best} ends {'' if len(names) == 1 else 'lowest, '}{where}"
        return (
            f"After {replay.steps} steps {ends}; it is one seed, which has no error, so that no difference is claimed."
        )
    text = f"After {replay.steps} steps {best} ends {'' if len(names) == 1 else 'lowest, '}{where}"
    text += f" ({replay.num_seeds} seeds{', paired' if len(names) > 1 else ''})"
    if not is_certain(change):
        text += ", which is within its own error"
    below, level, alone = [], [], []
    for name in names:
        difference = replay.difference(best, name)
        if name == best:
            continue
        if difference is None or difference.num_samples < 2:
            alone.append(name)
        elif is_certain(difference):
            below.append(f"{name} by {_size(difference)}")
        else:
            level.append(name)
    parts = [f"below {_list(below)}"] if below else []
    parts += [f"no different beyond the error from {_list(level)}"] if level else []
    parts += [f"not compared with {_list(alone)}, for want of two common seeds"] if alone else []
    return f"{text}; {', '.join(parts)}." if parts else f"{text}."


def _against_base(replay: Replay, name: str, base: str) -> Point:
    """Say whether a LITE variant beats its base, and where the difference fell."""
    difference = replay.difference(name, base)
    if difference is None:
        return Point(tone="caution", text=f"{name} and {base} have no seed that both finished.")
    if difference.num_samples == 1:
        text = f"{name} minus {base}: {format_estimate(difference)} nats on one seed, which has no error."
        return Point(tone="plain", text=text)
    count = f"{difference.num_samples} seeds, paired, 95% from {_interval(difference)}"
    if not is_certain(difference):
        text = f"{name} minus {base}: {format_estimate(difference)} nats, no difference beyond the error ({count})."
        return Point(tone="plain", text=text)
    lower = difference.value < 0.0
    text = f"{name} ends {_size(difference)} nats {'below' if lower else 'above'} {base} ({count})"
    places = []
    for where, found in (
        ("flat", replay.flat_difference(name, base)),
        ("sharp", replay.sharp_difference(name, base)),
    ):
        if found is not None and is_certain(found):
            places.append(f"{_size(found)} nats {'more' if found.value > 0.0 else 'less'} along {where} directions")
    text += f"; it makes {' and '.join(places)}." if places else "; where it falls cannot be told beyond the error."
    return Point(tone="good" if lower else "caution", text=text)


def _where(replay: Replay, name: str) -> Point:
    """Say along which directions one optimizer made its progress; as a share only of a change beyond its error."""
    flat, sharp = replay.flat_progress(name), replay.sharp_progress(name)
    change, share = replay.loss_change(name), replay.flat_share(name)
    if flat is None or sharp is None or change is None or share is None:
        return Point(tone="plain", text=f"{name}: progress per direction was not recorded.")
    text = (
        f"{name}: {format_estimate(flat)} nats of progress along flat directions, {format_estimate(sharp)} along the "
        f"{len(replay.eigenvalues)} sharp ones"
    )
    if has_share(replay, name) and 0.0 <= share.value <= 1.0:
        text += f", {format_share(share.value, share.stderr)} of it flat"
    if is_certain(sharp) and sharp.value < 0.0:
        text += "; along the sharp ones it raised the loss"
    return Point(tone="plain", text=f"{text}.")


def has_share(replay: Replay, name: str) -> bool:
    """Return whether an optimizer's flat share says something: whether its loss fell beyond the error."""
    change, share = replay.loss_change(name), replay.flat_share(name)
    return is_certain(change) and change is not None and change.value < 0.0 and share is not None


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
            parts = ", ".join(f"{name} {format_estimate(value)}" for name, value in found.items())
            points.append(Point(tone="plain", text=f"{title}: {parts}{unit}."))
    return points


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
            if not is_certain(difference):
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
    """State the worst closure error."""
    closures = {name: value for name in names if (value := replay.closure(name)) is not None}
    if not closures:
        return Point(tone="plain", text="No loss change was allotted to directions.")
    worst = max(closures, key=lambda name: closures[name])
    text = f"Allocations add up to the true loss change within {format_share(closures[worst])} of it"
    return Point(tone="good" if closures[worst] <= _CLOSURE else "caution", text=f"{text} (worst: {worst}).")


def _size(estimate: Estimate) -> str:
    """Write the size of an estimate, its sign told in words."""
    return format_uncertain(abs(estimate.value), estimate.stderr if estimate.num_samples > 1 else None)


def _interval(estimate: Estimate) -> str:
    """Write a 95% interval."""
    return f"{format_number(estimate.low, 2)} to {format_number(estimate.high, 2)}"


def _list(names: Sequence[str]) -> str:
    """Join names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
