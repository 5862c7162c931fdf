"""Bands of a step: a partition of every block, leading singular directions by rank, coordinates by share."""

import numpy as np
import pytest
import torch

from lite_probe.optim import Directions, make_optimizer
from lite_probe.steps.bands import BlockBands, cut_step_bands
from lite_probe.subspaces import optimizer_of, warm
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests.replays.conftest import with_training

NAMES = ("adamw", "muon", "soap", "sgd", "muon-lite")


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen2_moe"])
def task(request: pytest.FixtureRequest) -> Task:
    return with_training(request.param, 6, torch.float64)


def warmed(task: Task, name: str) -> list[Directions]:
    optimizer = optimizer_of(task, name)
    warm(task, [optimizer], task.train[:5])
    return optimizer.directions()


def sub_vector(block: BlockBands, layout: ParameterLayout, vector: torch.Tensor) -> torch.Tensor:
    views = dict(zip(layout.names, layout.views(vector), strict=True))
    return torch.cat([views[name].flatten() for name in block.layout.names])


@pytest.mark.parametrize("name", NAMES)
def test_projectors_are_orthogonal_and_sum_to_the_block(task: Task, name: str) -> None:
    named = list(task.model.named_parameters())
    layout = ParameterLayout(named)
    blocks, table = cut_step_bands(named, warmed(task, name), optimizer=name)
    vector = torch.randn(layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert sum(table.dimensions) == layout.size
    total = 0.0
    for block in blocks:
        own = sub_vector(block, layout, vector)
        parts = [block.bands.project(own, [band]) for band in range(len(block.bands))]
        products = block.bands.products(own, own)
        for part, product in zip(parts, products, strict=True):
            assert float(part @ part) == pytest.approx(float(product), rel=1e-9, abs=1e-12)
        gram = torch.stack([torch.stack([one @ other for other in parts]) for one in parts])
        assert float((gram - torch.diag(gram.diagonal())).abs().max()) <= 1e-9 * float(gram.max())
        total += float(products.sum())
    assert total == pytest.approx(float(vector @ vector), rel=1e-9)
    assert [place for block in blocks for place in block.places] == list(range(len(table.blocks)))


def test_a_weighted_sum_of_bands_is_that_of_its_parts(task: Task) -> None:
    named = list(task.model.named_parameters())
    layout = ParameterLayout(named)
    blocks, _ = cut_step_bands(named, warmed(task, "muon"), optimizer="muon")
    block = max(blocks, key=lambda one: len(one.bands))
    own = sub_vector(block, layout, torch.randn(layout.size, dtype=torch.float64))
    weights = torch.tensor([(-1.0) ** band * (band + 1) for band in range(len(block.bands))], dtype=torch.float64)
    expected = sum(weights[band] * block.bands.project(own, [band]) for band in range(len(block.bands)))
    torch.testing.assert_close(block.bands.weighted(own, weights), expected)


def test_ranks_are_of_every_matrix() -> None:
    shapes = {"a.weight": (120, 100), "b.weight": (200, 100)}
    named = [(name, torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))) for name, shape in shapes.items()]
    optimizer = make_optimizer("muon", named, lr=0.1, blocks={r"[ab]\.weight": "ffn"})
    gradients = []
    for _, weight in named:
        weight.grad = torch.randn_like(weight)
        gradients.append(weight.grad)
    optimizer.step()
    blocks, table = cut_step_bands(named, optimizer.directions(), optimizer="muon")
    assert table.names == ("rank 1", "ranks 2–4", "ranks 5–8", "1–10%", "10–40%", "40–100%")
    assert table.parts == ("sharp", "sharp", "sharp", "sharp", "middle", "flat")
    # A direction is a column: as many dimensions as a matrix has rows. Of a hundred, ranks 9 and 10 are left to 10%.
    assert table.dimensions.tolist() == [320, 3 * 320, 4 * 320, 2 * 320, 30 * 320, 60 * 320]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    first = blocks[0].bands.project(flat, [0])
    for gradient, part in zip(gradients, first.split([gradient.numel() for gradient in gradients]), strict=True):
        u, s, v = torch.linalg.svd(gradient)
        torch.testing.assert_close(part.view_as(gradient), s[0] * torch.outer(u[:, 0], v[0]), atol=1e-8, rtol=1e-6)


def test_coordinates_are_cut_by_share() -> None:
    weight = torch.nn.Parameter(torch.zeros(100, 100, dtype=torch.float64))
    optimizer = make_optimizer("adamw", [("w", weight)], lr=0.1, blocks={"w": "ffn"})
    weight.grad = torch.randn(100, 100, dtype=torch.float64)
    optimizer.step()
    blocks, table = cut_step_bands([("w", weight)], optimizer.directions(), optimizer="adamw")
    assert table.names == ("to 0.1%", "to 1%", "1–10%", "10–40%", "40–100%")
    assert table.dimensions.tolist() == [10, 90, 900, 3000, 6000]
    np.testing.assert_allclose(table.high, [0.001, 0.01, 0.1, 0.4, 1.0])
    largest = weight.grad.abs().flatten().topk(10).indices
    assert set(blocks[0].bands.project(weight.grad.flatten(), [0]).nonzero().flatten().tolist()) == set(
        largest.tolist()
    )
