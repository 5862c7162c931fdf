"""What an optimizer must offer to be replayed, and how one that is not ours is made: torch's by name, or a user's.

Anything with parameter groups that hold a learning rate, a `step()` without closure, and a state that goes out and
comes back is enough. A replay sets the rate, feeds gradients, and starts every run from a copy of the state.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from lite_probe.blocks import assign_blocks, infer_family
from lite_probe.errors import InputError, UsageError
from lite_probe.optim.lite import LiteOptimizer
from lite_probe.user_code import run_code

TORCH = "torch."
_NEEDED = ("param_groups", "state", "step", "state_dict", "load_state_dict")
_RATIO = "lr_ratio"  # of a parameter group: its learning rate over the one that was asked for


class Replayable(Protocol):
    """An optimizer as a replay uses it; every `torch.optim.Optimizer` whose `step` needs no closure is one."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters by their settings; each has its learning rate as "lr"."""

    @property
    def state(self) -> Any:
        """What it keeps by parameter; its tensors' bytes are counted."""

    def step(self) -> Any:
        """Move the parameters by their gradients."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later steps depend on."""

    def load_state_dict(self, state_dict: Any) -> None:
        """Take a state back."""


class OptimizerMaker(Protocol):
    """A function that makes an optimizer, such as `make_mine(named_parameters, lr, **hyperparameters)`."""

    def __call__(
        self, named_parameters: list[tuple[str, nn.Parameter]], lr: float, **hyperparameters: Any
    ) -> "torch.optim.Optimizer | Sequence[torch.optim.Optimizer]":
        """Return an optimizer of these parameters, or several that share them out."""


class Together:
    """Optimizers of somebody else's that step as one, each with parameters of its own.

    Args:
        members: In the order in which they step.
        what: Who made them, for the message where a step raises.
    """

    def __init__(self, members: Sequence[torch.optim.Optimizer], what: str) -> None:
        self.members = tuple(members)
        self.what = what

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all."""
        return [group for member in self.members for group in member.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        """The states of all, by parameter."""
        return {key: value for member in self.members for key, value in member.state.items()}

    def step(self) -> None:
        """Let each make its step.

        Raises:
            InputError: If one raises; it says where.
        """
        for member in self.members:
            run_code(member.step, f"a step of {self.what}")

    def state_dict(self) -> dict[str, Any]:
        """Return the states in order."""
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the states back."""
        for member, state in zip(self.members, state_dict["members"], strict=True):
            member.load_state_dict(state)


def set_learning_rate(optimizer: Replayable, lr: float) -> None:
    """Set every group's rate; groups of a user's optimizer keep their ratios to the one asked for."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(_RATIO, 1.0)


def make_step(optimizer: Replayable) -> None:
    """Make a step, and know before the next one whether its gradients were finite.

    Raises:
        NumericsError: If ours was given one that is not.
    """
    optimizer.step()
    if isinstance(optimizer, LiteOptimizer):
        optimizer.require_finite()


def load_state(optimizer: Replayable, state: Mapping[str, Any]) -> None:
    """Give an optimizer a copy of a state: torch's keep the very tensors that they are given, and step on in them."""
    optimizer.load_state_dict(state if isinstance(optimizer, LiteOptimizer) else copy.deepcopy(state))


def make_foreign(
    maker: OptimizerMaker,
    what: str,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    hyperparameters: Mapping[str, Any],
) -> Together:
    """Make an optimizer by somebody else's function; its learning rate is 1 until it is set.

    Args:
        maker: Called with the trainable parameters and their names, the learning rate, and the hyperparameters.
        what: The maker in words, for messages: "make_mine of mine.py".
        named_parameters: As `model.named_parameters()` yields them; those without gradients are left out.
        hyperparameters: Further keyword arguments.

    Raises:
        InputError: If the function raises, or what comes back cannot be replayed; it says why. So does a step of it
            that raises.

    Cost: the function is called twice, to see what the learning rate does.
    """
    named = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    optimizer, half = (_made(maker, what, named, lr, hyperparameters) for lr in (1.0, 0.5))
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if rates == [float(group["lr"]) for group in half.param_groups]:
        raise InputError(
            f"expected an optimizer at the learning rate that {what} is given, got {rates[0]:g} for 1 and for 0.5",
            "pass lr on to it: a replay sweeps the rate",
        )
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group[_RATIO] = rate
    return optimizer


def _made(
    maker: OptimizerMaker,
    what: str,
    named: list[tuple[str, nn.Parameter]],
    lr: float,
    hyperparameters: Mapping[str, Any],
) -> Together:
    made = run_code(lambda: maker(list(named), lr, **hyperparameters), what)
    members: list[Any] = list(made) if isinstance(made, list | tuple) else [made]
    for member in members:
        missing = [name for name in _NEEDED if getattr(member, name, None) is None]
        if missing:
            raise InputError(
                f"expected a torch.optim.Optimizer from {what}, got {type(member).__name__} without "
                f"{', '.join(missing)}",
                "return one, or a list of several",
            )
        _require_plain_step(member, what)
        _require_rates(member, what)
    _require_partition(members, named, what)
    return Together(members, what)


def _require_plain_step(member: Any, what: str) -> None:
    needed = [
        name
        for name, parameter in inspect.signature(member.step).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if needed:
        raise InputError(
            f"expected a step without arguments from {what}, got {type(member).__name__}.step({', '.join(needed)})",
            "a replay gives each step one gradient; line searches cannot be replayed",
        )


def _require_rates(member: Any, what: str) -> None:
    if not all("lr" in group for group in member.param_groups):
        raise InputError(
            f"expected a learning rate in every parameter group from {what}, got {type(member).__name__} without",
            "keep the rate as 'lr' of the groups: a replay sets it there",
        )


def _require_partition(members: Sequence[Any], named: list[tuple[str, nn.Parameter]], what: str) -> None:
    """Refuse optimizers that leave parameters out, share one, or hold others."""
    own = [parameter for member in members for group in member.param_groups for parameter in group["params"]]
    known = {id(parameter): name for name, parameter in named}
    held = [id(parameter) for parameter in own]
    left_out = [name for key, name in known.items() if key not in held]
    if left_out:
        raise InputError(
            f"expected an optimizer of all {len(known)} parameters from {what}, got none for {', '.join(left_out[:6])}"
            + (f" and {len(left_out) - 6:,} more" if len(left_out) > 6 else ""),
            "give them to a second optimizer and return both in a list, or freeze them with requires_grad_(False)",
        )
    if len(held) != len(set(held)) or not set(held) <= known.keys():
        raise InputError(
            f"expected each of the model's parameters once from {what}, got {len(held)} for {len(known)}",
            "an optimizer takes the parameters it is given, each once",
        )


def torch_maker(name: str) -> OptimizerMaker:
    """Return the maker of one of torch's optimizers, "torch.AdamW".

    "torch.Muon" takes hidden matrices only: the rest goes to torch's AdamW at the same rate, as is usual, and the
    matrices' steps are aligned with that (`adjust_lr_fn="match_rms_adamw"`).

    Raises:
        UsageError: If torch has no such optimizer.
    """
    known = sorted(
        key
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    )
    kind = name.removeprefix(TORCH)
    if kind not in known:
        raise UsageError(f"expected an optimizer of torch among {', '.join(known)}, got {name!r}")
    if kind == "Muon":
        return _torch_muon
    made: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, kind)
    return lambda named_parameters, lr, **hyperparameters: made(named_parameters, lr=lr, **hyperparameters)


def _torch_muon(
    named_parameters: list[tuple[str, nn.Parameter]], lr: float, **hyperparameters: Any
) -> list[torch.optim.Optimizer]:
    shapes = {name: tuple(parameter.shape) for name, parameter in named_parameters}
    blocks, _ = assign_blocks(shapes, infer_family(shapes))
    hidden: list[tuple[str, nn.Parameter]] = []
    rest: list[tuple[str, nn.Parameter]] = []
    for name, parameter in named_parameters:
        is_outer = any(part.block in ("emb", "out") for part in blocks.get(name, ()))
        (hidden if parameter.ndim == 2 and not is_outer else rest).append((name, parameter))
    settings = {"adjust_lr_fn": "match_rms_adamw", **hyperparameters}
    members: list[torch.optim.Optimizer] = [torch.optim.Muon(hidden, lr=lr, **settings)] if hidden else []
    return [*members, torch.optim.AdamW(rest, lr=lr)] if rest else members
