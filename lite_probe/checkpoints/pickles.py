"""Files written by `torch.save`, read so that nothing in them can run.

The opcodes are scanned before anything is loaded, and a name outside the fixed allow-list refuses the file.
Then `torch.load(weights_only=True)` reads it, memory-mapped. Names that training scripts leave beside the
weights (numpy scalars and random states, paths, namespaces) resolve to inert stand-ins of this module: numpy's own
reconstructors can be driven to corrupt memory by a forged dtype state, so they are never called.
"""

import argparse
import io
import pickle
import types
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from lite_probe.checkpoints.pickle_bounds import (
    MAX_PICKLE_BYTES,
    RENAMED,
    BoundsError,
    CallRule,
    Machine,
    Made,
    anything,
    bytes_or_nothing,
    check_unfolded,
    hashable_members,
    latin_text,
    nothing,
    opcodes,
    texts,
)
from lite_probe.errors import InputError, LiteProbeError, UnsafePickleError
from lite_probe.files import open_regular

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, as a protocol-2 pickle
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_NUM_PICKLES = 5  # magic number, protocol, system info, the object, storage keys
CHUNK_BYTES = 2**22
MAX_DIRECTORY_BYTES = 2**23  # of an archive; a tensor takes about 80 of them

SAFE_HINT = (
    "if you trust where this file comes from pass --trust-pickle (trust_pickle=True), else save a state_dict of tensors"
)


class PickledDtype:
    """Stands in for `numpy.dtype`: keeps kind, size and byte order, nothing else."""

    def __init__(self, code: object = "", *_: object) -> None:
        self.code = _short_text(code)
        self.byte_order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = _short_text(state[1])

    def plain(self) -> np.dtype[Any]:
        """Return the numpy dtype, if it is a number or a fixed-width string."""
        dtype = np.dtype(self.code)
        if dtype.kind not in "biufcSU":
            raise pickle.UnpicklingError(f"expected a numpy scalar of numbers or text, got dtype {self.code}")
        return dtype.newbyteorder(">") if self.byte_order == ">" else dtype


def _short_text(value: object) -> str:
    """Return a text as it is: the text of anything else could be of any length."""
    text = value.decode("ascii") if isinstance(value, bytes) else value
    if not isinstance(text, str) or len(text) > 100:
        raise pickle.UnpicklingError(f"expected a short text, got {type(value).__name__}")
    return text


class PickledArray:
    """Stands in for `numpy.ndarray`: a random state's words, kept as the bytes they came in."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def _reconstruct_array(*_: object) -> PickledArray:
    return PickledArray()


def _numpy_scalar(dtype: PickledDtype, raw: bytes = b"") -> Any:
    plain = dtype.plain()
    if len(raw) != plain.itemsize or not plain.itemsize:
        raise pickle.UnpicklingError(f"expected {plain.itemsize} bytes of a numpy scalar, got {len(raw)}")
    return np.frombuffer(raw, plain)[0].item()


def _default_dict(*_: object) -> dict[Any, Any]:
    return {}  # the items follow; the factory would only matter to code


def _deque(items: Any = (), *_: object) -> list[Any]:
    return list(items)


def _posix_path(*parts: str) -> PurePosixPath:
    return PurePosixPath(*parts)


def _windows_path(*parts: str) -> PureWindowsPath:
    return PureWindowsPath(*parts)


def _version_text(text: str = "") -> str:
    return _short_text(text)


# Beyond torch's own list. A name here resolves to the object beside it, whatever it means elsewhere.
ALLOWED: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": types.SimpleNamespace,
    "collections.defaultdict": _default_dict,
    "collections.deque": _deque,
    "builtins.dict": dict,
    "builtins.list": list,
    "builtins.tuple": tuple,
    "builtins.int": int,
    "builtins.float": float,
    "builtins.bool": bool,
    "builtins.str": str,
    "builtins.bytes": bytes,
    "builtins.frozenset": frozenset,
    "builtins.slice": slice,
    "numpy.dtype": PickledDtype,
    "numpy.ndarray": PickledArray,
    "numpy.core.multiarray._reconstruct": _reconstruct_array,
    "numpy._core.multiarray._reconstruct": _reconstruct_array,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "torch.torch_version.TorchVersion": _version_text,
    **{
        f"{module}.{name}": _posix_path
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath")
    },
    **{
        f"{module}.{name}": _windows_path
        for module in ("pathlib", "pathlib._local")
        for name in ("WindowsPath", "PureWindowsPath")
    },
}

# What may be called, as Python's own pickler calls it; every other allowed name is a value and no more: a class beside
# an option, the factory of a defaultdict, the type of a storage.
_REBUILDS = tuple(
    f"torch._utils._rebuild_{kind}"
    for kind in (
        "tensor",
        "tensor_v2",
        "tensor_v3",
        "parameter",
        "parameter_with_state",
        "sparse_tensor",
        "qtensor",
        "meta_tensor_no_storage",
    )
)


def _rebuild_first(arguments: Sequence[Made]) -> str:
    """Accept the function that a tensor with attributes is rebuilt by."""
    return "" if arguments and arguments[0].text in _REBUILDS else "calls what rebuilds no tensor"


_CALLS: Mapping[str, CallRule] = {
    **dict.fromkeys(_REBUILDS, anything),
    "torch._tensor._rebuild_from_type_v2": _rebuild_first,
    "torch.nn.parameter.Parameter": anything,
    "torch.Size": anything,
    "torch.device": anything,
    "torch.serialization._get_layout": texts,
    "torch.torch_version.TorchVersion": texts,
    "collections.OrderedDict": hashable_members,
    "collections.Counter": hashable_members,
    "collections.defaultdict": anything,
    "collections.deque": anything,
    "builtins.set": hashable_members,
    "builtins.frozenset": hashable_members,
    "builtins.bytes": nothing,
    "builtins.bytearray": bytes_or_nothing,
    "builtins.complex": anything,
    "builtins.slice": anything,
    "_codecs.encode": latin_text,
    "argparse.Namespace": nothing,
    "types.SimpleNamespace": nothing,
    **{name: anything for name in ALLOWED if name.startswith("numpy.")},
    **{name: texts for name in ALLOWED if name.startswith("pathlib.")},
}


def is_torch_file(path: Path) -> bool:
    """Say whether a file begins like one that `torch.save` wrote; its content decides, not its name."""
    with open_regular(path, "a checkpoint") as stream:
        head = stream.read(len(LEGACY_MAGIC))
    return head.startswith(ZIP_MAGIC) or head == LEGACY_MAGIC


def read_torch_file(path: Path, *, trust_pickle: bool) -> Any:
    """Read what `torch.save` wrote, tensors memory-mapped.

    Args:
        path: A zip archive of torch ≥ 1.6, or the older stream of pickles.
        trust_pickle: Let the pickle construct whatever it names. It can run any code.

    Returns:
        The object. Tensors lie on the CPU; those of an archive are mapped, so nothing is read until used.

    Raises:
        UnsafePickleError: If it names a class or function outside the allow-list. Nothing has run.
        InputError: If the file is damaged or was not written by `torch.save`.
    """
    with open_regular(path, "a file written by torch.save") as stream:
        legacy = stream.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC
        stream.seek(0)
        if legacy:
            for _ in range(LEGACY_NUM_PICKLES):
                scan(stream, path.name, trust_pickle=trust_pickle)
        else:
            scan(io.BytesIO(_archive_pickle(stream, path.name)), path.name, trust_pickle=trust_pickle)
        # torch goes by the ending, and would read no archive that is called so.
        if not legacy and path.name.endswith(".safetensors"):
            return _load_stream(stream, path.name, trust_pickle=trust_pickle)
    return _load(path, path.name, mmap=not legacy, trust_pickle=trust_pickle)


def read_torch_bytes(content: bytes, name: str) -> Any:
    """Read an archive of `torch.save` that lies in memory, with the checks of `read_torch_file`.

    Args:
        content: The archive.
        name: Of the file it comes from, for messages.

    Raises:
        UnsafePickleError: If it names a class or function outside the allow-list.
        InputError: If it is damaged.
    """
    stream = io.BytesIO(content)
    scan(io.BytesIO(_archive_pickle(stream, name)), name, trust_pickle=False)
    verify_archive(stream, name)
    return _load_stream(stream, name, trust_pickle=False)


def _load_stream(stream: IO[bytes], name: str, *, trust_pickle: bool) -> Any:
    """Load an archive without mapping it; torch then lets a tensor's sizes outgrow its bytes, so count them."""
    _, entries = _archive_entries(stream, name)
    stored = sum(entry.file_size for entry in entries if "/data/" in entry.filename)
    stream.seek(0)
    found = _load(stream, name, mmap=False, trust_pickle=trust_pickle)
    dense = [tensor for tensor in tensors_in(found) if tensor.layout is torch.strided and not tensor.is_meta]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in dense}
    if sum(storage.nbytes() for storage in storages.values()) > stored:
        raise damaged(name, "a file written by torch.save", f"its tensors are larger than its {stored:,} bytes of them")
    return found


def tensors_in(value: object, depth: int = 8) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts, lists and tuples, down to `depth` levels."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for member in value.values():
            yield from tensors_in(member, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for member in value:
            yield from tensors_in(member, depth - 1)


def _load(source: Path | IO[bytes], name: str, *, mmap: bool, trust_pickle: bool) -> Any:
    allowed: list[Any] = [(target, spelled) for spelled, target in ALLOWED.items()]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")
            found = torch.load(source, map_location="cpu", mmap=mmap, weights_only=not trust_pickle)
        if not trust_pickle:
            check_unfolded(found)
    except LiteProbeError:
        raise
    except BoundsError as error:
        raise exhausting(name, error) from error
    # A damaged pickle can make torch raise anything at all; whatever it is, the file is the reason.
    except Exception as error:
        raise damaged(name, "a file written by torch.save", error) from error
    return found


def damaged(name: str, expected: str, error: BaseException | str) -> InputError:
    """Return the error for a file that begins well and then breaks."""
    reason = str(error).strip().partition("\n")[0][:200] if str(error).strip() else type(error).__name__
    return InputError(f"expected {expected}, got {name}, which is damaged: {reason}", "copy it again from its source")


def scan(stream: IO[bytes], name: str, *, trust_pickle: bool) -> None:
    """Read the opcodes of one pickle and refuse it for what it names, before anything is loaded.

    Args:
        stream: Positioned at the pickle; afterwards behind it.
        name: Of the file, for messages.
        trust_pickle: Allow every name; damage is refused all the same.

    Raises:
        UnsafePickleError: If a name is outside the allow-list, or spelled so that it cannot be told.
        InputError: If the opcodes make no pickle.
    """
    known = _known_names()
    machine = Machine(_CALLS.get)
    texts_seen: list[str] = []
    try:
        with warnings.catch_warnings():  # damaged text makes pickletools warn of odd escapes
            warnings.simplefilter("ignore")
            for opcode, argument, position in opcodes(stream):
                if trust_pickle:
                    continue
                spelled = _name(opcode, argument, texts_seen)
                if spelled is not None and spelled not in known:
                    raise UnsafePickleError(
                        f"expected a file of tensors, got {name}, whose pickle asks for {spelled[:200]}", SAFE_HINT
                    )
                machine.step(opcode, argument, position)
    except BoundsError as error:
        raise exhausting(name, error) from error
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, AttributeError, TypeError) as error:
        raise damaged(name, "a pickle of tensors", error) from error


def exhausting(name: str, error: BoundsError) -> InputError:
    """Return the error for a file that would take all memory or time."""
    return InputError(
        f"expected a file of tensors, got {name}, whose pickle is out of bounds: {error}",
        "save a state_dict of tensors",
    )


def _known_names() -> set[str]:
    # torch gives its own list no public name; `get_unsafe_globals_in_checkpoint` knows archives only.
    from torch._weights_only_unpickler import _get_allowed_globals

    return set(_get_allowed_globals()) | set(ALLOWED)


def _name(opcode: str, argument: Any, texts_seen: list[str]) -> str | None:
    """Return the global that an opcode names, None if it names none."""
    if opcode in ("GLOBAL", "INST") and isinstance(argument, str):
        module, _, qualified = argument.partition(" ")
        return f"{RENAMED.get(module, module)}.{qualified}"
    if opcode == "STACK_GLOBAL":
        # The two names may come from the memo; the last two texts are a guess good enough for a message,
        # and protocol 4 is refused by torch's reader in any case.
        return ".".join(texts_seen) + " (pickle protocol 4 or later)"
    if opcode in ("EXT1", "EXT2", "EXT4"):
        return f"extension code {argument}"
    if isinstance(argument, str):
        texts_seen[:] = [*texts_seen[-1:], argument]
    return None


class _InPieces:
    """A stream that is never read by more than 8 MiB at once; an archive's directory is, before it is counted.

    Args:
        stream: Where to read from.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, count: int = -1) -> bytes:
        """Read `count` bytes, or all that are left."""
        content = self._stream.read(MAX_DIRECTORY_BYTES + 1 if count < 0 else min(count, MAX_DIRECTORY_BYTES + 1))
        if len(content) > MAX_DIRECTORY_BYTES:
            raise BoundsError(f"its directory of entries has more than {MAX_DIRECTORY_BYTES:,} bytes")
        return content


def _archive_entries(stream: IO[bytes], name: str) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
    """Open the archive and check what torch's reader takes on trust: nothing compressed, nothing outside."""
    try:
        archive = zipfile.ZipFile(cast("IO[bytes]", _InPieces(stream)))
        entries = archive.infolist()
    except BoundsError as error:
        raise exhausting(name, error) from error
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, IndexError) as error:
        raise damaged(name, "a file written by torch.save", error) from error
    stream.seek(0, io.SEEK_END)
    num_bytes = stream.tell()
    if sum(entry.file_size for entry in entries) > num_bytes:
        raise damaged(name, "a file written by torch.save", f"its entries are larger than its {num_bytes:,} bytes")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise damaged(name, "a file written by torch.save", f"its entry {entry.filename!r} is compressed")
    return archive, entries


def _archive_pickle(stream: IO[bytes], name: str) -> bytes:
    archive, entries = _archive_entries(stream, name)
    pickles = [entry for entry in entries if entry.filename.partition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise InputError(
            f"expected a file written by torch.save, got {name}, a zip archive with {len(pickles)} data.pkl",
            "pass the checkpoint itself; TorchScript and other archives are not read",
        )
    if pickles[0].file_size > MAX_PICKLE_BYTES:
        raise exhausting(name, BoundsError(f"it has more than {MAX_PICKLE_BYTES:,} bytes"))
    return b"".join(_entry_chunks(archive, pickles[0], name))


def _entry_chunks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Iterator[bytes]:
    """Yield the bytes of one entry and check them against its CRC."""
    checksum = entry.CRC
    entry.CRC = None  # type: ignore[assignment]  # zipfile then leaves the check to us
    computed = 0
    try:
        with archive.open(entry) as content:
            while chunk := content.read(CHUNK_BYTES):
                computed = zlib.crc32(chunk, computed)
                yield chunk
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise damaged(name, "a file written by torch.save", error) from error
    finally:
        entry.CRC = checksum
    # torch writes 0 where checksums are switched off (torch.serialization.set_crc32_options).
    if checksum not in (0, computed):
        raise damaged(name, "a file written by torch.save", f"the checksum of its entry {entry.filename!r} is wrong")


def verify_torch_file(path: Path) -> None:
    """Check a file of `torch.save` against its checksums; the older stream of pickles has none.

    Raises:
        InputError: If an entry is damaged.

    Cost: one pass over the file.
    """
    with open_regular(path, "a file written by torch.save") as stream:
        if stream.read(len(LEGACY_MAGIC)) != LEGACY_MAGIC:
            verify_archive(stream, path.name)


def verify_archive(stream: IO[bytes], name: str) -> None:
    """Check every entry of a torch archive against its checksum, which torch's own reader ignores.

    Args:
        stream: The archive, seekable.
        name: Of the file, for messages.

    Raises:
        InputError: If an entry is damaged.

    Cost: one pass over the file.
    """
    archive, entries = _archive_entries(stream, name)
    for entry in entries:
        for _ in _entry_chunks(archive, entry, name):
            pass
