"""Muon's geometry: F = (MMᵀ)^½, so that F⁻¹M = msign(M), the nearest matrix with orthonormal rows or columns.

msign is computed by a Newton–Schulz iteration, matrix products only: odd polynomials that drive all singular values
towards 1. LITE's sharp directions are the singular directions of the momentum above a threshold; they are found by a
second iteration, on M/(τ‖M‖) − msign(M), whose sign says on which side of the threshold each of them lies. Or they are
a number of leading ones, which `leading` finds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lite_probe.optim.diagonal import follow
from lite_probe.optim.geometry import (
    Coordinates,
    Geometry,
    Hyperparameters,
    LiteSettings,
    Preconditioned,
    State,
    gated,
    is_lite,
    replace_,
)
from lite_probe.optim.leading import capped_rank, first_basis, followed_basis, gram_vectors, kept_width, leading

_NO_MOMENTUM = 1e-8  # a momentum below which m + g(1−θ)/θ is g/θ to rounding
_DECOMPOSED = 2**22  # entries of square matrices of the longer side that are decomposed together
_MSIGN_ROUNDING = 32.0  # units of rounding by which ‖S‖_F is uncertain
# Of the iteration on a long matrix, as many as keep the accuracy of one by one; see `_iterate`.
_STEPS_TOGETHER = {torch.float64: 3, torch.float32: 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class NewtonSchulz:
    """Coefficients of X ← aX + (bA + cA²)X with A = XXᵀ, one triple a step, the last one for ever."""

    triples: tuple[tuple[float, float, float], ...]
    margin: float  # X₀ = G/(margin·‖G‖_F + floor)
    floor: float

    def step(self, index: int) -> tuple[float, float, float]:
        """Return the triple of one step."""
        return self.triples[min(index, len(self.triples) - 1)]


def _with_safety(*triples: tuple[float, float, float]) -> tuple[tuple[float, float, float], ...]:
    """Divide all but the last triple by powers of 1.01: rounding must not push a singular value past the interval."""
    return (*((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in triples[:-1]), triples[-1])


COEFFICIENTS: Mapping[str, NewtonSchulz] = {
    # Polar Express, arXiv 2505.16932, with its margins.
    "polar-express": NewtonSchulz(
        triples=_with_safety(
            (8.28721201814563, -23.595886519098837, 17.300387312530933),
            (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
            (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
            (3.3184196573706015, -2.488488024314874, 0.51004894012372),
            (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
            (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
            (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
            (1.875, -1.25, 0.375),
        ),
        margin=1.01,
        floor=1e-8,
    ),
    # K. Jordan's, as in torch.optim.Muon: quick to reach [0.7, 1.2], and stays there.
    "quintic": NewtonSchulz(triples=((3.4445, -4.775, 2.0315),), margin=1.0, floor=1e-7),
}


def frobenius_norm(matrices: Tensor) -> Tensor:
    """Return ‖X‖_F of each matrix, (…, m, n) → (…, 1, 1).

    Entries are divided by the largest first, so that squares neither overflow nor vanish, and rows are summed one by
    one: a float32 sum over a whole matrix is biased.
    """
    sides = (-2, -1)
    largest = torch.maximum(matrices.amax(dim=sides, keepdim=True), -matrices.amin(dim=sides, keepdim=True))
    scale = torch.where(largest > 0, largest, 1.0)
    rows: Tensor = torch.linalg.vector_norm(matrices / scale, dim=-1, keepdim=True)
    whole: Tensor = torch.linalg.vector_norm(rows, dim=-2, keepdim=True)
    return scale * whole


def msign(
    matrices: Tensor, *, steps: int = 6, coefficients: str = "polar-express", dtype: torch.dtype | None = None
) -> Tensor:
    """Return UVᵀ of each G = USVᵀ, approximately: odd polynomials act on the singular values.

    Args:
        matrices: G, (…, m, n), not changed. All-zero matrices give zero.
        steps: Of the iteration.
        coefficients: A key of `COEFFICIENTS`.
        dtype: To compute in; None computes in that of G.

    Returns:
        (…, m, n), of G's dtype. Singular values that were small beside ‖G‖_F are smaller than 1.

    Cost: 2·steps·(2s²l + s³) multiplications and additions a matrix, s the shorter and l the longer side; where
    l ≥ 2s three steps together take 2·(2s²l + 9s³), but in bfloat16.
    References: K. Jordan (2024), Muon; Polar Express, arXiv 2505.16932.
    """
    plan = COEFFICIENTS[coefficients]
    x = matrices / (plan.margin * frobenius_norm(matrices) + plan.floor)
    x = x.to(dtype or matrices.dtype).reshape(-1, *matrices.shape[-2:])
    tall = matrices.shape[-2] > matrices.shape[-1]
    if tall:
        x = x.mT
    together = _STEPS_TOGETHER.get(x.dtype, 1) if x.shape[-1] >= 2 * x.shape[-2] else 1
    for first in range(0, steps, together):
        x = _iterate(x, [plan.step(index) for index in range(first, min(first + together, steps))])
    return (x.mT if tall else x).reshape(matrices.shape).to(matrices.dtype)


def _iterate(x: Tensor, triples: Sequence[tuple[float, float, float]]) -> Tensor:
    """Make some steps X ← (aI + bA + cA²)X with one product by X before and one after them.

    All factors are polynomials of A = XXᵀ and commute: A itself becomes RAR with R = aI + bA + cA², and the factors are
    multiplied before they meet X: less work for a long X. But A holds squares of singular values, and each step
    enlarges the rounding of small ones by up to a². Three steps are as accurate as one by one (2e-5 in float32 at a
    condition of 1e6), six are not (2e-3 in float32). In bfloat16 even two push a singular value past the interval now
    and then, from where the next steps drive it to infinity.
    """
    gram = torch.bmm(x, x.mT)
    factors: Tensor | None = None
    for index, (a, b, c) in enumerate(triples):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if index == len(triples) - 1 and factors is None:
            return torch.baddbmm(x, polynomial, x, beta=a)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        factors = polynomial if factors is None else torch.bmm(polynomial, factors)
        if index < len(triples) - 1:
            gram = torch.bmm(torch.bmm(polynomial, gram), polynomial)
    return x if factors is None else torch.bmm(factors, x)


class Orthogonal(Geometry):
    """Muon: M = m + g(1−θ)/θ, F⁻¹M = msign(M), and LITE's projector Q = I − SᵀS, acting from the right.

        S = ½(msign(M) + msign(M/(τ‖M‖_F) − msign(M)))

    is the partial isometry of M's singular directions above τ‖M‖_F; τ follows by 5% a step so that about r of them
    are, r = min(⌊ρ·min(m, n)⌋ + 1, min(m, n) − 1). The step size is 0.2·η·√max(m, n), at which an update has AdamW's
    root mean square, unless `lr_scale` names another rule. S is a partial isometry up to msign's accuracy only; damping
    is projected twice, as published.

    With a `sharp_rank` k instead of ρ the sharp directions are the k leading singular directions of M, no threshold
    among them: Q = I − V_kV_kᵀ. V_k is exact at the first step, and followed from then on (see `leading`).

    Cost: one msign a step for Muon; LITE adds one of g for the damping and one for S, and products with S: one for the
    damping, one for update and decay together, Q being linear. With a `sharp_rank` S costs 18·m·n·w
    multiplications and additions in place of its msign, w = k + max(k, 8), and an eigendecomposition at the first step.
    """

    name = "orthogonal"
    kinds = ("Muon",)
    stacked_on_cpu = True
    nothing_sharp = 1e-6
    takes_rank = True
    renewable = ("sharp_basis",)

    def new_state(self, shape: torch.Size, group: Hyperparameters, dtype: torch.dtype, device: torch.device) -> State:
        """Return zero momentum, and under LITE τ = 1/√min(m, n)."""
        state = {"momentum": torch.zeros(shape, dtype=dtype, device=device)}
        if is_lite(group):
            state["threshold"] = torch.full((shape[0], 1, 1), min(shape[1:]) ** -0.5, dtype=dtype, device=device)
        return state

    def rank_state(self, shape: torch.Size, rank: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return the directions that are followed, zero before the first step."""
        count, rows, columns = shape
        return {"sharp_basis": torch.zeros(count, columns, kept_width(rows, columns, rank), dtype=dtype, device=device)}

    def renew(self, state: State) -> None:
        """See `Geometry.renew`: the directions of the average, from which the next step's are a step away."""
        basis = state["sharp_basis"]
        basis.copy_(first_basis(state["momentum"], basis.shape[-1]))

    def precondition(
        self,
        state: State,
        gradient: Tensor,
        *,
        step: int,
        group: Hyperparameters,
        lite: LiteSettings,
        gate: Tensor | None,
    ) -> Preconditioned:
        """See `Geometry.precondition`."""
        theta = group["momentum"]
        average = state["momentum"].lerp_(gradient, gated(1.0 - theta, gate))
        nesterov = average.add(gradient, alpha=(1.0 - theta) / theta) if theta > _NO_MOMENTUM else gradient
        rows, columns = gradient.shape[1:]
        direction, project = _sign(nesterov, group), None
        if lite.sharp_rank:
            project = self._past_leading(state["sharp_basis"], nesterov, step=step, lite=lite, gate=gate)
        elif lite.projected:
            threshold = state["threshold"]
            sharp = _above_threshold(nesterov, direction, threshold, group)
            rank = min(math.floor(lite.sharp_ratio * min(rows, columns)) + 1, min(rows, columns) - 1)
            # Where exactly r directions are sharp, ‖S‖ is √r but for the rounding of msign: that is not too many.
            too_many = frobenius_norm(sharp) > math.sqrt(rank) * (1.0 + _MSIGN_ROUNDING * torch.finfo(sharp.dtype).eps)
            replace_(threshold, follow(threshold, too_many).clamp(max=1.0), gate)
            project = FlatProjector(sharp, _dtype(gradient, group))
        return Preconditioned(
            momentum=direction,
            gradient=_sign(gradient, group) if lite.damped else None,
            project=project,
            step_size=group["lr"] * step_scale(rows, columns, group["lr_scale"]),
            projects_twice=True,
        )

    def _past_leading(
        self, basis: Tensor, matrices: Tensor, *, step: int, lite: LiteSettings, gate: Tensor | None
    ) -> "FlatProjector | None":
        """Follow the leading directions of M, and return Q = I − V_kV_kᵀ.

        They are followed also while nothing is projected: a ratio may be raised between steps.
        """
        rank = capped_rank(matrices.shape[1], matrices.shape[2], lite.sharp_rank)
        moved = first_basis(matrices, basis.shape[-1]) if step == 0 else followed_basis(matrices, basis)
        moved, sharp = leading(matrices, moved, rank)
        replace_(basis, moved, gate)
        return FlatProjector(sharp.mT, matrices.dtype) if lite.projected else None

    def coordinates(self, state: State, *, step: int, group: Hyperparameters, lite: LiteSettings) -> Coordinates:
        """See `Geometry.coordinates`: the singular vectors of the momentum M = UΣVᵀ, σ² as the proxy of columns.

        Q acts from the right, so its directions are columns of V. F acts from the smaller side; its value along a
        singular direction is σ/o, o what msign makes of σ. For a σ that is small beside ‖M‖ the iteration stops short
        of 1, which is its own regularisation: σ/o is never below ‖M‖ over the product of its linear coefficients.
        M is the average alone, without the last gradient's Nesterov share. Singular vectors are those of the smaller
        Gram matrix: those of a σ below 1e-8 of the largest are mixed with one another, as the rounding of a float32
        average mixes them anyway.
        """
        average = state["momentum"]
        rows, columns = average.shape[1:]
        direction = _sign(average, group)
        count = min(rows, columns)
        left, values, right, reached = _singular_coordinates(average, direction)
        plan = COEFFICIENTS[group["ns_coefficients"]]
        gain = math.prod(plan.step(index)[0] for index in range(group["ns_steps"])) / plan.margin
        least = (frobenius_norm(average).squeeze(2) / gain).clamp(min=torch.finfo(average.dtype).tiny)
        divisor = torch.maximum(values / reached.clamp(min=1e-6), least) / step_scale(rows, columns, group["lr_scale"])
        strength = torch.zeros(len(average), columns, dtype=average.dtype, device=average.device)
        strength[:, :count] = values.square()
        flat = None
        if lite.projected and lite.sharp_rank:
            rank = capped_rank(rows, columns, lite.sharp_rank)
            flat = torch.ones_like(strength).unsqueeze(1)
            rounding = max(rows, columns) * torch.finfo(average.dtype).eps
            flat[:, 0, :rank] = (values[:, :rank] <= rounding * values[:, :1]).to(flat.dtype)
        elif lite.projected:
            sharp = torch.bmm(_above_threshold(average, direction, state["threshold"], group), right)
            flat = (1.0 - sharp.square().sum(dim=1, keepdim=True)).clamp(0.0, 1.0)
        return Coordinates(
            left=left,
            right=right,
            proxy=strength.unsqueeze(1),
            divisor=divisor.unsqueeze(1 if left is None else 2),
            flat=flat,
        )


def _singular_coordinates(matrices: Tensor, direction: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Return the singular vectors of each M, its σ, and what msign makes of each, s = min(m, n) of these.

    Args:
        matrices: M, (stack, m, n).
        direction: msign(M).

    Returns:
        (stack, m, m) left vectors where m < n, else None; (stack, s) σ; (stack, n, n) right vectors, which are
        completed where m < n; (stack, s) uᵀ msign(M) v. All of M's dtype.

    Cost: an eigendecomposition of (s, s) a matrix in float64, where m < n a QR of (n, s); a few matrices at a time.
    """
    stack, rows, columns = matrices.shape
    wide, count = rows < columns, min(rows, columns)
    left = matrices.new_empty(stack, rows, rows) if wide else None
    right = matrices.new_empty(stack, columns, columns)
    values, reached = matrices.new_empty(stack, count), matrices.new_empty(stack, count)
    length = max(1, _DECOMPOSED // max(rows, columns) ** 2)
    for start in range(0, stack, length):
        part = slice(start, start + length)
        exact = matrices[part].double()
        basis = gram_vectors(exact)
        image = torch.bmm(exact.mT if wide else exact, basis)  # σ times the vectors of the longer side
        if left is None:
            right[part] = basis
            values[part] = sizes = torch.linalg.vector_norm(image, dim=1)
            image /= sizes.clamp(min=torch.finfo(sizes.dtype).tiny).unsqueeze(1)
            turned = torch.bmm(direction[part], right[part])
            reached[part] = (image.to(matrices.dtype) * turned).sum(dim=1)
        else:
            left[part] = basis
            found: Tensor
            found, triangle = torch.linalg.qr(image, mode="complete")
            diagonal = triangle.diagonal(dim1=1, dim2=2)
            found[..., :count] *= torch.where(diagonal < 0, -1.0, 1.0).unsqueeze(1)
            right[part], values[part] = found, diagonal.abs()
            turned = torch.bmm(direction[part], right[part][..., :count])
            reached[part] = (left[part] * turned).sum(dim=1)
    return left, values, right, reached


# Rules for the step of an (m, n) matrix by their names in torch, written as ours are.
LR_SCALES: Mapping[str, Callable[[int, int], float]] = {
    # The root mean square of an AdamW step, 0.2; Moonlight, arXiv 2502.16982.
    "match-rms-adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    # K. Jordan (2024), Muon.
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
}


def step_scale(rows: int, columns: int, rule: str) -> float:
    """Return what an orthogonal (m, n) matrix and the learning rate are multiplied by, by a rule of `LR_SCALES`."""
    return LR_SCALES[rule](rows, columns)


def _sign(matrices: Tensor, group: Hyperparameters) -> Tensor:
    return msign(
        matrices, steps=group["ns_steps"], coefficients=group["ns_coefficients"], dtype=_dtype(matrices, group)
    )


def _dtype(matrices: Tensor, group: Hyperparameters) -> torch.dtype:
    """Return the precision of products, that of the state unless the group says otherwise."""
    chosen: torch.dtype = matrices.dtype if group["msign_dtype"] is None else getattr(torch, group["msign_dtype"])
    return chosen


def _above_threshold(matrices: Tensor, direction: Tensor, threshold: Tensor, group: Hyperparameters) -> Tensor:
    """Return S, the partial isometry of the singular directions above τ‖M‖_F; `direction` is msign(M)."""
    rest = (matrices / (threshold * frobenius_norm(matrices) + 1e-9)).sub_(direction)
    return _sign(rest, group).add_(direction).mul_(0.5)


class FlatProjector:
    """X ↦ XQ = X − XSᵀS for a stack of S (m, n), through the smaller of SᵀS and XSᵀ; products in the dtype given."""

    def __init__(self, sharp: Tensor, dtype: torch.dtype) -> None:
        self._sharp = sharp.to(dtype)
        wide = sharp.shape[-2] < sharp.shape[-1]
        self._gram = None if wide else torch.bmm(self._sharp.mT, self._sharp)

    def __call__(self, matrices: Tensor) -> Tensor:
        """Return XQ, (stack, m, n)."""
        x = matrices.to(self._sharp.dtype)
        sharp_part = torch.bmm(torch.bmm(x, self._sharp.mT), self._sharp) if self._gram is None else x @ self._gram
        return matrices - sharp_part
