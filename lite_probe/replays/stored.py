"""Optimizer states in files: a run in progress, and, where memory does not hold it twice, what runs start from."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lite_probe.errors import InputError
from lite_probe.optim import LiteOptimizer
from lite_probe.optim.interface import Replayable, load_state
from lite_probe.results.sealing import read_sealed, write_sealed
from lite_probe.results.store import write_atomically


def write_tensors(path: Path, owner: str, saved: Mapping[str, Any]) -> None:
    """Write a mapping of tensors and numbers, whole or not at all; `owner` is whose it is."""
    write_atomically(path, lambda file: write_sealed(file, owner, lambda content: torch.save(saved, content)))


def read_tensors(path: Path, owner: str, expected: str, device: torch.device) -> dict[str, Any] | None:
    """Read what `write_tensors` wrote; None where it is another owner's.

    Args:
        path: The file.
        owner: As it was written.
        expected: What it is for, as in "expected … at PATH".
        device: Where the tensors go.

    Raises:
        InputError: If it is not the content that was written.
        UnpicklingError: If it holds what only a pickle that runs code could bring back.
    """
    content = read_sealed(path, owner, expected)
    if content is None:
        return None
    found: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True, map_location=device)
    return found


@dataclass(frozen=True, slots=True)
class StoredState:
    """The state of one of our optimizers in a file, read whenever a run begins.

    Attributes:
        path: The file.
        owner: Whose it is.
        device: Where its tensors go.
    """

    path: Path
    owner: str
    device: torch.device

    def write(self, state: Mapping[str, Any]) -> None:
        """Put a state into the file."""
        write_tensors(self.path, self.owner, state)

    def read(self) -> Mapping[str, Any]:
        """Return the state.

        Raises:
            InputError: If the file holds another, or is damaged.
        """
        found = read_tensors(self.path, self.owner, "an optimizer's state", self.device)
        if found is None:
            raise InputError(f"expected the state of this replay's optimizer at {self.path}, got another's")
        return found


OptimizerState = Mapping[str, Any] | StoredState  # what its `state_dict` gave, or a file that holds it


def load_start(optimizer: Replayable, state: OptimizerState) -> None:
    """Give an optimizer a copy of the state that its runs start from."""
    if isinstance(state, StoredState):
        if isinstance(optimizer, LiteOptimizer):
            optimizer.drop_state()  # or there were three of them
        state = state.read()
    load_state(optimizer, state)
