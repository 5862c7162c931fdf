"""Which format a path holds, told by its content; endings decide nothing."""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lite_probe.checkpoints import distributed, huggingface, lite, torch_file
from lite_probe.checkpoints.checkpoint import Checkpoint
from lite_probe.checkpoints.json_files import read_json_object
from lite_probe.checkpoints.pickles import is_torch_file
from lite_probe.errors import InputError
from lite_probe.files import open_regular


class Read(Protocol):
    """Reads a checkpoint of one format."""

    def __call__(self, path: Path, /, *, trust_pickle: bool, model_config: Mapping[str, Any] | None) -> Checkpoint:
        """Open it; see `open_checkpoint`."""


@dataclass(frozen=True, slots=True)
class Reader:
    """What knows a format.

    Attributes:
        known: What it reads, for messages: "a torch distributed checkpoint".
        holds: Whether a file or folder that exists is of this format; looks at content, not at endings.
        read: Opens it.
    """

    known: str
    holds: Callable[[Path], bool]
    read: Read


def _is_distributed(path: Path) -> bool:
    # A distributed checkpoint may keep a config.json beside it; without weights of its own that decides nothing.
    return (path / distributed.METADATA_FILE).is_file() and not huggingface.has_weights(path)


def _is_huggingface(path: Path) -> bool:
    return path.is_dir() and (huggingface.has_weights(path) or (path / "config.json").is_file())


def _is_file(test: Callable[[Path], bool]) -> Callable[[Path], bool]:
    # Opening a pipe would wait for ever.
    return lambda path: path.is_file() and test(path)


def _without_pickles(read: Callable[..., Checkpoint]) -> Read:
    return lambda path, /, *, trust_pickle, model_config: read(path, model_config=model_config)


# The first that holds a path reads it.
READERS = [
    Reader("a LITE training folder", lite.is_lite_folder, lite.read),
    Reader("a torch distributed checkpoint", _is_distributed, _without_pickles(distributed.read)),
    Reader("a Hugging Face folder", _is_huggingface, huggingface.read),
    Reader("a nanoGPT ckpt.pt, a Lightning checkpoint, a torch.save file", _is_file(is_torch_file), torch_file.read),
    Reader(
        "a safetensors file",
        _is_file(huggingface.is_safetensors_file),
        _without_pickles(huggingface.read_single_file),
    ),
]
_PICKLE_PROTOCOL = b"\x80"  # what a pickle begins with since protocol 2, followed by the protocol's number


def open_checkpoint(
    path: str | Path,
    *,
    trust_pickle: bool = False,
    model_config: str | Path | Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Open a training checkpoint; nothing in it is run and no weights are loaded yet.

    Args:
        path: A file or folder of any supported format.
        trust_pickle: Let pickles construct whatever they name. They can run any code.
        model_config: A Hugging Face config, as a dict or a JSON file; takes the place of the checkpoint's own
            (for nanoGPT: is laid over the config its `model_args` give).

    Returns:
        The checkpoint.

    Raises:
        InputError: If the path is missing, damaged, or holds no checkpoint.
        UnsafePickleError: If a pickle asks for a name outside the allow-list. Nothing has run.
    """
    given, known = Path(path), known_formats()
    config = _given_config(model_config)
    try:
        given.resolve(strict=True)
    # RuntimeError: a loop of symbolic links, before Python 3.13. ValueError: a NUL in the path.
    except (OSError, RuntimeError, ValueError) as error:
        got = "nothing there" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"expected {known} at {given}, got {got}", "check the path") from error
    try:
        for reader in READERS:
            if reader.holds(given):
                return reader.read(given, trust_pickle=trust_pickle, model_config=config)
        raise _unknown_folder(given) if given.is_dir() else _unknown_file(given)
    except OSError as error:
        raise InputError(f"expected {known} at {given}, got {error}", "check its permissions") from error


def known_formats() -> str:
    """Return what can be opened, for messages."""
    *most, last = (reader.known for reader in READERS)
    return f"{', '.join(most)} or {last}"


def _given_config(model_config: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if model_config is None or isinstance(model_config, Mapping):
        return model_config
    return read_json_object(Path(model_config))


def _unknown_folder(folder: Path) -> InputError:
    entries = sorted(folder.iterdir())
    torch_files = [entry.name for entry in entries if entry.is_file() and is_torch_file(entry)]
    found = ", ".join(entry.name for entry in entries[:6]) + (" …" if len(entries) > 6 else "")
    return InputError(
        f"expected {known_formats()}, got the folder {folder} with {found or 'nothing in it'}",
        f"pass the file itself: {', '.join(torch_files[:6])}" if torch_files else "check the path",
    )


def _unknown_file(path: Path) -> InputError:
    if not path.is_file():
        return InputError(f"expected {known_formats()}, got {path}, which is no regular file", "write it to disk first")
    with open_regular(path, "a checkpoint") as stream:
        head = stream.read(16)
    got = f"a file that begins with {head!r}" if head else "an empty file"
    hint = "check the path; for a checkpoint of several files pass its folder"
    if head[:1] == _PICKLE_PROTOCOL and head[1:2] <= bytes([pickle.HIGHEST_PROTOCOL]):
        got = "a bare pickle, which may run code and is not opened"
        hint = "if you trust it, load it with pickle in a script of your own, and write its tensors with torch.save"
    return InputError(f"expected {known_formats()}, got {path}, {got}", hint)
