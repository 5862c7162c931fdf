"""A replay as it is shown: a few tables for the terminal, one object for programs, and a section per run on a page."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from lite_probe.reports.numbers import format_number, format_share, format_uncertain, terse
from lite_probe.reports.replay_claims import Echo, base_of, closure_of, echoes
from lite_probe.reports.replay_figures import draw_replay
from lite_probe.reports.replay_verdict import has_share, judge_replay
from lite_probe.reports.replay_view import make_replay_view
from lite_probe.reports.sections.section import TEMPLATES, Block, Grid, Line, Part, Section, attributes, estimate_object
from lite_probe.reports.table import half_width
from lite_probe.reports.verdict import Verdict
from lite_probe.results.claim import Claim
from lite_probe.results.estimate import Estimate
from lite_probe.results.replay import Part as ReplayPart
from lite_probe.results.replay import Replay

_Rows = tuple[list[str], list[list[str]]]
PART_NAMES = {"ramp": "ramp", "after": "after it"}


class ReplaySection(Section):
    """How replays are shown."""

    heading = "Replay"
    template = TEMPLATES / "replays.html.j2"

    def subject(self, results: Sequence[Replay]) -> str:
        """Name what was measured."""
        return "replay"

    def verdict(self, result: Replay) -> Verdict:
        """Say who lowered the loss, by how much, and along which directions."""
        return judge_replay(result)

    def summary(self, result: Replay) -> Sequence[Block]:
        """Return what each optimizer started from, reached, where, and in what manner."""
        tables = (outcome_table(result), progress_table(result), part_table(result), manner_table(result))
        shown = [table for table in (start_table(result), *tables) if table is not None]
        blocks: list[Block] = [block for table in shown for block in (Grid(*table), Line())]
        return [*blocks, *(Line(text, is_dim=True) for text in explanations(result))]

    def claim_objects(self, result: Replay, claims: Sequence[Claim]) -> list[dict[str, Any]]:
        """Return claims, each with what became of it on the eigenvectors' batches."""
        found = {echo.claim: echo for echo in echoes(result, claims)}
        return [{**asdict(claim), "same_batches": _echo_object(found.get(claim))} for claim in claims]

    def json_object(self, result: Replay) -> dict[str, Any]:
        """Return every number, differences of all pairs both ways."""
        same = result.on_same_batches()
        return {
            **attributes(result, "steps", "ramp"),
            "seeds": result.num_seeds,
            **attributes(result, "rule", "start_loss"),
            "optimizers": {name: _optimizer_object(result, same, name) for name in result.optimizers},
            "differences": {
                f"{name} - {other}": estimate_object(result.difference(name, other))
                for name in result.optimizers
                for other in result.optimizers
                if name != other
            },
        }

    def part(self, labelled: Sequence[tuple[str, Replay]]) -> Part:
        """Draw and list everything, a section per run."""
        views = [
            make_replay_view(label if len(labelled) > 1 else "", number, one)
            for number, (label, one) in enumerate(labelled, 1)
        ]
        return Part(
            view=views,
            leads=[(view.label, view.verdict.lead) for view in views],
            links=[("replay-1", self.heading)],
            figures={name: figure for view in views for name, figure in draw_replay(view).items()},
        )


SECTION = ReplaySection()


def explanations(replay: Replay) -> list[str]:
    """Return what is to be said below the tables."""
    found = ["±: half of the 95% interval over seeds; loss changes in nats"] if replay.num_seeds > 1 else []
    if len(replay.parts) > 1:
        steps = "step" if replay.ramp == 1 else f"{replay.ramp} steps"
        found.append(f"ramp: the first {steps}, over which the learning rate rises")
    if replay.on_same_batches() is not None:
        found.append("same batches: those that the eigenvectors were measured on; all else is of held-out ones")
    return found


def outcome_table(replay: Replay) -> _Rows:
    """Return header and rows of what each optimizer reached, ablations below it."""
    header = ["optimizer", "lr", "chosen by", "loss change", "minus base"]
    rows = []
    for name, recipe in replay.recipes.items():
        changes = (_text(replay.loss_change(name)), _text(minus_base(replay, name)))
        rows.append([name, _number(recipe.lr, 2), recipe.lr_source, *changes])
        rows += [[f"… {one}", "", "", _text(replay.loss_change(name, one)), ""] for one in replay.ablations]
    return header, rows


def start_table(replay: Replay) -> _Rows | None:
    """Return header and rows of the state each optimizer started from; None where all were warmed, as is the rule."""
    states = {name: recipe.state for name, recipe in replay.recipes.items()}
    if set(states.values()) == {"warm"}:
        return None
    words = {"checkpoint": "the checkpoint's", "warm": "warmed at fixed weights", "cold": "none"}
    return ["start", "state"], [[name, words.get(state, state)] for name, state in states.items()]


def progress_table(replay: Replay) -> _Rows:
    """Return header and rows of where each optimizer changed the loss: along flat and along sharp directions.

    A share is given where the loss fell beyond its error, the allocations account for it, and it is one with its whole
    interval, as in the verdict.
    """
    header = ["change", "flat", "sharp", "flat share", "closure"]
    rows = []
    for name in replay.optimizers:
        share, closure = replay.flat_share(name), closure_of(replay, name)
        rows.append(
            [
                name,
                *_changes(replay, name, "whole"),
                "–"
                if share is None or not has_share(replay, name)
                else terse(format_share(share.value, half_width(share))),
                "–" if closure is None else format_share(closure),
            ]
        )
    return header, rows


def part_table(replay: Replay) -> _Rows | None:
    """Return header and rows of the same on the ramp, after it, and on the eigenvectors' own batches.

    None where there is neither a ramp nor another set of batches.
    """
    same, rows = replay.on_same_batches(), []
    for name in replay.optimizers:
        rows += [[f"{name} {PART_NAMES[part]}", *_changes(replay, name, part)] for part in replay.parts[1:]]
        if same is not None:
            rows.append([f"{name} same batches", *_changes(same, name, "whole")])
    return (["of it", "flat", "sharp"], rows) if rows else None


def _changes(replay: Replay, name: str, part: ReplayPart) -> list[str]:
    """Write the loss change along flat, and along sharp directions."""
    return [_text(_negative(measure(name, part))) for measure in (replay.flat_progress, replay.sharp_progress)]


def manner_table(replay: Replay) -> _Rows:
    """Return header and rows of how each optimizer moved."""
    header = ["updates", "isotropy", "NDS", "exponent", "oscillates", "s/step"]
    rows = []
    for name in replay.optimizers:
        oscillation, exponent = replay.oscillation(name), replay.exponent(name)
        runs = len(replay.runs_of(name))
        power = _text(exponent, 1)
        if exponent is not None and exponent.num_samples < runs:
            power += f" ({exponent.num_samples}/{runs})"  # seeds; the verdict spells it out
        rows.append(
            [
                name,
                _text(replay.isotropy_entropy(name), 1),
                _text(replay.directional_sharpness(name), 1),
                power,
                _number(None if oscillation is None else float(oscillation[0].mean()), 2),
                _number(seconds_per_step(replay, name), 2),
            ]
        )
    return header, rows


def seconds_per_step(replay: Replay, name: str) -> float | None:
    """Return what a watched step took; None without one."""
    runs = [run for run in replay.runs_of(name) if run.is_recorded]
    steps = sum(run.num_steps for run in runs)
    return sum(run.seconds for run in runs) / steps if steps else None


def minus_base(replay: Replay, name: str) -> Estimate | None:
    """Return a LITE variant's final loss minus its base's, paired by seed; None without a base beside it."""
    base = base_of(replay, name)
    return None if base is None else replay.difference(name, base)


def _echo_object(echo: Echo | None) -> dict[str, Any] | None:
    """Return what became of a claim on the eigenvectors' batches; null where it was not looked for."""
    if echo is None:
        return None
    numbers = {key: None if echo.other is None else getattr(echo.other, key) for key in ("value", "low", "high")}
    return {**numbers, "is_found": echo.is_found}


def _progress_object(replay: Replay, name: str, part: ReplayPart) -> dict[str, Any]:
    return {
        "loss_change": estimate_object(replay.loss_change(name, part=part)),
        "flat_progress": estimate_object(replay.flat_progress(name, part)),
        "sharp_progress": estimate_object(replay.sharp_progress(name, part)),
    }


def _share_object(replay: Replay, name: str) -> dict[str, Any] | None:
    """Return the flat share; null where it is none, as in the tables."""
    return estimate_object(replay.flat_share(name)) if has_share(replay, name) else None


def _optimizer_object(replay: Replay, same: Replay | None, name: str) -> dict[str, Any]:
    recipe, sweep = replay.recipes[name], replay.sweeps.get(name)
    oscillation, rates = replay.oscillation(name), replay.effective_lrs(name)
    return {
        "lr": recipe.lr,
        "lr_source": recipe.lr_source,
        "hyperparameters": dict(recipe.hyperparameters),
        "state": recipe.state,
        "state_lines": list(recipe.state_lines),
        **_progress_object(replay, name, "whole"),
        **{part: _progress_object(replay, name, part) for part in ("ramp", "after")},
        "same_batches": None
        if same is None
        else {
            **_progress_object(same, name, "whole"),
            "flat_share": _share_object(same, name),
            "closure": same.closure(name),
        },
        "minus_base": estimate_object(minus_base(replay, name)),
        "ablations": {one: estimate_object(replay.loss_change(name, one)) for one in replay.ablations},
        "flat_share": _share_object(replay, name),
        "isotropy": estimate_object(replay.isotropy_entropy(name)),
        "directional_sharpness": estimate_object(replay.directional_sharpness(name)),
        "exponent": estimate_object(replay.exponent(name)),
        "oscillation": None if oscillation is None else oscillation[0].tolist(),
        "effective_lrs": None if rates is None else rates[0].tolist(),
        "closure": replay.closure(name),
        "seconds_per_step": seconds_per_step(replay, name),
        "diverged": [{"seed": run.seed, "step": run.diverged_at} for run in replay.diverged(name)],
        "sweep": None
        if sweep is None
        else {
            "lrs": sweep.lrs.tolist(),
            "losses": [None if bad else loss for loss, bad in zip(sweep.losses.tolist(), sweep.diverged, strict=True)],
            "is_inside": sweep.is_inside,
            "best": sweep.best,
            "rises": sweep.rises.tolist() or None,
        },
    }


def _number(value: float | None, digits: int) -> str:
    return terse(format_number(value, digits))


def _text(estimate: Estimate | None, digits: int = 2) -> str:
    """Write an estimate with so many digits of half of its 95% interval."""
    return "–" if estimate is None else terse(format_uncertain(estimate.value, half_width(estimate), digits))


def _negative(progress: Estimate | None) -> Estimate | None:
    """Return a loss change from progress, which is its negative."""
    if progress is None:
        return None
    return replace(progress, value=-progress.value, low=-progress.high, high=-progress.low)
