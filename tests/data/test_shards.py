"""Shards: labels of rows read as they are, damage refused by name, and windows of nodes that share no token."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lite_probe.data import (
    ByteTokenizer,
    Shard,
    ShardPlan,
    TokenPart,
    TokenStream,
    deal_shards,
    documents,
    draw_batches,
    draw_shards,
    find_shards,
    label_of,
    open_tokens,
    shards,
    stream,
)
from lite_probe.errors import InputError, LiteProbeError, UsageError

ROWS = [("one", "en"), ("deux", "fr"), ("", "fr"), ("trois", "fr"), ("four", "en"), ("fünf", "de")]


def json_lines(rows: list[tuple[str, Any]]) -> bytes:
    return "".join(json.dumps({"text": text, "lang": label}) + "\n" for text, label in rows).encode()


def parquet_bytes(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


def labelled(folder: Path, name: str, content: bytes, field: str = "lang") -> TokenStream:
    (folder / name).write_bytes(content)
    return open_tokens(folder / name, tokenizer=ByteTokenizer(), label_field=field)


def texts_of(tokens: TokenStream, by: str = "label:lang") -> dict[str, str]:
    """Return what each shard holds, as text."""
    return {
        shard.name: b"".join(bytes(tokens.read(*pair).astype(np.uint8)) for pair in shard.ranges).decode()
        for shard in find_shards(tokens, by)
    }


TEXTS, LABELS = [text for text, _ in ROWS], [label for _, label in ROWS]
CONTENTS = {
    "a.jsonl": json_lines(ROWS) + b"\n",
    "a.jsonl.zst": zstandard.ZstdCompressor().compress(json_lines(ROWS)),
    "a.parquet": parquet_bytes({"text": TEXTS, "lang": LABELS}),
    "null.parquet": parquet_bytes({"text": [None, *TEXTS], "lang": [None, *LABELS]}),
    "groups.parquet": parquet_bytes({"lang": LABELS, "text": TEXTS}, row_group_size=2),
    "categories.parquet": parquet_bytes({"text": TEXTS, "lang": pa.array(LABELS).dictionary_encode()}),
    "large.parquet": parquet_bytes({"text": TEXTS, "lang": pa.array(LABELS, pa.large_string())}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_documents_of_a_label_are_a_shard(tmp_path: Path, name: str) -> None:
    tokens = labelled(tmp_path, name, CONTENTS[name])
    # A document brings the separator before it along.
    assert texts_of(tokens) == {"de": "\nfünf", "en": "one\nfour", "fr": "\ndeux\n\ntrois"}
    plain = open_tokens(tmp_path / name, tokenizer=ByteTokenizer())
    assert np.array_equal(tokens.read(0, len(tokens)), plain.read(0, len(plain)))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 10, 1, -2], ["-2", "1", "10"]),
        ([True, False, True, True], ["false", "true"]),
        (["", "a", "a", "a"], ["", "a"]),
    ],
)
def test_labels_are_texts_whole_numbers_and_booleans(tmp_path: Path, labels: list[Any], names: list[str]) -> None:
    rows = [(f"text {place}", label) for place, label in enumerate(labels)]
    for name, content in {
        "a.jsonl": json_lines(rows),
        "a.parquet": parquet_bytes({"text": [text for text, _ in rows], "lang": labels}),
    }.items():
        assert list(texts_of(labelled(tmp_path, name, content))) == names


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a", "b": 1}', r"expected a field 'lang', got \['b', 'text'\] in line 1 of a.jsonl"),
        ("a.jsonl", b'{"text": "a", "lang": null}', "expected a text of at most 200 characters, .* got None in line 1"),
        ("a.jsonl", b'{"text": "a", "lang": [1]}', r"true or false in field 'lang', got \[1\] in line 1 of a.jsonl"),
        ("a.jsonl", b'{"text": "a", "lang": 1.5}', "true or false in field 'lang', got 1.5 in line 1"),
        ("a.jsonl", b'{"text": "a", "lang": 1' + b"0" * 30 + b"}", "field 'lang', got 10+ in line 1"),
        ("a.jsonl", json_lines([("a", "x" * 201)]), r"at most 200 characters, .* got 'x{80}'… in line 1 of a.jsonl"),
        ("a.parquet", parquet_bytes({"text": ["a"]}), r"expected a column 'lang', got \['text'\] in a.parquet"),
        ("a.parquet", parquet_bytes({"text": ["a"], "lang": [1.5]}), "booleans in column 'lang', got double in a.parq"),
        ("a.parquet", parquet_bytes({"text": ["a"], "lang": [["b"]]}), "booleans in column 'lang', got list<.*"),
        (
            "a.parquet",
            parquet_bytes({"text": ["a", "b", "c"], "lang": ["a", "b", None]}, row_group_size=2),
            "field 'lang', got None in row 3 of a.parquet",
        ),
        (
            "a.parquet",
            parquet_bytes({"text": ["a"], "lang": ["x" * 10**6]}),
            "at most 200 characters, .* got 'x{80}'… in row 1 of a.parquet",
        ),
        (
            "a.parquet",
            parquet_bytes({"text": ["a"], "lang": pa.array([None], pa.string()).dictionary_encode()}),
            "field 'lang', got None in row 1 of a.parquet",
        ),
        ("a.txt", b"text", r"expected rows with a field 'lang' in .jsonl, .jsonl.zst or .parquet, got a.txt"),
        ("a.bin", b"text", r"expected rows with a field 'lang' in .jsonl, .jsonl.zst or .parquet, got a.bin"),
    ],
)
def test_rows_without_a_usable_label_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        labelled(tmp_path, name, content)


def test_a_text_without_rows_has_no_labels() -> None:
    with pytest.raises(InputError, match=r"expected rows with a field 'lang' .*, got builtin:python-docs"):
        open_tokens("builtin:python-docs", tokenizer=ByteTokenizer(), label_field="lang")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "lang", "lang"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"expected a column 'lang', got \['lang', 'lang', 'text'\]"):
        open_tokens(tmp_path / "a.parquet", tokenizer=ByteTokenizer(), label_field="lang")


def test_pages_of_a_label_are_measured_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_ALWAYS_EXPANDED", 1000)
    content = parquet_bytes(
        {"text": ["a"], "lang": ["x" * 10**6]}, use_dictionary=False, compression="zstd", write_statistics=False
    )
    (tmp_path / "a.parquet").write_bytes(content)
    assert len(open_tokens(tmp_path / "a.parquet", tokenizer=ByteTokenizer())) == 1
    with pytest.raises(InputError, match=r"at most 256 times as long .*, got 1,[\d,]+ bytes out of [\d,]+ in a\.parq"):
        open_tokens(tmp_path / "a.parquet", tokenizer=ByteTokenizer(), label_field="lang")


def test_a_field_that_tells_every_row_apart_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_LABELS", 3)
    rows = [(f"text {place}", place % 4) for place in range(20)]
    assert len(texts_of(labelled(tmp_path, "a.jsonl", json_lines(rows[:3])))) == 3
    with pytest.raises(InputError, match=r"expected at most 3 different labels, got more by a\.jsonl"):
        labelled(tmp_path, "a.jsonl", json_lines(rows))


def test_labels_go_on_from_file_to_file_and_leave_the_validation_file_out(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(json_lines(ROWS[:2]))
    (tmp_path / "c.jsonl").write_bytes(json_lines(ROWS[3:]))
    (tmp_path / "val.jsonl").write_bytes(json_lines([("validation", "en"), ("other", "it")]))
    tokens = open_tokens(tmp_path, tokenizer=ByteTokenizer(), label_field="lang")
    assert texts_of(tokens) == {"de": "\nfünf", "en": "one\nfour", "fr": "\ndeuxtrois"}


def test_files_of_a_folder_are_shards_but_for_validation_and_empty_ones(tmp_path: Path) -> None:
    for name, text in {"b.txt": "two", "a.txt": "one", "c.txt": "", "val.txt": "three"}.items():
        (tmp_path / name).write_text(text)
    assert texts_of(open_tokens(tmp_path, tokenizer=ByteTokenizer()), "files") == {"a.txt": "one", "b.txt": "two"}
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.txt").unlink()
    assert texts_of(open_tokens(tmp_path, tokenizer=ByteTokenizer()), "files") == {"val.txt": "three"}


def test_what_tells_shards_apart_is_files_or_a_label() -> None:
    assert (label_of("files"), label_of("label:lang"), label_of("label:a:b")) == (None, "lang", "a:b")
    for wrong in ("", "file", "label", "label:", "turns"):
        with pytest.raises(UsageError, match=f"expected --shards dealt, files or label:FIELD, got '{wrong}'"):
            label_of(wrong)


def shard(name: str, start: int, stop: int) -> Shard:
    return Shard(name=name, ranges=((start, stop),))


def test_shards_are_dealt_so_that_nodes_hold_about_as_much() -> None:
    sizes = [3, 10, 4, 7, 2, 9, 1]
    stops = np.cumsum(sizes).tolist()
    held = [shard(str(size), stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]
    # 10 | 9 | 7, then 4 to 7, 3 to 9, 2 to 10, 1 to the first of 12, 12, 11: to 11.
    names = [[one.name for one in node] for node in deal_shards(held, 3)]
    assert names == [["3", "9"], ["10", "2"], ["4", "7", "1"]]
    assert [[one.name for one in node] for node in deal_shards(held, 7)] == [[str(size)] for size in sizes]


def numbers(*lengths: int, evaluation_start: int | None = None) -> TokenStream:
    """Number the tokens, so that an id tells its position."""
    stops = np.cumsum(lengths).tolist()
    parts = [
        TokenPart(name=f"{place}.bin", ids=np.arange(stop - length, stop))
        for place, (length, stop) in enumerate(zip(lengths, stops, strict=True))
    ]
    return TokenStream(name="numbers", parts=parts, tokenizer_name=None, evaluation_start=evaluation_start)


def draw(
    tokens: TokenStream, dealt: list[list[Shard]], *, train_batches: int = 2, seed: int = 0, vocab_size: int = 10**9
) -> tuple[Any, ShardPlan]:
    plan = draw_batches(
        tokens, seq_len=4, batch_size=2, eval_batches=2, train_batches=train_batches, seed=seed, vocab_size=10**9
    )
    return plan, draw_shards(tokens, dealt, plan, batches=2, vocab_size=vocab_size)


@settings(deadline=None, max_examples=200)
@given(
    lengths=st.lists(st.integers(10, 90), min_size=3, max_size=6),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=30),
    nodes=st.integers(2, 3),
    train_batches=st.integers(1, 12),
    seed=st.integers(0, 100),
)
def test_windows_of_nodes_share_no_token_with_any(
    lengths: list[int], cuts: list[int], nodes: int, train_batches: int, seed: int
) -> None:
    tokens = numbers(*lengths)
    # Labels go round over documents of the lengths that were cut.
    cumulated = np.cumsum([0, *(cuts * 1000)])
    bounds = [*cumulated[cumulated < len(tokens)].tolist(), len(tokens)]
    ranges = list(itertools.pairwise(bounds))
    held = [Shard(name=str(k), ranges=tuple(ranges[k::nodes])) for k in range(nodes) if ranges[k::nodes]]
    if len(held) < nodes:
        return
    dealt = deal_shards(held, nodes)
    try:
        plan, found = draw(tokens, dealt, train_batches=train_batches, seed=seed)
    except InputError:  # too short
        return
    judged = {*np.array(plan.evaluation).ravel().tolist(), *np.array(plan.heldout).ravel().tolist()}
    trained = set(np.array(plan.train).ravel().tolist())
    seen: set[int] = set()
    for node, (own, batches) in enumerate(zip(dealt, found.batches, strict=True)):
        drawn = np.array(batches)
        assert drawn.shape == (2, 2, 5)
        positions = set(drawn.ravel().tolist())
        assert len(positions) == drawn.size
        assert not positions & (judged | seen)
        if node not in found.shared:
            assert not positions & trained
        row = np.concatenate([np.arange(*pair) for one in own for pair in one.ranges])
        places = np.searchsorted(row, drawn)
        assert np.array_equal(row[places], drawn)
        assert np.all(np.diff(places) == 1)
        seen |= positions


def test_windows_depend_on_the_seed_and_the_node_and_lie_all_over_a_shard() -> None:
    tokens = numbers(1000, 1000, 200, evaluation_start=2000)
    dealt = [[shard("0.bin", 0, 1000)], [shard("1.bin", 1000, 2000)]]
    first, again, other = (np.array(draw(tokens, dealt, seed=seed)[1].batches) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0] + 1000, first[1])
    drawn = [np.array(draw(tokens, dealt, seed=seed)[1].batches) for seed in range(50)]
    starts = np.concatenate([batches[0, :, :, 0].ravel() for batches in drawn])
    # 200 uniform starts: every tenth of the shard has 20 on average, and 5 in every likely case.
    assert np.bincount(starts // 100, minlength=10).min() >= 5


def test_a_shard_that_training_fills_is_used_all_the_same_and_told() -> None:
    tokens = numbers(40, 2000, 200, evaluation_start=2040)
    dealt = [[shard("0.bin", 0, 40)], [shard("1.bin", 40, 2040)]]
    for train_batches, shared in ((1, []), (400, [0]), (4000, [0, 1])):
        plan, found = draw(tokens, dealt, train_batches=train_batches)
        assert found.shared == shared
        judged = set(np.array([*plan.evaluation, *plan.heldout]).ravel().tolist())
        assert not judged & set(np.array(found.batches).ravel().tolist())


def test_a_shard_that_is_too_short_is_named() -> None:
    tokens = numbers(19, 1000, 200, evaluation_start=1019)
    dealt = [[shard("short\x1b[31m.bin", 0, 19)], [shard("1.bin", 19, 1019)]]
    with pytest.raises(
        InputError,
        match=r"room for 4 windows of 5 tokens in the shard of node 1 \(short\\x1b\[31m\.bin\), 2 batches of 2, got "
        r"room for 3; lower --node-batches",
    ):
        draw(tokens, dealt)


def test_more_batches_than_memory_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = numbers(1000, 1000, 200, evaluation_start=2000)
    dealt = [[shard("0.bin", 0, 1000)], [shard("1.bin", 1000, 2000)]]
    monkeypatch.setattr(shards, "MOST_IDS", 2 * 2 * 2 * 5)
    draw(tokens, dealt)
    monkeypatch.setattr(shards, "MOST_IDS", 2 * 2 * 2 * 5 - 1)
    with pytest.raises(UsageError, match=r"at most 39 tokens in all .* got 40: 2 × 2 batches of 2 × 5"):
        draw(tokens, dealt)


def test_ids_far_into_a_shard_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from lite_probe.data import batches

    tokens = numbers(1000, 1000, 200, evaluation_start=2000)
    dealt = [[shard("0.bin", 0, 1000)], [shard("1.bin", 1000, 2000)]]
    monkeypatch.setattr(batches, "_CHECKED_TOKENS", 900)
    with pytest.raises(InputError, match=r"expected tokens below 1,000 .*, got [\d,]+ at offset \d+ of 1.bin"):
        draw(tokens, dealt, vocab_size=1000)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    name=st.sampled_from(sorted(CONTENTS)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_mutated_rows_are_read_or_refused(tmp_path: Path, name: str, flips: list[tuple[float, int]]) -> None:
    content = bytearray(CONTENTS[name])
    for position, value in flips:
        content[int(position * len(content))] = value
    try:
        tokens = labelled(tmp_path, name, bytes(content))
    except LiteProbeError as error:
        refusal = str(error)
    else:
        refusal = None
        assert sum(shard.size for shard in find_shards(tokens, "label:lang")) == len(tokens)
    assert refusal is None or ("expected" in refusal and name in refusal)
