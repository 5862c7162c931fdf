"""Damaged checkpoints: 300 of each format either load or are refused, quickly, and nothing in them runs."""

import io
import json
import pickle
import random
import shutil
import signal
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from lite_probe.checkpoints import open_checkpoint
from lite_probe.errors import LiteProbeError, UnsafePickleError
from tests.checkpoints import writers

pytestmark = pytest.mark.slow

NUM_MUTATIONS = 300
SECONDS_EACH = 10  # a hang, not a slow machine: one takes milliseconds
JSON_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2,
    7,
    10**9,
    10**30,
    1.5,
    1e308,
    "",
    "x",
    "../x",
    [],
    [[]],
    {},
    {"a": 1},
]


def write_hf_safetensors(folder: Path) -> Path:
    writers.write_huggingface(folder, "llama", shard_size="2KB")
    return folder


def write_hf_bin(folder: Path) -> Path:
    writers.write_huggingface(folder, "gpt2", bins=True, shard_size="2KB")
    return folder


def write_lite(folder: Path) -> Path:
    folder.rmdir()
    writers.write_lite(folder)
    return folder


def write_distributed(folder: Path) -> Path:
    writers.write_distributed(folder)
    (folder / "config.json").write_text(json.dumps(writers.CONFIGS["llama"]))
    return folder


def write_nanogpt(folder: Path) -> Path:
    writers.write_nanogpt(folder / "ckpt.pt", bias=True)
    return folder / "ckpt.pt"


def write_lightning(folder: Path) -> Path:
    writers.write_lightning(folder / "last.ckpt")
    return folder / "last.ckpt"


def write_torch(folder: Path) -> Path:
    writers.write_torch(folder / "step.pt")
    return folder / "step.pt"


def write_torch_legacy(folder: Path) -> Path:
    writers.write_torch(folder / "step.pt", _use_new_zipfile_serialization=False)
    return folder / "step.pt"


FORMATS: dict[str, Callable[[Path], Path]] = {
    "huggingface-safetensors": write_hf_safetensors,
    "huggingface-bin": write_hf_bin,
    "nanogpt": write_nanogpt,
    "lite": write_lite,
    "distributed": write_distributed,
    "lightning": write_lightning,
    "torch": write_torch,
    "torch-legacy": write_torch_legacy,
}
# Formats whose files do not tell the model are opened with its config.
NEEDS_CONFIG = {"lightning", "torch", "torch-legacy"}


class HangError(Exception):
    """A mutation took longer than any honest refusal."""


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise HangError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def flip_bits(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 4, 64])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def flip_early_bits(content: bytearray, chance: random.Random) -> None:
    """Headers and pickles come first; random flips would mostly meet weights."""
    for _ in range(chance.choice([1, 2, 8])):
        content[chance.randrange(min(len(content), 1500))] ^= 1 << chance.randrange(8)


def truncate(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content)) :]


def insert(content: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(content))
    content[at:at] = chance.randbytes(chance.choice([1, 2, 17, 300]))


def zero_range(content: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(content))
    length = min(chance.choice([1, 8, 100, 5000]), len(content) - at)
    content[at : at + length] = bytes(length)


def overwrite_number(content: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(content))
    number = chance.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1])
    content[at : at + 8] = number.to_bytes(8, "little")[: max(len(content) - at, 0)]


def damage_pickle(content: bytearray, chance: random.Random) -> None:
    """Flip bits of an archive's pickle and switch its checksum off, so that the damage is not found by that."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entry = next(entry for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
            inner = archive.read(entry)
    except (zipfile.BadZipFile, StopIteration):
        flip_early_bits(content, chance)
        return
    damaged = bytearray(inner)
    for _ in range(chance.choice([1, 1, 2, 4])):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    content[:] = content.replace(inner, damaged, 1).replace(entry.CRC.to_bytes(4, "little"), bytes(4))


BYTE_MUTATIONS = (
    damage_pickle,
    damage_pickle,
    flip_bits,
    flip_early_bits,
    flip_early_bits,
    truncate,
    insert,
    zero_range,
    overwrite_number,
)


def mutate_json(value: Any, chance: random.Random) -> Any:
    """Replace one value somewhere in a JSON document, remove it, or add one."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        if chance.random() < 0.1:
            return {name: member for name, member in value.items() if name != key}
        return {**value, key: mutate_json(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.7:
        at = chance.randrange(len(value))
        return [*value[:at], mutate_json(value[at], chance), *value[at + 1 :]]
    return chance.choice(JSON_VALUES)


def swap_files(files: list[Path], chance: random.Random) -> None:
    first, second = chance.sample(files, 2)
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)


def mutate(folder: Path, chance: random.Random) -> str:
    """Damage one file of a checkpoint; return what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = chance.choice(files)
    if len(files) > 1 and chance.random() < 0.05:
        swap_files(files, chance)
        return "swapped files"
    if path.suffix == ".json" and chance.random() < 0.8:
        path.write_text(json.dumps(mutate_json(json.loads(path.read_text()), chance)))
        return f"a JSON value of {path.name}"
    content = bytearray(path.read_bytes())
    change = chance.choice(BYTE_MUTATIONS)
    change(content, chance)
    path.write_bytes(content)
    return f"{change.__name__} of {path.name}"


def outcome(path: Path, name: str) -> str:
    """Open and build; return "built" or the kind of refusal. Any other exception escapes."""
    config = writers.CONFIGS["llama"] if name in NEEDS_CONFIG else None
    refusal: LiteProbeError | None = None
    try:
        with limit(SECONDS_EACH):
            checkpoint = open_checkpoint(path, model_config=config)
            checkpoint.build_model()
            checkpoint.summary()
    except LiteProbeError as error:
        refusal = error
    if refusal is None:
        return "built"
    assert refusal.message.startswith("expected ")
    assert "got" in refusal.message
    assert refusal.hint
    return type(refusal).__name__


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_load_or_are_refused(name: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    relative = FORMATS[name](whole).relative_to(whole)
    assert outcome(whole / relative, name) == "built"
    outcomes: Counter[str] = Counter()
    count = NUM_MUTATIONS if name != "torch-legacy" else NUM_MUTATIONS // 3  # a variant of torch
    for number in range(count):
        chance = random.Random(f"{name}/{number}")
        copy = tmp_path / "copy"
        shutil.copytree(whole, copy)
        done = mutate(copy, chance)
        try:
            outcomes[outcome(copy / relative, name)] += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} of {name} ({done}) escaped: {error!r}") from error
        finally:
            shutil.rmtree(copy)
    # Both happen, or the mutations were too weak or too strong to tell anything.
    assert outcomes["InputError"] > count // 4, outcomes
    assert outcomes["built"] > 0, outcomes


class Payload:
    """A pickle of this runs `Path.touch` on a marker when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def poisoned(folder: Path, name: str, marker: Path) -> Path:
    """Write a checkpoint of one format with a payload in one of its pickles."""
    path = FORMATS[name](folder)
    if name == "distributed":
        metadata = pickle.loads((path / ".metadata").read_bytes())
        metadata.planner_data["model.lm_head.weight"] = Payload(marker)
        (path / ".metadata").write_bytes(pickle.dumps(metadata))
        return path
    target = path if path.is_file() else sorted(path.glob("*.bin"))[0]
    saved = torch.load(target, weights_only=False)
    saved["payload"] = Payload(marker)
    torch.save(saved, target, _use_new_zipfile_serialization=name != "torch-legacy")
    return path


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"huggingface-safetensors"}))
def test_no_payload_runs_whole_or_damaged(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # the payload works where nothing guards against it
    marker.unlink()
    whole = tmp_path / "whole"
    whole.mkdir()
    relative = poisoned(whole, name, marker).relative_to(whole)
    with pytest.raises(UnsafePickleError, match=r"expected .* got .*, whose pickle asks for"):
        open_checkpoint(whole / relative)
    assert not marker.exists()
    for number in range(NUM_MUTATIONS // 6):
        chance = random.Random(f"payload/{name}/{number}")
        copy = tmp_path / "copy"
        shutil.copytree(whole, copy)
        mutate(copy, chance)
        outcome(copy / relative, name)
        assert not marker.exists(), number
        shutil.rmtree(copy)


def test_the_time_limit_catches_a_hang() -> None:
    with pytest.raises(HangError, match="more than 1 s"), limit(1):
        time.sleep(30)
