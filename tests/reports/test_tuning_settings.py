"""The recommended settings as text: a configuration file, a Python call and a command line, each of which is taken."""

import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import click
import pytest
from torch import nn

from lite_probe.commands.console import Terminal
from lite_probe.commands.main import cli
from lite_probe.commands.replay import ReplayMeasuring
from lite_probe.commands.replay import command as replay
from lite_probe.commands.tune import command as tune_command
from lite_probe.measurements.requests.optimizers import parse_learning_rates, parse_settings
from lite_probe.optim import make_optimizer, require_hyperparameters
from lite_probe.reports.sections.steps_settings import task_words
from lite_probe.reports.sections.tuning_settings import config_lines, optimizer_call, plain_settings, replay_command
from lite_probe.results.tuning import Tuning
from tests.reports.tuning_results import make_settings, make_tuning


@pytest.fixture(scope="module")
def tuning() -> Tuning:
    return make_tuning()


def asked_by(words: list[str]) -> ReplayMeasuring:
    with click.Context(cli) as parent:
        given = replay.make_context("replay", words, parent=parent).params
    return ReplayMeasuring.asked_for(Terminal(""), given)


def test_a_replay_accepts_the_command(tuning: Tuning) -> None:
    words = shlex.split(replay_command(tuning))
    assert words[:5] == ["lite-probe", "replay", "my runs/ckpt.pt", "--data=val.bin", "--seq-len"]
    one = asked_by(words[2:])
    assert one.request.names == ("muon", "muon-lite")
    assert one.request.rates == {"muon": 0.0078, "muon-lite": 0.0078}
    assert one.request.hyperparameters == {"muon-lite": make_settings(tuning.tuned)}
    require_hyperparameters("muon-lite", one.request.hyperparameters["muon-lite"])
    one.vet()


def test_a_replay_accepts_the_configuration_file(tuning: Tuning, tmp_path: Path) -> None:
    path = tmp_path / "lite-probe.toml"
    path.write_text(config_lines(tuning))
    one = asked_by(["ckpt.pt", "--data", "val.bin", "--config", str(path)])
    assert one.request.names == ("muon", "muon-lite")
    assert one.request.rates == {"muon": 0.0078, "muon-lite": 0.0078}
    assert one.request.hyperparameters == {"muon-lite": make_settings(tuning.tuned)}
    one.vet()


def test_the_call_makes_the_optimizer(tuning: Tuning) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ffn = nn.Linear(8, 8, bias=False)

    def make(name: str, named: object, **asked: object) -> object:
        return make_optimizer(name, named, blocks={"ffn.weight": "ffn"}, **asked)  # type: ignore[arg-type]

    found: dict[str, object] = {"make_optimizer": make, "model": Model()}
    exec(optimizer_call(tuning), found)
    (group,) = found["optimizer"].param_groups  # type: ignore[attr-defined]
    assert (group["lr"], group["beta2"]) == (0.0078, 0.85)
    assert (group["flat_lr_ratio"]["ffn"], group["sharp_ratio"]["ffn"]) == (2.2, 0.1)


@pytest.mark.parametrize("name", ["it's", 'a"b\\', "line\nbreak", "naïve 🙂", "\x7f"])
def test_names_of_blocks_survive_every_form(tuning: Tuning, name: str) -> None:
    settings = {"flat_lr_ratio": {name: 2.0}}
    odd = replace(tuning, candidates={"muon-lite@tuned": settings})
    assert plain_settings(odd) == settings
    assert parse_settings(tomllib.loads(config_lines(odd))["set"]) == {"muon-lite": settings}
    words = shlex.split(replay_command(odd))
    assert parse_settings([words[words.index("--set") + 1]]) == {"muon-lite": settings}
    found: dict[str, object] = {"make_optimizer": lambda *_, **asked: asked, "model": nn.Linear(1, 1)}
    exec(optimizer_call(odd), found)
    assert found["optimizer"] == {"lr": 0.0078, **settings}


def test_empty_settings_are_left_out(tuning: Tuning) -> None:
    bare = replace(tuning, candidates={"muon-lite@tuned": {"beta2": 1.0, "flat_lr_ratio": {}, "sharp_ratio": {}}})
    assert plain_settings(bare) == {"beta2": 1.0}
    assert tomllib.loads(config_lines(bare))["set"] == ["muon-lite.beta2=1.0"]
    assert parse_learning_rates(tomllib.loads(config_lines(bare))["lr"]) == {"muon": 0.0078, "muon-lite": 0.0078}


def test_every_option_of_the_tuning_is_known() -> None:
    """One that is not would take the next word for the checkpoint."""
    for param in tune_command.params:
        if isinstance(param, click.Option) and not param.is_flag:
            (name, *_) = [one for one in param.opts if one.startswith("--")]
            kept = task_words(f"lite-probe tune ckpt.pt {name} value", "tune")
            assert kept in (["ckpt.pt"], ["ckpt.pt", name, "value"]), name


def test_a_command_of_another_kind_leaves_placeholders() -> None:
    found = make_tuning(command="lite-probe steps ckpt.pt --data val.bin")
    assert replay_command(found).startswith("lite-probe replay CKPT --data DATA --optimizers muon,muon-lite ")
