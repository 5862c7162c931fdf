"""What a result is keyed by: the weights and batches as they are, and what was asked of them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from enum import Enum
from types import BuiltinFunctionType, EllipsisType, FunctionType, MethodType, NoneType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.errors import InputError
from lite_probe.task import Batch, Split, Task

# Their repr says all; of anything else it may leave something out, as torch's and numpy's do of long arrays.
_BY_REPR = frozenset(
    {NoneType, EllipsisType, bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.layout}
    | {kind for kind in np.sctypeDict.values() if not issubclass(kind, np.void | np.object_)}
)
_DIGITS = (int, float, complex)  # whose repr has no end of its own
_DEEPEST = 100  # levels of containers; a batch has a few


def task_fingerprint(task: Task, split: Split, config: Mapping[str, object]) -> str:
    """Hash parameters, buffers, the split's batches and the configuration.

    Args:
        task: Its weights are hashed as they are now, not as a file says.
        split: Whose batches count.
        config: JSON values that change the numbers; what only changes speed stays out.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: If a batch holds something whose content cannot be told.

    Cost: one pass over weights and batches at the speed of SHA-256. Shards are put together parameter by parameter, on
    every rank: all of them call this together.
    """
    digest = hashlib.sha256()
    for name, tensor in [*task.model.named_parameters(), *task.model.named_buffers()]:
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}:{tensor.requires_grad}".encode())
        digest.update(_bytes(getattr(tensor, "full_tensor", tensor.detach)()))
    for batch in task.batches(split):
        _update(digest, batch)
    digest.update(json.dumps(config, sort_keys=True).encode())
    return digest.hexdigest()


def landscape(task: Task, loss: float, per_block: bool) -> dict[str, object]:
    """Return what tells a task from another one of the same weights and batches: its loss and its blocks.

    The loss stands for the code of criterion and model, by four digits: its last ones depend on the machine.
    """
    blocks = {name: [asdict(part) for part in parts] for name, parts in (task.blocks or {}).items()}
    return {"loss": f"{loss:.3e}", "blocks": blocks if per_block else None}


def batches_digest(batches: Sequence[Batch]) -> str:
    """Return the SHA-256 of some batches' contents, in order, whatever they are made of.

    Raises:
        InputError: If a batch holds something whose content cannot be told.
    """
    digest = hashlib.sha256()
    for batch in batches:
        _update(digest, batch)
    return digest.hexdigest()


def _update(digest: Any, value: Any, path: tuple[int, ...] = (), *, in_mapping: bool = False) -> None:
    """Feed one batch, whatever it is made of.

    Args:
        digest: Is fed.
        value: Tensors, arrays, numbers, strings; sequences, mappings and sets of them; any object that can be taken
            apart, by what pickle would keep of it.
        path: Identities of what holds the value.
        in_mapping: Whether it is a value of a mapping.

    Raises:
        InputError: If something in it has no content to hash, or it holds itself.
    """
    if id(value) in path or len(path) > _DEEPEST:
        raise _refusal(value, "which holds itself or is too deeply nested")
    if isinstance(value, Tensor):
        _update_tensor(digest, value, path)
    elif isinstance(value, np.ndarray):
        _update_array(digest, value, path)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(f"key {key}".encode(errors="backslashreplace"))
            if not isinstance(key, str | int):
                _update(digest, key, (*path, id(value)))
            _update(digest, value[key], (*path, id(value)), in_mapping=True)
        if in_mapping or not value:  # else what follows could as well belong to it
            digest.update(b"\0end")
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        digest.update(f"sequence {len(value)}".encode())
        before = None
        for index, item in enumerate(value):
            if index and _run_together(before, item):
                digest.update(b"\0")
            _update(digest, item, (*path, id(value)))
            before = item
    elif type(value) in _BY_REPR or isinstance(value, Enum):
        digest.update(repr(value).encode(errors="backslashreplace"))
    else:
        _update_object(digest, value, path)


def _run_together(before: object, item: object) -> bool:
    """Whether two neighbours in a sequence need a mark between them: 1, 23 and 12, 3 have the same digits."""
    if isinstance(before, Mapping) and isinstance(item, Mapping):
        return before.keys() != item.keys()
    return type(before) in _DIGITS and type(item) in _DIGITS


def _update_tensor(digest: Any, value: Tensor, path: tuple[int, ...]) -> None:
    """Feed shape, type and entries; of a sparse or nested tensor its parts."""
    if value.is_meta or value.is_quantized:
        raise _refusal(value, "without entries of its own")
    if value.is_nested:
        digest.update(b"\0nested")
        _update(digest, list(value.unbind()), path)
        return
    digest.update(f"{tuple(value.shape)}:{value.dtype}".encode())
    if value.layout == torch.strided:
        digest.update(_bytes(value))
        return
    digest.update(f"\0{value.layout}".encode())
    if value.layout == torch.sparse_coo:
        value = value.coalesce()
        parts = [value.indices(), value.values()]
    elif value.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [value.crow_indices(), value.col_indices(), value.values()]
    else:
        parts = [value.ccol_indices(), value.row_indices(), value.values()]
    _update(digest, parts, path)


def _update_array(digest: Any, value: NDArray[Any], path: tuple[int, ...]) -> None:
    """Feed an array as the tensor it would be; one that no tensor can hold by its own bytes or items."""
    if isinstance(value, np.ma.MaskedArray):
        digest.update(b"\0masked")
        _update(digest, [np.ma.getmaskarray(value), value.filled()], path)
    elif value.dtype.hasobject or value.dtype.char in "gG":  # long doubles have bytes that mean nothing
        digest.update(f"\0items {value.shape}".encode())
        _update(digest, value.ravel().tolist(), (*path, id(value)))
    else:
        whole = np.ascontiguousarray(value).reshape(value.shape)  # the first makes a vector of a scalar
        try:
            _update(digest, torch.from_numpy(whole), path)
        except (TypeError, ValueError):  # strings, dates, records, another byte order
            digest.update(f"\0array {whole.shape}:{whole.dtype.descr}".encode())
            digest.update(whole.tobytes())


def _update_object(digest: Any, value: Any, path: tuple[int, ...]) -> None:
    """Feed what is neither tensor, array, number, string, sequence nor mapping."""
    inside = (*path, id(value))
    if isinstance(value, Set):
        items = sorted(_digest_of(item, inside) for item in value)
        digest.update(f"\0set {len(items)}:{','.join(items)}".encode())
    elif isinstance(value, bytes | bytearray | memoryview):
        digest.update(b"\0bytes")
        _update(digest, bytes(value), inside)
    elif isinstance(value, MethodType):
        _update(digest, [value.__func__, value.__self__], inside)
    elif isinstance(value, type | FunctionType | BuiltinFunctionType):
        if getattr(value, "__closure__", None):
            raise _refusal(value, "which holds variables")
        digest.update(f"\0name {value.__module__}.{value.__qualname__}".encode())
    else:
        try:
            kept = value.__reduce_ex__(4)
        except Exception as error:  # a class of the user's may refuse as it likes
            raise _refusal(value, f"whose content cannot be told ({error})") from error
        digest.update(b"\0object")
        parts = [kept] if isinstance(kept, str) else kept
        _update(digest, [list(part) if isinstance(part, Iterator) else part for part in parts], inside)


def _digest_of(value: Any, path: tuple[int, ...]) -> str:
    digest = hashlib.sha256()
    _update(digest, value, path)
    return digest.hexdigest()


def _refusal(value: object, why: str) -> InputError:
    return InputError(
        f"expected batches of tensors, arrays, numbers, strings and what is made of them, got a "
        f"{type(value).__module__}.{type(value).__qualname__} {why}",
        "turn it into one of these where the task makes its batches: results are known again by their contents",
    )


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
