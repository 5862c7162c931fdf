"""Tokenizers: bytes, tokenizer.json, and files that are neither."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lite_probe.data import ByteTokenizer, guarded, load_tokenizer
from lite_probe.errors import InputError

TEXT = "the cat sat on the mat\nand the dog sat on the cat\n" * 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hold a byte-level BPE of 300 ids, trained here, whose last template step would add a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.enable_truncation(5)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.slow
@given(st.text())
def test_bytes_are_the_utf8_of_the_text(text: str) -> None:
    ids = ByteTokenizer().encode(text)
    assert ids.dtype == np.int64
    assert bytes(ids.astype(np.uint8)) == text.encode("utf-8")


def test_file_and_folder_give_the_same_tokenizer(folder: Path) -> None:
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference.no_truncation()
    for source in (folder, folder / "tokenizer.json", folder / "tokenizer_config.json"):
        tokenizer = load_tokenizer(source)
        assert tokenizer.vocab_size == reference.get_vocab_size() <= 300
        assert tokenizer.encode(TEXT).tolist() == reference.encode(TEXT).ids


def test_a_long_text_is_encoded_whole(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (TEXT * 300, "no newline at all " * 20_000):  # 330k characters: three pieces each
        assert reference.decode(tokenizer.encode(text).tolist()) == text


def test_no_text_has_no_tokens(folder: Path) -> None:
    assert load_tokenizer(folder).encode("").tolist() == []


@pytest.mark.parametrize(
    ("config", "expected"),
    [(None, "<|endoftext|>"), ({"eos_token": "<pad>"}, "<pad>"), ({"eos_token": {"content": "<pad>"}}, "<pad>")],
)
def test_the_separator_is_the_end_token(folder: Path, config: dict[str, object] | None, expected: str) -> None:
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).separator.tolist() == [reference.token_to_id(expected)]


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "tokenizer.json", "no/such"):
        with pytest.raises(InputError, match=r"expected 'bytes', a tokenizer.json, or a folder that holds one, got"):
            load_tokenizer(source)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0"}', b"[" * 100_000])
def test_a_broken_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"expected a tokenizer.json, got \w+.* in tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000])
def test_a_broken_tokenizer_config_is_refused(folder: Path, content: str) -> None:
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(InputError, match=r"expected a JSON object in tokenizer_config.json, got \w+"):
        load_tokenizer(folder)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_mutated_tokenizer_loads_or_is_refused(folder: Path, position: float, value: int) -> None:
    whole = bytearray((folder / "tokenizer.json").read_bytes())
    whole[int(position * len(whole))] = value
    (folder / "mutated.json").write_bytes(whole)
    refusal = None
    try:
        load_tokenizer(folder / "mutated.json").encode(TEXT)
    except InputError as error:
        refusal = str(error)
    assert refusal is None or "mutated.json" in refusal


def test_a_regular_expression_that_backtracks_for_ever_is_refused(tmp_path: Path) -> None:
    """The library's Rust code panics over it, which is no Exception in Python."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(a+)+\z"), "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("ab").tolist() == [0, 1]
    with pytest.raises(InputError, match=r"expected tokenizer\.json to encode the text, got PanicException: .*retry"):
        loaded.encode("a" * 5000 + "b")


def with_steps(folder: Path, **parts: Any) -> Path:
    """Write a tokenizer of letters, with parts of its JSON replaced."""
    vocabulary = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz!")}
    whole = json.loads(Tokenizer(models.BPE(vocabulary, [])).to_str())
    (folder / "tokenizer.json").write_text(json.dumps({**whole, **parts}))
    return folder


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


DOUBLE = replace("a", "aa")


@pytest.mark.parametrize(
    ("normalizer", "message"),
    [
        (sequence(*[DOUBLE] * 40), "a normalizer that makes a text more than 16 times as long"),
        (sequence(*[sequence(*[DOUBLE] * 2)] * 3), "a normalizer that makes a text more than 16 times as long"),
        (sequence(*[replace("(?=.)", "aa", "Regex")] * 3), "a normalizer that makes a text more than 16 times"),
        (sequence(*[{"pattern": {"String": "a"}, "content": "aa"}] * 5), "a normalizer that makes a text more than 16"),
        (sequence(*[replace("a", "b"), replace("b", "a")] * 40), "more than 64 steps before the model"),
        ({"type": "Prepend", "prepend": "a" * 20_000}, "a text of more than 16,384 characters in a step"),
    ],
)
def test_a_normalizer_that_multiplies_is_refused(normalizer: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = with_steps(tmp_path, normalizer=normalizer)
    with pytest.raises(InputError, match=f"expected a tokenizer.json, got ValueError: {message}"):
        load_tokenizer(folder)


def test_replacements_that_do_not_feed_one_another_are_read(tmp_path: Path) -> None:
    names = dict.fromkeys("abcdefgh", 9 * "z")
    steps = sequence(*(replace(letter, name) for letter, name in names.items()), DOUBLE)
    text = "abcdefghi" * 30_000  # more than a piece
    assert len(load_tokenizer(with_steps(tmp_path, normalizer=steps)).encode("ai")) == 10
    with pytest.raises(InputError, match=r"to make at most 2 ids of a byte, got [\d,]+ ids of a text of 270,000 char"):
        load_tokenizer(tmp_path).encode(text)


def test_a_tokenizer_of_too_many_values_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("[" + "[]," * 2_100_000 + "[]]")
    with pytest.raises(InputError, match=r"expected a tokenizer\.json, got ValueError: more than 4,194,304 values"):
        load_tokenizer(tmp_path)


LEAVE_BEHIND = """
import sys
from lite_probe.data import guarded, load_tokenizer
from lite_probe.errors import InputError

guarded.MAX_SECONDS = 0.5
loaded = load_tokenizer(sys.argv[1])
try:
    loaded.encode(("a" * 20 + "b") * 5_000)
except InputError as error:
    print(error)
print(loaded.encode("ab").tolist())
"""


def test_a_regular_expression_that_takes_its_time_is_left_behind(tmp_path: Path) -> None:
    """Each of its starts stays below the library's limit; together they would take hours, and do until the end."""
    split = {"type": "Split", "pattern": {"Regex": r"(a+)+\z"}, "behavior": "Isolated", "invert": False}
    script = [sys.executable, "-c", LEAVE_BEHIND, with_steps(tmp_path, pre_tokenizer=split)]
    done = subprocess.run(script, capture_output=True, text=True, check=True, timeout=120)
    refused, encoded = done.stdout.splitlines()
    assert "expected tokenizer.json to take a text in a moment, got none of it after 6 s" in refused
    assert encoded == "[0, 1]"
    assert done.stderr == ""


def test_a_panic_prints_nothing_and_what_others_print_is_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    split = {"type": "Split", "pattern": {"Regex": r"(a+)+\z"}, "behavior": "Isolated", "invert": False}
    loaded = load_tokenizer(with_steps(tmp_path, pre_tokenizer=split))
    with pytest.raises(InputError, match="PanicException"):
        loaded.encode("a" * 5000 + "b")
    assert capfd.readouterr().err == ""
    guarded.GuardedThread("").call(lambda: os.write(2, b"kept"))
    assert capfd.readouterr().err == "kept"


def test_a_closed_stderr_is_left_closed() -> None:
    script = "import os; os.close(2); from lite_probe.data.guarded import GuardedThread as G; print(G('').call(int))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_what_nobody_may_catch_is_not_caught(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lite_probe.data.tokenization.RustTokenizer.from_str", interrupt, raising=False)
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(folder)


def test_a_tokenizer_is_read_to_a_bound(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"expected a tokenizer\.json of at most 67,108,864 bytes at .*, got 1,099,"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("source", ["x" * 5000, "a\0b"])
def test_a_path_that_is_none_is_refused(source: str) -> None:
    with pytest.raises(InputError, match=r"expected (a tokenizer at|'bytes', a tokenizer.json)"):
        load_tokenizer(source)
