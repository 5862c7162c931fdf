"""Which format a path holds, told by its content; endings decide nothing."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lite_probe.checkpoints import distributed, huggingface, lite, torch_file
from lite_probe.checkpoints.checkpoint import Checkpoint
from lite_probe.checkpoints.json_files import read_json_object
from lite_probe.checkpoints.pickles import is_torch_file
from lite_probe.errors import InputError
from lite_probe.files import open_regular

KNOWN = (
    "a Hugging Face folder, a nanoGPT ckpt.pt, a LITE training folder, a torch distributed checkpoint, "
    "a Lightning checkpoint or a torch.save file"
)
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
    given = Path(path)
    config = _given_config(model_config)
    try:
        given.resolve(strict=True)
    # RuntimeError: a loop of symbolic links, before Python 3.13. ValueError: a NUL in the path.
    except (OSError, RuntimeError, ValueError) as error:
        got = "nothing there" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"expected {KNOWN} at {given}, got {got}", "check the path") from error
    try:
        if given.is_dir():
            return _open_folder(given, trust_pickle=trust_pickle, model_config=config)
        return _open_file(given, trust_pickle=trust_pickle, model_config=config)
    except OSError as error:
        raise InputError(f"expected {KNOWN} at {given}, got {error}", "check its permissions") from error


def _given_config(model_config: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if model_config is None or isinstance(model_config, Mapping):
        return model_config
    return read_json_object(Path(model_config))


def _open_folder(folder: Path, *, trust_pickle: bool, model_config: Mapping[str, Any] | None) -> Checkpoint:
    if lite.is_lite_folder(folder):
        return lite.read(folder, trust_pickle=trust_pickle, model_config=model_config)
    # A distributed checkpoint may keep a config.json beside it; without weights of its own that decides nothing.
    if (folder / distributed.METADATA_FILE).is_file() and not huggingface.has_weights(folder):
        return distributed.read(folder, model_config=model_config)
    if huggingface.has_weights(folder) or (folder / "config.json").is_file():
        return huggingface.read(folder, trust_pickle=trust_pickle, model_config=model_config)
    entries = sorted(folder.iterdir())
    torch_files = [entry.name for entry in entries if entry.is_file() and is_torch_file(entry)]
    found = ", ".join(entry.name for entry in entries[:6]) + (" …" if len(entries) > 6 else "")
    raise InputError(
        f"expected {KNOWN}, got the folder {folder} with {found or 'nothing in it'}",
        f"pass the file itself: {', '.join(torch_files[:6])}" if torch_files else "check the path",
    )


def _open_file(path: Path, *, trust_pickle: bool, model_config: Mapping[str, Any] | None) -> Checkpoint:
    if not path.is_file():  # opening a pipe would wait for ever
        raise InputError(f"expected {KNOWN}, got {path}, which is no regular file", "write it to disk first")
    if is_torch_file(path):
        return torch_file.read(path, trust_pickle=trust_pickle, model_config=model_config)
    if huggingface.is_safetensors_file(path):
        return huggingface.read_single_file(path, model_config=model_config)
    with open_regular(path, "a checkpoint") as stream:
        head = stream.read(16)
    got = f"a file that begins with {head!r}" if head else "an empty file"
    hint = "check the path; for a checkpoint of several files pass its folder"
    if head[:1] == _PICKLE_PROTOCOL and head[1:2] <= bytes([pickle.HIGHEST_PROTOCOL]):
        got = "a bare pickle, which may run code and is not opened"
        hint = "if you trust it, load it with pickle in a script of your own, and write its tensors with torch.save"
    raise InputError(f"expected {KNOWN}, got {path}, {got}", hint)
