"""Subspace, replay and steps of a mixture of experts, of a GPT-2, of a nanoGPT checkpoint, and of a vision task."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2MoeConfig, Qwen2MoeForCausalLM

from lite_probe.commands.main import cli

pytestmark = pytest.mark.slow

SHORT = ["--probes", "3", "--warm-batches", "4"]
STEPS = ["--step-batches", "16", "--critical-batches", "2", "--warm-batches", "4", "--lr", "0.002"]
REPLAY = ["--steps", "3", "--seeds", "2", "--warm-batches", "4", "--lr", "0.002"]
WINDOWS = ["--tokenizer", "bytes", "--seq-len", "16", "--batch-size", "4", "--batches", "2"]


def train(model: Any, text: Path) -> Any:
    """Thirty steps of AdamW on bytes; every parameter is then what a trained model's is."""
    ids = torch.tensor(list(text.read_bytes()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(2)
    for _ in range(30):
        starts = torch.randint(len(ids) // 2, (8,), generator=generator).tolist()
        batch = torch.stack([ids[start : start + 17] for start in starts])
        optimizer.zero_grad()
        model(batch, labels=batch).loss.backward()
        optimizer.step()
    return model.eval()


def qwen2_moe(folder: Path, text: Path) -> Path:
    config = Qwen2MoeConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    train(Qwen2MoeForCausalLM._from_config(config, experts_implementation="eager"), text).save_pretrained(folder)
    return folder


def small_gpt2(text: Path) -> Any:
    config = GPT2Config(
        vocab_size=256, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None
    )
    return train(GPT2LMHeadModel(config), text)


def gpt2(folder: Path, text: Path) -> Path:
    small_gpt2(text).save_pretrained(folder)
    return folder


def nanogpt(folder: Path, text: Path) -> Path:
    """The same network by nanoGPT's names and in its layout: linear layers are (out, in), the head is tied."""
    model = small_gpt2(text)
    weights = {}
    for name, tensor in model.state_dict().items():
        is_linear = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        weights[name] = tensor.T.contiguous() if is_linear else tensor.clone()
    arguments = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 32, "bias": True, "vocab_size": 256}
    folder.mkdir()
    torch.save({"model": weights, "model_args": arguments, "iter_num": 30}, folder / "ckpt.pt")
    return folder / "ckpt.pt"


def printed(*arguments: object) -> Any:
    with torch.random.fork_rng():
        done = CliRunner().invoke(cli, [str(argument) for argument in (*arguments, "--json", "--threads", "1")])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def check_steps(steps: Any, blocks: set[str]) -> None:
    assert set(steps["optimizers"]) == {"adamw", "muon", "soap"}
    for found in steps["optimizers"].values():
        assert set(found["blocks"]) == blocks
        assert sum(row["dimensions"] for row in found["bands"]) == steps["num_parameters"]
        gains = [row["gain"]["value"] for row in found["bands"]]
        assert any(gain > 0.0 for gain in gains)
        assert set(found["critical"]) == {"own batch", "held out"}
        assert found["joint"]["change"] <= found["joint"]["own_change"] + 1e-6


def check(subspace: Any, replay: Any, blocks: set[str]) -> None:
    for calibration in subspace["calibrations"].values():
        assert set(calibration["blocks"]) == blocks
        sizes = [sum(block["dimensions"]) for block in calibration["blocks"].values()]
        assert sum(sizes) == subspace["num_parameters"]
    assert set(replay["optimizers"]) == {"muon", "muon-lite", "soap", "soap-lite"}
    for found in replay["optimizers"].values():
        assert found["diverged"] == []
        assert found["loss_change"]["value"] != 0.0
        assert found["closure"] is not None


@pytest.mark.parametrize("make", [qwen2_moe, gpt2, nanogpt])
def test_language_models(make: Any, tmp_path: Path, text: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        checkpoint = make(tmp_path / "model", text)
    common = [checkpoint, "--data", text, "--out", tmp_path / "run", *WINDOWS]
    subspace = printed("subspace", *common, *SHORT)
    replay = printed("replay", *common, *REPLAY)
    blocks = {"emb", "qk", "vo", "ffn", "norm"} | ({"router", "out"} if make is qwen2_moe else set())
    check(subspace, replay, blocks)
    check_steps(printed("steps", *common, *STEPS), blocks)
    assert (tmp_path / "run" / "report.html").is_file()


VISION = """
import torch
from torch import nn
from lite_probe import Task
from lite_probe.blocks import block_map
from lite_probe.criteria import classification_cross_entropy


def batches(count, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        images = torch.randn(16, 1, 8, 8, generator=generator)
        yield images, (images[:, 0, :4].sum(dim=(1, 2)) > 0).long()


def digits():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for images, labels in batches(30, 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return Task(
        model=model,
        predict=lambda module, batch: module(batch[0]),
        criterion=classification_cross_entropy,
        evaluation=list(batches(2, 2)),
        train=list(batches(20, 3)),
        blocks=block_map(shapes, None, overrides={r"1\\..*": "ffn", r"3\\..*": "out"}),
    )
"""


def test_a_vision_task(tmp_path: Path) -> None:
    (tmp_path / "vision.py").write_text(VISION)
    common = ["--task", f"{tmp_path / 'vision.py'}:digits", "--out", tmp_path / "run"]
    subspace = printed("subspace", *common, *SHORT)
    replay = printed("replay", *common, *REPLAY)
    check(subspace, replay, {"ffn", "out"})
    check_steps(printed("steps", *common, *STEPS), {"ffn", "out"})
