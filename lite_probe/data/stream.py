"""One long row of token ids, whatever it came from: text, token files, a folder of either."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lite_probe.data.documents import BUILTIN_PREFIX, Document, builtin_documents, read_documents, require_rows
from lite_probe.data.token_files import TokenArray, TokenDtype, open_bin, open_npy
from lite_probe.data.tokenization import Tokenizer
from lite_probe.errors import InputError, shown_name
from lite_probe.files import open_regular
from lite_probe.results.provenance import Note

MAX_TEXT_BYTES = 16 * 2**20
MAX_LABELS = 4096  # that differ

_TOKEN_SUFFIXES = (".bin", ".npy")
_TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".parquet", ".txt.zst", ".jsonl.zst")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPart:
    """The ids of one file, or of one text."""

    name: str
    ids: TokenArray  # (n,), possibly memory-mapped
    runs: Sequence[tuple[int, str]] = ()  # of documents with one label: where it begins, and the label


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStream:
    """The ids of all parts, one behind another."""

    name: str
    parts: Sequence[TokenPart]
    tokenizer_name: str | None  # None: the source held ids
    evaluation_start: int | None = None  # where a validation file of the source begins

    def __len__(self) -> int:
        return sum(len(part.ids) for part in self.parts)

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the (stop − start,) ids of a range, which may span parts."""
        pieces = [np.zeros(0, dtype=np.int64)]
        for part in self.parts:
            piece = part.ids[max(start, 0) : max(stop, 0)]
            pieces.append(np.asarray(piece).astype(np.int64))
            start, stop = start - len(part.ids), stop - len(part.ids)
        return np.concatenate(pieces)

    def locate(self, position: int) -> tuple[str, int]:
        """Return the part that holds a position, and the offset in it."""
        for part in self.parts:
            if position < len(part.ids):
                return part.name, position
            position -= len(part.ids)
        raise IndexError(f"expected a position below {len(self):,}, got {position:,} beyond it")


def open_tokens(
    source: str | Path,
    *,
    tokenizer: Tokenizer | None,
    text_field: str = "text",
    token_dtype: TokenDtype | None = None,
    max_text_bytes: int = MAX_TEXT_BYTES,
    label_field: str | None = None,
    on_note: Callable[[Note], None] | None = None,
) -> TokenStream:
    """Open a source of token ids.

    A folder stands for its files by sorted name, token files if it holds any, else texts. Files in it whose
    names begin with "val" come last, and evaluation batches are drawn from them.

    Args:
        source: .bin or .npy token ids; .jsonl, .jsonl.zst, .parquet or UTF-8 text; a folder of these;
            "builtin:python-docs" or "builtin:python-source".
        tokenizer: Encodes texts; not needed for token ids.
        text_field: Field of a JSON line, column of a parquet file.
        token_dtype: Type of .bin ids; None decides by header or content.
        max_text_bytes: Text beyond this is left unread, with a note.
        label_field: Field or column of rows whose values the parts' `runs` tell; the ids are the same with and without.
        on_note: Told what was decided or left out.

    Returns:
        The ids, at least one.

    Raises:
        InputError: If the source is missing, broken, empty, or a text without a tokenizer; if a row has no label, or
            there are more than 4096.
        UsageError: If there is no such builtin text.
    """
    name = str(source)
    labels: dict[str, str] = {}
    if name.startswith(BUILTIN_PREFIX):
        if label_field is not None:
            require_rows(name, label_field)
        part = _encode(name, builtin_documents(name), tokenizer, max_text_bytes, labels, on_note)
        return _stream(name, [part], tokenizer)
    path = Path(source)
    try:
        files = _list_files(path, on_note)
        parts = []
        for file in files:
            if label_field is not None:
                require_rows(file.name, label_field)
            if file.name.lower().endswith(_TOKEN_SUFFIXES):
                is_bin = file.suffix.lower() == ".bin"
                ids = open_bin(file, token_dtype=token_dtype, on_note=on_note) if is_bin else open_npy(file)
                parts.append(TokenPart(name=file.name, ids=ids))
            else:
                documents = read_documents(
                    file, text_field=text_field, max_bytes=max_text_bytes, label_field=label_field
                )
                parts.append(_encode(file.name, documents, tokenizer, max_text_bytes, labels, on_note))
    except OSError as error:
        raise InputError(f"expected to read {name!r}, got {error.strerror or error}") from error
    return _stream(path.name or name, parts, tokenizer)


def _stream(name: str, parts: Sequence[TokenPart], tokenizer: Tokenizer | None) -> TokenStream:
    from_text = not all(part.name.lower().endswith(_TOKEN_SUFFIXES) for part in parts)
    before = sum(len(part.ids) for part in parts if not _is_validation(part.name))
    # A validation file on its own is a text like any other: its last share is for evaluation.
    has_validation = before > 0 and any(_is_validation(part.name) for part in parts)
    stream = TokenStream(
        name=name,
        parts=tuple(parts),
        tokenizer_name=tokenizer.name if tokenizer and from_text else None,
        evaluation_start=before if has_validation else None,
    )
    if not len(stream):
        raise InputError(f"expected tokens in {name}, got an empty source", "pass another --data")
    return stream


def _is_validation(name: str) -> bool:
    return name.lower().startswith("val")


def _list_files(path: Path, on_note: Callable[[Note], None] | None) -> list[Path]:
    if path.exists() and not path.is_dir():
        open_regular(path, "a text or token ids").close()
        return [path]
    if not path.is_dir():
        raise InputError(
            f"expected a file or folder of text or token ids, got no such path: {str(path)!r}",
            f"texts that are always there: {BUILTIN_PREFIX}python-docs, {BUILTIN_PREFIX}python-source",
        )
    files = sorted(entry for entry in path.iterdir() if entry.is_file())
    token_files = [file for file in files if file.name.lower().endswith(_TOKEN_SUFFIXES)]
    texts = [file for file in files if file.name.lower().endswith(_TEXT_SUFFIXES)]
    chosen = token_files or texts
    if not chosen:
        endings = ", ".join(_TOKEN_SUFFIXES + _TEXT_SUFFIXES)
        raise InputError(
            f"expected files ending in {endings} in folder {path.name!r}, got none",
            "name a single file to read it whatever its ending",
        )
    if token_files and texts and on_note:
        left = ", ".join(shown_name(file.name) for file in texts[:6]) + (" …" if len(texts) > 6 else "")
        message = f"{path.name} holds token files, so its texts were left aside: {left}."
        on_note(Note(code="texts-left-aside", message=message))
    return sorted(chosen, key=lambda file: (_is_validation(file.name), file.name))


def _encode(
    name: str,
    documents: Iterable[Document],
    tokenizer: Tokenizer | None,
    max_text_bytes: int,
    labels: dict[str, str],
    on_note: Callable[[Note], None] | None,
) -> TokenPart:
    if tokenizer is None:
        raise InputError(
            f"expected a tokenizer for the text of {name}, got none that belongs to the checkpoint",
            "pass --tokenizer PATH (a tokenizer.json) or --tokenizer bytes, or token ids as .bin or .npy",
        )
    pieces: list[NDArray[np.int64]] = []
    runs: list[tuple[int, str]] = []
    left = max_text_bytes
    separator = tokenizer.separator  # made anew each time it is asked for
    num_ids = -len(separator)  # the first separator goes
    for text, label in documents:
        if label not in labels and len(labels) == MAX_LABELS:
            raise InputError(
                f"expected at most {MAX_LABELS:,} different labels, got more by {shown_name(name)}",
                "name a field that more rows have in common",
            )
        if not runs or runs[-1][1] != label:
            # A document brings the separator before it along; many labels of one value are held once.
            runs.append((max(num_ids, 0), labels.setdefault(label, label)))
        content = text.encode("utf-8")
        size = len(content)
        kept = text if size <= left else content[:left].decode("utf-8", errors="ignore")
        del content, text  # a long one would be held while the rest of it is encoded
        pieces += [separator, tokenizer.encode(kept)]
        num_ids += len(separator) + len(pieces[-1])
        left -= size
        if left < 0:
            if on_note:
                message = f"Only the first {max_text_bytes:,} bytes of text in {name} were read."
                on_note(Note(code="text-capped", message=message))
            break
    # Separators stand between documents: the first one goes.
    ids = np.concatenate(pieces[1:] or [np.zeros(0, dtype=np.int64)])
    return TokenPart(name=name, ids=ids, runs=tuple(runs))
