"""Folders of torch.distributed.checkpoint, read in one process and without its unpickler.

`.metadata` is a pickle that torch reads with `pickle.load`. Here every class in it resolves to a record that only
keeps what it is given, made anew for each file, and each chunk of a tensor is an archive of `torch.save` inside a
data file.
"""

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lite_probe.checkpoints.checkpoint import Checkpoint
from lite_probe.checkpoints.huggingface import find_tokenizer
from lite_probe.checkpoints.json_files import read_json_object
from lite_probe.checkpoints.optimizers import StateDict, StateReader, find_state_dicts
from lite_probe.checkpoints.pickle_bounds import (
    MAX_PICKLE_BYTES,
    BoundsError,
    CallRule,
    Machine,
    anything,
    check_unfolded,
    hashable_members,
    opcodes,
    texts,
)
from lite_probe.checkpoints.pickles import damaged, exhausting, read_torch_bytes
from lite_probe.checkpoints.state_dicts import STEP_KEYS, find_state_dict, find_step, unwrap
from lite_probe.checkpoints.torch_file import fit_names
from lite_probe.checkpoints.weights import Weights
from lite_probe.errors import InputError, LiteProbeError, UnsafePickleError, shown
from lite_probe.files import open_regular, read_bounded

METADATA_FILE = ".metadata"
STATE_DEPTH = 8  # levels of nesting in an optimizer state
Shape = tuple[int, ...]

_RECORDS = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "pathlib": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
    "pathlib._local": ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"),
}
_PLAIN: Mapping[tuple[str, str], Any] = {
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): lambda name: name,
    ("collections", "OrderedDict"): dict,
}
_CALLS: Mapping[str, CallRule] = {
    **{f"{module}.{name}": anything for module, names in _RECORDS.items() for name in names},
    "torch.Size": anything,
    "torch.serialization._get_layout": texts,
    "collections.OrderedDict": hashable_members,
}
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class _Record:
    """What a pickle says about one object: its class's name, constructor arguments and state."""

    kind = ""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __getitem__(self, name: str) -> Any:
        if not isinstance(self.state, dict) or name not in self.state:
            raise ValueError(f"its {self.kind} has no {name}")
        return self.state[name]


class _MetadataUnpickler(pickle.Unpickler):
    """Resolves the classes of torch's metadata to records, and every other name to an error."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._classes: dict[str, type[_Record]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for one name.

        Raises:
            UnsafePickleError: If it is not part of torch's metadata.
        """
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if name in _RECORDS.get(module, ()):
            # A class of this file alone: whatever the pickle does to it ends with it.
            return self._classes.setdefault(name, type(name, (_Record,), {"kind": name}))
        raise UnsafePickleError(
            f"expected a distributed checkpoint's metadata, got {METADATA_FILE}, whose pickle asks for {module}.{name}",
            "load the checkpoint where it was written and save the model's state_dict with torch.save",
        )

    def persistent_load(self, pid: object) -> Any:
        """Refuse references out of the file."""
        raise pickle.UnpicklingError("it refers to objects outside of the file")


@dataclass(frozen=True, slots=True)
class _Piece:
    """Where one chunk, or one object that is no tensor, lies."""

    file: str  # beside .metadata
    offset: int  # bytes
    length: int  # bytes
    starts: Shape  # of the chunk within its tensor
    sizes: Shape


@dataclass(frozen=True, slots=True)
class _Index:
    """The content of `.metadata`, checked."""

    tensors: Mapping[str, Tensor]  # flat name → shape and dtype, on the meta device
    pieces: Mapping[str, tuple[_Piece, ...]]  # flat name → chunks; one piece for an object
    paths: Mapping[str, tuple[str | int, ...]]  # flat name → keys of the nested dict that was saved; int in a list


@dataclass(frozen=True, slots=True)
class _Unread:
    """An object that is no tensor, by the flat name it lies under."""

    flat: str


def read(folder: Path, *, model_config: Mapping[str, Any] | None) -> Checkpoint:
    """Read a torch distributed checkpoint; no process group is needed.

    Args:
        folder: With `.metadata` and its data files.
        model_config: Of the model; a config.json in the folder otherwise.

    Raises:
        InputError: If metadata or data files are damaged or missing, or no state dict is found.
        UnsafePickleError: If the metadata asks for a name that is not part of it.
    """
    index = _read_index(folder)
    whole = _nested(index)
    saved = unwrap(whole, folder.name)
    steps = [_with_steps(folder, index, place) for place in (saved, whole)]
    config = model_config
    if config is None and (folder / "config.json").is_file():
        config = read_json_object(folder / "config.json")
    model_tensors = find_state_dict(saved, folder.name)
    flat_names = {id(meta): name for name, meta in index.tensors.items()}
    names = {name: flat_names[id(meta)] for name, meta in model_tensors.items()}
    weights, notes = fit_names(_DistributedWeights(folder, index, names), config)
    return Checkpoint(
        path=folder,
        format="distributed",
        weights=weights,
        model_config=config,
        step=find_step(*steps),
        tokenizer_path=find_tokenizer(folder),
        read_states=_states_reader(folder, index, saved, whole),
        notes=notes,
    )


class _DistributedWeights(Weights):
    """Tensors put together from their chunks, one tensor at a time."""

    def __init__(self, folder: Path, index: _Index, names: Mapping[str, str]) -> None:
        used = {piece.file for flat in names.values() for piece in index.pieces[flat]}
        self.files = (folder / METADATA_FILE, *(folder / name for name in sorted(used)))
        self.metas = {name: index.tensors[flat] for name, flat in names.items()}
        self._folder = folder
        self._index = index
        self._names = names

    def read(self, name: str) -> Tensor:
        """Read all chunks of one tensor."""
        flat = self._names[name]
        meta = self._index.tensors[flat]
        # Whatever the chunks leave open stays NaN and is found by the check for finite weights.
        tensor = torch.full(meta.shape, torch.nan if meta.is_floating_point() else 0, dtype=meta.dtype)
        for piece in self._index.pieces[flat]:
            chunk = _read_piece(self._folder, piece)
            if not isinstance(chunk, Tensor) or tuple(chunk.shape) != piece.sizes or chunk.dtype != meta.dtype:
                raise damaged(
                    piece.file, "the chunks that .metadata lists", f"the chunk of {flat} is not what was listed"
                )
            target = tensor
            for dim, (start, size) in enumerate(zip(piece.starts, piece.sizes, strict=True)):
                target = target.narrow(dim, start, size)
            target.copy_(chunk)
        return tensor


def _read_piece(folder: Path, piece: _Piece) -> Any:
    try:
        with open_regular(folder / piece.file, "a data file of a distributed checkpoint") as stream:
            stream.seek(piece.offset)
            content = stream.read(piece.length)
    except OSError as error:
        raise damaged(piece.file, "a data file of a distributed checkpoint", error) from error
    return read_torch_bytes(content, piece.file)


def _read_index(folder: Path) -> _Index:
    expected = "the metadata of a distributed checkpoint"
    content = read_bounded(folder / METADATA_FILE, expected, max_bytes=MAX_PICKLE_BYTES)
    try:
        machine = Machine(lambda name: _CALLS.get(name, anything))  # other names end the load before a call
        for opcode, argument, position in opcodes(io.BytesIO(content)):
            machine.step(opcode, argument, position)
        metadata = _MetadataUnpickler(content).load()
        check_unfolded(metadata)
        if not isinstance(metadata, _Record) or metadata.kind != "Metadata":
            raise ValueError(f"it holds a {type(metadata).__name__}")
        return _checked_index(folder, metadata)
    except BoundsError as error:
        raise exhausting(METADATA_FILE, error) from error
    except LiteProbeError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise damaged(METADATA_FILE, expected, error) from error


def _checked_index(folder: Path, metadata: _Record) -> _Index:
    pieces = _pieces_by_name(folder, metadata["storage_data"])
    tensors: dict[str, Tensor] = {}
    checked: dict[str, tuple[_Piece, ...]] = {}
    for name, entry in metadata["state_dict_metadata"].items():
        if not isinstance(name, str) or not isinstance(entry, _Record):
            raise ValueError(f"its entry {shown(name)} is no tensor and no object")
        if entry.kind == "TensorStorageMetadata":
            tensors[name] = _meta_tensor(entry)
            checked[name] = _chunks(name, entry, tensors[name], pieces)
        else:
            checked[name] = (pieces[name, None],) if (name, None) in pieces else ()
    planned = metadata.state.get("planner_data") if isinstance(metadata.state, dict) else None
    paths = {}
    for name in checked:
        path = planned.get(name) if isinstance(planned, dict) else None
        keys = path if isinstance(path, tuple) and path else (name,)
        paths[name] = tuple(key if _whole(key) else _text(key) for key in keys)
    return _Index(tensors, checked, paths)


def _pieces_by_name(folder: Path, storage: Mapping[Any, Any]) -> dict[tuple[str, Shape | None], _Piece]:
    """Return (flat name, offsets) → where it lies, every place checked against its file."""
    sizes: dict[str, int] = {}
    pieces: dict[tuple[str, Shape | None], _Piece] = {}
    for key, info in storage.items():
        file, offset, length = info["relative_path"], info["offset"], info["length"]
        if not isinstance(file, str) or file in ("", ".", "..") or "/" in file or "\\" in file or "\0" in file:
            raise InputError(
                f"expected the names of files beside {METADATA_FILE} in it, got {shown(file)}",
                "restore the checkpoint from its source",
            )
        if info.state.get("transform_descriptors"):
            raise InputError(
                f"expected chunks as torch.save writes them, got {shown(info['transform_descriptors'])} in {file}",
                "save the checkpoint without compression",
            )
        if file not in sizes:
            if not (folder / file).is_file():
                raise InputError(f"expected the data file {file} beside {METADATA_FILE}, got none", "copy it as well")
            sizes[file] = (folder / file).stat().st_size
        if not _whole(offset) or not _whole(length) or offset + length > sizes[file]:
            raise damaged(file, "a complete data file", f"{offset} + {length} bytes are listed, it has {sizes[file]:,}")
        starts = None if key.state.get("offset") is None else _shape(key["offset"])
        pieces[key["fqn"], starts] = _Piece(file, offset, length, starts or (), ())
    return pieces


def _meta_tensor(entry: _Record) -> Tensor:
    state = entry["properties"].state
    dtype = state[0] if isinstance(state, tuple) and state else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor has no dtype")
    return torch.empty(_shape(entry["size"]), dtype=dtype, device="meta")


def _chunks(
    name: str, entry: _Record, tensor: Tensor, pieces: Mapping[tuple[str, Shape | None], _Piece]
) -> tuple[_Piece, ...]:
    """Return a tensor's chunks; they lie inside it and together have as many elements and bytes."""
    found = []
    for chunk in entry["chunks"]:
        starts, sizes = _shape(chunk["offsets"]), _shape(chunk["sizes"])
        piece = pieces.get((name, starts))
        if piece is None:
            raise ValueError(f"no data is listed for the chunk of {name} at {starts}")
        ends = [start + size for start, size in zip(starts, sizes, strict=True)]
        if len(ends) != tensor.dim() or any(end > length for end, length in zip(ends, tensor.shape, strict=True)):
            raise ValueError(f"a chunk of {name} lies outside of its shape {tuple(tensor.shape)}")
        if torch.Size(sizes).numel() * tensor.element_size() > piece.length:
            raise ValueError(f"a chunk of {name} is larger than its {piece.length:,} bytes")
        found.append(_Piece(piece.file, piece.offset, piece.length, starts, sizes))
    if sum(torch.Size(piece.sizes).numel() for piece in found) != tensor.numel():
        raise ValueError(f"the chunks of {name} do not add up to its shape {tuple(tensor.shape)}")
    return tuple(found)


def _text(key: object) -> str:
    if not isinstance(key, str):
        raise ValueError(f"expected texts and numbers as keys, got {shown(key)}")
    return key


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _shape(value: object) -> Shape:
    if not isinstance(value, tuple) or not all(_whole(length) for length in value):
        raise ValueError(f"expected sizes, got {shown(value)}")
    return value


def _nested(index: _Index) -> dict[Any, Any]:
    """Return what was saved as nested dicts: meta tensors, and where to read other objects."""
    saved: dict[Any, Any] = {}
    for name, path in index.paths.items():
        inner = saved
        for key in path[:-1]:
            following = inner.setdefault(key, {})
            if not isinstance(following, dict):
                raise damaged(METADATA_FILE, "the metadata of a distributed checkpoint", f"{name} lies inside a tensor")
            inner = following
        if path[-1] in inner:
            raise damaged(METADATA_FILE, "the metadata of a distributed checkpoint", f"{name} is listed twice")
        inner[path[-1]] = index.tensors[name] if name in index.tensors else _Unread(name)
    return saved


def _with_steps(folder: Path, index: _Index, saved: Mapping[Any, Any]) -> dict[str, object]:
    """Return the counters of steps that lie in a dict, their values read."""
    flat_names = {id(meta): name for name, meta in index.tensors.items()}
    steps: dict[str, object] = {}
    for key in STEP_KEYS:
        value = saved.get(key)
        if isinstance(value, _Unread) and index.pieces[value.flat]:
            steps[key] = _read_piece(folder, index.pieces[value.flat][0])
        elif isinstance(value, Tensor) and value.numel() == 1:
            name = flat_names[id(value)]
            steps[key] = _DistributedWeights(folder, index, {name: name}).read(name)
    return steps


# -- optimizer states --------------------------------------------------------------------------------------------------


def _states_reader(folder: Path, index: _Index, *places: Mapping[Any, Any]) -> StateReader:
    found = next((states for states in map(find_state_dicts, places) if states), [])
    flat_names = {id(meta): name for name, meta in index.tensors.items()}

    def load(value: Any, depth: int = STATE_DEPTH) -> Any:
        """Return what was saved in place of nested dicts, places and meta tensors."""
        if not depth:
            raise damaged(METADATA_FILE, "an optimizer state", f"it is nested more than {STATE_DEPTH} deep")
        if isinstance(value, Tensor):
            flat = flat_names[id(value)]
            return _DistributedWeights(folder, index, {flat: flat}).read(flat)
        if isinstance(value, _Unread):
            return _read_piece(folder, index.pieces[value.flat][0]) if index.pieces[value.flat] else None
        if not isinstance(value, dict):
            return value
        if value and all(isinstance(key, int) for key in value):
            return [load(value[key], depth - 1) for key in sorted(value)]
        return {key: load(member, depth - 1) for key, member in value.items()}

    def read_states(*, values: bool) -> Sequence[StateDict]:
        return [_as_optimizers_save(load(state_dict)) for state_dict in found] if values else found

    return read_states


def _as_optimizers_save(state_dict: dict[str, Any]) -> StateDict:
    """Undo what becomes of dicts: the keys of a state are numbers, and groups are a list."""
    state, groups = state_dict["state"], state_dict.get("param_groups")
    if isinstance(groups, dict):
        groups = list(groups.values())
    if not isinstance(groups, list):
        return state_dict
    params = [group["params"] for group in groups if isinstance(group, dict) and isinstance(group.get("params"), list)]
    numbers = {str(index): index for group_params in params for index in group_params if isinstance(index, int)}
    return {
        **state_dict,
        "state": {numbers.get(key, key): values for key, values in state.items()},
        "param_groups": groups,
    }
