"""How batches are split: the same for every optimizer, other batches for every seed, none of them evaluated on."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lite_probe.errors import InputError
from lite_probe.replays.segments import deal_segments, require_disjoint, required_train_batches
from lite_probe.task import Task, TaskInfo
from tests import models


def task_with(train: list[Any], evaluation: list[Any] | None = None, info: TaskInfo | None = None) -> Task:
    task = models.make_task("mlp")
    task.train = train
    task.evaluation = evaluation if evaluation is not None else [torch.tensor([[-1.0]])]
    task.info = info or TaskInfo()
    return task


def numbered(count: int) -> list[Any]:
    return [torch.tensor([[float(index)], [index + 0.5]]) for index in range(count)]


def ids(batches: Any) -> list[float]:
    return [float(batch[0, 0]) for batch in batches]


def test_with_enough_batches_all_parts_are_disjoint() -> None:
    assert required_train_batches(steps=4, seeds=2, warm_batches=3) == 15
    dealt = deal_segments(task_with(numbered(15)), steps=4, seeds=2, warm_batches=3, seed=0)
    parts = [dealt.warm, dealt.sweep.batches, *(one.batches for one in dealt.segments)]
    assert [len(part) for part in parts] == [3, 4, 4, 4]
    assert len({index for part in parts for index in ids(part)}) == 15
    assert dealt.notes == ()
    assert len({dealt.sweep.digest, *(one.digest for one in dealt.segments)}) == 3


def test_the_deal_is_the_seeds() -> None:
    deals = [deal_segments(task_with(numbered(15)), steps=4, seeds=2, warm_batches=3, seed=seed) for seed in (0, 0, 1)]
    digests = [[one.digest for one in dealt.segments] for dealt in deals]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_too_few_batches_are_shared_and_a_note_says_so() -> None:
    dealt = deal_segments(task_with(numbered(6)), steps=4, seeds=2, warm_batches=50, seed=0)
    assert len(dealt.warm) == 6
    for segment in dealt.segments:
        assert len(set(ids(segment.batches))) == 4
    assert dealt.segments[0].digest != dealt.segments[1].digest
    assert [note.code for note in dealt.notes] == ["segments-overlap"]
    assert "6 training batches are too few for 2 segments of 4 steps" in dealt.notes[0].message


def test_fewer_batches_than_a_segment_are_refused() -> None:
    with pytest.raises(InputError, match="expected at least 8 training batches for a segment of 8 steps, got 5"):
        deal_segments(task_with(numbered(5)), steps=8, seeds=1, warm_batches=2, seed=0)


def test_fewer_tokens_than_a_segment_are_refused() -> None:
    info = TaskInfo(data_name="short.txt", batch_size=2, seq_len=9, train_tokens=99)
    with pytest.raises(InputError, match=r"expected at least 100 tokens .* 5 steps of 2 × 10 tokens, got 99 in short"):
        deal_segments(task_with(numbered(20), info=info), steps=5, seeds=1, warm_batches=2, seed=0)
    deal_segments(task_with(numbered(20), info=info), steps=4, seeds=1, warm_batches=2, seed=0)


@pytest.mark.parametrize("shape", ["tensor", "tuple", "mapping", "ragged"])
def test_a_sample_that_is_trained_on_is_refused(shape: str) -> None:
    def batch(values: list[float]) -> Any:
        inputs = torch.tensor([[value, 1.0] for value in values])
        targets = torch.tensor([int(value) for value in values])
        if shape == "tensor":
            return inputs
        if shape == "tuple":
            return inputs, targets
        return {"inputs": inputs, "targets": targets}

    if shape == "ragged":  # members of different lengths: the batch as a whole is one sample
        leaf = (torch.zeros(3, 2), torch.ones(2), "name")
        with pytest.raises(
            InputError, match="got sample 0 of evaluation batch 0, which is sample 0 of training batch 0"
        ):
            require_disjoint(task_with([leaf], [leaf]))
        require_disjoint(task_with([leaf], [(torch.zeros(3, 2), torch.ones(2), "other")]))
        return
    train = [batch([1.0, 2.0]), batch([3.0, 4.0])]
    with pytest.raises(InputError, match="got sample 1 of evaluation batch 0, which is sample 0 of training batch 1"):
        require_disjoint(task_with(train, [batch([7.0, 3.0])]))
    require_disjoint(task_with(train, [batch([7.0, 8.0])]))


def test_the_same_input_with_another_target_is_another_sample() -> None:
    inputs = torch.zeros(1, 2)
    require_disjoint(task_with([(inputs, torch.tensor([0]))], [(inputs, torch.tensor([1]))]))


def test_windows_of_a_text_are_disjoint_by_where_they_stand() -> None:
    window = torch.tensor([[1, 2, 3]])
    require_disjoint(task_with([window], [window], TaskInfo(train_tokens=100)))


@dataclass(frozen=True)
class _Example:
    inputs: Tensor
    targets: Tensor


def _examples(*starts: float) -> list[_Example]:
    """Batches too long for torch to print in full: they differ where it prints nothing."""
    found = []
    for start in starts:
        inputs = torch.zeros(3, 500)
        inputs[:, 250] = start + torch.arange(3.0)
        found.append(_Example(inputs, torch.zeros(3)))
    return found


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: (one, "name"), lambda one: {"x": one.inputs.numpy()}])
def test_samples_are_known_by_their_content_whatever_holds_them(wrap: Any) -> None:
    train = [wrap(one) for one in _examples(0.0, 10.0)]
    require_disjoint(task_with(train, [wrap(one) for one in _examples(20.0)]))
    with pytest.raises(InputError, match="expected evaluation samples that are not trained on"):
        require_disjoint(task_with(train, [wrap(one) for one in _examples(10.0)]))


def test_a_sample_of_a_dataclass_is_found_among_others() -> None:
    with pytest.raises(InputError, match="got sample 2 of evaluation batch 0, which is sample 0 of training batch 1"):
        require_disjoint(task_with(_examples(0.0, 10.0), _examples(8.0)))
