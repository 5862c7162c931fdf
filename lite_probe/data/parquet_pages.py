"""What the pages of a parquet column take, told from the header before each of them.

The footer says so too, but the footer is not what a reader allocates by: a page of gigabytes fits a few bytes, and
so do a dictionary of millions of entries and a page of billions of values. Headers are thrift's compact protocol;
what is read here is read as parquet's own reader does, and anything else is skipped.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

MAX_PAGE_BYTES = 100 * 2**20  # some writers fill pages up to 100 MB
MAX_PAGE_VALUES = 2**24  # nulls take no room in a page; a list of lengths takes four bytes for each value
MAX_DICTIONARY_VALUES = 2**20
MAX_PAGES = 2**16  # of a column in one row group
MAX_FOOTER_BYTES = 2**24
_MAX_HEADER_BYTES = 2**24  # texts in its statistics, as long as parquet itself lets them be
_MAX_DEPTH = 8
_VARINT_BYTES = 10

_BOOLS, _BYTE, _WHOLE, _INT32, _DOUBLE, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 6), 5, 7, 8, (9, 10), 12

# Fields of parquet's PageHeader, and of the three kinds of header in it.
_UNCOMPRESSED, _COMPRESSED = 2, 3
_DATA_HEADER, _DICTIONARY_HEADER, _DATA_HEADER_V2 = 5, 7, 8
_NUM_VALUES = 1

Fields = dict[int, "int | Fields"]


class PageError(ValueError):
    """Pages are damaged, or larger than a reader can take."""


@dataclass(frozen=True, slots=True)
class Pages:
    """What the pages of one column in one row group take."""

    num_bytes: int  # of all pages, decompressed
    largest: int  # bytes of the largest; no value in any of them is longer


def footer_bytes(stream: BinaryIO) -> int:
    """Return the length that the end of a parquet file gives its footer."""
    stream.seek(-min(8, os.fstat(stream.fileno()).st_size), os.SEEK_END)
    return int.from_bytes(stream.read(4), "little")


def measure_pages(stream: BinaryIO, *, start: int, num_bytes: int, num_values: int) -> Pages:
    """Walk from header to header; no page is read.

    Args:
        stream: The file.
        start: Of the column's first page, bytes.
        num_bytes: Of all its pages as they lie in the file, headers included.
        num_values: A reader stops once it has met as many.

    Raises:
        PageError: If a header is damaged, a page is larger than 100 MiB or has more than 2²⁴ values, a dictionary has
            more than 2²⁰ values, or there are more than 2¹⁶ pages.
    """
    total = largest = 0
    for uncompressed, compressed in _page_sizes(stream, start, start + num_bytes, num_values):
        if max(uncompressed, compressed) > MAX_PAGE_BYTES:
            raise PageError(f"a page of {max(uncompressed, compressed):,} bytes, more than {MAX_PAGE_BYTES:,}")
        total += uncompressed
        largest = max(largest, uncompressed)
    return Pages(total, largest)


def _page_sizes(stream: BinaryIO, position: int, end: int, num_values: int) -> Iterator[tuple[int, int]]:
    """Yield the size of each page, decompressed and in the file."""
    seen = number = 0
    while seen < num_values and position < end:
        number += 1
        if number > MAX_PAGES:
            raise PageError(f"more than {MAX_PAGES:,} pages in a row group")
        stream.seek(position)
        header = _read_struct(stream, position + _MAX_HEADER_BYTES, _MAX_DEPTH)
        uncompressed, compressed = _whole(header, _UNCOMPRESSED), _whole(header, _COMPRESSED)
        yield uncompressed, compressed
        for field in (_DATA_HEADER, _DATA_HEADER_V2, _DICTIONARY_HEADER):
            inner = header.get(field)
            if isinstance(inner, dict):
                values = _whole(inner, _NUM_VALUES)
                limit = MAX_DICTIONARY_VALUES if field == _DICTIONARY_HEADER else MAX_PAGE_VALUES
                if values > limit:
                    raise PageError(f"{values:,} values in a page, more than {limit:,}")
                seen += 0 if field == _DICTIONARY_HEADER else values
        position = stream.tell() + compressed


def _whole(fields: Fields, field: int) -> int:
    value = fields.get(field)
    if not isinstance(value, int) or value < 0:
        raise PageError("a page header without its sizes")
    return value


def _read_struct(stream: BinaryIO, end: int, depth: int) -> Fields:
    """Read the 32-bit numbers and structs in a struct; where a field comes twice, the last counts."""
    if not depth:
        raise PageError("a page header that is nested too deeply")
    fields: Fields = {}
    field = 0
    while head := _read_byte(stream, end):
        kind = head & 15
        field = field + (head >> 4) if head >> 4 else _zigzag(_read_varint(stream, end))
        if kind == _INT32:
            fields[field] = _zigzag(_read_varint(stream, end) & 0xFFFFFFFF)
        elif kind == _STRUCT:
            fields[field] = _read_struct(stream, end, depth - 1)
        elif kind not in _BOOLS:  # the value of a bool lies in its kind
            _skip(stream, kind, end, depth - 1)
    return fields


def _skip(stream: BinaryIO, kind: int, end: int, depth: int) -> None:
    if kind in (*_BOOLS, _BYTE):
        _read_byte(stream, end)
    elif kind in (*_WHOLE, _INT32):
        _read_varint(stream, end)
    elif kind in (_DOUBLE, _BINARY):
        stream.seek(8 if kind == _DOUBLE else _read_varint(stream, end), os.SEEK_CUR)
    elif kind == _STRUCT:
        _read_struct(stream, end, depth)
    elif kind in _LISTS and depth:
        head = _read_byte(stream, end)
        count = head >> 4 if head >> 4 < 15 else _read_varint(stream, end)
        for _ in range(count):  # each takes a byte at least, and the bytes are bounded
            _skip(stream, head & 15, end, depth - 1)
    else:
        raise PageError(f"a field of kind {kind} in a page header")


def _read_byte(stream: BinaryIO, end: int) -> int:
    byte = stream.read(1)
    if not byte or stream.tell() > end:
        raise PageError("a page header that does not end")
    return byte[0]


def _read_varint(stream: BinaryIO, end: int) -> int:
    value = 0
    for place in range(_VARINT_BYTES):
        byte = _read_byte(stream, end)
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value
    raise PageError("a number of more than 64 bits in a page header")


def _zigzag(value: int) -> int:
    return value >> 1 ^ -(value & 1)
