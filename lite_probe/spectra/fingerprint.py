"""What a result is keyed by: the weights and batches as they are, and what was asked of them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lite_probe.operators.gradient import Split
from lite_probe.task import Batch, Task


def task_fingerprint(task: Task, split: Split, config: Mapping[str, object]) -> str:
    """Hash parameters, buffers, the split's batches and the configuration.

    Args:
        task: Its weights are hashed as they are now, not as a file says.
        split: Whose batches count.
        config: JSON values that change the numbers; what only changes speed stays out.

    Returns:
        64 hexadecimal digits.

    Cost: one pass over weights and batches at the speed of SHA-256.
    """
    digest = hashlib.sha256()
    for name, tensor in [*task.model.named_parameters(), *task.model.named_buffers()]:
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}:{tensor.requires_grad}".encode())
        digest.update(_bytes(tensor))
    for batch in task.batches(split):
        _update(digest, batch)
    digest.update(json.dumps(config, sort_keys=True).encode())
    return digest.hexdigest()


def batches_digest(batches: Sequence[Batch]) -> str:
    """Return the SHA-256 of some batches' contents, in order, whatever they are made of."""
    digest = hashlib.sha256()
    for batch in batches:
        _update(digest, batch)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    """Feed one batch, whatever it is made of."""
    if isinstance(value, Tensor):
        digest.update(f"{tuple(value.shape)}:{value.dtype}".encode())
        digest.update(_bytes(value))
    elif isinstance(value, np.ndarray):
        _update(digest, torch.from_numpy(value))
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(f"key {key}".encode())
            _update(digest, value[key])
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        digest.update(f"sequence {len(value)}".encode())
        for item in value:
            _update(digest, item)
    else:
        digest.update(repr(value).encode())


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
