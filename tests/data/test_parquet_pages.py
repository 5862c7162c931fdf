"""Headers of parquet pages: what arrow wrote is measured as it is, and what no reader can take is refused."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from lite_probe.data.parquet_pages import PageError, Pages, measure_pages

INT32, INT64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12


def varint(value: int) -> bytes:
    content = bytearray()
    while value > 127:
        content.append(value & 127 | 128)
        value >>= 7
    return bytes([*content, value])


def number(value: int) -> bytes:
    return varint(value << 1 ^ value >> 63)


def struct(*fields: tuple[int, int, bytes]) -> bytes:
    """Return a struct of (field, kind, content)."""
    return b"".join(bytes([kind]) + number(field) + content for field, kind, content in fields) + b"\0"


def header(
    size: int, values: int = 1, *, kind: int = 5, compressed: int = 0, more: Sequence[tuple[int, int, bytes]] = ()
) -> bytes:
    inner = struct((1, INT32, number(values)), (2, INT32, number(0)))
    return struct(
        (1, INT32, number(0)), (2, INT32, number(size)), (3, INT32, number(compressed)), (kind, 12, inner), *more
    )


def measured(content: bytes, num_values: int = 1) -> Pages:
    return measure_pages(_file(content), start=0, num_bytes=len(content), num_values=num_values)


def _file(content: bytes) -> Any:
    return io.BytesIO(content)


@pytest.mark.parametrize(
    "options", [{}, {"use_dictionary": False}, {"data_page_version": "2.0", "compression": "zstd"}]
)
def test_pages_of_arrow_add_up_to_what_its_footer_says(options: dict[str, Any], tmp_path: Path) -> None:
    table = pa.table({"text": [f"{number % 700} " * 20 for number in range(30_000)]})
    parquet.write_table(table, tmp_path / "a.parquet", data_page_size=2**14, **options)
    chunk = parquet.read_metadata(tmp_path / "a.parquet").row_group(0).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    with (tmp_path / "a.parquet").open("rb") as file:
        pages = measure_pages(file, start=start, num_bytes=chunk.total_compressed_size, num_values=chunk.num_values)
    # The footer counts headers, too: some 20 to 60 bytes for each page of 16 KiB.
    assert 0.9 * chunk.total_uncompressed_size < pages.num_bytes < chunk.total_uncompressed_size
    assert pages.largest < pages.num_bytes


def test_sizes_are_those_that_arrow_would_take() -> None:
    other = [(9, LIST, bytes([2 << 4 | BINARY, 1, 65, 1, 66])), (2, INT64, number(1)), (10, BINARY, b"\x02ab")]
    assert measured(header(1000, more=other)) == Pages(num_bytes=1000, largest=1000)
    assert measured(header(1000) + header(10), num_values=2) == Pages(num_bytes=1010, largest=1000)
    assert measured(header(1000) + header(10)).num_bytes == 1000  # arrow stops once it has all values
    assert measured(header(7, more=[(2, INT32, number(8))])).largest == 8  # the last of two counts
    wide = (2, INT32, varint((1 << 40) + 16))  # 32 bits of it are kept
    assert measured(header(7, more=[wide])).largest == 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(100 * 2**20 + 1), "a page of 104,857,601 bytes, more than 104,857,600"),
        (header(1, compressed=2**28), "a page of 268,435,456 bytes"),
        (header(1, values=2**24 + 1), "16,777,217 values in a page, more than 16,777,216"),
        (header(1, values=2**24 + 1, kind=8), "16,777,217 values in a page, more than 16,777,216"),
        (header(1, values=2**20 + 1, kind=7), "1,048,577 values in a page, more than 1,048,576"),
        (header(1, values=0) * (2**16 + 1), "more than 65,536 pages in a row group"),
        (header(-1), "a page header without its sizes"),
        (struct((1, INT32, number(0))), "a page header without its sizes"),
        (bytes([STRUCT, 2]) * 20, "a page header that is nested too deeply"),
        (bytes([0x10 | LIST, 0x19] + [0x19] * 20), "a field of kind 9 in a page header"),
        (bytes([0x10 | 13]), "a field of kind 13 in a page header"),
        (bytes([0x10 | INT32]) + b"\xff" * 20, "a number of more than 64 bits in a page header"),
        (header(1)[:-3], "a page header that does not end"),
        (bytes([0x10 | BINARY]) + varint(2**40), "a page header that does not end"),
        (bytes([0x10 | LIST, 0xF3]) + varint(2**40), "a page header that does not end"),
    ],
)
def test_what_no_reader_can_take_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(PageError, match=message):
        measured(content)
