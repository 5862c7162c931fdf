"""Algorithm 1 of LITE, once, for every preconditioner.

    u = (I − Q) F⁻¹(m + β₁g) + χ Q F⁻¹(m + β₂g),        w ← w − ηu − ηλ(w + (χ−1)Qw)

F⁻¹ acts on m and g apart, since msign is not linear; Q is applied to sums, since it is. With E = I + (χ−1)Q

    w ← w − E(η F⁻¹m + ηβ₁ F⁻¹g + ηλw) − ηχ(β₂ − β₁) Q F⁻¹g,

so that update and decay share one projection. A geometry supplies F⁻¹ and Q. Without damping and with χ = 1 what
remains is the base optimizer: `muon`, `soap` and `adamw` are this code with the terms that vanish left out.

Reference: LITE, arXiv 2602.22681.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from lite_probe.errors import InputError, NumericsError, UsageError
from lite_probe.optim.buckets import MASTER, Bucket, Piece, build_buckets, state_dtype, stays_with_base
from lite_probe.optim.diagonal import EVERYTHING
from lite_probe.optim.directions import Directions
from lite_probe.optim.geometry import Geometry, Hyperparameters, LiteSettings, Preconditioned, is_lite, sharp_rank
from lite_probe.optim.schedules import Schedule


def descend(bucket: Bucket, terms: Preconditioned, lite: LiteSettings, gate: Tensor | None) -> None:
    """Move the weights of a bucket: line 5 of Algorithm 1, the step and the decay."""
    decay = bucket.group["lr"] * bucket.group["weight_decay"]
    into, out_of = terms.into or _as_it_is, terms.out_of or _as_it_is
    stretched = lite.flat_lr_ratio != 1.0 and terms.project is not None
    if not stretched and terms.gradient is None and gate is None:
        # u = F⁻¹m and E = I: the base optimizer, which needs no copy of w.
        before, after = (1.0, 1.0 - decay) if terms.decay_last else (1.0 - decay, 1.0)
        direction, divisor = terms.momentum, terms.divisor
        if terms.out_of is not None:
            direction, divisor = out_of(_divide(direction, divisor)), None
        bucket.move(direction, divisor, keep_before=before, scale=terms.step_size, keep_after=after)
        return
    direction, flat_damping = _directions(terms, lite)
    change = direction * terms.step_size
    if decay and not terms.decay_last:
        change = change.add(into(bucket.weights()), alpha=decay)
    change = _stretch(change, terms, lite)
    if flat_damping is not None:
        change = change.add(flat_damping, alpha=terms.step_size * lite.flat_lr_ratio)
    if decay and terms.decay_last:
        change = change.add(_stretch(into(bucket.weights()) - change, terms, lite), alpha=decay)
    if gate is not None:
        change = change * gate
    bucket.move(out_of(change))


def _directions(terms: Preconditioned, lite: LiteSettings) -> tuple[Tensor, Tensor | None]:
    """Return F⁻¹m + β₁F⁻¹g, which E acts on, and (β₂ − β₁)QF⁻¹g, of which E makes χ times as much.

    EQ = χQ holds for a projector. A geometry whose Q is one up to its own accuracy may ask for E in both places, as
    published: then the second part is in the first.
    """
    direction = terms.momentum
    if terms.gradient is None:
        return _divide(direction, terms.divisor), None
    if lite.beta1:
        direction = direction.add(terms.gradient, alpha=lite.beta1)
    direction = _divide(direction, terms.divisor)
    if lite.beta2 == lite.beta1 or terms.project is None:
        return direction, None
    flat_damping = terms.project(_divide(terms.gradient, terms.divisor)) * (lite.beta2 - lite.beta1)
    return (direction + flat_damping, None) if terms.projects_twice else (direction, flat_damping)


def _divide(x: Tensor, divisor: Tensor | None) -> Tensor:
    return x if divisor is None else x / divisor


def _stretch(x: Tensor, terms: Preconditioned, lite: LiteSettings) -> Tensor:
    """Return Ex = x + (χ − 1) Qx."""
    if lite.flat_lr_ratio == 1.0 or terms.project is None:
        return x
    return x.add(terms.project(x), alpha=lite.flat_lr_ratio - 1.0)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def lite_settings(group: Hyperparameters, shape: Sequence[int], *, block: str, geometry: Geometry) -> LiteSettings:
    """Return what LITE's hyperparameters come to for one parameter, or matrix fused into it, at the end of its ramps.

    As published, a parameter stays with its base optimizer, undamped, where it is a vector of a hidden block or none of
    Muon's directions is sharp (ρ ≤ 1e-6). Where all are (ρ > 1 − 1e-5) there is nothing flat: β₂ and χ have no say.
    Where Muon's matrices have a `sharp_rank` it is what counts, and ρ has no say.

    Args:
        group: Hyperparameters.
        shape: (stack, …), as the geometry sees it.
        block: Of the parameter.
        geometry: Of the parameter.
    """
    if not is_lite(group) or stays_with_base(shape, block):
        return LiteSettings()
    rho, beta1, beta2, chi = group["sharp_ratio"][block], group["beta1"], group["beta2"], group["flat_lr_ratio"][block]
    rank = sharp_rank(group, block) if geometry.takes_rank else 0
    if not rank and rho <= geometry.nothing_sharp:
        return LiteSettings()
    if not rank and rho > EVERYTHING:
        beta2, chi = beta1, 1.0
    return LiteSettings(
        beta1=beta1,
        beta2=beta2,
        flat_lr_ratio=chi,
        sharp_ratio=rho,
        sharp_rank=rank,
        smooth_ratio=group["smooth_ratio"],
        damped=beta1 != 0.0 or beta2 != 0.0,
        projected=chi != 1.0 or beta1 != beta2,
    )


class LiteOptimizer(torch.optim.Optimizer):
    """An optimizer of the LITE family; `make_optimizer` builds one by name.

    A parameter group holds the parameters of one block, with hyperparameters that may be changed between steps, as
    learning-rate schedulers do; `flat_lr_ratio`, `sharp_ratio` and `sharp_rank` are dicts by block. All counters,
    thresholds and directions are in `state_dict()`: a run that is saved, loaded in another process and continued is
    bitwise the one that was not.

    Args:
        groups: Each with "params", "pieces" (one list per parameter) and its hyperparameters.
        schedule: Of LITE's own ramps; the learning rate is the group's "lr", set from outside.

    `step()` raises NumericsError where a gradient is not finite, and leaves parameters and state as they were. On an
    accelerator the step is masked on the device, and the error comes with the next one, or with `require_finite()`:
    asking would mean waiting.
    """

    def __init__(self, groups: list[dict[str, Any]], schedule: Schedule) -> None:
        self._pieces: dict[nn.Parameter, list[Piece]] = {}
        plain = []
        for group in groups:
            rest = {key: value for key, value in group.items() if key != "pieces"}
            plain.append({**rest, "step": 0})
            for pieces in group["pieces"]:
                self._pieces[pieces[0].parameter] = pieces
        self.schedule = schedule
        self._buckets: list[Bucket] = []
        self._arranged_for: tuple[list[bool], list[dict[str, int | None]]] | None = None
        self._pending: _FiniteCheck | None = None
        super().__init__(plain, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take a group of `__init__`'s; parameters that come later need a new optimizer, which knows their blocks."""
        if not all((p[1] if isinstance(p, tuple) else p) in self._pieces for p in param_group["params"]):
            raise UsageError(
                "expected the parameters this optimizer was made with, got a group of others",
                "make_optimizer with all named parameters, and load the old state with restore_state",
            )
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step; parameters without a gradient stay where they are.

        Args:
            closure: Computes the loss and its gradients first.

        Returns:
            What the closure returned.

        Raises:
            NumericsError: If a gradient is not finite; it names the parameter.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gate = self._check_gradients()
        self._arrange()
        for bucket in self._buckets:
            lite = self._lite(bucket)
            gradient = bucket.gradient(gate)
            local = None if gate is None else gate.to(gradient.dtype)
            terms = bucket.geometry.precondition(
                bucket.state, gradient, step=bucket.step, group=bucket.group, lite=lite, gate=local
            )
            if terms is not None:
                descend(bucket, terms, lite, local)
            bucket.geometry.post_step(bucket.state, gradient, step=bucket.step, group=bucket.group, gate=local)
        self._count()
        return loss

    def require_finite(self) -> None:
        """Ask now whether the last step's gradients were finite, where that was left to the next one.

        Raises:
            NumericsError: If one was not: that step has left no trace. It names the parameter.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.require_finite()

    @torch.no_grad()
    def directions(self) -> list[Directions]:
        """Return, per piece of each parameter, the coordinates in which its geometry is diagonal, and what it is there.

        The state is read as it is after the last step; neither it nor the parameters change.

        Cost: one copy of the state; for Muon an eigendecomposition of every momentum's smaller side.
        """
        pieces = [(piece, group) for group in self.param_groups for p in group["params"] for piece in self._pieces[p]]
        self._forget_buckets()  # the state is stacked anew, for parameters without gradients too
        buckets = build_buckets(pieces, self.state)
        return [one for bucket in buckets for one in self._directions_of(bucket)]

    @property
    def pieces(self) -> list[Piece]:
        """What each geometry sees of the parameters, in the order of the groups."""
        return [
            piece for group in self.param_groups for parameter in group["params"] for piece in self._pieces[parameter]
        ]

    def _directions_of(self, bucket: Bucket) -> list[Directions]:
        found = bucket.geometry.coordinates(bucket.state, step=bucket.step, group=bucket.group, lite=self._lite(bucket))
        device = bucket.pieces[0].parameter.device  # a geometry without state knows none for its numbers
        proxy, divisor = found.proxy.to(device), found.divisor.to(device)
        flat = found.flat if found.flat is not None else divisor.new_zeros(())
        directions, start = [], 0
        for piece in bucket.pieces:
            own = slice(start, start + piece.shape[0])
            start = own.stop
            directions.append(
                Directions(
                    piece=piece,
                    left=None if found.left is None else found.left[own],
                    right=None if found.right is None else found.right[own],
                    proxy=_part(proxy, own),
                    divisor=_part(divisor, own),
                    flat=_part(flat, own),
                    distinguishes=found.flat is not None,
                )
            )
        return directions

    def _arrange(self) -> None:
        """Sort the parameters that have gradients into buckets, unless the last step's still serve."""
        having = [p.grad is not None for group in self.param_groups for p in group["params"]]
        ranks = [dict(group.get("sharp_rank") or {}) for group in self.param_groups]  # the state's shape follows them
        if (having, ranks) == self._arranged_for:
            return
        pieces = [
            (piece, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
            for piece in self._pieces[parameter]
        ]
        self._buckets = build_buckets(pieces, self.state)
        self._arranged_for = having, ranks

    def _count(self) -> None:
        for bucket in self._buckets:
            bucket.step += 1
            for piece in bucket.pieces:
                self.state[piece.parameter]["step"] = bucket.step
        for group in self.param_groups:
            group["step"] += 1

    def _lite(self, bucket: Bucket) -> LiteSettings:
        """Return LITE's hyperparameters of a bucket at this step."""
        group, piece, schedule = bucket.group, bucket.pieces[0], self.schedule
        lite = lite_settings(group, piece.shape, block=piece.block, geometry=piece.geometry)
        chi = lite.flat_lr_ratio
        return replace(
            lite,
            beta2=schedule.damping(group["step"], lite.beta1, lite.beta2),
            flat_lr_ratio=1.0
            if chi == 1.0
            else schedule.flat_lr_ratio(group["step"], chi, hidden_matrix=piece.is_hidden_matrix),
        )

    def _check_gradients(self) -> Tensor | None:
        """Refuse gradients that are not finite: at once on a CPU, by a gate and at the next step elsewhere."""
        self.require_finite()
        named = [
            (name, p.grad)
            for group in self.param_groups
            for name, p in zip(group["param_names"], group["params"], strict=True)
            if p.grad is not None
        ]
        if not named:
            return None
        for name, gradient in named:
            if gradient.layout != torch.strided:
                raise InputError(
                    f"expected dense gradients, got one of layout {gradient.layout} for {name}",
                    "make its embedding with sparse=False",
                )
        check = _FiniteCheck([name for name, _ in named], [gradient for _, gradient in named])
        if not self._defers_checks(named[0][1].device):
            check.require_finite()
            return None
        self._pending = check
        return check.gate

    def _defers_checks(self, device: torch.device) -> bool:
        """Whether asking the device would mean waiting for it."""
        return device.type != "cpu"

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state dict that this optimizer saved, precision included.

        Raises:
            InputError: If it belongs to other parameters, another optimizer, or other blocks. The optimizer is then as
                it was.
        """
        groups, saved = self.param_groups, state_dict["param_groups"]
        hint = "load it into an optimizer made with the same name, model and blocks; restore_state takes what fits"
        name, other = ({str(group.get("optimizer", "another")) for group in part} for part in (groups, saved))
        if name != other:
            raise InputError(f"expected the state of {', '.join(name)}, got that of {', '.join(sorted(other))}", hint)
        if [(group["block"], group["param_names"]) for group in groups] != [
            (group.get("block"), group.get("param_names")) for group in saved
        ]:
            raise InputError(
                f"expected the state of {sum(len(g['params']) for g in groups)} parameters in {len(groups)} groups "
                f"with the names and blocks of this optimizer's, got {sum(len(g['params']) for g in saved)} "
                f"in {len(saved)}",
                hint,
            )
        for group, entry in zip(groups, saved, strict=True):
            for parameter, index in zip(group["params"], entry["params"], strict=True):
                self._check_state(parameter, {**group, **entry}, state_dict["state"].get(index, {}), hint)
        self._forget_buckets()
        self._pending = None
        for group, entry in zip(groups, saved, strict=True):
            group.update({key: copy.deepcopy(value) for key, value in entry.items() if key != "params"})
            for parameter, index in zip(group["params"], entry["params"], strict=True):
                own = state_dict["state"].get(index)
                if own is None:
                    self.state.pop(parameter, None)
                else:
                    self.state.pop(parameter, None)  # one parameter's old and new state are there at a time
                    self.state[parameter] = {name: _moved(value, parameter.device) for name, value in own.items()}

    def drop_state(self) -> None:
        """Let go of what is kept by parameter; a state dict that is loaded brings it back."""
        self._forget_buckets()
        self._pending = None
        self.state.clear()

    def _forget_buckets(self) -> None:
        """Let go of the stacks, which would keep a state beside the one that takes its place."""
        self._buckets = []
        self._arranged_for = None

    def _check_state(self, parameter: Tensor, group: Hyperparameters, state: Mapping[str, Any], hint: str) -> None:
        """Refuse a saved state that was divided, or seen, in another way; what it lacks starts anew."""
        pieces = self._pieces[parameter]  # type: ignore[index]
        expected: dict[str, tuple[int, ...]] = {}
        for piece in pieces:
            view, dtype = piece.view(parameter.detach()), state_dtype(parameter.dtype)
            made = piece.new_state(len(view), group, dtype, torch.device("meta"))
            if dtype != parameter.dtype:
                made[MASTER] = view
            for name, tensor in made.items():
                expected[name + piece.suffix] = tuple(tensor.shape if piece.is_stack else tensor.shape[1:])
        found = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
        if any(shape != expected.get(name) for name, shape in found.items()):
            wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
            raise InputError(
                f"expected a state of {pieces[0].name} with {_shapes(expected, wrong)}, got {_shapes(found, wrong)}",
                hint,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is arranged anew: buckets hold the state a second time."""
        left_out: dict[str, Any] = {"_buckets": [], "_arranged_for": None, "_pending": None}
        return {**super().__getstate__(), "schedule": self.schedule, "_pieces": self._pieces, **left_out}


def _shapes(found: Mapping[str, tuple[int, ...]], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {found.get(name, 'missing')}" for name in names[:3])


def _part(stacked: Tensor, own: slice) -> Tensor:
    """Return the part of a stack that is one piece's; a single number is everybody's."""
    return stacked[own] if stacked.ndim else stacked


class _FiniteCheck:
    """Whether the squares of some gradients add up to finite numbers, asked on their device."""

    def __init__(self, names: list[str], gradients: list[Tensor]) -> None:
        self._names = names
        # NaN and infinity pass through a norm, and so does a sum of squares that overflows.
        limits = [_largest_norm(state_dtype(gradient.dtype)) for gradient in gradients]
        self._limit = min(limits)
        norms = torch._foreach_norm(gradients)
        finite = torch.stack([n.double() < limit for n, limit in zip(norms, limits, strict=True)])
        self.gate = finite.all().to(torch.float32)
        self._finite, self._copied = finite, None
        if finite.is_cuda:
            # The answer travels by itself: waiting for this copy later is not waiting for the work queued meanwhile.
            self._finite = torch.empty_like(finite, device="cpu", pin_memory=True).copy_(finite, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def require_finite(self) -> None:
        """Raise NumericsError, with the names, where one was not."""
        if self._copied is not None:
            self._copied.synchronize()
        finite = self._finite.tolist()
        if all(finite):
            return
        bad = [name for name, good in zip(self._names, finite, strict=True) if not good]
        raise NumericsError(
            f"expected gradients whose norm is finite and below {self._limit:.0e}, got more or NaN "
            f"in that of {', '.join(bad[:4])}" + (f" and {len(bad) - 4} more" if len(bad) > 4 else ""),
            "the parameters are as they were before that step; lower the learning rate or look at the batch",
        )


def _largest_norm(dtype: torch.dtype) -> float:
    """Return a norm whose square is finite: 1e19 in float32."""
    return 10.0 ** math.floor(math.log10(torch.finfo(dtype).max) / 2)


def _moved(value: Any, device: torch.device) -> Any:
    return value.detach().to(device, copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
