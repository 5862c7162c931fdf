"""Results on disk: a JSON head for people, a safetensors file for arrays, written whole or not at all.

A result of kind `spectrum` rests in a run directory as `spectrum.json` and `spectrum.safetensors`. The head
holds every scalar, the digests of its arrays and one of itself: damage and edits show when it is read. New arrays wait
under `spectrum.next.safetensors` until the new head is in place: a process killed anywhere in between leaves either
the old pair or the new one.
"""

import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from lite_probe.errors import InputError, NumericsError, OutputError
from lite_probe.files import create_anew
from lite_probe.results.arrays import ArraysFile, write_arrays
from lite_probe.results.checkpoint import CheckpointSummary
from lite_probe.results.kinds import KINDS
from lite_probe.results.record import decode_record, encode_record, shown
from lite_probe.results.sealing import MAX_JSON_BYTES, digest_of, read_json

FORMAT = "lite-probe result"
FORMAT_VERSION = 2  # of the head around the result; heads of version 1 have no digest of their own and are read without


Written = TypeVar("Written")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of result: its name is the stem of its files."""

    name: str
    record: type  # a frozen dataclass
    schema_version: int  # raised whenever a field changes its type or meaning; older ones are read


_KINDS: dict[str, Kind] = {}


def register(name: str, record: type, *, schema_version: int) -> None:
    """Make a kind of result known to `save` and `load`.

    Args:
        name: The stem of its files, for example `spectrum`.
        record: A dataclass of scalars, strings, tuples, mappings, arrays and further such dataclasses.
        schema_version: Raised whenever a field changes its type or meaning. A new field has a default, and one of a
            new name its old one (`record.formerly`), so that what older versions wrote is read.

    Raises:
        ValueError: If the name is already taken by another dataclass.
    """
    known = _kind_named(name)
    if known is not None and known.record is not record:
        raise ValueError(f"expected a new kind, got {name!r}, which is {known.record.__name__}")
    _KINDS[name] = Kind(name=name, record=record, schema_version=schema_version)


def _kind_named(name: str) -> Kind | None:
    """Return a kind registered here, or one of measurement, whose record may say its `SCHEMA_VERSION`."""
    if name not in KINDS:
        return _KINDS.get(name)
    record = KINDS[name].load("record")
    return Kind(name=name, record=record, schema_version=getattr(record, "SCHEMA_VERSION", 1))


def _names() -> list[str]:
    """Return the names of all kinds of result."""
    return sorted({*_KINDS, *KINDS})


register("checkpoint", CheckpointSummary, schema_version=1)


def save(result: Any, run_directory: str | Path) -> Path:
    """Write a result into a run directory, in place of an earlier one of its kind.

    Args:
        result: An instance of a registered dataclass.
        run_directory: Created where it is missing.

    Returns:
        The path of the JSON head.

    Raises:
        OutputError: No space, no permission, a file where a folder should be, or more scalars than a head may have;
            the earlier result stays.
        NumericsError: If a number is NaN or infinite.
        TypeError: If the result is of no registered kind.

    Cost: no copy of the arrays in memory; arrays are streamed.
    """
    kind = _kind_of(result)
    directory = Path(run_directory)
    head_path, arrays_path, waiting_path = _paths(directory, kind.name)
    fields, arrays = encode_record(result)
    _settle(head_path, arrays_path, waiting_path)
    head: dict[str, object] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind.name,
        "schema_version": kind.schema_version,
        "arrays_digest": None,
        "arrays_sha256": None,
    }
    if arrays:
        head["arrays_sha256"] = write_atomically(waiting_path, lambda file: write_arrays(file, arrays))
        head["arrays_digest"] = ArraysFile(waiting_path).digest()
    head["result"] = fields
    head["head_digest"] = digest_of(head)
    text = json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # Half of a surrogate pair, as in a file's name that is no UTF-8, is left to an escape that JSON has too.
    content = text.encode(errors="backslashreplace")
    if len(content) > MAX_JSON_BYTES:
        raise OutputError(
            f"expected at most {MAX_JSON_BYTES:,} bytes for {head_path}, got {len(content):,}",
            "measure fewer blocks, optimizers or seeds at a time",
        )
    write_atomically(head_path, lambda file: file.write(content))
    _put_in_place(waiting_path, arrays_path, wanted=bool(arrays))
    return head_path


def load(path: str | Path, kind: str | None = None, *, thorough: bool = True) -> Any:
    """Read a result back; large arrays are mapped from the file, read-only.

    Args:
        path: A JSON head, or a run directory.
        kind: Which result of a run directory, for example `spectrum`; not needed where only one is there.
        thorough: Check every byte of the arrays. Without, arrays of more than 64 MiB are checked by samples, which is
            enough for who reads scalars and small arrays only.

    Returns:
        An instance of the dataclass registered for the kind.

    Raises:
        InputError: If the files are missing, truncated, changed, or written by a newer schema version.

    Cost: one hash of the arrays.
    """
    head_path = _head_path(Path(path), kind)
    head = _read_head(head_path)
    known = _kind_named(str(head.get("kind")))
    if known is None:
        raise InputError(
            f"expected a result of kind {', '.join(_names())} in {head_path.name}, got {shown(head.get('kind'))}",
            "it may come from a newer lite-probe",
        )
    if kind is not None and known.name != kind:
        raise InputError(f"expected a result of kind {kind} in {head_path.name}, got {known.name}")
    version = head.get("schema_version")
    if type(version) is not int or not 1 <= version <= known.schema_version:
        raise InputError(
            f"expected schema version {known.schema_version} or less of {known.name} in {head_path.name}, "
            f"got {shown(version)}",
            "measure again with --fresh, or use the lite-probe that wrote it",
        )
    arrays = _open_arrays(head_path, head, thorough=thorough)
    try:
        return decode_record(known.record, head.get("result"), arrays)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, NumericsError) as error:
        raise InputError(
            f"expected a valid {known.name} in {head_path.name}, got: {error}",
            "the file was changed after it was written; measure again with --fresh",
        ) from error


def find_result(
    run_directory: str | Path,
    kind: str,
    fingerprint: str,
    *,
    on_damaged: Callable[[InputError], object] | None = None,
) -> Any | None:
    """Return the saved result with this fingerprint, or None where it has to be measured.

    A result that is damaged or of a newer schema version counts as not there: measuring replaces it.

    Args:
        run_directory: Need not exist.
        kind: For example `spectrum`.
        fingerprint: Of checkpoint content, batches and config.
        on_damaged: Told why a result that is there cannot be read.
    """
    if not os.path.lexists(Path(run_directory) / f"{kind}.json"):
        return None
    try:
        result = load(run_directory, kind)
    except InputError as error:
        if on_damaged is not None:
            on_damaged(error)
        return None
    return result if result.fingerprint == fingerprint else None


def write_atomically(path: str | Path, write: Callable[[BinaryIO], Written]) -> Written:
    """Write a file whole: temporary name in the same folder, fsync, rename, fsync of the folder.

    Args:
        path: The file to create or replace; missing folders above it are created. A link of this name is replaced,
            and what it pointed at stays.
        write: Called with the open temporary file. If it raises, nothing is left behind.

    Returns:
        What `write` returned.

    Raises:
        OutputError: No space, no permission, `path` is a folder, or a file stands where a folder should be.
    """
    target = Path(path)
    # Two processes that write the same file must not share a temporary one.
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if target.is_dir() and not target.is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned_parts(target)
        try:
            with create_anew(part) as file:
                written = write(file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except OSError as error:
        raise _output_error(target, error) from error
    return written


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
    kinds = [kind for name in _names() if (kind := _kind_named(name)) is not None]
    for kind in kinds:
        if type(result) is kind.record:
            return kind
    names = ", ".join(kind.record.__name__ for kind in kinds)
    raise TypeError(f"expected a result ({names}), got {type(result).__name__}")


def _paths(directory: Path, kind: str) -> tuple[Path, Path, Path]:
    """Return where head, arrays, and arrays that wait for their head belong."""
    return (
        directory / f"{kind}.json",
        directory / f"{kind}.safetensors",
        directory / f"{kind}.next.safetensors",
    )


def _seen(test: Callable[[], bool]) -> bool:
    """Whether `path.is_file` or its kin says yes; what the system does not let us see is not there."""
    try:
        return test()
    except OSError:  # no permission, too long a name
        return False


def _head_path(path: Path, kind: str | None) -> Path:
    """Find the head that a path and a kind name."""
    if _seen(path.is_file):
        return path
    if not _seen(path.is_dir):
        raise InputError(f"expected a result or a run directory, found nothing at {path}", "check the path")
    wanted = _names() if kind is None else [kind]
    candidates = [path / f"{name}.json" for name in wanted]
    found = [candidate for candidate in candidates if _seen(candidate.is_file)]
    if len(found) == 1:
        return found[0]
    expected = ", ".join(candidate.name for candidate in candidates)
    got = ", ".join(candidate.name for candidate in found) or "none of them"
    raise InputError(
        f"expected one of {expected} in the run directory {path}, got {got}",
        "measure first, or name one of them",
    )


def _read_head(path: Path) -> Mapping[str, Any]:
    """Parse a JSON head; check that it is one of ours, and as it was written."""
    head = read_json(path, "the JSON head of a result")
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise InputError(
            f"expected a result that lite-probe wrote, got other JSON in {path.name}",
            "pass a run directory, or a file like spectrum.json in one",
        )
    version = head.get("format_version", 1)
    if version not in (1, FORMAT_VERSION):
        raise InputError(
            f"expected format version 1 or {FORMAT_VERSION} in {path.name}, got {shown(version)}",
            "it may come from a newer lite-probe",
        )
    if version == FORMAT_VERSION and not _is_whole(head):
        raise InputError(
            f"expected {path.name} as it was written, got a head that its own digest does not fit",
            "the file was changed after it was written; measure again with --fresh",
        )
    return head


def _is_whole(head: Mapping[str, Any]) -> bool:
    """Whether everything but the digest has the digest."""
    try:
        return bool(head["head_digest"] == digest_of({k: value for k, value in head.items() if k != "head_digest"}))
    except (KeyError, RecursionError):
        return False


def _open_arrays(head_path: Path, head: Mapping[str, Any], *, thorough: bool) -> ArraysFile | None:
    """Open the arrays that belong to a head: in place, or waiting since a kill between two renames."""
    digest = head.get("arrays_digest")
    if digest is None:
        return None
    _, arrays_path, waiting_path = _paths(head_path.parent, head_path.stem)
    if _belongs(waiting_path, digest):
        arrays_path = waiting_path
    if not os.path.lexists(arrays_path):
        raise InputError(
            f"expected the arrays of {head_path.name} beside it, found no {arrays_path.name}",
            "copy it along, or measure again with --fresh",
        )
    arrays = ArraysFile(arrays_path)
    found = arrays.digest()
    if thorough and found == digest and "arrays_sha256" in head:  # which heads of version 1 have not
        digest, found = head["arrays_sha256"], arrays.full_digest()
    if found != digest:
        raise InputError(
            f"expected arrays with digest {str(digest)[:12]} in {arrays_path.name}, got {found[:12]}",
            f"the file was changed or belongs to another {head_path.name}; measure again with --fresh",
        )
    return arrays


def _belongs(arrays_path: Path, digest: object) -> bool:
    """Whether a file is there, is whole, and has this digest."""
    try:
        return _seen(arrays_path.is_file) and ArraysFile(arrays_path).digest() == digest
    except InputError:
        return False


def _settle(head_path: Path, arrays_path: Path, waiting_path: Path) -> None:
    """Finish the rename that a kill prevented, so that new arrays do not overwrite the only good ones."""
    if not (_seen(head_path.is_file) and _seen(waiting_path.is_file)):
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
