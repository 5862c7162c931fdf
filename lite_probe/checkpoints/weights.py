"""The tensors of a checkpoint: names and shapes at once, values one by one when they are asked for."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lite_probe.checkpoints.json_files import num_values
from lite_probe.checkpoints.pickles import damaged, verify_torch_file
from lite_probe.errors import InputError, shown, shown_name
from lite_probe.files import open_regular

Shape = tuple[int, ...]

# Of one safetensors file; a tensor takes about 120 bytes and 9 values.
MAX_HEADER_BYTES = 2**24
MAX_HEADER_VALUES = 2**20


class Weights(ABC):
    """Named tensors that lie on disk.

    `metas` holds them on the meta device: shape and dtype without storage. `files` are what was read.
    """

    files: tuple[Path, ...]
    metas: Mapping[str, Tensor]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU; it may be a view of a mapped file, so copy before writing."""

    def verify(self) -> None:
        """Check the files' own checksums, where the format has any; one pass over them."""
        return

    @property
    def num_elements(self) -> int:
        """Elements over all tensors, each name counted: what an untied model could take from them."""
        return sum(meta.numel() for meta in self.metas.values())

    def identity(self, name: str) -> Hashable:
        """Return what two names share exactly if they name one stored tensor."""
        return name

    @property
    def distinct(self) -> list[Tensor]:
        """Shapes and dtypes, a tensor stored once under several names (tied weights) once."""
        return list({self.identity(name): meta for name, meta in self.metas.items()}.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as stored, tied weights once."""
        return sum(meta.numel() * meta.element_size() for meta in self.distinct)


def on_meta(tensor: Tensor) -> Tensor:
    """Return shape and dtype of a tensor without its values."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


class MappedWeights(Weights):
    """Tensors of files that `torch.save` wrote, mapped into memory.

    Args:
        tensors: Name → tensor; views are fine.
        files: Where they lie.
    """

    def __init__(self, tensors: Mapping[str, Tensor], files: Iterable[Path]) -> None:
        for name, tensor in tensors.items():
            if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
                raise InputError(
                    f"expected dense tensors, got {shown_name(name)} with {tensor.layout} on {tensor.device}",
                    "save the model's weights dense and dequantized",
                )
            # A stride of zero makes any size out of one number.
            if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                raise InputError(
                    f"expected {shown_name(name)} to lie in the file whole, got {shown(tuple(tensor.shape))} expanded "
                    "from less",
                    "save a contiguous copy of it",
                )
        self.files = tuple(files)
        self.metas = {name: on_meta(tensor) for name, tensor in tensors.items()}
        self._tensors = tensors

    def read(self, name: str) -> Tensor:
        """Return one tensor, a view of the mapped file."""
        return self._tensors[name].detach()

    def identity(self, name: str) -> Hashable:
        """Return address and shape of one tensor."""
        return self._tensors[name].data_ptr(), self.metas[name].shape

    def verify(self) -> None:
        """Check every archive against its checksums."""
        for path in self.files:
            verify_torch_file(path)


class SafetensorsWeights(Weights):
    """Tensors of one or more safetensors files.

    Args:
        files: The shards; together they name each tensor once.

    Raises:
        InputError: If a shard is damaged, or two of them hold the same name.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = tuple(files)
        self._shards: dict[str, Path] = {}
        metas = {}
        for path in self.files:
            for name, meta in _safetensors_metas(path).items():
                if name in self._shards:
                    raise InputError(
                        f"expected each tensor in one shard, got {shown_name(name)} in {self._shards[name].name} and "
                        f"{path.name}",
                        "remove the shard that does not belong to this checkpoint",
                    )
                self._shards[name] = path
                metas[name] = meta
        self.metas = metas

    def read(self, name: str) -> Tensor:
        """Read one tensor from its shard."""
        path = self._shards[name]
        try:
            with safe_open(path, framework="pt", device="cpu") as shard:
                tensor: Tensor = shard.get_tensor(name)
                return tensor
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise damaged(path.name, "a safetensors file", error) from error


def _safetensors_metas(path: Path) -> dict[str, Tensor]:
    """Return what the header says; the library checks offsets, sizes and the header's length."""
    metas = {}
    _check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as shard:
            for name in shard.keys():  # noqa: SIM118  # a shard is not a mapping
                view = shard.get_slice(name)
                dtype = _SAFETENSORS_DTYPES.get(view.get_dtype())
                if dtype is None:
                    raise InputError(
                        f"expected weights of a torch dtype, got {shown_name(name)} of {view.get_dtype()} in "
                        f"{path.name}",
                        "dequantize the checkpoint first",
                    )
                metas[name] = torch.empty(view.get_shape(), dtype=dtype, device="meta")
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError, TypeError) as error:
        raise damaged(path.name, "a safetensors file", error) from error
    return metas


def _check_header(path: Path) -> None:
    """Refuse a header of which the library would make gigabytes, and what may not be read, before it is asked."""
    # The library takes what it may not read for damage.
    with open_regular(path, "a safetensors file") as stream:
        num_bytes = int.from_bytes(stream.read(8), "little")
        problem = f"{num_bytes:,} bytes, more than {MAX_HEADER_BYTES:,}" if num_bytes > MAX_HEADER_BYTES else ""
        if not problem and num_values(stream.read(num_bytes)) > MAX_HEADER_VALUES:
            problem = f"more than {MAX_HEADER_VALUES:,} values"
    if problem:
        raise InputError(
            f"expected a safetensors file of tensors, got {path.name} with a header of {problem}",
            "divide it into shards with save_pretrained, or copy it again if it is damaged",
        )


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class RenamedWeights(Weights):
    """The same tensors under other names; tensors without a new name are left out.

    Args:
        base: Where the values come from.
        names: New name → name in `base`.
    """

    def __init__(self, base: Weights, names: Mapping[str, str]) -> None:
        self.files = base.files
        self.metas = {new: base.metas[old] for new, old in names.items()}
        self._base = base
        self._names = names

    def read(self, name: str) -> Tensor:
        """Read one tensor by its new name."""
        return self._base.read(self._names[name])

    def identity(self, name: str) -> Hashable:
        """Return the identity of the tensor behind a name."""
        return self._base.identity(self._names[name])

    def verify(self) -> None:
        """Check the files the values come from."""
        self._base.verify()
