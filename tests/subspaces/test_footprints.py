"""What a plan says of optimizers before they are made, against the optimizers."""

import pytest
import torch

from lite_probe.optim import LiteOptimizer
from lite_probe.subspaces import cut_bands, optimizer_of, warm
from lite_probe.subspaces.footprints import footprint_of, time_steps
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout
from tests import models
from tests.dispatch import Watch

NAMES = ("sgd", "adamw", "adamw-lite", "muon", "muon-lite", "samuon", "soap", "soap-lite")


def storages(tensors: list[torch.Tensor | None]) -> dict[int, int]:
    found = [one.untyped_storage() for one in tensors if one is not None]
    return {one.data_ptr(): one.nbytes() for one in found}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_those_of_the_optimizer(name: str, dtype: torch.dtype) -> None:
    task = models.make_task("llama", torch.float32)
    task.model.to(dtype)
    found = footprint_of(task, name)
    made = optimizer_of(task, name)
    warm(task, [made], task.evaluation * 2)
    directions = made.directions()
    kept = [value for own in made.state.values() for value in own.values()]
    state = storages([value for value in kept if isinstance(value, torch.Tensor)])
    frames = storages([side for one in directions for side in (one.left, one.right)])
    held = {**frames, **storages([side for one in directions for side in (one.proxy, one.divisor, one.flat)])}
    assert found.state_bytes == sum(state.values())
    assert found.direction_bytes == sum(held.values())
    assert found.beside_state_bytes == sum(size for key, size in held.items() if key not in state)
    layout = ParameterLayout(list(task.model.named_parameters()))
    assert found.band_bytes == cut_bands(layout, directions, optimizer=name).num_bytes


@pytest.mark.parametrize("name", ["muon-lite", "soap-lite"])
def test_one_matrix_of_each_shape_is_stepped_on(name: str) -> None:
    """However many layers there are; of the model's own size nothing is made."""
    stepped: list[int] = []
    original = LiteOptimizer.step

    def counted(self: LiteOptimizer) -> None:
        stepped.append(sum(piece.shape.numel() for piece in self.pieces))
        original(self)

    task = models.make_task("llama", torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiteOptimizer, "step", counted)
        found = time_steps(task, name)
    assert found.first > 0.0
    assert found.usual > 0.0
    kinds = {(piece.geometry.name, piece.block, piece.shape[1:]) for piece in optimizer_of(task, name).pieces}
    assert len(kinds) < 14  # of 2 layers of 7 matrices, embedding, head and norms
    assert len(stepped) == len(kinds) * (3 if name == "soap-lite" else 2)
    assert max(stepped) <= max(parameter.numel() for parameter in task.model.parameters())


def test_a_long_embedding_is_stepped_on_in_part() -> None:
    """Rows that are not rotated are alike: a thousandth of them tells how long all take."""
    small, model = models.make_task("mlp", torch.float32), torch.nn.Embedding(60_000, 64)
    wide = Task(
        model=model,
        predict=small.predict,
        criterion=small.criterion,
        evaluation=small.evaluation,
        blocks={"weight": "emb"},
    )
    for name in ("adamw", "soap"):
        watch = Watch()
        with watch:
            time_steps(wide, name)
        assert watch.largest[torch.float32] < 60_000 * 64
