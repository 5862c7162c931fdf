"""A tiny language model with dropout, its data, and what is left of a training run, to the bit."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from lite_probe.criteria import next_token_cross_entropy
from lite_probe.task import Task
from lite_probe.task.build import predict_next_tokens

VOCABULARY = 17


def make_model(seed: int = 3) -> GPT2LMHeadModel:
    """Return a GPT-2 with dropout at its random start."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.1,
        embd_pdrop=0.1,
        attn_pdrop=0.1,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def windows(rows: int, length: int, seed: int) -> Tensor:
    """Return windows of a walk with a drift, (rows, length)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 3, (rows, length), generator=generator).cumsum(dim=1).remainder(VOCABULARY)


def make_task(model: Any = None) -> Task:
    """Return the task whose batches probes are taken on."""
    return Task(
        model=make_model() if model is None else model,
        predict=predict_next_tokens,
        criterion=next_token_cross_entropy,
        evaluation=[windows(4, 9, 11), windows(2, 9, 12)],
    )


class Windows(Dataset[dict[str, Tensor]]):
    """Training windows as transformers' Trainer takes them; reading one draws random numbers, as augmentation does."""

    def __init__(self) -> None:
        self.rows = windows(64, 9, 5)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        shift = random.randrange(3) + int(np.random.randint(3))
        row = (self.rows[index] + shift).remainder(VOCABULARY)
        return {"input_ids": row, "labels": row}


def leaves(value: Any) -> Iterator[Any]:
    """Yield every tensor, number and text of nested containers, in order."""
    if isinstance(value, Mapping):
        for key in value:
            yield key
            yield from leaves(value[key])
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for one in value:
            yield from leaves(one)
    else:
        yield value


def same(first: Any, second: Any) -> bool:
    """Whether two nested containers hold the same, tensors to the bit."""
    one, other = list(leaves(first)), list(leaves(second))
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


def random_states() -> list[Any]:
    """Return where torch's, Python's and numpy's random numbers are."""
    numpy_state = np.random.get_state(legacy=False)["state"]
    return [torch.get_rng_state(), list(random.getstate()[1]), numpy_state["key"].tolist(), numpy_state["pos"]]


class Clock:
    """A clock that tests set."""

    def __init__(self, tick: float = 0.0) -> None:
        self.time = 0.0
        self.tick = tick

    def __call__(self) -> float:
        self.time += self.tick
        return self.time
