"""Optimizer states at a fixed θ₀, and what they say of directions."""

import pytest
import torch

from lite_probe.errors import NumericsError
from lite_probe.optim import make_optimizer
from lite_probe.subspaces import optimizer_of, set_gradients, warm
from lite_probe.task import Batch, Task
from lite_probe.vectors.layout import ParameterLayout
from tests import models
from tests.replays.conftest import with_bad_gradient


@pytest.fixture
def task() -> Task:
    return models.make_task("llama", torch.float32)


def test_averages_fill_while_nothing_moves(task: Task) -> None:
    before = [p.detach().clone() for p in task.model.parameters()]
    first = next(task.model.parameters())
    first.grad = torch.full_like(first, 2.0)
    optimizers = [optimizer_of(task, name) for name in ("adamw", "muon-lite", "soap-lite")]
    seen: list[torch.Tensor] = []
    warm(task, optimizers, task.evaluation, on_gradient=lambda gradient: seen.append(gradient.clone()))
    assert all(torch.equal(a, b) for a, b in zip(before, task.model.parameters(), strict=True))
    assert first.grad is not None
    assert bool((first.grad == 2.0).all())
    assert [group["lr"] for one in optimizers for group in one.param_groups] == [1.0] * sum(
        len(one.param_groups) for one in optimizers
    )
    assert {group["step"] for one in optimizers for group in one.param_groups} == {3}
    layout = ParameterLayout(list(task.model.named_parameters()))
    loss, count = task.loss(task.evaluation[1])
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss / count, layout.parameters)])
    assert torch.equal(seen[1], expected)


def test_it_is_what_steps_at_learning_rate_zero_do(task: Task) -> None:
    """The state equals that of a plain loop whose gradients are taken where the parameters stay."""
    warmed = optimizer_of(task, "soap")
    warm(task, [warmed], task.evaluation)
    plain = make_optimizer("soap", task.model.named_parameters(), lr=0.0)
    for batch in task.evaluation:
        plain.zero_grad()
        loss, count = task.loss(batch)
        (loss / count).backward()  # type: ignore[no-untyped-call]
        plain.step()
    for p in task.model.parameters():
        for name, value in plain.state[p].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(warmed.state[p][name])), name


@pytest.mark.parametrize("defers", [False, True])
def test_a_bad_gradient_is_refused(defers: bool, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one's too, where a device is asked whether gradients are finite when the next step is made."""
    optimizer = optimizer_of(task, "muon")
    monkeypatch.setattr(optimizer, "_defers_checks", lambda device: defers)
    with pytest.raises(NumericsError, match="expected gradients whose norm is finite"):
        warm(with_bad_gradient(task, task.evaluation[-1]), [optimizer], task.evaluation)


def test_a_batch_that_counts_nothing_or_is_not_finite_is_named(task: Task) -> None:
    criterion = task.criterion

    def broken(outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, int]:
        loss, count = criterion(outputs, batch)
        return (loss * torch.nan, count) if batch is task.evaluation[1] else (loss, count)

    task.criterion = broken
    before = [p.detach().clone() for p in task.model.parameters()]
    with pytest.raises(NumericsError, match="expected a finite loss, got nan on warm-up batch 1"):
        warm(task, [optimizer_of(task, "muon")], task.evaluation)
    assert all(torch.equal(a, b) for a, b in zip(before, task.model.parameters(), strict=True))
    task.criterion = lambda outputs, batch: (outputs.sum(), 0)
    with pytest.raises(NumericsError, match="expected counted tokens in this batch, got none"):
        set_gradients(task, list(task.model.parameters()), task.evaluation[0], "this batch")
