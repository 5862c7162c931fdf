"""Sources of token ids: each kind read back exactly, each kind of damage refused by name."""

import importlib
import io
import json
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lite_probe.data import ByteTokenizer, TokenStream, documents, open_tokens
from lite_probe.data.documents import _ZSTD_STEP
from lite_probe.errors import InputError, LiteProbeError, UsageError
from lite_probe.results.provenance import Note

TEXTS = ["first höf", "second\nwith a line", "", "三"]
JOINED = "\n".join(TEXTS)


def json_lines(texts: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({field: text, "id": i}) + "\n" for i, text in enumerate(texts)).encode()


def parquet_bytes(texts: list[str | None]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table({"text": pa.array(texts, pa.string()), "id": range(len(texts))}), sink)
    return sink.getvalue()


def npy_bytes(ids: object) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.asarray(ids), allow_pickle=True)
    return sink.getvalue()


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


CONTENTS: dict[str, bytes] = {
    "a.txt": JOINED.encode(),
    "a.unknown": JOINED.encode(),
    "a.txt.zst": zstd(JOINED.encode()),
    "a.jsonl": json_lines(TEXTS),
    "a.jsonl.zst": zstd(json_lines(TEXTS)),
    "two-frames.jsonl.zst": zstd(json_lines(TEXTS[:2])) + zstd(json_lines(TEXTS[2:])),
    "a.parquet": parquet_bytes([TEXTS[0], None, *TEXTS[1:]]),
}


def open_file(folder: Path, name: str, content: bytes, **options: object) -> TokenStream:
    (folder / name).write_bytes(content)
    return open_tokens(folder / name, tokenizer=ByteTokenizer(), **options)  # type: ignore[arg-type]


def text_of(stream: TokenStream) -> str:
    return bytes(stream.read(0, len(stream)).astype(np.uint8)).decode()


@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_of_text_reads_the_same(tmp_path: Path, name: str) -> None:
    stream = open_file(tmp_path, name, CONTENTS[name])
    assert text_of(stream) == JOINED
    assert (stream.name, stream.tokenizer_name) == (name, "bytes")


def test_a_text_longer_than_any_piece_is_read_exactly(tmp_path: Path) -> None:
    # Characters of 1 to 4 bytes, so that pieces end within characters.
    text = "aé三🦙" * 120_000
    assert text_of(open_file(tmp_path, "long.txt", text.encode())) == text
    packed = zstandard.ZstdCompressor(level=-50).compress(np.random.default_rng(0).bytes(9 * _ZSTD_STEP).hex().encode())
    assert len(packed) > _ZSTD_STEP
    assert len(open_file(tmp_path, "long.txt.zst", packed)) == 18 * _ZSTD_STEP


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert text_of(open_file(tmp_path, "a.txt", "\ufeffhi".encode())) == "hi"


def test_the_text_field_is_named_by_the_caller(tmp_path: Path) -> None:
    assert text_of(open_file(tmp_path, "a.jsonl", json_lines(TEXTS, "body"), text_field="body")) == JOINED


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_text_beyond_the_cap_is_left_unread_with_a_note(tmp_path: Path, name: str) -> None:
    notes: list[Note] = []
    content = {"a.txt": b"x" * 99 + "é".encode(), "a.jsonl": json_lines(["x" * 99 + "é", "y"])}
    stream = open_file(
        tmp_path,
        name,
        content.get(name) or parquet_bytes(["x" * 99 + "é", "y"]),
        max_text_bytes=100,
        on_note=notes.append,
    )
    assert text_of(stream) == "x" * 99  # é would have been cut in two
    assert [note.code for note in notes] == ["text-capped"]
    assert "first 100 bytes" in notes[0].message


def test_text_within_the_cap_needs_no_note(tmp_path: Path) -> None:
    notes: list[Note] = []
    assert len(open_file(tmp_path, "a.txt", b"x" * 100, max_text_bytes=100, on_note=notes.append)) == 100
    assert notes == []


# Token files


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_flat_file_reads_back(tmp_path: Path, dtype: str) -> None:
    ids = np.random.default_rng(0).integers(0, 50_257, 1000)
    notes: list[Note] = []
    stream = open_file(tmp_path, "val.bin", ids.astype(dtype).tobytes(), on_note=notes.append)
    assert stream.read(0, 1000).tolist() == ids.tolist()
    assert stream.tokenizer_name is None
    assert [note.code for note in notes] == (["token-type"] if dtype == "uint32" else [])
    assert isinstance(stream.parts[0].ids, np.memmap)


def test_a_flat_file_takes_the_type_it_is_given(tmp_path: Path) -> None:
    ids = np.arange(300, dtype="<u2")
    assert len(open_file(tmp_path, "a.bin", ids.tobytes(), token_dtype="uint32")) == 150
    wide = np.arange(300, dtype="<u4")  # guessed as uint32, if not told
    assert len(open_file(tmp_path, "a.bin", wide.tobytes(), token_dtype="uint16")) == 600
    with pytest.raises(UsageError, match="expected a token type of uint16 or uint32, got 'int8'"):
        open_file(tmp_path, "a.bin", wide.tobytes(), token_dtype="int8")


def test_ids_of_a_small_vocabulary_stay_uint16(tmp_path: Path) -> None:
    # nanoGPT's character-level texts: every half is small, not every second one.
    ids = np.random.default_rng(0).integers(0, 10, 1000)
    assert open_file(tmp_path, "a.bin", ids.astype("<u2").tobytes()).read(0, 1000).tolist() == ids.tolist()


@pytest.mark.parametrize(("magic", "version", "dtype"), [(20240520, 1, "<u2"), (20240801, 7, "<u4")])
def test_the_header_of_llm_c_is_no_token(tmp_path: Path, magic: int, version: int, dtype: str) -> None:
    ids = np.random.default_rng(0).integers(0, 50_257, 100)
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(ids)
    stream = open_file(tmp_path, "fineweb.bin", header.tobytes() + ids.astype(dtype).tobytes())
    assert stream.read(0, len(stream)).tolist() == ids.tolist()


@pytest.mark.parametrize(("content", "size"), [(b"", "0"), (b"abc", "3"), (b"\x01" * 1001, "1,001")])
def test_a_flat_file_ends_with_a_whole_id(tmp_path: Path, content: bytes, size: str) -> None:
    with pytest.raises(InputError, match=f"expected uint16 token ids in a.bin, got {size} bytes of them"):
        open_file(tmp_path, "a.bin", content)


@pytest.mark.parametrize("dtype", ["<i8", ">u2", "<u4", "i1"])
def test_a_numpy_file_reads_back(tmp_path: Path, dtype: str) -> None:
    ids = np.arange(100).astype(dtype)
    assert open_file(tmp_path, "a.npy", npy_bytes(ids)).read(10, 20).tolist() == list(range(10, 20))


@pytest.mark.parametrize("ids", [np.zeros((2, 3), int), np.zeros(3), np.zeros(3, bool), np.array(3)])
def test_a_numpy_file_of_another_kind_is_refused(tmp_path: Path, ids: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"expected token ids \(n,\) of an integer type, got \w+ \(.*\) in a.npy"):
        open_file(tmp_path, "a.npy", npy_bytes(ids))


class Trap:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return pytest.fail, ("a pickle was run",)


def test_a_pickle_in_a_numpy_file_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a .npy array, got .* in a.npy"):
        open_file(tmp_path, "a.npy", npy_bytes(np.array([Trap()], dtype=object)))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04."])
def test_a_numpy_file_without_its_magic_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"expected a .npy array, got first bytes b'.*' in a.npy"):
        open_file(tmp_path, "a.npy", content)


# Folders


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    for name, text in {"b.txt": "two", "a.txt": "one", "c.md": "three", "skip.py": "x"}.items():
        (tmp_path / name).write_text(text)
    stream = open_tokens(tmp_path, tokenizer=ByteTokenizer())
    assert text_of(stream) == "onetwothree"
    assert [stream.locate(i) for i in (0, 2, 3, 6, 10)] == [
        ("a.txt", 0),
        ("a.txt", 2),
        ("b.txt", 0),
        ("c.md", 0),
        ("c.md", 4),
    ]
    assert bytes(stream.read(2, 7).astype(np.uint8)) == b"etwot"
    assert stream.evaluation_start is None
    with pytest.raises(IndexError, match="expected a position below 11, got 0 beyond it"):
        stream.locate(11)


def test_the_validation_file_of_a_folder_is_for_evaluation(tmp_path: Path) -> None:
    notes: list[Note] = []
    np.arange(50, dtype="<u2").tofile(tmp_path / "val.bin")
    np.arange(100, dtype="<u2").tofile(tmp_path / "zzz.bin")
    (tmp_path / "input.txt").write_text("text")
    stream = open_tokens(tmp_path, tokenizer=None, on_note=notes.append)
    assert [part.name for part in stream.parts] == ["zzz.bin", "val.bin"]
    assert (stream.evaluation_start, len(stream)) == (100, 150)
    assert [note.code for note in notes] == ["texts-left-aside"]
    assert "input.txt" in notes[0].message
    # On its own it is a source like any other.
    assert open_tokens(tmp_path / "val.bin", tokenizer=None).evaluation_start is None


def test_a_folder_with_nothing_usable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prepare.py").write_text("")
    with pytest.raises(InputError, match=r"expected files ending in \.bin, .*\.jsonl\.zst in folder '.*', got none"):
        open_tokens(tmp_path, tokenizer=ByteTokenizer())


# Builtin texts


def test_the_builtin_docs_are_those_of_python() -> None:
    topics = importlib.import_module("pydoc_data.topics").topics
    text = text_of(open_tokens("builtin:python-docs", tokenizer=ByteTokenizer()))
    assert text == "\n".join(topics[key] for key in sorted(topics))


@pytest.mark.slow
def test_the_builtin_source_is_that_of_python() -> None:
    library = Path(sysconfig.get_path("stdlib"))
    first, second = ((library / name).read_text(encoding="utf-8") for name in ("__future__.py", "__hello__.py"))
    cap = len(first.encode()) + 10
    stream = open_tokens("builtin:python-source", tokenizer=ByteTokenizer(), max_text_bytes=cap)
    assert text_of(stream) == first + "\n" + second[:10]


def test_a_python_without_its_library_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match=r"expected pydoc_data.topics in the standard library, got an ImportError"):
        open_tokens("builtin:python-docs", tokenizer=ByteTokenizer())
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match=r"expected the standard library's .py files, got none"):
        open_tokens("builtin:python-source", tokenizer=ByteTokenizer())


def test_an_unknown_builtin_text_is_refused() -> None:
    with pytest.raises(UsageError, match="expected one of builtin:python-docs, builtin:python-source, got 'builtin:x'"):
        open_tokens("builtin:x", tokenizer=ByteTokenizer())


# Damage


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "expected tokens in a.txt, got an empty source"),
        ("a.jsonl", b"\n \n", "expected tokens in a.jsonl, got an empty source"),
        ("a.txt", b"ab\xffcd", "expected UTF-8 text, got byte 0xff at offset 2 of a.txt"),
        ("a.txt", b"x" * 300_000 + b"\xe4\xb8", "expected UTF-8 text, got byte 0xe4 at offset 300,000 of a.txt"),
        (
            "a.txt",
            b"x" * 262_143 + b"\xe4" + b"y" * 9,
            "expected UTF-8 text, got byte 0xe4 at offset 262,143 of a.txt",
        ),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text"',
            "expected a JSON object per line, got JSONDecodeError in line 2 of a.jsonl",
        ),
        ("a.jsonl", b"[1]", "expected a JSON object per line, got list in line 1 of a.jsonl"),
        ("a.jsonl", b"[" * 100_000, "expected a JSON object per line, got RecursionError in line 1"),
        ("a.jsonl", b'{"text": "\xff"}', "expected a JSON object per line, got UnicodeDecodeError in line 1"),
        ("a.jsonl", b'{"b": 1, "a": 2}', r"expected a field 'text', got \['a', 'b'\] in line 1 of a.jsonl"),
        ("a.jsonl", b'{"text": 1}', "expected text in field 'text', got int in line 1 of a.jsonl"),
        ("a.jsonl", b'{"text": "\\ud800"}', "expected text that UTF-8 can hold, got half a surrogate pair in line 1"),
        ("a.jsonl.zst", b"not zstd at all", "expected a zstd stream in a.jsonl.zst, got .*"),
        ("a.txt.zst", zstd(b"x" * 1000)[:-3], "expected a whole zstd stream in a.txt.zst, got one that ends within"),
        ("a.parquet", b"", "expected a parquet file, got .* in a.parquet"),
        ("a.parquet", b"PAR1 but no more", "expected a parquet file, got .* in a.parquet"),
    ],
)
def test_damaged_texts_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_file(tmp_path, name, content)


def test_a_parquet_column_that_is_not_text_is_refused(tmp_path: Path) -> None:
    content = parquet_bytes(["a"])
    with pytest.raises(InputError, match=r"expected a column 'body', got \['id', 'text'\] in a.parquet"):
        open_file(tmp_path, "a.parquet", content, text_field="body")
    with pytest.raises(InputError, match=r"expected text in column 'id', got int64 in a.parquet"):
        open_file(tmp_path, "a.parquet", content, text_field="id")


def test_a_text_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for source in (tmp_path / "a.txt", "builtin:python-docs"):
        with pytest.raises(InputError, match=r"expected a tokenizer for the text of .*, got none"):
            open_tokens(source, tokenizer=None)


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a file or folder of text or token ids, got no such path: .*a.txt"):
        open_tokens(tmp_path / "a.txt", tokenizer=ByteTokenizer())
    with pytest.raises(InputError, match=r"expected to read 'x+', got File name too long"):
        open_tokens("x" * 5000, tokenizer=ByteTokenizer())


def test_a_small_file_of_countless_documents_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_EMPTY", 10)
    monkeypatch.setattr(documents, "MAX_DOCUMENTS", 20)
    contents = {
        "blank.jsonl": b"\n" * 12,
        "empty.jsonl": b'{"text": ""}\n' * 11,
        "null.parquet": parquet_bytes([None] * 11),
        "short.jsonl": b'{"text": "a"}\n' * 21,
    }
    for name, content in contents.items():
        with pytest.raises(InputError, match="at most 20 documents and 10 empty ones .* got more in " + name):
            open_file(tmp_path, name, content)
    assert len(open_file(tmp_path, "a.jsonl", b'{"text": "a"}\n' * 20)) == 39


def test_a_text_that_expands_like_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_ALWAYS_EXPANDED", 1000)
    with pytest.raises(InputError, match=r"at most 256 times as long .*, got [\d,]+ bytes out of \d+ in a\.txt\.zst"):
        open_file(tmp_path, "a.txt.zst", zstd(b"x" * 10**6))


def test_texts_of_parquet_that_repeat_are_decoded_one_by_one(tmp_path: Path) -> None:
    texts = ["x" * 1000 + str(number) for number in range(40)]
    for name, options in {"a.parquet": {}, "b.parquet": {"column_encoding": {"text": "DELTA_BYTE_ARRAY"}}}.items():
        table = pa.table({"text": texts})
        parquet.write_table(table, tmp_path / name, use_dictionary=name == "a.parquet", **options)
        assert text_of(open_tokens(tmp_path / name, tokenizer=ByteTokenizer())) == "\n".join(texts)


def test_a_parquet_file_of_many_row_groups_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes its time to open, whether or not it holds a row."""
    monkeypatch.setattr(documents, "MAX_ROW_GROUPS", 20, raising=False)
    parquet.write_table(pa.table({"text": ["a"] * 21}), tmp_path / "a.parquet", row_group_size=1)
    with pytest.raises(InputError, match=r"expected a parquet file, got 21 row groups, more than 20 in a\.parquet"):
        open_tokens(tmp_path / "a.parquet", tokenizer=ByteTokenizer())


VALID = {
    **CONTENTS,
    "a.npy": npy_bytes(np.arange(200)),
    "a.bin": np.arange(200, dtype="<u2").tobytes(),
}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.sampled_from(sorted(VALID)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    keep=st.floats(0, 1),
    tail=st.binary(max_size=8),
)
@example(name="a.npy", flips=[], keep=0.5, tail=b"")
def test_a_mutated_source_is_read_or_refused(
    tmp_path: Path, name: str, flips: list[tuple[float, int]], keep: float, tail: bytes
) -> None:
    content = bytearray(VALID[name])
    for position, value in flips:
        content[int(position * len(content))] = value
    try:
        stream = open_file(tmp_path, name, bytes(content[: round(keep * len(content))]) + tail)
    except LiteProbeError as error:
        refusal = str(error)
    else:
        refusal = None
        assert len(stream.read(0, len(stream))) == len(stream) > 0
    assert refusal is None or ("expected" in refusal and name in refusal)
