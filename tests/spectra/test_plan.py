"""A batch is as large as what it holds, whatever holds it."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding

from lite_probe.spectra.plan import _entries


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
    assert _entries(batch) == expected
