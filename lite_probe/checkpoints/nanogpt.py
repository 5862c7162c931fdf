"""nanoGPT's ckpt.pt, mapped onto transformers' GPT-2.

The two compute the same function: pre-norm blocks with learned positions, a fused query-key-value projection,
LayerNorm with ε = 1e-5 and a head tied to the token embedding. They differ in storage (nn.Linear keeps (out, in),
GPT-2's Conv1D (in, out)), in nanoGPT's option to have no biases, and in its exact GELU.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lite_probe.blocks import assign_blocks
from lite_probe.checkpoints.checkpoint import Checkpoint
from lite_probe.checkpoints.json_files import whole_number
from lite_probe.checkpoints.models import leave_as_is
from lite_probe.checkpoints.optimizers import StateDict, StateReader, find_schedule, own_optimizer, states_of
from lite_probe.checkpoints.parameter_orders import ASSUMED_ORDER, assign_entries, saved_entries
from lite_probe.checkpoints.state_dicts import find_state_dict, find_step
from lite_probe.checkpoints.weights import MappedWeights
from lite_probe.errors import InputError, shown
from lite_probe.results.provenance import Note

_SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
}
_LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_CAUSAL_MASK = ".attn.bias"  # a buffer, in files from before flash attention
_HEAD, _EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def is_nanogpt(saved: object) -> bool:
    """Say whether a saved object has nanoGPT's layout."""
    if not isinstance(saved, Mapping) or not isinstance(saved.get("model_args"), Mapping):
        return False
    return isinstance(saved.get("model"), Mapping) and set(_SIZES) <= set(saved["model_args"])


def read(path: Path, saved: Mapping[str, Any], *, model_config: Mapping[str, Any] | None) -> Checkpoint:
    """Read a nanoGPT checkpoint.

    Args:
        path: The file it came from.
        saved: What the file held.
        model_config: GPT-2 config values to lay over those that `model_args` give.

    Raises:
        InputError: If `model_args` make no sense or tensors are missing.
    """
    tensors = find_state_dict(saved["model"], path.name)
    MappedWeights(tensors, [path])  # before they are compared: a tensor may be a terabyte expanded from one number
    has_bias = bool(saved["model_args"].get("bias", True))
    config = {**_gpt2_config(saved["model_args"], tensors), **(model_config or {})}
    return Checkpoint(
        path=path,
        format="nanogpt",
        weights=MappedWeights(_gpt2_tensors(tensors, config), [path]),
        model_config=config,
        step=find_step(saved),
        read_states=_states_reader(path, saved, _parameter_shapes(tensors, config)),
        read_schedule=lambda: find_schedule(saved),
        adapt=leave_as_is if has_bias else _remove_biases,
        notes=_notes(config, has_bias),
    )


def _gpt2_config(model_args: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    sizes = {}
    for name, gpt2_name in _SIZES.items():
        size = whole_number(model_args[name])
        if not size:
            raise InputError(
                f"expected a positive whole number as {name} in nanoGPT's model_args, got {shown(model_args[name])}",
                "the file is damaged; take another checkpoint of the run",
            )
        sizes[gpt2_name] = size
    head, embedding = tensors.get(_HEAD), tensors.get(_EMBEDDING)
    tied = head is None or embedding is None or _same(head, embedding)
    return {
        "model_type": "gpt2",
        **sizes,
        # Files from before the bias option are also from before exact GELU.
        "activation_function": "gelu" if "bias" in model_args else "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _same(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return first.data_ptr() == second.data_ptr() or torch.equal(first, second)


def _gpt2_tensors(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return nanoGPT's tensors with GPT-2's names and layout."""
    return {
        name: tensors[name].t() if _is_transposed(name, shape) else tensors[name]
        for name, shape in _parameter_shapes(tensors, config).items()
    }


def _parameter_shapes(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return what nanoGPT's `named_parameters` would: no causal masks, a tied head once."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if not name.endswith(_CAUSAL_MASK) and not (name == _HEAD and config["tie_word_embeddings"])
    }


def _is_transposed(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith(_LINEAR) and len(shape) == 2


# -- optimizer states --------------------------------------------------------------------------------------------------


def _states_reader(path: Path, saved: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> StateReader:
    read_raw = states_of(path, saved)

    def read_states(*, values: bool) -> Sequence[StateDict]:
        raw = read_raw(values=values)
        return _gpt2_states(raw, shapes) if values else raw

    return read_states


def _gpt2_states(state_dicts: Sequence[StateDict], shapes: Mapping[str, tuple[int, ...]]) -> Sequence[StateDict]:
    """Name the parameters of nanoGPT's optimizer states, and transpose what belongs to linear weights.

    nanoGPT saves no names; its AdamW has two groups, matrices and vectors. States in no known order of its parameters
    are returned as they are.
    """
    entries = saved_entries(state_dicts)
    parts, _ = assign_blocks({name: shape for name, shape in shapes.items() if shape}, "nanogpt")
    blocks = {name: parts[name][0].block if name in parts else "other" for name in shapes}
    assigned = assign_entries(entries, shapes, blocks)
    if assigned.problem:
        return state_dicts
    names = iter(assigned.names)
    named = []
    for state_dict in state_dicts:
        state, groups = dict(state_dict["state"]), []
        for group in state_dict["param_groups"]:
            group_names = [next(names) or "" for _ in group["params"]]
            for index, name in zip(group["params"], group_names, strict=True):
                # lite-probe's own optimizers see linear weights as (out, in) wherever they are stored.
                if state.get(index) and name and _is_transposed(name, shapes[name]) and not own_optimizer(group):
                    state[index] = _transposed(state[index], shapes[name])
            groups.append({**group, "param_names": group_names})
        named.append({**state_dict, "state": state, "param_groups": groups, ASSUMED_ORDER: assigned.order})
    return named


def _transposed(values: Mapping[Any, Any], shape: tuple[int, ...]) -> dict[Any, Any]:
    """Transpose what has the weight's shape, and exchange what SOAP keeps for its two sides."""
    return {
        key: value.t()
        if isinstance(value, Tensor) and tuple(value.shape) == shape
        else list(reversed(value))
        if isinstance(value, list | tuple)
        else value
        for key, value in values.items()
    }


def _remove_biases(model: nn.Module) -> None:
    """Turn the zero biases into constants, so that they are no parameters: the trained model had none."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_parameter("bias", None)
        elif isinstance(module, Conv1D):
            zeros = torch.zeros_like(module.bias, requires_grad=False)  # addmm needs a bias to add
            del module.bias
            module.register_buffer("bias", zeros, persistent=False)


def _notes(config: Mapping[str, Any], has_bias: bool) -> list[Note]:
    notes = []
    if not has_bias:
        message = "Trained without biases: GPT-2's biases are zero constants here and count as no parameters."
        notes.append(Note(code="nanogpt-no-bias", message=message))
    exact = config["activation_function"] == "gelu"
    message = (
        f"nanoGPT files do not record their GELU: {'the exact one' if exact else 'the tanh approximation'} is "
        f"assumed; for the other pass a model config with activation_function {'gelu_new' if exact else 'gelu'}."
    )
    notes.append(Note(code="nanogpt-gelu", message=message))
    return notes
