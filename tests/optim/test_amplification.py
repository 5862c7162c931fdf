"""A gradient that differs in its last bits makes the step that the other one makes: on any machine and any threads."""

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
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

from lite_probe.optim import OPTIMIZERS, make_optimizer
from tests import models

pytestmark = pytest.mark.slow

VOCAB = 48
STEPS = 10
# Float32 gradients differ by 1e-7 between machines; LITE's first steps multiply that, in the directions whose singular
# value is a hundredth of the largest, a hundred times.
LIMIT = 1e-4
# Rates at which the loss falls from the first step on: a change that is nearly zero measures nothing.
RATES = {
    "adamw": 3e-3,
    "adamw-lite": 1e-3,
    "muon": 3e-3,
    "muon-lite": 2e-3,
    "soap": 3e-3,
    "soap-lite": 2e-4,
    "sgd": 0.1,
    "samuon": 2e-3,
}
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def _qwen2_moe() -> nn.Module:
    experts = {"moe_intermediate_size": 20, "shared_expert_intermediate_size": 40, "num_experts": 4}
    config = Qwen2MoeConfig(**_SIZES, **experts, num_experts_per_tok=2, decoder_sparse_step=1)
    return Qwen2MoeForCausalLM._from_config(config, experts_implementation="eager")


def _gpt2() -> nn.Module:
    sizes = {"vocab_size": VOCAB, "n_positions": 32, "n_embd": 24, "n_layer": 1, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES)),
    "qwen2_moe": _qwen2_moe,
    "gpt2": _gpt2,
}


@cache
def fresh_model(family: str) -> nn.Module:
    """At its random start, where first gradients are singular: most tokens never occur, experts see few."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return MAKERS[family]().eval()


@cache
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 3, (3, 17), generator=generator).cumsum(1).remainder(VOCAB) for _ in range(STEPS + 1)]


def cross_entropy(model: nn.Module, batch: Tensor) -> Tensor:
    logits = models.predict_logits(model, batch)
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def loss_of(model: nn.Module) -> float:
    """In float64: the weights' own difference is measured, not the loss's rounding."""
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        return float(torch.stack([cross_entropy(exact, batch) for batch in batches()[:4]]).mean())


def as_they_are(gradient: Tensor, generator: torch.Generator) -> Tensor:
    return gradient


def scaled(gradient: Tensor, generator: torch.Generator) -> Tensor:
    return gradient * (1.0 + 1.2e-7)  # 1 + eps


def jittered(gradient: Tensor, generator: torch.Generator) -> Tensor:
    return gradient * (
        1.0 + 1.7e-7 * (2.0 * torch.rand(gradient.shape, generator=generator, dtype=torch.float64) - 1.0)
    )


def changes(family: str, name: str, disturb: Callable[[Tensor, torch.Generator], Tensor] = as_they_are) -> list[float]:
    """Return the change of the loss after the first step that moves, SOAP's second, and after ten of them."""
    model = copy.deepcopy(fresh_model(family))
    # SOAP renews its bases twice on the way.
    settings = {"precondition_frequency": 4} if name.startswith("soap") else {}
    optimizer = make_optimizer(name, model.named_parameters(), lr=RATES[name], **settings)
    generator = torch.Generator().manual_seed(1)
    start, found, waiting = loss_of(model), [], int(name.startswith("soap"))
    for step, batch in enumerate(batches()[: STEPS + waiting]):
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.copy_(disturb(parameter.grad, generator))
        optimizer.step()
        if step in (waiting, waiting + STEPS - 1):
            found.append(loss_of(model) - start)
    return found


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@cache
def undisturbed(family: str, name: str) -> list[float]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return changes(family, name)
    finally:
        torch.set_num_threads(before)


def amplification(found: list[float], expected: list[float]) -> tuple[float, float]:
    """Return by how much the change after one step, and after ten, is off, over that change."""
    once, often = (abs(one / other - 1.0) for one, other in zip(found, expected, strict=True))
    return once, often


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_last_bits_of_gradients_are_not_amplified(name: str, family: str) -> None:
    expected = undisturbed(family, name)
    assert expected[-1] < expected[0] < 0.0
    for disturb in (scaled, jittered):
        found = changes(family, name, disturb)
        assert found != expected
        assert max(amplification(found, expected)) < LIMIT, (disturb.__name__, amplification(found, expected))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_threads_make_the_steps_of_one(name: str, family: str) -> None:
    found = changes(family, name)
    assert max(amplification(found, undisturbed(family, name))) < LIMIT
