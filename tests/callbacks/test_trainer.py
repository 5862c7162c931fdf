"""Hugging Face's Trainer: its run is the same to the bit with and without the callback, which measures it."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import lite_probe as lp
from lite_probe.callbacks import ProbeCallback
from lite_probe.results.training import Training
from tests.callbacks.runs import Windows, make_model, make_task, same

pytestmark = pytest.mark.slow
STEPS = 50


class States(TrainerCallback):  # type: ignore[misc]
    """Notes what a callback must not touch, behind the callback that might."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **others: Any) -> None:
        draws = (torch.rand(3), random.random(), float(np.random.rand()))
        flags = (torch.is_grad_enabled(), torch.get_float32_matmul_precision())
        buffers = [buffer.clone() for buffer in model.buffers()]
        grads = [parameter.grad is None for parameter in model.parameters()]
        self.seen.append([*draws, *flags, *buffers, *grads, *[module.training for module in model.modules()]])


def train(tmp_path: Path, *callbacks: Any, steps: int = STEPS, resume: str | None = None, **more: Any) -> Trainer:
    """Train the tiny model on the CPU; always the same way."""
    random.seed(1)
    np.random.seed(1)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        warmup_steps=3,
        lr_scheduler_type="constant_with_warmup",
        logging_steps=1,
        use_cpu=True,
        seed=9,
        report_to=[],
        disable_tqdm=True,
        **{"save_strategy": "no", **more},
    )
    trainer = Trainer(make_model(), arguments, train_dataset=Windows(), callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: Trainer) -> list[tuple[float, float]]:
    return [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry]


def test_a_run_of_fifty_steps_is_bitwise_as_without_it(tmp_path: Path) -> None:
    seen, unseen = States(), States()
    plain = train(tmp_path / "plain", unseen)
    probe = ProbeCallback(make_task(), every=10, folder=tmp_path / "probe", early=True, budget=None)
    probed = train(tmp_path / "probed", probe, seen)
    assert same(plain.model.state_dict(), probed.model.state_dict())
    assert same(plain.optimizer.state_dict(), probed.optimizer.state_dict())
    assert losses(plain) == losses(probed)
    assert len(losses(plain)) == STEPS
    assert len(seen.seen) == STEPS
    assert same(seen.seen, unseen.seen)
    training: Training = lp.load(tmp_path / "probe" / "training.json")
    assert training.steps.tolist() == [0, 1, 2, 4, 8, 10, 20, 30, 40]
    assert training.skipped == ()
    assert training.notes == ()


def test_a_point_has_the_numbers_of_the_checkpoint_of_its_step(tmp_path: Path) -> None:
    probe = ProbeCallback(make_task(), every=10, folder=tmp_path / "probe", budget=None, tolerance=1e-3)
    trainer = train(tmp_path / "run", probe, steps=12, save_strategy="steps", save_steps=10)
    training: Training = lp.load(tmp_path / "probe" / "training.json")
    at = training.steps.tolist().index(10)
    model = make_model()
    state = type(model).from_pretrained(tmp_path / "run" / "checkpoint-10").state_dict()
    model.load_state_dict(state)
    spectrum = lp.measure_spectrum(make_task(model), top=1, bottom=0, probes=2, probe_steps=3, tolerance=1e-3)
    # Both Ritz values lie within their residuals of one eigenvalue.
    apart = abs(training.sharpest[at] - spectrum.eigenvalues[0])
    assert apart <= training.residual[at] + spectrum.residual_norms[0]
    assert training.converged[at]
    # Two sums of the same terms in float32, and a seed's start of its own for the eigenvector.
    assert training.loss[at] == pytest.approx(spectrum.loss, rel=1e-6)
    assert training.points[at].gradient_norm == pytest.approx(spectrum.gradient_norm, rel=1e-5)
    vector = torch.from_numpy(np.array(spectrum.eigenvectors)[:, 0])
    task = make_task(model.eval())
    total = torch.stack([task.loss(batch)[0] for batch in task.evaluation]).sum()
    grads = torch.autograd.grad(total, [*model.parameters()])
    gradient = torch.cat([grad.flatten() for grad in grads])
    share = float((vector @ gradient).square() / gradient.square().sum())
    # A residual of 1e-3 λ₁ over the gap to λ₂ bounds the angle; the share moves by twice that at most.
    assert training.gradient_share[at] == pytest.approx(share, abs=0.02)
    assert trainer.state.global_step == 12


def test_the_critical_step_is_that_of_the_update_the_optimizer_made(tmp_path: Path) -> None:
    probe = ProbeCallback(make_task(), every=10, folder=tmp_path / "probe", budget=None)
    train(tmp_path / "run", probe, steps=11, save_strategy="steps", save_steps=1, save_total_limit=3)
    models = [type(make_model()).from_pretrained(tmp_path / "run" / f"checkpoint-{step}").eval() for step in (10, 11)]
    start, end = (torch.cat([one.detach().flatten() for one in model.parameters()]) for model in models)
    training: Training = lp.load(tmp_path / "probe")
    point = training.points[-1]
    assert point.step == 10
    assert point.learning_rate == pytest.approx(3e-3)
    assert point.update_norm == pytest.approx(float((end - start).norm()), rel=1e-5)

    def loss_at(multiple: float) -> float:
        task = make_task(models[0])
        torch.nn.utils.vector_to_parameters(start + multiple * (end - start), models[0].parameters())
        with torch.no_grad():
            sums, counts = zip(*(task.loss(batch) for batch in task.evaluation), strict=True)
        return float(sum(sums)) / int(sum(counts))

    assert point.critical_bounds is not None
    low, high = point.critical_bounds
    assert loss_at(low) <= loss_at(0.0) < loss_at(high)
    assert 1.0 - low / high <= 1.0 / 16.0
    assert point.critical_lr == pytest.approx(3e-3 * (low * high) ** 0.5)
    # The learning rate warms up from zero: the first update moves nothing.
    assert training.points[0].update_norm == 0.0
    assert training.points[0].critical_low is None
    assert training.points[0].edge_ratio is None


def test_a_resumed_run_goes_on_with_its_record(tmp_path: Path) -> None:
    folder = tmp_path / "probe"
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 20}

    def probe() -> ProbeCallback:
        return ProbeCallback(make_task(), every=10, folder=folder, budget=None)

    train(tmp_path / "run", probe(), steps=40, **saving)
    first: Training = lp.load(folder)
    assert first.steps.tolist() == [0, 10, 20, 30]
    train(tmp_path / "run", probe(), steps=50, resume=str(tmp_path / "run" / "checkpoint-20"), **saving)
    second: Training = lp.load(folder)
    assert second.steps.tolist() == [0, 10, 20, 30, 40]
    assert second.points[:2] == first.points[:2]
    # Points from the resumed step on are measured anew: the same numbers, another time.
    assert second.points[2].eigenvalues == first.points[2].eigenvalues
    assert second.points[2].seconds != first.points[2].seconds
    train(tmp_path / "run", probe(), steps=11)
    assert lp.load(folder).steps.tolist() == [0, 10]


def test_mixed_precision_is_measured_in_full(tmp_path: Path) -> None:
    probe = ProbeCallback(make_task(), every=2, folder=tmp_path / "probe", budget=None)
    trainer = train(tmp_path / "run", probe, steps=3, bf16=True)
    plain = train(tmp_path / "plain", steps=3, bf16=True)
    assert same(plain.model.state_dict(), trainer.model.state_dict())
    training: Training = lp.load(tmp_path / "probe")
    # bfloat16 has 8 bits: through it the loss at the start would differ in the third digit.
    task = make_task(make_model().eval())
    with torch.no_grad():
        sums, counts = zip(*(task.loss(batch) for batch in task.evaluation), strict=True)
    assert training.loss[0] == pytest.approx(float(sum(sums)) / sum(counts), rel=1e-6)
