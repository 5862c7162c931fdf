"""Every format is recognised by content and gives back the model that was saved, bit for bit."""

import json
import math
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from lite_probe.checkpoints import open_checkpoint
from lite_probe.checkpoints.models import quiet_transformers
from lite_probe.errors import InputError
from tests.checkpoints import writers


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


def assert_same_weights(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    ours, theirs = state_of(found), state_of(expected)
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("bins", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("shard_size", ["5GB", "2KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2", "qwen2-tied", "qwen2_moe", "gpt2"])
def test_a_hugging_face_folder_gives_transformers_own_logits(
    tmp_path: Path, name: str, bins: bool, shard_size: str
) -> None:
    writers.write_huggingface(tmp_path, name, bins=bins, shard_size=shard_size)
    sharded = len(list(tmp_path.glob("*model-*"))) > 1
    assert sharded == (shard_size == "2KB")
    with quiet_transformers():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.float32)
    checkpoint = open_checkpoint(tmp_path)
    ours = checkpoint.build_model()
    assert checkpoint.format == "huggingface"
    assert checkpoint.family == writers.CONFIGS[name]["model_type"]
    assert torch.equal(writers.logits(ours), writers.logits(theirs))
    assert_same_weights(ours, theirs)
    tied = ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
    assert tied == (name.endswith("tied") or name == "gpt2")
    assert checkpoint.num_parameters == sum(parameter.numel() for parameter in theirs.parameters())
    assert not ours.training


def test_old_experts_one_by_one_and_fused_give_the_same_model(tmp_path: Path) -> None:
    model = writers.write_huggingface(tmp_path / "one-by-one", "qwen2_moe")
    names = open_checkpoint(tmp_path / "one-by-one").state_dict()
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in names
    fused = tmp_path / "fused.pt"
    torch.save(model.state_dict(), fused)
    from_fused = open_checkpoint(fused, model_config=writers.CONFIGS["qwen2_moe"]).build_model()
    assert_same_weights(from_fused, model)
    assert_same_weights(open_checkpoint(tmp_path / "one-by-one").build_model(), model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_asked_for_is_the_dtype_of_every_parameter(tmp_path: Path, dtype: torch.dtype) -> None:
    model = writers.write_huggingface(tmp_path)
    found = open_checkpoint(tmp_path).build_model(dtype=dtype)
    for name, parameter in found.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, model.get_parameter(name).to(dtype))


def test_parameters_own_their_memory(tmp_path: Path) -> None:
    """Training a built model must not write into the checkpoint, nor a changed file into the model."""
    path = tmp_path / "ckpt.pt"
    writers.write_nanogpt(path, bias=True)
    content = path.read_bytes()
    model = open_checkpoint(path).build_model()
    before = writers.logits(model)
    path.write_bytes(bytes(len(content)))
    assert torch.equal(writers.logits(model), before)


@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "gpt2"])
def test_a_built_model_differentiates_twice(tmp_path: Path, name: str) -> None:
    writers.write_huggingface(tmp_path, name)
    model = open_checkpoint(tmp_path).build_model()
    loss = model(writers.tokens(), labels=writers.tokens()).loss
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    products = torch.autograd.grad(sum(gradient.sum() for gradient in gradients), parameters)
    assert all(torch.isfinite(product).all() for product in products)
    assert any(product.abs().max() > 0 for product in products)


def nanogpt_logits(weights: dict[str, Tensor], ids: Tensor, *, num_heads: int, tanh: bool = False) -> Tensor:
    """GPT-2 in float64, from its equations; all positions' logits."""
    weights = {name: tensor.double() for name, tensor in weights.items()}

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)

    def linear(x: Tensor, name: str) -> Tensor:
        return torch.einsum("btc,dc->btd", x, weights[f"{name}.weight"]) + weights.get(f"{name}.bias", 0.0)

    def gelu(x: Tensor) -> Tensor:
        if tanh:
            return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    batch, length = ids.shape
    x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][:length]
    width = x.shape[-1]
    layer = 0
    while f"transformer.h.{layer}.ln_1.weight" in weights:
        start = f"transformer.h.{layer}"
        fused = linear(norm(x, f"{start}.ln_1"), f"{start}.attn.c_attn")
        query, key, value = (
            part.reshape(batch, length, num_heads, width // num_heads) for part in fused.split(width, dim=-1)
        )
        scores = torch.einsum("bihd,bjhd->bhij", query, key) / math.sqrt(width // num_heads)
        future = torch.ones(length, length).triu(1).bool()
        attention = scores.masked_fill(future, -torch.inf).softmax(-1)
        mixed = torch.einsum("bhij,bjhd->bihd", attention, value).reshape(batch, length, width)
        x = x + linear(mixed, f"{start}.attn.c_proj")
        hidden = gelu(linear(norm(x, f"{start}.ln_2"), f"{start}.mlp.c_fc"))
        x = x + linear(hidden, f"{start}.mlp.c_proj")
        layer += 1
    return torch.einsum("btc,vc->btv", norm(x, "transformer.ln_f"), weights["lm_head.weight"])


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_computes_what_its_equations_say(tmp_path: Path, bias: bool, prefix: str) -> None:
    weights = writers.write_nanogpt(tmp_path / "ckpt.pt", bias=bias, prefix=prefix, num_layers=2)
    checkpoint = open_checkpoint(tmp_path / "ckpt.pt")
    model = checkpoint.build_model()
    expected = nanogpt_logits(weights, writers.tokens(), num_heads=2)
    # Float32 rounding over a depth of two blocks of width 8 stays below 100 units in the last place.
    tolerance = 100 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    assert float((writers.logits(model).double() - expected).abs().max()) < tolerance
    assert (checkpoint.format, checkpoint.family, checkpoint.step) == ("nanogpt", "gpt2", 5000)
    assert (checkpoint.vocab_size, checkpoint.max_seq_len) == (writers.VOCAB, writers.SEQ_LEN)
    # The tied head counts once, and without biases none are parameters.
    trained = sum(tensor.numel() for name, tensor in weights.items() if name != "lm_head.weight")
    assert checkpoint.num_parameters == trained
    assert checkpoint.summary().weight_bytes == 4 * trained
    assert sum(parameter.numel() for parameter in model.parameters()) == trained
    assert ("nanogpt-no-bias" in [note.code for note in checkpoint.notes]) == (not bias)
    assert checkpoint.architecture == "nanoGPT · 2 layers · hidden 8"


def test_nanogpt_from_before_the_bias_option_uses_tanh(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    weights = writers.write_nanogpt(path, bias=True)
    saved = torch.load(path)
    del saved["model_args"]["bias"]
    saved["model"]["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril()  # the causal mask, a buffer then
    torch.save(saved, path)
    checkpoint = open_checkpoint(path)
    expected = nanogpt_logits(weights, writers.tokens(), num_heads=2, tanh=True)
    tolerance = 100 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    found = writers.logits(checkpoint.build_model()).double()
    assert float((found - expected).abs().max()) < tolerance
    exact = nanogpt_logits(weights, writers.tokens(), num_heads=2)
    assert float((exact - expected).abs().max()) > tolerance  # the two activations can be told apart
    chosen = open_checkpoint(path, model_config={"activation_function": "gelu"}).build_model()
    assert float((writers.logits(chosen).double() - exact).abs().max()) < tolerance


def test_a_nanogpt_head_that_is_not_tied_stays_a_parameter(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    writers.write_nanogpt(path, bias=True)
    saved = torch.load(path)
    saved["model"]["_orig_mod.lm_head.weight"] = saved["model"]["_orig_mod.lm_head.weight"].flip(0)
    torch.save(saved, path)
    weights = {name.removeprefix("_orig_mod."): tensor for name, tensor in saved["model"].items()}
    expected = nanogpt_logits(weights, writers.tokens(), num_heads=2)
    checkpoint = open_checkpoint(path)
    tolerance = 100 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    assert float((writers.logits(checkpoint.build_model()).double() - expected).abs().max()) < tolerance
    assert checkpoint.num_parameters == sum(tensor.numel() for tensor in weights.values())


def test_a_lite_folder_finds_its_config_in_the_optimizer_file(tmp_path: Path) -> None:
    folder = tmp_path / "model_40"
    model = writers.write_lite(folder)
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.format, checkpoint.step, checkpoint.name) == ("lite", 40, "model_40")
    assert_same_weights(checkpoint.build_model(), model)
    assert checkpoint.optimizer is not None
    assert checkpoint.optimizer.name == "adamw"
    assert checkpoint.model_config is not None
    assert checkpoint.model_config["dtype"] == "float32"
    (folder / "optimizer.pt").unlink()
    with pytest.raises(
        InputError,
        match=r"expected the model's config in .*optimizer\.pt under config\.model, got none; pass --model-config",
    ):
        open_checkpoint(folder)
    given = open_checkpoint(folder, model_config=writers.CONFIGS["llama"])
    assert_same_weights(given.build_model(), model)


def test_a_lite_config_may_lie_in_a_namespace(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    model = writers.write_lite(folder)
    torch.save({"config": Namespace(model=writers.CONFIGS["llama"])}, folder / "optimizer.pt")
    assert_same_weights(open_checkpoint(folder).build_model(), model)


@pytest.mark.parametrize("name", ["llama", "qwen2_moe"])
def test_a_distributed_checkpoint_is_read_in_one_process(tmp_path: Path, name: str) -> None:
    model = writers.write_distributed(tmp_path / "step7", name)
    checkpoint = open_checkpoint(tmp_path / "step7", model_config=writers.CONFIGS[name])
    assert (checkpoint.format, checkpoint.step) == ("distributed", 7)
    assert_same_weights(checkpoint.build_model(), model)
    assert checkpoint.optimizer is not None
    assert checkpoint.optimizer.name == "adamw"
    assert checkpoint.optimizer.num_tensors == 3 * len(list(model.parameters()))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_tensor_is_put_together_from_its_chunks(tmp_path: Path) -> None:
    """Two ranks' halves, written by torch's planner from a hand-made plan."""
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

    whole = torch.arange(12.0).reshape(4, 3)
    dcp.save({"w": whole[:2].clone()}, checkpoint_id=tmp_path / "first", no_dist=True)
    dcp.save({"w": whole[2:].clone()}, checkpoint_id=tmp_path / "second", no_dist=True)
    first = dcp.FileSystemReader(tmp_path / "first").read_metadata()
    second = dcp.FileSystemReader(tmp_path / "second").read_metadata()
    entry = first.state_dict_metadata["w"]
    entry.size = whole.shape
    entry.chunks.append(ChunkStorageMetadata(torch.Size([2, 0]), torch.Size([2, 3])))
    info = next(iter(second.storage_data.values()))
    info.relative_path = "__1_0.distcp"
    first.storage_data[MetadataIndex("w", torch.Size([2, 0]))] = info
    shutil.copy(tmp_path / "second" / "__0_0.distcp", tmp_path / "first" / "__1_0.distcp")
    import pickle

    (tmp_path / "first" / ".metadata").write_bytes(pickle.dumps(first))
    checkpoint = open_checkpoint(tmp_path / "first")
    assert torch.equal(checkpoint.state_dict()["w"], whole)
    assert checkpoint.num_parameters == 12


def test_a_lightning_checkpoint_loses_its_attribute_name(tmp_path: Path) -> None:
    model = writers.write_lightning(tmp_path / "last.ckpt")
    checkpoint = open_checkpoint(tmp_path / "last.ckpt", model_config=writers.CONFIGS["llama"])
    assert (checkpoint.format, checkpoint.step, checkpoint.name) == ("lightning", 120, "last")
    assert_same_weights(checkpoint.build_model(), model)
    assert checkpoint.optimizer is not None
    assert [note.code for note in checkpoint.notes] == ["ignored-tensors"]
    assert "metric.total" in checkpoint.notes[0].message


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_a_plain_torch_file_is_found_under_its_key(tmp_path: Path, options: dict[str, bool]) -> None:
    path = tmp_path / "step-11.pth"
    model = writers.write_torch(path, **options)
    config_file = tmp_path / "config.json"
    config_file.write_text(json.dumps(writers.CONFIGS["llama"]))
    checkpoint = open_checkpoint(path, model_config=config_file)
    assert (checkpoint.format, checkpoint.step) == ("torch", 11)
    assert_same_weights(checkpoint.build_model(), model)


def test_a_file_without_a_model_config_can_be_inspected_but_not_built(tmp_path: Path) -> None:
    model = writers.write_torch(tmp_path / "step.pt")
    checkpoint = open_checkpoint(tmp_path / "step.pt")
    assert checkpoint.family is None
    assert checkpoint.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert set(checkpoint.state_dict()) == set(model.state_dict())
    assert checkpoint.summary().block_parameters == {}
    with pytest.raises(InputError, match=r"expected a model config .* pass --model-config .* or --task"):
        checkpoint.build_model()


def test_tied_weights_count_once_even_without_a_config(tmp_path: Path) -> None:
    model = writers.make_model("llama-tied")
    torch.save({f"net.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "model.pt")
    trained = sum(parameter.numel() for parameter in model.parameters())
    for config in (None, writers.CONFIGS["llama-tied"]):
        checkpoint = open_checkpoint(tmp_path / "model.pt", model_config=config)
        assert "lm_head.weight" in {name.removeprefix("net.") for name in checkpoint.state_dict()}
        assert checkpoint.num_parameters == trained
        assert checkpoint.summary().weight_bytes == 4 * trained


def test_endings_decide_nothing(tmp_path: Path) -> None:
    writers.write_nanogpt(tmp_path / "ckpt.safetensors")
    assert open_checkpoint(tmp_path / "ckpt.safetensors").format == "nanogpt"
    folder = tmp_path / "folder.pt"
    writers.write_huggingface(folder)
    (folder / "model.safetensors").rename(folder / "weights.pt")
    alone = open_checkpoint(folder / "weights.pt")
    assert alone.format == "huggingface"
    assert alone.family == "llama"


def test_the_summary_holds_everything_as_plain_values(tmp_path: Path) -> None:
    folder = tmp_path / "run 1/checkpoint-1000"
    writers.write_huggingface(folder, "llama-tied")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 1000}))
    summary = open_checkpoint(folder).summary()
    assert (summary.name, summary.step, summary.family) == ("checkpoint-1000", 1000, "llama")
    assert summary.tokenizer_path == str(folder / "tokenizer.json")
    assert sum(summary.block_parameters.values()) == summary.num_parameters
    assert "out" not in summary.block_parameters  # the tied head counts as emb
    assert summary.block_parameters["emb"] == writers.VOCAB * 8
    assert summary.weight_bytes == 4 * summary.num_parameters
    assert json.loads(json.dumps(summary.model_config)) == summary.model_config


def test_names_are_safe_for_folders(tmp_path: Path) -> None:
    path = tmp_path / "..étape 12 (final).pt"
    writers.write_nanogpt(path)
    assert open_checkpoint(path).name == "tape-12-final"


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    writers.write_huggingface(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    first = open_checkpoint(tmp_path / "first").fingerprint
    assert open_checkpoint(tmp_path / "second").fingerprint == first
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    (tmp_path / "second" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    changed = open_checkpoint(tmp_path / "second").fingerprint
    weights = bytearray((tmp_path / "first" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "first" / "model.safetensors").write_bytes(weights)
    flipped = open_checkpoint(tmp_path / "first").fingerprint
    assert len({first, changed, flipped}) == 3


def test_opening_leaves_transformers_settings_alone(tmp_path: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    writers.write_huggingface(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": "wide"}))
    with pytest.raises(InputError):
        open_checkpoint(tmp_path)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("python_writes", [True, False])
def test_a_config_with_infinity_in_it(tmp_path: Path, python_writes: bool) -> None:
    """Of Mamba-2, whose time steps have no upper limit; transformers writes an object, Python a word."""
    values = {"hidden_size": 16, "num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 1, "num_hidden_layers": 1}
    config = transformers.Mamba2Config(**values, vocab_size=32)
    with quiet_transformers():
        transformers.Mamba2ForCausalLM(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    if python_writes:
        path.write_text(json.dumps({**written, "time_step_limit": [0.0, float("inf")]}))
    checkpoint = open_checkpoint(tmp_path)
    model = checkpoint.build_model()
    assert tuple(model.config.time_step_limit) == (0.0, float("inf"))
    stored = checkpoint.summary().model_config
    assert stored is not None
    assert stored["time_step_limit"] == [0.0, {"__float__": "Infinity"}]
    json.dumps(stored, allow_nan=False)
