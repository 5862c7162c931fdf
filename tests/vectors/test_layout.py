"""θ as one flat vector: pieces are views, blocks partition it, tensors go in and come out unchanged."""

import pytest
import torch
from torch import Tensor, nn

from lite_probe.results.blocks import BlockPart
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout, narrow
from tests import models, oracles

NAMES = (*models.MODELS, "tied_llama")


def layout_of(task: Task, block: str | None = None) -> ParameterLayout:
    return ParameterLayout(list(task.model.named_parameters()), block=block, block_map=task.blocks)


def blocks_of(task: Task) -> list[str]:
    return sorted({part.block for parts in (task.blocks or {}).values() for part in parts})


def numbered(size: int) -> Tensor:
    """0, 1, 2, …: every entry tells its place, and float64 holds it exactly."""
    return torch.arange(size, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_layout_is_the_parameters_in_order(name: str) -> None:
    task = models.make_task(name)
    layout = layout_of(task)
    named = list(task.model.named_parameters())
    assert layout.names == [key for key, _ in named]
    assert all(a is b for a, (_, b) in zip(layout.parameters, named, strict=True))
    assert layout.size == sum(parameter.numel() for _, parameter in named)
    flat = numbered(layout.size)
    for piece, parameter in zip(layout.unflatten(flat), layout.parameters, strict=True):
        assert piece.shape == parameter.shape
    assert torch.equal(torch.cat([piece.flatten() for piece in layout.unflatten(flat)]), flat)


@pytest.mark.parametrize("name", NAMES)
def test_views_are_views(name: str) -> None:
    layout = layout_of(models.make_task(name))
    flat = torch.zeros(layout.size, dtype=torch.float64)
    for index, view in enumerate(layout.views(flat)):
        assert view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
        view.fill_(index + 1.0)
    assert flat.min() == 1.0
    assert flat.max() == len(layout.pieces)


@pytest.mark.parametrize("name", NAMES)
def test_pieces_lie_end_to_end(name: str) -> None:
    task = models.make_task(name)
    for block in (None, *blocks_of(task)):
        layout = layout_of(task, block)
        offset = 0
        for piece in layout.pieces:
            assert piece.offset == offset
            offset += piece.numel
        assert offset == layout.size > 0


@pytest.mark.parametrize("name", NAMES)
def test_blocks_partition_the_parameters(name: str) -> None:
    """Painting each block's tensors paints every parameter entry exactly once."""
    task = models.make_task(name)
    painted = {key: torch.zeros_like(parameter) for key, parameter in task.model.named_parameters()}
    for block in blocks_of(task):
        layout = layout_of(task, block)
        for key, cotangent in zip(layout.names, layout.unflatten(torch.ones(layout.size)), strict=True):
            painted[key] += cotangent
    for key, count in painted.items():
        assert torch.equal(count, torch.ones_like(count)), key
    assert sum(layout_of(task, block).size for block in blocks_of(task)) == layout_of(task).size


@pytest.mark.parametrize("name", NAMES)
def test_a_blocks_entries_are_those_of_the_oracle(name: str) -> None:
    task = models.make_task(name)
    whole = layout_of(task)
    places = whole.unflatten(numbered(whole.size))
    by_name = dict(zip(whole.names, places, strict=True))
    for block in blocks_of(task):
        layout = layout_of(task, block)
        flat = torch.zeros(layout.size, dtype=torch.float64)
        layout.accumulate(flat, [by_name[key] for key in layout.names], 1.0)
        assert sorted(flat.long().tolist()) == oracles.block_indices(task, block).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_accumulating_cotangents_gives_the_vector_back(name: str) -> None:
    task = models.make_task(name)
    for block in (None, *blocks_of(task)):
        layout = layout_of(task, block)
        flat = numbered(layout.size)
        target = torch.full_like(flat, 3.0)
        layout.accumulate(target, layout.unflatten(flat), 2.0)  # small integers: exact
        assert torch.equal(target, 3.0 + 2.0 * flat)


def test_nothing_counts_as_zero() -> None:
    layout = layout_of(models.make_task("mlp"))
    target = numbered(layout.size)
    layout.accumulate(target, [None] * len(layout.parameters), 5.0)
    assert torch.equal(target, numbered(layout.size))


def test_cotangents_do_not_touch_the_parameters() -> None:
    task = models.make_task("gpt2")
    before = oracles.flat_parameters(task).clone()
    layout = layout_of(task, "vo")
    for cotangent in layout.unflatten(torch.ones(layout.size, dtype=torch.float64)):
        assert not cotangent.requires_grad
        cotangent.add_(1.0)
    assert torch.equal(oracles.flat_parameters(task), before)


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].weight.requires_grad_(False)
    layout = ParameterLayout(list(model.named_parameters()))
    assert layout.names == ["0.bias", "1.weight", "1.bias"]
    assert layout.size == 3 + 3 + 1


def test_an_unknown_block_is_empty() -> None:
    assert layout_of(models.make_task("mlp"), "emb").size == 0


def test_parts_of_a_block_that_follow_one_another_are_one_piece() -> None:
    # Queries and keys of GPT-2 are columns of one weight: the flat vector holds whole rows of both.
    weight = nn.Parameter(torch.arange(12.0).view(2, 6))
    parts = (BlockPart("qk", 1, 0, 2), BlockPart("qk", 1, 2, 4), BlockPart("vo", 1, 4, 6))
    layout = ParameterLayout([("c_attn", weight)], block="qk", block_map={"c_attn": parts})
    flat = torch.zeros(layout.size)
    layout.accumulate(flat, [weight.detach()], 1.0)
    assert flat.tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    apart = (BlockPart("qk", 1, 0, 2), BlockPart("vo", 1, 2, 4), BlockPart("qk", 1, 4, 6))
    assert len(ParameterLayout([("c_attn", weight)], block="qk", block_map={"c_attn": apart}).pieces) == 2


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (BlockPart(block="qk", dim=0, start=0, stop=1), [[0, 1, 2]]),
        (BlockPart(block="qk", dim=0, start=1), [[3, 4, 5]]),
        (BlockPart(block="qk", dim=1, start=1, stop=3), [[1, 2], [4, 5]]),
    ],
    ids=str,
)
def test_parts_are_rows_or_columns(part: BlockPart, expected: list[list[int]]) -> None:
    assert narrow(torch.arange(6).view(2, 3), part).tolist() == expected


@pytest.mark.parametrize("dim", [0, 1])
def test_parts_of_every_head_are_one_piece(dim: int) -> None:
    """Rows 0 and 1 of every three; back in their places, and nothing elsewhere."""
    values = torch.arange(24.0).view(6, 4) if dim == 0 else torch.arange(24.0).view(4, 6)
    weight = nn.Parameter(values.clone())
    parts = (BlockPart("qk", dim, 0, 1, 3), BlockPart("qk", dim, 1, 2, 3), BlockPart("vo", dim, 2, 3, 3))
    inside = torch.tensor([True, True, False, True, True, False])
    layout = ParameterLayout([("w", weight)], block="qk", block_map={"w": parts})
    assert len(layout.pieces) == 1
    expected = torch.where(inside.view(6, 1) if dim == 0 else inside, values, 0.0)
    (found,) = layout.unflatten(layout.read())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    layout.write(torch.full((layout.size,), -1.0))
    assert torch.equal(weight == -1.0, expected.sign().bool() | (values == 0.0))
    assert parts[2].shape_in(weight.shape) == ((2, 4) if dim == 0 else (4, 2))
