"""Two ranks under torchrun find what one process does: products, gradients, and a spectrum from slices of its basis."""

import re
from typing import Any

import pytest
import torch

from lite_probe.measurements.spectrum import measure_spectrum
from lite_probe.results.spectrum import Spectrum
from lite_probe.results.store import save
from lite_probe.vectors.ranks import ALONE
from lite_probe.vectors.reductions import CHUNK
from tests.launching import RANKS, finished, started
from tests.operators import rank_worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start() -> Spectrum:
    """The spectrum that steps, subspace and replay start from, of one process."""
    return measure_spectrum(rank_worker.trained(), top=2, bottom=0, probes=2, probe_steps=4, tolerance=1e-6)


@pytest.fixture(scope="module")
def alone(start: Spectrum) -> dict[str, dict[str, torch.Tensor]]:
    """What one process measures from there."""
    return rank_worker.measured(rank_worker.trained(), start)


@pytest.fixture(scope="module")
def found(start: Spectrum, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks has found."""
    out = tmp_path_factory.mktemp("ranks")
    save(start, out)
    code, _, said = finished(started([rank_worker.__file__, out]))
    assert code == 0, said
    return [torch.load(out / f"found-{rank}.pt") for rank in range(RANKS)]


def test_products_of_two_batches_are_those_of_one_process_bit_by_bit(found: list[dict[str, Any]]) -> None:
    expected = rank_worker.products(rank_worker.two_batches())
    kept = expected.pop("kept")
    assert float(expected["hessian"].abs().max()) > 1e-3
    for one in found:
        assert one["two"].pop("kept") == kept == 1  # each rank keeps the graph of a batch of its own
        assert one["two"].keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(one["two"][name], tensor), name


@pytest.mark.parametrize(("name", "make"), [("three", rank_worker.three_batches), ("one", rank_worker.one_batch)])
def test_products_of_unequal_or_few_batches_are_those_of_one_process(
    found: list[dict[str, Any]], name: str, make: Any
) -> None:
    expected = rank_worker.products(make())
    del expected["kept"]
    for one in found:
        for quantity, tensor in expected.items():
            # A difference of gradients divides their rounding by its step, 1e-5 of the weights.
            tolerance = 1e-9 if quantity == "differences" else 1e-12
            torch.testing.assert_close(one[name][quantity], tensor, rtol=tolerance, atol=tolerance)
    # Sums are the same on every rank, to the bit.
    assert all(torch.equal(found[0][name][quantity], found[1][name][quantity]) for quantity in expected)


def test_a_batch_that_is_not_finite_is_named_on_all_ranks(found: list[dict[str, Any]]) -> None:
    text = "NumericsError: expected a finite loss, got nan on evaluation batch 1; check the checkpoint"
    assert all(one["nan"]["error"].startswith(text) for one in found), found[0]["nan"]


def test_parameters_without_a_gradient_are_told_apart_on_all_ranks(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert (one["unused"]["three"], one["unused"]["one"]) == ("", "")
        assert (
            "expected a gradient for every parameter that the loss depends on, got none for 1: idle"
            in (one["unused"]["cut off"])
        )


def test_a_spectrum_from_slices_is_that_of_one_process(found: list[dict[str, Any]]) -> None:
    expected = rank_worker.spectrum(rank_worker.wide_task())
    vectors = expected.pop("vectors").double()
    assert len(vectors) > 2 * CHUNK
    first, second = (one["spectrum"] for one in found)
    assert "vectors" not in second  # rank 0 alone puts them together
    agreed = (first.pop("vectors").double() * vectors).sum(dim=0).abs()
    # Eigenvectors are defined up to their sign, and stored in float32.
    torch.testing.assert_close(agreed, torch.ones_like(agreed), rtol=0.0, atol=1e-6)
    for name, tensor in expected.items():
        # Residuals at 1e-5 of λ are differences of what agrees to 1e-12 of it; probes are deflated by Ritz vectors,
        # which turn by a rounding over the gap to the next one.
        tolerance = {"residual_norms": 1e-6, "nodes": 1e-9, "weights": 1e-9}.get(name, 1e-12)
        torch.testing.assert_close(first[name], tensor, rtol=tolerance, atol=min(tolerance, 1e-9))
        assert torch.equal(first[name], second[name])


def test_an_interrupted_spectrum_goes_on_bit_by_bit(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one["resumed"]["continued from"] > 5
        for name, tensor in one["spectrum"].items():
            assert torch.equal(one["resumed"]["numbers"][name], tensor), name
        assert "with the 2 ranks that began, got 1; start 2 ranks again" in one["resumed"]["refusal"]


@pytest.mark.parametrize(("kind", "tolerance"), [("steps", 1e-9), ("subspace", 1e-9), ("replay", 0.0)])
def test_other_kinds_are_those_of_one_process(
    kind: str, tolerance: float, found: list[dict[str, Any]], alone: dict[str, dict[str, torch.Tensor]]
) -> None:
    expected = alone[kind]
    assert len(expected) > 20
    for one in found:
        assert one["measured"][kind].keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(one["measured"][kind][name], tensor, rtol=tolerance, atol=tolerance, msg=name)


def test_a_rank_without_a_slice_saves_and_continues_too(found: list[dict[str, Any]]) -> None:
    expected = rank_worker.spectrum(rank_worker.narrow_task())
    for one in found:
        assert one["resumed narrow"]["continued from"] > 5
        numbers = one["resumed narrow"]["numbers"]
        for name in ("eigenvalues", "lower_eigenvalues", "nodes", "traces"):
            torch.testing.assert_close(numbers[name], expected[name], rtol=1e-9, atol=1e-9)


def test_shards_of_parameters_are_refused(found: list[dict[str, Any]]) -> None:
    text = "InputError: expected whole parameters on every rank, got 6 of 6 as shards (DTensor); load the whole model"
    assert all(one["sharded"]["error"].startswith(text) for one in found), found[0]["sharded"]


@pytest.mark.parametrize("what", ["weights", "batches"])
def test_ranks_that_do_not_measure_the_same_are_refused(found: list[dict[str, Any]], what: str) -> None:
    text = "InputError: expected the same weights, batches and options on every rank, got fingerprint "
    marks = r"(\w{12}) on rank 0 and (\w{12}) on rank 1; "
    first, second = (re.match(text + marks, one["unlike"][what]) for one in found)
    assert first is not None, found[0]["unlike"]
    assert second is not None, found[1]["unlike"]
    assert first.groups() == second.groups()
    assert first[1] != first[2]


def test_ranks_hold_slices_and_tell_each_other(found: list[dict[str, Any]]) -> None:
    first, second = (one["exchanges"] for one in found)
    size = 3 * CHUNK + 7
    assert (first["part"], second["part"]) == ((0, 2 * CHUNK), (2 * CHUNK, size))
    assert (first["short"], second["short"]) == ((0, 5, True), (5, 5, True))
    assert (first["once"], second["once"]) == ("rank 0", "rank 0")
    assert (first["own"], second["own"]) == ([(0, "a"), (2, "c"), (4, "e")], [(1, "b"), (3, "d")])
    assert torch.equal(first["project"], second["project"])
    for one in (first, second):
        assert one["whole"]
        assert one["long"]
        assert one["every"] == [1, 5001]
        assert one["refused"] == "UsageError: expected no rank 0, got it; do without"
        assert one["least"] == 6
        assert one["norm"] == pytest.approx(1.0, abs=1e-7)
        assert one["tiny"] == pytest.approx(1.0, abs=1e-6)


def test_one_process_holds_everything() -> None:
    size = 3 * CHUNK + 7
    assert ALONE.part(size) == slice(0, size)
    assert ALONE.own("ab") == [(0, "a"), (1, "b")]
    assert ALONE.shares("ab") == [["a", "b"]]
    assert ALONE.from_every(3) == [3]
    tensor = torch.ones(2)
    assert ALONE.add_up(tensor) is tensor
