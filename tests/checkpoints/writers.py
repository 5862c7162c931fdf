"""Tiny checkpoints of every format, written the way training scripts write them."""

import json
import warnings
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from lite_probe.checkpoints.models import quiet_transformers

VOCAB = 32
SEQ_LEN = 16
_LLAMA_SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCAB,
    "max_position_embeddings": SEQ_LEN,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_LLAMA_SIZES},
    "llama-tied": {"model_type": "llama", **_LLAMA_SIZES, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", **_LLAMA_SIZES},
    "qwen2": {"model_type": "qwen2", **_LLAMA_SIZES},
    "qwen2-tied": {"model_type": "qwen2", **_LLAMA_SIZES, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **_LLAMA_SIZES, "head_dim": 4},
    "qwen2_moe": {
        "model_type": "qwen2_moe",
        **_LLAMA_SIZES,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        **_LLAMA_SIZES,
        "head_dim": 4,
        "moe_intermediate_size": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "mixtral": {"model_type": "mixtral", **_LLAMA_SIZES, "num_local_experts": 4},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": SEQ_LEN,
        "vocab_size": VOCAB,
        "bos_token_id": None,
        "eos_token_id": None,
    },
}


def make_model(name: str, seed: int = 0) -> nn.Module:
    """Return a randomly initialised model with weights and biases all different from zero and one."""
    values = dict(CONFIGS[name])
    with quiet_transformers():
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.1)
    return model.eval()


def tokens(seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, (2, SEQ_LEN), generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens()).logits
    return found


def trained_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return an AdamW with state, the model left as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    model(tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    model.load_state_dict(before)
    model.zero_grad()
    return optimizer


def write_huggingface(
    folder: Path, name: str = "llama", *, bins: bool = False, shard_size: str = "5GB", optimizer: bool = False
) -> nn.Module:
    model = make_model(name)
    with quiet_transformers():
        model.save_pretrained(folder, max_shard_size=shard_size)
    if bins:
        replace_by_bins(folder)
    if optimizer:
        torch.save(trained_optimizer(model).state_dict(), folder / "optimizer.pt")
    return model


def replace_by_bins(folder: Path) -> None:
    """Rewrite safetensors shards as the `.bin` shards of older transformers."""
    from safetensors.torch import load_file

    for path in sorted(folder.glob("*.safetensors")):
        torch.save(load_file(path), folder / _bin_name(path.name))
        path.unlink()
    index = folder / "model.safetensors.index.json"
    if index.exists():
        listed = json.loads(index.read_text())
        listed["weight_map"] = {name: _bin_name(file) for name, file in listed["weight_map"].items()}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(listed))
        index.unlink()


def _bin_name(name: str) -> str:
    return name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")


def write_lite(folder: Path, name: str = "llama") -> nn.Module:
    """Write what LITE's and GaLore's training scripts leave in a checkpoint folder."""
    folder.mkdir(parents=True)
    model = make_model(name)
    optimizer = trained_optimizer(model)
    torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, folder / "pytorch_model.bin")
    torch.save(
        {
            "optimizer": optimizer.state_dict(),
            "scheduler": {"last_epoch": 40, "base_lrs": [1e-3]},
            "update_step": 40,
            "global_step": 320,
            "config": {"lr": 1e-3, "model": {**CONFIGS[name], "dtype": torch.float32}, "world_size": 8},
            "wandb": None,
            "dtype": "bfloat16",
        },
        folder / "optimizer.pt",
    )
    (folder / "training_state.json").write_text(
        json.dumps({"global_step": 320, "update_step": 40, "tokens_seen": 163840})
    )
    return model


def write_distributed(folder: Path, name: str = "llama") -> nn.Module:
    model = make_model(name)
    optimizer = trained_optimizer(model)
    saved = {"model": model.state_dict(), "optim": optimizer.state_dict(), "step": 7}
    with warnings.catch_warnings():  # torch warns that it saves from one process
        warnings.simplefilter("ignore")
        dcp.save(saved, checkpoint_id=folder, no_dist=True)
    return model


def write_lightning(path: Path, name: str = "llama") -> nn.Module:
    """Write what Lightning's trainer saves for a module whose attribute `net` is the model."""
    model = make_model(name)
    weights = OrderedDict((f"net.{key}", value) for key, value in model.state_dict().items())
    weights["metric.total"] = torch.zeros(())
    torch.save(
        {
            "epoch": 3,
            "global_step": 120,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": weights,
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(3.0)}},
            "optimizer_states": [trained_optimizer(model).state_dict()],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 1e-3, "args": Namespace(seed=np.int64(3))},
        },
        path,
    )
    return model


def write_torch(path: Path, name: str = "llama", **save_options: Any) -> nn.Module:
    model = make_model(name)
    torch.save(
        {
            "model_state_dict": {f"_orig_mod.{key}": value for key, value in model.state_dict().items()},
            "optimizer_state_dict": trained_optimizer(model).state_dict(),
            "step": 11,
            "rng": [torch.get_rng_state(), np.random.RandomState(0).get_state()],
        },
        path,
        **save_options,
    )
    return model


def nanogpt_state_dict(*, bias: bool, num_layers: int = 1, width: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Return tensors by nanoGPT's names, in its modules' order and nn.Linear's layout, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}

    def draw(name: str, *shape: int) -> None:
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * 0.3 + 0.05
        if bias and not name.endswith(("wte", "wpe")):
            weights[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.3 + 0.05

    draw("transformer.wte", VOCAB, width)
    draw("transformer.wpe", SEQ_LEN, width)
    for layer in range(num_layers):
        start = f"transformer.h.{layer}"
        draw(f"{start}.ln_1", width)
        draw(f"{start}.attn.c_attn", 3 * width, width)
        draw(f"{start}.attn.c_proj", width, width)
        draw(f"{start}.ln_2", width)
        draw(f"{start}.mlp.c_fc", 4 * width, width)
        draw(f"{start}.mlp.c_proj", width, 4 * width)
    draw("transformer.ln_f", width)
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    return weights


def nanogpt_parameters(weights: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    """Return what nanoGPT's `named_parameters` yields: the tied head once, under the embedding's name."""
    return {name: nn.Parameter(tensor.clone()) for name, tensor in weights.items() if name != "lm_head.weight"}


def nanogpt_optimizer(parameters: dict[str, nn.Parameter], steps: int = 3) -> torch.optim.AdamW:
    """Return nanoGPT's AdamW after some steps: decayed are the parameters of two dimensions, then come the others."""
    decayed = [parameter for parameter in parameters.values() if parameter.dim() >= 2]
    others = [parameter for parameter in parameters.values() if parameter.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(17)
    for _ in range(steps):
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def write_nanogpt(
    path: Path, *, bias: bool = False, prefix: str = "_orig_mod.", num_layers: int = 1
) -> dict[str, Tensor]:
    weights = nanogpt_state_dict(bias=bias, num_layers=num_layers)
    model_args = {
        "n_layer": num_layers,
        "n_head": 2,
        "n_embd": 8,
        "block_size": SEQ_LEN,
        "bias": bias,
        "vocab_size": VOCAB,
        "dropout": 0.0,
    }
    torch.save(
        {
            "model": {prefix + name: tensor for name, tensor in weights.items()},
            "optimizer": nanogpt_optimizer(nanogpt_parameters(weights)).state_dict(),
            "model_args": model_args,
            "iter_num": 5000,
            "best_val_loss": torch.tensor(1.47),
            "config": {"dataset": "shakespeare_char", "learning_rate": 1e-3, "compile": True},
        },
        path,
    )
    return weights
