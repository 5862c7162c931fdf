"""LITE's settings that follow from an optimizer's steps, and the command that starts a replay at them."""

import json
import shlex
from collections.abc import Mapping

from lite_probe.reports.sections.steps_verdict import bounded_ratio, judge_ratios, least_ratio
from lite_probe.reports.verdict import join_names
from lite_probe.results.steps import OptimizerSteps, Steps

_WITH_LITE = ("adamw", "muon", "soap")
# Options of a measurement that say which task and which start, with their values; a replay has them, too.
_SHARED = (
    *("--data", "--tokenizer", "--text-field", "--seq-len", "--batch-size", "--batches", "--task", "--model-config"),
    *("--blocks", "--device", "--precision", "--threads", "--state", "--warm-batches", "--memory", "--seed", "--out"),
    *("--scratch", "--config"),
)
_OWN = (  # of `lite-probe steps` and `lite-probe tune`
    *("--optimizers", "--lr", "--set", "--step-batches", "--critical-batches", "--sweep-steps", "--relative"),
    *("--optimizer", "--nodes", "--topology", "--method", "--upper", "--lower", "--iterations", "--node-batches"),
    *("--shards", "--replay-steps", "--seeds", "--format", "--table"),
)
_PLACEHOLDERS = ["CKPT", "--data", "DATA"]

REST = "Ratios are of one step and rest on the curvature here: over many steps less may be better, which a replay tells"

Settings = Mapping[str, Mapping[str, Mapping[str, float]]]  # optimizer → hyperparameter → block → value


def implied_settings(steps: Steps) -> Settings:
    """Return LITE's settings per optimizer, for the blocks whose χ̂ is told from 1.

    χ̂ becomes `flat_lr_ratio`, at least 1, to two digits, or its lower end where it has no other. The share of
    directions in its leading bands whose optimum is below half the flat one's becomes `sharp_ratio` where there are
    some. Other blocks keep LITE's defaults.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (name, block), claim in judge_ratios(steps).items():
        if name not in _WITH_LITE or claim.status == "open":
            continue
        own = found.setdefault(f"{name}-lite", {"flat_lr_ratio": {}})
        own["flat_lr_ratio"][block] = float(f"{max(1.0, _ratio(steps.optimizers[name], block)):.2g}")
        share = steps.optimizers[name].implied_sharp_share(block)
        if claim.status == "holds" and share is not None and share.value > 0.0:
            own.setdefault("sharp_ratio", {})[block] = float(f"{share.value:.3g}")
    return found


def _ratio(one: OptimizerSteps, block: str) -> float:
    bounded = bounded_ratio(one, block)
    return least_ratio(one, block) if bounded is None else bounded.value


def replay_command(steps: Steps) -> str:
    """Return the command line that replays every optimizer beside its LITE variant at the implied settings.

    Empty where none are implied. Checkpoint and batches are those of the command that measured the steps. The settings
    rest on the curvature at one place: the replay says for how many steps that predicts the loss.
    """
    settings = implied_settings(steps)
    if not settings:
        return ""
    pairs = [(name.removesuffix("-lite"), name) for name in settings]
    names = [name for pair in pairs for name in pair]
    rates = [f"{name}={steps.optimizers[base].recipe.lr!r}" for base, lite in pairs for name in (base, lite)]
    words = ["lite-probe", "replay", *task_words(steps.provenance.command, "steps")]
    words += ["--optimizers", ",".join(names), "--lr", ",".join(rates), "--horizon"]
    for name, own in settings.items():
        for key, by_block in own.items():
            words += ["--set", f"{name}.{key}={json.dumps(by_block)}"]
    return shlex.join(words)


def doubtful(steps: Steps) -> str:
    """Say which implied ratios may be too large, since the loss rises before the edge along non-sharp directions.

    Empty where none is.
    """
    found = []
    for name, own in implied_settings(steps).items():
        base = name.removesuffix("-lite")
        joint = steps.optimizers[base].joint
        checks = {block: None if joint is None else joint.check(block, "rest") for block in own["flat_lr_ratio"]}
        nearer = [block for block, check in checks.items() if check is not None and check.answer == "edge is nearer"]
        if nearer:
            found.append(f"in {join_names(nearer)} under {base}")
    if not found:
        return ""
    where = join_names(found)
    return f"Along non-sharp directions the edge is nearer than curvature says {where}: less may be better there."


def task_words(command: str, measured: str) -> list[str]:
    """Return what a command line says of checkpoint, batches and start; placeholders where it is not one of ours.

    Args:
        command: Of provenance.
        measured: The command's name: "steps" or "tune".
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return _PLACEHOLDERS
    if words[:2] != ["lite-probe", measured]:
        return _PLACEHOLDERS
    kept: list[str] = []
    rest = iter(words[2:])
    for word in rest:
        option, equals, _ = word.partition("=")
        if option in _SHARED:
            kept += [word] if equals else [word, next(rest, "")]
        elif option in _OWN:
            _ = equals or next(rest, "")
        elif not word.startswith("-") or word == "--trust-pickle":
            kept.append(word)
    return kept or _PLACEHOLDERS
