"""How often an evaluation waits for its device: each wait lets an accelerator run dry."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lite_probe.criteria import CrossEntropy, classification_cross_entropy
from lite_probe.errors import NumericsError
from lite_probe.operators.gradient import loss_and_gradient
from lite_probe.operators.hessian import GaussNewtonOperator, HessianOperator
from lite_probe.vectors.layout import ParameterLayout
from tests import models


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often a number is read from a tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_waits_are_counted() -> None:
    with Waits() as waits:
        float(torch.ones(3).sum())
    assert waits.count == 1


def test_a_gradient_waits_once_however_many_batches_there_are() -> None:
    task = models.make_task("mlp", torch.float32)
    task.evaluation = [*task.evaluation] * 3
    layout = ParameterLayout(list(task.model.named_parameters()))
    first = loss_and_gradient(task, layout, "evaluation")
    with Waits() as waits:
        second = loss_and_gradient(task, layout, "evaluation")
    assert waits.count == 0  # the one wait copies all losses at once
    assert (first.loss, first.count) == (second.loss, second.count)


@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_products_wait_for_nothing(operator: Any) -> None:
    task = models.make_task("mlp", torch.float32)
    layout = ParameterLayout(list(task.model.named_parameters()))
    count = loss_and_gradient(task, layout, "evaluation").count
    products = operator(task, layout, count=count)
    vector = torch.ones(layout.size)
    with Waits() as waits:
        products.matvec(vector)
    assert waits.count == 0


def test_the_batch_whose_loss_is_not_finite_is_named() -> None:
    task = models.make_task("mlp", torch.float32)
    inputs, targets = task.evaluation[1]
    task.evaluation = [task.evaluation[0], (inputs * float("inf"), targets), (inputs * float("nan"), targets)]
    task.rows = 2
    layout = ParameterLayout(list(task.model.named_parameters()))
    with pytest.raises(NumericsError, match="expected a finite loss, got nan on evaluation batch 1"):
        loss_and_gradient(task, layout, "evaluation")


def test_targets_are_counted_once() -> None:
    logits, targets = torch.zeros(3, 4), torch.tensor([1, -100, 2])
    assert classification_cross_entropy(logits, (None, targets))[1] == 2
    with Waits() as waits:
        assert classification_cross_entropy(logits, (None, targets))[1] == 2
    assert waits.count == 0


def test_a_count_is_that_of_the_targets_as_they_are() -> None:
    """Others in the same place, or another part of them, count anew."""
    logits, targets = torch.zeros(3, 4), torch.tensor([1, -100, 2])

    def count(part: Tensor) -> int:
        return classification_cross_entropy(logits[: len(part)], (None, part))[1]

    assert [count(targets), count(targets[1:]), count(targets[:1]), count(targets[:2])] == [2, 1, 1, 1]
    targets[1] = 3
    assert [count(targets), count(targets[1:])] == [3, 2]
    assert count(torch.tensor([-100, -100, 1])) == 1
    with torch.inference_mode():
        frozen = torch.tensor([1, -100, -100])
    assert count(frozen) == 1
    frozen_counts = [CrossEntropy(lambda batch: batch.clone())(logits, targets)[1] for _ in range(2)]
    assert frozen_counts == [3, 3]
