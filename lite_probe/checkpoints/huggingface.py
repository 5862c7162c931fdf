"""Folders that `save_pretrained` writes: config.json and weights, in one file or in shards."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lite_probe.checkpoints.checkpoint import Checkpoint
from lite_probe.checkpoints.json_files import read_json_object
from lite_probe.checkpoints.optimizers import (
    ScheduleReader,
    StateDict,
    StateReader,
    find_schedule,
    find_state_dicts,
    no_schedule,
    no_states,
)
from lite_probe.checkpoints.pickles import read_torch_file, verify_torch_file
from lite_probe.checkpoints.state_dicts import find_state_dict, find_step
from lite_probe.checkpoints.weights import MappedWeights, RenamedWeights, SafetensorsWeights, Weights
from lite_probe.errors import InputError, shown, shown_name
from lite_probe.files import open_regular

SAFETENSORS_FILE = "model.safetensors"
BIN_FILE = "pytorch_model.bin"
INDEX_ENDING = ".index.json"
MAX_INDEX_VALUES = 2**18  # a trillion-parameter model has 2¹⁷ tensors
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
STEP_FILES = ("trainer_state.json", "training_state.json")
OPTIMIZER_FILE = "optimizer.pt"
SCHEDULER_FILE = "scheduler.pt"


def has_weights(folder: Path) -> bool:
    """Say whether a folder holds weights under Hugging Face's names."""
    names = (SAFETENSORS_FILE, BIN_FILE, SAFETENSORS_FILE + INDEX_ENDING, BIN_FILE + INDEX_ENDING)
    return any((folder / name).is_file() for name in names)


def is_safetensors_file(path: Path) -> bool:
    """Say whether a file begins like safetensors: the header's length, then its opening brace."""
    with open_regular(path, "a checkpoint") as stream:
        head = stream.read(9)
        num_bytes = os.fstat(stream.fileno()).st_size
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < num_bytes


def read(folder: Path, *, trust_pickle: bool, model_config: Mapping[str, Any] | None) -> Checkpoint:
    """Read a Hugging Face folder.

    Args:
        folder: With weights, and a config.json unless `model_config` is given.
        trust_pickle: As for `open_checkpoint`.
        model_config: In place of config.json.

    Raises:
        InputError: If config or shards are missing or damaged.
        UnsafePickleError: If a `.bin` shard asks for a name outside the allow-list.
    """
    if model_config is None and not (folder / "config.json").is_file():
        raise InputError(
            f"expected a config.json beside the weights in {folder}, got none",
            "pass --model-config CONFIG.json",
        )
    config = model_config if model_config is not None else read_json_object(folder / "config.json")
    return Checkpoint(
        path=folder,
        format="huggingface",
        weights=read_weights(folder, trust_pickle=trust_pickle),
        model_config=config,
        step=folder_step(folder),
        tokenizer_path=find_tokenizer(folder),
        read_states=states_beside(folder, trust_pickle=trust_pickle),
        read_schedule=schedule_beside(folder, SCHEDULER_FILE, trust_pickle=trust_pickle),
    )


def read_single_file(path: Path, *, model_config: Mapping[str, Any] | None) -> Checkpoint:
    """Read one safetensors file, with the config.json beside it if none is given."""
    config = model_config
    if config is None and (path.parent / "config.json").is_file():
        config = read_json_object(path.parent / "config.json")
    return Checkpoint(
        path=path,
        format="huggingface",
        weights=SafetensorsWeights([path]),
        model_config=config,
        tokenizer_path=find_tokenizer(path.parent),
    )


def read_weights(folder: Path, *, trust_pickle: bool) -> Weights:
    """Open the weight files of a folder, in transformers' order of preference.

    Raises:
        InputError: If there are none, one is missing, or an index points out of the folder.
    """
    if (folder / SAFETENSORS_FILE).is_file():
        return SafetensorsWeights([folder / SAFETENSORS_FILE])
    if (folder / (SAFETENSORS_FILE + INDEX_ENDING)).is_file():
        return _indexed(folder, SAFETENSORS_FILE + INDEX_ENDING, SafetensorsWeights)
    if (folder / BIN_FILE).is_file():
        return _bin_weights([folder / BIN_FILE], trust_pickle=trust_pickle)
    if (folder / (BIN_FILE + INDEX_ENDING)).is_file():
        return _indexed(folder, BIN_FILE + INDEX_ENDING, lambda files: _bin_weights(files, trust_pickle=trust_pickle))
    others = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if others:
        return SafetensorsWeights(others)
    raise InputError(
        f"expected {SAFETENSORS_FILE}, {BIN_FILE} or their shards beside config.json, got none in {folder}",
        "download or copy the weights as well",
    )


def _indexed(folder: Path, index_name: str, open_files: Any) -> Weights:
    weight_map = read_json_object(folder / index_name, max_values=MAX_INDEX_VALUES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            f"expected a weight_map from tensor names to files in {index_name}, got {type(weight_map).__name__}",
            "restore the index from its source",
        )
    names = list(weight_map.values())
    for name in names:
        # A shard lies beside its index; anything else is a way out of the folder.
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise InputError(
                f"expected the names of files beside {index_name} in it, got {shown(name)}",
                "restore the index from its source",
            )
    absent = sorted({name for name in set(names) if not (folder / name).is_file()})
    if absent:
        raise InputError(
            f"expected {len(set(names)):,} shards in {folder}, got {len(set(names)) - len(absent):,}: "
            f"missing {', '.join(map(shown_name, absent[:6]))}",
            "copy the missing shards as well",
        )
    weights: Weights = open_files([folder / name for name in sorted(set(names))])
    lost = sorted(set(weight_map) - set(weights.metas))
    if lost:
        raise InputError(
            f"expected the tensors that {index_name} lists in their shards, got no "
            f"{', '.join(map(shown_name, lost[:6]))}",
            "copy the shards again; they do not belong to this index",
        )
    # What a shard holds beyond the index (another variant's copy) is not part of the checkpoint.
    return RenamedWeights(weights, {name: name for name in weight_map})


def _bin_weights(files: list[Path], *, trust_pickle: bool) -> Weights:
    tensors: dict[str, Tensor] = {}
    for path in files:
        shard = find_state_dict(read_torch_file(path, trust_pickle=trust_pickle), path.name)
        twice = sorted(set(shard) & set(tensors))
        if twice:
            raise InputError(
                f"expected each tensor in one shard, got {shown_name(twice[0])} again in {path.name}",
                "remove the shard that does not belong to this checkpoint",
            )
        tensors |= shard
    return MappedWeights(tensors, files)


def find_tokenizer(folder: Path) -> Path | None:
    """Return the tokenizer's file in a folder, if it has one."""
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)


def folder_step(folder: Path) -> int | None:
    """Return the completed updates that a training state beside the weights tells."""
    for name in STEP_FILES:
        if (folder / name).is_file():
            return find_step(read_json_object(folder / name))
    return None


def states_beside(folder: Path, *, trust_pickle: bool) -> StateReader:
    """Return a reader of `optimizer.pt`; its checksums are checked where values are asked for."""
    path = folder / OPTIMIZER_FILE
    if not path.is_file():
        return no_states

    def read_states(*, values: bool) -> Sequence[StateDict]:
        if values:
            verify_torch_file(path)
        return find_state_dicts(read_torch_file(path, trust_pickle=trust_pickle))

    return read_states


def schedule_beside(folder: Path, name: str, *, trust_pickle: bool) -> ScheduleReader:
    """Return a reader of the schedule in a file of a folder."""
    path = folder / name
    return (lambda: find_schedule(read_torch_file(path, trust_pickle=trust_pickle))) if path.is_file() else no_schedule
