"""A measurement leaves no trace, and refuses at once what it could only measure wrongly."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lite_probe.criteria import next_token_cross_entropy, squared_error
from lite_probe.errors import InputError, NumericsError
from lite_probe.operators.gradient import loss_and_gradient, require_deterministic
from lite_probe.operators.guards import explain_autograd_error, preserve_state, require_double_backward
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests import models, oracles


@pytest.fixture(autouse=True)
def _known_random_numbers() -> Iterator[None]:
    """Two masks of dropout can be the same by chance: not with this seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def layout_of(task: Task) -> ParameterLayout:
    return ParameterLayout(list(task.model.named_parameters()))


# -- preserve_state --------------------------------------------------------------------------------------------------


_ROOT = Path(__file__).parents[2]


class _StoppedError(Exception):
    pass


def mixed_model() -> nn.Module:
    """Modules in both modes, and buffers that training moves."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model.train()
    model[1].eval()
    return model


def disturb(model: nn.Module) -> None:
    """Do everything that a measurement might, and more."""
    torch.rand(7)
    torch.manual_seed(5)
    model.train()
    model(torch.randn(6, 3))
    for buffer in model.buffers():
        buffer.add_(1)


def measure_roughly(model: nn.Module, raising: bool) -> None:
    with preserve_state(model):
        disturb(model)
        if raising:
            raise _StoppedError


@pytest.mark.parametrize("raising", [False, True])
def test_undisturbed_leaves_no_trace(raising: bool) -> None:
    model = mixed_model()
    modes = [module.training for module in model.modules()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    identities = [id(buffer) for buffer in model.buffers()]
    state = torch.get_rng_state()
    with pytest.raises(_StoppedError) if raising else nullcontext():
        measure_roughly(model, raising)
    assert [module.training for module in model.modules()] == modes
    assert [id(buffer) for buffer in model.buffers()] == identities
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_inside_the_model_is_in_evaluation_mode() -> None:
    model = mixed_model()
    with preserve_state(model):
        assert not any(module.training for module in model.modules())


# Runs in a process of its own: torch has an older and a newer way to set these, and refuses to read the older one once
# the newer was used. Each line is what was before, inside and behind a measurement, the last one of a measurement that
# raises.
_PRECISIONS = """
import json
import torch
from torch import nn
from lite_probe.operators.guards import preserve_state

def read(getter):
    try:
        return getter()
    except RuntimeError:
        return "refused"

def flags():
    found = torch.backends
    newer = [found.cuda.matmul, found.cudnn.conv, found.cudnn.rnn]
    newer += [found.mkldnn.matmul, found.mkldnn.conv, found.mkldnn.rnn]
    older = [lambda: found.cuda.matmul.allow_tf32, lambda: found.cudnn.allow_tf32, torch.get_float32_matmul_precision]
    return {"older": [read(getter) for getter in older], "newer": [place.fp32_precision for place in newer]}

def tell(name):
    before = flags()
    for raising in (False, True):
        try:
            with preserve_state(nn.Linear(2, 2)):
                inside = flags()
                if raising:
                    raise KeyError
        except KeyError:
            pass
        print(json.dumps({"name": name, "before": before, "inside": inside, "behind": flags()}))

tell("torch's default")
torch.set_float32_matmul_precision("high")
tell("matmul precision high")
torch.backends.cuda.matmul.allow_tf32 = True
torch.backends.cudnn.allow_tf32 = False
tell("TF32 allowed for products")
torch.backends.cuda.matmul.fp32_precision = "tf32"
torch.backends.cudnn.conv.fp32_precision = "ieee"
tell("set by the newer names")
torch.backends.fp32_precision = "tf32"
tell("set for everything")
"""


@pytest.fixture(scope="module")
def precisions() -> list[dict[str, Any]]:
    ran = subprocess.run(
        [sys.executable, "-c", _PRECISIONS], capture_output=True, text=True, timeout=120, check=False, cwd=_ROOT
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.slow
def test_matmul_precision_comes_back_however_it_was_set(precisions: list[dict[str, Any]]) -> None:
    assert len(precisions) == 2 * 5
    for told in precisions:
        assert told["behind"] == told["before"], told["name"]
    # Guard: there was something to put back, in the older names and the newer ones.
    assert len({json.dumps(told["before"]) for told in precisions}) == 5


def test_float32_products_are_float32_inside(precisions: list[dict[str, Any]]) -> None:
    """On a CPU too, where oneDNN may multiply in TF32 or bfloat16 for a precision of "high"."""
    for told in precisions:
        assert set(told["inside"]["newer"]) <= {"ieee", "none"}, told["name"]
        assert told["inside"]["newer"][0] == "ieee" or told["inside"]["older"][0] is False, told["name"]


def attention(backend: SDPBackend | None, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """A loss through scaled_dot_product_attention by one kernel, or by whichever torch chooses."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 8, 16, generator=generator, dtype=dtype).requires_grad_() for _ in range(3))
    if backend is None:
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    else:
        with sdpa_kernel(backend):
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return attended.square().sum()


def test_attention_is_mathematical_inside() -> None:
    with preserve_state(nn.Linear(2, 2)):
        require_double_backward(attention(None))
    with pytest.raises(NumericsError, match="fused kernel"):
        require_double_backward(attention(None))  # outside, torch chooses the fused one


# -- what cannot be differentiated twice -----------------------------------------------------------------------------


def test_attention_may_be_fused_for_first_derivatives() -> None:
    with preserve_state(nn.Linear(1, 1), fused_attention=True), pytest.raises(NumericsError, match="fused kernel"):
        require_double_backward(attention(None))


def test_fused_attention_is_refused_by_name() -> None:
    expected = "expected attention that can be differentiated twice, got the fused kernel ScaledDotProductFlash"
    with pytest.raises(NumericsError, match=expected) as caught:
        require_double_backward(attention(SDPBackend.FLASH_ATTENTION))
    assert 'attn_implementation="eager"' in caught.value.hint


def test_mathematical_attention_is_accepted() -> None:
    loss = attention(SDPBackend.MATH)
    require_double_backward(loss)
    require_double_backward(torch.tensor(1.0))  # a loss without a graph has nothing to refuse


class CheckpointFunction(torch.autograd.Function):
    """A stretch made again in the backward pass, as libraries beside torch have it."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs * 2.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2.0


def test_reentrant_checkpointing_is_refused_by_its_node() -> None:
    inputs = torch.ones(3, requires_grad=True)
    expected = "expected a model without reentrant activation checkpointing, got CheckpointFunctionBackward"
    with pytest.raises(NumericsError, match=expected):
        require_double_backward(CheckpointFunction.apply(inputs).sum())


def test_fused_attention_deep_in_a_graph_is_found() -> None:
    loss = attention(SDPBackend.FLASH_ATTENTION)
    for _ in range(3000):  # deeper than Python may recurse
        loss = loss * 1.0 + 0.0
    with pytest.raises(NumericsError, match="fused kernel"):
        require_double_backward(loss)


def test_autograds_own_complaint_is_explained() -> None:
    """ctc_loss has no double backward; what autograd says of it becomes an error that says what to do."""
    logits = torch.randn(5, 1, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = functional.ctc_loss(logits.log_softmax(2), torch.tensor([[1, 2]]), torch.tensor([5]), torch.tensor([2]))
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError) as caught:
        torch.autograd.grad(gradient.square().sum(), logits)
    explained = explain_autograd_error(caught.value)
    assert explained is not None
    assert explained.message.startswith("expected a model that can be differentiated twice, got: derivative for")
    assert "\n" not in explained.message
    assert "finite-differences" in explained.hint


@pytest.mark.parametrize(
    "text", ["CUDA out of memory. Tried to allocate 2 GiB", "mat1 and mat2 shapes cannot be multiplied", ""]
)
def test_other_errors_are_left_alone(text: str) -> None:
    assert explain_autograd_error(RuntimeError(text)) is None


# -- loss and gradient -----------------------------------------------------------------------------------------------


def linear_task(batches: list[Any], predict: Any = models.predict_first) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(2, 3, dtype=torch.float64)
    return Task(model, predict, squared_error, batches)


def one_batch(value: float = 1.0) -> tuple[Tensor, Tensor]:
    return torch.full((4, 2), value, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)


@pytest.mark.parametrize("split", ["evaluation", "train"])
def test_an_empty_split_is_refused(split: Any) -> None:
    task = linear_task([])
    with pytest.raises(InputError, match=f"expected at least one {split} batch, got none; give the task {split}"):
        loss_and_gradient(task, layout_of(task), split)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_names_its_batch(value: float) -> None:
    task = linear_task([one_batch(), one_batch(value)])
    with pytest.raises(NumericsError, match=r"expected a finite loss, got (nan|inf) on evaluation batch 1"):
        loss_and_gradient(task, layout_of(task), "evaluation")


def test_batches_that_count_nothing_are_refused() -> None:
    task = models.make_task("llama")
    task.criterion = lambda outputs, batch: (next_token_cross_entropy(outputs, batch)[0] * 0.0, 0)
    with pytest.raises(InputError, match="expected counted tokens in the evaluation batches, got none"):
        loss_and_gradient(task, layout_of(task), "evaluation")


def test_every_batch_is_told() -> None:
    task = linear_task([one_batch(), one_batch(2.0), one_batch(3.0)])
    told: list[int] = []
    loss_and_gradient(task, layout_of(task), "evaluation", told.append)
    assert told == [0, 1, 2]


# -- determinism -----------------------------------------------------------------------------------------------------


def test_a_deterministic_task_is_accepted_with_its_gradient() -> None:
    task = models.make_task("llama", torch.float32)
    evaluated = require_deterministic(task, layout_of(task), "evaluation")
    again = loss_and_gradient(task, layout_of(task), "evaluation")
    assert evaluated.loss == again.loss
    assert torch.equal(evaluated.gradient, again.gradient)


def test_dropout_in_predict_is_refused() -> None:
    task = linear_task([one_batch()], lambda model, batch: functional.dropout(model(batch[0]), 0.5, training=True))
    with pytest.raises(NumericsError, match="expected the same loss and gradient twice, got losses") as caught:
        require_deterministic(task, layout_of(task), "evaluation")
    assert "dropout" in caught.value.hint


def test_a_gradient_that_changes_under_the_same_loss_is_refused() -> None:
    """A random direction with zero loss: only the gradient tells."""

    def predict(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        outputs: Tensor = model(batch[0])
        return outputs + torch.randn(3, dtype=torch.float64) * (outputs - outputs.detach())

    task = linear_task([one_batch()], predict)
    with pytest.raises(NumericsError, match=r"and gradients \d\.\de[-+]\d\d apart"):
        require_deterministic(task, layout_of(task), "evaluation")


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    def predict(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        outputs: Tensor = model(batch[0])
        return outputs + torch.sqrt(outputs - outputs.detach())

    task = linear_task([one_batch()], predict)
    with pytest.raises(NumericsError, match="expected a finite gradient, got NaN or infinity; check the weights"):
        require_deterministic(task, layout_of(task), "evaluation")


def test_rounding_is_not_taken_for_randomness() -> None:
    """Sums of an accelerator come in any order: differences of a hundred roundings pass, of a million do not."""
    passes = 0

    def jitter(size: float) -> Task:
        def predict(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            nonlocal passes
            passes += 1
            outputs: Tensor = model(batch[0])
            return outputs * (1.0 + size * (passes % 2))

        return linear_task([one_batch()], predict)

    eps = torch.finfo(torch.float64).eps
    task = jitter(100 * eps)
    require_deterministic(task, layout_of(task), "evaluation")
    task = jitter(1e6 * eps)
    with pytest.raises(NumericsError, match="expected the same loss and gradient twice"):
        require_deterministic(task, layout_of(task), "evaluation")


def test_parameters_and_gradients_are_not_touched() -> None:
    task = models.make_task("mlp")
    before = oracles.flat_parameters(task).clone()
    require_deterministic(task, layout_of(task), "evaluation")
    assert torch.equal(oracles.flat_parameters(task), before)
    assert all(parameter.grad is None for parameter in task.model.parameters())
