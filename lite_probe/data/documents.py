"""Text sources: every kind becomes an iterator of documents.

A suffix says what a file is meant to be, its content whether it is. Readers are lazy, so that a long corpus
is read no further than needed.
"""

import codecs
import json
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from lite_probe.errors import InputError, UsageError

BUILTIN_PREFIX = "builtin:"
BUILTIN_NAMES = ("builtin:python-docs", "builtin:python-source")

# Folders of the standard library's tree that hold something else.
_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests"}

# 4 KiB of zstd hold at most 1,024 run-length blocks of 128 KiB: one step cannot fill the memory.
_ZSTD_STEP = 4096
_FILE_STEP = 1 << 18


def read_documents(path: Path, *, text_field: str, max_bytes: int) -> Iterator[str]:
    """Read the documents of one text file: .jsonl, .parquet, either text, .zst around text or .jsonl.

    Args:
        path: The file; a suffix other than these is read as UTF-8 text, one document.
        text_field: Field of a JSON line, column of a parquet file.
        max_bytes: A plain text is read up to the first byte beyond this.

    Yields:
        Documents, in file order.

    Raises:
        InputError: If the content is not what the suffix says.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".parquet"]:
        yield from _parquet_documents(path, text_field)
        return
    compressed = suffixes[-1:] == [".zst"]
    pieces = _zstd_pieces(path) if compressed else _file_pieces(path, _FILE_STEP)
    if (suffixes[:-1] if compressed else suffixes)[-1:] == [".jsonl"]:
        yield from _json_documents(pieces, path.name, text_field)
    else:
        yield _decode(pieces, path.name, max_bytes)


def builtin_documents(name: str) -> Iterator[str]:
    """Read a text that comes with every CPython.

    Args:
        name: "builtin:python-docs", the prose of `pydoc_data.topics` by sorted key, or
            "builtin:python-source", the standard library's modules by sorted path.

    Raises:
        UsageError: If the name is another.
        InputError: If this Python was installed without that part.
    """
    if name not in BUILTIN_NAMES:
        raise UsageError(f"expected one of {', '.join(BUILTIN_NAMES)}, got {name!r}")
    return _python_docs() if name == "builtin:python-docs" else _python_source()


def _python_docs() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(
            "expected pydoc_data.topics in the standard library, got an ImportError",
            "install the full standard library, or pass a text with --data",
        ) from error
    for key in sorted(topics):
        yield topics[key]


def _python_source() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path.relative_to(root) for path in root.rglob("*.py")]
    kept = sorted(path.as_posix() for path in paths if not _NOT_LIBRARY.intersection(path.parts))
    if not kept:
        raise InputError(
            "expected the standard library's .py files, got none",
            "install the full standard library, or pass a text with --data",
        )
    for relative in kept:
        yield (root / relative).read_text(encoding="utf-8", errors="replace")


def _file_pieces(path: Path, step: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(step):
            yield piece


def _zstd_pieces(path: Path) -> Iterator[bytes]:
    """Decompress frame after frame; a stream reader would take a truncated frame for the end."""
    import zstandard  # costs start-up time that only compressed corpora should pay

    frame = zstandard.ZstdDecompressor().decompressobj()
    between_frames = True
    try:
        for piece in _file_pieces(path, _ZSTD_STEP):
            rest = piece
            while rest:
                between_frames = False
                yield frame.decompress(rest)
                rest = b""
                if frame.eof:
                    rest = frame.unused_data
                    frame = zstandard.ZstdDecompressor().decompressobj()
                    between_frames = True
    except zstandard.ZstdError as error:
        raise InputError(
            f"expected a zstd stream in {path.name}, got {error}", "the file is damaged or not compressed"
        ) from error
    if not between_frames:
        raise InputError(
            f"expected a whole zstd stream in {path.name}, got one that ends within a frame",
            "the file is truncated: copy it again",
        )


def _decode(pieces: Iterable[bytes], name: str, max_bytes: int) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")()
    decoded: list[str] = []
    size = 0
    for piece in pieces:
        pending = len(decoder.getstate()[0])
        decoded.append(_decode_piece(decoder, piece, size - pending, name))
        size += len(piece)
        if size > max_bytes:
            break
    else:
        decoded.append(_decode_piece(decoder, b"", size - len(decoder.getstate()[0]), name, final=True))
    return "".join(decoded).removeprefix("\ufeff")


def _decode_piece(
    decoder: codecs.IncrementalDecoder, piece: bytes, offset: int, name: str, *, final: bool = False
) -> str:
    try:
        return decoder.decode(piece, final)
    except UnicodeDecodeError as error:
        raise InputError(
            f"expected UTF-8 text, got byte 0x{error.object[error.start]:02x} at offset "
            f"{offset + error.start:,} of {name}",
            "convert it to UTF-8; token ids are read from .bin and .npy",
        ) from error


def _json_documents(pieces: Iterable[bytes], name: str, text_field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(pieces), start=1):
        if not line.strip():
            continue
        where = f"line {number:,} of {name}"
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"expected a JSON object per line, got {type(error).__name__} in {where}: {error}",
                "repair the line; a text that is not JSON should end in .txt",
            ) from error
        if not isinstance(record, dict):
            raise InputError(f"expected a JSON object per line, got {type(record).__name__} in {where}")
        yield _text_of(record, text_field, where)


def _text_of(record: dict[str, object], text_field: str, where: str) -> str:
    if text_field not in record:
        raise InputError(
            f"expected a field {text_field!r}, got {sorted(record)} in {where}",
            "name the field that holds the text with --text-field",
        )
    text = record[text_field]
    if not isinstance(text, str):
        raise InputError(
            f"expected text in field {text_field!r}, got {type(text).__name__} in {where}",
            "name the field that holds the text with --text-field",
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"expected text that UTF-8 can hold, got half a surrogate pair in {where}", "repair the line"
        ) from error
    return text


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    begun: list[bytes] = []
    for piece in pieces:
        first, *others = piece.split(b"\n")
        begun.append(first)
        for line in others:
            yield b"".join(begun)
            begun = [line]
    yield b"".join(begun)


def _parquet_documents(path: Path, text_field: str) -> Iterator[str]:
    import pyarrow as pa  # costs start-up time that only parquet corpora should pay
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if text_field not in schema.names:
                raise InputError(
                    f"expected a column {text_field!r}, got {sorted(schema.names)} in {path.name}",
                    "name the column that holds the text with --text-field",
                )
            kind = schema.field(text_field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise InputError(
                    f"expected text in column {text_field!r}, got {kind} in {path.name}",
                    "name the column that holds the text with --text-field",
                )
            for batch in file.iter_batches(batch_size=256, columns=[text_field]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"expected a parquet file, got {first} in {path.name}", "the file is damaged or of another kind"
        ) from error
