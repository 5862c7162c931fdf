"""The command from end to end on a tiny checkpoint: files, stdout, reuse, options that reach the measurement."""

import csv
import inspect
import io
import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from lite_probe.commands.main import cli
from lite_probe.commands.spectrum import command
from lite_probe.results.store import load

pytestmark = pytest.mark.slow

SMALL = [
    "--tokenizer",
    "bytes",
    "--seq-len",
    "16",
    "--batch-size",
    "4",
    "--batches",
    "1",
    "--top",
    "3",
    "--bottom",
    "1",
]
SMALL += ["--probes", "2", "--threads", "1"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def spectrum(checkpoint: Path, text: Path, out: Path, *more: object) -> Result:
    return run("spectrum", checkpoint, "--data", text, "--out", out, *SMALL, *more)


@pytest.fixture(scope="module")
def measured(tiny_llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("probe") / "tiny"
    return out, spectrum(tiny_llama, text, out, "--per-block")


def test_stdout_is_the_paths_written(measured: tuple[Path, Result]) -> None:
    out, found = measured
    assert found.exit_code == 0, found.stderr
    paths = found.stdout.splitlines()
    assert paths == [str(out / "report.html"), str(out / "spectrum.json")]
    assert all(Path(path).is_file() for path in paths)
    assert {path.name for path in out.iterdir()} >= {"checkpoint.json", "spectrum.safetensors"}


def test_stdout_is_its_tables_in_the_format_asked_for(
    measured: tuple[Path, Result], tiny_llama: Path, text: Path
) -> None:
    out, _ = measured

    def told(*how: str) -> str:
        found = spectrum(tiny_llama, text, out, "--per-block", *how)
        assert found.exit_code == 0, found.stderr
        assert "already measured" in found.stderr
        return found.stdout

    saved = load(out, "spectrum")
    rows = list(csv.DictReader(io.StringIO(told("--format", "csv", "--table", "eigenpairs"))))
    assert [float(row["λ (loss/param²)"]) for row in rows[:3]] == saved.eigenvalues.tolist()
    assert [float(row["residual (loss/param²)"]) for row in rows[:3]] == saved.residual_norms.tolist()
    assert "| λ₁ (loss/param²) |" in told("--format", "md")
    assert r"\label{tab:eigenpairs}" in told("--format", "latex")
    assert told("--format", "json") == told("--json")
    planned = spectrum(tiny_llama, text, out, "--dry-run", "--format", "md")
    assert (planned.exit_code, planned.stdout) == (0, "")
    refused = spectrum(tiny_llama, text, out, "--json", "--format", "csv")
    assert refused.exit_code == 2
    assert "expected one format, got --json and --format csv" in refused.stderr


def test_the_eye_sees_header_plan_figures_and_blocks(measured: tuple[Path, Result]) -> None:
    lines = measured[1].stderr.splitlines()
    assert "parameters" in lines[0]
    assert any("1 × 4 × 16 tokens of text.txt, float32, 1 thread" in line for line in lines[:2])
    assert any(line.startswith("plan: ") for line in lines)
    assert any(line.startswith("loss 5.") and "λ₁ " in line for line in lines)
    assert any(line.startswith("block") for line in lines)
    assert "\x1b" not in measured[1].stderr


def test_the_same_command_reuses_what_is_there(measured: tuple[Path, Result], tiny_llama: Path, text: Path) -> None:
    out, _ = measured
    before = (out / "spectrum.json").stat().st_mtime_ns
    found = spectrum(tiny_llama, text, out, "--per-block", "--json")
    assert found.exit_code == 0
    assert "already measured" in found.stderr
    assert (out / "spectrum.json").stat().st_mtime_ns >= before
    told = json.loads(found.stdout)
    assert len(told["eigenvalues"]) == 3
    assert set(told["blocks"]) == {"emb", "qk", "vo", "ffn", "norm", "out"}


def test_another_request_measures_again_and_gives_the_json_object(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    told = []
    for seed in (0, 1):
        found = spectrum(tiny_llama, text, tmp_path / "out", "--json", "--seed", seed)
        assert found.exit_code == 0, found.stderr
        assert "already measured" not in found.stderr
        assert ("replacing" in found.stderr) == (seed == 1)
        told.append(json.loads(found.stdout))
    assert told[0]["num_parameters"] == told[1]["num_parameters"]
    # Another seed draws other batches and other probes.
    assert told[0]["loss"] != told[1]["loss"]
    assert told[0]["trace"]["value"] != told[1]["trace"]["value"]


def test_fresh_measures_again_with_the_same_numbers(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    first, second = (json.loads(spectrum(tiny_llama, text, tmp_path, "--json", "--fresh").stdout) for _ in range(2))
    for name in ("eigenvalues", "residual_norms", "trace", "loss"):
        assert first[name] == second[name]


def test_a_dry_run_says_the_plan_and_writes_nothing(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    found = spectrum(tiny_llama, text, tmp_path / "out", "--dry-run", "--json")
    assert found.exit_code == 0, found.stderr
    plan = json.loads(found.stdout)
    assert plan["num_hvps"] > 0
    assert plan["memory_bytes"] > 0
    assert list(tmp_path.iterdir()) == []
    assert spectrum(tiny_llama, text, tmp_path / "out", "--dry-run").stdout == ""


def test_quiet_says_nothing_but_the_paths(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    found = spectrum(tiny_llama, text, tmp_path, "-q")
    assert found.stderr == ""
    assert len(found.stdout.splitlines()) == 2


def test_gauss_newton_in_double_precision(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    found = spectrum(tiny_llama, text, tmp_path, "--operator", "ggn", "--precision", "float64", "--json", "--fresh")
    told = json.loads(found.stdout)
    assert told["operator"] == "ggn"
    # A Gauss–Newton matrix has no negative eigenvalue; float64 leaves 1e-10 of λ₁ for rounding.
    assert told["most_negative_eigenvalue"] > -1e-10 * told["eigenvalues"][0]


def test_a_second_opinion_that_there_is_none_of_is_refused_at_once(
    tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    found = spectrum(tiny_llama, text, tmp_path / "out", "--operator", "ggn", "--verify")
    assert found.exit_code == 2
    assert "expected a Hessian spectrum to verify, got ggn" in found.stderr
    assert "plan:" not in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_spectrum_outlives_its_second_opinion(
    tiny_llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lite_probe.spectra.verify_spectrum", interrupted)
        assert spectrum(tiny_llama, text, tmp_path / "out", "--verify").exit_code == 130
    saved = json.loads((tmp_path / "out" / "spectrum.json").read_text())
    assert saved["result"]["verification"] is None
    again = spectrum(tiny_llama, text, tmp_path / "out", "--verify")
    assert again.exit_code == 0, again.stderr
    after = json.loads((tmp_path / "out" / "spectrum.json").read_text())
    assert after["result"]["whole"] == saved["result"]["whole"]
    assert after["result"]["verification"] is not None


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from lite_probe.criteria import squared_error\n"
        "from lite_probe.task import Task, TaskInfo\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    x, y = torch.randn(32, 3), torch.randn(32, 1)\n"
        "    def loss(outputs, batch):\n"
        "        return ((outputs - batch[1]) ** 2).sum(), len(batch[1])\n"
        "    return Task(model=torch.nn.Linear(3, 1), predict=lambda m, b: m(b[0]), criterion=loss,\n"
        "                evaluation=[(x, y)], info=TaskInfo(name='mine', data_name='noise', batch_size=32))\n"
    )
    found = run(
        "spectrum", "--task", f"{tmp_path / 'mine.py'}:build", "--out", tmp_path / "out", "--json", "--precision",
        "float64", "--top", "2", "--bottom", "1", "--probes", "2",
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    import torch

    torch.manual_seed(0)
    x = torch.cat([torch.randn(32, 3), torch.ones(32, 1)], dim=1).double()
    expected = torch.linalg.eigvalsh(2 * x.T @ x / 32).flip(0)
    assert told["eigenvalues"] == pytest.approx(expected[:2].tolist(), rel=1e-6)
    assert told["num_parameters"] == 4


def test_defaults_are_those_of_the_library() -> None:
    """One default, one place: what the command line says is what Python does."""
    from lite_probe.measurements.spectrum import measure_spectrum
    from lite_probe.task.build import make_task

    with click.Context(cli) as parent:
        shown = command.make_context("spectrum", ["ckpt.pt"], parent=parent).params
    shown.pop("device")  # the command line looks for an accelerator, the library waits to be told
    renamed = {"eval_batches": "batches"}
    for function in (make_task, measure_spectrum):
        for name, parameter in inspect.signature(function).parameters.items():
            option = renamed.get(name, name)
            if option in shown and parameter.default not in (inspect.Parameter.empty, None):
                assert shown[option] == parameter.default, name
