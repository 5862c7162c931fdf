"""Small trained models as tasks: a dense Hessian of each is feasible, and none is at its random start.

Each is trained for a few dozen steps in float32, once per process. Float64 tasks have the same weights, which float64
holds exactly: one dense Hessian in float64 is the truth for both precisions.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from lite_probe.blocks import block_map
from lite_probe.criteria import CrossEntropy, classification_cross_entropy, next_token_cross_entropy
from lite_probe.task import Task

STEPS = 40
LANGUAGE_MODELS = ("llama", "qwen2_moe", "gpt2")
MODELS = ("mlp", *LANGUAGE_MODELS)

_SMALL_LLAMA: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "tie_word_embeddings": False,
}


def _llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**_SMALL_LLAMA))


def _tied_llama() -> nn.Module:
    config = LlamaConfig(**{**_SMALL_LLAMA, "num_hidden_layers": 1, "tie_word_embeddings": True})
    return LlamaForCausalLM(config)


def _qwen2_moe() -> nn.Module:
    config = Qwen2MoeConfig(
        **{**_SMALL_LLAMA, "num_hidden_layers": 1},
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
    )
    # As the checkpoint readers load experts: the grouped kernel has neither float64 nor a double backward.
    return Qwen2MoeForCausalLM._from_config(config, experts_implementation="eager")


def _gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=13, n_positions=8, n_embd=8, n_layer=2, n_head=2, n_inner=16, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def _gpt_neox() -> nn.Module:
    config = GPTNeoXConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    return GPTNeoXForCausalLM(config)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 10), nn.Tanh(), nn.Linear(10, 7), nn.GELU(), nn.Linear(7, 4))


_MAKERS: Mapping[str, Callable[[], nn.Module]] = {
    "mlp": _mlp,
    "llama": _llama,
    "tied_llama": _tied_llama,
    "qwen2_moe": _qwen2_moe,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
}
_MLP_BLOCKS = {r"[02]\.(weight|bias)": "ffn", r"4\.(weight|bias)": "out"}


class _KeepFloat64(TorchFunctionMode):
    """Refuse to leave float64: transformers' norms, positions and routers compute in float32 whatever the weights are.

    Whoever asks for float32, by name, by `.float()` or by default, gets float64.
    """

    def __enter__(self) -> "_KeepFloat64":
        self._default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self._default)

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is Tensor.float:
            function = Tensor.double
        args = tuple(torch.float64 if argument is torch.float32 else argument for argument in args)
        kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return function(*args, **kwargs)


def predict_logits(model: nn.Module, batch: Tensor) -> Tensor:
    """(B, S+1) token windows → (B, S, V) logits."""
    in_float64 = next(iter(model.parameters())).dtype == torch.float64
    with _KeepFloat64() if in_float64 else nullcontext():
        logits: Tensor = model(input_ids=batch[:, :-1], use_cache=False).logits
    return logits


def predict_first(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Apply the model to the inputs of an `(inputs, targets)` batch."""
    outputs: Tensor = model(batch[0])
    return outputs


def token_batches(vocab: int, *, seed: int = 0) -> list[Tensor]:
    """Three batches of windows that differ in rows and length, so that none counts like another."""
    generator = torch.Generator().manual_seed(seed)
    # A walk with a drift: there is something to learn.
    batches = []
    for rows, length in ((3, 7), (2, 5), (1, 8)):
        steps = torch.randint(0, 3, (rows, length), generator=generator)
        batches.append(steps.cumsum(dim=1).remainder(vocab))
    return batches


def classification_batches(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Two batches of unequal size: four classes of points in five dimensions."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for rows in (12, 5):
        inputs = torch.randn(rows, 5, generator=generator)
        batches.append((inputs.to(dtype), (inputs[:, 0] > 0).long() + 2 * (inputs[:, 1] > 0.3).long()))
    return batches


@cache
def _trained(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = _MAKERS[name]()
    task = _as_task(name, model, torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss, count = task.loss(task.evaluation[step % len(task.evaluation)])
        (loss / count).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


def _as_task(name: str, model: nn.Module, dtype: torch.dtype) -> Task:
    model.eval()
    shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    if name == "mlp":
        blocks = block_map(shapes, None, overrides=_MLP_BLOCKS)
        return Task(
            model=model,
            predict=predict_first,
            criterion=classification_cross_entropy,
            evaluation=classification_batches(dtype),
            blocks=blocks,
        )
    config: PretrainedConfig = model.config  # type: ignore[assignment]
    return Task(
        model=model,
        predict=predict_logits,
        criterion=next_token_cross_entropy,
        evaluation=token_batches(config.vocab_size),
        blocks=block_map(shapes, config.model_type, config=config),
    )


def make_task(name: str, dtype: torch.dtype = torch.float64) -> Task:
    """Return a fresh copy of a trained model with its batches; `name` is in `MODELS`, "tied_llama" or "gpt_neox"."""
    model = copy.deepcopy(_trained(name))
    return _as_task(name, model.to(dtype), dtype)


class IgnoringCrossEntropy(CrossEntropy):
    """Next-token cross-entropy that ignores every third target, as padding would be."""

    def __init__(self) -> None:
        super().__init__(_with_ignored)


def _with_ignored(batch: Tensor) -> Tensor:
    targets = batch[:, 1:].clone()
    targets[:, ::3] = -100
    return targets
