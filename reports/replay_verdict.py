"""What a replay allows one to say. A difference is claimed where its 95% interval, paired over seeds, excludes zero."""

from lite_probe.reports.numbers import format_number, format_share, format_uncertain
from lite_probe.reports.verdict import Point, Verdict
from lite_probe.results.estimate import Estimate
from lite_probe.results.replay import Replay

_CLOSURE = 0.01  # of |ΔL|, above which allocations deserve a warning


def is_certain(estimate: Estimate | None) -> bool:
    """Return whether an estimate over seeds differs from zero beyond its 95% interval; one seed never does."""
    return estimate is not None and estimate.num_samples > 1 and not estimate.low <= 0.0 <= estimate.high


def judge_replay(replay: Replay) -> Verdict:
    """Say who lowered the loss, by how much, and along which directions."""
    names = [name for name in replay.optimizers if replay.runs_of(name)]
    points = [point for name in replay.optimizers for point in _divergence(replay, name)]
    for name in names:
        base = name.removesuffix("-lite")
        if base != name and base in names:
            points += _against_base(replay, name, base)
    for name in names:
        points.append(_where(replay, name))
    if point := _sharpness(replay, names):
        points.append(point)
    for name in names:
        points += _ablations(replay, name)
    points += [_learning_rates(replay), _closure(replay, names)]
    return Verdict(lead=_lead(replay, names), points=tuple(points))


def _lead(replay: Replay, names: list[str]) -> str:
    if not names:
        return "Every run diverged: there is nothing to compare."
    changes = {name: change for name in names if (change := replay.loss_change(name)) is not None}
    best = min(changes, key=lambda name: changes[name].value)
    one_seed = replay.num_seeds == 1
    seeds = f"{replay.steps} steps, {replay.num_seeds} seed{'' if one_seed else 's, paired'}"
    if one_seed:
        return (
            f"With one seed no difference has an error: {best} happens to end lowest, {_nats(changes[best])} nats from "
            f"the start's {format_number(replay.start_loss)} ({seeds})."
        )
    beaten: list[str] = []
    level: list[str] = []
    for name in names:
        if name != best:
            (beaten if is_certain(replay.difference(best, name)) else level).append(name)
    change = changes[best]
    reach = f"{best} ends at {_nats(change)} nats from the start's {format_number(replay.start_loss)} ({seeds})"
    if not is_certain(change):
        reach += ", which is not beyond its own error"
    if not (beaten or level):
        return f"{reach}."
    parts = []
    if beaten:
        by = [f"{name} by {_size(replay.difference(best, name))}" for name in beaten]
        parts.append(f"below {', '.join(by)}")
    if level:
        parts.append(f"with no difference beyond the error from {', '.join(level)}")
    return f"{reach}, {'; '.join(parts)}."


def _against_base(replay: Replay, name: str, base: str) -> list[Point]:
    """Say whether a LITE variant beats its base, and where the difference fell."""
    difference = replay.difference(name, base)
    if difference is None:
        return [Point(tone="caution", text=f"{name} and {base} have no seed that both finished.")]
    if difference.num_samples == 1:
        return []
    if not is_certain(difference):
        text = f"{name} against {base}: no difference in final loss beyond the error ({_nats(difference)} nats)."
        return [Point(tone="plain", text=text)]
    lower = difference.value < 0.0
    text = f"{name} ends {_size(difference)} nats {'below' if lower else 'above'} {base}"
    places = []
    for where, found in (
        ("flat directions", replay.flat_difference(name, base)),
        ("the sharp ones", replay.sharp_difference(name, base)),
    ):
        if found is not None and is_certain(found):
            places.append(
                f"it makes {_size(found)} nats {'more' if found.value > 0 else 'less'} progress along {where}"
            )
    text += f"; {' and '.join(places)}." if places else "; where the difference falls is not beyond the error."
    return [Point(tone="good" if lower else "caution", text=text)]


def _where(replay: Replay, name: str) -> Point:
    """Say along which directions one optimizer made its progress."""
    flat, sharp = replay.flat_progress(name), replay.sharp_progress(name)
    change, share = replay.loss_change(name), replay.flat_share(name)
    count = len(replay.eigenvalues)
    if flat is None or sharp is None or change is None or share is None:
        return Point(tone="plain", text=f"{name}: progress per direction was not recorded.")
    oscillation = replay.oscillation(name)
    text = f"{name}: {_nats(flat)} nats of progress along flat directions, {_nats(sharp)} along the {count} sharp ones"
    if is_certain(change) and change.value < 0.0 and 0.0 <= share.value <= 1.0:
        text += f" ({_share(share)} flat)"
    if is_certain(sharp) and sharp.value < 0.0:
        text += ": there it raised the loss"
    if oscillation is not None:
        text += f"; it oscillates by {format_number(float(oscillation[0].mean()), 2)} along the sharp ones"
    isotropy = replay.isotropy_entropy(name)
    if isotropy is not None:
        text += f"; isotropy {_nats(isotropy)}"
    return Point(tone="plain", text=f"{text}.")


def _sharpness(replay: Replay, names: list[str]) -> Point | None:
    """Compare the sharpness along the updates."""
    found = {name: value for name in names if (value := replay.directional_sharpness(name)) is not None}
    if len(found) < 2:
        return None
    ordered = sorted(found, key=lambda name: found[name].value)
    parts = ", ".join(f"{name} {_nats(found[name])}" for name in ordered)
    return Point(tone="plain", text=f"Curvature along the updates, dᵀHd/‖d‖², from the lowest: {parts} loss/param².")


def _ablations(replay: Replay, name: str) -> list[Point]:
    whole = replay.loss_change(name)
    if whole is None or not replay.ablations:
        return []
    parts = []
    for ablation, words in (("dominant", "projected on the sharp subspace"), ("bulk", "projected off it")):
        change = replay.loss_change(name, ablation)
        difference = replay.difference(name, name, ablation, "none")
        if change is None:
            parts.append(f"{words} it diverged")
            continue
        verb = "lowers" if change.value < 0.0 else "raises"
        part = f"{words} it {verb} the loss by {_size(change)}"
        if replay.num_seeds > 1 and not is_certain(change):
            part = f"{words} it does not change the loss beyond the error ({_nats(change)})"
        if difference is not None and difference.num_samples > 1 and not is_certain(difference):
            part += ", no different from the whole update beyond the error"
        parts.append(part)
    return [Point(tone="plain", text=f"{name} with updates {'; '.join(parts)} (whole: {_nats(whole)} nats).")]


def _divergence(replay: Replay, name: str) -> list[Point]:
    runs = [run for ablation in ("none", *replay.ablations) for run in replay.diverged(name, ablation)]
    texts = []
    for run in runs:
        projected = "" if run.ablation == "none" else f", {run.ablation} part only,"
        texts.append(f"{name}{projected} diverged at step {run.diverged_at} of seed {run.seed}")
    return [Point(tone="caution", text=f"{'; '.join(texts)}.")] if texts else []


def _learning_rates(replay: Replay) -> Point:
    """Say how every learning rate was chosen; a comparison means nothing without."""
    ways = {
        "given": "given",
        "checkpoint": "the checkpoint's",
        "sweep": "swept by factors of two, the best on held-out loss",
    }
    parts = []
    for source, words in ways.items():
        rates = [f"{r.optimizer} {format_number(r.lr, 2)}" for r in replay.recipes.values() if r.lr_source == source]
        if rates:
            parts.append(f"{words}: {', '.join(rates)}")
    edges = [name for name, sweep in replay.sweeps.items() if not sweep.is_inside]
    text = f"Learning rates were {'; '.join(parts)}."
    if edges:
        text += f" The best of {', '.join(edges)} is at the limit of the grid."
    return Point(tone="caution" if edges else "plain", text=text)


def _closure(replay: Replay, names: list[str]) -> Point:
    closures = {name: value for name in names if (value := replay.closure(name)) is not None}
    if not closures:
        return Point(tone="plain", text="No loss change was allotted to directions.")
    worst = max(closures, key=lambda name: closures[name])
    text = (
        f"Allocations add up to the true loss change within {format_share(closures[worst])} of it ({worst} is worst)."
    )
    return Point(tone="good" if closures[worst] <= _CLOSURE else "caution", text=text)


def _nats(estimate: Estimate) -> str:
    """Write an estimate with its standard error; one seed has none."""
    return format_uncertain(estimate.value, estimate.stderr if estimate.num_samples > 1 else None)


def _size(estimate: Estimate | None) -> str:
    """Write the size of a difference."""
    if estimate is None:
        return "–"
    return format_uncertain(abs(estimate.value), estimate.stderr if estimate.num_samples > 1 else None)


def _share(estimate: Estimate) -> str:
    return format_share(estimate.value, estimate.stderr if estimate.num_samples > 1 else None)
