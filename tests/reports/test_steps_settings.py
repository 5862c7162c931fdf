"""LITE's settings that follow from measured steps, and a command line that a replay accepts."""

import shlex

import click
import pytest

from lite_probe.commands.console import Terminal
from lite_probe.commands.main import cli
from lite_probe.commands.replay import ReplayMeasuring
from lite_probe.commands.replay import command as replay
from lite_probe.measurements.requests.optimizers import parse_settings
from lite_probe.optim import require_hyperparameters
from lite_probe.reports.sections.steps_settings import doubtful, implied_settings, replay_command, task_words
from lite_probe.reports.sections.steps_verdict import judge_ratios
from lite_probe.results.steps import OptimizerSteps, Steps
from tests.reports.steps_results import BLOCKS, Band, make_optimizer, make_steps


@pytest.fixture(scope="module")
def steps() -> Steps:
    return make_steps(command="lite-probe steps 'my runs/ckpt.pt' --data=val.bin --seq-len 64 -v --lr muon=0.0078")


def of(optimizers: dict[str, OptimizerSteps]) -> Steps:
    return make_steps(optimizers=optimizers)


def test_told_ratios_become_settings_of_the_lite_variant(steps: Steps) -> None:
    settings = implied_settings(steps)
    assert set(settings) == {"muon-lite", "soap-lite"}
    ratios, muon = judge_ratios(steps), settings["muon-lite"]
    # Flat directions of qk have no edge, so that its ratio is the least there is; those of out raise the loss, so that
    # LITE is off there.
    assert set(muon["flat_lr_ratio"]) == {"emb", "qk", "ffn", "out"}
    least = steps.optimizers["muon"].implied_ratio("qk")
    assert least is not None
    assert least.high is None
    assert muon["flat_lr_ratio"]["qk"] == pytest.approx(least.low, rel=0.02)
    for block in ("emb", "ffn"):
        assert muon["flat_lr_ratio"][block] == pytest.approx(ratios["muon", block].value + 1.0, rel=0.01)
    assert muon["flat_lr_ratio"]["out"] == 1.0
    assert muon["sharp_ratio"] == {"emb": 0.4, "ffn": 0.1}


def test_ratios_that_are_not_told_change_nothing() -> None:
    noisy = {"ffn": tuple(Band(name, 1e-2, 2.0, noise=0.4) for name in ("1–10%", "10–40%", "40–100%"))}
    found = of({"muon": make_optimizer("muon", blocks=noisy)})
    assert {claim.status for claim in judge_ratios(found).values()} == {"open"}
    assert implied_settings(found) == {}
    assert replay_command(found) == ""


def test_only_optimizers_with_a_lite_variant_have_settings() -> None:
    own = {"ffn": BLOCKS["ffn"]}
    found = of({name: make_optimizer(name, blocks=own) for name in ("sgd", "muon-lite", "adamw")})
    assert len(judge_ratios(found)) == 3
    assert set(implied_settings(found)) == {"adamw-lite"}


def test_a_block_without_a_sharp_band_keeps_the_share_that_is_called_sharp() -> None:
    # Every leading band has an optimum above half the flat one.
    own = {"ffn": (Band("1–10%", 1e-2, 2.0), Band("10–40%", 1e-2, 2.5), Band("40–100%", 1e-2, 3.0))}
    found = of({"muon": make_optimizer("muon", blocks=own)})
    assert implied_settings(found) == {"muon-lite": {"flat_lr_ratio": {"ffn": pytest.approx(1.5, abs=0.1)}}}


def test_a_replay_accepts_the_command(steps: Steps) -> None:
    words = shlex.split(replay_command(steps))
    assert words[:2] == ["lite-probe", "replay"]
    settings = parse_settings([words[at + 1] for at, word in enumerate(words) if word == "--set"])
    assert settings == implied_settings(steps)
    for name, own in settings.items():
        require_hyperparameters(name, own)
    with click.Context(cli) as parent:
        given = replay.make_context("replay", words[2:], parent=parent).params
    one = ReplayMeasuring.asked_for(Terminal(""), given)
    assert one.request.names == ("muon", "muon-lite", "soap", "soap-lite")
    assert one.request.rates == dict.fromkeys(one.request.names, 2.0**-7)
    assert one.request.hyperparameters == settings
    assert (one.asked.checkpoint, one.asked.data_path, one.asked.seq_len) == ("my runs/ckpt.pt", "val.bin", 64)
    one.vet()


def test_bounds_of_hyperparameters_are_kept() -> None:
    """A ratio below 1 that is told is one: LITE takes none below."""
    own = {"ffn": (Band("1–10%", 1e-2, 6.0), Band("10–40%", 1e-2, 2.0), Band("40–100%", 1e-2, 2.0))}
    found = of({"muon": make_optimizer("muon", blocks=own)})
    assert [claim.status for claim in judge_ratios(found).values()] == ["fails"]
    assert implied_settings(found) == {"muon-lite": {"flat_lr_ratio": {"ffn": 1.0}}}
    require_hyperparameters("muon-lite", implied_settings(found)["muon-lite"])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("lite-probe steps ckpt.pt --data val.bin --optimizers muon --lr 0.1", ["ckpt.pt", "--data", "val.bin"]),
        (
            "lite-probe steps --data val.bin -q --step-batches 64 --critical-only --relative o.txt --out run ckpt.pt",
            ["--data", "val.bin", "--out", "run", "ckpt.pt"],
        ),
        (
            "lite-probe steps ckpt.pt --data=val.bin --lr=0.1 --json --fresh --seed 3 --trust-pickle --state cold",
            ["ckpt.pt", "--data=val.bin", "--seed", "3", "--trust-pickle", "--state", "cold"],
        ),
        ("lite-probe steps --task mine.py:build --set muon.momentum=0.9", ["--task", "mine.py:build"]),
        ("measure_steps(task)", ["CKPT", "--data", "DATA"]),
        ("", ["CKPT", "--data", "DATA"]),
        ("lite-probe steps 'ckpt", ["CKPT", "--data", "DATA"]),
        ("lite-probe demo", ["CKPT", "--data", "DATA"]),
    ],
)
def test_the_task_is_that_of_the_command_that_measured(command: str, words: list[str]) -> None:
    assert task_words(command, "steps") == words


def test_every_option_of_the_measurement_is_known() -> None:
    """One that is not would take the next word for the checkpoint."""
    from lite_probe.commands.steps import command as steps_command

    for param in steps_command.params:
        if isinstance(param, click.Option) and not param.is_flag:
            (name, *_) = [one for one in param.opts if one.startswith("--")]
            kept = task_words(f"lite-probe steps ckpt.pt {name} value", "steps")
            assert kept in (["ckpt.pt"], ["ckpt.pt", name, "value"]), name


def test_ratios_whose_edge_is_nearer_are_doubtful(steps: Steps) -> None:
    assert doubtful(steps) == (
        "Along non-sharp directions the edge is nearer than curvature says in ffn under muon and in ffn under soap: "
        "less may be better there."
    )
    held = of({"muon": make_optimizer("muon", blocks={"emb": BLOCKS["emb"]})})
    assert implied_settings(held)
    assert doubtful(held) == ""
