"""Fingerprints of batches: other content, another key; the same content, the same key, today and tomorrow."""

import collections
import datetime
import enum
import threading
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BatchEncoding

from lite_probe.errors import InputError
from lite_probe.runtime.fingerprint import batches_digest

Pair = namedtuple("Pair", ["inputs", "targets"])


def digest(batch: object) -> str:
    return batches_digest([batch])


# What saved results are keyed by; a change here makes every one of them stale.
_PINNED: Mapping[str, tuple[list[Any], str]] = {
    "tokens": ([torch.arange(6).view(2, 3)], "20d2c939b8a2e666a051e9a1c51abfdbce2e381db062ef310db6f72a255fbdfb"),
    "numbers": ([torch.arange(6.0).view(2, 3)], "66a9c19fc18e14189fb116fb61462270da2bc982434b472c93ff512b7a84601d"),
    "types and strides": (
        [
            torch.arange(4.0).bfloat16(),
            torch.tensor([True, False]),
            torch.tensor(3),
            torch.arange(6).view(2, 3).T,
            torch.tensor([1 + 2j]),
        ],
        "acb239f4389bb7056721992403dc1e515870381dffa55f8c5bd409c129762345",
    ),
    "inputs and targets": (
        [(torch.ones(2), torch.tensor([1]))],
        "7b192930eea394785268e7c802043403e2f42b3da292719d2e6945fcd0a5a928",
    ),
    "an array": ([np.array([1.0, 2.0])], "a70ec3c49cc8d6069cb73609f740c4acce6d2cdda56b5abee152c88e7f38d5bc"),
    "numpy's numbers": (
        [(np.float64(0.5), np.int64(3))],
        "f85d53e5de10752985aba0d1b963162971bf389cf2e9e05bf48ebd1751533e98",
    ),
    "a mapping": ([{1: 2, "b": 3}], "9783d7a2fc39840b0b9980fd3485468f2a9afef674cc744fd0a37c3548bbd280"),
    "a complex number": ([1 + 2j], "a8400f1c19a4630c1bfb794a66c5d60ee57cb4ffcf8c14047a8bb2ae09a289b2"),
    "no rows": ([(torch.zeros(0, 3),)], "09cc8b1e7c0ff72aca69ca0cbe71dfb3598c87716dcfb489b28a91cbd3f7c4fd"),
}


@pytest.mark.parametrize("what", list(_PINNED))
def test_the_digest_stays_what_it_was(what: str) -> None:
    batches, expected = _PINNED[what]
    assert batches_digest(batches) == expected


@dataclass
class Sample:
    inputs: Any
    targets: Any = None


class Plain:
    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs


class Slotted:
    __slots__ = ("inputs",)

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs


class Color(enum.Enum):
    RED = 1
    BLUE = 2


def _object_array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    array = np.empty(2, dtype=object)
    array[0], array[1] = tensor, "b"
    return array


# Ways to hold a tensor.
_HOLDERS: Mapping[str, Callable[[torch.Tensor], Any]] = {
    "dataclass": Sample,
    "object": Plain,
    "slots": Slotted,
    "named tuple": lambda tensor: Pair(tensor, 1),
    "object in a dict in a list": lambda tensor: [{"sample": Plain((1, tensor))}],
    "BatchEncoding": lambda tensor: BatchEncoding({"input_ids": tensor}),
    "UserDict": lambda tensor: UserDict(x=tensor),
    "OrderedDict": lambda tensor: OrderedDict(x=tensor),
    "deque": lambda tensor: collections.deque([tensor]),
    "array": lambda tensor: tensor.numpy(),
    "array back to front": lambda tensor: tensor.numpy()[::-1],
    "array of another byte order": lambda tensor: tensor.numpy().astype(">f4"),
    "array of long doubles": lambda tensor: tensor.numpy().astype(np.longdouble),
    "array of strings": lambda tensor: tensor.numpy().astype(str),
    "array of objects": _object_array,
    "records": lambda tensor: np.rec.fromarrays([tensor.numpy(), tensor.numpy()]),
    "masked array": lambda tensor: np.ma.masked_array(tensor.numpy(), mask=False),
    "mask": lambda tensor: np.ma.masked_array(np.ones((600, 50)), mask=tensor.numpy() == 0.25),
    "sparse": lambda tensor: tensor.to_sparse(),
    "sparse rows": lambda tensor: tensor.to_sparse_csr(),
    "sparse columns": lambda tensor: tensor.to_sparse_csc(),
    "nested": lambda tensor: torch.nested.as_nested_tensor([tensor, tensor[:3]]),
    "bfloat16": lambda tensor: tensor.bfloat16(),
    "conjugate": lambda tensor: (tensor * 1j).conj(),
    "negated": lambda tensor: (tensor * 1j).conj().imag,
    "0-dim": lambda tensor: tensor[300, 20].clone(),
    "every other": lambda tensor: tensor[::2, ::2],
    "with a gradient": lambda tensor: tensor.clone().requires_grad_(),
    "bytes": lambda tensor: tensor.numpy().tobytes(),
    "bytearray": lambda tensor: bytearray(tensor.numpy().tobytes()),
    "memoryview": lambda tensor: tensor.numpy().data,
    "set": lambda tensor: {float(number) for number in tensor.flatten()},
    "method": lambda tensor: Plain(tensor).__init__,  # type: ignore[misc]
    "iterator": lambda tensor: iter([tensor]),
    "slice": lambda tensor: slice(None, None, tensor),
    "generator's state": lambda tensor: np.random.default_rng(int(tensor[300, 20] * 4)),
}


@pytest.mark.parametrize("what", list(_HOLDERS))
def test_one_entry_of_many_changes_the_digest(what: str) -> None:
    """The entry is one that the repr of a long tensor leaves out."""
    one, other = torch.ones(600, 50), torch.ones(600, 50)
    other[300, 20] = 0.25
    hold = _HOLDERS[what]
    assert digest(hold(one)) != digest(hold(other))
    assert digest(hold(one)) == digest(hold(one.clone()))
    assert batches_digest([hold(one), hold(other)]) != batches_digest([hold(other), hold(one)])


_OTHERS: Mapping[str, tuple[Any, Any]] = {
    "digits that run together": ([1, 23], [12, 3]),
    "and of fractions": ((0.5, 1), (0.51, None)),
    "what a mapping in a mapping holds": ({"a": {"b": 1}, "c": 2}, {"a": {"b": 1, "c": 2}}),
    "what mappings in a list hold": ([{"a": 1}, {"b": 2, "c": 3}], [{"a": 1, "b": 2}, {"c": 3}]),
    "an empty mapping": ([{"a": 1, "b": 2}, {}], [{"a": 1}, {"b": 2}]),
    "nothing": ({}, []),
    "strings joined": (["ab"], ["a", "b"]),
    "strings cut": (["ab", "c"], ["a", "bc"]),
    "a number and its text": (1, "1"),
    "bytes and text": (b"a", "a"),
    "true and one": (True, 1),
    "a key's content": ({(1, 2): 0}, {(1, 3): 0}),
    "lists in lists": ([[1], [2, 3]], [[1, 2], [3]]),
    "a class": (Sample(1, None), Plain(1)),
    "a field": (Sample(1, 2), Sample(2, 1)),
    "a set's item": ({"a", "b"}, {"a", "c"}),
    "a frozen set": (frozenset([1, 23]), frozenset([12, 3])),
    "an enumeration": (Color.RED, Color.BLUE),
    "a date": (datetime.date(2024, 1, 2), datetime.date(2024, 1, 3)),
    "a date of numpy": (np.datetime64("2024-01-02"), np.datetime64("2024-01-03")),
    "a record of numpy": (np.zeros(1, "i4,f4")[0], np.ones(1, "i4,f4")[0]),
    "a path": (Path("a"), Path("b")),
    "a function": (len, max),
    "a surrogate": ("\udc80", "\udc81"),
}


@pytest.mark.parametrize("what", list(_OTHERS))
def test_other_content_has_another_digest(what: str) -> None:
    one, other = _OTHERS[what]
    assert digest(one) != digest(other)
    assert digest(one) == digest(one)


def test_the_order_of_sets_and_mappings_does_not_matter() -> None:
    names, backwards = ([f"name {index}" for index in order] for order in (range(50), range(49, -1, -1)))
    assert digest(set(names)) == digest(set(backwards))
    assert digest(BatchEncoding({"a": 1, "b": 2})) == digest({"b": 2, "a": 1})


_LEAVES = (
    st.integers(-30, 30) | st.sampled_from(["", "1", "12", "a", "'"]) | st.none() | st.booleans() | st.floats(0, 9)
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(one=_VALUES, other=_VALUES)
@settings(max_examples=300, deadline=None)
def test_equal_digests_are_of_equal_content(one: Any, other: Any) -> None:
    assert (digest(one) == digest(other)) == (repr(sorted_keys(one)) == repr(sorted_keys(other)))


def sorted_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(item) for item in value] if isinstance(value, list) else value


def _itself() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def _variables() -> Callable[[], int]:
    held = 3
    return lambda: held


def _deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(5000):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (lambda: (number for number in [1]), r"builtins\.generator whose content cannot be told \(cannot pickle"),
        (threading.Lock, r"_thread\.lock whose content cannot be told"),
        (lambda: Plain(threading.Lock()), r"_thread\.lock whose content cannot be told"),
        (lambda: torch.empty(3, device="meta"), r"torch\.Tensor without entries of its own"),
        (
            lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            r"torch\.Tensor without entries of its own",
        ),
        (_variables, r"builtins\.function which holds variables"),
        (_itself, r"builtins\.list which holds itself"),
        (_deep, r"builtins\.list which holds itself or is too deeply nested"),
    ],
    ids=["generator", "lock", "lock in an object", "meta", "quantized", "closure", "cycle", "deep"],
)
def test_what_cannot_be_hashed_by_content_is_refused(batch: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=f"expected batches of tensors, arrays.* got a {message}.*; turn it into one"):
        digest(batch())
