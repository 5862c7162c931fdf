"""`compare` from end to end: checkpoints measured, run directories read, refusals, thresholds and their exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import lite_probe as lp
from lite_probe.commands.console import Terminal
from lite_probe.reports.sections.section import describe
from tests.commands.running import BATCH, on_screen, run, without_styles
from tests.reports.compared import make_comparison, make_results

SEGMENT = ("--steps", "3", "--seeds", "2", "--warm-batches", "4", "--step-batches", "16", "--lr", "0.01")
MINE = "import torch\n\n\ndef make_mine(named, lr):\n    return torch.optim.SGD([p for _, p in named], lr=lr)\n"

Compared = tuple[Path, Path, Result]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "mine.py"
    path.write_text(MINE)
    return path


@pytest.fixture(scope="module")
def compared(
    tiny_llama: Path, other_llama: Path, text: Path, mine: Path, tmp_path_factory: pytest.TempPathFactory
) -> Compared:
    """Two checkpoints under four optimizers, one of them a function of the user's."""
    out = tmp_path_factory.mktemp("probe") / "compare"
    return out, mine, compare(tiny_llama, other_llama, text, mine, out, "--json")


def compare(first: Path, second: Path, text: Path, mine: Path, out: Path, *more: object) -> Result:
    names = f"muon,muon-lite,torch.AdamW,{mine}:make_mine"
    asked = ("--data", text, "--out", out, "--optimizers", names, *BATCH, *SEGMENT)
    return run("compare", first, second, *asked, *more)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories `early` and `late`, and one of another segment, `apart`."""
    root = tmp_path_factory.mktemp("saved")
    asked: dict[str, tuple[int, dict[str, Any]]] = {
        "early": (100, {}),
        "late": (200, {"gains": {"soap": 1e-3}}),
        "apart": (300, {"seeds": 2}),
    }
    for name, (step, changes) in asked.items():
        for result in make_results(name, step, **changes).values():
            lp.save(result, root / name)
    return root


@pytest.mark.slow
def test_measures_every_checkpoint_and_agrees_with_the_single_runs(compared: Compared) -> None:
    out, _, result = compared
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert json.loads((out / "comparison.json").read_text()) == printed
    assert [one["name"] for one in printed["checkpoints"]] == ["tiny", "other"]
    for found in printed["checkpoints"]:
        assert list(found["optimizers"]) == ["muon", "muon-lite", "torch.AdamW", "make_mine"]
        replay = describe("replay", lp.load(out / found["name"], "replay"))
        for name, one in found["optimizers"].items():
            for quantity in ("loss_change", "flat_progress", "sharp_progress", "isotropy"):
                assert one[quantity] == replay["optimizers"][name][quantity]
        steps = describe("steps", lp.load(out / found["name"], "steps"))
        assert list(steps["optimizers"]) == ["muon", "muon-lite"]  # lite-probe's own
        spectrum = lp.load(out / found["name"], "spectrum")
        assert found["landscape"]["lambda_1"]["value"] == spectrum.eigenvalues[0]
    assert "Comparison" in (out / "compare.html").read_text()


@pytest.mark.slow
def test_says_which_checkpoint_of_how_many_and_ends_with_the_comparison(compared: Compared) -> None:
    lines = compared[2].stderr.splitlines()
    places = [line.partition(":")[0] for line in lines if line.startswith("checkpoint ")]
    assert places == ["checkpoint 1 of 2", "checkpoint 2 of 2", *places[2:]]
    rows = [line.split() for line in lines if line.startswith(("tiny ", "other "))]
    assert len(rows) >= 8
    assert not any(line.startswith("After 3 steps") for line in lines)  # the single runs' verdicts


@pytest.mark.slow
def test_reuses_what_is_there(compared: Compared, tiny_llama: Path, other_llama: Path, text: Path) -> None:
    out, mine, first = compared
    again = compare(tiny_llama, other_llama, text, mine, out, "--json")
    assert again.exit_code == 0, again.stderr
    assert again.stderr.count("already measured: ") == 4  # replay and steps of two checkpoints
    assert json.loads(again.stdout) == json.loads(first.stdout)


@pytest.mark.slow
def test_says_what_it_would_measure(
    tiny_llama: Path, other_llama: Path, text: Path, mine: Path, tmp_path: Path
) -> None:
    result = compare(tiny_llama, other_llama, text, mine, tmp_path / "out", "--dry-run", "--json", "--no-steps")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert [one["checkpoint"] for one in printed["checkpoints"]] == [str(tiny_llama), str(other_llama)]
    assert all(one["replay"]["spectrum"]["num_hvps"] > 0 and "steps" not in one for one in printed["checkpoints"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_refuses_before_it_measures(
    tiny_llama: Path, wider_llama: Path, other_llama: Path, text: Path, mine: Path, tmp_path: Path
) -> None:
    wider = compare(tiny_llama, wider_llama, text, mine, tmp_path / "out")
    assert wider.exit_code == 3
    assert "error: expected checkpoints of one model, got numbers of parameters 10,800 in " in wider.stderr
    wrong = compare(tiny_llama, other_llama, text, mine, tmp_path / "out", "--fail-if", "soap.loss_change > 0")
    assert wrong.exit_code == 2
    assert "got 'soap'" in wrong.stderr
    assert "there are muon, muon-lite, torch.AdamW, make_mine" in wrong.stderr
    twice = compare(tiny_llama, tiny_llama / "." / "", text, mine, tmp_path / "out")
    assert twice.exit_code == 2
    assert "error: expected every checkpoint once, got " in twice.stderr
    nothing = run("compare", tmp_path / "gone")
    assert nothing.exit_code == 3
    assert "expected a checkpoint or a run directory at" in nothing.stderr
    no_data = run("compare", tiny_llama)
    assert no_data.exit_code == 2
    assert "expected --data with a checkpoint" in no_data.stderr
    assert not (tmp_path / "out").exists()


def test_reads_run_directories(saved: Path, tmp_path: Path) -> None:
    result = run("compare", saved / "late", saved / "early", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [str(tmp_path / "compare.html"), str(tmp_path / "comparison.json")]
    first = result.stderr.splitlines()[0]
    assert first.startswith("muon-lite ends lowest at early, below muon, soap and soap-lite; soap ends lowest at late")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.html", "comparison.json"]


def test_loads_nothing_heavy_for_run_directories(saved: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom lite_probe.commands.main import cli\n"
        f"try:\n    cli.main({['compare', str(saved / 'early'), str(saved / 'late'), '--out', str(tmp_path)]!r})\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_refuses_another_segment(saved: Path, tmp_path: Path) -> None:
    result = run("compare", saved / "early", saved / "apart", "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert "seeds of the replay: 4 at early, 2 at apart" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("texts", "code", "said"),
    [
        (
            ["muon-lite.loss_change > muon.loss_change"],
            0,
            "threshold kept: muon-lite.loss_change > muon.loss_change at late",
        ),
        (
            ["muon.loss_change > muon-lite.loss_change"],
            5,
            "error: expected no threshold of --fail-if to be missed, got 2 of 2: muon.loss_change > "
            "muon-lite.loss_change at early; muon.loss_change > muon-lite.loss_change at late",
        ),
        (["soap@late.loss_change > muon-lite.loss_change", "spectrum.lambda_1 > 1e3"], 0, "threshold kept"),
        (["spectrum.lambda_1 > 30", "muon.edge_ratio > 1"], 5, "got 2 of 4: spectrum.lambda_1 > 30 at early; "),
        (
            ["muon@late.loss_change > muon@early.loss_change"],
            0,
            "threshold open, which does not fail: muon@late",
        ),
        (["muon.loss > 1"], 2, "there are loss_change, flat_progress"),
    ],
)
def test_thresholds_have_their_exit_codes(saved: Path, tmp_path: Path, texts: list[str], code: int, said: str) -> None:
    asked = [part for text in texts for part in ("--fail-if", text)]
    result = run("compare", saved / "early", saved / "late", "--out", tmp_path / "out", *asked)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert (tmp_path / "out" / "comparison.json").exists() == (code != 2)


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    from lite_probe.reports.sections.comparison import summarize_comparison

    terminal, screen = on_screen(monkeypatch, width)
    assert isinstance(terminal, Terminal)
    terminal.show(summarize_comparison(make_comparison()))
    lines = [without_styles(line) for line in screen.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


def test_prints_its_tables(saved: Path, tmp_path: Path) -> None:
    asked = ("compare", saved / "early", saved / "late", "--out", tmp_path)
    result = run(*asked, "--format", "csv", "--table", "comparison")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "checkpoint,optimizer,standing,loss change (nats)," in "\n".join(lines[:2])
    assert len([line for line in lines if line.startswith(("early,", "late,"))]) == 8
    assert run(*asked, "--format", "md", "--table", "x").exit_code == 2
