"""A page takes work and bytes in proportion to the number of blocks: a user's blocks may be a thousand."""

import cProfile
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lite_probe.reports.page import render_page
from lite_probe.reports.runs import Run
from lite_probe.reports.view import make_view
from tests.reports.fixtures import (
    make_block_calibration,
    make_operator_spectrum,
    make_replay,
    make_spectrum,
    make_subspace,
)


def names(count: int) -> list[str]:
    return [f"layer {place}" for place in range(count)]


def with_spectra(count: int) -> Run:
    block = make_operator_spectrum(1000, 3.0, 1e-3, top=2, bottom=1, probes=2, steps=10)
    return Run(spectrum=replace(make_spectrum(blocks=False), blocks=dict.fromkeys(names(count), block)))


def with_calibrations(count: int) -> Run:
    subspace = make_subspace(optimizers=("muon-lite",))
    block = make_block_calibration(1000, 1.0, 1e-3, "holds")
    one = replace(subspace.calibrations["muon-lite"], blocks=dict.fromkeys(names(count), block))
    return Run(subspace=replace(subspace, calibrations={"muon-lite": one}))


def with_bands(count: int) -> Run:
    replay = make_replay(optimizers=("muon", "muon-lite"), steps=2, seeds=2)
    bands = replace(
        replay.bands,
        blocks=tuple(name for name in names(count) for _ in range(2)),
        low=np.tile([0.0, 0.1], count),
        high=np.tile([0.1, 1.0], count),
        dimensions=np.full(2 * count, 10, dtype=np.int64),
        curvatures=np.full(2 * count, 1e-3),
        curvature_errors=np.full(2 * count, 1e-4),
    )
    each = np.full((2, 2 * count), 1e-4)
    recorded = ("allocations", "energies", "flat_allocations", "slopes", "gradient_energies")
    runs = tuple(replace(run, **{f"band_{name}": each for name in recorded}) for run in replay.runs)
    return Run(replay=replace(replay, bands=bands, runs=runs))


def num_calls(work: Callable[[], object]) -> int:
    """Count function calls, which no other process disturbs."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return sum(entry.callcount for entry in profile.getstats())


def cost(run: Run) -> np.ndarray:
    """Calls to decide what a page says and draw its figures, and its bytes."""
    page = render_page([run])
    return np.array([num_calls(lambda: make_view([run])), len(page)])


@pytest.mark.slow
@pytest.mark.parametrize("make", [with_spectra, with_calibrations, with_bands])
def test_twice_the_blocks_are_twice_the_work(make: Callable[[int], Run]) -> None:
    few, some, many = (cost(make(count)) for count in (20, 40, 80))
    # Of a linear cost the second difference is zero; of a quadratic one the growth doubles: 4 in place of 2.
    assert (many - some < 2.1 * (some - few)).all()
