"""What is estimated from batches, against known truth: quadratics with a dense H, steps that scatter between batches.

A block has several bands of several dimensions; d = μ + noise, so that G_b = −∇L·μ_b and K_b = μ_bᵀHμ_b + tr(Σ_bH_bb).
"""

from typing import Any

import numpy as np
import pytest

from lite_probe.results.replay import Recipe
from lite_probe.results.steps import OptimizerSteps, StepBands

WIDTHS = (1, 3, 4, 8, 20)  # dimensions of the bands of each of two blocks
PARTS = ("sharp", "sharp", "sharp", "middle", "flat")
BATCHES = 32


class Known:
    """A quadratic with two blocks, and the truth of everything that is estimated along its steps."""

    def __init__(self, seed: int, *, flat_curvature: float = 0.3) -> None:
        rng = np.random.default_rng(seed)
        size = 2 * sum(WIDTHS)
        basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
        values = np.geomspace(30.0, flat_curvature, size)
        mix = np.eye(size) + 0.05 * rng.standard_normal((size, size))
        order = np.concatenate([np.arange(sum(WIDTHS)) * 2, np.arange(sum(WIDTHS)) * 2 + 1])
        self.hessian = mix.T @ np.diag(values[order]) @ mix + 0.05 * basis @ np.diag(values) @ basis.T
        self.labels = np.repeat(np.arange(2 * len(WIDTHS)), WIDTHS * 2)
        self.mean = 0.1 * rng.standard_normal(size)
        self.gradient = -self.mean * np.diag(self.hessian) * rng.uniform(0.5, 2.0, size)
        self.spread = 0.05
        count = 2 * len(WIDTHS)
        self.gains, self.curvatures = np.zeros(count), np.zeros((count, count))
        for i in range(count):
            self.gains[i] = -self.gradient[self.labels == i] @ self.mean[self.labels == i]
            for j in range(count):
                part = self.hessian[np.ix_(self.labels == i, self.labels == j)]
                self.curvatures[i, j] = self.mean[self.labels == i] @ part @ self.mean[self.labels == j]
            own = self.hessian[np.ix_(self.labels == i, self.labels == i)]
            self.curvatures[i, i] += self.spread**2 * np.trace(own)

    def measured(self, seed: int, *, heavy_tails: bool = False, part_scatter: float = 0.2) -> OptimizerSteps:
        """Return what a measurement with other batches and signs would keep."""
        rng = np.random.default_rng(seed)
        count, size = len(self.gains), len(self.mean)
        noise = rng.standard_normal((BATCHES, size))
        if heavy_tails:
            noise *= np.sqrt(8.0 / rng.chisquare(10.0, size=(BATCHES, 1)))  # Student's t with ten degrees of freedom
        steps = self.mean + self.spread * noise
        signs = rng.choice([-1.0, 1.0], size=(BATCHES, count))
        images = np.zeros((BATCHES, count))
        for places in np.split(np.arange(count), 2):
            z = np.where(np.isin(self.labels, places), signs[:, self.labels] * steps, 0.0)
            # The part of the evaluation batches that curvature is measured on has one that scatters, too.
            image = (1.0 + part_scatter * rng.standard_normal((BATCHES, 1))) * (z @ self.hessian)
            images[:, places] = self.by_band(steps * image)[:, places]
        gains = self.by_band(-self.gradient * steps)
        whole = np.stack([gains.sum(axis=1), ((steps @ self.hessian) * steps).sum(axis=1)], axis=1)
        return kept(gains, images, signs, whole)

    def by_band(self, entries: Any) -> Any:
        """Return sums over each band, (m, n) → (m, bands)."""
        return np.add.reduceat(entries, np.flatnonzero(np.diff(self.labels, prepend=-1)), axis=1)


def kept(gains: Any, images: Any, signs: Any, whole: Any) -> OptimizerSteps:
    """Return the record of some samples."""
    blocks = tuple(name for name in ("qk", "ffn") for _ in WIDTHS)
    edges = np.concatenate([[0.0], np.cumsum(WIDTHS) / sum(WIDTHS)])
    return OptimizerSteps(
        recipe=Recipe(optimizer="muon", lr=0.01, lr_source="given", hyperparameters={}, state="warm", state_lines=()),
        sweep=None,
        bands=StepBands(
            blocks=blocks,
            names=("rank 1", "ranks 2–4", "ranks 5–8", "10–40%", "40–100%") * 2,
            parts=PARTS * 2,
            low=np.tile(edges[:-1], 2),
            high=np.tile(edges[1:], 2),
            dimensions=np.array(WIDTHS * 2, dtype=np.int64),
        ),
        gains=np.array(gains),
        images=np.array(images),
        signs=np.array(signs),
        whole_gains=np.array(whole[:, 0]),
        whole_curvatures=np.array(whole[:, 1]),
        joint=None,
        critical={},
    )


def covered(known: Known, found: OptimizerSteps) -> dict[str, list[bool]]:
    """Return, per quantity, whether each interval holds the truth."""
    hits: dict[str, list[bool]] = {"gain": [], "curvature": [], "optimum": [], "edge": [], "ratio": [], "whole": []}
    for place, row in enumerate(found.rows):
        gain, curvature = known.gains[place], known.curvatures[place, place]
        hits["gain"].append(row.gain.low <= gain <= row.gain.high)
        hits["curvature"].append(row.curvature.low <= curvature <= row.curvature.high)
        if row.optimum is not None and row.edge is not None:
            hits["optimum"].append(row.optimum.low <= gain / curvature <= row.optimum.high)
            hits["edge"].append(row.edge.low <= 2.0 * gain / curvature <= row.edge.high)
    for number, block in enumerate(("qk", "ffn")):
        optima = {}
        for part in ("sharp", "flat"):
            places = [number * len(WIDTHS) + i for i, one in enumerate(PARTS) if one == part]
            optima[part] = known.gains[places].sum() / known.curvatures[np.ix_(places, places)].sum()
        ratio = found.implied_ratio(block)
        if ratio is not None and ratio.low is not None:
            hits["ratio"].append(ratio.low <= optima["flat"] / optima["sharp"] <= (ratio.high or np.inf))
    gain, curvature = known.gains.sum(), known.curvatures.sum()
    if found.whole is not None:
        hits["whole"].append(found.whole.low <= gain / curvature <= found.whole.high)
    return hits


@pytest.mark.slow
@pytest.mark.parametrize("heavy_tails", [False, True])
def test_intervals_hold_the_truth_as_often_as_they_say(heavy_tails: bool) -> None:
    known = Known(3)
    hits: dict[str, list[bool]] = {}
    for seed in range(1000):
        for name, own in covered(known, known.measured(1000 + seed, heavy_tails=heavy_tails)).items():
            hits.setdefault(name, []).extend(own)
    shares = {name: np.mean(own) for name, own in hits.items()}
    # A thousand seeds of one to ten intervals each: a share is known to 0.7%.
    assert all(len(own) >= 1000 for own in hits.values())
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def test_a_band_without_curvature_has_no_edge() -> None:
    known = Known(3)
    flat = known.labels == 4
    known.hessian[flat] = 0.0
    known.hessian[:, flat] = 0.0
    found = 0
    for seed in range(200):
        rows = known.measured(seed).rows
        assert rows[4].curvature.value == 0.0
        assert rows[4].optimum is None
        assert rows[4].edge is None
        found += rows[0].optimum is not None
    assert found == 200


def test_a_curvature_that_is_lost_in_noise_is_called_an_edge_no_more_often_than_by_chance() -> None:
    # Of zero mean, but scattered: a two-sided interval of 95% lies above zero in 2.5%.
    rng = np.random.default_rng(0)
    calls = 0
    for _ in range(1000):
        shape = (BATCHES, 10)
        signs = rng.choice([-1.0, 1.0], size=shape)
        found = kept(rng.standard_normal(shape) + 1.0, rng.standard_normal(shape), signs, np.ones((BATCHES, 2)))
        calls += sum(row.optimum is not None for row in found.rows)
    assert 0.015 <= calls / 10_000 <= 0.035


def test_cross_terms_are_fitted_not_noise() -> None:
    # Steps that are the same on every batch: with signs alone as samples cross terms would be all there is of error.
    known = Known(5)
    known.spread = 0.0
    for place in range(10):
        own = known.labels == place
        known.curvatures[place, place] = known.mean[own] @ known.hessian[np.ix_(own, own)] @ known.mean[own]
    found = known.measured(1, part_scatter=0.0)
    for place, row in enumerate(found.rows):
        np.testing.assert_allclose(row.curvature.value, known.curvatures[place, place], rtol=1e-9)
        assert row.curvature.stderr <= 1e-9 * abs(row.curvature.value)


def test_two_blocks_alike_are_told_apart_in_their_share_of_seeds_only() -> None:
    # A flat group and a sharp one with the same optimum: χ̂ is above 1, or below it, in 5% together.
    known = Known(7)
    scale = np.ones(len(known.mean))
    for number in range(2):
        sharp = [5 * number + i for i in range(3)]
        flat = [5 * number + 4]
        c_sharp = known.gains[sharp].sum() / known.curvatures[np.ix_(sharp, sharp)].sum()
        c_flat = known.gains[flat].sum() / known.curvatures[np.ix_(flat, flat)].sum()
        scale[known.labels == flat[0]] = c_sharp / c_flat
    known.gradient = known.gradient * scale
    told: list[bool] = []
    for seed in range(600):
        found = known.measured(seed)
        for block in ("qk", "ffn"):
            ratio = found.implied_ratio(block)
            if ratio is not None and ratio.low is not None:
                told.append(ratio.low > 1.0 or (ratio.high is not None and ratio.high < 1.0))
    assert 0.03 <= np.mean(told) <= 0.07


def test_the_sharp_share_is_that_of_the_leading_bands_below_half_the_flat_optimum() -> None:
    known = Known(3)
    found = known.measured(0)
    fit = {row.name: row for row in found.rows if row.block == "qk"}
    flat = fit["40–100%"].optimum
    share = found.implied_sharp_share("qk")
    assert flat is not None
    assert share is not None
    assert share.low <= share.value <= share.high
    expected = 0.0
    for name in ("rank 1", "ranks 2–4", "ranks 5–8", "10–40%"):
        optimum = fit[name].gain.value / fit[name].curvature.value
        if not optimum < 0.5 * flat.value:
            break
        expected = fit[name].high
    assert share.value == pytest.approx(expected)
