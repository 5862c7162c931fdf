import json
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lite_probe.commands import inspect
from lite_probe.commands.inspect import estimate_needs, looked_up_parameters
from lite_probe.commands.main import cli


def test_facts_for_the_eye(tiny_llama: Path) -> None:
    found = CliRunner().invoke(cli, ["inspect", str(tiny_llama)])
    assert found.exit_code == 0, found.stderr
    lines = found.stderr.splitlines()
    assert lines[0].startswith("huggingface · llama · 1 layer · hidden 16 · 10,800 parameters")
    assert any(line.split()[:2] == ["emb", "4,096"] for line in lines)
    assert "optimizer state: none" in lines
    assert any("estimate" in line for line in lines)
    assert found.stdout == ""


def test_facts_for_programs(tiny_llama: Path) -> None:
    found = CliRunner().invoke(cli, ["inspect", str(tiny_llama), "--json", "-q"])
    told = json.loads(found.stdout)
    assert sum(told["block_parameters"].values()) == told["num_parameters"] == 10_800
    assert told["family"] == "llama"
    assert told["estimated_needs"]["seconds"] > 0
    assert found.stderr == ""


def test_the_estimate_grows_with_the_model_and_the_batches() -> None:
    needs = estimate_needs(1_000_000, 4096)
    assert needs.weights_bytes == 3 * 4 * 1_000_000
    # Ten pairs, three at the bottom and four probes of ten steps are expected to take 85 products, each of 12
    # operations per parameter and token at 0.6 of the speed of a matrix product.
    assert needs.num_hvps == 85
    assert needs.seconds * 0.6 * needs.operations_per_second == pytest.approx(85 * 12 * 1e6 * 4096)
    less = estimate_needs(1_000_000, 4096, looked_up=900_000)
    assert less.seconds * less.operations_per_second == pytest.approx(0.1 * needs.seconds * needs.operations_per_second)
    assert less.basis_bytes == needs.basis_bytes


def test_embeddings_are_looked_up_unless_the_head_shares_them() -> None:
    assert looked_up_parameters({"emb": 300, "ffn": 40, "out": 300}) == 300
    assert looked_up_parameters({"emb": 300, "ffn": 40}) == 0
    assert looked_up_parameters({}) == 0


def test_the_speed_is_that_of_products_that_had_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first are cold, and others share the processor."""
    taken = iter([1.0, 0.5, 0.25, 0.004, 0.5, 0.25, 0.5])
    now = [0.0]

    def mm(*matrices: torch.Tensor) -> None:
        now[0] += next(taken)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert inspect._operations_per_second(width=100) == pytest.approx(2 * 100**3 / 0.004)


def test_gpus_are_counted_on_a_config_without_weights(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "model_type": "llama",
                "vocab_size": 32_000,
                "hidden_size": 4096,
                "intermediate_size": 11_008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
            }
        )
    )
    found = CliRunner().invoke(cli, ["inspect", str(config), "--gpus", "6", "--seq-len", "64", "--json"])
    told = json.loads(found.stdout)
    assert told["num_parameters"] == 6_738_415_616
    assert sum(told["block_parameters"].values()) == told["num_parameters"]
    assert [(one["gpus"], one["is_sharded"]) for one in told["gpus"]] == [
        *((gpus, False) for gpus in (1, 2, 4, 6)),
        (6, True),
    ]
    assert [one["sent_bytes"] for one in told["gpus"][-2:]] == [share * 4 * 6_738_415_616 * 5 // 6 for share in (2, 6)]
    shown = CliRunner().invoke(cli, ["inspect", str(config), "--gpus", "2", "--seq-len", "64"])
    lines = shown.stderr.splitlines()
    assert lines[0] == "config · llama · 32 layers · hidden 4,096 · 6.74 B parameters · no weights"
    header = next(place for place, line in enumerate(lines) if line.startswith("GPUs"))
    assert [line.split()[0] for line in lines[header + 1 : header + 4]] == ["1", "2", "2"]
    assert lines[header + 3].startswith("2 shards")


def test_a_file_that_is_no_config_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"loss": 1.0}')
    found = CliRunner().invoke(cli, ["inspect", str(other)])
    assert found.exit_code == 3
    assert "expected a model_type that transformers" in found.stderr
