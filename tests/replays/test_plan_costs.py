"""A plan of steps or of a replay costs a few gradients: no state of the model is made, no matrix decomposed twice."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from lite_probe.errors import UsageError
from lite_probe.measurements.requests.steps import StepsRequest
from lite_probe.optim import LiteOptimizer, eigenbases, kronecker
from lite_probe.results.spectrum import Spectrum
from lite_probe.subspaces import optimizer_of
from lite_probe.task import Task
from tests.dispatch import Watch
from tests.plans import plan_replay
from tests.replays.conftest import spectrum_of, with_training

NAMES = ["muon-lite", "soap-lite"]
ASKED: dict[str, Any] = {"lr": 1e-3, "warm_batches": 2}


@cache
def spectrum() -> Spectrum:
    return spectrum_of(with_training("llama", 24, torch.float32))


def planned(kind: str, task: Task, **asked: Any) -> Any:
    if kind == "steps":
        return StepsRequest(optimizers=NAMES, step_batches=16, **{**ASKED, **asked}).plan(task)
    return plan_replay(task, NAMES, spectrum=spectrum(), steps=2, seeds=1, **{**ASKED, **asked})


@pytest.mark.parametrize("kind", ["steps", "replay"])
def test_a_plan_steps_on_one_matrix_of_each_shape(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = with_training("llama", 24, torch.float32)
    spectrum()
    stepped: list[int] = []
    original = LiteOptimizer.step

    def counted(self: LiteOptimizer) -> None:
        stepped.append(len(self.pieces))
        original(self)

    monkeypatch.setattr(LiteOptimizer, "step", counted)
    gradients = 0
    loss = Task.loss

    def counted_loss(self: Task, batch: Any) -> Any:
        nonlocal gradients
        gradients += 1
        return loss(self, batch)

    monkeypatch.setattr(Task, "loss", counted_loss)
    watch = Watch()
    with watch:
        plan = planned(kind, task)
    kinds = {
        (name, piece.geometry.name, piece.block, piece.shape[1:])
        for name in (*NAMES, "soap")
        for piece in optimizer_of(task, name).pieces
    }
    assert set(stepped) == {1}
    assert len(stepped) <= 3 * len(kinds)
    assert watch.calls.get("_linalg_eigh", 0) <= len(kinds)
    # Two or three evaluation gradients, two of a training batch, one graph with what proves it right.
    assert gradients <= 4 * len(task.evaluation) + 2 + 16
    assert plan.seconds > 0.0


@pytest.mark.parametrize("kind", ["steps", "replay"])
def test_what_does_not_fit_is_refused_before_anything_is_computed(kind: str) -> None:
    def must_not_run(*args: Any) -> Any:
        raise AssertionError("expected no forward pass before the request is refused")

    task = with_training("llama", 24, torch.float32)
    spectrum()
    task.predict = must_not_run
    with pytest.raises(UsageError, match=r"expected at least .* of memory for .* state"):
        planned(kind, task, memory=1000)


def test_the_bands_share_the_warm_up_of_an_optimizer_that_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """SOAP's bases are made once for its bands and its own runs, which start from the same state bitwise."""
    made: list[int] = []
    original = eigenbases.singular_vectors

    def counted(matrix: torch.Tensor) -> Any:
        made.append(matrix.numel())
        return original(matrix)

    monkeypatch.setattr(kronecker, "singular_vectors", counted)
    found, counts = [], []
    asked = {**ASKED, "steps": 2, "seeds": 1, "curvature_probes": 0, "landscape": False}
    for shares in (True, False):
        task = with_training("llama", 24, torch.float32)
        plan = plan_replay(task, ["muon", "soap"], spectrum=spectrum(), **asked)
        assert plan.shares_bands
        made.clear()
        found.append(replace(plan, shares_bands=shares).run(task))
        counts.append(len(made))
    assert counts[1] == 2 * counts[0] > 0
    for one, other in zip(found[0].runs, found[1].runs, strict=True):
        assert one.losses.tolist() == other.losses.tolist()
        assert one.band_allocations.tolist() == other.band_allocations.tolist()
    own = plan_replay(
        with_training("llama", 24, torch.float32),
        ["muon", "soap"],
        spectrum=spectrum(),
        hyperparameters={"soap": {"eps": 1e-6}},
        **asked,
    )
    assert not own.shares_bands
    assert own.num_gradients == plan.num_gradients + 2
