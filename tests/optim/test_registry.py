"""What a spec may be, who is registered, and what saved states an optimizer from outside goes on from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lite_probe.errors import InputError, UsageError
from lite_probe.measurements.replay import replay
from lite_probe.measurements.requests.subspace import SubspaceRequest
from lite_probe.optim import (
    OPTIMIZERS,
    Bounds,
    Hyperparameter,
    ImportedState,
    OptimizerSpec,
    band_optimizers,
    default_proxies,
    hyperparameters_of,
    linear_recipes,
    make_optimizer,
    register_optimizer,
    restore_state,
    unregister_optimizer,
)
from tests.optim.test_toy_optimizer import SETTINGS, TOY, Halved
from tests.oracles import matrix_with
from tests.replays.conftest import quadratic_task, spectrum_of

THETA = Hyperparameter(default=0.5, bounds=Bounds(0.0, 1.0, "[0, 1]"))


@pytest.fixture
def registered() -> Iterator[Callable[[OptimizerSpec], OptimizerSpec]]:
    before = list(OPTIMIZERS)

    def register(spec: OptimizerSpec) -> OptimizerSpec:
        register_optimizer(spec)
        return spec

    yield register
    for name in reversed([name for name in OPTIMIZERS if name not in before]):
        unregister_optimizer(name)


def test_ours() -> None:
    assert tuple(OPTIMIZERS) == ("adamw", "adamw-lite", "muon", "muon-lite", "soap", "soap-lite", "sgd", "samuon")
    assert {name: spec.base for name, spec in OPTIMIZERS.items() if spec.base} == {
        "adamw-lite": "adamw",
        "muon-lite": "muon",
        "soap-lite": "soap",
        "samuon": "muon",
    }
    assert band_optimizers() == ("adamw", "muon", "soap")
    assert default_proxies() == ("adamw-lite", "muon-lite", "soap-lite")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hyperparameters": {**SETTINGS, "theta": replace(THETA, default=2.0)}},
            r"theta in \[0, 1\], got 2.0, as the",
        ),
        ({"hyperparameters": {**SETTINGS, "theta": replace(THETA, default=True)}}, r"theta in \[0, 1\], got True"),
        (
            {"hyperparameters": {**SETTINGS, "theta": replace(THETA, bounds=Bounds(1.0, 0.0, "[1, 0]"))}},
            "expected bounds of theta of toy from low to high, got 1 and 0",
        ),
        (
            {"hyperparameters": {**SETTINGS, "rule": Hyperparameter(default="c", choices=("a", "b"))}},
            "expected rule among a, b, got 'c', as the default of toy",
        ),
        ({"hyperparameters": {"theta": THETA}}, "expected a hyperparameter weight_decay of toy, got none"),
        ({"geometries": ()}, "expected one geometry of toy, or several and choose_geometry, got 0"),
        ({"geometries": (Halved(), Halved())}, "expected one geometry of toy, .*, got 2"),
        ({"name": "My Toy"}, "expected lowercase letters and digits, .*, got 'My Toy'"),
    ],
)
def test_a_wrong_spec_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(TOY, **change)


def test_names_are_unique_and_bases_known() -> None:
    with pytest.raises(UsageError, match="expected a name that no optimizer has, got 'sgd'"):
        register_optimizer(replace(TOY, name="sgd"))
    with pytest.raises(UsageError, match=r"expected an optimizer among adamw, .*, got 'toy'"):
        register_optimizer(replace(TOY, name="toy-lite", base="toy"))
    with pytest.raises(UsageError, match=r"expected an optimizer among adamw, .*, got 'toy'"):
        unregister_optimizer("toy")
    assert "toy-lite" not in OPTIMIZERS


def test_what_a_user_may_set(registered: Callable[[OptimizerSpec], OptimizerSpec]) -> None:
    registered(replace(TOY, hyperparameters={**SETTINGS, "hidden": Hyperparameter(default=3, is_settable=False)}))
    assert hyperparameters_of("toy") == {"theta": 0.5, "weight_decay": 0.0}
    weight = nn.Parameter(torch.zeros(2))
    assert make_optimizer("toy", [("w", weight)], lr=1.0).param_groups[0]["hidden"] == 3
    with pytest.raises(UsageError, match="expected hyperparameters of toy among lr, theta, weight_decay, got hidden"):
        make_optimizer("toy", [("w", weight)], lr=1.0, hidden=4)


def test_defaults_are_handed_out_as_copies() -> None:
    hyperparameters_of("muon-lite")["flat_lr_ratio"]["emb"] = 9.0
    assert hyperparameters_of("muon-lite")["flat_lr_ratio"]["emb"] == 4.0


def test_a_variant_is_told_of(registered: Callable[[OptimizerSpec], OptimizerSpec]) -> None:
    registered(TOY)
    registered(replace(TOY, name="toy-lite", base="toy", hyperparameters={**SETTINGS, "beta2": THETA}))
    with pytest.raises(UsageError, match="got beta2; use toy-lite for those of LITE"):
        make_optimizer("toy", [("w", nn.Parameter(torch.zeros(2)))], lr=1.0, beta2=1.0)


def test_without_a_theory_there_are_no_recipes(registered: Callable[[OptimizerSpec], OptimizerSpec]) -> None:
    registered(replace(TOY, linear=None))
    with pytest.raises(UsageError, match=r"expected an optimizer that has a linear theory, adamw, .*, got 'toy'"):
        linear_recipes("toy", (3,), block="norm", lr=1.0)


def test_its_traits_are_asked_for(registered: Callable[[OptimizerSpec], OptimizerSpec]) -> None:
    registered(replace(TOY, orders_bands=True, is_default_proxy=True))
    assert band_optimizers()[-1] == default_proxies()[-1] == "toy"
    matrix = matrix_with([4.0, 2.0, 1.0, 0.25, 0.1], seed=5)
    task = quadratic_task(matrix, torch.linspace(1.0, -0.7, 5).double())
    assert SubspaceRequest().checked(task).optimizers == ("adamw-lite", "muon-lite", "soap-lite", "toy")
    short: dict[str, Any] = {"spectrum": spectrum_of(task), "steps": 1, "seeds": 1, "warm_batches": 2, "lr": 0.1}
    assert replay(task, ["sgd"], bands="toy", **short).bands.optimizer == "toy"
    unregister_optimizer("toy")
    with pytest.raises(UsageError, match="expected the bands of adamw, muon, soap, got 'toy'"):
        replay(task, ["sgd"], bands="toy", **short)


def test_it_goes_on_from_its_own_state(registered: Callable[[OptimizerSpec], OptimizerSpec]) -> None:
    """With its hyperparameters; a step after is bitwise the one that was not interrupted."""
    registered(replace(TOY, hyperparameters={**SETTINGS, "theta": THETA}))
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    first = make_optimizer("toy", [("w", weights[0])], lr=1.0, theta=0.75)
    second = make_optimizer("toy", [("w", weights[1])], lr=1.0)
    weights[0].grad = torch.tensor([1.0, 2.0, 3.0])
    first.step()
    weights[1].data.copy_(weights[0].data)
    restored = restore_state(second, [first.state_dict()])
    assert restored.lines == ("other, halved: 1 restored (average) at step 1",)
    assert restored.hyperparameters["theta"] == {"other": (0.75,)}
    for weight, optimizer in zip(weights, (first, second), strict=True):
        weight.grad = torch.ones(3)
        optimizer.step()
    assert weights[0].tolist() == weights[1].tolist()
    damaged = first.state_dict()
    damaged["param_groups"][0]["theta"] = 7.0
    with pytest.raises(InputError, match=r"expected theta in \[0, 1\], got 7.0 in the saved state of w; take"):
        restore_state(second, [damaged])
    unregister_optimizer("toy")
    sgd = make_optimizer("sgd", [("w", weights[1])], lr=1.0, momentum=0.5)
    (line,) = restore_state(sgd, [first.state_dict()]).lines
    assert line == "other, euclidean: 1 fresh: it was saved by toy, which is not registered here"


def test_its_importer_reads_what_others_saved(registered: Callable[[OptimizerSpec], OptimizerSpec]) -> None:
    def read(values: Mapping[Any, Any], group: Mapping[Any, Any]) -> ImportedState | None:
        if "ema" not in values:
            return None
        tensors: dict[str, Tensor] = {"average": values["ema"]}
        return ImportedState(tensors=tensors, step=values["step"], hyperparameters={"theta": group["decay"]})

    registered(replace(TOY, importer=read))
    weight = nn.Parameter(torch.ones(2))
    optimizer = make_optimizer("toy", [("w", weight)], lr=1.0)
    saved: dict[str, Any] = {
        "state": {0: {"ema": torch.tensor([2.0, -1.0]), "step": 9}},
        "param_groups": [{"params": [0], "param_names": ["w"], "decay": 0.25}],
    }
    restored = restore_state(optimizer, [saved])
    assert restored.lines == ("other, halved: 1 restored (average) at step 9",)
    assert optimizer.state[weight]["average"].tolist() == [2.0, -1.0]
    assert optimizer.param_groups[0]["theta"] == 0.25
    saved["state"][0]["ema"] = torch.ones(3)
    with pytest.raises(InputError, match=r"expected shape \(2,\) as average of w in the saved optimizer state"):
        restore_state(optimizer, [saved])
    saved["state"][0]["ema"], saved["param_groups"][0]["decay"] = torch.ones(2), "fast"
    with pytest.raises(UsageError, match="expected theta to be a number, got 'fast'"):
        restore_state(optimizer, [saved])
    saved["state"][0] = {"other": torch.ones(2)}
    (line,) = restore_state(optimizer, [saved]).lines
    assert line.startswith("other, halved: 1 fresh: what was saved of it (other) is of no known optimizer")
