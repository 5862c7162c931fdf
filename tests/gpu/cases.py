"""Models of three families as tasks: on the CPU and on a device from the same weights, and what is counted there."""

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from lite_probe.blocks import block_map
from lite_probe.commands.compute import move_task
from lite_probe.criteria import next_token_cross_entropy
from lite_probe.task import Task
from tests import models
from tests.replays.conftest import with_training

NAMES = ("llama", "gpt2", "qwen2_moe")
_VOCAB, _LENGTH = 512, 64
_LLAMA: dict[str, Any] = {
    "vocab_size": _VOCAB,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": _LENGTH,
    "tie_word_embeddings": False,
}
_LARGE: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 512,
}


def make_task(name: str, device: torch.device, *, tiny: bool, train: int = 0) -> Task:
    """Return a trained model with its batches on a device: 0.8 thousand parameters where tiny, else a million."""
    if tiny:
        task = with_training(name, train)
    else:
        task = _as_task(copy.deepcopy(_trained(name)), windows=4, batches=3)
        task.train = _windows(_VOCAB, 4, _LENGTH, train, seed=12)
    move_task(task, device.type, None)
    return task


def large_task(device: torch.device, *, tiny: bool) -> Task:
    """Return a Llama of 370 million random weights, made where it is used."""
    if tiny:
        return make_task("llama", device, tiny=True)
    with torch.random.fork_rng(), device:
        torch.manual_seed(3)
        model = LlamaForCausalLM(LlamaConfig(**_LARGE))
    return _as_task(model.eval(), windows=2, batches=2, length=512)


@contextmanager
def waits_on(device: torch.device) -> Iterator[Counter[str]]:
    """Count the operations that wait for a CUDA device, by file and line; elsewhere there are none."""
    counted: Counter[str] = Counter()
    if device.type != "cuda":
        yield counted
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counted
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [one for one in said if "synchronizing CUDA operation" in str(one.message)]
    counted.update(f"{Path(one.filename).name}:{one.lineno}" for one in found)


def apart(found: Any, expected: Any) -> float:
    """Return ‖found − expected‖/‖expected‖."""
    first, second = (torch.as_tensor(one).detach().cpu().double() for one in (found, expected))
    return float((first - second).norm() / second.norm().clamp_min(1e-300))


def _model(name: str) -> nn.Module:
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**_LLAMA))
    if name == "gpt2":
        sizes = {"n_positions": _LENGTH, "n_embd": 128, "n_layer": 3, "n_head": 4}
        return GPT2LMHeadModel(GPT2Config(vocab_size=_VOCAB, bos_token_id=0, eos_token_id=0, **sizes))
    config = Qwen2MoeConfig(
        **{**_LLAMA, "num_hidden_layers": 2},
        moe_intermediate_size=96,
        shared_expert_intermediate_size=96,
        num_experts=8,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
    )
    # As the checkpoint readers load experts.
    return Qwen2MoeForCausalLM._from_config(config, experts_implementation="eager")


@cache
def _trained(name: str) -> nn.Module:
    """Train 20 steps on the CPU, so that every device starts from the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = _model(name).eval()
    task = _as_task(model, windows=4, batches=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(20):
        optimizer.zero_grad()
        loss, count = task.loss(task.evaluation[step % 3])
        (loss / count).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model


def _as_task(model: nn.Module, *, windows: int, batches: int, length: int = _LENGTH) -> Task:
    config: Any = model.config
    shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    task = Task(
        model=model,
        predict=models.predict_logits,
        criterion=next_token_cross_entropy,
        evaluation=_windows(config.vocab_size, windows, length, batches, seed=11),
        blocks=block_map(shapes, config.model_type, config=config),
    )
    place = next(model.parameters()).device
    task.evaluation = [batch.to(place) for batch in task.evaluation]
    return task


def _windows(vocab: int, rows: int, length: int, count: int, *, seed: int) -> list[Tensor]:
    """Walks with a drift: there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 3, (rows, length), generator=generator).cumsum(dim=1).remainder(vocab) for _ in range(count)
    ]
