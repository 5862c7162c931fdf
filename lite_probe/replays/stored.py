"""Optimizer states in files: a run in progress, and, where memory does not hold it twice, what runs start from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lite_probe.errors import InputError, UsageError
from lite_probe.optim import LiteOptimizer
from lite_probe.optim.interface import Replayable, load_state
from lite_probe.results.sealing import open_sealed, write_sealed
from lite_probe.results.store import write_atomically
from lite_probe.runtime.resumable import ResumableRun, real_folder
from lite_probe.task import Task

_GROUPS = "groups"  # the file of what is not any parameter's


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
    with open_sealed(path, owner, expected) as file:
        if file is None:
            return None
        found: dict[str, Any] = torch.load(file, weights_only=True, map_location=device)
        return found


@dataclass(frozen=True, slots=True)
class StoredState:
    """The state of one of our optimizers in files, one for each parameter, read whenever it starts from there.

    Attributes:
        folder: Of the files.
        owner: Whose it is.
        device: Where its tensors go.
    """

    folder: Path
    owner: str
    device: torch.device

    def write(self, state: Mapping[str, Any]) -> None:
        """Put a state into the files. Cost: a copy of one parameter's at a time, of which there may be views alone."""
        for index, own in state["state"].items():
            copied = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in own.items()}
            self._write(str(index), copied)
        self._write(_GROUPS, {"param_groups": state["param_groups"], "parameters": list(state["state"])})

    def read(self) -> Mapping[str, Any]:
        """Return the state; what it holds of a parameter is read when it is asked for.

        Raises:
            InputError: If a file holds another's, or is damaged: now, or when a parameter is asked for.
        """
        found = self.part(_GROUPS)
        return {"param_groups": found["param_groups"], "state": _ByParameter(self, tuple(found["parameters"]))}

    def part(self, name: str) -> dict[str, Any]:
        """Return what one of the files holds."""
        path = self._path(name)
        found = read_tensors(path, self._owner(name), "an optimizer's state", self.device)
        if found is None:
            raise InputError(f"expected the state of this measurement's optimizer at {path}, got another's")
        return found

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        write_tensors(self._path(name), self._owner(name), content)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"

    def _owner(self, name: str) -> str:
        return f"{self.owner} {name}"


class _ByParameter(Mapping[int, Mapping[str, Any]]):
    """The states of parameters by their index, each read anew whenever it is asked for."""

    def __init__(self, stored: StoredState, parameters: tuple[int, ...]) -> None:
        self._stored = stored
        self._parameters = parameters

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if index not in self._parameters:
            raise KeyError(index)
        return self._stored.part(str(index))

    def __iter__(self) -> Iterator[int]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


OptimizerState = Mapping[str, Any] | StoredState  # what its `state_dict` gave, or files that hold it


def store_state(run: ResumableRun, task: Task, state: OptimizerState, names: Sequence[str], name: str) -> StoredState:
    """Put what an optimizer starts from into a run's folder, each rank's by itself.

    Args:
        run: Whose folder it is.
        task: Of the parameters, on whose device its tensors are read.
        state: Which; one that is stored already stays where it is.
        names: Of all optimizers: a name comes from a user, and is no folder's.
        name: Of this one.

    Raises:
        UsageError: If the run has no folder.
    """
    if isinstance(state, StoredState):
        return state
    if (folder := run.folder()) is None:
        raise UsageError(
            "expected a state_directory for the states of optimizers, got none", "pass one, or allow more memory"
        )
    own = real_folder(folder / f"start-{names.index(name)}-{run.ranks.rank}")
    stored = StoredState(own, f"{run.fingerprint} {name}", task.device)
    stored.write(state)
    return stored


def load_start(optimizer: Replayable, state: OptimizerState) -> None:
    """Give an optimizer a copy of the state that its runs start from."""
    if isinstance(state, StoredState):
        if isinstance(optimizer, LiteOptimizer):
            optimizer.drop_state()  # of a parameter that starts without any, too
        state = state.read()
    load_state(optimizer, state)
