"""The command from end to end on tiny checkpoints: files, stdout, reuse, refusals, and several checkpoints at once."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from lite_probe.commands.console import Terminal
from lite_probe.commands.main import cli
from lite_probe.commands.subspace import SubspaceMeasuring, command
from lite_probe.measurements.requests.subspace import SubspaceRequest
from lite_probe.measurements.spectrum import SpectrumPlan
from lite_probe.measurements.subspace import SubspacePlan
from tests.commands.running import BATCH, SUBSPACE, run, subspace

pytestmark = pytest.mark.slow

Probed = tuple[Path, Result, Result]


@pytest.fixture(scope="module")
def both(
    tiny_llama: Path, other_llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("probe") / "both"
    return out, run("subspace", tiny_llama, other_llama, "--data", text, "--out", out, *BATCH, *SUBSPACE, "--json")


def test_stdout_is_the_paths_written(probed: Probed) -> None:
    out, found, _ = probed
    assert found.exit_code == 0, found.stderr
    assert found.stdout.splitlines() == [str(out / "report.html"), str(out / "subspace.json")]
    names = {path.name for path in out.iterdir()}
    assert names >= {"checkpoint.json", "spectrum.json", "subspace.json", "subspace.safetensors", "report.html"}
    assert not [name for name in names if name.endswith(".state")]


def test_the_eye_sees_one_headline_both_plans_the_tables_and_the_verdict(probed: Probed) -> None:
    said = probed[1].stderr
    lines = said.splitlines()
    assert [line.split(" · ")[0] for line in lines].count("huggingface") == 1
    assert lines[2].startswith("no spectrum in ")
    plans = [line for line in lines if line.startswith("plan: ")]
    assert "Hessian products" in plans[0]
    assert re.search(r"^plan: 10 sharp directions, ~\d+ Hessian products and 17 gradients", plans[1])
    for first in ("sharp directions", "10", "sharp subspace", "adamw-lite", "muon-lite", "soap-lite", "metric"):
        assert any(line.startswith(f"{first} ") and "  " in line for line in lines), first
    assert any("of the gradient's energy lies in the 10 sharpest of 10,800 directions" in line for line in lines)
    assert all(char.isprintable() or char == "\n" for char in said)


def test_the_page_shows_what_was_measured(probed: Probed) -> None:
    page = (probed[0] / "report.html").read_text()
    assert "gradient" in page
    assert "soap-lite" in page


def test_the_same_command_reuses_spectrum_and_result(run_folder: Path, tiny_llama: Path, text: Path) -> None:
    before = {name: (run_folder / name).read_bytes() for name in ("spectrum.json", "subspace.json")}
    found = subspace(tiny_llama, text, run_folder, "--json")
    assert found.exit_code == 0, found.stderr
    assert f"already measured: {run_folder / 'subspace.json'}; --fresh measures again" in found.stderr
    assert "no spectrum" not in found.stderr
    assert {name: (run_folder / name).read_bytes() for name in before} == before
    assert json.loads(found.stdout)["size"] == 10


def test_fresh_measures_again_on_the_same_spectrum_with_the_same_numbers(
    run_folder: Path, tiny_llama: Path, text: Path
) -> None:
    spectrum = (run_folder / "spectrum.json").read_bytes()
    first = json.loads(subspace(tiny_llama, text, run_folder, "--json").stdout)
    found = subspace(tiny_llama, text, run_folder, "--json", "--fresh")
    assert "already measured" not in found.stderr
    assert (run_folder / "spectrum.json").read_bytes() == spectrum
    second = json.loads(found.stdout)
    for name in ("gradient_share", "overlaps", "calibrations", "random_share"):
        assert first[name] == second[name], name


def test_other_options_reach_the_measurement(run_folder: Path, tiny_llama: Path, text: Path) -> None:
    found = subspace(tiny_llama, text, run_folder, "--json", "--size", 3, "--probes", 3, "--warm-batches", 5)
    assert "replacing" in found.stderr
    told = json.loads(found.stdout)
    assert (told["size"], told["num_probes"], told["num_warm_batches"]) == (3, 3, 5)
    assert "3 sharp directions" in found.stderr
    assert "and 21 gradients" in found.stderr


def test_the_json_object_of_one_checkpoint_is_an_object(run_folder: Path, tiny_llama: Path, text: Path) -> None:
    told = json.loads(subspace(tiny_llama, text, run_folder, "--json").stdout, parse_constant=pytest.fail)
    assert told["num_parameters"] == 10_800
    assert told["expected_share"] == 10 / 10_800
    assert set(told["calibrations"]) == {"adamw-lite", "muon-lite", "soap-lite"}
    assert set(told["calibrations"]["soap-lite"]["blocks"]) == {"emb", "qk", "vo", "ffn", "norm", "out"}


def test_a_foreign_spectrum_is_refused_before_anything_is_measured(
    run_folder: Path, tiny_llama: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SubspacePlan, "of", lambda *a, **k: pytest.fail("planned"))
    before = {path.name: path.stat().st_mtime_ns for path in run_folder.iterdir()}
    found = subspace(tiny_llama, text, run_folder, "--seed", 1)
    assert found.exit_code == 3
    assert found.stdout == ""
    assert "expected a spectrum of these evaluation batches" in found.stderr
    assert "--data, --seq-len, --batch-size, --batches and --seed; --fresh replaces it" in found.stderr
    assert {path.name: path.stat().st_mtime_ns for path in run_folder.iterdir()} == before


def test_fresh_replaces_a_foreign_spectrum(run_folder: Path, tiny_llama: Path, text: Path) -> None:
    found = subspace(tiny_llama, text, run_folder, "--seed", 1, "--fresh", "--probes", 2)
    assert found.exit_code == 0, found.stderr
    assert f"replacing {run_folder / 'spectrum.json'}: expected a spectrum of these evaluation batches" in found.stderr
    assert subspace(tiny_llama, text, run_folder, "--seed", 1).exit_code == 0


def test_a_dry_run_without_a_spectrum_plans_that(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    found = subspace(tiny_llama, text, tmp_path / "out", "--dry-run", "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    assert set(told) == {"spectrum"}
    assert told["spectrum"]["num_hvps"] > 0
    assert "can be planned once the spectrum is there" in found.stderr
    assert list(tmp_path.iterdir()) == []
    assert subspace(tiny_llama, text, tmp_path / "out", "--dry-run").stdout == ""


def test_a_dry_run_with_a_spectrum_says_the_plan_and_writes_nothing(
    run_folder: Path, tiny_llama: Path, text: Path
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run_folder.iterdir()}
    told = json.loads(subspace(tiny_llama, text, run_folder, "--dry-run", "--json").stdout)
    assert (told["size"], told["num_gradients"]) == (10, 17)
    assert told["num_hvps"] > 2
    # The state of a metric that is at work, or the ten sharp directions of both halves.
    assert told["scratch_bytes"] >= 2 * 10 * 4 * told["num_parameters"]
    assert told["scratch"] == told["directory"] == str(run_folder)
    assert told["fingerprint"] == json.loads((run_folder / "subspace.json").read_text())["result"]["fingerprint"]
    assert {path.name: path.stat().st_mtime_ns for path in run_folder.iterdir()} == before


def test_a_fresh_dry_run_on_a_foreign_spectrum_measures_nothing(
    run_folder: Path, tiny_llama: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpectrumPlan, "run", lambda *a, **k: pytest.fail("measured"))
    found = subspace(tiny_llama, text, run_folder, "--seed", 1, "--fresh", "--dry-run", "--json")
    assert found.exit_code == 0, found.stderr
    assert set(json.loads(found.stdout)) == {"spectrum"}


def test_several_checkpoints_have_a_folder_each_in_out(both: tuple[Path, Result]) -> None:
    out, found = both
    assert found.exit_code == 0, found.stderr
    assert sorted(path.name for path in out.iterdir()) == ["other", "tiny"]
    assert all((out / name / "subspace.json").is_file() for name in ("other", "tiny"))


def test_several_checkpoints_share_a_table(
    both: tuple[Path, Result], tiny_llama: Path, other_llama: Path, text: Path
) -> None:
    asked = ("subspace", tiny_llama, other_llama, "--data", text, "--out", both[0], *BATCH, *SUBSPACE)
    found = run(*asked, "--format", "csv", "--table", "gradient-energy")
    assert found.exit_code == 0, found.stderr
    rows = list(csv.DictReader(io.StringIO(found.stdout)))
    assert [row["checkpoint"] for row in rows] == ["tiny", "other"]
    assert [float(row["gradient's share"]) for row in rows] == [
        one["gradient_share"] for one in json.loads(both[1].stdout)
    ]


def test_the_later_checkpoint_is_compared_with_the_earlier(both: tuple[Path, Result]) -> None:
    first, second = json.loads(both[1].stdout)
    assert [one["kind"] for one in first["overlaps"]] == ["batches", "operators"]
    *_, last = second["overlaps"]
    assert (last["kind"], last["first"], last["second"]) == ("checkpoints", "tiny", "other")
    assert any(line.split()[:2] == ["tiny", "other"] for line in both[1].stderr.splitlines())


def test_what_a_dry_run_of_several_plans_is_what_is_measured(
    both: tuple[Path, Result], tiny_llama: Path, other_llama: Path, text: Path
) -> None:
    arguments = ("subspace", tiny_llama, other_llama, "--data", text, "--out", both[0], *BATCH, *SUBSPACE)
    planned = json.loads(run(*arguments, "--dry-run", "--json").stdout)
    measured = json.loads(both[1].stdout)
    assert [one["fingerprint"] for one in planned] == [one["fingerprint"] for one in measured]


def test_two_checkpoints_of_one_name_are_refused_before_the_first_is_measured(
    tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    found = run("subspace", tiny_llama, tiny_llama, "--data", text, "--out", tmp_path / "out", *BATCH)
    assert found.exit_code == 2
    assert re.search(r"expected checkpoints of different names, got tiny twice: .*tiny and .*tiny", found.stderr)
    assert "plan" not in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_later_checkpoint_that_is_none_is_refused_before_the_first_is_measured(
    tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    found = run("subspace", tiny_llama, tmp_path / "none.pt", "--data", text, "--out", tmp_path / "out", *BATCH)
    assert found.exit_code == 3
    assert "plan" not in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_later_checkpoint_of_another_model_is_refused_before_the_first_is_measured(
    tiny_llama: Path, wider_llama: Path, tmp_path: Path, text: Path
) -> None:
    found = run("subspace", tiny_llama, wider_llama, "--data", text, "--out", tmp_path / "out", *BATCH)
    assert found.exit_code == 3
    assert re.search(r"expected checkpoints of [\d,]+ parameters, as .*tiny has, got .*wider with", found.stderr)
    assert "plan" not in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_spectrum_that_comes_first_has_as_many_pairs_as_are_asked_for(
    tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    """A default one has ten, and a size of twelve was refused once it was paid for."""
    arguments = ("subspace", tiny_llama, "--data", text, "--out", tmp_path / "out", *BATCH, *SUBSPACE)
    found = run(*arguments, "--size", 12, "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["size"] == 12


def test_more_directions_than_the_spectrum_has_are_refused(run_folder: Path, tiny_llama: Path, text: Path) -> None:
    found = subspace(tiny_llama, text, run_folder, "--size", 11)
    assert found.exit_code == 2
    assert "expected a size of 1 to 10, the converged pairs of positive curvature, got 11" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "--size", "0"], "expected a whole number ≥ 1, got 0"),
        (["x", "--probes", "1"], "expected a whole number ≥ 2, got 1"),
        (["x", "--warm-batches", "1"], "expected a whole number ≥ 2, got 1"),
        ([], "expected either CKPT or --task, got neither"),
        (["x", "y", "--data", "d", "--task", "a.py:f"], "expected either CKPT or --task, got both"),
        (["x", "y"], "expected --data with a checkpoint, got none"),
    ],
)
def test_usage(arguments: list[str], said: str) -> None:
    found = run("subspace", *arguments)
    assert found.exit_code == 2
    assert said in found.stderr


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from lite_probe.criteria import squared_error\n"
        "from lite_probe.task import Task, TaskInfo\n"
        "def batch():\n"
        "    return torch.randn(32, 6), torch.randn(32, 4)\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False), torch.nn.Tanh(),\n"
        "                                torch.nn.Linear(5, 4, bias=False))\n"
        "    blocks = {'0.weight': 'ffn', '2.weight': 'out'}\n"
        "    from lite_probe.results.blocks import BlockPart\n"
        "    return Task(model=model, predict=lambda m, b: m(b[0]), criterion=squared_error, evaluation=[batch()],\n"
        "                train=[batch() for _ in range(6)], info=TaskInfo(name='mine', data_name='noise'),\n"
        "                blocks={name: (BlockPart(block),) for name, block in blocks.items()})\n"
    )
    found = run(
        "subspace", "--task", f"{tmp_path / 'mine.py'}:build", "--out", tmp_path / "out", "--json", *SUBSPACE,
        "--warm-batches", 50,
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["num_parameters"] == 50
    assert set(told["calibrations"]["muon-lite"]["blocks"]) == {"ffn", "out"}
    # It brings six batches where fifty were asked for, and is told so.
    assert any(note["code"] == "fewer-warm-batches" for note in told["notes"])
    assert not (tmp_path / "out" / "checkpoint.json").exists()


def test_quiet_says_nothing_but_the_paths(run_folder: Path, tiny_llama: Path, text: Path) -> None:
    found = subspace(tiny_llama, text, run_folder, "-q", "--fresh")
    assert found.stderr == ""
    assert len(found.stdout.splitlines()) == 2


def test_interrupted_it_says_that_it_continues(
    tiny_llama: Path, text: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SubspacePlan, "run", interrupted)
    found = subspace(tiny_llama, text, run_folder, "--fresh")
    assert found.exit_code == 130
    assert found.stderr.endswith("error: interrupted; the same command continues from what it saved last\n")


def test_the_file_in_the_working_directory_supplies_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lite-probe.toml").write_text('probes = 7\nwarm-batches = 9\ndata = "val.bin"\n')
    with click.Context(cli) as parent:
        arguments = ["early.pt", "elsewhere/late.pt", "--probes", "8"]
        given = command.make_context("subspace", arguments, parent=parent).params
    assert (given["probes"], given["warm_batches"], given["data_path"]) == (8, 9, "val.bin")


def test_defaults_are_those_of_the_library() -> None:
    with click.Context(cli) as parent:
        shown = command.make_context("subspace", ["ckpt.pt", "--data", "x"], parent=parent).params
    checkpoints = shown.pop("checkpoints")
    one = SubspaceMeasuring.asked_for(Terminal(""), {**shown, "checkpoint": checkpoints[0]})
    assert one.request == SubspaceRequest()
