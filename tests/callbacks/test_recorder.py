"""What knows no trainer: schedule, budget, what is left untouched, and what becomes of failures."""

import random
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lite_probe as lp
from lite_probe.callbacks import Recorder, language_task
from lite_probe.callbacks.recorder import _moved
from lite_probe.callbacks.unmoved import unmoved
from lite_probe.errors import InputError, UsageError
from lite_probe.results.training import Training
from lite_probe.task import Batch, Task
from lite_probe.vectors.layout import ParameterLayout
from tests.callbacks.runs import Clock, make_model, make_task, random_states, same, windows


def loop(recorder: Recorder, model: nn.Module, steps: int, *, first: int = 0, lr: float = 0.1) -> None:
    """Train by hand, on one batch."""
    task = make_task(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    recorder.begin(model, first)
    for step in range(first, steps):
        optimizer.zero_grad()
        loss, count = task.loss(windows(4, 9, step))
        (loss / count).backward()  # type: ignore[no-untyped-call]
        recorder.before_update(step, lr)
        optimizer.step()
        recorder.after_update()
    recorder.end()


def test_gradients_and_everything_else_are_left_alone(tmp_path: Path) -> None:
    model = make_model()
    model.train()
    model.transformer.ln_f.eval()  # a module that is frozen in its own way
    recorder = Recorder(make_task(), every=1, folder=tmp_path, budget=None)
    recorder.begin(model)
    task = make_task(model)
    loss, count = task.loss(windows(4, 9, 1))
    (loss / count).backward()  # type: ignore[no-untyped-call]
    recorder.before_update(0, 0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.1 * parameter.grad)

    def state() -> list[Any]:
        kept = [[one.clone(), one.grad.clone(), id(one.grad)] for one in model.parameters()]
        modes = [module.training for module in model.modules()]
        return [kept, modes, random_states(), [buffer.clone() for buffer in model.buffers()]]

    before = state()
    recorder.after_update()
    assert same(before, state())
    assert lp.load(tmp_path).steps.tolist() == [0]


def test_what_a_model_draws_and_moves_is_put_back_after_an_error_too() -> None:
    model = make_model()
    layout = ParameterLayout(list(model.named_parameters()))
    parameters = layout.read()
    states = random_states()

    def draw_and_move() -> None:
        with unmoved(model, layout, parameters):
            layout.write(torch.zeros_like(parameters))
            assert not model.training
            raise RuntimeError(f"in the middle {torch.rand(3)} {random.random()} {np.random.rand()}")

    with pytest.raises(RuntimeError, match="in the middle"):
        draw_and_move()
    assert torch.equal(layout.read(), parameters)
    assert same(states, random_states())
    assert model.training


def test_a_point_is_measured_the_same_whatever_was_measured_before(tmp_path: Path) -> None:
    for name, every in (("few", 4), ("many", 1)):
        loop(Recorder(make_task(), every=every, folder=tmp_path / name, budget=None), make_model(), 9)
    few, many = lp.load(tmp_path / "few"), lp.load(tmp_path / "many")
    assert few.steps.tolist() == [0, 4, 8]
    assert many.steps.tolist() == list(range(9))
    for point in few.points:
        assert replace(many.points[point.step], seconds=point.seconds) == point


def test_a_step_is_skipped_while_points_took_more_than_their_share(tmp_path: Path) -> None:
    class Slow(Recorder):
        """A point takes ten seconds, a step of training one."""

        def before_update(self, step: int, learning_rate: float | None = None) -> None:
            clock.time += 1.0
            super().before_update(step, learning_rate)

        def _measure(self, task: Task, held: Any) -> Any:
            clock.time += 10.0
            return super()._measure(task, held)

    clock = Clock()
    loop(Slow(make_task(), every=5, folder=tmp_path, budget=0.25, clock=clock), make_model(), 100)
    training: Training = lp.load(tmp_path)
    # 10 s may be a quarter of 40 s: after the first point, of step 0, that is after 30 steps of training, and so on.
    assert training.steps.tolist() == [0, 30, 60, 90]
    assert training.skipped == (5, 10, 15, 20, 25, 35, 40, 45, 50, 55, 65, 70, 75, 80, 85, 95)
    assert training.seconds.tolist() == [10.0] * 4
    message = "16 of 20 scheduled steps were skipped for the budget of 25% of the training's time: 5, 10, 15, 20, 25"
    assert training.notes[0].message == f"{message} and 11 more."
    loop(Slow(make_task(), every=5, folder=tmp_path, budget=None, clock=clock), make_model(), 16)
    assert lp.load(tmp_path).steps.tolist() == [0, 5, 10, 15]


def test_a_loss_that_is_no_number_is_a_note(tmp_path: Path) -> None:
    def broken(outputs: Tensor, batch: Batch) -> tuple[Tensor, int]:
        return outputs.sum() * float("nan"), 1

    model = make_model()
    task = replace_criterion(broken)
    with pytest.warns(UserWarning, match="lite-probe at step 0: expected a finite loss, got nan on evaluation batch 0"):
        loop(Recorder(task, every=2, folder=tmp_path, budget=None), model, 4)
    training: Training = lp.load(tmp_path)
    assert training.points == ()
    assert [one.step for one in training.failed] == [0, 2]
    assert [note.message for note in training.notes] == [
        "Not measured at step 0, 2: expected a finite loss, got nan on evaluation batch 0."
    ]
    twin = make_model()
    loop(Recorder(make_task(), every=100, folder=tmp_path / "other"), twin, 4)
    assert same(twin.state_dict(), model.state_dict())


def replace_criterion(criterion: Any) -> Task:
    task = make_task()
    return Task(model=task.model, predict=task.predict, criterion=criterion, evaluation=task.evaluation)


def test_whatever_a_users_loss_raises_is_a_note(tmp_path: Path) -> None:
    def broken(outputs: Tensor, batch: Batch) -> tuple[Tensor, int]:
        raise KeyError("labels")

    with pytest.warns(UserWarning, match="lite-probe at step 0: KeyError: 'labels'"):
        loop(Recorder(replace_criterion(broken), folder=tmp_path), make_model(), 2)
    assert lp.load(tmp_path).failed[0].reason == "KeyError: 'labels'"


def test_without_a_second_derivative_the_rest_is_measured(tmp_path: Path) -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient

    task = make_task()
    once = Task(
        model=task.model,
        predict=lambda model, batch: Once.apply(task.predict(model, batch)),  # type: ignore[no-untyped-call]
        criterion=task.criterion,
        evaluation=task.evaluation,
    )
    with pytest.warns(UserWarning, match="no curvature: expected a model that can be differentiated twice"):
        loop(Recorder(once, folder=tmp_path), make_model(), 2)
    (point,) = lp.load(tmp_path).points
    assert point.eigenvalues == ()
    assert point.gradient_share is None
    assert point.critical_bounds is not None


def test_a_step_that_diverges_is_noted_and_kept(tmp_path: Path) -> None:
    model = make_model()
    recorder = Recorder(make_task(), every=1, folder=tmp_path)
    recorder.begin(model)
    recorder.before_update(0)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.warns(UserWarning, match="no critical step: expected a finite update"):
        recorder.after_update()
    assert next(model.parameters()).isnan().all()
    (point,) = lp.load(tmp_path).points
    assert (point.update_norm, point.critical_low, point.learning_rate) == (None, None, None)
    assert point.eigenvalues[0] > 0.0


def test_a_model_that_cannot_be_measured_trains_all_the_same(tmp_path: Path) -> None:
    recorder = Recorder(make_task(), every=1, folder=tmp_path / "none")
    with pytest.warns(UserWarning, match=r"measures nothing: expected parameters all in float32.*got bfloat16"):
        recorder.begin(make_model().to(torch.bfloat16))
    recorder.before_update(0)
    recorder.after_update()
    recorder.end()
    assert not (tmp_path / "none").exists()
    sharded = make_model()
    next(sharded.parameters()).ds_id = 0
    with pytest.warns(UserWarning, match="expected whole parameters in this process, got sharded ones"):
        recorder.begin(sharded)


def test_a_record_that_cannot_be_saved_ends_no_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="could not save its record: expected folders above"):
        loop(Recorder(make_task(), folder=tmp_path / "file" / "run"), make_model(), 2)


def test_a_resumed_run_keeps_its_own_record_only(tmp_path: Path) -> None:
    loop(Recorder(make_task(), every=2, folder=tmp_path, budget=None), make_model(), 6)
    other = make_task()
    other.evaluation = [windows(4, 9, 99)]
    with pytest.raises(InputError, match=r"expected the record of the run that is resumed .* got one of another"):
        Recorder(other, every=2, folder=tmp_path).begin(make_model(), 4)
    recorder = Recorder(make_task(), every=2, folder=tmp_path, budget=None)
    loop(recorder, make_model(), 8, first=4)
    assert lp.load(tmp_path).steps.tolist() == [0, 2, 4, 6]
    # A run that begins anew replaces what is there.
    loop(recorder, make_model(), 1)
    assert lp.load(tmp_path).steps.tolist() == [0]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"every": 0}, "expected every of at least 1, got 0"),
        ({"top": 0}, "expected top of at least 1, got 0"),
        ({"max_products": 0}, "expected max_products of at least 1, got 0"),
        ({"budget": 0.0}, "expected a budget above 0 and at most 1, a share of the wall time, got 0.0"),
        ({"tolerance": 2.0}, "expected a tolerance between 0 and 1, got 2.0"),
    ],
)
def test_numbers_out_of_range_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recorder(make_task(), **asked)


def test_a_task_without_batches_and_more_pairs_than_parameters_are_refused(tmp_path: Path) -> None:
    task = make_task()
    task.evaluation = []
    with pytest.raises(InputError, match="expected at least one evaluation batch, got none"):
        Recorder(task)
    with pytest.raises(UsageError, match="expected top of at most 3, the number of parameters that train, got 4"):
        Recorder(make_task(), top=4, folder=tmp_path).begin(nn.Linear(2, 1))


def test_several_pairs_are_held_beside_their_share_of_the_parameters(tmp_path: Path) -> None:
    model = make_model()
    loop(Recorder(make_task(), top=3, folder=tmp_path, budget=None), model, 1)
    training: Training = lp.load(tmp_path)
    (point,) = training.points
    assert len(point.eigenvalues) == len(point.residual_norms) == 3
    assert training.expected_share == 3 / sum(parameter.numel() for parameter in model.parameters())
    loop(Recorder(make_task(), top=1, folder=tmp_path / "one", budget=None), make_model(), 1)
    assert 0.0 < lp.load(tmp_path / "one").gradient_share[0] <= training.gradient_share[0] <= 1.0


def test_batches_go_where_the_model_is() -> None:
    batch: dict[str, Any] = {"ids": torch.zeros(2), "pair": (torch.ones(1), "name"), "rows": [torch.ones(1)]}
    moved = _moved(batch, torch.device("meta"))
    assert moved["ids"].is_meta
    assert moved["pair"][0].is_meta
    assert moved["pair"][1] == "name"
    assert moved["rows"][0].is_meta
    assert not batch["ids"].is_meta


def test_a_model_in_memory_has_a_task_from_a_text(tmp_path: Path) -> None:
    class Letters:
        """What transformers' tokenizers offer, of letters."""

        name_or_path = "some/letters"
        eos_token_id = 16

        def __len__(self) -> int:
            return 17

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            assert options == {"add_special_tokens": False, "verbose": False}
            return {"input_ids": [ord(letter) % 16 for letter in text]}

    text = tmp_path / "val.txt"
    text.write_text("The cheapest measurement is the one that is made while you wait. " * 20)
    model = make_model()
    task = language_task(model, text, tokenizer=Letters(), batch_size=3, eval_batches=2)
    assert [tuple(batch.shape) for batch in task.evaluation] == [(3, 13)] * 2  # the model's context is 12
    assert task.info.data_name == "val.txt"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(Recorder(task, folder=tmp_path / "run"), model, 1)
    training: Training = lp.load(tmp_path / "run")
    assert training.provenance.num_tokens == 72
    assert training.provenance.checkpoint_name == "run"
    np.save(tmp_path / "ids.npy", np.arange(400) % 17)
    assert language_task(model, tmp_path / "ids.npy", seq_len=5, batch_size=2).evaluation[0].shape == (2, 6)
    with pytest.raises(InputError, match=r"expected a language model of transformers.*got Linear"):
        language_task(nn.Linear(2, 1), text)
