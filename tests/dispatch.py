"""What a piece of code asks torch for: how often Python waits for a number, and the largest tensor that is made."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Counts calls by name, and keeps the largest tensor of each element type; what has no storage is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.largest: dict[torch.dtype, int] = {}  # entries

    @property
    def waits(self) -> int:
        """How often Python asked for a number, for which an accelerator makes it wait."""
        return self.calls.get("_local_scalar_dense", 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        made = [one for one in (found if isinstance(found, tuple | list) else [found]) if isinstance(one, Tensor)]
        if any(one.device.type == "meta" for one in made):
            return found
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        given = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        for one in made:
            if one.untyped_storage().data_ptr() not in given:
                self.largest[one.dtype] = max(self.largest.get(one.dtype, 0), one.numel())
        return found
