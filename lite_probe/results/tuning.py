"""LITE's settings from the landscape: what every node measured, what they agreed on, and whether it paid.

Along group j of the base optimizer's mean step d̄ a step of one batch has the curvature K_j = E[d_jᵀHd_j], more than
d̄_jᵀHd̄_j: its noise has some, too. Node i measures b_i = −D̄ᵀ∇L_i and D̄ᵀH_iD̄ on its own batches, and takes the noise's
part K_j − d̄_jᵀHd̄_j from the step profile: A_i = D̄ᵀH_iD̄ + diag(noise). With multiples y_j of the step taken, in units
u_j = √s_j y_j, the nodes' step at damping e^{x_j} of each group is

    u*(x) = argmin (1/n) Σ_i [ −b_iᵀu + ½uᵀ(A_i)₊u ] + ½ Σ_j (e^{x_j} + δ) u_j²

and x is chosen so that u*(x) lowers the models of the nodes' validation batches the most.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lite_probe.results.provenance import Note, Provenance
from lite_probe.results.replay import Replay
from lite_probe.results.steps import OptimizerSteps

FloatArray = NDArray[np.float64]

LEAST_RATIO = 1.0  # of LITE's flat_lr_ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeModels:
    """The quadratic models of every node along k groups of directions, each on the node's own batches, in units u."""

    blocks: tuple[str, ...]  # (k,)
    parts: tuple[str, ...]  # (k,) "sharp" or "rest"
    scales: FloatArray  # (k,) s_j, nats: what K_j is on the evaluation batches, common to all nodes
    noise: FloatArray  # (k,) of K_j that is not the mean step's, nats
    gains: FloatArray  # (n, k) b_i on training batches
    curvatures: FloatArray  # (n, k, k) A_i
    validation_gains: FloatArray  # (n, k)
    validation_curvatures: FloatArray  # (n, k, k)

    @property
    def heterogeneity(self) -> float:
        """How far nodes differ: √(mean over nodes of ‖b_i − b̄‖²) / ‖b̄‖; 0 where all have the same data."""
        mean = self.gains.mean(axis=0)
        apart = float(np.sqrt(np.mean(np.sum((self.gains - mean) ** 2, axis=1))))
        return apart / max(float(np.linalg.norm(mean)), 1e-300)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRun:
    """How one method went on the nodes' models; R records."""

    name: str  # "sparkle gt/ed", "dsoba-so"
    step: NDArray[np.int64]  # (R,)
    gradients: NDArray[np.int64]  # (R,) by each node
    floats: NDArray[np.int64]  # (R,) sent over all edges
    consensus: FloatArray  # (R,) √(Σᵢ‖xᵢ − x̄‖²/n)
    upper_loss: FloatArray  # (R,) of the damping that nodes have on average, at the lower level's exact solution; nats
    is_chosen: bool  # whether the recommendation is this method's


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSettings:
    """What is recommended for one block."""

    block: str
    ratio: float  # χ = y_rest / max(y_sharp, 1), at least 1: LITE cannot shorten sharp steps
    ratio_low: float  # the least that a node's own training batches would have, at the damping agreed on
    ratio_high: float  # the largest
    sharp: float  # y_sharp, multiple of the step taken
    rest: float  # y_rest
    sharp_share: float | None  # r_s of the step profile; None where that tells none
    damping: float | None  # β₂ that the linear theory has for this block alone; None where no band of it has an optimum


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """LITE's settings for every block, by one way to come to them."""

    name: str  # "tuned", "pooled"
    damping: float  # β₂
    blocks: tuple[BlockSettings, ...]
    upper_loss: float  # of the nodes' validation models at the recommended multiples, nats

    def of(self, block: str) -> BlockSettings | None:
        """Return what is recommended for a block."""
        return next((one for one in self.blocks if one.block == block), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """LITE's settings learned from the shards of n nodes, and a replay that tests them."""

    optimizer: str  # a LITE variant
    base: str  # the optimizer that it is a variant of
    lr: float
    batch_tokens: int  # tokens or samples that a step's gradient is of
    loss: float  # on the evaluation batches, nats
    num_parameters: int
    num_nodes: int
    topology: str
    spectral_gap: float
    shards: str  # how data was split over nodes, in words
    ridge: float  # δ
    models: NodeModels
    profile: OptimizerSteps  # of the base optimizer
    damping_logs: FloatArray  # (n, k) x_i
    multiples: FloatArray  # (n, k) u_i, at the nodes
    pooled_damping_logs: FloatArray  # (k,) of all data in one place
    methods: tuple[MethodRun, ...]
    pooled_loss: float  # upper loss of the pooled solution, nats
    tuned: Recommendation
    pooled: Recommendation
    candidates: Mapping[str, Mapping[str, object]]  # replayed optimizer → hyperparameters
    replay: Replay | None  # None where none was asked for
    config: Mapping[str, object]
    fingerprint: str
    notes: tuple[Note, ...] = ()
    provenance: Provenance

    @property
    def settings(self) -> Mapping[str, object]:
        """What `make_optimizer` takes."""
        return self.candidates[f"{self.optimizer}@tuned"]

    @property
    def alone(self) -> FloatArray:
        """(n, k) multiples y that each node's own training batches would have at the damping agreed on."""
        values, vectors = np.linalg.eigh(0.5 * (self.models.curvatures + self.models.curvatures.swapaxes(1, 2)))
        curved = (vectors * np.maximum(values, 0.0)[:, None, :]) @ vectors.swapaxes(1, 2)
        damped = curved + np.diag(np.exp(self.damping_logs.mean(axis=0)) + self.ridge)
        steps = np.linalg.solve(damped, self.models.gains[..., None])[..., 0]
        return np.asarray(steps / np.sqrt(self.models.scales))

    def range_of(self, block: str, part: str) -> tuple[float, float]:
        """Return the least and the largest multiple of a group that a node's own training batches would have."""
        place = list(zip(self.models.blocks, self.models.parts, strict=True)).index((block, part))
        own = self.alone[:, place]
        return float(own.min()), float(own.max())

    @property
    def spread(self) -> Mapping[str, tuple[float, float]]:
        """By block, the least and the largest χ that a node's own data would have."""
        return {one.block: (one.ratio_low, one.ratio_high) for one in self.tuned.blocks}
