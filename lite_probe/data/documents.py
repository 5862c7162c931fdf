"""Text sources: every kind becomes an iterator of documents.

A suffix says what a file is meant to be, its content whether it is. Readers are lazy, so that a long corpus
is read no further than needed.
"""

import codecs
import json
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lite_probe.data.parquet_pages import MAX_FOOTER_BYTES, PageError, footer_bytes, measure_pages
from lite_probe.errors import InputError, UsageError, shown, shown_name
from lite_probe.files import open_regular

BUILTIN_PREFIX = "builtin:"
BUILTIN_NAMES = ("builtin:python-docs", "builtin:python-source")

# Folders of the standard library's tree that hold something else.
_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests"}

# 1 KiB of zstd holds at most 256 run-length blocks of 128 KiB: one step cannot fill the memory.
_ZSTD_STEP = 1024
_FILE_STEP = 1 << 18

# No text becomes so much smaller by compression; what does is made to fill a memory.
_MAX_EXPANSION = 256
_ALWAYS_EXPANDED = 1 << 26  # bytes; a short text may well be a repetition

MAX_LINE_BYTES = 1 << 24  # as JSON a line takes up to 24 times its room
_UTF8_BYTES = 4  # of a character, at most
MAX_DOCUMENTS = 1 << 20
MAX_EMPTY = 1 << 18  # lines and documents without text: what caps a text is its length
MAX_ROW_GROUPS = 1 << 15
_PARQUET_ROWS = 1024  # read at once, of texts that cannot be long
_PARQUET_BATCH_BYTES = 2**26  # that a batch may come to

MAX_LABEL = 200  # characters
_LABEL_BITS = 64  # of one that is a whole number
_ROW_SUFFIXES = (".jsonl", ".jsonl.zst", ".parquet")
_LABEL_HINT = "name the field that tells rows apart with --shards label:FIELD"


class Document(NamedTuple):
    """A text, and what tells which others it belongs with."""

    text: str
    label: str = ""  # a text, a whole number, "true" or "false"; empty where none was asked for


def has_rows(name: str) -> bool:
    """Whether a file of this name holds rows with fields."""
    return name.lower().endswith(_ROW_SUFFIXES)


def require_rows(name: str, label_field: str) -> None:
    """Refuse a source without fields where one of them is asked for.

    Raises:
        InputError: If it is of another kind than .jsonl, .jsonl.zst and .parquet.
    """
    if not has_rows(name):
        raise InputError(
            f"expected rows with a field {label_field!r} in .jsonl, .jsonl.zst or .parquet, got {shown_name(name)}",
            "give --data such a file or a folder of them, or pass another --shards",
        )


def read_documents(
    path: Path, *, text_field: str, max_bytes: int, label_field: str | None = None
) -> Iterator[Document]:
    """Read the documents of one text file: .jsonl, .parquet, either text, .zst around text or .jsonl.

    Args:
        path: The file; a suffix other than these is read as UTF-8 text, one document.
        text_field: Field of a JSON line, column of a parquet file.
        max_bytes: A plain text, and one of parquet, is read up to the first bytes beyond this.
        label_field: Field or column whose values are the documents' labels.

    Yields:
        Documents, in file order.

    Raises:
        InputError: If the content is not what the suffix says, or a row has no label.
    """
    if label_field is not None:
        require_rows(path.name, label_field)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".parquet"]:
        yield from _counted(_parquet_documents(path, text_field, label_field, max_bytes), path.name)
        return
    compressed = suffixes[-1:] == [".zst"]
    pieces = _zstd_pieces(path) if compressed else _file_pieces(path, _FILE_STEP)
    if (suffixes[:-1] if compressed else suffixes)[-1:] == [".jsonl"]:
        yield from _counted(_json_documents(pieces, path.name, text_field, label_field), path.name)
    else:
        yield Document(_decode(pieces, path.name, max_bytes))


def builtin_documents(name: str) -> Iterator[Document]:
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
    return map(Document, _python_docs() if name == "builtin:python-docs" else _python_source())


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
    with open_regular(path, "a text") as file:
        while piece := file.read(step):
            yield piece


def _zstd_pieces(path: Path) -> Iterator[bytes]:
    """Decompress frame after frame; a stream reader would take a truncated frame for the end."""
    import zstandard  # costs start-up time that only compressed corpora should pay

    frame = zstandard.ZstdDecompressor().decompressobj()
    between_frames = True
    taken = given = 0
    try:
        for piece in _file_pieces(path, _ZSTD_STEP):
            rest = piece
            while rest:
                between_frames = False
                content = frame.decompress(rest)
                taken, given = taken + len(rest), given + len(content)
                _check_expansion(given, taken, path.name)
                yield content
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


def _check_expansion(num_bytes: int, compressed_bytes: int, name: str) -> None:
    if num_bytes > max(_ALWAYS_EXPANDED, _MAX_EXPANSION * compressed_bytes):
        raise InputError(
            f"expected a text that is at most {_MAX_EXPANSION} times as long as it is compressed, "
            f"got {num_bytes:,} bytes out of {compressed_bytes:,} in {name}",
            "a text that repeats itself so often is no text to measure on",
        )


def _counted(documents: Iterable[Document | None], name: str) -> Iterator[Document]:
    """Yield documents, None left out, as long as they are not many and short: a small file can hold billions."""
    empty = 0
    for number, document in enumerate(documents, start=1):
        empty += document is None or not document.text
        if empty > MAX_EMPTY or number - empty > MAX_DOCUMENTS:
            raise InputError(
                f"expected at most {MAX_DOCUMENTS:,} documents and {MAX_EMPTY:,} empty ones before the text is long "
                f"enough, got more in {name}",
                "join the short ones",
            )
        if document is not None:
            yield document


def _decode(pieces: Iterable[bytes], name: str, max_bytes: int) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")()
    decoded: list[str] = []
    size = 0
    for whole in pieces:
        piece = whole[: max_bytes + 1 - size]  # one step of zstd may give far more
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


def _json_documents(
    pieces: Iterable[bytes], name: str, text_field: str, label_field: str | None
) -> Iterator[Document | None]:
    for number, line in enumerate(_lines(pieces, name), start=1):
        if not line.strip():
            yield None
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
        text = _text_of(record, text_field, where)
        yield Document(text) if label_field is None else Document(text, _label_of(record, label_field, where))


def _text_of(record: dict[str, object], text_field: str, where: str) -> str:
    if text_field not in record:
        raise InputError(
            f"expected a field {text_field!r}, got {shown(sorted(record))} in {where}",
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


def _label_of(record: dict[str, object], label_field: str, where: str) -> str:
    if label_field not in record:
        raise InputError(f"expected a field {label_field!r}, got {shown(sorted(record))} in {where}", _LABEL_HINT)
    label = record[label_field]
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, int) and label.bit_length() <= _LABEL_BITS:
        return str(label)
    if isinstance(label, str) and len(label) <= MAX_LABEL:
        return label
    raise InputError(
        f"expected a text of at most {MAX_LABEL} characters, a whole number, true or false in field {label_field!r}, "
        f"got {shown(label)} in {where}",
        _LABEL_HINT,
    )


def _lines(pieces: Iterable[bytes], name: str) -> Iterator[bytes]:
    begun: list[bytes] = []
    size, number = 0, 1
    for piece in pieces:
        start = 0
        while start < len(piece):
            end = piece.find(b"\n", start)
            part = piece[start : end if end >= 0 else len(piece)]
            size += len(part)
            if size > MAX_LINE_BYTES:
                raise InputError(
                    f"expected lines of at most {MAX_LINE_BYTES:,} bytes, got more in line {number:,} of {name}",
                    "divide the document",
                )
            begun.append(part)
            if end < 0:
                break
            yield b"".join(begun)
            begun, size, number, start = [], 0, number + 1, end + 1
    yield b"".join(begun)


def _check_pages(stream: BinaryIO, group: Any, columns: Sequence[str], name: str) -> int:
    """Refuse columns that expand like no text does, before a page of them is decompressed.

    Returns:
        Rows to read at once: a dictionary or a prefix can make each of them as long as the largest page.
    """
    largest = 1
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema in columns:
            first = chunk.dictionary_page_offset or chunk.data_page_offset
            pages = measure_pages(
                stream,
                start=min(first, chunk.data_page_offset),
                num_bytes=chunk.total_compressed_size,
                num_values=chunk.num_values,
            )
            _check_expansion(pages.num_bytes, chunk.total_compressed_size, name)
            largest = max(largest, pages.largest)
    return min(_PARQUET_ROWS, max(1, _PARQUET_BATCH_BYTES // largest))


def _start_of(scalar: Any, max_bytes: int) -> str | None:
    """Return a text of parquet, or what shows that it is longer than `max_bytes`: copies of it take their room."""
    content = scalar.as_buffer()
    if content is None or content.size <= max_bytes + _UTF8_BYTES:
        text: str | None = scalar.as_py()
        return text
    return codecs.getincrementaldecoder("utf-8")().decode(content[: max_bytes + _UTF8_BYTES].to_pybytes())


def _label_value(scalar: Any) -> object:
    """Return a label of parquet, or what shows that it is too long."""
    value = scalar.value if hasattr(scalar, "dictionary") else scalar  # of a column of categories
    if value is None:
        return None
    return _start_of(value, _UTF8_BYTES * MAX_LABEL) if hasattr(value, "as_buffer") else value.as_py()


def _require_columns(schema: Any, text_field: str, label_field: str | None, name: str) -> None:
    """Refuse a parquet file without the columns that are asked for, or of other types."""
    from pyarrow import types

    hint = "name the column that holds the text with --text-field"
    if schema.names.count(text_field) != 1:
        raise InputError(f"expected a column {text_field!r}, got {shown(sorted(schema.names))} in {name}", hint)
    kind = schema.field(text_field).type
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise InputError(f"expected text in column {text_field!r}, got {kind} in {name}", hint)
    if label_field is None:
        return
    if schema.names.count(label_field) != 1:
        raise InputError(f"expected a column {label_field!r}, got {shown(sorted(schema.names))} in {name}", _LABEL_HINT)
    kind = schema.field(label_field).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    known = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean)
    if not any(is_one(kind) for is_one in known):
        raise InputError(
            f"expected text, whole numbers or booleans in column {label_field!r}, got {shown_name(str(kind))} in "
            f"{name}",
            _LABEL_HINT,
        )


def _parquet_documents(
    path: Path, text_field: str, label_field: str | None, max_bytes: int
) -> Iterator[Document | None]:
    import pyarrow as pa  # costs start-up time that only parquet corpora should pay
    from pyarrow import parquet

    columns = [text_field] if label_field is None else [text_field, label_field]
    row = 0
    try:
        # The second one is for the headers of pages: arrow counts on the first being where it left it.
        with open_regular(path, "a parquet file") as stream, open_regular(path, "a parquet file") as headers:
            if footer_bytes(headers) > MAX_FOOTER_BYTES:
                raise PageError(f"a footer of {footer_bytes(headers):,} bytes, more than {MAX_FOOTER_BYTES:,}")
            file = parquet.ParquetFile(stream, buffer_size=_FILE_STEP)  # pages are read one by one
            _require_columns(file.schema_arrow, text_field, label_field, path.name)
            if file.num_row_groups > MAX_ROW_GROUPS:
                raise PageError(f"{file.num_row_groups:,} row groups, more than {MAX_ROW_GROUPS:,}")
            for number in range(file.num_row_groups):
                rows = _check_pages(headers, file.metadata.row_group(number), columns, path.name)
                for batch in file.iter_batches(batch_size=rows, row_groups=[number], columns=columns):
                    labels = batch.column(columns[-1])
                    for place, scalar in enumerate(batch.column(text_field)):
                        text = _start_of(scalar, max_bytes)
                        if text is None or label_field is None:
                            yield None if text is None else Document(text)
                            continue
                        record = {label_field: _label_value(labels[place])}
                        yield Document(text, _label_of(record, label_field, f"row {row + place + 1:,} of {path.name}"))
                    row += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError, PageError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"expected a parquet file, got {first} in {path.name}", "the file is damaged or of another kind"
        ) from error
