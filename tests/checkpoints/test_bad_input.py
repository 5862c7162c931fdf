"""Each bad input is refused with what was expected, what came and what to do."""

import io
import json
import os
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lite_probe.checkpoints import open_checkpoint, pickle_bounds, pickles
from lite_probe.checkpoints.json_files import as_json
from lite_probe.checkpoints.models import parse_config
from lite_probe.data import load_tokenizer, open_tokens
from lite_probe.errors import InputError, NumericsError, UnsafePickleError
from lite_probe.task.build import load_task_file
from tests.checkpoints import writers

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


def build(path: Path, **options: Any) -> None:
    open_checkpoint(path, **options).build_model()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    writers.write_huggingface(tmp_path / "model", shard_size="2KB")
    return tmp_path / "model"


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def rewrite_config(folder: Path, **values: object) -> None:
    rewrite(folder / "config.json", lambda config: config.update(values))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a text file\n", r"expected a LITE training folder.* got .*begins with b'a text file"),
        (PNG, r"begins with b'\\x89PNG"),
        (b"", "an empty file"),
        (b"PK\x03\x04 but no archive", "expected a file written by torch.save, got thing, which is damaged"),
        (struct.pack("<Q", 2**60) + b"{" + bytes(100), "begins with"),
        (pickle.dumps({"model": os.getcwd}), "got .*thing, a bare pickle, which may run code and is not opened"),
        (struct.pack("<Q", 40) + b"{" + bytes(100), "expected a safetensors file, got thing, which is damaged"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "thing").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path / "thing")


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a LITE training folder.*got nothing there; check the path"):
        open_checkpoint(tmp_path / "missing.pt")
    with pytest.raises(InputError, match=r"got the folder .* with nothing in it"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("text")
    writers.write_nanogpt(tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match=r"with ckpt.pt, notes.txt; pass the file itself: ckpt.pt"):
        open_checkpoint(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="loop"):
        open_checkpoint(tmp_path / "loop")
    with pytest.raises(InputError, match="null byte"):
        open_checkpoint("a\0b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    writers.write_nanogpt(tmp_path / "ckpt.pt")
    (tmp_path / "ckpt.pt").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        open_checkpoint(tmp_path / "ckpt.pt")


def test_configs_that_make_no_model(folder: Path) -> None:
    rewrite_config(folder, model_type="squid")
    with pytest.raises(InputError, match=r"expected a model_type that transformers .* knows, got 'squid'.*--task"):
        open_checkpoint(folder)
    rewrite_config(folder, model_type="vit")
    with pytest.raises(InputError, match="expected a causal language model, got model_type 'vit'"):
        open_checkpoint(folder)
    rewrite_config(folder, model_type="llama", quantization_config={"quant_method": "gptq"})
    with pytest.raises(InputError, match="expected weights in floating point, got a quantized model"):
        open_checkpoint(folder)
    rewrite(folder / "config.json", lambda config: config.pop("quantization_config"))
    rewrite_config(folder, num_hidden_layers=10**12)
    with pytest.raises(
        InputError, match="expected num_hidden_layers of at most 12 for these weights, got 1000000000000"
    ):
        open_checkpoint(folder)
    rewrite_config(folder, num_hidden_layers=1, hidden_act="wobble")
    with pytest.raises(InputError, match="expected a config that makes a llama model"):
        build(folder)


def test_configs_of_another_model(folder: Path) -> None:
    rewrite_config(folder, hidden_size=12)
    with pytest.raises(InputError, match=r"expected model\.embed_tokens\.weight of shape \(32, 12\).* got \(32, 8\)"):
        build(folder)
    rewrite_config(folder, hidden_size=8, num_hidden_layers=2)
    with pytest.raises(InputError, match=r"expected weights for a model of 1,704 parameters.*layers\.1\."):
        build(folder)
    rewrite_config(folder, num_hidden_layers=1, vocab_size=10**9)
    with pytest.raises(InputError, match=r"expected .*of shape \(1000000000, 8\)"):
        build(folder)


def test_huge_position_tables_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    config = {
        "model_type": "gptj",
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "rotary_dim": 4,
        "vocab_size": 32,
        "n_positions": 10**9,
    }
    from transformers import AutoModelForCausalLM, GPTJConfig

    model = AutoModelForCausalLM.from_config(GPTJConfig(**{**config, "n_positions": 16}))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    build(tmp_path / "model.pt", model_config={**config, "n_positions": 16})
    with pytest.raises(InputError, match="bytes of masks and position tables"):
        build(tmp_path / "model.pt", model_config=config)


def test_weights_without_a_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"expected a config\.json beside the weights .*--model-config"):
        open_checkpoint(folder)
    build(folder, model_config=writers.CONFIGS["llama"])


def test_a_config_without_weights(folder: Path) -> None:
    for path in [*shards(folder), folder / "model.safetensors.index.json"]:
        path.unlink()
    with pytest.raises(InputError, match=r"expected model\.safetensors, pytorch_model\.bin or their shards"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", "got a JSON list"),
        (b"{", "expected a JSON object in config.json"),
        (b"\xff\xfe\x00", "expected a JSON object in config.json"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "expected a JSON object in config.json"),
    ],
)
def test_json_that_is_none(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_checkpoint(folder)


def test_huge_json_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as stream:
        stream.truncate(2**40)  # sparse: takes no room on disk
    with pytest.raises(InputError, match=r"expected a JSON object of at most 67,108,864 bytes at .*config\.json, got"):
        open_checkpoint(folder)


def test_a_model_config_that_contains_itself() -> None:
    endless: dict[str, Any] = {"model_type": "llama"}
    endless["inner"] = endless
    with pytest.raises(InputError, match="nested at most 32 deep"):
        as_json(endless)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "a/b.safetensors", "a\\b", "", 7, "a\0b"])
def test_an_index_may_not_point_out_of_its_folder(folder: Path, name: object) -> None:
    index = folder / "model.safetensors.index.json"
    rewrite(index, lambda found: found["weight_map"].update({"lm_head.weight": name}))
    with pytest.raises(InputError, match=r"expected the names of files beside model\.safetensors\.index\.json"):
        open_checkpoint(folder)


def test_shards_that_are_missing_or_wrong(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    whole = index.read_text()
    index.write_text("{}")
    with pytest.raises(InputError, match="expected a weight_map from tensor names to files"):
        open_checkpoint(folder)
    index.write_text(whole)
    first, second = shards(folder)[:2]
    kept = first.read_bytes()
    first.unlink()
    with pytest.raises(InputError, match=rf"expected \d shards in .*: missing {first.name}; copy the missing shards"):
        open_checkpoint(folder)
    shutil.copy(second, first)
    with pytest.raises(InputError, match="expected each tensor in one shard"):
        open_checkpoint(folder)
    save_file({"other": torch.ones(1)}, first)
    with pytest.raises(InputError, match=r"expected the tensors that model\.safetensors.index.json lists"):
        open_checkpoint(folder)
    first.write_bytes(kept[:-1])
    with pytest.raises(InputError, match=f"expected a safetensors file, got {first.name}, which is damaged"):
        open_checkpoint(folder)


def test_bin_shards_that_hold_the_same_tensor(tmp_path: Path) -> None:
    writers.write_huggingface(tmp_path, bins=True, shard_size="2KB")
    first, second = sorted(tmp_path.glob("*.bin"))[:2]
    torch.save({**torch.load(first), **torch.load(second)}, second)
    with pytest.raises(InputError, match=r"expected each tensor in one shard, got .* again"):
        open_checkpoint(tmp_path)


def test_tensors_that_are_missing_or_left_over(tmp_path: Path) -> None:
    writers.write_huggingface(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    head = tensors.pop("lm_head.weight")
    save_file({**tensors, "padding": torch.zeros(1000)}, path)
    with pytest.raises(InputError, match=r"expected a weight for each parameter, got none for lm_head\.weight"):
        build(tmp_path)
    save_file({**tensors, "lm_head.weight": head, "model.layers.1.mlp.up_proj.weight": torch.zeros(16, 8)}, path)
    with pytest.raises(InputError, match=r"got also model\.layers\.1\.mlp\.up_proj\.weight, which the model has no"):
        build(tmp_path)


def test_an_expert_that_is_missing(tmp_path: Path) -> None:
    writers.write_huggingface(tmp_path, "qwen2_moe")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.experts.2.up_proj.weight"]
    save_file({**tensors, "padding": torch.zeros(1000)}, path)
    with pytest.raises(InputError, match="expected weights that load into a qwen2_moe model, got"):
        build(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("bins", [False, True])
def test_weights_that_are_not_finite(tmp_path: Path, value: float, bins: bool) -> None:
    writers.write_huggingface(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][3] = value
    save_file(tensors, tmp_path / "model.safetensors")
    if bins:
        writers.replace_by_bins(tmp_path)
    with pytest.raises(
        NumericsError, match=r"expected finite weights, got 1 NaN or infinite of 8 in model\.norm\.weight"
    ):
        build(tmp_path)


def test_tensors_no_hessian_can_be_taken_of(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.eye(3).to_sparse()}}, tmp_path / "sparse.pt")
    with pytest.raises(InputError, match=r"expected dense tensors, got w with torch\.sparse_coo"):
        open_checkpoint(tmp_path / "sparse.pt")


def test_a_tensor_expanded_from_one_number(tmp_path: Path) -> None:
    """A file of a kilobyte may not ask for a terabyte."""
    torch.save({"w": torch.zeros(1).expand(2**38)}, tmp_path / "bomb.pt")
    assert (tmp_path / "bomb.pt").stat().st_size < 2000
    with pytest.raises(
        InputError, match=r"expected w to lie in the file whole, got \(274877906944,\) expanded from less"
    ):
        open_checkpoint(tmp_path / "bomb.pt")


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_tensor_larger_than_its_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save({"w": torch.ones(2, 3)}, path)
    content = path.read_bytes()
    sizes, strides = b"K\x02K\x03\x86", b"K\x03K\x01\x86"
    assert content.count(sizes) == content.count(strides) == 1
    with zipfile.ZipFile(path) as archive:
        checksum = next(entry.CRC for entry in archive.infolist() if entry.filename.endswith("data.pkl"))
    path.write_bytes(content.replace(sizes, b"K\x04K\x03\x86").replace(checksum.to_bytes(4, "little"), bytes(4)))
    with pytest.raises(
        InputError, match=r"which is damaged: (Trying to resize|its tensors are larger than its 24 bytes)"
    ):
        open_checkpoint(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="which is no regular file"):
        open_checkpoint(tmp_path / "pipe")


def test_a_torch_file_without_a_state_dict(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "notes": "none"}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"expected a state dict at the top level of a\.pt .* got a dict with 'epoch'"):
        open_checkpoint(tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(InputError, match="got a list"):
        open_checkpoint(tmp_path / "b.pt")
    torch.save({"module.w": torch.ones(1), "w": torch.ones(1)}, tmp_path / "c.pt")
    with pytest.raises(InputError, match="expected one tensor per name, got two for w"):
        open_checkpoint(tmp_path / "c.pt")


def test_nanogpt_sizes_that_make_no_sense(tmp_path: Path) -> None:
    writers.write_nanogpt(tmp_path / "ckpt.pt")
    saved = torch.load(tmp_path / "ckpt.pt")
    saved["model_args"]["n_embd"] = -8
    torch.save(saved, tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match="expected a positive whole number as n_embd in nanoGPT's model_args, got -8"):
        open_checkpoint(tmp_path / "ckpt.pt")


def test_a_flipped_bit_in_the_weights_of_an_archive(tmp_path: Path) -> None:
    """torch's own reader does not look at the checksums it wrote."""
    path = tmp_path / "ckpt.pt"
    weights = writers.write_nanogpt(path)
    content = bytearray(path.read_bytes())
    stored = weights["transformer.wpe.weight"].numpy().tobytes()
    content[content.index(stored)] ^= 1
    path.write_bytes(content)
    torch.load(path)
    with pytest.raises(InputError, match=r"which is damaged: the checksum of its entry '.*/data/\d+' is wrong"):
        build(path)


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    torch.serialization.set_crc32_options(False)
    try:
        writers.write_nanogpt(path)
    finally:
        torch.serialization.set_crc32_options(True)
    build(path)


def test_archives_that_torch_did_not_write(tmp_path: Path) -> None:
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match=r"got some\.zip, a zip archive with 0 data\.pkl"):
        open_checkpoint(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("some/data.pkl", bytes(10**6))
    with pytest.raises(InputError, match="its entries are larger than its"):
        open_checkpoint(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("some/data.pkl", b"\x80\x02}.")
    with pytest.raises(InputError, match="is compressed"):
        open_checkpoint(path)


class Opens:
    """Unpickling this runs `os.system`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "extra": Opens()}, tmp_path / "evil.pt")
    message = r"expected a file of tensors, got evil\.pt, whose pickle asks for posix\.system; .*--trust-pickle"
    with pytest.raises(UnsafePickleError, match=message):
        open_checkpoint(tmp_path / "evil.pt")
    assert open_checkpoint(tmp_path / "evil.pt", trust_pickle=True).num_parameters == 2


def test_a_whole_module_needs_trust(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(3, 2)}, tmp_path / "module.pt")
    with pytest.raises(UnsafePickleError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        open_checkpoint(tmp_path / "module.pt")
    trusted = open_checkpoint(tmp_path / "module.pt", trust_pickle=True)
    assert set(trusted.state_dict()) == {"weight", "bias"}


def test_later_pickle_protocols_are_refused_unless_trusted(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "new.pt", pickle_protocol=4)
    with pytest.raises(UnsafePickleError, match=r"pickle protocol 4 or later"):
        open_checkpoint(tmp_path / "new.pt")
    assert open_checkpoint(tmp_path / "new.pt", trust_pickle=True).num_parameters == 2


def test_extension_codes_are_refused() -> None:
    with pytest.raises(UnsafePickleError, match="extension code 5"):
        pickles.scan(io.BytesIO(b"\x80\x02\x82\x05."), "file", trust_pickle=False)


def test_what_training_scripts_save_beside_weights_is_allowed(tmp_path: Path) -> None:
    import argparse
    import collections
    import random

    beside = {
        "args": argparse.Namespace(lr=1e-3, out=Path("runs/a"), dtype=torch.bfloat16, shape=torch.Size([2])),
        "numpy": [np.float64(2.5), np.int32(-3), np.bool_(True), np.array([1.0, 2.0]), np.dtype("f4")],
        "big_endian": np.dtype(">f8").type(2.5),
        "rng": (random.getstate(), np.random.RandomState(1).get_state(), torch.get_rng_state()),
        "counts": collections.Counter("aab"),
        "default": collections.defaultdict(list, a=[1]),
        "deque": collections.deque([1, 2], maxlen=3),
        "more": {
            "set": {1},
            "frozen": frozenset({2}),
            "bytes": b"raw",
            "slice": slice(1, 2),
            "device": torch.device("cpu"),
        },
    }
    torch.save({"model": {"w": torch.ones(2)}, **beside}, tmp_path / "a.pt")
    found = pickles.read_torch_file(tmp_path / "a.pt", trust_pickle=False)
    assert found["args"].lr == 1e-3
    assert str(found["args"].out) == "runs/a"
    assert found["args"].dtype is torch.bfloat16
    assert found["numpy"][:3] == [2.5, -3, True]
    assert found["default"] == {"a": [1]}
    assert found["deque"] == [1, 2]
    assert found["more"]["bytes"] == b"raw"


def test_numpy_itself_is_never_called_by_a_pickle(tmp_path: Path) -> None:
    """A forged dtype state can make numpy take bytes for pointers; stand-ins only keep them."""
    torch.save({"model": {"w": torch.ones(2)}, "x": np.array([object()], dtype=object)}, tmp_path / "a.pt")
    with pytest.raises(UnsafePickleError, match=r"asks for builtins\.object"):
        open_checkpoint(tmp_path / "a.pt")
    with pytest.raises(pickle.UnpicklingError, match="expected a numpy scalar of numbers or text, got dtype O"):
        pickles.PickledDtype("O").plain()
    torch.save({"model": {"w": torch.ones(2)}, "x": np.float64(1.5)}, tmp_path / "b.pt")
    content = (tmp_path / "b.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(content.replace(b"f8", b"f2"))
    with pytest.raises(InputError, match="is damaged"):
        open_checkpoint(tmp_path / "b.pt")


def test_files_that_change_after_opening(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    shards(folder)[0].unlink()
    with pytest.raises(InputError, match=r"expected a safetensors file, got .*, which is damaged"):
        checkpoint.build_model()
    writers.write_distributed(tmp_path / "step7")
    checkpoint = open_checkpoint(tmp_path / "step7", model_config=writers.CONFIGS["llama"])
    (tmp_path / "step7" / "__0_0.distcp").unlink()
    with pytest.raises(InputError, match="expected a data file of a distributed checkpoint"):
        checkpoint.build_model()


def test_weights_in_eight_bits(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"expected weights of a torch dtype, got w of F8_E4M3 in model\.safetensors"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_distributed_metadata_that_lies(tmp_path: Path) -> None:
    writers.write_distributed(tmp_path / "whole")
    whole = (tmp_path / "whole" / ".metadata").read_bytes()

    def refused(change: Callable[[Any], object], message: str, kind: type[InputError] = InputError) -> None:
        metadata = pickle.loads(whole)
        change(metadata)
        (tmp_path / "whole" / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(kind, match=message):
            open_checkpoint(tmp_path / "whole").state_dict()

    name = "model.lm_head.weight"

    def info(metadata: Any) -> Any:
        return next(value for key, value in metadata.storage_data.items() if key.fqn == name)

    refused(
        lambda found: setattr(info(found), "relative_path", "../../etc/passwd"), "expected the names of files beside"
    )
    refused(
        lambda found: setattr(info(found), "relative_path", "__9_0.distcp"), r"expected the data file __9_0\.distcp"
    )
    refused(lambda found: setattr(info(found), "length", 10**12), "expected a complete data file")
    refused(lambda found: setattr(info(found), "length", 20), "is larger than its 20 bytes")
    refused(
        lambda found: setattr(info(found), "transform_descriptors", ["zstd"]), "save the checkpoint without compression"
    )
    refused(lambda found: setattr(info(found), "offset", 0), "damaged")
    entry: Callable[[Any], Any] = lambda found: found.state_dict_metadata[name]  # noqa: E731
    refused(lambda found: setattr(entry(found), "size", torch.Size([33, 8])), "do not add up to its shape")
    refused(lambda found: setattr(entry(found), "size", torch.Size([31, 8])), "lies outside of its shape")
    refused(lambda found: setattr(entry(found), "size", (-1, 8)), "expected sizes, got")
    refused(
        lambda found: setattr(entry(found).chunks[0], "offsets", torch.Size([1, 0])), "no data is listed for the chunk"
    )
    refused(lambda found: setattr(entry(found).properties, "dtype", torch.float64), "damaged")
    refused(lambda found: found.planner_data.update({name: Opens()}), r"asks for posix\.system", UnsafePickleError)
    refused(lambda found: found.planner_data.update({name: ("step", "x")}), "step is listed twice")
    refused(lambda found: found.state_dict_metadata.clear(), "expected a state dict .* got an empty dict")
    (tmp_path / "whole" / ".metadata").write_bytes(pickle.dumps([1]))
    with pytest.raises(InputError, match=r"expected the metadata of a distributed checkpoint.*it holds a list"):
        open_checkpoint(tmp_path / "whole")


def test_a_memo_index_that_would_take_all_memory(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"\x80\x02K\x01r\xff\xff\xff\xff.")
    with pytest.raises(InputError, match="its memo index 4,294,967,295 is beyond its"):
        open_checkpoint(tmp_path)


def test_an_optimizer_file_that_cannot_be_read_becomes_a_note(folder: Path) -> None:
    torch.save({"state": Opens()}, folder / "optimizer.pt")
    checkpoint = open_checkpoint(folder)
    checkpoint.build_model()
    assert checkpoint.optimizer is None
    assert [note.code for note in checkpoint.notes] == ["optimizer-unreadable"]
    assert "posix.system" in checkpoint.notes[0].message


def test_a_pickle_of_too_many_opcodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    monkeypatch.setattr(pickle_bounds, "MAX_OPCODES", 10)
    with pytest.raises(InputError, match=r"a\.pt, whose pickle is out of bounds: it has more than 10 opcodes"):
        open_checkpoint(tmp_path / "a.pt")
    monkeypatch.setattr(pickle_bounds, "MAX_OPCODES", 1000)
    monkeypatch.setattr(pickles, "MAX_PICKLE_BYTES", 10)
    with pytest.raises(InputError, match="it has more than 10 bytes"):
        open_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"\x80\x02K\x01r\xff\xff\xff\xff.", "its memo index 4,294,967,295 is beyond its 4 bytes"),
        (b"\x80\x02K\x01)R.", "it calls what is no name"),
        (b"\x80\x02)K\x01a.", "it appends to a tuple"),
        (b"\x80\x02ctorch\nSize\n}b.", "it sets the state of a name"),
        (b"\x80\x02ccollections\nOrderedDict\n)R]b.", "the state of its collections.OrderedDict is no dict"),
        (b"\x80\x02ccollections\nOrderedDict\n]K\x01\x86R.", "has arguments that are no list and no dict"),
        (b"\x80\x02cpathlib\nPath\nK\x01\x85R.", "has arguments that are no text"),
    ],
)
def test_programs_that_no_checkpoint_is(opcodes: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pickles.scan(io.BytesIO(opcodes), "a.pt", trust_pickle=False)


def test_an_older_file_may_not_outgrow_itself(tmp_path: Path) -> None:
    """torch resizes what the older format reads into memory to the sizes that its pickle names."""
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(2, 3)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert content.count(b"K\x02K\x03\x86") == 1
    path.write_bytes(content.replace(b"K\x02K\x03\x86", b"J\xff\xff\xff\x00K\x03\x86"))
    with pytest.raises(InputError, match=r"which is damaged: storage has wrong byte size"):
        open_checkpoint(path)


def test_nanogpt_tensors_expanded_from_one_number(tmp_path: Path) -> None:
    """They are refused before head and embedding are compared number by number."""
    path = tmp_path / "ckpt.pt"
    writers.write_nanogpt(path)
    saved = torch.load(path)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        saved["model"][f"_orig_mod.{name}"] = torch.zeros(1).expand(2**38)
    torch.save(saved, path)
    with pytest.raises(InputError, match=r"to lie in the file whole, got \(274877906944,\) expanded from less"):
        open_checkpoint(path)


def test_names_in_messages_are_short_and_printable(tmp_path: Path) -> None:
    torch.save({"model": {"\x1b[2J" + "n" * 10_000: torch.eye(3).to_sparse()}}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"got \\x1b\[2Jn{196}… with") as caught:
        open_checkpoint(tmp_path / "a.pt")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("BertForMaskedLM", {}, "expected the architecture of a causal language model, got BertForMaskedLM"),
        ("GPT2ForSequenceClassification", {}, "of a causal language model, got GPT2ForSequenceClassification"),
        ("BartForConditionalGeneration", {}, "of a causal language model, got BartForConditionalGeneration"),
        ("T5ForConditionalGeneration", {}, "expected a causal language model, got model_type 't5'"),
        (None, {"model_type": "bart"}, "expected a causal language model, got a bart with encoder and decoder"),
        ("BertLMHeadModel", {}, r"got a bert that looks ahead \(is_decoder is false\)"),
        (None, {"model_type": "xlm"}, "got a xlm that looks ahead"),
    ],
)
def test_models_that_are_not_causal(folder: Path, name: str | None, values: dict[str, Any], message: str) -> None:
    family = {"Bert": "bert", "GPT2": "gpt2", "Bart": "bart", "T5Fo": "t5"}.get((name or "")[:4])
    config = {"model_type": family, "architectures": name and [name], **values}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"{message}.*; pass --task FILE\.py:FUNCTION for any other model and loss"):
        open_checkpoint(folder)


@pytest.mark.parametrize("names", [["BertLMHeadModel"], None])
def test_an_encoder_that_decodes_is_causal(names: list[str] | None) -> None:
    parse_config({"model_type": "bert", "is_decoder": True, "architectures": names}, num_tensors=100)


def test_a_folder_without_permission() -> None:
    """As somebody else than root, who may read everything."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    model = place / "model"
    writers.write_huggingface(model, optimizer=True)
    (place / "text.txt").write_text("text")

    def refused(path: Path, mode: int, act: Callable[[], object], message: str) -> None:
        path.chmod(mode)
        os.seteuid(65534)
        try:
            with pytest.raises(InputError, match=message):
                act()
        finally:
            os.seteuid(0)
            path.chmod(0o755)

    try:
        for mode in (0o700, 0o600):
            refused(model, mode, lambda: open_checkpoint(model), "expected a LITE training folder.*Permission denied")
            refused(model, mode, lambda: load_tokenizer(model), "expected a tokenizer at .*Permission denied")
            refused(model, mode, lambda: load_task_file(f"{model}/a.py:f"), "expected a Python file, got Permission")
            refused(model, mode, lambda: open_tokens(model / "a.txt", tokenizer=None), "Permission denied")
        weights = model / "model.safetensors"
        refused(weights, 0o600, lambda: open_checkpoint(model), r"a safetensors file at .*, got Permission denied")
        refused(model / "config.json", 0o600, lambda: open_checkpoint(model), "a JSON object at .*, got Permission")
        checkpoint = open_checkpoint(model)
        refused(weights, 0o600, lambda: checkpoint.fingerprint, "a file of the checkpoint at .*, got Permission denied")
        (model / "optimizer.pt").chmod(0o600)
        os.seteuid(65534)
        try:
            summary = open_checkpoint(model).summary()
        finally:
            os.seteuid(0)
        assert [note.code for note in summary.notes] == ["optimizer-unreadable"]
        assert "Permission denied" in summary.notes[0].message
    finally:
        shutil.rmtree(place)
