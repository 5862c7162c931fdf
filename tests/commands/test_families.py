"""Families from the command line, and one that nobody knows by the file that the error has printed."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from transformers import BertConfig, BertForMaskedLM

from lite_probe.blocks import FAMILIES
from lite_probe.results.store import load
from tests import families
from tests.commands.running import BATCH, REPLAY, run

pytestmark = pytest.mark.slow

SPECTRUM = ("--top", "1", "--bottom", "0", "--probes", "2", "--tol", "0.5")
FROM_THE_COMMAND_LINE = (
    *("gpt_neox", "phi3", "opt", "falcon", "falcon-groups", "deepseek_v3", "bert", "gemma3_text", "olmo2", "mamba"),
)


def spectrum(checkpoint: Path, text: Path, out: Path, *more: object) -> Result:
    return run("spectrum", checkpoint, "--data", text, "--out", out, *BATCH, *SPECTRUM, *more)


def replay(checkpoint: Path, text: Path, out: Path, *more: object) -> Result:
    asked = (*BATCH, *REPLAY, "--steps", "2", "--seeds", "2", "--warm-batches", "2")
    return run("replay", checkpoint, "--data", text, "--out", out, *asked, *more)


def printed(found: Result) -> Any:
    assert found.exit_code == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize("name", FROM_THE_COMMAND_LINE)
def test_a_family_is_measured_and_replayed(name: str, text: Path, tmp_path: Path) -> None:
    one_layer = {"num_hidden_layers": 1, "first_k_dense_replace": 0} if name == "deepseek_v3" else {}
    checkpoint = families.save_model(tmp_path / "model", {**families.CONFIGS[name], **one_layer})
    inspected = printed(run("inspect", checkpoint, "--json"))
    measured = printed(spectrum(checkpoint, text, tmp_path / "run", "--per-block", "--json"))
    assert {block: found["num_parameters"] for block, found in measured["blocks"].items()} == dict(
        inspected["block_parameters"]
    )
    assert sum(inspected["block_parameters"].values()) == measured["num_parameters"]
    replayed = printed(replay(checkpoint, text, tmp_path / "run", "--json"))
    for found in replayed["optimizers"].values():
        assert found["diverged"] == []
        assert found["loss_change"]["value"] != 0.0


UNKNOWN = {
    "model_type": "codegen",
    "vocab_size": 256,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 4,
    "n_positions": 32,
    "rotary_dim": 4,
    "bos_token_id": None,
    "eos_token_id": None,
}


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a family that is not in `FAMILIES`."""
    assert UNKNOWN["model_type"] not in FAMILIES
    return families.save_model(tmp_path_factory.mktemp("unknown") / "model", UNKNOWN)


def sample_of(found: Result) -> str:
    """What was printed to start from: all that follows its first line, which is a comment."""
    start = found.stderr.index("# blocks are emb, qk")
    return found.stderr[start:]


def test_a_family_nobody_knows_by_the_file_that_the_error_printed(unknown: Path, text: Path, tmp_path: Path) -> None:
    run_folder, file = tmp_path / "run", tmp_path / "blocks.toml"
    inspected = run("inspect", unknown)
    assert inspected.exit_code == 0
    assert "blocks: not known for this model" in inspected.stderr
    refused = spectrum(unknown, text, run_folder, "--per-block")
    assert refused.exit_code == 2
    assert "expected a task whose blocks are known for a spectrum per block" in refused.stderr
    replay_refused = replay(unknown, text, run_folder)
    assert replay_refused.exit_code == 3
    assert "got none for transformer.h.0.attn.qkv_proj.weight, transformer.h.0.attn.out_proj" in replay_refused.stderr
    assert sample_of(inspected) == sample_of(refused) == sample_of(replay_refused)
    file.write_text(sample_of(refused))
    with_file = ("--blocks", file)
    sizes = printed(run("inspect", unknown, *with_file, "--json"))["block_parameters"]
    # Attention's fused weight, which nobody divides, and that of its outputs; two matrices with biases.
    feed_forward = 2 * 16 * 64 + 64 + 16
    assert sizes == {"emb": 4096, "vo": 256, "ffn": feed_forward, "norm": 2 * 32, "out": 4352, "other": 48 * 16}
    measured = printed(spectrum(unknown, text, run_folder, "--per-block", *with_file, "--json"))
    assert {block: found["num_parameters"] for block, found in measured["blocks"].items()} == sizes
    assert load(run_folder, "checkpoint").block_parameters == sizes
    replayed = printed(replay(unknown, text, run_folder, *with_file, "--json"))
    assert set(replayed["optimizers"]) == {"muon", "muon-lite"}


def test_other_blocks_are_another_spectrum(unknown: Path, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "blocks.toml"
    asked = (unknown, text, tmp_path / "run", "--per-block", "--blocks", file)
    file.write_text(sample_of(run("inspect", unknown)))
    assert spectrum(*asked).exit_code == 0
    assert "already measured" in spectrum(*asked).stderr
    file.write_text(file.read_text().replace('"other"', '"qk"'))
    found = spectrum(*asked)
    assert found.exit_code == 0, found.stderr
    assert "replacing" in found.stderr
    assert "\nqk " in found.stderr


@pytest.mark.parametrize("command", ["inspect", "spectrum", "subspace", "replay"])
def test_a_file_that_does_not_fit_is_refused(command: str, unknown: Path, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "blocks.toml"
    measured = () if command == "inspect" else ("--data", text, *BATCH)
    for content, message in (
        (
            '"fc_in.weight" = "mlp"',
            "router, norm, out, other for 'fc_in.weight'",
        ),
        ('"fc_up.weight" = "ffn"', "expected patterns that match the end of a parameter's name, got 'fc_up.weight'"),
        (
            "'mlp.fc_in.weight' = 'ffn'",
            "for every parameter of codegen, got none for transformer.h.0.attn",
        ),
    ):
        file.write_text(content)
        found = run(command, unknown, "--blocks", file, *measured)
        assert found.exit_code == 3
        assert message in found.stderr
    missing = run(command, unknown, "--blocks", tmp_path / "none.toml", *measured)
    assert missing.exit_code == 3
    assert "expected a file of blocks at" in missing.stderr


def test_a_file_of_blocks_beside_a_checkpoint_is_not_read(unknown: Path, tmp_path: Path) -> None:
    (tmp_path / "lite-probe.toml").write_text('blocks = "blocks.toml"\n')
    found = run("inspect", unknown, "--config", tmp_path / "lite-probe.toml")
    assert found.exit_code == 2
    assert "expected blocks on the command line only" in found.stderr


OWN_TASK = """
import torch
from lite_probe import Task
from lite_probe.criteria import classification_cross_entropy


def digits():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    batches = [(torch.randn(8, 6), torch.arange(8) % 3) for _ in range(2)]
    return Task(
        model=model,
        predict=lambda module, batch: module(batch[0]),
        criterion=classification_cross_entropy,
        evaluation=batches,
    )
"""


def test_a_task_of_ones_own_is_given_blocks(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_TASK)
    asked = ["spectrum", "--task", f"{tmp_path / 'own.py'}:digits", "--per-block", "--out", tmp_path / "run", *SPECTRUM]
    refused = run(*asked)
    assert refused.exit_code == 2
    assert "got one without" in refused.stderr
    (tmp_path / "blocks.toml").write_text("'0\\..*' = 'ffn'\n'2\\..*' = 'out'\n")
    found = printed(run(*asked, "--blocks", tmp_path / "blocks.toml", "--json"))
    assert {block: one["num_parameters"] for block, one in found["blocks"].items()} == {"ffn": 35, "out": 18}


def test_a_masked_bert_stays_refused(text: Path, tmp_path: Path) -> None:
    config = {**families.CONFIGS["bert"], "is_decoder": False}
    BertForMaskedLM(BertConfig(**config)).save_pretrained(tmp_path / "model")
    found = spectrum(tmp_path / "model", text, tmp_path / "run")
    assert found.exit_code == 3
    assert "expected the architecture of a causal language model, got BertForMaskedLM" in found.stderr
