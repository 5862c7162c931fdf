"""Tiny random models of families that transformers builds: one layer each, two where a family has two kinds."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lite_probe.checkpoints.models import quiet_transformers

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 256,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2, "head_dim": 4}
_FALCON: dict[str, Any] = {"model_type": "falcon", **_SIZES}
CONFIGS: dict[str, dict[str, Any]] = {
    **{name: {"model_type": name, **_GROUPED} for name in ("gemma", "gemma2", "gemma3_text", "smollm3")},
    **{name: {"model_type": name, **_SIZES} for name in ("olmo", "olmo2", "olmo3")},
    "olmoe": {"model_type": "olmoe", **_SIZES, "num_experts": 4, "num_experts_per_tok": 2},
    "phi": {"model_type": "phi", **_SIZES},
    "phi3": {"model_type": "phi3", **_GROUPED},
    "opt": {"model_type": "opt", **_SIZES, "ffn_dim": 24, "word_embed_proj_dim": 8},
    "gpt_neox": {"model_type": "gpt_neox", **_SIZES},
    "bloom": {"model_type": "bloom", **_SIZES, "n_layer": 1, "n_head": 4},
    "falcon": {**_FALCON, "multi_query": True},
    "falcon-heads": {**_FALCON, "multi_query": False, "bias": True},
    "falcon-groups": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **_SIZES,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "n_shared_experts": 1,
        "moe_intermediate_size": 8,
        "q_lora_rank": 6,
        "kv_lora_rank": 5,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 3,
        "v_head_dim": 2,
    },
    "bert": {"model_type": "bert", **_SIZES, "is_decoder": True},
    "mamba": {
        "model_type": "mamba",
        "hidden_size": 16,
        "state_size": 4,
        "time_step_rank": 3,
        "num_hidden_layers": 1,
        "vocab_size": 256,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    },
}


def make_model(config: dict[str, Any], seed: int = 0) -> PreTrainedModel:
    """Return a model of random weights, all biases and norms included."""
    values = dict(config)
    with quiet_transformers():
        made = AutoConfig.for_model(values.pop("model_type"), **values)
        model = AutoModelForCausalLM.from_config(made, attn_implementation="eager", experts_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model.eval()


def save_model(folder: Path, config: dict[str, Any]) -> Path:
    with quiet_transformers():
        make_model(config).save_pretrained(folder)
    return folder
