"""What results of several checkpoints must have in common to be compared, and the error that says what they have not.

Numbers are compared where they answer one question: the same data and batches, the same segment, the same measure of
the loss. Optimizers and learning rates may differ, which tables tell; under one name, hyperparameters may not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lite_probe.errors import InputError
from lite_probe.results.provenance import Note
from lite_probe.results.replay import Recipe, Replay
from lite_probe.results.spectrum import Spectrum
from lite_probe.results.steps import Steps
from lite_probe.results.subspace import SubspaceMeasurement
from lite_probe.results.training import Training

_DIGITS = 12  # of a digest, shown
Conditions = dict[str, object]


def require_comparable(labelled: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[Note, ...]:
    """Refuse results that cannot be compared; return what a reader should know of those that can.

    Args:
        labelled: (name of the checkpoint, results by kind).

    Raises:
        InputError: It names every field that differs, with its values and where they are; or two runs of one
            checkpoint.
    """
    found: dict[str, dict[str, object]] = {}  # field → checkpoint → value
    owners: dict[str, list[str]] = {}
    for label, results in labelled:
        if not results:
            raise InputError(f"expected something to compare of {label}, got no result of a kind that is compared")
        at_checkpoint = [one for kind, one in results.items() if kind != "training"]  # two runs may begin at one
        if at_checkpoint:
            owners.setdefault(at_checkpoint[0].provenance.checkpoint_fingerprint, []).append(label)
        for kind, result in results.items():
            for name, value in conditions_of(kind, result).items():
                found.setdefault(f"{name} of the {kind}", {})[label] = value
    if doubles := [labels for labels in owners.values() if len(labels) > 1]:
        raise InputError(
            f"expected every checkpoint once, got the same one as {' and '.join(doubles[0])}",
            "name one run directory of it",
        )
    differing = [(name, values) for name, values in found.items() if len({repr(one) for one in values.values()}) > 1]
    if differing:
        said = "; ".join(f"{name}: {_values(values)}" for name, values in differing)
        raise InputError(
            f"expected results that can be compared, got others in {len(differing)} "
            f"{'field' if len(differing) == 1 else 'fields'}: {said}",
            "measure them alike: lite-probe compare CKPT… takes one set of options for all",
        )
    return _notes(labelled)


def conditions_of(kind: str, result: Any) -> Conditions:
    """Return what has to be the same at every checkpoint, by readable name."""
    origin = result.provenance
    shared: Conditions = {
        "model": f"{result.num_parameters:,} parameters",
        "data": origin.data_name,
        "split": origin.data_split,
        "batches": f"{origin.num_batches} × {origin.batch_size} × {origin.seq_len} ({_short(origin.batches_digest)})",
        "precision": origin.precision,
        "seed": origin.seed,
    }
    own: Conditions = _OWN[kind](result)
    return shared | own


def _of_spectrum(spectrum: Spectrum) -> Conditions:
    return {"operator": spectrum.operator}


def _of_subspace(subspace: SubspaceMeasurement) -> Conditions:
    return {"dimension": subspace.size}


def _of_training(training: Training) -> Conditions:
    return {"eigenpairs": training.top}


def _of_steps(steps: Steps) -> Conditions:
    digest = steps.provenance.details.get("batches of the steps", "")
    return {
        "tokens of a step": steps.batch_tokens,
        "step batches": f"{steps.num_batches}{f' ({_short(digest)})' if digest else ''}",
        **_settings([one.recipe for one in steps.optimizers.values()]),
    }


def _of_replay(replay: Replay) -> Conditions:
    segments: dict[int, str] = {run.seed: run.batches_digest for run in replay.runs}
    return {
        "steps": replay.steps,
        "ramp": replay.ramp,
        "seeds": replay.num_seeds,
        "segment": ", ".join(_short(segments[seed]) for seed in sorted(segments)),
        "rule": replay.rule,
        "tolerance": replay.tolerance,
        "bands": f"those of {replay.bands.optimizer}",
        **_settings(list(replay.recipes.values())),
    }


_OWN: Mapping[str, Any] = {
    "spectrum": _of_spectrum,
    "subspace": _of_subspace,
    "steps": _of_steps,
    "replay": _of_replay,
    "training": _of_training,
}


def _settings(recipes: Sequence[Recipe]) -> Conditions:
    return {
        f"hyperparameters of {one.optimizer}": dict(sorted(one.hyperparameters.items())) or "defaults"
        for one in recipes
    }


def _short(digest: str) -> str:
    return digest[:_DIGITS]


def _values(values: Mapping[str, object]) -> str:
    """Write each value once, with the checkpoints that have it."""
    holders: dict[str, list[str]] = {}
    for label, value in values.items():
        holders.setdefault(str(value), []).append(label)
    return ", ".join(f"{value} at {' and '.join(labels)}" for value, labels in holders.items())


def _notes(labelled: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[Note, ...]:
    """Say what differs and may matter in the last digits, and where optimizers started otherwise."""
    notes = []
    origins = [(label, one.provenance) for label, found in labelled for one in found.values()]
    for title, values in (
        ("machines", {label: origin.device for label, origin in origins}),
        ("versions of lite-probe", {label: origin.lite_probe_version for label, origin in origins}),
    ):
        if len(set(values.values())) > 1:
            notes.append(Note(code="measured-apart", message=f"Measured with other {title}: {_values(values)}."))
    replays: list[tuple[str, Replay]] = [(label, found["replay"]) for label, found in labelled if "replay" in found]
    sharp: dict[str, object] = {label: len(replay.eigenvalues) for label, replay in replays}
    if len(set(sharp.values())) > 1:
        message = f"Flat and sharp progress are of other numbers of sharp directions: {_values(sharp)}."
        notes.append(Note(code="other-sharp", message=message))
    states: dict[str, dict[str, object]] = {}
    for label, replay in replays:
        for name, recipe in replay.recipes.items():
            states.setdefault(name, {})[label] = recipe.state
    for name, kinds in states.items():
        if len(set(kinds.values())) > 1:
            notes.append(
                Note(code="other-state", message=f"{name} started from another kind of state: {_values(kinds)}.")
            )
    return tuple(notes)
