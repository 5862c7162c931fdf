"""Hyperparameters of saved groups: read under our names, refused where they are none, told where they differ."""

from typing import Any

import pytest
import torch

from lite_probe.errors import InputError, UsageError
from lite_probe.optim import make_optimizer
from tests.optim.test_restoring import adam, make_parameters, restore, single

UP = "model.layers.0.mlp.up_proj.weight"
BUFFER = {"momentum_buffer": torch.ones(16, 8)}
ADAMW = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-7, "weight_decay": 0.2, "decoupled_weight_decay": True}


def taken(
    name: str, values: dict[str, Any], group: dict[str, Any], **given: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """Restore one matrix; return its group's hyperparameters, and the notes by code."""
    parameters = make_parameters()
    optimizer = make_optimizer(name, parameters.items(), lr=1e-3, **given)
    restored = restore(optimizer, single(values, UP, **group), parameters)
    (own,) = [one for one in optimizer.param_groups if UP in one["param_names"]]
    return own, {note.code: note.message for note in restored.notes}


def test_only_the_restored_parameter_gets_the_saved_hyperparameters() -> None:
    own, notes = taken("adamw", adam(), ADAMW)
    assert (own["adamw_beta1"], own["adamw_beta2"], own["eps"], own["weight_decay"]) == (0.8, 0.9, 1e-7, 0.2)
    assert own["eps_after_correction"] is True
    assert own["param_names"] == [UP]  # of the two in its block
    assert notes == {
        "optimizer-hyperparameters": "adamw goes on under the saved hyperparameters: adamw_beta1 0.8 instead of 0.9; "
        "adamw_beta2 0.9 instead of 0.99; eps_after_correction true instead of false; eps 1e-07 instead of 1e-08; "
        "weight_decay 0.2 instead of 0.1."
    }


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ({"adjust_lr_fn": None, "ns_steps": 4}, {"lr_scale": "original", "ns_steps": 4, "ns_coefficients": "quintic"}),
        ({"adjust_lr_fn": "match_rms_adamw"}, {"lr_scale": "match-rms-adamw", "ns_steps": 5}),
        ({"use_muon": True, "weight_decay": 0.3}, {"lr_scale": "original", "ns_steps": 5, "weight_decay": 0.3}),
        ({"adamw_betas": (0.9, 0.95), "wd": 0.3, "ns_steps": 5}, {"lr_scale": "match-rms-adamw", "weight_decay": 0.3}),
    ],
    ids=["torch", "torch, Moonlight's rule", "K. Jordan", "Moonlight"],
)
def test_published_muons(group: dict[str, Any], values: dict[str, Any]) -> None:
    own, _ = taken("muon", BUFFER, {"momentum": 0.8, **group})
    assert {key: own[key] for key in ("momentum", *values)} == {"momentum": 0.8, **values}


def test_what_was_not_saved_is_said() -> None:
    _, notes = taken("adamw", adam(), {})
    assert notes["optimizer-hyperparameters-unsaved"] == (
        "The saved state does not tell all; adamw's own are: adamw_beta1 0.9; adamw_beta2 0.99; eps 1e-08; "
        "weight_decay 0.1."
    )
    _, notes = taken("muon", BUFFER, {"momentum": 0.8, "weight_decay": 0.1, "ns_steps": 5})
    assert notes["optimizer-hyperparameters-unsaved"].endswith("muon's own are: lr_scale match-rms-adamw.")


@pytest.mark.parametrize(
    ("name", "values", "group", "departure"),
    [
        ("adamw", adam(), {**ADAMW, "decoupled_weight_decay": False}, "weight decay was added to the gradient (Adam)"),
        (
            "adamw",
            adam(),
            {"betas": (0.9, 0.9), "weight_decay": 0.1},
            "whether weight decay acted on the weights was not",
        ),
        ("adamw", adam(), {**ADAMW, "correct_bias": False}, "moments were not corrected for their bias"),
        ("muon", BUFFER, {"momentum": 0.9, "adjust_lr_fn": "other"}, "scaled by a rule that is not known here"),
        (
            "sgd",
            BUFFER,
            {"momentum": 0.9, "dampening": 0.0, "weight_decay": 0.1},
            "weight decay was added to the gradient",
        ),
        (
            "sgd",
            BUFFER,
            {"momentum": 0.9, "dampening": 0.0, "nesterov": True},
            "momentum was Nesterov's, here it is not",
        ),
    ],
)
def test_what_ours_does_otherwise_is_said(name: str, values: Any, group: dict[str, Any], departure: str) -> None:
    _, notes = taken(name, values, group)
    assert departure in notes["optimizer-departures"]


def test_groups_with_rates_of_their_own_are_said() -> None:
    parameters = make_parameters()
    groups = [{"params": [p], "lr": 0.1 if p.ndim > 1 else 0.02} for p in parameters.values()]
    optimizer = torch.optim.AdamW(groups)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    restored = restore(make_optimizer("adamw", parameters.items(), lr=1.0), [optimizer.state_dict()], parameters)
    (message,) = [note.message for note in restored.notes if note.code == "optimizer-rates"]
    assert message == "The saved groups had different learning rates (0.1, 0.02); here all parameters take one."


@pytest.mark.parametrize(
    ("name", "values", "group", "message"),
    [
        ("adamw", adam(), {"betas": (0.9, 1.0)}, r"expected a number in \[0, 1\) as betas of .*, got 1;"),
        ("adamw", adam(), {"betas": 0.9}, "expected two numbers as betas of .*, got float"),
        ("adamw", adam(), {"betas": (0.9, "0.99")}, "expected a number as betas of .*, got str"),
        ("adamw", adam(), {"eps": float("nan")}, "expected a finite number as eps of .*, got nan"),
        ("adamw", adam(), {"eps": "1e-8"}, "expected a number as eps of .*, got str"),
        ("adamw", adam(), {"weight_decay": -1.0}, r"expected a number in \[0, 1e12\] as weight_decay of .*, got -1"),
        ("adamw", adam(), {"weight_decay": torch.ones(2)}, "expected a number as weight_decay of .*, got Tensor"),
        ("adamw", adam(), {"lr": "0.1"}, "expected a number as lr of a parameter group .*, got str"),
        ("muon", BUFFER, {"momentum": 1.0}, r"expected a number in \[0, 1\) as momentum of .*, got 1;"),
        (
            "muon",
            BUFFER,
            {"momentum": 0.9, "ns_steps": 2.5},
            r"expected a whole number in \[1, 100\] as ns_steps of .*, got 2.5",
        ),
    ],
)
def test_hyperparameters_that_are_none_are_refused_and_change_nothing(
    name: str, values: Any, group: dict[str, Any], message: str
) -> None:
    parameters = make_parameters()
    optimizer = make_optimizer(name, parameters.items(), lr=1e-3)
    before = [dict(one) for one in optimizer.param_groups]
    with pytest.raises(InputError, match=message):
        restore(optimizer, single(values, UP, **group), parameters)
    assert [dict(one) for one in optimizer.param_groups] == before
    assert not optimizer.state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ns_coefficients": []}, "expected one of polar-express, quintic as ns_coefficients of .*, got list"),
        ({"lr_scale": "other"}, "expected one of match-rms-adamw, original as lr_scale of .*, got str"),
        ({"flat_lr_ratio": {"nowhere": 2.0}}, "expected numbers by block as flat_lr_ratio of .*, got dict"),
        ({"sharp_ratio": {"ffn": 2.0}}, r"expected a number in \[0, 1\] as sharp_ratio of .*, got 2"),
    ],
)
def test_hyperparameters_of_our_own_are_checked_too(change: dict[str, Any], message: str) -> None:
    parameters = make_parameters()
    optimizer = make_optimizer("muon-lite", parameters.items(), lr=1e-3)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = optimizer.state_dict()
    state["param_groups"] = [{**group, **change} for group in state["param_groups"]]
    with pytest.raises(InputError, match=message):
        restore(optimizer, [state], parameters)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr_scale": "other"}, "expected lr_scale among match-rms-adamw, original, got 'other'"),
        ({"lr_scale": []}, r"expected lr_scale among .*, got \[\]"),
        ({"eps_after_correction": 1}, "expected eps_after_correction to be True or False, got 1"),
    ],
)
def test_rules_that_do_not_exist(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_optimizer("muon", make_parameters().items(), lr=0.1, **given)
