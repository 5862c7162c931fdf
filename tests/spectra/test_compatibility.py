"""A saved spectrum belongs to one θ₀ and one set of evaluation batches, and says so when it is asked about others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lite_probe as lp
from lite_probe.errors import InputError
from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.results.spectrum import Spectrum
from lite_probe.spectra import batches_digest, require_same_task
from lite_probe.task import Task
from tests import models

Change = Callable[[Task, Spectrum], tuple[Task, Spectrum]]


@pytest.fixture(scope="module")
def spectrum() -> Spectrum:
    return measure_spectrum(models.make_task("mlp"), top=2, bottom=1, probes=2, probe_steps=2)


def test_its_own_task_is_accepted(spectrum: Spectrum) -> None:
    require_same_task(spectrum, models.make_task("mlp"), loss=spectrum.loss)


def test_it_is_known_again_after_saving(spectrum: Spectrum, tmp_path: Path) -> None:
    lp.save(spectrum, tmp_path)
    require_same_task(lp.load(tmp_path, "spectrum"), models.make_task("mlp"))


def test_one_of_blocks_is_known_again_too() -> None:
    task = models.make_task("mlp")
    require_same_task(measure_spectrum(task, top=2, bottom=0, probes=2, probe_steps=2, per_block=True), task)


def test_training_batches_do_not_matter(spectrum: Spectrum) -> None:
    task = models.make_task("mlp")
    require_same_task(spectrum, replace(task, train=list(task.evaluation)))


def _weights(task: Task, spectrum: Spectrum) -> tuple[Task, Spectrum]:
    with torch.no_grad():
        next(task.model.parameters()).view(-1)[0] += 1e-9
    return task, spectrum


def _batches(task: Task, spectrum: Spectrum) -> tuple[Task, Spectrum]:
    return replace(task, evaluation=list(task.evaluation)[::-1]), spectrum


def _precision(task: Task, spectrum: Spectrum) -> tuple[Task, Spectrum]:
    return models.make_task("mlp", torch.float32), spectrum


def _size(task: Task, spectrum: Spectrum) -> tuple[Task, Spectrum]:
    return models.make_task("llama"), spectrum


def _vectors(task: Task, spectrum: Spectrum) -> tuple[Task, Spectrum]:
    return task, replace(spectrum, eigenvectors=None)


def _operator(task: Task, spectrum: Spectrum) -> tuple[Task, Spectrum]:
    return task, replace(spectrum, operator="ggn")


def _split(task: Task, spectrum: Spectrum) -> tuple[Task, Spectrum]:
    return task, replace(spectrum, provenance=replace(spectrum.provenance, data_split="train"))


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (_weights, "expected a spectrum of these weights, those of in memory, got one of others", "--out"),
        (
            _batches,
            r"expected a spectrum of these evaluation batches \(digest [0-9a-f]{12}\), got one of others",
            "--seed",
        ),
        (_precision, "expected a spectrum of float32 weights, got one of float64", "--precision"),
        (_size, "expected a spectrum of [0-9,]+ parameters, got one of [0-9,]+", "--out"),
        (_vectors, "expected a spectrum with eigenvectors, got one without", "--fresh"),
        (_operator, "expected a spectrum of the Hessian, got one of operator ggn", "--operator"),
        (_split, "expected a spectrum of evaluation batches, got one of train batches", "--on evaluation"),
    ],
    ids=["weights", "batches", "precision", "size", "vectors", "operator", "split"],
)
def test_one_of_something_else_is_refused(change: Change, message: str, hint: str, spectrum: Spectrum) -> None:
    task, changed = change(models.make_task("mlp"), spectrum)
    with pytest.raises(InputError, match=message) as raised:
        require_same_task(changed, task)
    assert hint in raised.value.hint


def test_another_criterion_shows_in_the_loss(spectrum: Spectrum) -> None:
    with pytest.raises(InputError, match=r"expected a spectrum at the loss .* of this task, got one at"):
        require_same_task(spectrum, models.make_task("mlp"), loss=1.01 * spectrum.loss)


def test_a_machines_rounding_does_not(spectrum: Spectrum) -> None:
    require_same_task(spectrum, models.make_task("mlp"), loss=(1 + 1e-6) * spectrum.loss)


# -- digests ---------------------------------------------------------------------------------------------------------


def test_a_spectrum_carries_the_digest_of_the_batches_it_was_measured_on(spectrum: Spectrum) -> None:
    task = models.make_task("mlp")
    assert spectrum.provenance.batches_digest == batches_digest(task.evaluation)
    split = replace(task, train=list(task.evaluation)[:1])
    on_train = measure_spectrum(split, top=2, bottom=0, probes=2, probe_steps=2, split="train")
    assert on_train.provenance.batches_digest == batches_digest(split.train) != spectrum.provenance.batches_digest


def test_a_digest_is_of_contents_in_order() -> None:
    first, second = torch.arange(4), torch.ones(2, 2)
    assert batches_digest([first, second]) == batches_digest([first.clone(), second.clone()])
    digests = [
        batches_digest(batches)
        for batches in (
            [first, second],
            [second, first],
            [first],
            [],
            [first, second.double()],
            [first.view(2, 2), second],
            [(first, second)],
            [{"a": first}, second],
            [{"b": first}, second],
        )
    ]
    assert len(set(digests)) == len(digests)
