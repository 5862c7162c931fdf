"""Text to token ids: bytes, or a checkpoint's own tokenizer.json.

Documents are encoded without special tokens of the tokenizer's template; what stands between two documents is
the tokenizer's `separator`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as RustTokenizer

from lite_probe.data.guarded import MAX_SECONDS, GuardedThread
from lite_probe.errors import InputError, shown, shown_name
from lite_probe.files import read_bounded

# An encoding costs some hundred bytes per token while it is made; pieces keep that small. A cut falls after a
# newline, where the pre-tokenizers of common families split anyway or nearly so.
_PIECE_CHARACTERS = 1 << 17
_PIECES_AT_ONCE = 4

_MAX_IDS_PER_BYTE = 2
_IDS_ALWAYS = 1 << 10

# Of a tokenizer's normalizer and pre-tokenizer, each of whose steps goes over all of a text.
_MAX_STEPS = 64
_MAX_GROWTH = 16
_MAX_STEP_TEXT = 1 << 14  # characters of a pattern, or of what is put in its place
_CHARSMAP = "precompiled_charsmap"

MAX_TOKENIZER_BYTES = 64 * 2**20  # a vocabulary of 256k has 33 MB
MAX_TOKENIZER_VALUES = 2**22  # one of 256k with its merges has 2 million

# End-of-document tokens, asked for in this order where tokenizer_config.json names none.
_END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>")


class Tokenizer(Protocol):
    """Anything that turns text into token ids."""

    @property
    def name(self) -> str:
        """For people and provenance."""

    @property
    def vocab_size(self) -> int:
        """Number of ids it knows; every id it gives is below."""

    @property
    def separator(self) -> NDArray[np.int64]:
        """(s,) ids put between two documents."""

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the (n,) ids of one document."""


class ByteTokenizer:
    """UTF-8 bytes as ids 0 … 255; documents are separated by a newline."""

    name = "bytes"
    vocab_size = 256

    @property
    def separator(self) -> NDArray[np.int64]:
        """(1,) a newline."""
        return np.array([ord("\n")], dtype=np.int64)

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the (n,) bytes of a text."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)


class FileTokenizer:
    """A tokenizer.json of the `tokenizers` library.

    Args:
        path: The file.

    Raises:
        InputError: If it is not a tokenizer.json.
    """

    def __init__(self, path: Path) -> None:
        content = read_bounded(path, "a tokenizer.json", max_bytes=MAX_TOKENIZER_BYTES)
        self._thread = GuardedThread(
            f"expected {shown_name(path.name)} to take a text in a moment, got none of it after {MAX_SECONDS:g} s"
        )
        with _refusing(f"expected a tokenizer.json, got {{}} in {shown_name(path.name)}"):
            text = content.decode("utf-8")
            # Added tokens are normalized as soon as the library has read them.
            self._growth = _check_steps(text)
            self._rust = self._thread.call(lambda: RustTokenizer.from_str(text))
        # Settings stored for batched inference would cut or fill documents.
        self._rust.no_truncation()
        self._rust.no_padding()
        self.name = path.name
        self.vocab_size = self._rust.get_vocab_size(with_added_tokens=True)
        self._separator = self._find_separator(path.with_name("tokenizer_config.json"))

    def _find_separator(self, config_path: Path) -> NDArray[np.int64]:
        named: list[str] = []
        if config_path.is_file():
            content = read_bounded(config_path, "a tokenizer's config", max_bytes=MAX_TOKENIZER_BYTES)
            try:
                token = json.loads(content.decode("utf-8")).get("eos_token")
            except (ValueError, AttributeError, RecursionError) as error:
                raise InputError(
                    f"expected a JSON object in {config_path.name}, got {_first_line(error)}",
                    "repair it or remove it",
                ) from error
            text = token.get("content") if isinstance(token, dict) else token
            named = [text] if isinstance(text, str) else []
        ids = (self._rust.token_to_id(token) for token in (*named, *_END_TOKENS))
        return np.array([token_id for token_id in ids if token_id is not None][:1], dtype=np.int64)

    @property
    def separator(self) -> NDArray[np.int64]:
        """(1,) the end-of-text token, or (0,) where the tokenizer has none."""
        return self._separator

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the (n,) ids of a text, encoded in pieces that end at a newline."""
        pieces = _pieces(text)
        at_once = max(1, int(_PIECES_AT_ONCE // self._growth))
        most = _MAX_IDS_PER_BYTE * len(text.encode("utf-8")) + _IDS_ALWAYS
        ids = [np.zeros(0, np.int64)]
        for start in range(0, len(pieces), at_once):
            some = pieces[start : start + at_once]
            with _refusing(f"expected {shown_name(self.name)} to encode the text, got {{}}"):
                encodings = self._thread.call(partial(self._rust.encode_batch_fast, some, add_special_tokens=False))
            ids += [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
            if sum(map(len, ids)) > most:
                raise InputError(
                    f"expected {shown_name(self.name)} to make at most {_MAX_IDS_PER_BYTE} ids of a byte, got "
                    f"{sum(map(len, ids)):,} ids of a text of {len(text):,} characters",
                    "pass another --tokenizer",
                )
        return np.concatenate(ids)


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Load a tokenizer.

    Args:
        source: "bytes", a tokenizer.json, or a folder that holds one.

    Raises:
        InputError: If there is no such path, no tokenizer.json in the folder, or the file is broken.
    """
    path = Path(source)
    if str(source) == "bytes":
        return ByteTokenizer()
    try:
        if path.is_dir():
            path = path / "tokenizer.json"
        elif path.name == "tokenizer_config.json":
            path = path.with_name("tokenizer.json")
        found = path.exists()
    except (OSError, ValueError) as error:  # no permission, a name too long, or a NUL in it
        raise InputError(
            f"expected a tokenizer at {shown(str(source))}, got {_first_line(error)}", "check the path"
        ) from error
    if not found:
        raise InputError(
            f"expected 'bytes', a tokenizer.json, or a folder that holds one, got {str(source)!r}",
            "a folder with tokenizer.model or vocab.json only becomes one by "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…)",
        )
    return FileTokenizer(path)


@contextmanager
def _refusing(message: str) -> Iterator[None]:
    """Turn what the library raises into an error about the file; it raises nothing narrower than Exception.

    Where its Rust code panics, over a regular expression that backtracks for ever, it raises a BaseException.

    Args:
        message: With {} where the error's first line goes.
    """
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__module__ == "pyo3_runtime"
        if isinstance(error, InputError) or not (isinstance(error, Exception) or is_panic):
            raise
        raise InputError(
            message.format(_first_line(error)),
            "save it again with AutoTokenizer.from_pretrained(…).save_pretrained(…), or pass another --tokenizer",
        ) from error


def _check_steps(text: str) -> float:
    """Refuse a tokenizer.json whose steps multiply: each may replace a character by several, which the next replaces.

    Returns:
        How many times as long as it was a text may become by replacing.

    Raises:
        ValueError: If there are more than 64 steps, or a text becomes more than 16 times as long.
    """
    if sum(text.count(sign) for sign in ",{[") > MAX_TOKENIZER_VALUES:
        raise ValueError(f"more than {MAX_TOKENIZER_VALUES:,} values")
    whole = json.loads(text)
    steps = [_objects(whole.get(part)) for part in ("normalizer", "pre_tokenizer")] if isinstance(whole, dict) else []
    if max(map(len, steps), default=0) > _MAX_STEPS:
        raise ValueError(f"more than {_MAX_STEPS} steps before the model")
    texts = [member for objects in steps for step in objects for key, member in step.items() if key != _CHARSMAP]
    if any(isinstance(member, str) and len(member) > _MAX_STEP_TEXT for member in texts):
        raise ValueError(f"a text of more than {_MAX_STEP_TEXT:,} characters in a step")
    growth = _growth(steps[0]) if steps else 1.0
    if growth > _MAX_GROWTH:
        raise ValueError(f"a normalizer that makes a text more than {_MAX_GROWTH} times as long")
    return growth


def _objects(value: object) -> list[dict[str, Any]]:
    """Return the objects in a part of a tokenizer.json, in the order they work in."""
    members = value if isinstance(value, list) else []
    if isinstance(value, dict):
        members = [member for key, member in value.items() if key != "pattern"]
    inner = [found for member in members for found in _objects(member)]
    return [value, *inner] if isinstance(value, dict) else inner


def _growth(steps: list[dict[str, Any]]) -> float:
    """Bound how many times as long as it was a text becomes: the largest product over steps that feed one another."""
    replacements: list[tuple[str, float]] = []  # what a step puts in, and the growth up to it
    for step in steps:
        content, pattern = step.get("content"), step.get("pattern")
        if not isinstance(content, str):
            continue
        literal = pattern.get("String") if isinstance(pattern, dict) else pattern
        matched = set(literal) if isinstance(literal, str) else set()
        # A regular expression may match nothing at all, beside each character.
        grown = len(content) / len(literal) if isinstance(literal, str) and literal else 1 + len(content)
        before = [growth for put, growth in replacements if not matched or matched & set(put)]
        replacements.append((content, max(1.0, grown) * max(before, default=1.0)))
    return max((growth for _, growth in replacements), default=1.0)


def _pieces(text: str) -> list[str]:
    pieces, start = [], 0
    while len(text) - start > _PIECE_CHARACTERS:
        stop = text.rfind("\n", start, start + _PIECE_CHARACTERS) + 1 or start + _PIECE_CHARACTERS
        pieces.append(text[start:stop])
        start = stop
    return [*pieces, text[start:]]


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
