"""Optimizers and checkpoints side by side, made of saved results alone.

What was measured at each checkpoint is collected by quantity, each with its interval, and with its samples by seed or
batch where there are some. Differences of optimizers are paired by seed, and so are those of checkpoints: a segment's
batches are the same at all of them, or they are not compared. The comparisons that answer one question are decided
together over all checkpoints, after Holm's correction; each has its own 95% interval.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from lite_probe.errors import InputError
from lite_probe.results.claim import decide
from lite_probe.results.comparability import require_comparable
from lite_probe.results.estimate import Estimate, Ratio
from lite_probe.results.kinds import KINDS
from lite_probe.results.provenance import Note
from lite_probe.results.replay import Replay, ReplayRun, base_name
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum
from lite_probe.results.steps import CriticalSteps, OptimizerSteps, Steps
from lite_probe.results.store import load
from lite_probe.results.subspace import SubspaceMeasurement, root_mean_square_condition
from lite_probe.results.training import Training, TrainingPoint

Results = Mapping[str, Any]  # by kind
Samples = Mapping[int, float]  # by seed, or by batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What is compared.

    Attributes:
        name: In programs, and in thresholds: "loss_change".
        title: For people.
        unit: Of its values.
        of: Whose it is: "optimizer", or the name of a measurement of the landscape.
        samples: What its samples are: "seed" or "training batch"; empty where it has none that could be paired.
        is_factor: Whether it is compared by ratios: its samples are logarithms.
    """

    name: str
    title: str
    unit: str
    of: str = "optimizer"
    samples: str = ""
    is_factor: bool = False


CURVATURE = "loss/param²"
QUANTITIES: dict[str, Quantity] = {
    one.name: one
    for one in (
        Quantity(name="loss_change", title="loss change", unit="nats", samples="seed"),
        Quantity(name="flat_progress", title="flat progress", unit="nats", samples="seed"),
        Quantity(name="sharp_progress", title="sharp progress", unit="nats", samples="seed"),
        Quantity(name="isotropy", title="isotropy", unit="", samples="seed"),
        Quantity(name="directional_sharpness", title="NDS", unit=CURVATURE, samples="seed"),
        Quantity(name="edge_ratio", title="edge ratio", unit="", samples="training batch", is_factor=True),
        Quantity(name="critical_lr", title="critical lr", unit="", samples="training batch", is_factor=True),
    )
}
LANDSCAPE: dict[str, Quantity] = {
    one.name: one
    for one in (
        Quantity(name="loss", title="loss", unit="nats", of="spectrum"),
        Quantity(name="lambda_1", title="λ₁", unit=CURVATURE, of="spectrum"),
        Quantity(name="trace", title="trace", unit=CURVATURE, of="spectrum"),
        Quantity(name="anisotropy", title="anisotropy", unit="", of="spectrum"),
        Quantity(name="gradient_share", title="gradient share", unit="", of="subspace"),
    )
}
HELD_OUT = "held out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One optimizer at one checkpoint."""

    lr: float
    finished: int  # seeds that reached the end; 0 where it was not replayed
    diverged: tuple[int, ...]  # seeds
    values: Mapping[str, Estimate]  # by quantity
    samples: Mapping[str, Samples]  # by quantity; logarithms of those that are compared by ratios
    widths: Mapping[str, float]  # by quantity, of the bracket that each sample is only known to be in
    ratios: Mapping[str, Ratio]  # χ̂ by block


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What was measured at one checkpoint."""

    label: str
    step: int | None
    fingerprint: str
    kinds: tuple[str, ...]  # of measurement that there are
    landscape: Mapping[str, Estimate]  # by quantity; of λ₁ the bounds are residuals
    block_lambda_1: Mapping[str, Estimate]  # by block
    entries: Mapping[str, Entry]  # by optimizer
    rounding: float  # nats, below which a difference of losses is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a difference: an optimizer, or a measurement of the landscape, at a checkpoint."""

    subject: str
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first side minus the second, or the logarithm of their ratio where the quantity is compared by ratios."""

    question: str  # which it helps to answer, together with all others of it
    quantity: str
    first: Side
    second: Side
    estimate: Estimate
    sign: int  # 0 where it is not told from zero after the correction
    comparisons: int  # that were decided together
    is_rounding: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Who ends lowest at one checkpoint."""

    checkpoint: str
    winner: str | None  # told from every other one that reached the end; None where nobody is
    level: tuple[str, ...]  # whoever has the lowest mean, and those not told from it
    has_error: bool  # more than one seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """A training run that was measured along its way."""

    label: str
    values: Mapping[str, tuple[tuple[int, Estimate], ...]]  # by quantity, (step, value within its bounds), ascending


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Optimizers by checkpoints, in the order of training where steps are known."""

    checkpoints: tuple[Checkpoint, ...]
    trajectories: tuple[Trajectory, ...] = ()
    differences: tuple[Difference, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def optimizers(self) -> tuple[str, ...]:
        """All that were measured anywhere, in the order in which they come up."""
        return tuple(dict.fromkeys(name for one in self.checkpoints for name in one.entries))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the checkpoints."""
        return tuple(one.label for one in self.checkpoints)

    def at(self, label: str) -> Checkpoint:
        """Return a checkpoint by its name."""
        return next(one for one in self.checkpoints if one.label == label)

    def value(self, side: Side, quantity: str) -> Estimate | None:
        """Return a quantity of an optimizer, or of the landscape; None where it was not measured."""
        found = self.at(side.checkpoint)
        if quantity in LANDSCAPE:
            return found.landscape.get(quantity)
        entry = found.entries.get(side.subject)
        return None if entry is None else entry.values.get(quantity)

    def subtract(self, quantity: str, first: Side, second: Side, other: str = "") -> Estimate | None:
        """Return one side minus another: paired where there are samples, of independent errors where there are none.

        Args:
            quantity: Of the first.
            first: Minuend.
            second: Subtrahend.
            other: The second's quantity, where that is another one in the same unit.

        Returns:
            The difference, of logarithms where the quantity is compared by ratios; None where a side is missing, or
            the two have no sample in common.
        """
        if quantity in LANDSCAPE:
            return _independent(self.value(first, quantity), self.value(second, other or quantity))
        sides = [(self.at(side.checkpoint).entries.get(side.subject), side) for side in (first, second)]
        entries = [entry for entry, _ in sides if entry is not None]
        if len(entries) < 2:
            return None
        names = (quantity, other or quantity)
        one, two = (entry.samples.get(name, {}) for entry, name in zip(entries, names, strict=True))
        width = sum(entry.widths.get(name, 0.0) ** 2 for entry, name in zip(entries, names, strict=True)) ** 0.5
        return over_samples([one[key] - two[key] for key in sorted(one.keys() & two.keys())], width)

    def of_question(self, question: str) -> tuple[Difference, ...]:
        """Return the differences that were decided together for one question."""
        return tuple(one for one in self.differences if one.question == question)

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Who ends lowest, by checkpoint; only of those from which there was a replay that someone finished."""
        return tuple(found for one in self.checkpoints if (found := self._standing(one)) is not None)

    def _standing(self, checkpoint: Checkpoint) -> Standing | None:
        means = {
            name: found.value
            for name, entry in checkpoint.entries.items()
            if (found := entry.values.get("loss_change")) is not None
        }
        if not means:
            return None
        below = set()
        for one in self.of_question(LOSSES):
            if one.first.checkpoint == checkpoint.label and one.sign:
                pair = (one.first.subject, one.second.subject)
                below.add(pair if one.sign < 0 else pair[::-1])
        unbeaten = [name for name in means if not any((other, name) in below for other in means)] or [*means]
        best = min(unbeaten, key=means.__getitem__)
        level = tuple(name for name in means if name == best or (best, name) not in below)
        has_error = max(checkpoint.entries[name].finished for name in means) > 1
        is_won = len(level) == 1 and len(means) > 1
        return Standing(checkpoint=checkpoint.label, winner=best if is_won else None, level=level, has_error=has_error)


LOSSES = "of final losses"
PROGRESS = "of progress with a base's"
LOSSES_MOVED = "of loss changes at the first and last checkpoint"
PROGRESS_MOVED = "of progress at the first and last checkpoint"
STEPS_MOVED = "of critical steps at the first and last checkpoint"
LANDSCAPE_MOVED = "of the landscape at the first and last checkpoint"


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Compare saved results over checkpoints and optimizers; nothing is measured.

    Args:
        runs: Run directories, or results in them.

    Returns:
        Quantities, paired differences and who ends lowest, by checkpoint.

    Raises:
        InputError: If a run has nothing to compare or was damaged, two are of one checkpoint, or what there is cannot
            be compared: it says which field differs, where.
    """
    if not runs:
        raise InputError("expected run directories to compare, got none", "name some: probe/early probe/late")
    found = [load_results(run) for run in runs]
    origins = [next(iter(results.values())).provenance for results in found]
    labels = [origin.checkpoint_name for origin in origins]
    further = (
        ["" if origin.checkpoint_step is None else f"step {origin.checkpoint_step:,}" for origin in origins],
        [f"run {number}" for number in range(1, len(runs) + 1)],
    )
    for added in further:
        if len(set(labels)) < len(labels):
            labels = [f"{label}, {one}" if one else label for label, one in zip(labels, added, strict=True)]
    return compare_results(list(zip(labels, found, strict=True)))


def load_results(path: str | Path) -> Results:
    """Read what can be compared of a run directory.

    Raises:
        InputError: If there is nothing, or it was damaged.
    """
    folder = Path(path)
    folder = folder.parent if folder.is_file() else folder
    present = [kind for kind in COMPARED if (folder / f"{kind}.json").is_file()]
    if not present:
        others = [kind for kind in KINDS if (folder / f"{kind}.json").is_file()]
        got = f"only {', '.join(others)}" if others else "none"
        raise InputError(
            f"expected a run directory with a result of {', '.join(COMPARED)}, got {got} in {folder}",
            "measure first: lite-probe compare CKPT… does, with --data",
        )
    return {kind: load(folder, kind, thorough=False) for kind in present}


def compare_results(labelled: Sequence[tuple[str, Results]]) -> Comparison:
    """Compare results by checkpoint.

    Args:
        labelled: (name, results by kind); names differ. Kinds that nothing is compared of are left out.

    Raises:
        InputError: As `compare`.
    """
    known = [(label, {kind: one for kind, one in results.items() if kind in COMPARED}) for label, results in labelled]
    notes = require_comparable(known)
    trajectories = tuple(_trajectory(label, results["training"]) for label, results in known if "training" in results)
    checkpoints = [_checkpoint(label, results) for label, results in known if {*results} - {"training"}]
    steps = [one.step for one in checkpoints if one.step is not None]
    if len(set(steps)) == len(checkpoints):
        checkpoints = [checkpoints[place] for place in np.argsort(steps, kind="stable").tolist()]
    comparison = Comparison(checkpoints=tuple(checkpoints), trajectories=trajectories, notes=notes)
    asked = {
        LOSSES: [("loss_change", *pair) for pair in _pairs(comparison, "loss_change", combinations)],
        PROGRESS: [
            (quantity, *pair)
            for quantity in ("flat_progress", "sharp_progress")
            for pair in _pairs(comparison, quantity, _with_bases)
        ],
        LOSSES_MOVED: _moved(comparison, "loss_change"),
        PROGRESS_MOVED: [*_moved(comparison, "flat_progress"), *_moved(comparison, "sharp_progress")],
        STEPS_MOVED: _moved(comparison, "critical_lr"),
        LANDSCAPE_MOVED: [one for name in ("lambda_1", "trace", "anisotropy") for one in _moved(comparison, name)],
    }
    differences = [one for question, pairs in asked.items() for one in _decide(comparison, question, pairs)]
    return replace(comparison, differences=tuple(differences))


# Questions

Pair = tuple[Side, Side]
Asked = tuple[str, Side, Side]  # quantity, and whose


def _pairs(
    comparison: Comparison, quantity: str, choose: Callable[[Sequence[str], int], Iterable[tuple[str, ...]]]
) -> list[Pair]:
    """Return pairs of optimizers at each checkpoint."""
    found: list[Pair] = []
    for one in comparison.checkpoints:
        names = [name for name, entry in one.entries.items() if quantity in entry.values]
        for first, second in choose(names, 2):
            found.append((Side(subject=first, checkpoint=one.label), Side(subject=second, checkpoint=one.label)))
    return found


def _with_bases(names: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [(name, base) for name in names if (base := base_name(name)) != name and base in names]


def _moved(comparison: Comparison, quantity: str) -> list[Asked]:
    """Return a quantity's last checkpoint against its first, of every optimizer or of the landscape."""
    subjects = [LANDSCAPE[quantity].of] if quantity in LANDSCAPE else comparison.optimizers
    found = []
    for subject in subjects:
        sides = [Side(subject=subject, checkpoint=label) for label in comparison.labels]
        there = [side for side in sides if comparison.value(side, quantity) is not None]
        if len(there) > 1:
            found.append((quantity, there[-1], there[0]))
    return found


def _decide(comparison: Comparison, question: str, asked: Sequence[Asked]) -> list[Difference]:
    """Decide the differences of one question together; those without two samples are none."""
    estimates = [
        (one, found) for one in asked if (found := comparison.subtract(*one)) is not None and found.num_samples != 1
    ]
    least = max((one.rounding for one in comparison.checkpoints), default=0.0)
    rounding = least if question in (LOSSES, PROGRESS, LOSSES_MOVED, PROGRESS_MOVED) else 0.0
    signs = decide([estimate for _, estimate in estimates], rounding=rounding)
    return [
        Difference(
            question=question,
            quantity=quantity,
            first=first,
            second=second,
            estimate=estimate,
            sign=sign,
            comparisons=len(estimates),
            is_rounding=max(abs(estimate.value), estimate.stderr) <= rounding,
        )
        for ((quantity, first, second), estimate), sign in zip(estimates, signs, strict=True)
    ]


def over_samples(samples: Sequence[float], width: float = 0.0) -> Estimate | None:
    """Return the mean with its 95% interval; one sample alone has none, no sample no mean.

    Args:
        samples: (m,).
        width: Of the bracket that each is only known to be in.
    """
    if not samples:
        return None
    if len(samples) == 1:
        value = samples[0]
        return Estimate(value=value, stderr=0.0, low=value, high=value, num_samples=1)
    return Estimate.from_samples(np.array(samples), least_stderr=width / float(np.sqrt(12.0 * len(samples))))


def _independent(one: Estimate | None, other: Estimate | None) -> Estimate | None:
    """Return the difference of two values whose errors have nothing in common.

    Bounds, which have no samples, add up; of estimates squares do, with the degrees of freedom of the one that has
    fewer.
    """
    if one is None or other is None:
        return None
    value = one.value - other.value
    counts = [each.num_samples for each in (one, other) if each.num_samples > 0]
    if 1 in counts:
        return Estimate(value=value, stderr=0.0, low=value, high=value, num_samples=1)
    down, up = (one.value - one.low, other.high - other.value), (one.high - one.value, other.value - other.low)
    return Estimate(
        value=value,
        stderr=float(np.hypot(one.stderr, other.stderr)) if counts else 0.0,
        low=value - _joined(down, has_samples=bool(counts)),
        high=value + _joined(up, has_samples=bool(counts)),
        num_samples=min(counts, default=0),
    )


def _joined(parts: tuple[float, float], *, has_samples: bool) -> float:
    return float(np.hypot(*parts)) if has_samples else sum(parts)


# What a checkpoint's results hold


def _checkpoint(label: str, results: Results) -> Checkpoint:
    origin = next(iter(results.values())).provenance
    replay: Replay | None = results.get("replay")
    steps: Steps | None = results.get("steps")
    names = dict.fromkeys([*(replay.optimizers if replay else ()), *(steps.optimizers if steps else ())])
    spectrum: Spectrum | None = results.get("spectrum")
    return Checkpoint(
        label=label,
        step=origin.checkpoint_step,
        fingerprint=origin.checkpoint_fingerprint,
        kinds=tuple(kind for kind in results if kind != "training"),
        landscape=_landscape(spectrum, results.get("subspace")),
        block_lambda_1={
            block: found
            for block, one in (spectrum.blocks if spectrum else {}).items()
            if (found := _lambda_1(one)) is not None
        },
        entries={name: _entry(name, replay, steps) for name in names},
        rounding=replay.rounding if replay else 0.0,
    )


def _landscape(spectrum: Spectrum | None, subspace: SubspaceMeasurement | None) -> dict[str, Estimate]:
    found: dict[str, Estimate | None] = {}
    if spectrum is not None:
        whole = spectrum.whole
        found |= {
            "loss": Estimate.certain(spectrum.loss),
            "lambda_1": _lambda_1(whole),
            "trace": whole.trace if whole.num_probes else None,
            "anisotropy": _anisotropy(whole),
        }
    if subspace is not None:
        found["gradient_share"] = subspace.batch_gradient_share
    return {name: one for name, one in found.items() if one is not None}


def _lambda_1(spectrum: OperatorSpectrum) -> Estimate | None:
    """Return the largest eigenvalue within its residual, which bounds it."""
    if not len(spectrum.eigenvalues):
        return None
    return _within(float(spectrum.eigenvalues[0]), float(spectrum.residual_norms[0]))


def _anisotropy(spectrum: OperatorSpectrum) -> Estimate | None:
    """Return λ₁/√(tr H²/N); None where tr H² cannot be told from zero. Its error is that of tr H²."""
    value, squares = root_mean_square_condition(spectrum), spectrum.trace_h2
    if value is None or squares.low <= 0.0 or not spectrum.num_probes:
        return None
    ends = [value * float(np.sqrt(squares.value / end)) for end in (squares.high, squares.low)]
    stderr = 0.5 * value * squares.stderr / squares.value
    return Estimate(value=value, stderr=stderr, low=ends[0], high=ends[1], num_samples=squares.num_samples)


def _entry(name: str, replay: Replay | None, steps: Steps | None) -> Entry:
    values: dict[str, Estimate] = {}
    samples: dict[str, Samples] = {}
    widths: dict[str, float] = {}
    ratios: dict[str, Ratio] = {}
    rates: list[float] = []
    finished = 0
    diverged: tuple[int, ...] = ()
    if replay is not None and name in replay.recipes:
        rates.append(replay.recipes[name].lr)
        finished = len(replay.runs_of(name))
        diverged = tuple(run.seed for run in replay.diverged(name))
        found, samples = _of_replay(replay, name)
        values |= found
    own = None if steps is None else steps.optimizers.get(name)
    if own is not None:
        rates.append(own.recipe.lr)
        ratios = {block: ratio for block in own.blocks if (ratio := own.implied_ratio(block)) is not None}
        critical = own.critical.get(HELD_OUT)
        if critical is not None:
            found, logs, width = _of_steps(own, critical)
            values |= found
            samples |= logs
            widths = dict.fromkeys(logs, width)
    return Entry(
        lr=rates[0],
        finished=finished,
        diverged=diverged,
        values=values,
        samples=samples,
        widths=widths,
        ratios=ratios,
    )


def _of_replay(replay: Replay, name: str) -> tuple[dict[str, Estimate], dict[str, Samples]]:
    """Return what a replay says of an optimizer, and by seed."""
    measured: dict[str, tuple[Estimate | None, Callable[[ReplayRun], float]]] = {
        "loss_change": (replay.loss_change(name), lambda run: run.loss_change),
        "flat_progress": (replay.flat_progress(name), lambda run: -float(run.flat_allocations.sum())),
        "sharp_progress": (replay.sharp_progress(name), lambda run: -float(run.sharp_allocations.sum())),
        "isotropy": (replay.isotropy_entropy(name), lambda run: run.isotropy_entropy(replay.bands.dimensions)),
        "directional_sharpness": (
            replay.directional_sharpness(name),
            lambda run: float(run.directional_sharpness.mean()),
        ),
    }
    there = {quantity: pair for quantity, pair in measured.items() if pair[0] is not None}
    runs = replay.runs_of(name)
    return {quantity: value for quantity, (value, _) in there.items() if value is not None}, {
        quantity: {run.seed: of(run) for run in runs if quantity == "loss_change" or run.is_recorded}
        for quantity, (_, of) in there.items()
    }


def _of_steps(steps: OptimizerSteps, critical: CriticalSteps) -> tuple[dict[str, Estimate], dict[str, Samples], float]:
    """Return the step over the critical one, held out, and the critical learning rate, with logarithms by batch."""
    ratio, lr = critical.edge_ratio, steps.recipe.lr
    if ratio is None:
        return {}, {}, 0.0
    rate = Estimate(
        value=lr / ratio.value,
        stderr=lr * ratio.stderr / ratio.value**2,
        low=lr / ratio.high,
        high=lr / ratio.low,
        num_samples=ratio.num_samples,
    )
    logs = (0.5 * np.log(critical.low * critical.high)).tolist()
    width = float(np.max(np.log(critical.high / critical.low)))
    samples: dict[str, Samples] = {
        "edge_ratio": {place: -one for place, one in enumerate(logs)},
        "critical_lr": {place: float(np.log(lr)) + one for place, one in enumerate(logs)},
    }
    return {"edge_ratio": ratio, "critical_lr": rate}, samples, width


def _trajectory(label: str, training: Training) -> Trajectory:
    """Return what a training run's points say; those that have no such value are left out."""
    measured: dict[str, Callable[[TrainingPoint], Estimate | None]] = {
        "loss": lambda point: Estimate.certain(point.loss),
        "lambda_1": lambda point: _within(point.eigenvalues[0], point.residual_norms[0]) if point.eigenvalues else None,
        "gradient_share": lambda point: (
            None if point.gradient_share is None else Estimate.certain(point.gradient_share)
        ),
        "edge_ratio": lambda point: _bracketed(point, 1.0, is_inverse=True),
        "critical_lr": lambda point: _bracketed(point, point.learning_rate),
    }
    values = {
        quantity: tuple((point.step, value) for point in training.points if (value := read(point)) is not None)
        for quantity, read in measured.items()
    }
    return Trajectory(label=label, values={quantity: points for quantity, points in values.items() if points})


def _within(value: float, bound: float) -> Estimate:
    return Estimate(value=value, stderr=0.0, low=value - bound, high=value + bound, num_samples=0)


def _bracketed(point: TrainingPoint, unit: float | None, *, is_inverse: bool = False) -> Estimate | None:
    """Return a point's critical multiple in a unit, or over 1, within its bracket; None where none was found."""
    bounds = point.critical_bounds
    if bounds is None or unit is None:
        return None
    low, high = (1.0 / bounds[1], 1.0 / bounds[0]) if is_inverse else (unit * bounds[0], unit * bounds[1])
    return Estimate(value=float(np.sqrt(low * high)), stderr=0.0, low=low, high=high, num_samples=0)


COMPARED = ("spectrum", "subspace", "steps", "replay", "training")  # kinds of measurement
