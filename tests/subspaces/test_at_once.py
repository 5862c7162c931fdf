"""How much of the optimizers a measurement of subspaces holds at once: planned by memory, with the same numbers."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from lite_probe.errors import UsageError
from lite_probe.measurements import subspace as measuring
from lite_probe.measurements.requests.subspace import SubspaceRequest
from lite_probe.measurements.subspace import AtOnce
from lite_probe.results.subspace import SubspaceMeasurement
from lite_probe.subspaces.footprints import footprint_of
from tests.plans import plan_subspace
from tests.subspaces import landscapes

OPTIMIZERS = ("adamw-lite", "soap-lite")
PROBES, WARM = 4, 2
ASKED: dict[str, Any] = {
    "optimizers": OPTIMIZERS,
    "probes": PROBES,
    "warm_batches": WARM,
    "overlaps": False,
    "preconditioned": True,
    "size": 2,
}


@cache
def measured(at_once: AtOnce) -> tuple[SubspaceMeasurement, list[int]]:
    """The measurement, and how many optimizers each warm-up was of."""
    warmed: list[int] = []
    original = measuring.warm

    def counted(task: Any, optimizers: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        warmed.append(len(optimizers))
        original(task, optimizers, *args, **kwargs)

    task, spectrum = landscapes.quadratic_task(), landscapes.quadratic_spectrum()
    plan = replace(plan_subspace(task, spectrum, **ASKED), at_once=at_once)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "warm", counted)
        return plan.run(task), warmed


@pytest.mark.slow
@pytest.mark.parametrize("at_once", ["directions", "one"])
def test_one_after_another_gives_the_same_numbers(at_once: AtOnce) -> None:
    together, one = measured("all")[0], measured(at_once)[0]
    for name in OPTIMIZERS:
        first, second = together.calibrations[name], one.calibrations[name]
        for block, found in first.blocks.items():
            np.testing.assert_array_equal(found.curvature, second.blocks[block].curvature)
            np.testing.assert_array_equal(found.proxy, second.blocks[block].proxy)
        assert first.preconditioned is not None
        assert second.preconditioned is not None
        np.testing.assert_array_equal(first.preconditioned.eigenvalues, second.preconditioned.eigenvalues)
        assert first.own_norm is not None
        assert second.own_norm is not None
        np.testing.assert_array_equal(first.own_norm.values, second.own_norm.values)
        assert first.left_out_conditions is not None
        np.testing.assert_array_equal(first.left_out_conditions, second.left_out_conditions)
    assert one.batch_gradient_share == together.batch_gradient_share
    assert one.batch_gradient_share.num_samples == WARM


@pytest.mark.slow
def test_states_are_there_one_at_a_time() -> None:
    assert set(measured("all")[1]) == {2}
    assert set(measured("directions")[1]) == set(measured("one")[1]) == {1}


@pytest.mark.slow
def test_full_probes_are_made_for_each_where_directions_are_not_there_together() -> None:
    tail = 2 * 2
    products = {way: measured(way)[0].hvps_by_part["calibration"] for way in ("all", "directions", "one")}
    assert products == {"all": PROBES + tail, "directions": PROBES + tail, "one": 2 * PROBES + tail}
    for way, expected in products.items():
        assert measuring._products(SubspaceRequest(**ASKED), way)["calibration"] == expected  # type: ignore[arg-type]


def held(**asked: Any) -> Any:
    task = landscapes.quadratic_task()
    request = SubspaceRequest(spectrum=landscapes.quadratic_spectrum(), **{**ASKED, **asked})
    return measuring._Held(task, request, 4, {name: footprint_of(task, name) for name in request.optimizers or ()})


def test_memory_decides_how_much_is_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quickest way that fits what is warmed: each holds less than the one before."""
    monkeypatch.setattr(measuring, "memory_in_use", lambda device: 0)
    monkeypatch.setattr(measuring._Held, "beside_products", lambda self, at_once: 0)
    one = held(optimizers=("soap-lite", "adamw-lite"))
    needs = {way: one.warming(way, 0) for way in ("all", "directions", "one")}
    assert needs["all"] > needs["directions"] > needs["one"]
    for allowed, ways in (
        ("all", ["all", "directions", "one"]),
        ("directions", ["directions", "one"]),
        ("one", ["one"]),
    ):
        one.allowed = needs[allowed]
        assert one.ways(0) == ways
    monkeypatch.setattr(measuring._Held, "beside_products", lambda self, at_once: needs["all"])
    one.allowed = needs["all"]  # what is held beside products leaves no room for a short basis
    assert one.ways(0) == ["one"]
    assert held(optimizers=("adamw-lite",)).ways(0) == ["all"]


def test_what_does_not_fit_one_at_a_time_is_refused_before_anything_is_computed() -> None:
    def must_not_run(*args: Any) -> Any:
        raise AssertionError("expected no forward pass before the request is refused")

    task = landscapes.quadratic_task()
    task.predict = must_not_run
    message = "expected at least .* for the states of adamw-lite, soap-lite, one at a time, and the eigenvectors"
    with pytest.raises(UsageError, match=message):
        plan_subspace(task, landscapes.quadratic_spectrum(), **ASKED, memory=1000)


def test_the_plan_says_what_it_does() -> None:
    plan = plan_subspace(landscapes.quadratic_task(), landscapes.quadratic_spectrum(), **ASKED)
    assert plan.at_once == "all"
    assert "after another" not in plan.summary()
    assert replace(plan, at_once="one").summary().endswith(", one optimizer after another")
    assert replace(plan, at_once="directions").summary().endswith(", optimizers warmed one after another")
