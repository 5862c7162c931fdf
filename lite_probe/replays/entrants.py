"""Who takes part in a replay: our optimizers by name, torch's by name, a user's by file or function."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from lite_probe.errors import UsageError
from lite_probe.optim import OPTIMIZERS, spec_of
from lite_probe.optim.interface import TORCH, OptimizerMaker, Replayable, make_foreign, torch_maker
from lite_probe.runtime.fingerprint import batches_digest
from lite_probe.subspaces import optimizer_of
from lite_probe.task import Task
from lite_probe.user_code import code_digest, load_function

Asked = str | OptimizerMaker  # "muon", "torch.AdamW", "mine.py:make_mine", or a function


@dataclass(frozen=True, slots=True)
class Entrant:
    """One optimizer of a replay.

    Attributes:
        name: What tables call it.
        what: What it is, for messages: "make_mine of mine.py".
        maker: Who makes it; None where it is one of ours.
    """

    name: str
    what: str = ""
    maker: OptimizerMaker | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is of `lite_probe.optim`: its hyperparameters, geometry and saved states are known."""
        return self.maker is None

    def make(self, task: Task, hyperparameters: Mapping[str, Any]) -> Replayable:
        """Make it for a task's parameters; its learning rate is 1 until it is set.

        Raises:
            UsageError, InputError: If it cannot take them, or what is made cannot be replayed.
        """
        if self.maker is None:
            return optimizer_of(task, self.name, hyperparameters)
        return make_foreign(self.maker, self.what, task.model.named_parameters(), hyperparameters)

    def digest(self, task: Task, hyperparameters: Mapping[str, Any]) -> str:
        """Return what a result depends on beside the name: the code that makes it, and the settings it makes."""
        if self.maker is None:
            return ""
        groups = self.make(task, hyperparameters).param_groups
        # A tensor by its entries: torch shortens what it prints.
        settings = [
            {key: one if isinstance(one, Tensor) else repr(one) for key, one in group.items() if key != "params"}
            for group in groups
        ]
        return batches_digest([code_digest(self.maker), settings])


def name_of(asked: Asked) -> str:
    """Return what tables call an optimizer; nothing is loaded for it.

    Raises:
        UsageError: If a function has no name.
    """
    if isinstance(asked, str):
        return asked.rpartition(":")[2] if _is_file(asked) else asked
    name = getattr(asked, "__name__", "")
    if not name.isidentifier():
        raise UsageError(
            f"expected a function with a name to make an optimizer, got {asked!r}",
            "define one: def make_mine(named_parameters, lr): …",
        )
    return name


def entrants_of(optimizers: Asked | Sequence[Asked]) -> dict[str, Entrant]:
    """Return who takes part, by name, in the order asked for.

    Raises:
        UsageError: If there is none, one is unknown, or two have the same name.
        InputError: If a user's file has no such function, or raised.
    """
    asked = [optimizers] if isinstance(optimizers, str) or callable(optimizers) else list(optimizers)
    names = [name_of(one) for one in asked]
    if not names:
        raise UsageError(f"expected optimizers among {', '.join(OPTIMIZERS)}, got none")
    if len(set(names)) < len(names):
        raise UsageError(f"expected every optimizer once, got {', '.join(names)}")
    return {name: _entrant(name, one) for name, one in zip(names, asked, strict=True)}


@cache
def _loaded(spec: str, changed_at: int | None) -> tuple[OptimizerMaker, str]:
    """Run a user's file once, and again where it was changed."""
    return load_function(spec, "--optimizers", "name one that takes (named_parameters, lr)")


def _changed_at(path: str) -> int | None:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:  # loading it says why
        return None


def _is_file(asked: str) -> bool:
    return ":" in asked


def _entrant(name: str, asked: Asked) -> Entrant:
    if not isinstance(asked, str):
        return Entrant(name, name, asked)
    if _is_file(asked):
        function, what = _loaded(asked, _changed_at(asked.rpartition(":")[0]))
        return Entrant(name, what, function)
    if name.startswith(TORCH):
        return Entrant(name, name, torch_maker(name))
    spec_of(name, "torch's are torch.AdamW and so on, one of your own is FILE.py:FUNCTION")
    return Entrant(name)
