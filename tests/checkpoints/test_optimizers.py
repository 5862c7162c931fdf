"""Optimizers are recognised by what they really save."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lite_probe.checkpoints.optimizers import find_optimizer
from lite_probe.checkpoints.state_dicts import find_step, model_prefix


def stepped(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> dict[str, Any]:
    weight = nn.Parameter(torch.ones(4, 3))
    optimizer = make([weight])
    weight.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda weights: torch.optim.AdamW(weights), "adamw"),
        (lambda weights: torch.optim.Muon(weights), "muon"),
        (lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9), "sgd"),
        (lambda weights: torch.optim.Adafactor(weights), "adafactor"),
        (lambda weights: torch.optim.RMSprop(weights), "unknown"),
    ],
)
def test_torch_optimizers(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], name: str) -> None:
    state_dict = stepped(make)
    found = find_optimizer({"optimizer": state_dict})
    assert found is not None
    assert found.name == name
    tensors = [value for value in state_dict["state"][0].values() if isinstance(value, torch.Tensor)]
    assert found.num_tensors == len(tensors)
    assert found.num_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert found.state_names == tuple(sorted(state_dict["state"][0]))


def test_soap_keeps_lists_of_matrices() -> None:
    state = {"exp_avg": torch.ones(4, 3), "exp_avg_sq": torch.ones(4, 3), "GG": [torch.eye(4), torch.eye(3)], "step": 1}
    found = find_optimizer({"state": {0: state}, "param_groups": [{"precondition_frequency": 10}]})
    assert found is not None
    assert (found.name, found.num_tensors, found.num_bytes) == ("soap", 4, 4 * (12 + 12 + 16 + 9))


def test_several_optimizers_are_named_together() -> None:
    muon = stepped(lambda weights: torch.optim.Muon(weights))
    adamw = stepped(lambda weights: torch.optim.AdamW(weights))
    for saved in ([muon, adamw], {"hidden": muon, "rest": adamw}):
        found = find_optimizer({"optimizers": saved})
        assert found is not None
        assert found.name == "muon+adamw"


@pytest.mark.parametrize("saved", [None, [], {}, {"optimizer": None}, {"optimizer": {"lr": 1}}, {"model": {"w": 1}}])
def test_nothing_to_find(saved: object) -> None:
    assert find_optimizer(saved) is None


@pytest.mark.parametrize(
    ("saved", "step"),
    [
        ({"iter_num": 5000}, 5000),
        ({"global_step": 320, "update_step": 40}, 40),
        ({"step": torch.tensor(7)}, 7),
        ({"step": True}, None),
        ({"step": -1}, None),
        ({"step": "7"}, None),
        ({"epoch": 3}, None),
        ([7], None),
    ],
)
def test_steps(saved: object, step: int | None) -> None:
    assert find_step(saved) == step


def test_the_prefix_is_the_one_most_names_share() -> None:
    expected = ["model.embed.weight", "model.layers.0.weight", "lm_head.weight"]
    assert model_prefix(expected, expected) == ""
    assert model_prefix([f"net.{name}" for name in expected], expected) == "net."
    assert model_prefix([f"model.{name}" for name in expected], expected) == "model."
    both = [f"student.{name}" for name in expected] + ["teacher.lm_head.weight"]
    assert model_prefix(both, expected) == "student."
    assert model_prefix(["something.else"], expected) == ""
