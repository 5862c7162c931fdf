"""Files made to hang, to fill the memory or to be taken for something else: each is refused, soon, and nothing runs."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import save_file

from lite_probe.checkpoints import open_checkpoint
from lite_probe.data import ByteTokenizer, load_tokenizer, open_tokens
from lite_probe.errors import InputError
from tests.fuzz.test_mutated_checkpoints import limit

SECONDS_EACH = 10  # a hang, not a slow machine: one takes milliseconds
MEMORY_BYTES = 2**30  # of a whole process, torch and transformers in it

LLAMA = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
GIGABYTE = b"J" + struct.pack("<i", 2**30) + b"\x85"  # the arguments (2**30,)


def shared(make: Callable[[Any], Any], levels: int = 60) -> Any:
    """Return an object of 60 nodes and 2⁶⁰ paths."""
    value: Any = ()
    for _ in range(levels):
        value = make(value)
    return value


PAIRS = shared(lambda below: (below, below))
LISTS = shared(lambda below: [below, below])
DICTS = shared(lambda below: {"a": below, "b": below})


def inner(value: object) -> bytes:
    """Return the opcodes that make an object, without the first and the last."""
    return pickle.dumps(value, 2)[2:-1]


def call(name: str, arguments: bytes) -> bytes:
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + arguments + b"R"


def archive(opcodes: bytes) -> Callable[[Path], Path]:
    """Write a pickle as torch.save would."""

    def write(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "a.pt", "w") as packed:
            packed.writestr("a/data.pkl", b"\x80\x02" + opcodes + b".")
            packed.writestr("a/byteorder", "little")
            packed.writestr("a/version", "3\n")
        return folder / "a.pt"

    return write


def metadata(content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / ".metadata").write_bytes(content)
        return folder

    return write


def weights(folder: Path) -> Path:
    save_file({"model.norm.weight": np.ones(8, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def with_file(name: str, content: bytes) -> Callable[[Path], Path]:
    """Write a folder of weights and one file more."""

    def write(folder: Path) -> Path:
        (weights(folder) / name).write_bytes(content)
        return folder

    return write


def with_pipe(name: str) -> Callable[[Path], Path]:
    """Write a folder of weights, one of whose files is a pipe."""

    def write(folder: Path) -> Path:
        (weights(folder) / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        return folder

    return write


def with_link(name: str, target: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (weights(folder) / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
        return folder

    return write


def lite_folder(folder: Path) -> Path:
    """Write LITE's folder with a bomb as the model's config."""
    weights(folder)
    (folder / "config.json").unlink()
    archive(inner({"config": {"model": LISTS}}))(folder).rename(folder / "optimizer.pt")
    return folder


def legacy_line_without_end(folder: Path) -> Path:
    """Write an older torch file whose second pickle names a class in a line of a terabyte."""
    with (folder / "a.pt").open("wb") as file:
        file.write(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02cos")
        file.truncate(2**40)
    return folder / "a.pt"


def directory_of_entries(folder: Path) -> Path:
    """Write an archive that is nothing but a directory of 200,000 entries, in zip64's way."""
    count, start = 200_000, b"PK\x03\x04" + bytes(26)
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, *[0] * 7, 1, *[0] * 6) + b"a"
    whole = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(entry) * count, len(start))
    place = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(start) + len(entry) * count, 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    (folder / "a.pt").write_bytes(start + entry * count + whole + place + end)
    return folder / "a.pt"


def safetensors(header: Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        content = header()
        (folder / "a.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + b"\0")
        return folder / "a.safetensors"

    return write


def index_of_names(folder: Path) -> Path:
    """Write an index of 300,000 tensors in one shard."""
    weights(folder).joinpath("model.safetensors").rename(folder / "a")
    names = ",".join(f'"{number:x}":"a"' for number in range(300_000))
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map":{{{names}}}}}')
    return folder


CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "shared tuples": (archive(inner({"model": PAIRS})), "its objects contain one another more than 4,194,304 times"),
    "shared lists": (archive(inner({"model_args": LISTS, "model": {}})), "its objects contain one another"),
    "shared dicts": (archive(inner(DICTS)), "its objects contain one another"),
    "a key that hashes for ever": (archive(b"}" + inner(PAIRS) + b"K\x01s"), "a key of its dicts or sets"),
    "a set that hashes for ever": (
        archive(call("__builtin__.set", b"]" + inner(PAIRS) + b"a\x85")),
        "a key of its dicts or sets",
    ),
    "a storage that hashes for ever": (
        archive(inner(("storage", 1, PAIRS, "cpu", 3)) + b"Q"),
        "a key of its dicts or sets",
    ),
    "a text of everything": (
        archive(call("__builtin__.str", inner(PAIRS) + b"\x85")),
        r"its call of builtins\.str is not to be called",
    ),
    "bytes of a size": (
        archive(call("__builtin__.list", call("__builtin__.bytes", GIGABYTE) + b"\x85")),
        r"its call of builtins\.bytes has arguments",
    ),
    "a bytearray of a size": (
        archive(call("__builtin__.bytearray", GIGABYTE)),
        r"its call of builtins\.bytearray has no text to encode",
    ),
    "a tensor of a size": (
        archive(call("torch.FloatTensor", GIGABYTE)),
        r"its call of torch\.FloatTensor is not to be called",
    ),
    "a call by another's hand": (
        archive(call("torch._tensor._rebuild_from_type_v2", b"(c__builtin__\nbytearray\n" + GIGABYTE + b"t")),
        r"its call of torch\._tensor\._rebuild_from_type_v2 calls what rebuilds no tensor",
    ),
    "copies of a list": (
        archive(inner([0] * 10_000) + b"q\x01" + call("collections.deque", b"h\x01\x85") * 1000),
        "it would make more than 268,435,456 bytes of objects",
    ),
    "an odd encoding": (
        archive(call("_codecs.encode", inner("a" * 100) + inner("utf-32") + b"\x86")),
        "has another encoding than latin1",
    ),
    "a text that is not there": (archive(b"X" + struct.pack("<I", 2**31) + b"abc"), "which is damaged"),
    "a list in itself": (archive(b"]q\x01h\x01a"), "one of its objects contains itself"),
    "a dtype of everything": (archive(call("numpy.dtype", inner(PAIRS) + b"\x85")), "is damaged"),
    "metadata of shared tuples": (metadata(pickle.dumps(PAIRS)), "its objects contain one another"),
    "metadata that hashes for ever": (metadata(b"\x80\x04}" + inner(PAIRS) + b"K\x01s."), "a key of its dicts"),
    "metadata with another opcode": (metadata(b"\x80\x02(i__main__\nA\n."), "its opcode INST has no place"),
    "LITE's config of shared lists": (lite_folder, "its objects contain one another"),
    "a line without an end": (legacy_line_without_end, "a pickle of tensors, got a.pt, which is damaged"),
    "a config of brackets": (with_file("config.json", b"[{}" + b",{}" * 4_200_000 + b"]"), "at most 4,194,304 values"),
    "a config of numbers": (
        with_file("config.json", json.dumps({**LLAMA, "a": [0] * 300_000}).encode()),
        "expected a model config of at most 262,144 values",
    ),
    "a config of one number": (
        with_file("config.json", json.dumps({**LLAMA, "hidden_size": 10**4000}).encode()),
        r"whole numbers of at most 64 bits in a model config, got a whole number of 13,288 bits",
    ),
    "weights in a pipe": (with_pipe("model.safetensors"), r"expected model\.safetensors, .* got none"),
    "a config in a pipe": (with_pipe("config.json"), r"expected a config\.json beside the weights"),
    "weights without an end": (
        with_link("model.safetensors", "/dev/zero"),
        r"expected model\.safetensors, .* got none",
    ),
    "a config without an end": (with_link("config.json", "/dev/zero"), r"expected a config\.json beside the weights"),
    "a config in a loop": (with_link("config.json", "config.json"), r"expected a config\.json beside the weights"),
    "a directory of entries": (directory_of_entries, "its directory of entries has more than 8,388,608 bytes"),
    "a header of tensors": (
        safetensors(
            lambda: (
                b"{"
                + b",".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n for n in range(270_000))
                + b"}"
            )
        ),
        "a header of more than 1,048,576 values",
    ),
    "a tensor of dimensions": (
        safetensors(lambda: b'{"a":{"dtype":"U8","shape":[' + b"1," * 2**20 + b'1],"data_offsets":[0,1]}}'),
        "a header of more than 1,048,576 values",
    ),
    "a header of text": (
        safetensors(lambda: b'{"__metadata__":{"a":"' + b"a" * 2**24 + b'"}}'),
        "a header of 16,777,241 bytes, more than 16,777,216",
    ),
    "an index of names": (index_of_names, "at most 262,144 values in model.safetensors.index.json"),
    "a training state in a loop": (with_file("training_state.json", b"{"), "expected a JSON object"),
}


def run_lengths(count: int, head: bytes) -> bytes:
    """Return a zstd frame of a head and `count` run-length blocks: 128 KiB of one letter in four bytes each."""
    raw = (len(head) << 3).to_bytes(3, "little") + head
    run = (2**17 << 3 | 1 << 1).to_bytes(3, "little") + b"x"
    return b"\x28\xb5\x2f\xfd\x00\x58" + raw + run * count + b"\x01\x00\x00"


def text(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content())
        return folder / name

    return write


def repeated(**options: Any) -> Callable[[Path], Path]:
    """Write a column of parquet: one text of 80 MB."""

    def write(folder: Path) -> Path:
        table = pa.table({"text": pa.array(["x" * 80_000_000], pa.large_string())})
        parquet.write_table(table, folder / "a.parquet", compression="zstd", **options)
        return folder / "a.parquet"

    return write


def understated(folder: Path) -> Path:
    """Write the text of 80 MB with a footer that says its column takes one byte."""
    path = repeated(use_dictionary=False)(folder)
    size = parquet.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    content, digits = path.read_bytes(), [2 * size >> shift & 127 | 128 for shift in (0, 7, 14)]
    true = bytes([*digits, 2 * size >> 21])
    assert content.count(true) == 2  # of the column, and of the row group
    path.write_bytes(content.replace(true, b"\x82\x80\x80\x00"))
    return path


def large_dictionary(folder: Path) -> Path:
    """Write a column whose dictionary has a million entries and one."""
    table = pa.table({"text": [str(number) for number in range(2**20 + 1)]})
    parquet.write_table(table, folder / "a.parquet", dictionary_pagesize_limit=2**30, row_group_size=2**21)
    return folder / "a.parquet"


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.txt")
    return folder / "a.txt"


def folder_of_pipes(folder: Path) -> Path:
    for name in ("a.txt", "b.bin", "c.jsonl"):
        os.mkfifo(folder / name)
    return folder


TEXTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a line of 6 GB": (
        text("a.jsonl.zst", lambda: run_lengths(46_000, b'{"text": "')),
        "expected lines of at most 16,777,216 bytes, got more in line 1",
    ),
    "a nested line": (text("a.jsonl", lambda: b'{"text":' * 10**6), "expected a JSON object per line"),
    "one large page": (repeated(use_dictionary=False), "at most 256 times as long as it is compressed"),
    "one large page that the footer calls small": (understated, "at most 256 times as long as it is compressed"),
    "a dictionary of a million": (large_dictionary, "1,048,577 values in a page, more than 1,048,576"),
    "a footer of everything": (
        text("a.parquet", lambda: b"PAR1" + bytes(2**25) + struct.pack("<I", 2**25) + b"PAR1"),
        "a footer of 33,554,432 bytes, more than 16,777,216",
    ),
    "a header without an end": (
        text("a.npy", lambda: b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{"),
        r"expected a \.npy array",
    ),
    "an array without ids": (
        text(
            "a.npy",
            lambda: (
                b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (0,), }".ljust(127) + b"\n"
            ),
        ),
        "expected tokens in a.npy, got an empty source",
    ),
    "an array of a terabyte": (
        text(
            "a.npy",
            lambda: (
                b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(
                    127
                )
                + b"\n"
            ),
        ),
        r"expected a \.npy array",
    ),
    "a pipe": (pipe, "expected a text or token ids at .*, which is no regular file"),
    "a device": (lambda folder: Path("/dev/zero"), "expected a text or token ids at /dev/zero, which is no regular"),
    "a folder of pipes": (folder_of_pipes, "expected files ending in"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_hostile_checkpoints_are_refused(name: str, tmp_path: Path) -> None:
    write, message = CHECKPOINTS[name]
    with limit(SECONDS_EACH), pytest.raises(InputError, match=message):
        open_checkpoint(write(tmp_path)).summary()


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_texts_are_refused(name: str, tmp_path: Path) -> None:
    write, message = TEXTS[name]
    path = write(tmp_path)
    with limit(SECONDS_EACH), pytest.raises(InputError, match=message):
        open_tokens(path, tokenizer=ByteTokenizer())


@pytest.mark.parametrize("source", ["/dev/zero", "pipe"])
def test_configs_and_tokenizers_are_regular_files(source: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / source
    with limit(SECONDS_EACH):
        with pytest.raises(InputError, match=r"expected a JSON object at .*, which is no regular file"):
            open_checkpoint(weights(tmp_path), model_config=path)
        with pytest.raises(InputError, match=r"expected a tokenizer.json at .*, which is no regular file"):
            load_tokenizer(path)


def test_a_shard_in_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    weights(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "part-1.safetensors")
    os.mkfifo(tmp_path / "part-2.safetensors")
    with limit(SECONDS_EACH):
        assert set(open_checkpoint(tmp_path).weights.metas) == {"model.norm.weight"}


OPEN_ALL = """
import re, sys
from pathlib import Path
from lite_probe.checkpoints import open_checkpoint
from lite_probe.data import ByteTokenizer, open_tokens
from lite_probe.errors import InputError

for line in sys.stdin.read().splitlines():
    kind, _, path = line.partition(" ")
    try:
        open_checkpoint(path).summary() if kind == "checkpoint" else open_tokens(path, tokenizer=ByteTokenizer())
    except InputError:
        print("refused")
# Of this process alone: ru_maxrss counts what its parent held when it was started.
print(1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_refusing_all_of_them_takes_little_memory(tmp_path: Path) -> None:
    """One process for all, since a process's peak only grows; bytes that were never read are not in it."""
    asked = []
    for kind, cases in (("checkpoint", CHECKPOINTS), ("text", TEXTS)):
        for number, (write, _) in enumerate(cases.values()):
            folder = tmp_path / f"{kind}{number}"
            folder.mkdir()
            asked.append(f"{kind} {write(folder)}")
    done = subprocess.run(
        [sys.executable, "-c", OPEN_ALL],
        input="\n".join(asked),
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
        cwd=Path(__file__).parents[2],
    )
    *refused, peak = done.stdout.split()
    assert refused == ["refused"] * len(asked)
    assert int(peak) < MEMORY_BYTES
