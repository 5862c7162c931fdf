"""Optimizer states of checkpoints, taken over by an optimizer of ours.

A saved state belongs to one kind of optimizer, and goes on only where the same kind steps here: AdamW's moments say
nothing that Muon could use. With the averages of gradients come the hyperparameters that made them; the learning rate
stays the new optimizer's.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lite_probe.checkpoints.optimizers import StateDict, own_optimizer
from lite_probe.checkpoints.parameter_orders import (
    ASSUMED_ORDER,
    Assignment,
    SavedEntry,
    assign_entries,
    saved_entries,
)
from lite_probe.errors import UsageError
from lite_probe.optim.buckets import MASTER, Piece, state_dtype
from lite_probe.optim.factory import require_hyperparameters
from lite_probe.optim.geometry import is_lite
from lite_probe.optim.lite import LiteOptimizer
from lite_probe.optim.saved_contents import (
    LITE_NUMBERS,
    MOST_STEPS,
    Contents,
    Target,
    bare,
    checked,
    completed_updates,
    read_contents,
)
from lite_probe.optim.saved_rules import MSIGN, SavedRules, read_rules, real
from lite_probe.results.provenance import Note


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredGroup:
    """What became of the parameters of one group that share a geometry."""

    block: str  # of the parameter group: "qk", or "qk+vo" where they are fused
    geometry: str  # its name
    restored: int  # parameters that go on from the saved state
    fresh: int  # parameters that start anew
    state_names: tuple[str, ...]  # entries that were restored
    fresh_names: tuple[str, ...]  # entries of restored parameters that start anew
    step: int  # completed updates, from which the ramps go on
    reason: str  # why parameters start anew; empty where none does

    @property
    def line(self) -> str:
        """One line for people."""
        parts = []
        if self.restored:
            names = ", ".join(self.state_names) or "no state needed"
            anew = f"; {', '.join(self.fresh_names)} anew" if self.fresh_names else ""
            parts.append(f"{self.restored:,} restored ({names}{anew}) at step {self.step:,}")
        if self.fresh:
            parts.append(f"{self.fresh:,} fresh: {self.reason}")
        return f"{self.block}, {self.geometry}: {'; '.join(parts)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What an optimizer took over from a checkpoint."""

    groups: tuple[RestoredGroup, ...]
    notes: tuple[Note, ...]
    hyperparameters: Mapping[str, Mapping[str, tuple[Any, ...]]]  # taken over: name → block → values, each once

    @property
    def restored(self) -> int:
        """Parameters that go on from the saved state."""
        return sum(group.restored for group in self.groups)

    @property
    def fresh(self) -> int:
        """Parameters that start anew."""
        return sum(group.fresh for group in self.groups)

    @property
    def lines(self) -> tuple[str, ...]:
        """One line per group for people."""
        return tuple(group.line for group in self.groups)


def restore_state(
    optimizer: LiteOptimizer,
    states: Sequence[StateDict],
    *,
    named_parameters: Iterable[tuple[str, nn.Parameter]] | None = None,
    step: int | None = None,
    keep: Collection[str] = (),
) -> Restored:
    """Let an optimizer go on from the optimizer states of a checkpoint.

        restored = restore_state(
            optimizer,
            checkpoint.optimizer_states(),
            named_parameters=model.named_parameters(),
            step=checkpoint.step,
        )

    Saved entries find their parameters by the names saved with them; without names by the usual orders, where every
    shape fits, which a note then tells. Moments of `torch.optim.Adam` and `AdamW`, Moonlight's AdamW and LITE's go to
    AdamW's parameters, the momentum of `torch.optim.Muon`, K. Jordan's Muon, Moonlight and Muon-LITE to Muon's, SOAP's
    bases, factors and moments to SOAP's, those of `torch.optim.SGD` to `sgd`, our own to all of these. Everything else
    starts anew: whatever state the optimizer had is gone.

    Hyperparameters that were saved with a state go with it, so that the next step is the one the saving optimizer would
    have made; parameters that were saved in other groups, as those without weight decay are, get groups of their own.
    Notes tell what changes, and what the saving optimizer did that this one cannot. LITE keeps its own msign, which its
    projector is made of; its other hyperparameters go over only between optimizers that let the same of them be set,
    so that SAMuon stays SAMuon. Make learning-rate schedulers afterwards, since they hold on to groups.

    Args:
        optimizer: From `make_optimizer`.
        states: As `torch.optim.Optimizer.state_dict` returns them; those of several optimizers in any order.
        named_parameters: As given to `make_optimizer`: the model's order, for states without names. None leaves
            such states alone.
        step: Completed updates of the run, for states that do not count them: `torch.optim.Muon`'s.
        keep: Hyperparameters that stay as they are whatever was saved; a note tells where they differ.

    Returns:
        What was restored and what starts anew, per parameter group, and why.

    Raises:
        InputError: If a saved tensor is not finite or has a wrong shape, a hyperparameter is none, or the states are
            damaged. The optimizer is then as it was.
        UsageError: If `step` is no count, or `named_parameters` lack one of the optimizer's.

    Cost: one copy of the state.
    """
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= MOST_STEPS):
        raise UsageError(f"expected step ≥ 0 or None, got {step!r}")
    entries = saved_entries(states)
    targets = _targets(optimizer)
    assigned = _assign(entries, targets, named_parameters)
    found = {name: entry for name, entry in zip(assigned.names, entries, strict=True) if name is not None}
    notes: dict[Note, None] = {}  # in order, each once
    saved = [target for target in targets if target.name in found]
    contents = {target.name: read_contents(found[target.name], target, notes) for target in saved}
    counters = [read.step for read in contents.values() if isinstance(read, Contents) and read.step is not None]
    own_groups = [entry.group for entry in entries if own_optimizer(entry.group)]
    counters += [completed_updates(group["step"], "a parameter group") for group in own_groups]
    run_step = max(counters, default=step or 0)
    rules = {
        target.name: rules
        for target in targets
        if (rules := _rules(found.get(target.name), target, contents.get(target.name))) is not None
    }
    ruled = [_under(target, rules.get(target.name), keep) for target in targets]
    fates = [_fate(target, contents.get(target.name, _unassigned(target, assigned)), run_step) for target in ruled]
    changes = [
        _Change(target, new, rules[target.name], found[target.name])
        for target, new, fate in zip(targets, ruled, fates, strict=True)
        if fate.state is not None and target.name in rules
    ]
    restored = Restored(
        groups=_rows(targets, fates, run_step),
        notes=(*_order_notes(states, assigned), *notes, *_rule_notes(changes)),
        hyperparameters=_taken_over(changes),
    )
    # Only now, when nothing can be refused any more.
    _divide_groups(optimizer, {change.after.parameter: change.after.group for change in changes})
    _write(optimizer, targets, fates, run_step)
    return restored


@dataclass(frozen=True, slots=True)
class _Fate:
    """What a parameter's state becomes: `state`, or a reason why it starts anew."""

    state: dict[str, Any] | None
    names: tuple[str, ...] = ()  # without the suffixes of pieces
    fresh_names: tuple[str, ...] = ()
    reason: str = ""


def _targets(optimizer: LiteOptimizer) -> list[Target]:
    return [
        Target(name, parameter, optimizer._pieces[parameter], group)
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    ]


def _assign(
    entries: Sequence[SavedEntry],
    targets: Sequence[Target],
    named_parameters: Iterable[tuple[str, nn.Parameter]] | None,
) -> Assignment:
    """Find the parameter of each entry; the optimizer's own groups do not keep the model's order."""
    if named_parameters is not None:
        by_parameter = {target.parameter: target for target in targets}
        ordered = [by_parameter[parameter] for _, parameter in named_parameters if parameter in by_parameter]
        missing = sorted({target.name for target in targets} - {target.name for target in ordered})
        if missing:
            raise UsageError(
                f"expected named_parameters with all of the optimizer's, got none for {', '.join(missing[:6])}",
                "pass those that make_optimizer was given",
            )
        targets = ordered
    elif entries and all(entry.name is None for entry in entries):
        return Assignment(
            names=(None,) * len(entries),
            problem="the saved state has no names, and without named_parameters the model's order is not known",
        )
    shapes = {target.name: tuple(target.parameter.shape) for target in targets}
    return assign_entries(entries, shapes, {target.name: target.pieces[0].block for target in targets})


def _unassigned(target: Target, assigned: Assignment) -> str:
    if assigned.problem:
        return assigned.problem
    if target.name in assigned.disputed:
        return "nothing tells which of several saved entries is its own"
    return "nothing was saved for it"


def _order_notes(states: Sequence[StateDict], assigned: Assignment) -> Iterator[Note]:
    """Yield a note for each order that was assumed, here or by a reader of a checkpoint."""
    orders = [state.get(ASSUMED_ORDER) for state in states] if not assigned.order else [assigned.order]
    for order in dict.fromkeys(str(order) for order in orders if order):
        message = f"The optimizer state has no parameter names; its order was taken to be: {order}."
        yield Note(code="optimizer-order", message=message)
    if assigned.others:
        others = f"{'; '.join(assigned.others[:3])}{' and others' if len(assigned.others) > 3 else ''}"
        message = f"Shapes and groups of the optimizer state also fit other orders: {others}."
        if assigned.disputed:
            message += f" As likely as the first, they leave {', '.join(sorted(assigned.disputed)[:6])} undecided."
        yield Note(code="optimizer-order-ambiguous", message=message)


def _rows(targets: Sequence[Target], fates: Sequence[_Fate], step: int) -> tuple[RestoredGroup, ...]:
    members: dict[tuple[str, str], list[_Fate]] = {}
    for target, fate in zip(targets, fates, strict=True):
        members.setdefault((target.group["block"], target.pieces[0].geometry.name), []).append(fate)
    rows = []
    for (block, geometry), together in members.items():
        fresh = [fate for fate in together if fate.state is None]
        rows.append(
            RestoredGroup(
                block=block,
                geometry=geometry,
                restored=len(together) - len(fresh),
                fresh=len(fresh),
                state_names=tuple(dict.fromkeys(name for fate in together for name in fate.names)),
                fresh_names=tuple(dict.fromkeys(name for fate in together for name in fate.fresh_names)),
                step=step,
                reason="; ".join(dict.fromkeys(fate.reason for fate in fresh)),
            )
        )
    return tuple(rows)


def _write(optimizer: LiteOptimizer, targets: Sequence[Target], fates: Sequence[_Fate], step: int) -> None:
    optimizer.state.clear()
    for target, fate in zip(targets, fates, strict=True):
        if fate.state is not None:
            optimizer.state[target.parameter] = fate.state
    for group in optimizer.param_groups:
        group["step"] = step
    optimizer._arranged_for = None


# -- hyperparameters ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Change:
    """A restored parameter under the hyperparameters it had, and under those it goes on with."""

    before: Target
    after: Target
    rules: SavedRules
    entry: SavedEntry


def _rules(entry: SavedEntry | None, target: Target, contents: "Contents | str | None") -> SavedRules | None:
    """Read the hyperparameters that go with a state; None where it is of no use here."""
    if entry is None or not isinstance(contents, Contents):
        return None
    geometry = target.pieces[0].geometry
    if contents.kind not in geometry.kinds:
        return None
    if contents.hyperparameters is not None:
        require_hyperparameters(target.group["optimizer"], contents.hyperparameters)
        return SavedRules(values=contents.hyperparameters, missing=(), departures=())
    divided = len(target.pieces) > 1 or target.pieces[0].is_stack
    optimizer = target.group["optimizer"]
    return read_rules(entry, contents.kind, geometry.name, target.name, divided=divided, optimizer=optimizer)


def _under(target: Target, rules: SavedRules | None, keep: Collection[str]) -> Target:
    """Return a target with the saved hyperparameters in place of its group's."""
    if rules is None:
        return target
    group = dict(target.group)
    for name, value in rules.values.items():
        own_msign = name in MSIGN and is_lite(group) and "beta1" not in rules.values
        if name in group and name not in keep and not own_msign:
            group[name] = {**group[name], **value} if isinstance(value, Mapping) else value
    return replace(target, group=group)


def _divide_groups(optimizer: LiteOptimizer, settings: Mapping[nn.Parameter, Mapping[str, Any]]) -> None:
    """Give parameters their hyperparameters; those that differ from the rest of their group get one of their own."""
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts: list[tuple[dict[str, Any], list[tuple[str, nn.Parameter]]]] = []
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            wanted = {**group, **settings.get(parameter, {})}
            plain = {key: value for key, value in wanted.items() if key not in ("params", "param_names")}
            members = next((members for known, members in parts if known == plain), None)
            if members is None:
                parts.append((plain, [(name, parameter)]))
            else:
                members.append((name, parameter))
        for index, (plain, members) in enumerate(parts):
            one = group if index == 0 else {}
            one |= {**plain, "params": [p for _, p in members], "param_names": [name for name, _ in members]}
            groups.append(one)
    optimizer.param_groups[:] = groups


def _taken_over(changes: Sequence[_Change]) -> dict[str, dict[str, tuple[Any, ...]]]:
    """Return the saved hyperparameters that are in use: name → block → values."""
    taken: dict[str, dict[str, tuple[Any, ...]]] = {}
    for change in changes:
        group = change.after.group
        for name, value in change.rules.values.items():
            if name in group and (isinstance(value, Mapping) or _same(group[name], value)):
                values = taken.setdefault(name, {}).setdefault(group["block"], ())
                if group[name] not in values:
                    taken[name][group["block"]] = (*values, group[name])
    return taken


def _rule_notes(changes: Sequence[_Change]) -> Iterator[Note]:
    """Tell what the saved hyperparameters change, and what of the saving optimizer is not here."""
    taken: dict[str, None] = {}
    kept: dict[str, None] = {}
    missing: dict[str, None] = {}
    departures: dict[str, None] = {}
    for change in changes:
        before, after = change.before.group, change.after.group
        for name, saved in change.rules.values.items():
            if not _same(before.get(name), after.get(name)):
                taken[f"{name} {_words(after[name])} instead of {_words(before[name])}"] = None
            elif name in after and not isinstance(saved, Mapping) and not _same(after[name], saved):
                kept[f"{name} {_words(after[name])}, saved {_words(saved)}"] = None
        missing |= {f"{name} {_words(after[name])}": None for name in change.rules.missing if name in after}
        departures |= dict.fromkeys(change.rules.departures)
    if not changes:
        return
    optimizer = changes[0].before.group["optimizer"]
    for code, start, found in (
        ("optimizer-hyperparameters", f"{optimizer} goes on under the saved hyperparameters", taken),
        ("optimizer-hyperparameters-kept", f"{optimizer} has hyperparameters of its own", kept),
        ("optimizer-hyperparameters-unsaved", f"The saved state does not tell all; {optimizer}'s own are", missing),
        ("optimizer-departures", f"What was saved was not stepped quite as {optimizer} steps", departures),
    ):
        if found:
            yield Note(code=code, message=f"{start}: {'; '.join(found)}.")
    rates = dict.fromkeys(_words(rate) for change in changes if (rate := _saved_rate(change.entry)) is not None)
    if len(rates) > 1:
        message = f"The saved groups had different learning rates ({', '.join(rates)}); here all parameters take one."
        yield Note(code="optimizer-rates", message=message)


def _saved_rate(entry: SavedEntry) -> float | None:
    """Return the learning rate of a saved group; None where none was saved. A measurement sets its own."""
    return real(entry.group["lr"], "lr", "a parameter group") if "lr" in entry.group else None


def _same(one: Any, other: Any) -> bool:
    pair = [tuple(value) if isinstance(value, list) else value for value in (one, other)]
    return bool(pair[0] == pair[1])


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        by_value: dict[str, list[str]] = {}
        for block, one in value.items():
            by_value.setdefault(_words(one), []).append(block)
        return ", ".join(f"{one} ({', '.join(blocks)})" for one, blocks in by_value.items())
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_words, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


# -- what becomes of it ------------------------------------------------------------------------------------------------


def _fate(target: Target, contents: Contents | str, run_step: int) -> _Fate:
    if isinstance(contents, str):
        return _Fate(None, reason=contents)
    state: dict[str, Any] = {}
    fresh_names: list[str] = []
    for piece in target.pieces:
        problem = _fill(state, fresh_names, piece, target, contents)
        if problem:
            return _Fate(None, reason=problem)
    names = tuple(dict.fromkeys(bare(key) for key in state))
    # Moments are corrected by the number of their updates; our SOAP has one step more.
    step = contents.step if contents.step is not None else run_step
    if contents.adam_step is not None:
        step = contents.adam_step + target.pieces[0].geometry.idle_steps
    return _Fate({**state, "step": step}, names, tuple(dict.fromkeys(fresh_names)))


def _fill(
    state: dict[str, Any], fresh_names: list[str], piece: Piece, target: Target, contents: Contents
) -> str | None:
    """Add the state of one piece; return why there is none."""
    expected = _expected(piece, target)
    problem = _mismatch(piece, target, contents, expected)
    if problem:
        return problem
    divided = len(target.pieces) > 1 or piece.is_stack
    for name, shape in expected.items():
        key = name + piece.suffix
        renewable = name in piece.geometry.renewable
        if key in contents.made and not (renewable and _has_other_shape(contents.made[key], shape)):
            value = checked(contents.made[key], shape, target, key)
        elif name in contents.elementwise:
            view = piece.view(contents.elementwise[name])
            value = view if piece.is_stack else view[0]
        elif name in contents.scalars and not divided:
            value = torch.tensor(contents.scalars[name], dtype=torch.float64)
        elif renewable or name in LITE_NUMBERS:
            fresh_names.append(name)
            continue
        elif name == MASTER:
            continue  # made of the parameter
        else:
            return f"what was saved of it has no {name}"
        like = torch.empty(shape, dtype=state_dtype(target.parameter.dtype), device=target.parameter.device)
        state[key] = like.copy_(value)
    return None


def _has_other_shape(value: object, shape: torch.Size) -> bool:
    """Whether an entry is that of other hyperparameters, and not damaged."""
    return isinstance(value, torch.Tensor) and value.shape[:-1] == shape[:-1] and value.shape != shape


def _expected(piece: Piece, target: Target) -> dict[str, torch.Size]:
    """Return the names and shapes of a piece's state."""
    view = piece.view(target.parameter.detach())
    dtype = state_dtype(view.dtype)
    made = piece.new_state(len(view), target.group, dtype, torch.device("meta"))
    if dtype != view.dtype:
        made[MASTER] = view
    return {name: tensor.shape if piece.is_stack else tensor.shape[1:] for name, tensor in made.items()}


def _mismatch(piece: Piece, target: Target, contents: Contents, expected: Mapping[str, torch.Size]) -> str | None:
    """Return why contents of this kind cannot go on in a piece's geometry."""
    wanted = piece.geometry.kind_of(expected)
    sides = {name for name in expected if name.startswith("basis_")}
    if not set(expected) - {MASTER}:
        return None  # nothing to restore, nothing to miss
    if contents.kind != wanted:
        return f"what was saved of it is {contents.kind}'s, not {wanted}'s"
    if contents.adam_step is not None and contents.adam_step < 0:
        return "it had not stepped yet"
    if contents.kind == "SOAP" and contents.elementwise and (len(target.pieces) > 1 or piece.is_stack):
        return "SOAP rotated all of it, and here its parts are rotated one by one"
    saved = {key.removesuffix(piece.suffix) for key in contents.made if key.endswith(piece.suffix)}
    if contents.kind == "SOAP" and sides != {name for name in saved if name.startswith("basis_")}:
        return "SOAP rotated other sides of it; max_precond_dim decides which"
    return None
