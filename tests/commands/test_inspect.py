import json
from pathlib import Path

from click.testing import CliRunner

from lite_probe.commands.inspect import estimate_needs
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
    # 60 products of 12 operations per parameter and token.
    assert needs.seconds * needs.operations_per_second == 60 * 12 * 1e6 * 4096
