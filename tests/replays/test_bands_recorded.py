"""Bands in a replay: their rates, their flat allocations and their curvature, against dense projectors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from lite_probe.errors import UsageError
from lite_probe.measurements import replay_session
from lite_probe.measurements.replay import replay
from lite_probe.measurements.requests.replay import ReplayRequest
from lite_probe.replays import plan as planning
from lite_probe.replays.allocation import Point, StepChange, evaluate
from lite_probe.replays.curvature import KINDS, PRODUCT_GRADIENTS, BandProbes
from lite_probe.replays.recorder import Recorder
from lite_probe.results.replay import Replay
from lite_probe.results.store import load, save
from lite_probe.subspaces import Bands, Subspace, cut_bands, optimizer_of, warm
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests import models
from tests.oracles import known_hessian, mathematical_attention, matrix_with
from tests.plans import plan_replay
from tests.replays.conftest import quadratic_task, spectrum_of, with_training
from tests.replays.test_gradient_descent import EIGENVALUES, START, exact_subspace

LR, STEPS, SEEDS = 0.3, 5, 2
ASKED: dict[str, Any] = {"steps": STEPS, "seeds": SEEDS, "warm_batches": 4, "ramp": 0, "lr": LR}
FloatArray = NDArray[np.float64]


def quadratic() -> tuple[Task, Tensor]:
    matrix = matrix_with(EIGENVALUES, seed=5)
    return quadratic_task(matrix, START), matrix


def bands_of(task: Task) -> tuple[ParameterLayout, Bands]:
    layout = ParameterLayout(list(task.model.named_parameters()))
    optimizer = optimizer_of(task, "adamw")
    warm(task, [optimizer], task.train[:4])
    return layout, cut_bands(layout, optimizer.directions(), optimizer="adamw")


def projectors(bands: Bands, size: int) -> FloatArray:
    """(B, N, N): every P_b, column by column."""
    unit = torch.eye(size, dtype=torch.float64)
    return np.array([[bands.project(one, [band]).numpy() for one in unit] for band in range(len(bands))])


def test_the_recorder_against_dense_projectors() -> None:
    """Products of seven terms of order one in float64: a few 1e-15."""
    task, matrix = quadratic()
    _, bands = bands_of(task)
    dense, sharp = projectors(bands, 7), exact_subspace(matrix)
    assert len(bands) > 3
    mean, update, start = torch.randn(3, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    end = Point(0.0, mean, 1)
    found = Recorder(sharp, bands).record(StepChange(mean, end, 0.0, 0.0, 0.0, 0.0, 2), start, update)
    vectors = np.stack([sharp.vector(index).numpy() for index in range(sharp.size)])
    d, g, m = update.numpy(), start.numpy(), mean.numpy()
    flat = m - vectors.T @ (vectors @ m)
    expected = {
        "band_allocations": dense @ d @ m,
        "band_energies": dense @ d @ d,
        "band_flat_allocations": dense @ d @ flat,
        "band_slopes": dense @ d @ g,
        "band_gradient_energies": dense @ g @ g,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-14, err_msg=name)
    assert sum(found["band_flat_allocations"]) == pytest.approx(m @ d - (vectors @ m) @ (vectors @ d), abs=1e-14)


@pytest.fixture(scope="module")
def replayed() -> tuple[Replay, Bands, Tensor]:
    """Gradient descent on the quadratic with 64 probes of either kind, and the bands that it was watched in."""
    task, matrix = quadratic()
    kept: list[Bands] = []

    def cut(*args: Any, **rest: Any) -> Bands:
        kept.append(cut_bands(*args, **rest))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_session, "cut_bands", cut)
        found = replay(task, ["sgd"], spectrum=spectrum_of(task), curvature_probes=64, **ASKED)
    return found, kept[0], matrix


def test_gradient_descent_has_its_learning_rate_in_every_band(replayed: tuple[Replay, Bands, Tensor]) -> None:
    found, _, _ = replayed
    rates = found.band_effective_lrs("sgd")
    assert rates is not None
    np.testing.assert_allclose(rates[0], LR, rtol=1e-12)
    exponent = found.wide_exponent("sgd")
    assert exponent is not None
    # Along eigenvectors, kept in float32, rates are off by some 1e-6.
    assert abs(exponent.value) < 1e-5


def test_slopes_and_gradients_of_bands_add_up(replayed: tuple[Replay, Bands, Tensor]) -> None:
    for run in replayed[0].runs:
        np.testing.assert_allclose(run.band_slopes.sum(axis=1), run.slopes, rtol=1e-12)
        np.testing.assert_allclose(-LR * run.band_gradient_energies.sum(axis=1), run.slopes, rtol=1e-12)


def test_flat_allocations_of_bands_add_up_to_the_flat_part(replayed: tuple[Replay, Bands, Tensor]) -> None:
    """The parts and the sharp one are the loss change but for the closure error; eigenvectors are float32's."""
    for run in replayed[0].runs:
        size = np.abs(run.allocations).max()
        np.testing.assert_allclose(run.band_flat_allocations.sum(axis=1), run.flat_allocations, atol=1e-6 * size)
        total = run.band_flat_allocations.sum() + run.sharp_allocations.sum()
        assert abs(total - run.loss_change) <= run.closure_error + 1e-6 * abs(run.loss_change)


def test_curvatures_of_bands_are_those_of_the_matrix(replayed: tuple[Replay, Bands, Tensor]) -> None:
    found, bands, matrix = replayed
    table = found.bands
    exact = np.array([np.trace(one @ matrix.numpy()) for one in projectors(bands, 7)]) / table.dimensions
    assert table.num_probes == 64
    # A normal error is beyond five of its own once in two million; 64 probes know theirs to a tenth.
    assert (np.abs(table.curvatures - exact) < 5.5 * table.curvature_errors).all()
    assert (table.curvature_errors > 0.0).all()
    assert (table.curvature_errors < 0.5).all()
    np.testing.assert_allclose(table.curvature_halves, 1.998341 * table.curvature_errors, rtol=1e-6)
    curved = found.curved_bands
    assert curved.tolist() == (table.curvatures > table.curvature_halves).tolist()
    assert curved.any()


def test_curvatures_of_a_trained_model_are_those_of_its_dense_hessian() -> None:
    """SOAP's rotated bands of a small Llama. Errors are estimated from 40 probes: seven of them are never passed."""
    task, hessian = models.make_task("llama", torch.float32), known_hessian("llama").float()
    layout = ParameterLayout(list(task.model.named_parameters()))
    optimizer = optimizer_of(task, "soap")
    warm(task, [optimizer], task.evaluation * 4)
    bands = cut_bands(layout, optimizer.directions(), optimizer="soap")
    pairs = Subspace.of_spectrum(spectrum_of(task), task)
    probes = BandProbes(task, layout, bands, pairs, count=evaluate(task, layout).count, seed=0)
    with mathematical_attention():
        full, tail = (np.stack([probes.sample(kind, index) for index in range(40)]) for kind in KINDS)
    means, errors = probes.curvatures(full, tail)
    exact = np.zeros(len(bands))
    for unit, column in zip(torch.eye(layout.size), hessian.T, strict=True):
        exact += bands.products(unit, column).numpy()
    exact /= bands.table.dimensions
    assert (np.abs(means - exact) < 7.0 * errors).all()
    # The sharpest band of some block is known well enough to tell it from zero, and bands span two decades.
    assert (means > 5.0 * errors).any()
    assert np.abs(exact).max() > 100.0 * np.abs(exact).min()


def test_curvatures_are_those_of_the_evaluation_batches_beside_held_out_ones() -> None:
    """As many samples held out as not would hide whose count it is: there are four beside two."""
    task, _ = quadratic()
    alone = replay(task, ["sgd"], spectrum=spectrum_of(task), **{**ASKED, "seeds": 1})
    task.heldout = [torch.tensor([[-3.0 - one, 0.0] for one in range(4)], dtype=torch.float64)]
    beside = replay(task, ["sgd"], spectrum=spectrum_of(task), **{**ASKED, "seeds": 1})
    assert beside.on_same_batches() is not None
    np.testing.assert_allclose(beside.bands.curvatures, alone.bands.curvatures, rtol=1e-9)


def test_another_seed_has_other_probes() -> None:
    task, matrix = quadratic()
    layout, bands = bands_of(task)
    pairs = exact_subspace(matrix)

    def sample(seed: int, kind: Any, index: int) -> FloatArray:
        return BandProbes(task, layout, bands, pairs, count=2, seed=seed).sample(kind, index)

    first = sample(0, "full", 0)
    assert first.tolist() == sample(0, "full", 0).tolist()
    for other in (sample(1, "full", 0), sample(0, "full", 1), sample(0, "tail", 0)):
        assert not np.allclose(first, other)
    tail = sample(0, "tail", 0)
    assert (tail[bands.table.low < 0.3] == 0.0).all()
    assert (tail[bands.table.low >= 0.3] != 0.0).all()


def classifier() -> Task:
    return with_training("mlp", 4 + STEPS * (SEEDS + 1))


def test_the_plan_counts_the_products_and_progress_their_gradients() -> None:
    task = classifier()
    asked = {**ASKED, "spectrum": spectrum_of(task), "lr": 1e-3, "tolerance": 0.99}
    asked["landscape"] = False
    plan = plan_replay(task, ["muon"], curvature_probes=3, **asked)
    without = plan_replay(task, ["muon"], curvature_probes=0, **asked)
    assert (plan.num_hvps, without.num_hvps) == (6, 0)
    assert plan.num_gradients == without.num_gradients
    assert plan.fingerprint != without.fingerprint
    assert " gradients and 6 Hessian products, " in plan.summary()
    told: list[tuple[int, int]] = []
    found = plan.run(task, on_progress=lambda done, total, _: told.append((done, total)))
    expected = plan.num_gradients + 6 * PRODUCT_GRADIENTS
    assert told[-1] == (expected, expected)
    assert {total for _, total in told[5:]} == {expected}
    assert found.bands.num_probes == 3
    bare = without.run(task)
    assert bare.bands.num_probes == 0
    assert bare.wide_exponent("muon") is None
    assert bare.band_effective_lrs("muon") is not None
    for one, other in zip(found.runs, bare.runs, strict=True):
        assert one.losses.tolist() == other.losses.tolist()


def test_one_probe_has_no_spread() -> None:
    with pytest.raises(UsageError, match="expected curvature probes of at least 2, whose spread is their error, got 1"):
        ReplayRequest(optimizers=["sgd"], curvature_probes=1)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_a_model_that_cannot_be_differentiated_twice_goes_without() -> None:
    task = classifier()
    spectrum, predict = spectrum_of(task), task.predict
    task.predict = lambda model, batch: _Once.apply(predict(model, batch))  # type: ignore[no-untyped-call]
    plan = plan_replay(task, ["muon"], spectrum=spectrum, **{**ASKED, "lr": 1e-3})
    assert plan.num_hvps == 0
    found = plan.run(task)
    assert found.bands.num_probes == 0
    (note,) = [note for note in found.notes if note.code == "no-curvature"]
    assert note.message.startswith("The curvature of bands was not measured, so that rates stand beside it for eigen")


def test_products_that_are_not_finite_are_left_out() -> None:
    """|z|^1.5 has a gradient at 0, and no second derivative."""
    task = classifier()
    spectrum, whole = spectrum_of(task), task.criterion

    def more(outputs: Tensor, batch: Any) -> tuple[Tensor, int]:
        loss, count = whole(outputs, batch)
        return loss + ((0.0 * outputs).abs() ** 1.5).sum(), count

    task.criterion = more
    found = replay(task, ["muon"], spectrum=spectrum, **{**ASKED, "lr": 1e-3})
    assert found.bands.num_probes == 0
    (note,) = [note for note in found.notes if note.code == "no-curvature"]
    assert note.message.endswith("expected finite Hessian products at the start, got NaN or infinity.")
    assert found.runs[0].is_recorded


def test_where_products_have_no_room_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    task = classifier()
    asked = {**ASKED, "spectrum": spectrum_of(task), "lr": 1e-3, "landscape": False}
    whole = plan_replay(task, ["muon"], **asked)
    costs = planning.with_products

    def large(*args: Any) -> Any:
        return replace(costs(*args), peak_bytes=2**60)

    monkeypatch.setattr(planning, "with_products", large)
    plan = plan_replay(task, ["muon"], **asked)
    assert (whole.num_hvps, plan.num_hvps) == (16, 0)
    assert plan.no_curvature == "a Hessian product does not fit into memory beside the rest"


def test_products_that_were_made_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped behind the third of four: the numbers are those of one go, bitwise, and so they are on disk."""
    task = classifier()
    asked = {**ASKED, "spectrum": spectrum_of(task), "lr": 1e-3, "curvature_probes": 2}
    made, sample = list[int](), BandProbes.sample

    def counting(self: BandProbes, kind: Any, index: int) -> FloatArray:
        made.append(index)
        return sample(self, kind, index)

    monkeypatch.setattr(BandProbes, "sample", counting)
    whole = replay(task, ["muon"], **asked)

    def stop(done: int, total: int, label: str) -> None:
        if label == "curvature of the bands · tail probe 1/2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(task, ["muon"], **asked, state_directory=tmp_path, on_progress=stop)
    assert len(made) == 4 + 3
    again = replay(task, ["muon"], **asked, state_directory=tmp_path)
    assert len(made) == 4 + 4
    save(again, tmp_path)
    for one in (again, load(tmp_path, "replay")):
        assert one.bands.curvatures.tolist() == whole.bands.curvatures.tolist()
        assert one.bands.curvature_errors.tolist() == whole.bands.curvature_errors.tolist()
        for run, other in zip(one.runs, whole.runs, strict=True):
            for name in ("band_flat_allocations", "band_slopes", "band_gradient_energies"):
                assert getattr(run, name).tolist() == getattr(other, name).tolist()
                assert getattr(run, name).shape == (STEPS, len(whole.bands.blocks))
