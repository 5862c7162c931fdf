"""What an optimizer starts with: the checkpoint's state, a warmed one, or none; and where its learning rate is from."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from lite_probe.checkpoints.optimizers import SavedSchedule
from lite_probe.errors import InputError, UsageError
from lite_probe.measurements.replay import replay
from lite_probe.optim import LiteOptimizer
from lite_probe.replays import SavedOptimizer
from lite_probe.replays.entrants import Entrant
from lite_probe.replays.recipes import prepare, saved_learning_rate
from lite_probe.subspaces import optimizer_of
from lite_probe.task import Task
from tests.plans import plan_replay
from tests.replays.conftest import spectrum_of, with_training

pytestmark = pytest.mark.slow


@pytest.fixture
def task() -> Task:
    return with_training("llama", 30)


def trained(task: Task, optimizer: torch.optim.Optimizer) -> SavedOptimizer:
    """The state after three steps, the weights put back."""
    start = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    for batch in task.train[:3]:
        optimizer.zero_grad()
        total, count = task.loss(batch)
        (total / count).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        for name, p in task.model.named_parameters():
            p.copy_(start[name])
            p.grad = None
    return SavedOptimizer(states=[optimizer.state_dict()], step=3)


def prepared(task: Task, name: str, state: str, saved: SavedOptimizer | None = None) -> Any:
    entrants = {name: Entrant(name)}
    return prepare(task, entrants, hyperparameters={}, state=state, warm_batches=task.train[:5], saved=saved)[name]


def steps_of(optimizer: LiteOptimizer) -> set[int]:
    return {group["step"] for group in optimizer.param_groups}


def own(task: Task, name: str, lr: float = 0.01) -> LiteOptimizer:
    optimizer = optimizer_of(task, name)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return optimizer


@pytest.mark.parametrize("name", ["adamw", "muon", "soap-lite"])
def test_a_saved_state_is_taken_over_where_it_is_all_there(name: str, task: Task) -> None:
    saved = trained(task, own(task, name))
    for state in ("auto", "checkpoint"):
        found = prepared(task, name, state, saved)
        assert found.origin == "checkpoint"
        assert steps_of(found.optimizer) == {3}
        assert any("restored" in line for line in found.lines)


def test_torchs_adamw_serves_too(task: Task) -> None:
    saved = trained(task, torch.optim.AdamW(task.model.parameters(), lr=0.02))
    found = prepared(task, "adamw", "auto", saved)
    assert found.origin == "checkpoint"
    assert saved_learning_rate("adamw", found.origin, saved).lr == 0.02
    assert found.hyperparameters == {"adamw_beta2": 0.999, "eps_after_correction": True, "weight_decay": 0.01}


def test_somebody_elses_state_is_left_alone_and_the_optimizer_warmed(task: Task) -> None:
    saved = trained(task, own(task, "adamw"))
    found = prepared(task, "muon", "auto", saved)
    assert found.origin == "warm"
    assert steps_of(found.optimizer) == {5}
    assert found.lines == (
        "the checkpoint's state is only in part this optimizer's, and was left alone",
        "warmed on 5 batches at fixed parameters",
    )
    plain = prepared(task, "muon", "warm")
    for one, other in zip(found.optimizer.state.values(), plain.optimizer.state.values(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one if isinstance(one[key], torch.Tensor))


def test_warm_looks_without_moving_and_cold_does_not_look(task: Task) -> None:
    before = [p.detach().clone() for p in task.model.parameters()]
    warm, cold = prepared(task, "soap", "warm"), prepared(task, "soap", "cold")
    assert all(torch.equal(a, b) for a, b in zip(before, task.model.parameters(), strict=True))
    assert (warm.origin, cold.origin) == ("warm", "cold")
    assert steps_of(warm.optimizer) == {5}
    assert cold.state["state"] == {}
    assert any("exp_avg" in state for state in warm.state["state"].values())


def test_the_snapshot_is_nobodys(task: Task) -> None:
    """Steps of the optimizer must not reach the state that the next run starts from."""
    found = prepared(task, "adamw", "warm")
    key = next(iter(found.state["state"]))
    kept = found.state["state"][key]["exp_avg"].clone()
    for batch in task.train[:2]:
        total, count = task.loss(batch)
        (total / count).backward()
        found.optimizer.step()
    assert torch.equal(found.state["state"][key]["exp_avg"], kept)


def test_a_state_asked_for_and_not_there_is_an_error(task: Task) -> None:
    with pytest.raises(InputError, match="expected the state of muon in the checkpoint, got none: it brought no"):
        prepared(task, "muon", "checkpoint")
    saved = trained(task, torch.optim.SGD(task.model.parameters(), lr=0.1, momentum=0.9))
    with pytest.raises(InputError, match=r"expected the state of soap in the checkpoint, got none: .*fresh"):
        prepared(task, "soap", "checkpoint", saved)


def test_a_learning_rate_of_the_checkpoint(task: Task) -> None:
    saved = trained(task, own(task, "muon", lr=0.005))
    found = replay(
        task,
        ["muon", "soap"],
        spectrum=spectrum_of(task),
        steps=3,
        seeds=1,
        warm_batches=3,
        lr={"muon": "checkpoint", "soap": 0.01},
        saved=saved,
    )
    assert (found.recipes["muon"].lr, found.recipes["muon"].lr_source) == (0.005, "checkpoint")
    assert (found.recipes["soap"].lr, found.recipes["soap"].lr_source) == (0.01, "given")
    assert (found.recipes["muon"].state, found.recipes["soap"].state) == ("checkpoint", "warm")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"state": "checkpoint", "lr": 0.01}, "expected the state of soap in the checkpoint, got none: "),
        ({"lr": {"sgd": 0.01, "soap": "checkpoint"}}, "expected the checkpoint to hold the state of soap and its"),
    ],
)
def test_what_the_checkpoint_lacks_is_said_before_any_compute(
    asked: dict[str, Any], message: str, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when it is soap's turn, after all of sgd's runs."""
    saved = trained(task, torch.optim.SGD(task.model.parameters(), lr=0.1, momentum=0.9))
    spectrum = spectrum_of(task)
    monkeypatch.setattr(Task, "loss", lambda *_: pytest.fail("computed"))
    with pytest.raises(InputError, match=message):
        replay(task, ["sgd", "soap"], spectrum=spectrum, steps=3, seeds=1, warm_batches=3, saved=saved, **asked)


def test_a_checkpoints_rate_is_its_states(task: Task) -> None:
    with pytest.raises(UsageError, match="expected --state auto or checkpoint with --lr checkpoint, got warm"):
        replay(task, ["sgd"], spectrum=spectrum_of(task), state="warm", lr={"sgd": "checkpoint"})


def test_another_saved_state_is_another_replay(task: Task) -> None:
    """Weights and batches are the same: a result must not be taken for that of another optimizer state."""
    asked: dict[str, Any] = {"spectrum": spectrum_of(task), "steps": 3, "seeds": 1, "warm_batches": 3, "lr": 0.01}
    saved = trained(task, own(task, "muon"))
    plans = {
        state: plan_replay(task, ["muon", "soap"], **asked, saved=saved, state=state) for state in ("auto", "warm")
    }
    assert plan_replay(task, ["muon", "soap"], **asked, saved=saved).fingerprint == plans["auto"].fingerprint
    without = plan_replay(task, ["muon", "soap"], **asked)
    other = plan_replay(task, ["muon", "soap"], **asked, saved=trained(task, own(task, "muon", lr=0.02)))
    fingerprints = {plans["auto"].fingerprint, plans["warm"].fingerprint, without.fingerprint, other.fingerprint}
    assert len(fingerprints) == 4
    # A rate that is read from the checkpoint counts, one that is given instead does not.
    asked["lr"] = {"muon": "checkpoint", "soap": 0.01}
    rates = [0.01, 0.02]
    states = [SavedOptimizer(states=[_at_rate(saved, rate)], step=3) for rate in rates]
    assert len({plan_replay(task, ["muon", "soap"], **asked, saved=one).fingerprint for one in states}) == 2
    asked["lr"] = 0.01
    assert len({plan_replay(task, ["muon", "soap"], **asked, saved=one).fingerprint for one in states}) == 1


def _at_rate(saved: SavedOptimizer, rate: float) -> dict[str, Any]:
    """The same state, saved at another learning rate."""
    (state,) = saved.states
    return {**state, "param_groups": [{**group, "lr": rate} for group in state["param_groups"]]}


def test_the_plan_knows_who_is_not_warmed(task: Task) -> None:
    asked: dict[str, Any] = {"steps": 3, "seeds": 1, "warm_batches": 3, "lr": 0.01, "tolerance": 0.99}
    asked |= {"spectrum": spectrum_of(task), "saved": trained(task, own(task, "muon")), "curvature_probes": 0}
    asked["landscape"] = False
    made: list[int] = []
    plan = plan_replay(task, ["muon", "soap"], **asked)
    found = plan.run(task, on_progress=lambda done, *_: made.append(done))
    assert [found.recipes[name].state for name in ("muon", "soap")] == ["checkpoint", "warm"]
    assert plan.num_gradients == made[-1] == 3 + 2 * 3 * 3  # soap is warmed, for the bands too; steps take three each


def test_no_learning_rate_of_the_checkpoint(task: Task) -> None:
    saved = trained(task, own(task, "muon"))
    with pytest.raises(InputError, match="expected the checkpoint to hold the state of soap and its learning rate"):
        saved_learning_rate("soap", "warm", saved)
    groups = [{"params": [p], "lr": 0.1 * (index + 1)} for index, p in enumerate(task.model.parameters())][:2]
    apart = SavedOptimizer(states=[torch.optim.AdamW(groups).state_dict()], step=None)
    with pytest.raises(InputError, match=r"expected one positive learning rate .*, got 0\.1, 0\.2"):
        saved_learning_rate("adamw", "checkpoint", apart)
    with pytest.raises(InputError, match=r"expected one positive learning rate .*, got none"):
        saved_learning_rate("adamw", "checkpoint", SavedOptimizer(states=[{"state": {}}], step=None))


def scheduled(task: Task, *, lr: float, **group: Any) -> SavedOptimizer:
    """The state of torch's AdamW where a schedule has left its rate at `lr`."""
    (state,) = trained(task, torch.optim.AdamW(task.model.parameters(), lr=0.02)).states
    groups = [{**one, "lr": lr, **group} for one in state["param_groups"]]
    return SavedOptimizer(states=[{**state, "param_groups": groups}], step=3)


@pytest.mark.parametrize(
    ("lr", "group", "schedule", "expected"),
    [
        (3e-10, {"initial_lr": 0.001}, None, (0.001, "initial_lr of its parameter groups")),
        (0.0, {"initial_lr": 0.001}, None, (0.001, "initial_lr of its parameter groups")),
        # OneCycleLR starts at a 25th of its peak, and says so in the groups.
        (1e-9, {"initial_lr": 4e-5, "max_lr": 0.001}, None, (0.001, "max_lr of its parameter groups")),
        (torch.tensor(0.0), {"initial_lr": torch.tensor(0.5)}, None, (0.5, "initial_lr of its parameter groups")),
        (0.0, {}, ((0.002,), "base_lrs of its scheduler"), (0.002, "base_lrs of its scheduler")),
        (0.03, {}, None, (0.03, "")),
        # A rate that somebody raised by hand is the one that was used.
        (0.03, {"initial_lr": 0.001}, None, (0.03, "initial_lr of its parameter groups")),
    ],
)
def test_the_peak_of_a_schedule_is_taken_where_it_is_saved(
    task: Task, lr: Any, group: dict[str, Any], schedule: Any, expected: tuple[float, str]
) -> None:
    saved = scheduled(task, lr=lr, **group)
    if schedule is not None:
        found = SavedSchedule(rates=schedule[0], source=schedule[1])
        saved = replace(saved, read_schedule=lambda: found)
    rate = saved_learning_rate("adamw", "checkpoint", saved)
    assert rate.lr == pytest.approx(expected[0], rel=1e-6)
    assert rate.source == expected[1]
    assert rate.stood_at == (pytest.approx(float(lr)),)


def test_which_rate_of_the_checkpoint_was_taken_is_said(task: Task) -> None:
    def message(saved: SavedOptimizer) -> str:
        return saved_learning_rate("adamw", "checkpoint", saved).note("adamw").message

    assert message(scheduled(task, lr=3e-10, initial_lr=0.001)) == (
        "adamw takes the checkpoint's learning rate at its peak, 0.001 (initial_lr of its parameter groups); its "
        "optimizer stood at 3e-10."
    )
    assert message(scheduled(task, lr=0.03)) == (
        "adamw takes the learning rate 0.03, where the checkpoint's optimizer stood; no peak of a schedule was saved."
    )


@pytest.mark.parametrize("lr", [0.0, 3e-10, 9e-7])
def test_a_rate_that_is_next_to_none_is_refused(task: Task, lr: float) -> None:
    saved = scheduled(task, lr=lr)
    with pytest.raises(InputError, match=r"expected a learning rate of at least 9.5e-07 .*, got .*, the end of a") as e:
        saved_learning_rate("adamw", "checkpoint", saved)
    assert e.value.hint == "give adamw's rate as in --lr adamw=0.001, or use --lr sweep"
    spectrum = spectrum_of(task)
    with pytest.raises(InputError, match="expected a learning rate of at least"):
        plan_replay(task, ["adamw"], spectrum=spectrum, steps=2, seeds=1, warm_batches=2, lr="checkpoint", saved=saved)


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ("0.1", "expected a number as lr of a parameter group in the saved optimizer state, got str"),
        (float("nan"), "expected a finite number as lr of a parameter group .*, got nan"),
        (torch.ones(2), "expected a number as lr of a parameter group .*, got Tensor"),
    ],
)
def test_a_rate_that_is_no_number_is_refused(task: Task, lr: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        saved_learning_rate("adamw", "checkpoint", scheduled(task, lr=lr))


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_the_rate_of_torchs_sgd_is_that_of_a_sum_of_gradients(task: Task, dampening: float) -> None:
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.004, momentum=0.75, dampening=dampening)
    saved = trained(task, optimizer)
    rate = saved_learning_rate("sgd", "checkpoint", saved)
    assert rate.lr == pytest.approx(0.004 * (1 - dampening) / 0.25)
    assert rate.source == f"where it stood, times {(1 - dampening) / 0.25:g}, since ours averages gradients"
    found = prepared(task, "sgd", "checkpoint", saved)
    for group in found.optimizer.param_groups:
        assert group["momentum"] == 0.75
        group["lr"] = rate.lr
    ours = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    for p in task.model.parameters():
        p.grad = torch.ones_like(p)
    found.optimizer.step()
    stepped = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    with torch.no_grad():
        for name, p in task.model.named_parameters():
            p.copy_(ours[name])
    optimizer.step()
    for name, p in task.model.named_parameters():
        # As above: four roundings of the weights and of a step that is no larger than they are.
        assert float((stepped[name] - p).detach().abs().max()) <= 4 * 2.0**-23 * float(p.detach().abs().max())


def test_the_linear_theory_is_that_of_the_saved_hyperparameters(task: Task) -> None:
    saved = trained(task, torch.optim.AdamW(task.model.parameters(), lr=0.02, betas=(0.5, 0.999)))
    asked: dict[str, Any] = {"spectrum": spectrum_of(task), "steps": 2, "seeds": 1, "warm_batches": 2, "lr": 0.01}
    taken = replay(task, ["adamw"], **asked, saved=saved)
    assert taken.recipes["adamw"].hyperparameters["adamw_beta1"] == 0.5
    kept = replay(task, ["adamw"], **asked, saved=saved, hyperparameters={"adamw": {"adamw_beta1": 0.9}})
    assert kept.recipes["adamw"].hyperparameters["adamw_beta1"] == 0.9
    assert not (taken.theory["adamw"].rates == kept.theory["adamw"].rates).any()


def test_a_task_with_blocks_of_its_own_keeps_them() -> None:
    """The mlp's names match no family: its blocks come from the task."""
    task = with_training("mlp", 3)
    optimizer = optimizer_of(task, "muon-lite", {"flat_lr_ratio": {"ffn": 3.0}})
    assert {group["block"] for group in optimizer.param_groups} == {"ffn", "out"}
    assert isinstance(task.model, nn.Sequential)
