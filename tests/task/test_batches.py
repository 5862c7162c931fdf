"""What holds a batch's tensors does not matter: it is walked, measured and made again alike."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding

from lite_probe.task.batches import in_rows, leaves_of, map_leaves, num_entries, num_samples, parts_of, with_rows
from tests import models


class _Pair(NamedTuple):
    inputs: Tensor
    targets: Tensor


@dataclass
class _Record:
    inputs: Tensor
    weight: float


_SIX, _FOUR = torch.zeros(2, 3), torch.zeros(4)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (_SIX, 6),
        ((_SIX, _FOUR), 10),
        ({"inputs": _SIX, "more": [_FOUR, _FOUR]}, 14),
        (OrderedDict(inputs=_SIX), 6),
        (BatchEncoding({"input_ids": _SIX, "attention_mask": _SIX}), 12),
        (_Pair(_SIX, _FOUR), 10),
        (_Record(_SIX, 0.5), 7),
        (np.zeros((3, 5)), 15),
        ((np.zeros(3), "name", 7), 5),
        ("a text", 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_entries_of_a_batch(batch: Any, expected: int) -> None:
    assert num_entries(batch) == expected


@pytest.mark.parametrize(
    "batch",
    [
        (_SIX, [_FOUR, None]),
        {"inputs": _SIX, "more": (_FOUR, "name", 7)},
        OrderedDict(b=_SIX, a=_FOUR),
        BatchEncoding({"input_ids": _SIX, "attention_mask": _SIX}),
        _Pair(_SIX, _FOUR),
        _Record(_SIX, 0.5),
        [_Pair(_SIX, _FOUR), {"record": _Record(_FOUR, 2.0)}],
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_batch_is_made_again_of_other_tensors(batch: Any) -> None:
    def moved(leaf: Any) -> Any:
        return leaf + 1.0 if isinstance(leaf, Tensor) else leaf

    again = map_leaves(moved, batch)
    assert type(again) is type(batch)
    assert [type(leaf) for leaf in leaves_of(again)] == [type(leaf) for leaf in leaves_of(batch)]
    for leaf, before in zip(leaves_of(again), leaves_of(batch), strict=True):
        if isinstance(leaf, Tensor):
            assert bool((leaf == 1.0).all())
            assert bool((before == 0.0).all())
        else:
            assert leaf == before
    if isinstance(batch, dict):
        assert list(again) == list(batch)


def test_mappings_are_read_by_their_keys() -> None:
    """Two that were filled in another order hold the same."""
    one, other = {"a": _SIX, "b": _FOUR}, {"b": _FOUR, "a": _SIX}
    assert [leaf.numel() for leaf in leaves_of(one)] == [leaf.numel() for leaf in leaves_of(other)] == [6, 4]


def test_samples_are_what_all_tensors_share() -> None:
    assert num_samples(_Pair(torch.zeros(4, 2), torch.zeros(4))) == 4
    assert num_samples(_Pair(torch.zeros(4, 2), torch.zeros(3))) == 0
    assert num_samples(_Record(torch.zeros(4, 2), 0.5)) == 0
    assert num_samples(torch.tensor(1.0)) == 0


def test_a_batch_in_parts_is_of_the_same_make_and_a_view() -> None:
    batch = {"inputs": torch.arange(10.0).reshape(5, 2), "targets": torch.arange(5)}
    parts = in_rows(batch, 2)
    assert [part["targets"].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert torch.equal(torch.cat([part["inputs"] for part in parts]), batch["inputs"])
    storage = batch["inputs"].untyped_storage().data_ptr()
    assert {part["inputs"].untyped_storage().data_ptr() for part in parts} == {storage}
    record = _Pair(torch.zeros(3, 2), torch.zeros(3))
    assert [type(part) for part in in_rows(record, 1)] == [_Pair] * 3


@pytest.mark.parametrize("rows", [None, 4, 9])
def test_a_batch_of_no_more_rows_stays_itself(rows: int | None) -> None:
    batch = (torch.zeros(4, 2), torch.zeros(4))
    assert in_rows(batch, rows)[0] is batch


@pytest.mark.parametrize("batch", [(torch.zeros(4, 2), torch.zeros(3)), (torch.zeros(4), 0.5), torch.zeros(())])
def test_a_batch_without_rows_stays_whole(batch: Any) -> None:
    (part,) = in_rows(batch, 1)
    assert part is batch


def test_parts_know_their_batch() -> None:
    task = models.make_task("llama")
    whole = parts_of(task, "evaluation")
    assert [index for index, _ in whole] == [0, 1, 2]
    split = with_rows(task, 2)
    assert [(index, len(part)) for index, part in parts_of(split, "evaluation")] == [(0, 2), (0, 1), (1, 2), (2, 1)]
    assert task.rows is None
    assert split.model is task.model
