"""Tuning on a small Llama: what nodes measure against finite differences, who sees which batches, and going on."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lite_probe as lp
from lite_probe import bilevel
from lite_probe.errors import InputError, UsageError
from lite_probe.measurements.optimizers import put_back
from lite_probe.measurements.requests.tune import TuneRequest
from lite_probe.measurements.tune_session import TuneSession, replay_request, split_batches
from lite_probe.operators.guards import preserve_state
from lite_probe.results.tuning import Tuning
from lite_probe.runtime.resumable import ResumableRun
from lite_probe.subspaces import own_gradients
from lite_probe.task import Batch, Task
from lite_probe.vectors.layout import ParameterLayout
from tests.replays.conftest import with_training

pytestmark = pytest.mark.slow

NODES = 3
ASKED: dict[str, Any] = {
    "nodes": NODES,
    "node_batches": 2,
    "warm_batches": 3,
    "step_batches": 16,
    "lr": 0.01,
    "iterations": 3000,
    "topology": "complete",
    "replay_steps": 0,
}


def task_of(batches: int = 80) -> Task:
    return with_training("llama", batches, torch.float64)


@cache
def tuned() -> Tuning:
    return lp.tune(task_of(), "muon-lite", **ASKED)


def mean_gradient(task: Task, layout: ParameterLayout, batches: Sequence[Batch], where: torch.Tensor) -> torch.Tensor:
    layout.write(where)
    total, count = torch.zeros_like(where), 0
    for batch in batches:
        loss, number = task.loss(batch)
        parts = torch.autograd.grad(loss, layout.parameters)
        total += torch.cat([part.flatten() for part in parts])
        count += number
    return total / count


def test_a_nodes_models_are_those_of_its_own_batches() -> None:
    task, request = task_of(), TuneRequest(**ASKED)
    layout = ParameterLayout(list(task.model.named_parameters()))
    with preserve_state(task.model), own_gradients(layout.parameters), put_back(layout) as start:
        session = TuneSession(task, layout, start, request, ResumableRun(None, ""), bilevel.StackedNetwork(NODES))
        session.run()
        groups = session.steps.groups("muon")
        directions = torch.stack([session.steps._combined([group], [1.0]) for group in groups])
        train, validation = session.splits.nodes[1]
        scale = np.sqrt(session.models.scales)
        for batches, gains, curvatures in (
            (train, session.models.gains, session.models.curvatures),
            (validation, session.models.validation_gains, session.models.validation_curvatures),
        ):
            slope = mean_gradient(task, layout, batches, start)
            np.testing.assert_allclose(gains[1] * scale, -(directions @ slope).numpy(), rtol=1e-9)
            rows = []
            for direction in directions:
                # A central difference of the gradient: off by the square of its reach, 1e-4 of a step.
                ends = [mean_gradient(task, layout, batches, start + sign * 1e-4 * direction) for sign in (1.0, -1.0)]
                rows.append((directions @ (ends[0] - ends[1]) / 2e-4).numpy())
            expected = np.stack(rows) + np.diag(session.models.noise)
            found = curvatures[1] * np.outer(scale, scale)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * float(np.abs(expected).max()))


def test_noise_is_what_a_batchs_step_has_beyond_the_mean_step() -> None:
    found = tuned()
    joint = found.profile.joint
    assert joint is not None
    rows = [found.profile.group(*group) for group in zip(joint.blocks, joint.parts, strict=True)]
    for row, scale, noise, own in zip(
        rows, found.models.scales, found.models.noise, np.diag(joint.curvatures), strict=True
    ):
        assert row is not None
        assert scale >= abs(own)
        assert scale == pytest.approx(noise + own)
        if row.curvature.value > max(abs(own), 1e-3 * float(found.models.scales.mean())):
            assert scale == pytest.approx(row.curvature.value)


def test_ratios_are_those_of_the_multiples_that_nodes_agreed_on() -> None:
    found = tuned()
    models, logs = found.models, found.damping_logs.mean(axis=0)
    values, vectors = np.linalg.eigh(models.curvatures)
    curved = ((vectors * np.maximum(values, 0.0)[:, None]) @ vectors.swapaxes(1, 2)).mean(axis=0)
    agreed = np.linalg.solve(curved + np.diag(np.exp(logs) + found.ridge), models.gains.mean(axis=0))
    # The damping still moves, and the step follows it, slowly along groups that only the ridge holds.
    np.testing.assert_allclose(found.multiples.mean(axis=0), agreed, atol=0.2 * float(np.abs(agreed).max()))
    slope = curved @ found.multiples.mean(axis=0) + (np.exp(logs) + found.ridge) * found.multiples.mean(axis=0)
    assert np.linalg.norm(slope - models.gains.mean(axis=0)) < 0.1 * np.linalg.norm(models.gains.mean(axis=0))
    for one in found.tuned.blocks:
        assert one.ratio == pytest.approx(min(max(one.rest / max(one.sharp, 1.0), 1.0), 8.0))
    assert found.pooled_loss <= found.methods[0].upper_loss[-1] + 1e-12


@pytest.mark.parametrize("lr", [0.01, "sweep"])
def test_no_batch_has_two_uses(lr: float | str) -> None:
    request = TuneRequest(**{**ASKED, "replay_steps": 4, "lr": lr})
    task = task_of(request.train_batches(0))  # no more than what is asked for
    splits = split_batches(task, request)
    parts = [*(part for node in splits.nodes for part in node), splits.steps, splits.replay]
    batches = [id(batch) for part in parts for batch in part]
    assert len(set(batches)) == len(batches)
    assert [len(part) for part in parts[:-2]] == [2] * 2 * NODES
    assert len(splits.steps) == request.profile_batches
    assert len(splits.replay) >= replay_request(request, {}, 1.0).train_batches(0)
    assert not replay_request(request, {}, 1.0).landscape  # nobody shows it
    assert splits.notes == ()
    assert {id(batch) for batch in task.evaluation} & set(batches) == set()


def test_the_task_comes_back_and_the_numbers_again() -> None:
    task = task_of()
    before = [parameter.detach().clone() for parameter in task.model.parameters()]
    again = lp.tune(task, "muon-lite", **ASKED)
    after = list(task.model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in after)
    assert again.damping_logs.tobytes() == tuned().damping_logs.tobytes()
    other = lp.tune(task_of(), "muon-lite", **{**ASKED, "seed": 1})
    assert other.damping_logs.tobytes() != again.damping_logs.tobytes()


def test_it_continues_after_a_kill_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, made = TuneSession._node, []

    def killed_at_the_third(self: TuneSession, *arguments: Any) -> Any:
        made.append(arguments)
        if len(made) == 3:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    monkeypatch.setattr(TuneSession, "_node", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        lp.tune(task_of(), "muon-lite", state_directory=tmp_path, **ASKED)
    found = lp.tune(task_of(), "muon-lite", state_directory=tmp_path, **ASKED)
    assert len(made) == 4  # the two nodes that were measured were not measured again
    assert found.damping_logs.tobytes() == tuned().damping_logs.tobytes()


def test_shards_of_the_users_own_are_the_nodes() -> None:
    task = task_of()
    shards = [task.train[4 * node : 4 * node + 4] for node in range(NODES)]
    own = replace(task, train=task.train[12:])
    splits = split_batches(own, TuneRequest(**ASKED, shards=shards, shards_from="by hand"))
    assert [[*train, *validation] for train, validation in splits.nodes] == [list(shard) for shard in shards]
    found = lp.tune(own, "muon-lite", **ASKED, shards=shards, shards_from="by hand")
    assert found.shards == "by hand"
    assert found.models.heterogeneity > 0.0


@pytest.mark.parametrize(
    ("batches", "asked", "error", "message"),
    [
        (20, {}, InputError, "expected 28 training batches, 4 for each of 3 nodes and 16 for steps, got 20; lower"),
        (80, {"shards": [[None] * 4] * 2}, UsageError, "a shard of data for each of 3 nodes, got 2; ask for --nodes 2"),
        (80, {"shards": [[None] * 3] * 3}, InputError, "expected 4 batches in every shard, .* got 3; lower"),
        (80, {"optimizer": "samuon"}, UsageError, "expected a LITE variant to tune"),
        (80, {"topology": "torus"}, UsageError, "a product for a torus, got 3"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    batches: int, asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lp.tune(task_of(batches), **{"optimizer": "muon-lite", **ASKED, **asked})
