"""Results on disk: a JSON head for people, a safetensors file for arrays, written whole or not at all.

A result of kind `spectrum` rests in a run directory as `spectrum.json` and `spectrum.safetensors`. The head
holds every scalar and the digest of its arrays. New arrays wait under `spectrum.next.safetensors` until the
new head is in place: a process killed anywhere in between leaves either the old pair or the new one.
"""

import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lite_probe.errors import InputError, OutputError
from lite_probe.results.arrays import ArraysFile, write_arrays
from lite_probe.results.checkpoint import CheckpointSummary
from lite_probe.results.record import decode_record, encode_record
from lite_probe.results.replay import Replay
from lite_probe.results.spectrum import Spectrum
from lite_probe.results.subspace import SubspaceMeasurement

FORMAT = "lite-probe result"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of result: its name is the stem of its files."""

    name: str
    record: type  # a frozen dataclass
    schema_version: int  # raised whenever a field changes its name, type or meaning


_KINDS: dict[str, Kind] = {}


def register(name: str, record: type, *, schema_version: int) -> None:
    """Make a kind of result known to `save` and `load`.

    Args:
        name: The stem of its files, for example `spectrum`.
        record: A dataclass of scalars, strings, tuples, mappings, arrays and further such dataclasses.
        schema_version: Raised whenever a field changes its name, type or meaning.

    Raises:
        ValueError: If the name is already taken by another dataclass.
    """
    known = _KINDS.get(name)
    if known is not None and known.record is not record:
        raise ValueError(f"expected a new kind, got {name!r}, which is {known.record.__name__}")
    _KINDS[name] = Kind(name=name, record=record, schema_version=schema_version)


register("checkpoint", CheckpointSummary, schema_version=1)
register("spectrum", Spectrum, schema_version=1)
register("subspace", SubspaceMeasurement, schema_version=1)
register("replay", Replay, schema_version=1)


def save(result: Any, run_directory: str | Path) -> Path:
    """Write a result into a run directory, in place of an earlier one of its kind.

    Args:
        result: An instance of a registered dataclass.
        run_directory: Created where it is missing.

    Returns:
        The path of the JSON head.

    Raises:
        OutputError: No space, no permission, or a file where a folder should be; the earlier result stays.
        NumericsError: If a scalar is NaN or infinite.
        TypeError: If the result is of no registered kind.

    Cost: no copy of the arrays in memory; arrays are streamed.
    """
    kind = _kind_of(result)
    directory = Path(run_directory)
    head_path, arrays_path, waiting_path = _paths(directory, kind.name)
    fields, arrays = encode_record(result)
    _settle(head_path, arrays_path, waiting_path)
    head: dict[str, object] = {"format": FORMAT, "kind": kind.name, "schema_version": kind.schema_version}
    if arrays:
        write_atomically(waiting_path, lambda file: write_arrays(file, arrays))
    head["arrays_digest"] = ArraysFile(waiting_path).digest() if arrays else None
    head["result"] = fields
    text = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file's name that is no UTF-8 has lone surrogates in it: as JSON's own escapes they come back as they were.
    write_atomically(head_path, lambda file: file.write(text.encode(errors="backslashreplace")))
    _put_in_place(waiting_path, arrays_path, wanted=bool(arrays))
    return head_path


def load(path: str | Path, kind: str | None = None) -> Any:
    """Read a result back; large arrays are mapped from the file, read-only.

    Args:
        path: A JSON head, or a run directory.
        kind: Which result of a run directory, for example `spectrum`; not needed where only one is there.

    Returns:
        An instance of the dataclass registered for the kind.

    Raises:
        InputError: If the files are missing, truncated, changed, or written by another schema version.
    """
    head_path = _head_path(Path(path), kind)
    head = _read_head(head_path)
    known = _KINDS.get(str(head.get("kind")))
    if known is None:
        raise InputError(
            f"expected a result of kind {', '.join(sorted(_KINDS))} in {head_path.name}, got {head.get('kind')!r}",
            "it may come from a newer lite-probe",
        )
    if kind is not None and known.name != kind:
        raise InputError(f"expected a result of kind {kind} in {head_path.name}, got {known.name}")
    if head.get("schema_version") != known.schema_version:
        raise InputError(
            f"expected schema version {known.schema_version} of {known.name} in {head_path.name}, "
            f"got {head.get('schema_version')!r}",
            "measure again with --fresh, or use the lite-probe that wrote it",
        )
    arrays = _open_arrays(head_path, head)
    try:
        return decode_record(known.record, head.get("result"), arrays)
    except ValueError as error:
        raise InputError(
            f"expected a valid {known.name} in {head_path.name}, got: {error}",
            "the file was changed after it was written; measure again with --fresh",
        ) from error


def find_result(run_directory: str | Path, kind: str, fingerprint: str) -> Any | None:
    """Return the saved result with this fingerprint, or None where it has to be measured.

    A result that is damaged or of another schema version counts as not there: measuring replaces it.

    Args:
        run_directory: Need not exist.
        kind: For example `spectrum`.
        fingerprint: Of checkpoint content, batches and config.
    """
    if not (Path(run_directory) / f"{kind}.json").is_file():
        return None
    try:
        result = load(run_directory, kind)
    except InputError:
        return None
    return result if result.fingerprint == fingerprint else None


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole: temporary name in the same folder, fsync, rename, fsync of the folder.

    Args:
        path: The file to create or replace; missing folders above it are created.
        write: Called with the open temporary file. If it raises, nothing is left behind.

    Raises:
        OutputError: No space, no permission, `path` is a folder, or a file stands where a folder should be.
    """
    target = Path(path)
    # Two processes that write the same file must not share a temporary one.
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned_parts(target)
        try:
            with part.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except OSError as error:
        raise _output_error(target, error) from error


def _output_error(target: Path, error: OSError) -> OutputError:
    """Say what stood in the way of writing."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"expected space to write {target}, got: {error.strerror}", "free some, or choose another --out"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"expected to be allowed to write {target}, got: {error.strerror}", "choose another --out")
    if error.errno == errno.EISDIR:
        return OutputError(f"expected a file's name, got the folder {target}", "choose another --out")
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return OutputError(
            f"expected folders above {target}, got a file in their place",
            "remove it, or choose another --out",
        )
    return OutputError(f"expected to write {target}, got: {error}", "choose another --out")


def _remove_abandoned_parts(target: Path) -> None:
    """Remove what a killed process left of an earlier attempt at this file."""
    for part in target.parent.glob(f".{target.name}.*.part"):
        writer = part.name.rsplit(".", 2)[1]
        if writer.isdigit() and not _is_alive(int(writer)):
            part.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    """Whether a process of this number exists on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _kind_of(result: object) -> Kind:
    """Return the kind registered for a result's own class."""
    for kind in _KINDS.values():
        if type(result) is kind.record:
            return kind
    names = ", ".join(kind.record.__name__ for kind in _KINDS.values())
    raise TypeError(f"expected a result ({names}), got {type(result).__name__}")


def _paths(directory: Path, kind: str) -> tuple[Path, Path, Path]:
    """Return where head, arrays, and arrays that wait for their head belong."""
    return (
        directory / f"{kind}.json",
        directory / f"{kind}.safetensors",
        directory / f"{kind}.next.safetensors",
    )


def _head_path(path: Path, kind: str | None) -> Path:
    """Find the head that a path and a kind name."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"expected a result or a run directory, found nothing at {path}", "check the path")
    wanted = sorted(_KINDS) if kind is None else [kind]
    candidates = [path / f"{name}.json" for name in wanted]
    found = [candidate for candidate in candidates if candidate.is_file()]
    if len(found) == 1:
        return found[0]
    expected = ", ".join(candidate.name for candidate in candidates)
    got = ", ".join(candidate.name for candidate in found) or "none of them"
    raise InputError(
        f"expected one of {expected} in the run directory {path}, got {got}",
        "measure first, or name one of them",
    )


def _read_head(path: Path) -> Mapping[str, Any]:
    """Parse a JSON head and check that it is one of ours."""
    try:
        head = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise InputError(f"expected to read {path}, got: {error.strerror}", "check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"expected the JSON head of a result in {path.name}, got: {error}",
            "the file is truncated or not a result; measure again with --fresh",
        ) from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise InputError(
            f"expected a result that lite-probe wrote, got other JSON in {path.name}",
            "pass a run directory, or a file like spectrum.json in one",
        )
    return head


def _refuse_constant(name: str) -> float:
    """Refuse NaN and Infinity, which are no JSON."""
    raise ValueError(f"{name}, where JSON has null")


def _open_arrays(head_path: Path, head: Mapping[str, Any]) -> ArraysFile | None:
    """Open the arrays that belong to a head: in place, or waiting since a kill between two renames."""
    digest = head.get("arrays_digest")
    if digest is None:
        return None
    _, arrays_path, waiting_path = _paths(head_path.parent, head_path.stem)
    if _belongs(waiting_path, digest):
        return ArraysFile(waiting_path)
    if not arrays_path.is_file():
        raise InputError(
            f"expected the arrays of {head_path.name} beside it, found no {arrays_path.name}",
            "copy it along, or measure again with --fresh",
        )
    arrays = ArraysFile(arrays_path)
    found = arrays.digest()
    if found != digest:
        raise InputError(
            f"expected arrays with digest {str(digest)[:12]} in {arrays_path.name}, got {found[:12]}",
            f"the file was changed or belongs to another {head_path.name}; measure again with --fresh",
        )
    return arrays


def _belongs(arrays_path: Path, digest: object) -> bool:
    """Whether a file is there, is whole, and has this digest."""
    try:
        return arrays_path.is_file() and ArraysFile(arrays_path).digest() == digest
    except InputError:
        return False


def _settle(head_path: Path, arrays_path: Path, waiting_path: Path) -> None:
    """Finish the rename that a kill prevented, so that new arrays do not overwrite the only good ones."""
    if not (head_path.is_file() and waiting_path.is_file()):
        return
    try:
        digest = _read_head(head_path).get("arrays_digest")
    except InputError:
        return
    if _belongs(waiting_path, digest):
        _put_in_place(waiting_path, arrays_path, wanted=True)


def _put_in_place(waiting_path: Path, arrays_path: Path, *, wanted: bool) -> None:
    """Give the arrays of the head now in place their name, or remove those of an earlier result."""
    try:
        if wanted:
            waiting_path.replace(arrays_path)
        else:
            arrays_path.unlink(missing_ok=True)
        _sync_folder(arrays_path.parent)
    except OSError as error:
        raise _output_error(arrays_path, error) from error
