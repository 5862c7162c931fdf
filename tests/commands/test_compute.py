from collections import OrderedDict
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch

from lite_probe.commands.compute import choose_device, move_task
from lite_probe.errors import UsageError
from lite_probe.task import Task


def build() -> Task:
    return Task(
        model=torch.nn.Linear(2, 1),
        predict=lambda model, batch: model(batch["x"][0]),
        criterion=lambda outputs, batch: (outputs.sum(), 1),
        evaluation=[{"x": (torch.ones(1, 2), "name"), "ids": torch.tensor([3])}],
        train=[[torch.ones(1)]],
        heldout=[[torch.zeros(1)]],
    )


def test_a_task_is_moved_with_its_batches_and_whole_numbers_stay() -> None:
    task = build()
    move_task(task, "cpu", "float64")
    assert {p.dtype for p in task.model.parameters()} == {torch.float64}
    (batch,) = task.evaluation
    assert batch["x"][0].dtype == torch.float64
    assert batch["x"][1] == "name"
    assert batch["ids"].dtype == torch.int64
    assert isinstance(batch["x"], tuple)
    assert task.train[0][0].dtype == torch.float64
    assert task.heldout[0][0].dtype == torch.float64
    assert task.predict(task.model, batch).dtype == torch.float64


def test_a_task_is_left_alone_unless_asked() -> None:
    task = build()
    task.model.double()
    move_task(task, "auto", None)
    assert {p.dtype for p in task.model.parameters()} == {torch.float64}
    assert task.evaluation[0]["x"][0].dtype == torch.float32


class Pair(NamedTuple):
    x: torch.Tensor
    name: str


@dataclass(frozen=True, slots=True)
class Sample:
    x: torch.Tensor
    pair: Pair
    count: int = field(default=3, init=False)


def test_whatever_holds_tensors_comes_back_as_what_it_was() -> None:
    from transformers import BatchEncoding

    encoding = BatchEncoding({"input_ids": torch.tensor([[1, 2]]), "weights": {"w": torch.ones(2)}})
    ordered = OrderedDict(b=[torch.ones(1)], a=(torch.ones(1), 7))
    batches = [
        encoding,
        Sample(torch.ones(2), Pair(torch.ones(3), "n")),
        ordered,
        MappingProxyType({"x": torch.ones(1)}),
    ]
    task = replace(build(), evaluation=batches)
    move_task(task, "cpu", "float64")
    first, second, third, fourth = task.evaluation
    assert isinstance(first, BatchEncoding)
    assert first.input_ids.dtype == torch.int64
    assert first["weights"]["w"].dtype == torch.float64
    assert isinstance(second, Sample)
    assert (second.x.dtype, second.pair.x.dtype, second.pair.name, second.count) == (*[torch.float64] * 2, "n", 3)
    assert isinstance(third, OrderedDict)
    assert list(third) == ["b", "a"]
    assert (third["b"][0].dtype, third["a"][0].dtype, third["a"][1]) == (torch.float64, torch.float64, 7)
    assert fourth["x"].dtype == torch.float64
    # The user's own batches stay as they are.
    assert encoding["weights"]["w"].dtype == batches[1].x.dtype == torch.float32
    move_task(task, "auto", None)
    assert task.evaluation[0] is first


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_refused() -> None:
    assert choose_device("auto").type == "cpu"
    with pytest.raises(UsageError, match="expected a CUDA device for --device cuda, got none"):
        choose_device("cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_takes_cuda() -> None:
    assert choose_device("auto").type == "cuda"
