"""A device that is none: tensors claim it, the CPU computes, and what a true one would not do, or wait for, shows.

`install` registers a device "pretend" with torch for the rest of the process. Its tensors refuse to meet those of the
CPU, as a GPU's do, and count what makes a GPU's queue run dry: numbers read back (`waits`) and blocking copies to it
(`uploads`), each by the line of lite-probe that asks for it. Autograd, views and in-place arithmetic are torch's own.

Registering a device changes what torch, and who asks it, take for this machine's accelerator: only processes of their
own do it (`tests.device.worker`).
"""

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration

from lite_probe.task import Task
from lite_probe.task.batches import map_leaves

NAME = "pretend"
_PACKAGE = Path(__file__).parents[1]
_OWN = ("lite_probe", "commands", "reports")
_CPU = torch.device("cpu")

# What reads a number, or a count that sizes a result, back from the device. Decompositions look at their error codes.
_READS = {
    "_linalg_check_errors",
    "_linalg_eigh",
    "_linalg_eigvals",
    "_linalg_svd",
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "linalg_eig",
    "masked_select",
    "multinomial",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}  # take indices on the CPU, too
_MOVING = {"copy_", "_to_copy"}
_LIBRARY: list[torch.library.Library] = []  # registrations last as long as it does


@dataclass(slots=True)
class Traffic:
    """What a device was kept waiting by, each by operation and the line of lite-probe that asked."""

    waits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)

    @property
    def num_waits(self) -> int:
        """Times that the CPU waited for a number."""
        return self.waits.total()

    @property
    def num_uploads(self) -> int:
        """Blocking copies to the device."""
        return self.uploads.total()


_counting: list[Traffic] = []


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Count waits and uploads for a while."""
    own = Traffic()
    _counting.append(own)
    try:
        yield own
    finally:
        _counting.remove(own)


class PretendTensor(Tensor):
    """A tensor that claims the pretend device; `held` is on the CPU and has its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> "PretendTensor":
        claimed: PretendTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        claimed.held = inner
        return claimed

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        if name in _MOVING:
            return _move(function, name, args, kwargs)
        given = [*_tensors_in(args), *_tensors_in(kwargs.values())]
        _require_one_device(function, name, given)
        _count_reads(function, name, args)
        return _compute(function, args, kwargs)

    def untyped_storage(self) -> Any:
        """Return the inner tensor's, which views of it share."""
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        """Return the inner tensor's."""
        return self.held.data_ptr()

    def tolist(self) -> Any:
        """Read all numbers back at once, which torch does not do for a subclass."""
        return self.cpu().tolist()

    def new_tensor(  # type: ignore[override]
        self, values: Any, *, dtype: torch.dtype | None = None, **more: Any
    ) -> Tensor:
        return torch.tensor(values, dtype=dtype or self.dtype, device=more.pop("device", self.device), **more)

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_indices(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_indices(index), value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be saved as its numbers are: which device they go to is said where they are read."""
        return self.held.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PretendTensor":
        if id(self) not in memo:
            copied = PretendTensor(self.held.detach().clone())
            copied.requires_grad_(self.requires_grad)
            copied._is_param = getattr(self, "_is_param", False)
            memo[id(self)] = copied
        found: PretendTensor = memo[id(self)]
        return found

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PretendTensor({self.held!r})"


def _indices(index: Any) -> Any:
    """Copy lists of indices to the device, as torch does below where Python can take part."""
    if isinstance(index, tuple):
        return tuple(_indices(one) for one in index)
    return torch.tensor(index, device=NAME) if isinstance(index, list) else index


class _Module:
    """What torch asks of `torch.pretend`."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed_all(self, seed: int) -> None:
        """Leave it: random numbers are the CPU's."""

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    def _is_in_bad_fork(self) -> bool:
        return False


def install() -> torch.device:
    """Register the device, for the rest of the process, which must not have run a backward pass before.

    Raises:
        RuntimeError: If this torch cannot have a device that is written in Python.
    """
    if not _LIBRARY:
        setup = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
        if setup is None:
            raise RuntimeError(f"torch {torch.__version__} has no devices written in Python")
        setup(NAME, _Module())
        library = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
        # Whatever makes a tensor there; what is done with one goes to its own `__torch_dispatch__`.
        library.fallback(_compute_made, "PrivateUse1")  # type: ignore[no-untyped-call]
        _LIBRARY.append(library)
        torch.tensor, torch.as_tensor = map(_made_on_the_cpu, (torch.tensor, torch.as_tensor))
        torch.load = _read_on_the_cpu(torch.load)
    return torch.device(NAME, 0)


def _made_on_the_cpu(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let values be copied to the device as a GPU's are: torch does so below where Python can take part."""

    def made(values: Any, *, dtype: torch.dtype | None = None, device: Any = None, **more: Any) -> Tensor:
        if device is None or torch.device(device).type != NAME:
            return make(values, dtype=dtype, device=device, **more)
        source = values if isinstance(values, Tensor) else make(values, dtype=dtype, **more)
        return source.to(device=device, dtype=dtype)

    return made


def _read_on_the_cpu(load: Callable[..., Any]) -> Callable[..., Any]:
    """Let all tensors of a file go to the device where that is asked for."""

    def read(source: Any, *, map_location: Any = None, **more: Any) -> Any:
        if map_location is None or torch.device(map_location).type != NAME:
            return load(source, map_location=map_location, **more)
        return map_leaves(_on_device, load(source, map_location=_CPU, **more))

    return read


def place(task: Task) -> Task:
    """Move a task's model and batches to the device; tied weights stay tied."""
    moved: dict[int, Any] = {}

    def parameter(tensor: Tensor) -> Any:
        if id(tensor) not in moved:
            moved[id(tensor)] = _on_device(tensor.detach().clone())
            moved[id(tensor)].requires_grad_(tensor.requires_grad)
            moved[id(tensor)]._is_param = isinstance(tensor, nn.Parameter)
        return moved[id(tensor)]

    for module in task.model.modules():
        for held in (module._parameters, module._buffers):
            held.update({name: parameter(tensor) for name, tensor in held.items() if tensor is not None})

    def batches(given: Sequence[Any]) -> list[Any]:
        return [map_leaves(_on_device, batch) for batch in given]

    task.evaluation, task.train, task.heldout = map(batches, (task.evaluation, task.train, task.heldout))
    return task


def _on_device(value: Any) -> Any:
    return PretendTensor(value) if isinstance(value, Tensor) else value


def _compute_made(function: Any, *args: Any, **kwargs: Any) -> Any:
    return _compute(function, args, kwargs)


def _compute(function: Any, args: Any, kwargs: Any) -> Any:
    known: dict[int, PretendTensor] = {}

    def inner(value: Any) -> Any:
        if isinstance(value, PretendTensor):
            known[id(value.held)] = value
            return value.held
        if isinstance(value, list | tuple):
            return [inner(one) for one in value]
        return _CPU if isinstance(value, torch.device) and value.type == NAME else value

    # What was written in place is returned as the tensor that it was.
    def outer(value: Any) -> Any:
        if isinstance(value, Tensor):
            return known[id(value)] if id(value) in known else PretendTensor(value)
        return type(value)([outer(one) for one in value]) if type(value) in (list, tuple) else value

    return outer(function(*map(inner, args), **{key: inner(value) for key, value in kwargs.items()}))


def _tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)


def _move(function: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Copy within the device, from the CPU, or to it; either way is waited for where it is not said otherwise."""
    if name == "copy_":
        target, source = args[0], args[1]
        if not kwargs.get("non_blocking", args[2] if len(args) > 2 else False):
            _count_copy(source, isinstance(target, PretendTensor))
        into, values = (one.held if isinstance(one, PretendTensor) else one for one in (target, source))
        into.copy_(values)
        return target
    device = torch.device(kwargs.get("device") or args[0].device)
    if device.type != "meta":
        _count_copy(args[0], device.type == NAME)
    source = args[0].held if isinstance(args[0], PretendTensor) else args[0]
    made = function(source, *args[1:], **{**kwargs, "device": _CPU if device.type == NAME else device})
    return PretendTensor(made) if device.type == NAME else made


def _require_one_device(function: Any, name: str, given: Sequence[Tensor]) -> None:
    """Refuse what a GPU refuses: tensors of two devices, but for single numbers and indices."""
    strangers = [tensor for tensor in given if not isinstance(tensor, PretendTensor) and tensor.ndim > 0]
    if name in _INDEXING:
        strangers = [tensor for tensor in strangers if tensor.dtype not in (torch.int64, torch.int32, torch.bool)]
    if strangers:
        raise RuntimeError(
            f"expected all tensors on one device, got {NAME} and a tensor of shape {tuple(strangers[0].shape)} on "
            f"{strangers[0].device} in {function}"
        )


def _count_reads(function: Any, name: str, args: Any) -> None:
    if name in _INDEXING:
        indices = [one for one in args[1] if one is not None]
        if any(one.dtype in (torch.bool, torch.uint8) for one in indices):
            _count("waits", f"{name} by a mask")
        elif any(not isinstance(one, PretendTensor) for one in indices):
            _count("uploads", f"{name} by indices of the CPU")
    elif (name == "repeat_interleave" and "Tensor" in str(function)) or name in _READS:
        _count("waits", name)


def _count_copy(source: Tensor, to_device: bool) -> None:
    if not source.numel():  # nothing travels
        return
    if isinstance(source, PretendTensor) and not to_device:
        _count("waits", "copy to the CPU")
    elif not isinstance(source, PretendTensor) and to_device:
        _count("uploads", "copy to the device")


def _count(kind: str, what: str) -> None:
    if not _counting:
        return
    where = "elsewhere"
    for frame, line in traceback.walk_stack(sys._getframe(1)):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_PACKAGE) and path.relative_to(_PACKAGE).parts[0] in _OWN:
            where = f"{path.relative_to(_PACKAGE)}:{line} {frame.f_code.co_name}"
            break
    for own in _counting:
        getattr(own, kind)[f"{what} at {where}"] += 1
