"""Bands: orthogonal projectors on the directions of each block, in the order of an optimizer's proxy."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from lite_probe.subspaces import Bands, cut_bands, optimizer_of, warm
from lite_probe.subspaces import bands as bands_module
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests import models
from tests.dispatch import Watch
from tests.oracles import block_indices


def warmed(name: str, optimizer: str) -> tuple[Task, ParameterLayout, Bands]:
    task = models.make_task(name, torch.float32)
    layout = ParameterLayout(list(task.model.named_parameters()))
    made = optimizer_of(task, optimizer)
    warm(task, [made], task.evaluation * 4)
    return task, layout, cut_bands(layout, made.directions(), optimizer=optimizer)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "soap-lite", "sgd"])
@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "gpt2", "gpt_neox"])
def test_projectors_are_orthogonal_and_sum_to_the_identity(name: str, optimizer: str) -> None:
    """To rounding: bases in float32 are orthonormal to a few 1e-7, SOAP's, from repeated QR, likewise."""
    task, layout, bands = warmed(name, optimizer)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(layout.size, generator=generator)
    parts = [bands.project(x, [band]) for band in range(len(bands))]
    assert float((torch.stack(parts).sum(0) - x).abs().max()) < 5e-6
    gram = torch.stack(parts).double() @ torch.stack(parts).double().T
    apart = gram - gram.diag().diag()
    assert float(apart.abs().max()) < 1e-5 * float(x.double() @ x.double())
    for band in range(0, len(bands), 7):
        again = bands.project(parts[band], [band])
        assert float((again - parts[band]).abs().max()) < 5e-6
    energies = bands.products(x, x)
    np.testing.assert_allclose(energies, gram.diag(), rtol=1e-4)
    # Each band has its dimensions in its own block and nowhere else.
    for block in set(bands.table.blocks):
        chosen = [index for index, one in enumerate(bands.table.blocks) if one == block]
        inside = block_indices(task, block)
        assert bands.table.dimensions[chosen].sum() == len(inside)
        projected = bands.project(x, chosen)
        expected = torch.zeros_like(x)
        expected[inside] = x[inside]
        assert float((projected - expected).abs().max()) < 5e-6


def test_energy_of_a_random_vector_is_its_dimensions() -> None:
    _, layout, bands = warmed("llama", "soap")
    generator = torch.Generator().manual_seed(2)
    draws = torch.stack([bands.products(x, x) for x in torch.randn(200, layout.size, generator=generator)])
    # A χ² of d degrees has a standard deviation of √(2d); the mean of 200 lies within five of its own.
    tolerance = 5.0 * np.sqrt(2.0 * bands.table.dimensions / 200)
    assert (np.abs(draws.mean(0).numpy() - bands.table.dimensions) < tolerance).all()


def test_adamws_bands_are_quantiles_of_its_second_moment() -> None:
    task = models.make_task("llama", torch.float32)
    layout = ParameterLayout(list(task.model.named_parameters()))
    made = optimizer_of(task, "adamw")
    warm(task, [made], task.evaluation * 4)
    bands = cut_bands(layout, made.directions(), optimizer="adamw")
    second = torch.cat([made.state[p]["exp_avg_sq"].flatten() for p in layout.parameters])
    inside = block_indices(task, "ffn")
    ordered = second[inside].sort(descending=True).values
    chosen = [index for index, block in enumerate(bands.table.blocks) if block == "ffn"]
    np.testing.assert_allclose(bands.table.low[chosen], [0.0, 0.01, *np.arange(1, 10) / 10])
    start = 0
    for band in chosen:
        unit = torch.ones(layout.size)
        members = bands.project(unit, [band])[inside] > 0.5
        count = int(bands.table.dimensions[band])
        assert int(members.sum()) == count
        assert float(second[inside][members].min()) >= float(ordered[start + count - 1])
        assert bands.proxies[band] == pytest.approx(float(second[inside][members].double().mean()), rel=1e-6)
        start += count
    assert np.all(np.diff(bands.proxies[chosen]) < 0)
    # The first 1% of 576 is 5 or 6 coordinates: the middle of the sixth lies at 0.95%.
    assert bands.table.dimensions[chosen[0]] == 6


def test_a_singular_direction_is_a_whole_column() -> None:
    """Muon's directions are right singular vectors: each stands for as many dimensions as its matrix has rows."""
    _, layout, bands = warmed("llama", "muon")
    x = torch.randn(layout.size, generator=torch.Generator().manual_seed(3))
    chosen = [index for index, block in enumerate(bands.table.blocks) if block == "qk"]
    # q is 8 × 8 and k is 4 × 8, twice: bands hold multiples of 4.
    assert all(size % 4 == 0 for size in bands.table.dimensions[chosen].tolist())
    assert float(bands.products(x, x).sum()) == pytest.approx(float(x.double() @ x.double()), rel=1e-6)


def test_what_was_never_seen_is_the_last_band() -> None:
    """Rows of the embedding whose tokens did not occur have no gradient, and nothing orders them."""
    task, _, bands = warmed("llama", "adamw")
    seen = {int(token) for batch in task.evaluation for token in batch[:, :-1].flatten()}
    expected = 1.0 - len(seen) / 11
    assert bands.unseen["emb"] == pytest.approx(expected)
    assert bands.unseen["ffn"] == 0.0


def test_without_a_proxy_a_block_is_one_band() -> None:
    _, _, bands = warmed("llama", "sgd")
    assert len(bands) == len(set(bands.table.blocks))
    assert set(bands.unseen.values()) == {1.0}
    assert bands.table.labels[0] == "emb 0–100%"


def test_labels_say_how_a_band_is_cut() -> None:
    _, _, bands = warmed("llama", "soap")
    assert {"ffn 0–1%", "ffn 1–10%", "ffn 90–100%"} <= set(bands.table.labels)
    assert bands.num_bytes > 0


def test_bands_keep_labels_and_bases_alone() -> None:
    """What orders directions is not held with them: AdamW's bands are two bytes for each parameter."""
    _, layout, bands = warmed("llama", "adamw")
    assert bands.num_bytes == 2 * layout.size
    assert {field.name for field in fields(bands._labelled[0].frame)} == {"piece", "left", "right"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "soap"])
def test_stretches_give_what_whole_pieces_do(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some rows or entries at a time, to the order of the sums."""
    _, layout, bands = warmed("llama", optimizer)
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(2, layout.size, generator=generator)
    weights = torch.randn(len(bands), generator=generator)
    whole = bands.products_of([x, y], [(0, 1), (1, 1)]), bands.weighted(x, weights)
    monkeypatch.setattr(bands_module, "STRETCH", 8)
    torch.testing.assert_close(bands.products_of([x, y], [(0, 1), (1, 1)]), whole[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bands.weighted(x, weights), whole[1], rtol=1e-6, atol=1e-6)


def test_products_of_bands_make_doubles_of_a_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    _, layout, bands = warmed("llama", "adamw")
    monkeypatch.setattr(bands_module, "STRETCH", 8)
    x = torch.ones(layout.size)
    watch = Watch()
    with watch:
        bands.products(x, x)
    assert watch.largest[torch.float64] <= max(8, len(bands))
    assert watch.largest[torch.float32] <= 8


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "soap"])
def test_cutting_bands_waits_for_no_single_number(optimizer: str) -> None:
    task = models.make_task("llama", torch.float32)
    layout = ParameterLayout(list(task.model.named_parameters()))
    made = optimizer_of(task, optimizer)
    warm(task, [made], task.evaluation * 4)
    directions = made.directions()
    watch = Watch()
    with watch:
        bands = cut_bands(layout, directions, optimizer=optimizer)
    assert watch.waits == 0
    assert len(bands) > 20
