"""A task: a model, its loss, and the batches the loss is taken on.

Operators, spectra and replays know a task only. `make_task` builds one for a language-model checkpoint; a
user builds one by hand for any other PyTorch model (`--task FILE.py:FUNCTION`).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lite_probe.blocks import Given, given_parts, named_blocks
from lite_probe.results.blocks import BlockMap
from lite_probe.vectors.ranks import ALONE, Ranks

Split = Literal["evaluation", "train", "held-out"]
_FIELDS: dict[Split, str] = {"evaluation": "evaluation", "train": "train", "held-out": "heldout"}
Batch = Any  # a tensor, tuple, dict, or whatever `predict` and `criterion` take


class Criterion(Protocol):
    """A loss on a model's outputs, summed over what it counts."""

    def __call__(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Return the summed loss (scalar) and the count of tokens or samples in it."""


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What provenance says of a task."""

    name: str = "task"
    data_name: str = "in memory"
    checkpoint_name: str = "in memory"
    checkpoint_format: str = "in memory"
    checkpoint_fingerprint: str = ""
    checkpoint_step: int | None = None
    architecture: str = ""
    batch_size: int = 0
    seq_len: int | None = None
    train_tokens: int | None = None  # that training batches are drawn from; None where they are samples


@dataclass(slots=True)
class Task:
    """A model, its loss, and fixed batches.

    The loss over batches is Σ criterion sums / Σ counts: the mean over tokens (or samples), not over batches.

    Args:
        model: Any module; used in evaluation mode. Parameters that require gradients make up θ.
        predict: `(model, batch) → outputs`, the tensor the criterion takes.
        criterion: `(outputs, batch) → (summed loss, count)`. `cross_entropy` and `squared_error` of
            `lite_probe.criteria` have analytic Gauss–Newton products; any other goes through autograd.
        evaluation: Batches that spectra are measured on, and a replay's loss where there are none held out.
        train: Batches that a replay trains on; none of their samples are in `evaluation` or `heldout`.
        blocks: Parameter name → its parts, or what `make_optimizer` takes: names, or regular expressions for the ends
            of names, → block or parts, for what no known family has; afterwards name → parts. None where the blocks are
            not known.
        info: For provenance.
        heldout: Batches that a replay's loss is measured on: as many as `evaluation`, and none of its samples, so that
            progress along eigenvectors is not judged on the batches that made them.
        ranks: The processes that measure the task together, each with all of it: batches are dealt to them.
        rows: Rows of a batch that are computed at a time, where memory holds no more; None computes whole batches.
            The summed loss must add up over rows.
    """

    model: nn.Module
    predict: Callable[[nn.Module, Batch], Tensor]
    criterion: Criterion
    evaluation: Sequence[Batch]
    train: Sequence[Batch] = ()
    blocks: BlockMap | None = None
    info: TaskInfo = field(default_factory=TaskInfo)
    heldout: Sequence[Batch] = ()
    ranks: Ranks = ALONE
    rows: int | None = None

    def __post_init__(self) -> None:
        """Find the parts of every parameter.

        Raises:
            InputError: If a matrix is in no block, or its parts are no partition.
        """
        if self.blocks is not None:
            self._name_blocks(self.blocks)

    def give_blocks(self, blocks: Given) -> None:
        """Give parameters blocks, in place of those they had.

        Args:
            blocks: Name, or regular expression for the end of one, → block, or its parts.

        Raises:
            InputError: If one matches no parameter, or a matrix is left in no block.
        """
        parameters = self.model.named_parameters()
        own = given_parts({name: tuple(parameter.shape) for name, parameter in parameters}, blocks)
        self._name_blocks({**(self.blocks or {}), **own})

    def _name_blocks(self, given: Given) -> None:
        shapes = {
            name: tuple(parameter.shape)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad or name in given
        }
        self.blocks = named_blocks(shapes, given, config=getattr(self.model, "config", None))

    def batches(self, split: Split) -> Sequence[Batch]:
        """Return the batches of one split."""
        batches: Sequence[Batch] = getattr(self, _FIELDS[split])
        return batches

    def own_batches(self, split: Split) -> list[tuple[int, Batch]]:
        """Return this rank's batches of one split, each with its place among all."""
        return self.ranks.own(self.batches(split))

    def of_first_rank(self, split: Split) -> "Task":
        """Return the same task with rank 0's batches of one split alone: none has more of them."""
        if self.ranks.count == 1:
            return self
        same = copy.copy(self)
        setattr(same, _FIELDS[split], self.ranks.shares(self.batches(split))[0])
        same.ranks = ALONE
        return same

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Return the summed loss of one batch, with its graph, and the count in it."""
        return self.criterion(self.predict(self.model, batch), batch)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.model.parameters()).device
