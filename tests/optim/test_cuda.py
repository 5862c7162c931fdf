"""On a GPU: the numbers of the CPU, no waiting in a step, and bad gradients masked there."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from lite_probe.errors import NumericsError
from lite_probe.optim import OPTIMIZERS, LiteOptimizer, make_optimizer
from tests.checkpoints import writers

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def gradients(model: nn.Module, step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(parameter.shape, generator=generator) for parameter in model.parameters()]


def make(name: str, model: nn.Module) -> LiteOptimizer:
    often = {"precondition_frequency": 3} if name.startswith("soap") else {}
    return make_optimizer(name, model.named_parameters(), lr=1e-2, **often)


def step(model: nn.Module, optimizer: LiteOptimizer, index: int) -> None:
    for parameter, gradient in zip(model.parameters(), gradients(model, index), strict=True):
        parameter.grad = gradient.to(parameter)
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_numbers_are_the_cpus(name: str) -> None:
    # Square matrices: where a first factor is singular, SOAP's bases are the eigensolver's choice.
    on_cpu = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "o_proj": nn.Linear(8, 8)}).double()
    on_gpu = copy.deepcopy(on_cpu).cuda()
    blocks = {"q_proj.weight": "qk", "o_proj.weight": "vo"}
    optimizers = [make_optimizer(name, m.named_parameters(), lr=1e-2, blocks=blocks) for m in (on_cpu, on_gpu)]
    for index in range(12):
        step(on_cpu, optimizers[0], index)
        step(on_gpu, optimizers[1], index)
    # Float64 rounding, amplified by a few steps and SOAP's renewals.
    for first, second in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
        assert float((first - second.cpu()).detach().abs().max()) < 1e-8


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not name.startswith("soap")])
def test_a_step_does_not_wait(name: str) -> None:
    model = writers.make_model("llama").cuda()
    optimizer = make(name, model)
    step(model, optimizer, 0)  # arranges the state
    given = [gradient.cuda() for gradient in gradients(model, 1)]
    for parameter, gradient in zip(model.parameters(), given, strict=True):
        parameter.grad = gradient
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_bad_gradient_leaves_no_trace_and_is_told_at_the_next_step(name: str) -> None:
    model = writers.make_model("llama").cuda()
    optimizer = make(name, model)
    for index in range(3):
        step(model, optimizer, index)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    bad = model.get_parameter("lm_head.weight")
    assert bad.grad is not None
    bad.grad[0, 0] = math.nan
    optimizer.step()
    assert all(torch.equal(old, parameter) for old, parameter in zip(before, model.parameters(), strict=True))
    with pytest.raises(NumericsError, match=r"NaN in that of lm_head\.weight"):
        optimizer.step()
