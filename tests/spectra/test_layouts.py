"""How a measurement is laid out in memory: what costs least of what fits, by numbers that tell their origin."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from lite_probe.errors import UsageError
from lite_probe.runtime.memory import MemoryLayout
from lite_probe.spectra.costs import Costs, lay_out, peak_bytes
from lite_probe.spectra.operator import OperatorRequest

_REQUEST = OperatorRequest(top=4, bottom=2, probes=4)
_UNIT = 2**24  # large enough for a basis on disk to be mapped in pieces, of 8 units
# 5 at rest, 1,000 a graph, 10 a vector, of which a product takes three.
_HELD, _GRAPH, _VECTOR = 5, 1000, 10
_COSTS = Costs(
    held_bytes=_HELD * _UNIT,
    product_bytes=(_HELD + _GRAPH + 3 * _VECTOR) * _UNIT,
    graph_bytes=_GRAPH * _UNIT,
    vector_bytes=_VECTOR * _UNIT,
    build_seconds=0.0,
    product_seconds=0.0,
)
_LONGEST, _SHORTEST, _ELSEWHERE = 3 * 6 + 30, 6 + 8, 2 * 6 + 10
_PARTS = 3
_SIZE = 1000
_PLACES = ("device", "cpu", "disk")


def laid(room: float, *, costs: Costs = _COSTS, parts: int = _PARTS, size: int = _SIZE, **more: Any) -> MemoryLayout:
    """Lay out what fits into some room, and the reserve beside it."""
    return lay_out(_REQUEST, costs, parts, math.ceil(room * _UNIT * (1 + 1 / 32)), size, **more)


def needed(layout: MemoryLayout, *, apart: bool = False) -> float:
    return peak_bytes(_COSTS, _PARTS, layout, apart=apart) / _UNIT


def work(layout: MemoryLayout) -> float:
    """Products, by hand: 26 of pairs and one check, 4 probes of 10 steps; a fifth more of those where it restarts."""
    restarts = 0.2 * 26 * max(_LONGEST - layout.basis_columns, 0) / (_LONGEST - _SHORTEST)
    passes = 26 + 10 * math.ceil(4 / layout.vectors_per_pass)
    return 26 + 1 + 40 + restarts + 0.7 * (1 - layout.kept_graphs / _PARTS) * passes


def every_layout(host: float | None) -> list[MemoryLayout]:
    """All that could be chosen, whether it fits or not."""
    found = []
    for kept in range(_PARTS + 1):
        for together in (1,) if kept == _PARTS else (4, 2, 1):
            one = MemoryLayout(
                rows=None, kept_graphs=kept, vectors_per_pass=together, basis_placement="device", basis_columns=0
            )
            found += [replace(one, basis_columns=columns) for columns in range(_SHORTEST, _LONGEST + 1)]
            found.append(replace(one, basis_placement="disk", basis_columns=_ELSEWHERE))
            room = 0 if host is None else int(host / _VECTOR) - 1 - 3 * together
            if room >= _SHORTEST:
                found.append(replace(one, basis_placement="cpu", basis_columns=min(room, _ELSEWHERE)))
    return found


@pytest.mark.parametrize("host", [None, 100, 250, 10_000])
def test_what_costs_least_of_what_fits_is_chosen(host: float | None) -> None:
    """First by where the basis is, then by products; the oracle looks at every layout there is."""
    every = every_layout(host)
    apart = host is not None
    least = min(needed(one, apart=apart) for one in every)
    seen = set()
    for budget in range(math.ceil(least), 4 * _GRAPH, 7):
        fitting = [one for one in every if needed(one, apart=apart) <= budget]
        best = min(fitting, key=lambda one: (_PLACES.index(one.basis_placement), work(one)))
        found = laid(budget, host=None if host is None else int(host * _UNIT))
        assert needed(found, apart=apart) <= budget
        assert found.basis_placement == best.basis_placement
        assert work(found) == pytest.approx(work(best), rel=1e-12)
        seen.add((found.basis_placement, found.kept_graphs, found.vectors_per_pass))
    with pytest.raises(UsageError):
        laid(least - 1, host=None if host is None else int(host * _UNIT))
    # Budgets between ample and refused have been through every way down.
    assert {kept for _, kept, _ in seen} >= {0, 1, _PARTS}
    assert {together for _, _, together in seen} == {4, 2, 1}
    assert {place for place, _, _ in seen} == {"device", "cpu" if host in (250, 10_000) else "disk"}


def test_ample_memory_keeps_every_graph_and_a_long_basis() -> None:
    expected = MemoryLayout(
        rows=None, kept_graphs=_PARTS, vectors_per_pass=1, basis_placement="device", basis_columns=_LONGEST
    )
    assert laid(10_000) == laid(10_000, host=10_000 * _UNIT) == expected


def test_fewer_vectors_share_a_graph_before_the_basis_leaves() -> None:
    """Four vectors per pass, then two, then one: each saves their images and neighbours."""
    rebuilt = _HELD + _GRAPH + 3 * _VECTOR
    room = [rebuilt + (_SHORTEST + 3 * together - 1) * _VECTOR for together in (4, 2, 1)]
    found = [laid(budget) for budget in (*room, room[-1] - 1)]
    assert [one.vectors_per_pass for one in found] == [4, 2, 1, 4]
    assert [one.basis_placement for one in found] == ["device", "device", "device", "disk"]
    assert {one.kept_graphs for one in found} == {0}


def test_a_rebuilt_graph_comes_on_top_of_kept_ones() -> None:
    one = laid(10_000)
    kept = needed(one)
    assert kept == _HELD + 3 * _GRAPH + (3 + 2 + _LONGEST) * _VECTOR
    assert needed(replace(one, kept_graphs=2)) == kept
    assert needed(replace(one, kept_graphs=1)) == kept - _GRAPH
    assert needed(replace(one, kept_graphs=0)) == kept - 2 * _GRAPH
    assert needed(replace(one, kept_graphs=0, vectors_per_pass=4)) == kept - 2 * _GRAPH + 9 * _VECTOR


def test_a_basis_elsewhere_leaves_the_device_its_vectors_at_work() -> None:
    """Of an accelerator only a step's vectors and images; on a CPU the probes and the mapped pages too."""
    one = replace(laid(10_000), kept_graphs=0, vectors_per_pass=4, basis_placement="disk", basis_columns=_ELSEWHERE)
    at_work = _HELD + _GRAPH + 3 * _VECTOR
    assert needed(one, apart=True) == at_work + 2 * 3 * _VECTOR
    assert needed(one) == at_work + (3 * 4 - 1) * _VECTOR + 8
    in_memory = replace(one, basis_placement="cpu")
    assert needed(in_memory, apart=True) == needed(one, apart=True)
    assert needed(in_memory) == at_work + (3 * 4 - 1 + _ELSEWHERE) * _VECTOR


def test_a_basis_goes_to_the_host_before_it_goes_to_disk() -> None:
    """It has there what the host has free, beside the vectors of a step."""
    budget = _HELD + _GRAPH + 3 * _VECTOR + 6 * _VECTOR
    assert laid(budget).basis_placement == "disk"
    ample = laid(budget, host=10_000 * _UNIT)
    assert (ample.basis_placement, ample.basis_columns, ample.vectors_per_pass) == ("cpu", _ELSEWHERE, 4)
    assert ample.place == "in host memory"
    fewest = (_SHORTEST + 1 + 3) * _VECTOR
    tight = laid(budget, host=fewest * _UNIT)
    assert (tight.basis_placement, tight.basis_columns, tight.vectors_per_pass) == ("cpu", _SHORTEST, 1)
    assert laid(budget, host=fewest * _UNIT - 1).basis_placement == "disk"


def test_a_basis_never_has_more_columns_than_parameters() -> None:
    found = laid(10_000, size=20)
    assert (found.kept_graphs, found.basis_columns, found.basis_placement) == (3, 20, "device")


def test_finite_differences_keep_no_graphs() -> None:
    found = laid(10_000, costs=replace(_COSTS, graph_bytes=0))
    assert (found.kept_graphs, found.vectors_per_pass, found.basis_columns) == (0, 1, _LONGEST)


_REFUSED = [
    (_COSTS, None, "lower --batch-size or --seq-len"),
    (_COSTS, 1, "or lower --seq-len"),
    (replace(_COSTS, held_bytes=900 * _UNIT, product_bytes=1300 * _UNIT, graph_bytes=300 * _UNIT), None, "free some"),
    (replace(_COSTS, vector_bytes=500 * _UNIT, product_bytes=2505 * _UNIT), None, "fewer parameters"),
]


@pytest.mark.parametrize(("costs", "rows", "remedy"), _REFUSED)
def test_a_refusal_names_what_is_largest(costs: Costs, rows: int | None, remedy: str) -> None:
    with pytest.raises(UsageError, match=r"expected at least \d[\d.]* GiB of memory for one product") as caught:
        laid(400, costs=costs, rows=rows)
    assert caught.value.hint.startswith("allow more with --memory, or ")
    assert remedy in caught.value.hint


def test_a_refusal_says_what_takes_how_much() -> None:
    """5 units at rest, 1,000 of a graph; 3 vectors of a product, 2 beside it, and 8 units of a mapped basis."""
    message = (
        "expected at least 17.13 GiB of memory for one product (80 MiB for the weights and whatever else is held, "
        "15.62 GiB for the graph of 2 rows of a batch, 928 MiB for vectors of 160 MiB each, 531.5 MiB in reserve), "
        "got 16.11 GiB"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        laid(1000, rows=2)
