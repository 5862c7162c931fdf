"""The comparison: its grids find the best learning rate, its errors are those of paired runs, and it continues."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from examples import compare_optimizers
from examples.compare_optimizers import (
    HYPERPARAMETERS,
    Estimate,
    Outcome,
    Results,
    Run,
    Setting,
    grid,
    main,
    sweep_table,
    table,
    to_come,
)
from lite_probe.errors import UsageError
from lite_probe.training import train_byte_llama

pytestmark = pytest.mark.slow

SETTING = Setting(steps=4, batch_size=2, seq_len=16, hidden=32, layers=1, eval_batches=2)


def made(loss: Callable[[Run], float], optimizers: list[str], seeds: int = 3) -> dict[Run, Outcome]:
    """Do what `compare` does, with losses from a formula."""
    outcomes: dict[Run, Outcome] = {}
    while asked := to_come(outcomes, optimizers, seeds):
        outcomes[asked[0]] = Outcome(loss=loss(asked[0]), seconds=2.0)
        assert len(outcomes) < 200
    return outcomes


@pytest.mark.parametrize("best", [-14, -9, -8, -7, -3])
def test_a_grid_grows_until_its_best_has_neighbours(best: int) -> None:
    outcomes = made(lambda run: 2.0 + (run.exponent - best) ** 2 + 0.1 * run.seed, ["muon"])
    assert grid(outcomes, "muon", 3) == list(range(min(best - 1, -8), max(best + 1, -7) + 1))
    assert len(outcomes) == 3 * len(grid(outcomes, "muon", 3)), "no run was made for nothing"


def test_a_learning_rate_is_judged_by_all_seeds() -> None:
    """At 2^-8 one seed is lucky and another diverges."""
    losses = {-8: (0.1, math.inf, 2.0)}
    outcomes = made(lambda run: losses.get(run.exponent, (2.0 + abs(run.exponent + 7),) * 3)[run.seed], ["soap"])
    assert "| soap | 2^-7 = 0.0078 | 2.0000 ± 0.0000 |" in table(outcomes, ["soap"], 3)
    assert "| diverged |" in sweep_table(outcomes, ["soap"], 3)


def test_an_optimizer_that_diverges_everywhere_is_tried_lower() -> None:
    outcomes = made(lambda run: math.inf if run.exponent > -12 else 3.0 - run.exponent / 100, ["adamw"])
    assert grid(outcomes, "adamw", 3) == list(range(-13, -6))


def test_an_estimate_has_the_standard_error_of_the_mean() -> None:
    estimate = Estimate.of([1.0, 2.0, 4.5])
    # Deviations −1.5, −0.5, 2: a sum of squares of 6.5 over n − 1 = 2, and over n = 3.
    assert (estimate.mean, estimate.stderr) == (2.5, pytest.approx(math.sqrt(6.5 / 2 / 3), rel=1e-15))
    assert str(Estimate.of([1.0, math.inf])) == "diverged"


def test_the_table_pairs_runs_of_one_seed() -> None:
    """Seeds differ by 1, optimizers by less: only paired differences see it."""
    ahead = {"adamw": (0.0, 0.0, 0.0), "muon": (0.25, 0.25, 0.25), "muon-lite": (0.25, 0.5, 0.75)}
    outcomes = made(lambda run: 4 + run.seed - ahead[run.optimizer][run.seed] + abs(run.exponent + 8), list(ahead))
    assert table(outcomes, list(ahead), 3).splitlines()[2:] == [
        "| adamw | 2^-8 = 0.0039 | 5.0000 ± 0.5774 | – | – | 2 |",
        "| muon | 2^-8 = 0.0039 | 4.7500 ± 0.5774 | -0.2500 ± 0.0000 | – | 2 |",
        "| muon-lite | 2^-8 = 0.0039 | 4.5000 ± 0.4330 | -0.5000 ± 0.1443 | -0.2500 ± 0.1443 | 2 |",
    ]
    assert sweep_table(outcomes, ["adamw"], 3).splitlines() == [
        "| optimizer | 2^-9 | 2^-8 | 2^-7 |",
        "| --- | --- | --- | --- |",
        "| adamw | 6.0000 ± 0.5774 | 5.0000 ± 0.5774 | 6.0000 ± 0.5774 |",
    ]
    alone = table(made(lambda run: 4.0 + abs(run.exponent + 8), ["soap-lite"]), ["soap-lite"], 3)
    assert alone.splitlines()[2].endswith("| – | – | 2 |"), "nothing to compare with"


def test_results_survive_and_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    results = Results(path, SETTING)
    runs = [Run(optimizer="soap", exponent=-9, seed=seed) for seed in (0, 1)]
    results.add(runs[0], Outcome(loss=2.5, seconds=1.5))
    results.add(runs[1], Outcome(loss=math.inf, seconds=0.5))
    assert Results(path, SETTING).outcomes == results.outcomes
    assert [child.name for child in path.parent.iterdir()] == ["results.json"]
    longer = Setting(steps=5, batch_size=2, seq_len=16, hidden=32, layers=1, eval_batches=2)
    with pytest.raises(UsageError, match=r"expected the results of .*'steps': 5.* got those of .*'steps': 4.*; choose"):
        Results(path, longer)


def test_the_docstrings_command_ends_with_the_same_numbers_when_it_was_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = next(line for line in (compare_optimizers.__doc__ or "").splitlines() if "python " in line)
    command = [*line.split()[2:], "--out", str(tmp_path)]
    assert main(command) == 0
    first = capsys.readouterr()
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert first.err.count("more runs\n") == len(results["runs"]) >= 2 * 2 * 2

    lost = results["runs"].pop(1)
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    assert main(command) == 0
    second = capsys.readouterr()
    assert second.err.count("more runs\n") == 1
    losses = [[row.split("|")[1:6] for row in text.splitlines()[:4]] for text in (first.out, second.out)]
    assert losses[0] == losses[1]

    # What a process of one thread found is what the library finds with one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    record = train_byte_llama(
        tmp_path,
        optimizer=lost["optimizer"],
        hyperparameters=HYPERPARAMETERS,
        learning_rate=2.0 ** lost["exponent"],
        steps=4,
        save_at=(),
        eval_batches=4,
        seed=lost["seed"],
        hidden=32,
        layers=4,
        heads=1,
        batch_size=8,
    )
    torch.set_num_threads(threads)
    assert lost["loss"] == record.evaluation_losses[-1]


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: expected --seeds ≥ 2, for a standard error, got 1\n"
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file")]) == 6
    expected = f"error: expected to write {tmp_path / 'file'}, got File exists; choose another --out\n"
    assert capsys.readouterr().err == expected
