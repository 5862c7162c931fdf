"""LITE's training folders: pytorch_model.bin, optimizer.pt, training_state.json, and no config.json.

The model's config lies in `optimizer.pt` under `config.model`, written there with the rest of the run's settings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lite_probe.checkpoints.checkpoint import Checkpoint
from lite_probe.checkpoints.huggingface import (
    OPTIMIZER_FILE,
    find_tokenizer,
    folder_step,
    has_weights,
    read_weights,
    schedule_beside,
    states_beside,
)
from lite_probe.checkpoints.pickles import read_torch_file
from lite_probe.checkpoints.state_dicts import as_mapping
from lite_probe.errors import InputError

STATE_FILE = "training_state.json"


def is_lite_folder(folder: Path) -> bool:
    """Say whether a folder holds weights and a training state but no config.json."""
    if (folder / "config.json").exists() or not has_weights(folder):
        return False
    return (folder / OPTIMIZER_FILE).is_file() or (folder / STATE_FILE).is_file()


def read(folder: Path, *, trust_pickle: bool, model_config: Mapping[str, Any] | None) -> Checkpoint:
    """Read a LITE training folder.

    Args:
        folder: See `is_lite_folder`.
        trust_pickle: As for `open_checkpoint`.
        model_config: In place of the one in optimizer.pt.

    Raises:
        InputError: If weights are damaged or no model config is found.
        UnsafePickleError: If a file asks for a name outside the allow-list.
    """
    if model_config is None and (folder / OPTIMIZER_FILE).is_file():
        model_config = _saved_config(read_torch_file(folder / OPTIMIZER_FILE, trust_pickle=trust_pickle))
    if model_config is None:
        raise InputError(
            f"expected the model's config in {folder / OPTIMIZER_FILE} under config.model, got none",
            "pass --model-config CONFIG.json",
        )
    return Checkpoint(
        path=folder,
        format="lite",
        weights=read_weights(folder, trust_pickle=trust_pickle),
        model_config=model_config,
        step=folder_step(folder),
        tokenizer_path=find_tokenizer(folder),
        read_states=states_beside(folder, trust_pickle=trust_pickle),
        read_schedule=schedule_beside(folder, OPTIMIZER_FILE, trust_pickle=trust_pickle),
    )


def _saved_config(saved: object) -> Mapping[str, Any] | None:
    """Return `config.model` of what optimizer.pt held; run settings may be dicts or namespaces."""
    settings = as_mapping((as_mapping(saved) or {}).get("config")) or {}
    return as_mapping(settings.get("model")) or None
