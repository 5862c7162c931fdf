"""Cuts of an order without sorting, against the stable sort."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from lite_probe.subspaces import cuts
from lite_probe.subspaces.cuts import Order
from tests.dispatch import Watch

EDGES = (0.01, *(tenth / 10 for tenth in range(1, 10)))


def by_sorting(
    proxies: Sequence[Tensor], depths: Sequence[int], edges: Sequence[float], *, of_seen: bool
) -> list[list[int]]:
    """The oracle: all directions sorted, middles counted along them."""
    values = torch.cat([proxy.flatten() for proxy in proxies]).double()
    sizes = torch.cat(
        [torch.full((proxy.numel(),), depth) for proxy, depth in zip(proxies, depths, strict=True)]
    ).double()
    order = values.argsort(descending=True, stable=True)
    ordered = sizes[order]
    total = float(ordered[values[order] > 0].sum()) if of_seen else float(ordered.sum())
    middles = (ordered.cumsum(0) - 0.5 * ordered) / max(total, 1.0)
    places = torch.bucketize(middles, torch.tensor(edges, dtype=torch.float64), right=True)
    places[values[order] <= 0] = len(edges) + 1
    labels = torch.empty_like(places)
    labels[order] = places
    return [part.tolist() for part in labels.split([proxy.numel() for proxy in proxies])]


def draws(kind: str, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    sizes = (1, 700, 2_000, 3, 1_301)
    parts = [torch.randn(size, generator=generator, dtype=torch.float64).square() for size in sizes]
    if kind == "equal":
        parts = [(4.0 * part).round() for part in parts]
    if kind == "all zero":
        parts = [torch.zeros_like(part) for part in parts]
    if kind == "half zero":
        parts = [torch.where(part > 0.4, part, -0.0) for part in parts]
    if kind == "one value":
        parts = [torch.full_like(part, 0.3) for part in parts]
    if kind == "far apart":
        parts = [torch.exp(60.0 * torch.randn(part.shape, generator=generator, dtype=torch.float64)) for part in parts]
    return [part.to(dtype) for part in parts]


@pytest.mark.parametrize("of_seen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["plain", "equal", "half zero", "all zero", "one value", "far apart"])
def test_cuts_are_those_of_a_stable_sort(
    kind: str, dtype: torch.dtype, of_seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "STRETCH", 700)
    generator = torch.Generator().manual_seed(5)
    for depths in ((1, 1, 1, 1, 1), (7, 4, 1, 100, 33), (64, 64, 64, 64, 64)):
        proxies = draws(kind, dtype, generator)
        order = Order(proxies, [proxy.numel() for proxy in proxies], depths)
        for edges in (EDGES, (0.001, 0.01, 0.1, 0.4)):
            found = [part.tolist() for part in order.places(edges, of_seen=of_seen)]
            assert found == by_sorting(proxies, depths, edges, of_seen=of_seen)


@pytest.mark.parametrize("total", [*range(1, 60), 99, 100, 1_000, 12_345, 1_000_003])
def test_an_edge_on_a_middle_is_past_it(total: int) -> None:
    """Shares are rounded: where one is the edge itself it counts, by the very division."""
    for edge in EDGES:
        twice = cuts._first_past(edge, total)
        assert twice / 2.0 / total >= edge
        assert (twice - 1) / 2.0 / total < edge


def test_a_tally_counts_dimensions_and_averages_proxies() -> None:
    proxies = [torch.tensor([3.0, 1.0, 0.0]), torch.tensor(2.0)]
    order = Order(proxies, [3, 4], [10, 1])
    labels = [torch.tensor([0, 1, 2], dtype=torch.int16), torch.tensor([0, 0, 1, 1], dtype=torch.int16)]
    sizes, means = order.tally(labels, 4)
    assert sizes.tolist() == [12, 12, 10, 0]
    np.testing.assert_allclose(means, [34 / 12, 14 / 12, 0.0, 0.0])
    assert order.size == 34


def test_nothing_as_large_as_the_order_is_made() -> None:
    """Of 2²² numbers a sort made 20 bytes each and more; here every tensor beside the labels is of a stretch."""
    proxy = torch.rand(4 * cuts.STRETCH, generator=torch.Generator().manual_seed(0))
    order = Order([proxy], [proxy.numel()], [1])
    watch = Watch()
    with watch:
        order.tally(order.places(EDGES), len(EDGES) + 2)
    del watch.largest[torch.int16]
    # Counts of as many digits as there are edges may be more than a stretch has entries.
    assert 0 < max(watch.largest.values()) <= max(cuts.STRETCH, len(EDGES) * 2**16)
    assert watch.waits == 0
