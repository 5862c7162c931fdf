"""Single files of `torch.save`: nanoGPT's, Lightning's, and whatever else a training script wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lite_probe.checkpoints import nanogpt
from lite_probe.checkpoints.checkpoint import Checkpoint
from lite_probe.checkpoints.json_files import as_json
from lite_probe.checkpoints.models import build_skeleton, parse_config
from lite_probe.checkpoints.optimizers import find_schedule, states_of
from lite_probe.checkpoints.pickles import read_torch_file
from lite_probe.checkpoints.state_dicts import find_state_dict, find_step, model_prefix, unwrap
from lite_probe.checkpoints.weights import MappedWeights, RenamedWeights, Weights
from lite_probe.errors import shown_name
from lite_probe.results.provenance import Note

LIGHTNING_KEYS = ("pytorch-lightning_version", "lightning_version")


def read(path: Path, *, trust_pickle: bool, model_config: Mapping[str, Any] | None) -> Checkpoint:
    """Read one file of `torch.save`.

    Args:
        path: The file.
        trust_pickle: As for `open_checkpoint`.
        model_config: Of the model whose state dict it holds; for nanoGPT laid over its own.

    Raises:
        InputError: If it is damaged or holds no state dict.
        UnsafePickleError: If it asks for a name outside the allow-list.
    """
    saved = read_torch_file(path, trust_pickle=trust_pickle)
    whole, saved = saved, unwrap(saved, path.name)
    if nanogpt.is_nanogpt(saved):
        return nanogpt.read(path, saved, model_config=model_config)
    lightning = isinstance(saved, Mapping) and any(key in saved for key in LIGHTNING_KEYS)
    weights: Weights = MappedWeights(find_state_dict(saved, path.name), [path])
    weights, notes = fit_names(weights, model_config)
    return Checkpoint(
        path=path,
        format="lightning" if lightning else "torch",
        weights=weights,
        model_config=model_config,
        step=find_step(saved, whole),
        read_states=states_of(path, saved, whole),
        read_schedule=lambda: find_schedule(saved),
        notes=notes,
    )


def fit_names(weights: Weights, model_config: Mapping[str, Any] | None) -> tuple[Weights, tuple[Note, ...]]:
    """Remove the attribute under which a wrapper holds the model: `net.lm_head.weight` → `lm_head.weight`.

    Tensors outside of it (a metric, a teacher) are left out, with a note.

    Args:
        weights: As saved.
        model_config: Tells the names to look for; None leaves all names as they are.

    Returns:
        The weights by the model's names, and notes.

    Raises:
        InputError: If the config makes no model.
    """
    if model_config is None:
        return weights, ()
    skeleton = build_skeleton(parse_config(as_json(model_config), num_tensors=len(weights.metas)))
    prefix = model_prefix(weights.metas, (name for name, _ in skeleton.named_parameters()))
    if not prefix:
        return weights, ()
    names = {name.removeprefix(prefix): name for name in weights.metas if name.startswith(prefix)}
    outside = sorted(set(weights.metas) - set(names.values()))
    notes: tuple[Note, ...] = ()
    if outside:
        first = ", ".join(map(shown_name, outside[:4]))
        message = f"{len(outside):,} tensors outside of {shown_name(prefix)} are not part of the model: {first}."
        notes = (Note(code="ignored-tensors", message=message),)
    return RenamedWeights(weights, names), notes
