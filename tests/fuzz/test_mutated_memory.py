"""Thirty-two mutated files of each sort in one process: each ends by a documented exit code, below 1 GiB."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from tests.checkpoints import writers
from tests.fuzz.test_mutated_checkpoints import (
    flip_bits,
    flip_early_bits,
    insert,
    overwrite_number,
    truncate,
    write_distributed,
    write_hf_safetensors,
    zero_range,
)

pytestmark = pytest.mark.slow

NUM_FILES = 32
MEMORY_BYTES = 2**30
EXIT_CODES = {0, 2, 3, 4, 5, 6}  # 1 is a defect of lite-probe
TEXT = "the cat sat on the mat and the dog sat on the cat\n" * 200


def write_texts(folder: Path, name: str) -> Path:
    lines = TEXT.splitlines()
    if name == "a.parquet":
        parquet.write_table(pa.table({"text": lines}), folder / name, compression="zstd", data_page_size=500)
    elif name == "a.npy":
        np.save(folder / name, np.arange(1000))
    else:
        content = "".join(json.dumps({"text": line}) + "\n" for line in lines).encode()
        (folder / name).write_bytes(zstandard.compress(content) if name.endswith(".zst") else content)
    return folder / name


def write_tokenizer(folder: Path) -> Path:
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(sorted(set(TEXT)))}, []))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("a", "e"), normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\s"), "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def write_torch(folder: Path) -> Path:
    writers.write_torch(folder / "step.pt")
    return folder / "step.pt"


# A sort: how its files are opened, how one is written, and which file of it is mutated.
SORTS: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "parquet": ("text", lambda folder: write_texts(folder, "a.parquet"), "a.parquet"),
    "jsonl": ("text", lambda folder: write_texts(folder, "a.jsonl"), "a.jsonl"),
    "zst": ("text", lambda folder: write_texts(folder, "a.jsonl.zst"), "a.jsonl.zst"),
    "npy": ("text", lambda folder: write_texts(folder, "a.npy"), "a.npy"),
    "tokenizer": ("tokenizer", write_tokenizer, "tokenizer.json"),
    "torch": ("checkpoint", write_torch, "step.pt"),
    "safetensors": ("checkpoint", write_hf_safetensors, "model-00001-of-*.safetensors"),
    "index": ("checkpoint", write_hf_safetensors, "model.safetensors.index.json"),
    "config": ("checkpoint", write_hf_safetensors, "config.json"),
    "distributed": ("checkpoint", write_distributed, ".metadata"),
}


def flip_late_bits(content: bytearray, chance: random.Random) -> None:
    """Footers and directories come last."""
    for _ in range(chance.choice([1, 2, 8])):
        content[-chance.randrange(1, min(len(content), 400))] ^= 1 << chance.randrange(8)


def repeat(content: bytearray, chance: random.Random) -> None:
    """Repeat a part of it up to four million bytes."""
    at = chance.randrange(len(content))
    part = bytes(content[at : at + chance.choice([1, 20, 200])])
    content[at:at] = part * chance.choice([100, 4_000_000 // len(part)])


BYTES = (flip_bits, flip_early_bits, flip_late_bits, truncate, insert, zero_range, overwrite_number, repeat, repeat)


def huge(value: Any, chance: random.Random) -> Any:
    """Return a JSON value that wants much more than one like it."""
    nested: Any = value
    for _ in range(chance.choice([20, 500])):
        nested = {"type": "Sequence", "normalizers": [nested]} if chance.random() < 0.5 else [nested]
    return chance.choice(
        [
            10**9,
            10**12,
            2**63,
            10**4000,
            -(10**12),
            1e308,
            [value] * 100_000,
            "x" * 3_000_000,
            nested,
            {"a": [0] * 10**6},
        ]
    )


def inflate(value: Any, chance: random.Random) -> Any:
    """Make one value somewhere in a JSON document huge."""
    if isinstance(value, dict) and value and chance.random() < 0.95:
        key = chance.choice(sorted(value))
        return {**value, key: inflate(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        return [*value[:at], *[inflate(value[at], chance)] * chance.choice([1, 40])]
    return huge(value, chance)


def mutate(path: Path, chance: random.Random) -> None:
    if path.suffix == ".json" and chance.random() < 0.8:
        path.write_text(json.dumps(inflate(json.loads(path.read_text()), chance)))
        return
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([1, 1, 2])):
        chance.choice(BYTES)(content, chance)
        content = content or bytearray(b"\0")
    path.write_bytes(content)


OPEN_ALL = """
import json, re, sys, time
from pathlib import Path
from click.testing import CliRunner
from lite_probe.commands.main import cli
from lite_probe.data import ByteTokenizer, load_tokenizer, open_tokens
from lite_probe.errors import LiteProbeError

kind, text = sys.argv[1:]
def code(path):
    if kind == "checkpoint":
        return CliRunner().invoke(cli, ["inspect", path]).exit_code
    try:
        load_tokenizer(path).encode(text) if kind == "tokenizer" else open_tokens(path, tokenizer=ByteTokenizer())
    except LiteProbeError as error:
        return error.exit_code
    return 0

codes = [code(path) for path in sys.stdin.read().splitlines()]
peak = 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps([codes, peak]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("sort", SORTS)
def test_mutated_files_end_by_their_codes_in_little_memory(sort: str, tmp_path: Path) -> None:
    kind, write, name = SORTS[sort]
    paths = []
    for number in range(NUM_FILES):
        folder = tmp_path / str(number)
        folder.mkdir()
        paths.append(str(write(folder)))
        mutate(sorted(folder.glob(name))[0], random.Random(f"{sort}/{number}"))
    done = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, kind, TEXT],
        input="\n".join(paths),
        capture_output=True,
        text=True,
        check=True,
        timeout=10 * NUM_FILES,
        cwd=Path(__file__).parents[2],
    )
    codes, peak = json.loads(done.stdout.splitlines()[-1])
    assert set(codes) <= EXIT_CODES, codes
    assert sum(code != 0 for code in codes) >= NUM_FILES // 16, codes  # the mutations are felt
    assert peak < MEMORY_BYTES
    assert "panicked" not in done.stderr
