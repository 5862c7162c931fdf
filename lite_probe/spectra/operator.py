"""One operator's spectrum: eigenpairs, then probes beside them, every product used for all it can say.

The order is: Lanczos until the wanted pairs have converged; the basis is rotated onto its Ritz vectors; probes in the
complement of the converged pairs give density and trace. A probe that meets curvature above a converged pair shows
that a pair was missed (a repeated eigenvalue has only one vector in a Krylov space): the run then goes on with a random
vector more in its block until probes find nothing missing. Density and trace stay those of the first probes, which
are right whatever pairs they were deflated by.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lite_probe.errors import UsageError
from lite_probe.operators.base import SymmetricOperator
from lite_probe.results.estimate import Estimate
from lite_probe.results.provenance import Note
from lite_probe.results.spectrum import OperatorSpectrum
from lite_probe.runtime.resumable import damage_note
from lite_probe.seeds import derive_seed
from lite_probe.spectra.density import (
    Probes,
    advance_probes,
    deflate_rule,
    no_probes,
    quadratures,
    trace_estimates,
)
from lite_probe.spectra.lanczos import Lanczos, RitzPairs, check_residuals, lanczos, multiply
from lite_probe.spectra.state import SavedState
from lite_probe.vectors.basis import KrylovBasis

FloatArray = NDArray[np.float64]
OnProgress = Callable[[int, int, str], None]

_ROUNDS = 6  # times a missed pair is looked for; each round adds a vector to the block
_CHECK_STEPS = 8  # Lanczos steps that a new block member gets before convergence is judged again
_LEAST_SIZE = 10  # times the products that pairs may take: smaller operators are multiplied exactly
_MARGIN = 0.7  # of the tolerance, for the recurrence's residuals where fast products add an error
_SAFE = 0.3  # of the tolerance, within which fast products may err: pairs far below ‖H‖ see more of it
_POOR = 0.2  # error of fast products beyond which all are exact
_ROUGH = 0.03  # tolerance of pairs before exact products polish them
_POLISHED = 1.25  # fast products of pairs that are polished, over the exact ones they take otherwise
_CHECKS = 2  # exact products that tell that error
_POLISHES = 4  # times exact products go into a run of fast ones, before it goes on with exact ones only
_CHECK_PROBES = 2  # probes, of as many steps, that then look whether anything is still missing


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRequest:
    """What is wanted of one operator.

    Args:
        top: Pairs at the upper end, k ≥ 1.
        bottom: Pairs at the lower end, j ≥ 0.
        probes: Random probes, p ≥ 2.
        probe_steps: Lanczos steps of each.
        tolerance: A pair has converged when ‖Hv − λv‖ ≤ tolerance·|λ|, or at the rounding floor.
        max_products: Stop looking for pairs there.
        seed: Of all random vectors.
    """

    top: int = 10
    bottom: int = 3
    probes: int = 4
    probe_steps: int = 10
    tolerance: float = 1e-3
    max_products: int | None = None
    seed: int = 0

    @property
    def product_limit(self) -> int:
        """Products that the pairs may take."""
        return self.max_products if self.max_products is not None else 100 + 20 * (self.top + self.bottom)

    @property
    def expected_pair_products(self) -> int:
        """Products that the pairs took on trained language models, for plans and progress bars."""
        return 10 + 5 * self.top // 2 + 3 * self.bottom

    @property
    def expected_products(self) -> int:
        """All products that are expected: those of the pairs, the residuals' check, the probes."""
        return self.expected_pair_products + 1 + self.probes * self.probe_steps


def is_accurate(error: float, request: OperatorRequest) -> bool:
    """Tell whether products that err by so much may find pairs to the tolerance by themselves."""
    return error <= _SAFE * request.tolerance


def expected_split(request: OperatorRequest, error: float, *, fast_pairs: bool) -> tuple[int, int]:
    """Return the exact and the fast products that are expected where there are fast ones.

    Args:
        request: What is wanted.
        error: Of fast products, relative: where it is beyond the tolerance, pairs are polished.
        fast_pairs: Whether pairs are found by fast products.
    """
    exact, fast = 1 + request.probes, 1 + request.probes * (request.probe_steps - 1)
    pairs = request.expected_pair_products
    if not fast_pairs:
        return exact + pairs, fast
    if is_accurate(error, request):
        return exact + _CHECKS, fast + pairs
    return exact + _CHECKS + request.top + request.bottom, fast + round(_POLISHED * pairs)


@dataclass(frozen=True, slots=True)
class DeflatedQuadrature:
    """What the probes said of everything but the pairs they were deflated by."""

    eigenvalues: list[float]  # (a,) deflated
    nodes: list[float]  # (q,)
    weights: list[float]  # (q,) each probe's sum to 1 − a/n
    probe_index: list[int]  # (q,)
    trace: Estimate
    trace_h2: Estimate


@dataclass(slots=True)
class Measured:
    """An operator's spectrum, with its eigenvectors and what happened on the way."""

    spectrum: OperatorSpectrum
    eigenvectors: Tensor  # (k + j, n) rows
    notes: list[Note]


class OperatorMeasurement:
    """Measures one operator; can be saved at any step and continued in another process.

    Args:
        operator: Size n.
        request: What is wanted; `top + bottom ≤ n`.
        basis: Room for the Krylov basis.
        state: Where progress is saved.
        name: For progress and notes: "" for the whole, else the block.
        on_progress: `(done, expected, label)`, in products.
        block: Vectors that Lanczos multiplies per step. One needs the fewest products, and even where four share a
            rebuilt graph (2.4 gradients each instead of 3.1) four need more than they save.
        fast: The same operator with products that are cheap and err: probes take all but their first product from it.
        fast_pairs: Let Lanczos take products from it, too, until exact ones bring its pairs to the tolerance.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        request: OperatorRequest,
        *,
        basis: KrylovBasis,
        state: SavedState | None = None,
        name: str = "",
        on_progress: OnProgress | None = None,
        block: int = 1,
        fast: SymmetricOperator | None = None,
        fast_pairs: bool = True,
    ) -> None:
        if request.top + request.bottom > operator.size:
            raise UsageError(
                f"expected --top plus --bottom of at most {operator.size:,}, the number of parameters"
                f"{' in ' + name if name else ''}, got {request.top} + {request.bottom}",
                "ask for fewer pairs",
            )
        self.operator = operator
        self.request = request
        self.name = name
        self.on_progress = on_progress
        self.state = state if state is not None else SavedState(None, "")
        self.notes: list[Note] = []
        self.fast = fast
        self.earlier_products = 0
        self.earlier_fast = 0
        self.probe_products = 0  # of all products those of probes, which leave the pairs' limit alone
        self.rounds = 0
        self.epoch = 0
        self.steps_owed = 0  # Lanczos steps that a new block member gets before convergence is judged
        self.stop_reason = ""
        self.check: float | None = None
        self.units: FloatArray | None = None  # (k + j,) that `check` is in; 1 where there are none
        self.polishes = 0
        self.product_error: float | None = None  # ‖Fz − Hz‖/‖Hz‖ of a random z
        self.probes: Probes | None = None
        self.deflated: DeflatedQuadrature | None = None
        self.run = Lanczos(
            operator,
            top=request.top,
            bottom=request.bottom,
            basis=basis,
            seed=derive_seed(request.seed, "pairs"),
            block=block,
            fast=fast,
        )
        self.products_before = self.run.num_products
        self.fast_before = fast.num_products if fast is not None else 0
        is_large = operator.size >= _LEAST_SIZE * request.product_limit
        self.run.is_fast = fast is not None and fast_pairs and is_large
        self._restore()

    @property
    def num_products(self) -> int:
        """Products spent on this operator, those of earlier processes included."""
        return self.earlier_products + self.run.num_products - self.products_before

    @property
    def num_fast(self) -> int:
        """Those of them that were fast."""
        return self.earlier_fast + (self.fast.num_products - self.fast_before if self.fast is not None else 0)

    def measure(self) -> Measured:
        """Run to the end."""
        while True:
            if self.stop_reason == "":
                self._find_pairs()
            pairs = self._settled_pairs()
            if self.check is None:
                self.units = None
                self.check = check_residuals(self.run, pairs, seed=derive_seed(self.request.seed, "check"))
            if self.stop_reason == "complete":
                break
            self._run_probes(len(pairs.values))
            if self.deflated is None:
                self.deflated = self._deflated_quadrature(pairs)
            if self.rounds >= _ROUNDS or not self._missed(pairs):
                break
            self._look_again()
        return self._result(pairs)

    # -- the stages ----------------------------------------------------------------------------------------------

    def _find_pairs(self) -> None:
        while self.steps_owed and self.run.pending.shape[0]:
            self.steps_owed -= 1
            self.run.step()
            self._after_step(self.run)
        self.steps_owed = 0
        if self.fast is not None and self.product_error is None:
            self.product_error = self._compare_products(self.fast)
            self._judge_products()
        while self.stop_reason == "":
            self._advance()

    def _advance(self) -> None:
        """Run Lanczos until its recurrence says that the pairs have converged, and see whether they have.

        Of fast products the recurrence knows no error: an exact product of all pairs together tells it. Where it is
        too large, or is sure to be, exact products of every pair go into the run, which then goes on; at last with
        exact ones only.

        Beginning with exact products instead, and going on with fast ones once the residuals have fallen (van den Eshof
        & Sleijpen 2004; Simoncini & Szyld 2003), took as many on trained language models, and left pairs that arrived
        late beyond the tolerance.
        """
        request, is_fast = self.request, self.run.is_fast
        is_rough = is_fast and self.polishes == 0 and not is_accurate(self.product_error or 0.0, request)
        self.run, reason = lanczos(
            self.operator,
            top=request.top,
            bottom=request.bottom,
            tolerance=max(_ROUGH if is_rough else 0.0, request.tolerance * (_MARGIN if is_fast else 1.0)),
            max_products=max(request.product_limit - (self.num_products - self.probe_products), 0),
            run=self.run,
            on_step=self._after_step,
        )
        if not is_fast:
            self.stop_reason = reason
            return
        pairs = self._settled_pairs()
        if not is_rough or reason == "max-products":
            self._check_all(pairs)
            if reason == "max-products" or bool(self._are_found(pairs).all()):
                self.stop_reason = reason
                return
        self.check, self.units = None, None
        self.run.is_fast = self.polishes < _POLISHES
        self.polishes += 1
        self.run.polish(len(pairs.values), alone=not self.run.is_fast)
        self.epoch += 1

    def _judge_products(self) -> None:
        """Leave fast products alone where they err by too much."""
        self.run.is_poor = (self.product_error or 0.0) > _POOR
        self.run.is_fast &= not self.run.is_poor

    def _compare_products(self, fast: SymmetricOperator) -> float:
        """Return by how much a fast product of the start vector differs from the exact one, relative to it."""
        basis, start = self.run.basis, self.run.pending[:1]
        exact = multiply(self.operator, basis, start)[0]
        length = basis.norm(exact)
        return basis.norm(multiply(fast, basis, start)[0] - exact) / length if length > 0.0 else 0.0

    def _check_all(self, pairs: RitzPairs) -> None:
        """Measure how far the residuals of pairs from fast products are off, each relative to its eigenvalue."""
        self.units = self.run.yardsticks(pairs, self.request.tolerance)
        seeds = [derive_seed(self.request.seed, "check", self.rounds, self.polishes, index) for index in range(_CHECKS)]
        self.check = max(check_residuals(self.run, pairs, seed=seed, units=self.units) for seed in seeds)

    def residuals(self, pairs: RitzPairs) -> FloatArray:
        """Return ‖Hv − λv‖: the recurrence's, and what fresh products found beside it.

        The two are independent errors of exact products; those of fast ones may point the same way, and are added.
        """
        if self.units is None:
            return np.asarray(np.hypot(pairs.residual_norms, self.check or 0.0))
        return np.asarray(pairs.residual_norms + (self.check or 0.0) * self.units)

    def _are_found(self, pairs: RitzPairs) -> NDArray[np.bool_]:
        """Tell which pairs have converged, or are negligible, by their residuals."""
        residuals, tolerance = self.residuals(pairs), self.request.tolerance
        converged = residuals <= np.maximum(tolerance * np.abs(pairs.values), self.run.floor)
        return np.asarray(converged | self.run.negligible(pairs, residuals, tolerance))

    def _settled_pairs(self) -> RitzPairs:
        if not self.run.settled:
            self.epoch += 1
        return self.run.rotate_to_ritz()

    def _run_probes(self, deflated: int) -> None:
        looking_again = self.deflated is not None
        if self.probes is None:
            self.probes = no_probes(self.run, _CHECK_PROBES if looking_again else self.request.probes)
        steps = _CHECK_STEPS if looking_again else self.request.probe_steps
        seed = derive_seed(self.request.seed, "round", self.rounds)
        others = self.num_products - self.probe_products
        while advance_probes(self.run, deflated, self.probes, steps, seed=seed):
            self.probe_products = self.num_products - others
            self._tell(f"probe {len(self.probes.alive)}/{self.probes.count}")
            if self.state.due:
                self._save()

    def _missed(self, pairs: RitzPairs) -> bool:
        """Tell whether a probe met curvature beyond the converged pairs, by more than their errors."""
        if self.probes is None or self.stop_reason == "max-products":
            return False
        nodes = np.concatenate([rule[0] for rule in quadratures(self.probes)])
        tolerance = self.request.tolerance
        # A pair near zero was left where it could not be told from zero: what lies that near it is no news.
        unresolved = self.run.negligible(pairs, pairs.residual_norms, tolerance)
        error = 0.0 if self.product_error is None or self.run.is_poor else self.product_error
        slack = (tolerance + error) * np.where(unresolved, self.run.scale, np.abs(pairs.values)) + self.run.floor
        above = pairs.values[: pairs.num_top]
        below = pairs.values[pairs.num_top :]
        over = nodes.max() > above[-1] + slack[pairs.num_top - 1]
        under = bool(len(below)) and nodes.min() < below[-1] - slack[-1]
        return bool(over or under)

    def _deflated_quadrature(self, pairs: RitzPairs) -> DeflatedQuadrature:
        """Gather what the first probes said, and what the run's own start vector adds to the density."""
        if self.probes is None:
            raise ValueError("expected finished probes, got none")
        run, known = self.run, pairs.values
        rules = quadratures(self.probes)
        if run.restarts == 0 and run.start_block == 1 and self.polishes == 0:
            errors = self.residuals(pairs) + 1e-6 * run.scale
            own = deflate_rule(run.quadrature(), known, errors)
            rules += [own] if own is not None else []
        share = 1.0 - len(known) / self.operator.size
        trace, trace_h2 = trace_estimates(run, self.probes, self.residuals(pairs))
        return DeflatedQuadrature(
            eigenvalues=known.tolist(),
            nodes=np.concatenate([rule[0] for rule in rules]).tolist(),
            weights=(np.concatenate([rule[1] for rule in rules]) * share).tolist(),
            probe_index=np.repeat(np.arange(len(rules)), [len(rule[0]) for rule in rules]).tolist(),
            trace=trace,
            trace_h2=trace_h2,
        )

    def _look_again(self) -> None:
        """Put a fresh random vector into the Lanczos block and let it show what it is worth before judging again."""
        self.rounds += 1
        self.run.insert_random(1)
        self.probes, self.check, self.units, self.stop_reason = None, None, None, ""
        self.steps_owed = _CHECK_STEPS

    def _result(self, pairs: RitzPairs) -> Measured:
        spectrum = build_spectrum(self, pairs)
        count = len(pairs.values)
        self._explain(spectrum, pairs)
        return Measured(spectrum, self.run.basis.rows[:count], self.notes)

    def _explain(self, spectrum: OperatorSpectrum, pairs: RitzPairs) -> None:
        where = f" of block {self.name}" if self.name else ""
        wanted = self.request.top + self.request.bottom
        if len(pairs.values) < wanted:
            self.notes.append(
                Note(
                    code="fewer-pairs",
                    message=f"only {len(pairs.values)} of {wanted} pairs{where} were found within "
                    f"{spectrum.num_hvps} products",
                )
            )
        residuals = np.concatenate([spectrum.residual_norms, spectrum.lower_residual_norms])
        open_pairs = ~np.concatenate([spectrum.converged, spectrum.lower_converged])
        near_zero = open_pairs & self.run.negligible(pairs, pairs.residual_norms, self.request.tolerance)
        if near_zero.any():
            largest = float(np.max((np.abs(pairs.values) + residuals)[near_zero]))
            self.notes.append(
                Note(
                    code="near-zero",
                    message=f"{int(near_zero.sum())} of {len(pairs.values)} pairs{where} cannot be told from zero: "
                    f"|λ| is at most {largest:.1e}, next to nothing beside the largest",
                )
            )
        missing = int((open_pairs & ~near_zero).sum())
        if missing:
            worst = float(np.max(residuals / np.maximum(np.abs(pairs.values), 1e-300), where=~near_zero, initial=0.0))
            self.notes.append(
                Note(
                    code="not-converged",
                    message=f"{missing} of {len(pairs.values)} pairs{where} did not reach the tolerance within "
                    f"{spectrum.num_hvps} products (worst relative residual {worst:.1e}); "
                    "their residuals say how far they are",
                )
            )
        if self.rounds:
            self.notes.append(
                Note(
                    code="repeated-eigenvalues",
                    message=f"probes met curvature beyond the converged pairs{where} {self.rounds} time(s), so "
                    "Lanczos went on with a larger block: eigenvalues are repeated or tightly clustered",
                )
            )

    # -- progress and state --------------------------------------------------------------------------------------

    def _after_step(self, run: Lanczos) -> None:
        pairs = run.ritz_pairs()
        done = int(run.converged(pairs, self.request.tolerance).sum())
        worst = float(np.max(pairs.residual_norms / np.maximum(np.abs(pairs.values), 1e-300)))
        wanted = self.request.top + self.request.bottom
        self._tell(f"{done}/{wanted} pairs · residual {min(worst, 1.0):.0e}")
        if self.state.due:
            self._save()

    def _tell(self, label: str) -> None:
        if self.on_progress is not None:
            done = self.num_products
            left = self.request.probes * self.request.probe_steps - (self.probes.steps if self.probes else 0)
            expected = max(self.request.expected_products, done + max(left, 0))
            self.on_progress(done, expected, f"{self.name + ' · ' if self.name else ''}{label}")

    def _save(self) -> None:
        run = self.run
        head: dict[str, Any] = {
            "num_products": self.num_products,
            "num_fast": self.num_fast,
            "probe_products": self.probe_products,
            "product_error": self.product_error,
            "polishes": self.polishes,
            "is_fast": run.is_fast,
            "is_polished": run.is_polished,
            "units": self.units.tolist() if self.units is not None else None,
            "rounds": self.rounds,
            "epoch": self.epoch,
            "steps_owed": self.steps_owed,
            "stop_reason": self.stop_reason,
            "check": self.check,
            "projected": run.projected.tolist(),
            "coupling": run.coupling.tolist(),
            "owed": run.owed.tolist() if run.owed is not None else None,
            "coupling_columns": run.coupling.shape[1],
            "settled": run.settled,
            "restarts": run.restarts,
            "num_drawn": run.num_drawn,
            "scale": run.scale,
            "first_quadrature": [part.tolist() for part in run.first_quadrature] if run.first_quadrature else None,
            "probes": None,
            "deflated_quadrature": asdict(self.deflated) if self.deflated is not None else None,
        }
        vectors = [run.pending]
        if self.probes is not None:
            kept = asdict(replace(self.probes, current=torch.empty(0), previous=torch.empty(0)))
            head["probes"] = {key: value for key, value in kept.items() if key not in ("current", "previous")}
            vectors += [self.probes.current, self.probes.previous]
        self.state.save(head, basis=run.basis, epoch=self.epoch + run.restarts, vectors=vectors)

    def _restore(self) -> None:
        saved = self.state.load(self.run.basis.vector_size, self.operator.dtype)
        if self.state.damage is not None:
            self.notes.append(damage_note(self.state.damage))
        if saved is None:
            return
        head, basis, vectors = saved
        run = self.run
        device = run.basis.device
        self.earlier_products, self.earlier_fast = head["num_products"], head["num_fast"]
        self.probe_products = head.get("probe_products", 0)
        self.product_error, self.polishes = head["product_error"], head["polishes"]
        self.units = None if head["units"] is None else np.array(head["units"])
        run.is_fast, run.is_polished = head["is_fast"], head["is_polished"]
        self._judge_products()
        self.rounds, self.epoch, self.steps_owed = head["rounds"], head["epoch"], head["steps_owed"]
        self.stop_reason, self.check = head["stop_reason"], head["check"]
        run.basis.size = 0
        run.basis.append(basis)
        run.pending = vectors[0].to(device)
        run.projected = np.array(head["projected"])
        run.coupling = np.array(head["coupling"]).reshape(-1, head["coupling_columns"])
        run.owed = np.array(head["owed"]) if head["owed"] is not None else None
        run.settled = head["settled"]
        run.restarts, run.num_drawn, run.scale = head["restarts"], head["num_drawn"], head["scale"]
        if head["first_quadrature"]:
            run.first_quadrature = (np.array(head["first_quadrature"][0]), np.array(head["first_quadrature"][1]))
        if head["deflated_quadrature"] is not None:
            traces = {name: Estimate(**head["deflated_quadrature"].pop(name)) for name in ("trace", "trace_h2")}
            self.deflated = DeflatedQuadrature(**{**head["deflated_quadrature"], **traces})
        if head["probes"] is not None:
            self.probes = Probes(current=vectors[-2].to(device), previous=vectors[-1].to(device), **head["probes"])


def build_spectrum(measurement: OperatorMeasurement, pairs: RitzPairs) -> OperatorSpectrum:
    """Put the numbers of a finished measurement together."""
    run, request, size = measurement.run, measurement.request, measurement.operator.size
    residuals = measurement.residuals(pairs)
    top = pairs.num_top
    allowed = np.maximum(request.tolerance * np.abs(pairs.values), run.floor)
    converged: NDArray[np.bool_] = residuals <= allowed
    deflated = measurement.deflated
    if deflated is None:  # the basis spans the whole space: every eigenvalue is known
        values = np.diag(run.projected)
        exact = Estimate.certain(float(values.sum())), Estimate.certain(float((values**2).sum()))
        deflated = DeflatedQuadrature(sorted(values.tolist()), [], [], [], *exact)
    return OperatorSpectrum(
        num_parameters=size,
        eigenvalues=pairs.values[:top],
        residual_norms=residuals[:top],
        lower_eigenvalues=pairs.values[top:],
        lower_residual_norms=residuals[top:],
        converged=converged[:top],
        lower_converged=converged[top:],
        tolerance=request.tolerance,
        num_requested=request.top,
        stop_reason=measurement.stop_reason,
        nodes=np.array(deflated.nodes),
        weights=np.array(deflated.weights),
        probe_index=np.array(deflated.probe_index, dtype=np.int64),
        deflated_eigenvalues=np.array(deflated.eigenvalues),
        trace=deflated.trace,
        trace_h2=deflated.trace_h2,
        num_hvps=measurement.num_products,
        num_fast_hvps=measurement.num_fast,
        product_error=measurement.product_error,
    )


def measure_operator(
    operator: SymmetricOperator,
    request: OperatorRequest,
    *,
    basis: KrylovBasis | None = None,
    block: int = 1,
    fast: SymmetricOperator | None = None,
) -> Measured:
    """Measure a symmetric operator that stands alone, in memory.

    Args:
        operator: Size n.
        request: What is wanted.
        basis: Where Krylov vectors go; by default room for every product that may be needed.
        block: Vectors per Lanczos step.
        fast: The same operator with products that are cheap and err.

    Returns:
        Eigenvalues with true residuals, quadrature, traces, eigenvectors as rows, notes.

    Raises:
        UsageError: If more pairs are wanted than the operator has.

    Cost: about `request.expected_products` products.
    """
    if basis is None:
        capacity = min(operator.size, request.product_limit + _ROUNDS * _CHECK_STEPS * 3)
        basis = KrylovBasis(operator.size, capacity, dtype=operator.dtype, device=operator.device)
    return OperatorMeasurement(operator, request, basis=basis, block=block, fast=fast).measure()
