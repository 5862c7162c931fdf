"""What cuts the gradient on its way gives no zeros that pass for curvature: it is mended and said, or refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lite_probe.criteria import classification_cross_entropy
from lite_probe.errors import NumericsError, UsageError
from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.operators.guards import preserve_state
from lite_probe.task import Task
from tests import models, oracles
from tests.plans import plan_spectrum

_ASKED: dict[str, Any] = {"top": 3, "bottom": 1, "probes": 2, "probe_steps": 4}


class _Checkpointed(nn.Module):
    """The layers of a model, some of them under activation checkpointing, as a training script has them."""

    def __init__(self, layers: nn.Sequential, which: range, *, reentrant: bool) -> None:
        super().__init__()
        self.layers = layers
        self.which = which
        self.reentrant = reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            kept = index not in self.which
            inputs = layer(inputs) if kept else checkpoint(layer, inputs, use_reentrant=self.reentrant)
        return inputs


def task_with(layers: range, *, reentrant: bool, dtype: torch.dtype = torch.float64) -> Task:
    task = models.make_task("mlp", dtype)
    assert isinstance(task.model, nn.Sequential)
    task.model = _Checkpointed(task.model, layers, reentrant=reentrant)
    task.blocks = None
    return task


# The whole model; its first layer alone, whose inputs need no gradient; and one within, which has a node of its own.
@pytest.mark.parametrize("layers", [range(5), range(1), range(2, 3)], ids=["all", "first", "within"])
def test_reentrant_checkpointing_is_switched_off_and_said(layers: range) -> None:
    spectrum = measure_spectrum(task_with(layers, reentrant=True), **_ASKED)
    plain = measure_spectrum(models.make_task("mlp"), **_ASKED)
    assert spectrum.eigenvalues.tobytes() == plain.eigenvalues.tobytes()
    assert spectrum.trace == plain.trace
    assert not [note for note in spectrum.notes if note.code == "unused-parameters"]
    (note,) = [note for note in spectrum.notes if note.code == "checkpointing-off"]
    assert "reentrant activation checkpointing was switched off" in note.message
    assert not [note for note in plain.notes if note.code == "checkpointing-off"]


def test_other_checkpointing_is_left_as_it_is() -> None:
    spectrum = measure_spectrum(task_with(range(5), reentrant=False), **_ASKED)
    np.testing.assert_allclose(spectrum.eigenvalues, measure_spectrum(models.make_task("mlp"), **_ASKED).eigenvalues)
    assert not [note for note in spectrum.notes if note.code == "checkpointing-off"]


def test_checkpointing_comes_back() -> None:
    task = task_with(range(5), reentrant=True)
    with pytest.raises(ZeroDivisionError), preserve_state(task.model):
        raise ZeroDivisionError
    inputs = task.evaluation[0][0].clone().requires_grad_()
    node = task.model(inputs).grad_fn
    assert node is not None
    assert node.name() == "CheckpointFunctionBackward"


class CheckpointFunction(torch.autograd.Function):
    """As other libraries have it: the forward pass without a graph, made again when the gradient comes."""

    @staticmethod
    def forward(ctx: Any, function: Any, inputs: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(inputs)
        outputs: Tensor = function(inputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if not torch.autograd._is_checkpoint_valid():  # type: ignore[attr-defined]
            raise RuntimeError("Checkpointing is not compatible with .grad()")
        (inputs,) = ctx.saved_tensors
        inputs = inputs.detach().requires_grad_()
        with torch.enable_grad():
            outputs = ctx.function(inputs)
        torch.autograd.backward(outputs, gradient)
        return None, inputs.grad


def test_checkpointing_of_another_library_is_refused() -> None:
    task = models.make_task("mlp")
    task.predict = lambda model, batch: CheckpointFunction.apply(model[1:], model[0](batch[0]))  # type: ignore[index]
    with pytest.raises(NumericsError, match="expected a model without reentrant activation checkpointing") as caught:
        measure_spectrum(task, **_ASKED)
    assert "use_reentrant=False" in caught.value.hint


# -- no gradient at all ----------------------------------------------------------------------------------------------


def _without_graph(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = model(batch[0])
    return outputs


def _other_library(model: nn.Module, batch: Any) -> Tensor:
    outputs: Tensor = CheckpointFunction.apply(model, batch[0])
    return outputs


@pytest.mark.parametrize(
    "predict",
    [lambda model, batch: model(batch[0]).detach(), _without_graph, _other_library],
    ids=["detached", "no_grad", "checkpointed"],
)
@pytest.mark.parametrize("method", ["autograd", "finite-differences"])
@pytest.mark.parametrize("call", [plan_spectrum, measure_spectrum])
def test_a_loss_without_any_gradient_is_refused(call: Any, method: Any, predict: Any) -> None:
    task = models.make_task("mlp")
    task.predict = predict
    expected = "expected a loss with a gradient, got none for any of the 6 parameters"
    with pytest.raises(NumericsError, match=expected) as caught:
        call(task, **_ASKED, method=method)
    for way in ("detach", "no_grad", "use_reentrant=False"):
        assert way in caught.value.hint


def test_a_caller_without_gradients_gets_them() -> None:
    plain = measure_spectrum(models.make_task("mlp"), **_ASKED)
    for off in (torch.no_grad, torch.inference_mode):
        task = models.make_task("mlp")
        with off():
            spectrum = measure_spectrum(task, **_ASKED)
            assert not torch.is_grad_enabled()
        assert spectrum.eigenvalues.tobytes() == plain.eigenvalues.tobytes()


# -- a part without gradient -----------------------------------------------------------------------------------------


def _first_layers_cut(model: Any, batch: Any) -> Tensor:
    outputs: Tensor = model[2:](model[:2](batch[0]).detach())
    return outputs


def test_parameters_whose_gradient_is_cut_off_are_refused_by_name() -> None:
    task = models.make_task("mlp")
    task.predict = _first_layers_cut
    before = oracles.flat_parameters(task).clone()
    expected = r"expected a gradient for every parameter that the loss depends on, got none for 2: 0\.weight, 0\.bias"
    with pytest.raises(NumericsError, match=expected) as caught:
        plan_spectrum(task, **_ASKED)
    assert "requires_grad_(False)" in caught.value.hint
    assert torch.equal(oracles.flat_parameters(task), before)


def test_what_the_hint_says_of_them_works() -> None:
    task = models.make_task("mlp")
    task.predict = _first_layers_cut
    for parameter in task.model[0].parameters():  # type: ignore[index]
        parameter.requires_grad_(False)
    assert measure_spectrum(task, **_ASKED).whole.converged.all()


# -- a gradient without its own derivative ---------------------------------------------------------------------------


class _Tanh(torch.autograd.Function):
    """tanh, its backward pass left to each of those below."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        outputs = torch.tanh(inputs)
        ctx.save_for_backward(outputs)
        return outputs


class _Hidden(_Tanh):
    """tanh whose backward pass hides from autograd what it is made of."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (outputs,) = ctx.saved_tensors
        return gradient * (1 - outputs.detach().square())


class _Open(_Tanh):
    """The same, as it should be."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (outputs,) = ctx.saved_tensors
        return gradient * (1 - outputs.square())


class _HiddenOnce(_Tanh):
    """Declared once differentiable behind another decorator, where no look at the code finds it."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        inner = once_differentiable(lambda ctx, gradient: gradient * (1 - ctx.saved_tensors[0].square()))
        result: Tensor = inner(ctx, gradient)
        return result


def task_through(function: Any, dtype: torch.dtype) -> Task:
    """The trained model with one of its activations replaced."""
    task = models.make_task("mlp", dtype)
    task.predict = lambda model, batch: model[2:](function.apply(model[0](batch[0])))  # type: ignore[index]
    return task


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("function", [_Hidden, _HiddenOnce])
def test_a_product_that_lacks_a_part_is_refused(function: Any, dtype: torch.dtype) -> None:
    task = task_through(function, dtype)
    before = oracles.flat_parameters(task).clone()
    expected = (
        rf"expected products that agree with differences of the gradient, got \d+% apart through {function.__name__}"
    )
    with pytest.raises(NumericsError, match=expected) as caught:
        plan_spectrum(task, **_ASKED)
    assert "finite-differences" in caught.value.hint
    assert torch.equal(oracles.flat_parameters(task), before)
    assert measure_spectrum(task, **_ASKED, method="finite-differences").eigenvalues[0] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_function_of_the_users_own_is_measured(dtype: torch.dtype) -> None:
    spectrum = measure_spectrum(task_through(_Open, dtype), **_ASKED)
    plain = measure_spectrum(models.make_task("mlp", dtype), **_ASKED)
    np.testing.assert_allclose(spectrum.eigenvalues, plain.eigenvalues, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_gauss_newton_product_that_lacks_a_part_is_refused(dtype: torch.dtype) -> None:
    """Jv by way of a double backward lacks what is once differentiable; Jᵀ alone does not."""
    task = task_through(_HiddenOnce, dtype)
    before = oracles.flat_parameters(task).clone()
    expected = (
        r"expected products that agree with differences of the output gradient, got \d+% apart through _HiddenOnce"
    )
    with pytest.raises(NumericsError, match=expected) as caught:
        plan_spectrum(task, **_ASKED, operator="ggn")
    assert "finite-differences" in caught.value.hint
    assert torch.equal(oracles.flat_parameters(task), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("function", [_Hidden, _Open])
def test_a_gauss_newton_product_that_lacks_nothing_is_measured(function: Any, dtype: torch.dtype) -> None:
    """What hides its second derivative is linear in the tangent still."""
    spectrum = measure_spectrum(task_through(function, dtype), **_ASKED, operator="ggn")
    plain = measure_spectrum(models.make_task("mlp", dtype), **_ASKED, operator="ggn")
    np.testing.assert_allclose(spectrum.eigenvalues, plain.eigenvalues, rtol=1e-4)


class _HiddenLoss(torch.autograd.Function):
    """exp, whose gradient passes for a constant."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        outputs = inputs.exp()
        ctx.save_for_backward(outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].detach()


@pytest.mark.parametrize("function", [_HiddenLoss.apply, torch.exp], ids=["hidden", "open"])
def test_a_criterion_that_hides_its_curvature_is_refused(function: Any) -> None:
    """Where the criterion has no closed form, ∇²_z ℓ is autograd's, and no zeros of its stand for curvature."""
    task = models.make_task("mlp")
    task.criterion = lambda outputs, batch: (function(0.1 * outputs).sum(), len(outputs))
    if function is torch.exp:
        assert measure_spectrum(task, **_ASKED, operator="ggn").eigenvalues[0] > 0
    else:
        with pytest.raises(NumericsError, match="differences of the output gradient, got 100% apart through _Hidden"):
            plan_spectrum(task, **_ASKED, operator="ggn")


def test_a_model_all_frozen_is_refused() -> None:
    task = models.make_task("mlp")
    task.model.requires_grad_(False)
    with pytest.raises(UsageError, match="expected a model with trainable parameters, got none"):
        plan_spectrum(task, **_ASKED)
    assert task.criterion == classification_cross_entropy
