"""Hyper-cleaning: eight nodes learn together which of their labels are wrong, without showing each other a sample.

    python examples/hypercleaning.py
    python examples/hypercleaning.py --full

Of scikit-learn's digits 400 train a softmax regression y, and a share p of them carries a wrong label. σ(xⱼ) is the
weight of sample j, and x is to be such that y does well on 200 validation samples whose labels are right; the other
1,197 are the test. A node has as many samples as another, of a mixture of classes drawn from a Dirichlet
distribution: mild heterogeneity is α = 10, severe α = 0.1. Sums are weighted so that all nodes together have the
pooled problem.

Accuracy and loss are those of every node's own y on the test and on all validation samples, averaged over nodes and
seeds; SPARKLE-ED-GT has ED for y and z and GT for x. Fixed steps have a_x = 1000 and the a_y = a_z of {¼, ½, 1, 2}
whose loss at the end is lowest on a seed that is not reported, at p = 0.2, for each method, graph and heterogeneity
by itself. The papers' step sizes are not known: none of these are theirs. Parameter-free steps are `Adaptive()`.

The first takes a minute of one core, the second about a quarter of an hour, more where the core is shared. With three
seeds and 200 steps, which are 800 gradients of a node, was found (p = 0.1 and 0.3 on the severe ring only, answers
from all samples there and with mild heterogeneity)

    p = 0.2, 10 samples of a node     fixed: accuracy, loss     gradients, 1,000 floats      free: accuracy, loss
    pooled: 92.3 and 0.513            severe ring    complete     to 1.05 of pooled, ring    severe ring    complete
      D-SOBA                          91.2 0.570   91.8 0.518          –       –              87.6 0.783   91.1 0.663
      SPARKLE-GT                      92.0 0.518   91.6 0.519        277   3,772              90.9 0.723   91.3 0.686
      SPARKLE-EXTRA                   91.6 0.525   91.5 0.528        555   3,772              89.3 0.807   89.5 0.809
      SPARKLE-ED                      91.4 0.523   91.7 0.521        320   2,176              90.1 0.777   90.6 0.760
      SPARKLE-ED-GT                   91.5 0.524   91.7 0.520        320   2,688              90.1 0.777   90.6 0.760
      SPARKLE-EXTRA-GT                91.5 0.527   91.5 0.529        555   4,659              89.2 0.807   89.5 0.808

held against what the papers say:

* SPARKLE is ahead of D-SOBA: found on sparse graphs. On the severe ring every strategy has the lower loss at p = 0.1,
  0.2 and 0.3, and D-SOBA does not come within 5% of the pooled loss; accuracy is 0.2 to 0.8 points ahead, in one of
  three seeds 0.1 behind for ED. On the mild ring it is 0 to 0.3 points. On complete graphs D-SOBA is as good as any.
* ED and EXTRA are ahead of GT: it depends. For each float sent ED is (2.2 million against 3.8 to near the pooled
  loss); for each gradient GT is, since it sends twice as much in a step and ED and EXTRA mix by (I + W)/2, so that
  less of the samples' noise is averaged away: with all samples in each answer the three take the same 256 gradients,
  GT for twice the floats. EXTRA, whose directions are not mixed, is worst under noise: its best steps are half as
  long.
* Mixed strategies are about as good: found. ED-GT is within 0.1 points of ED, EXTRA-GT of EXTRA, for 1.25 times the
  floats.
* Accuracy hangs more on the graph of y and z than on that of x: found for D-SOBA, where a complete graph for y and z
  brings 0.7 points (3.6 with parameter-free steps), and for x −0.2 (0.0). SPARKLE gains 0.0 to 0.5 by the first and
  −0.2 to 0.0 by the second.
* Transients are longer on a ring and with heterogeneity: D-SOBA takes 608 gradients on the mild ring, 299 on the mild
  complete graph and does not arrive on the severe ring or torus. GT takes 277 to 288 everywhere, EXTRA 555 to 587, ED
  533 on the mild ring and 320 on the severe one, where longer steps were chosen, 299 on complete graphs.
* Parameter-free steps stay within 1 point over four decades of c: not found. c = 0.1 to 1000 gives 81.6, 89.2, 90.1,
  74.7 and 32.0 for ED, and spreads of 52 to 64 points over all methods; fixed steps of 0.01 to 100 times the chosen
  ones give 80.9, 89.8, 91.4, 55.4 and 7.7. It is c_y: the first step of y has that length whatever the gradient, and
  what it overshoots stays in the sums. GT with c_y alone changed gives 80.5, 89.7, 90.9, 80.5, 36.0, with c_x alone
  89.4 to 91.8, with c_z alone 89.6 to 91.0. At c = 10 on the severe ring they are 1 to 4 points behind fixed steps
  under noise, 0.5 to 1.3 behind for SPARKLE without it.
* Quadratics with a known solution (a_y = a_z = 10 a_x, half of the largest stable of a grid): error 0.1 takes every
  SPARKLE 1,230 (mild) and 1,250 to 1,270 steps (severe), on a ring as on a complete graph, with noise 0.1 as with
  none: what is left is the time that x takes, and no difference between strategies shows. D-SOBA comes to 0.1 in
  1,260 to 1,290 steps on complete graphs and never does on a ring, where it stays at 0.27 to 0.30.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import product
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from lite_probe.bilevel import Adaptive, Fixed, History, QuadraticProblem, mixing_matrix, solve
from lite_probe.errors import NumericsError
from lite_probe.seeds import derive_seed

CLASSES, INPUTS = 10, 65  # of the digits; 8 × 8 pixels and a 1 for the bias
TRAIN, VALIDATION = 400, 200  # samples over all nodes; the other 1,197 are the test
RIDGE = 0.01
NODES = 8
ALPHAS = {"mild": 10.0, "severe": 0.1}
GRAPHS = ("ring", "torus", "complete")
TUNED_ON = 100  # the seed that fixed steps are chosen on, which is not among those reported
GRID = tuple(product((1000.0,), (0.25, 0.5, 1.0, 2.0)))  # a_x, and a_y = a_z
POOLED_STEPS = (1000.0, 2.0, 2.0)
NEAR = 1.05  # a loss is at the pooled solution's where it is at most so many times that
SCALES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # of parameter-free steps
RECORDS = 25  # of a run
SYNTHETIC_GRID = (0.4, 0.2, 0.1, 0.05, 0.025)  # a_y = a_z = 10 a_x
SYNTHETIC_LEVEL = 0.1
SYNTHETIC_STEPS = 750  # for a hundred of the other runs'
SYNTHETIC_SPREADS = {"mild": 0.2, "severe": 1.0}
SYNTHETIC_NOISE = 0.1
MULTIPLES = (0.01, 0.1, 1.0, 10.0, 100.0)  # of fixed ones

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Labelled samples of n nodes, in rectangles of the largest node's size m.

    A sample's share is n over the number of all nodes' samples, and 0 of what fills a rectangle: the mean over nodes of
    sums with these shares is the mean over all samples, however they are split.
    """

    inputs: Tensor  # (n, m, INPUTS)
    labels: Tensor  # (n, m, CLASSES) one-hot
    shares: Tensor  # (n, m)
    places: Tensor  # (n, m) which of all nodes' samples it is

    def drawn(self, batch: int | None, generator: torch.Generator, node: int | None) -> "Samples":
        """Return `batch` of each node's, with replacement, drawn for all nodes; or all of them."""
        nodes, width = self.shares.shape
        rows = slice(None) if node is None else slice(node, node + 1)
        if batch is None:
            return Samples(
                inputs=self.inputs[rows], labels=self.labels[rows], shares=self.shares[rows], places=self.places[rows]
            )
        held = torch.count_nonzero(self.shares, dim=1)[:, None]  # they come first in their row
        chosen = (torch.rand(nodes, batch, generator=generator, dtype=torch.float64) * held).long()
        flat = (chosen + width * torch.arange(nodes)[:, None])[rows].flatten()
        shape = (-1, batch)
        return Samples(
            inputs=self.inputs.flatten(0, 1).index_select(0, flat).view(*shape, INPUTS),
            labels=self.labels.flatten(0, 1).index_select(0, flat).view(*shape, CLASSES),
            shares=(self.shares.sum(dim=1, keepdim=True) / batch)[rows].expand(-1, batch),
            places=self.places.flatten().index_select(0, flat).view(shape),
        )

    def logits(self, y: Tensor) -> Tensor:
        """Return (n, m, CLASSES) of each node's weights y, (n, CLASSES · INPUTS); one node's samples are all's."""
        if len(self.inputs) == 1:
            return (self.inputs[0] @ y.view(-1, INPUTS).mT).view(-1, len(y), CLASSES).transpose(0, 1)
        return torch.bmm(self.inputs, y.view(-1, CLASSES, INPUTS).mT)

    def back(self, slopes: Tensor) -> Tensor:
        """Return the gradient in y, (n, CLASSES · INPUTS), of a sum whose slopes in the logits are given."""
        return torch.bmm(slopes.mT, self.inputs).flatten(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypercleaning:
    """Softmax regression y on weighted samples, whose weights σ(x) are to make it good on clean ones.

        gᵢ = Σⱼ σ(xⱼ) CE(y; sample j) / m + ½c‖y‖²   over node i's m training samples, labels partly wrong
        fᵢ = Σⱼ CE(y; sample j) / m                   over its validation samples, labels right

    Attributes:
        train: Training samples.
        validation: Validation samples.
        ridge: c.
        batch: Samples of a node in an answer; None for all.
        node: The one that this process holds; None where it holds all.
    """

    train: Samples
    validation: Samples
    ridge: float = RIDGE
    batch: int | None = None
    node: int | None = None

    @property
    def num_nodes(self) -> int:
        """Nodes that this process holds."""
        return len(self.train.inputs) if self.node is None else 1

    @property
    def dim_x(self) -> int:
        """Training samples of all nodes."""
        return int(torch.count_nonzero(self.train.shares))

    @property
    def dim_y(self) -> int:
        """Weights of the regression."""
        return CLASSES * INPUTS

    def upper_gradients(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return 0 and Σ (P − Y) aᵀ / m."""
        own = self.validation.drawn(self.batch, generator, self.node)
        slopes = torch.softmax(own.logits(y), dim=2) - own.labels
        return torch.zeros_like(x), own.back(own.shares[:, :, None] * slopes)

    def lower_gradient(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return Σ σ(x) (P − Y) aᵀ / m + c y."""
        own = self.train.drawn(self.batch, generator, self.node)
        weights = own.shares * torch.sigmoid(x.gather(1, own.places))
        return own.back(weights[:, :, None] * (torch.softmax(own.logits(y), dim=2) - own.labels)) + self.ridge * y

    def lower_gradients(self, x: Tensor, y: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return Σ σ'(x) CE / m at each sample's place, and `lower_gradient` on the same samples."""
        own = self.train.drawn(self.batch, generator, self.node)
        weights = torch.sigmoid(x.gather(1, own.places))
        log_p = torch.log_softmax(own.logits(y), dim=2)
        along_x = own.shares * weights * (1.0 - weights) * -(own.labels * log_p).sum(dim=2)
        slopes = (own.shares * weights)[:, :, None] * (log_p.exp() - own.labels)
        return torch.zeros_like(x).scatter_add(1, own.places, along_x), own.back(slopes) + self.ridge * y

    def lower_hessian_product(self, x: Tensor, y: Tensor, z: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return Σ σ(x) (diag P − P Pᵀ) z a aᵀ / m + c z."""
        own = self.train.drawn(self.batch, generator, self.node)
        weights = torch.sigmoid(x.gather(1, own.places))
        p, along = torch.softmax(own.logits(y), dim=2), own.logits(z)
        bent = p * (along - (p * along).sum(dim=2, keepdim=True))
        return own.back((own.shares * weights)[:, :, None] * bent) + self.ridge * z

    def cross_product(self, x: Tensor, y: Tensor, z: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return σ'(x) (P − Y)ᵀ z a / m at each sample's place."""
        own = self.train.drawn(self.batch, generator, self.node)
        weights = torch.sigmoid(x.gather(1, own.places))
        slopes = torch.softmax(own.logits(y), dim=2) - own.labels
        along_x = own.shares * weights * (1.0 - weights) * (slopes * own.logits(z)).sum(dim=2)
        return torch.zeros_like(x).scatter_add(1, own.places, along_x)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A problem, and what its solutions are judged by.

    Attributes:
        problem: Of n nodes.
        pooled: Of one node with all samples.
        clean: Samples for the test, all at one node.
    """

    problem: Hypercleaning
    pooled: Hypercleaning
    clean: Samples

    def measure(self, x: Tensor, y: Tensor) -> Mapping[str, float]:
        """Return the test accuracy, and the loss on all validation samples, each by every node's own y and averaged."""
        right = (self.clean.logits(y).argmax(dim=2) == self.clean.labels.argmax(dim=2)).double().mean()
        whole = self.pooled.validation
        log_p = torch.log_softmax(whole.logits(y), dim=2)
        losses = -(whole.shares[:, :, None] * whole.labels * log_p).sum(dim=(1, 2))
        return {"accuracy": 100.0 * float(right), "loss": float(losses.mean())}


def make_scene(
    *, num_nodes: int = 8, wrong: float = 0.2, alpha: float = 10.0, batch: int | None = None, seed: int = 0
) -> Scene:
    """Deal out the digits.

    Args:
        num_nodes: n.
        wrong: Probability p of a training label that is one of the nine others.
        alpha: Of the Dirichlet distribution that each node's mixture of classes comes from: low is heterogeneous.
        batch: Samples of a node in an answer; None for all.
        seed: Of the order, the labels and the mixtures.
    """
    rng = np.random.default_rng(derive_seed(seed, "digits"))
    pixels, truth = load_digits(return_X_y=True)
    order = rng.permutation(len(truth))
    inputs, truth = pixels[order] / 16.0, truth[order]
    inputs = np.hstack([inputs - inputs[:TRAIN].mean(axis=0), np.ones((len(truth), 1))])
    told = truth.copy()
    changed = rng.random(TRAIN) < wrong
    told[:TRAIN][changed] = (truth[:TRAIN] + rng.integers(1, CLASSES, TRAIN))[changed] % CLASSES
    mixtures = balanced(rng.dirichlet(np.full(CLASSES, alpha), num_nodes))
    parts = {"train": slice(0, TRAIN), "validation": slice(TRAIN, TRAIN + VALIDATION)}
    dealt = {name: deal(truth[part], mixtures, rng) for name, part in parts.items()}
    split = {name: collect(inputs[part], told[part], dealt[name]) for name, part in parts.items()}
    whole = {name: collect(inputs[part], told[part], [np.arange(len(told[part]))]) for name, part in parts.items()}
    rest = slice(TRAIN + VALIDATION, None)
    return Scene(
        problem=Hypercleaning(train=split["train"], validation=split["validation"], batch=batch),
        pooled=Hypercleaning(train=whole["train"], validation=whole["validation"]),
        clean=collect(inputs[rest], told[rest], [np.arange(len(told[rest]))]),
    )


def balanced(mixtures: FloatArray) -> FloatArray:
    """Return mixtures scaled by node and by class until nodes ask for as many samples, and for as many of each class.

    Without it some class is asked for by nobody, and what is left of it at the end makes all nodes alike.
    """
    found = mixtures + 1e-6
    for _ in range(1000):
        found = found / found.sum(axis=0)
        found = found / found.sum(axis=1, keepdims=True)
    return found


def deal(classes: NDArray[np.int64], mixtures: FloatArray, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Return which samples each node gets.

    Nodes choose in turn, each a class from its own mixture of those that are left, so that all have as many, to one.
    """
    left = [list(rng.permutation(np.flatnonzero(classes == label))) for label in range(CLASSES)]
    hands: list[list[int]] = [[] for _ in mixtures]
    for turn in range(len(classes)):
        node = turn % len(mixtures)
        wanted = mixtures[node] * [len(stack) > 0 for stack in left]
        hands[node].append(left[rng.choice(CLASSES, p=wanted / wanted.sum())].pop())
    return [np.array(hand) for hand in hands]


def collect(inputs: FloatArray, labels: NDArray[np.int64], hands: Sequence[NDArray[np.int64]]) -> Samples:
    """Return the samples of every hand in rectangles, filled up with sample 0 at a share of 0."""
    width = max(len(hand) for hand in hands)
    places = np.stack([np.pad(hand, (0, width - len(hand))) for hand in hands])
    held = np.stack([np.arange(width) < len(hand) for hand in hands])
    return Samples(
        inputs=torch.from_numpy(inputs[places]),
        labels=torch.from_numpy(np.eye(CLASSES)[labels[places]]),
        shares=torch.from_numpy(held * (len(hands) / len(labels))),
        places=torch.from_numpy(places),
    )


@dataclass(frozen=True, slots=True)
class Solver:
    """A method by the name that it is reported under: SPARKLE's strategy is that of y and z, then that of x."""

    method: Literal["dsoba-so", "sparkle"]
    lower: str = "gt"
    upper: str = "gt"


SOLVERS = {
    "D-SOBA": Solver("dsoba-so"),
    "SPARKLE-GT": Solver("sparkle", "gt", "gt"),
    "SPARKLE-EXTRA": Solver("sparkle", "extra", "extra"),
    "SPARKLE-ED": Solver("sparkle", "ed", "ed"),
    "SPARKLE-ED-GT": Solver("sparkle", "ed", "gt"),
    "SPARKLE-EXTRA-GT": Solver("sparkle", "extra", "gt"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is run."""

    steps: int = 200  # of every run
    seeds: int = 3  # that results are averaged over
    solvers: tuple[str, ...] = tuple(SOLVERS)
    graphs: tuple[str, ...] = GRAPHS
    batch: int | None = 10  # samples of a node in an answer; None for all
    grid: tuple[tuple[float, float], ...] = GRID

    @property
    def sampled(self) -> str:
        """What an answer rests on, in words."""
        return "all samples" if self.batch is None else f"{self.batch} samples of a node"


QUICK = Size(
    steps=100,
    seeds=1,
    solvers=("D-SOBA", "SPARKLE-GT", "SPARKLE-ED"),
    graphs=("ring", "complete"),
    grid=tuple(product((1000.0,), (0.5, 1.0, 2.0))),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What all solvers are held against each other on."""

    spread: str = "severe"
    upper_graph: str = "ring"  # of x
    lower_graph: str = "ring"  # of y and z
    wrong: float = 0.2


scene_of = lru_cache(maxsize=64)(make_scene)
Runs = Sequence[History | None]  # one for each seed; None where it diverged


@cache
def simulate(
    name: str, sizes: Fixed | Adaptive, ground: Ground, batch: int | None, seed: int, steps: int, records: int = RECORDS
) -> History | None:
    """Return how a run went; None where it diverged."""
    scene = scene_of(num_nodes=NODES, wrong=ground.wrong, alpha=ALPHAS[ground.spread], batch=batch, seed=seed)
    solver, lower = SOLVERS[name], mixing_matrix(ground.lower_graph, NODES)
    try:
        return solve(
            scene.problem,
            {"x": mixing_matrix(ground.upper_graph, NODES), "y": lower, "z": lower},
            method=solver.method,
            upper=solver.upper,
            lower=solver.lower,
            step_sizes=sizes,
            steps=steps,
            seed=seed,
            record_every=max(1, steps // records),
            measure=scene.measure,
        ).history
    except NumericsError:
        return None


@cache
def tuned(name: str, ground: Ground, size: Size) -> Fixed:
    """Return the fixed steps of the grid with the lowest loss at the end, on a seed that is not reported."""

    def loss(sizes: Fixed) -> float:
        history = simulate(name, sizes, ground, size.batch, TUNED_ON, size.steps, 1)
        return float("inf") if history is None else float(history.measured["loss"][-1])

    return min((Fixed(upper, lower, lower) for upper, lower in size.grid), key=loss)


def simulate_seeds(name: str, sizes: Fixed | Adaptive, ground: Ground, size: Size) -> Runs:
    """Return a run for each seed."""
    return [simulate(name, sizes, ground, size.batch, seed, size.steps) for seed in range(size.seeds)]


@cache
def pooled(wrong: float, seed: int, steps: int, *, cleaned: bool = True) -> tuple[float, float]:
    """Return the accuracy and the loss that one node with all samples comes to, or does with all weights alike."""
    scene = scene_of(num_nodes=NODES, wrong=wrong, seed=seed)
    upper, lower, _ = POOLED_STEPS
    found = solve(
        scene.pooled,
        [[1.0]],
        method="dsoba-so",
        step_sizes=Fixed(upper if cleaned else 1e-12, lower, lower),
        steps=2 * steps,
        measure=scene.measure,
        record_every=2 * steps,
    ).history.measured
    return float(found["accuracy"][-1]), float(found["loss"][-1])


def at_end(runs: Runs, what: str) -> float:
    """Return the mean over seeds of what was measured last; NaN where a run diverged."""
    return float(np.mean([float("nan") if one is None else float(one.measured[what][-1]) for one in runs]))


def at_cost(runs: Runs, what: str, cost: str, budget: float) -> float:
    """Return the mean over seeds of what was measured last before a budget was spent; NaN where a run diverged."""
    found = []
    for one in runs:
        if one is None:
            return float("nan")
        found.append(float(one.measured[what][np.searchsorted(getattr(one, cost), budget, side="right") - 1]))
    return float(np.mean(found))


def ahead(runs: Runs, others: Runs) -> str:
    """Return the lowest and the highest of the seeds' differences in accuracy, in points, of runs less others."""
    pairs = [
        float(one.measured["accuracy"][-1] - other.measured["accuracy"][-1])
        for one, other in zip(runs, others, strict=True)
        if one is not None and other is not None
    ]
    return f"{min(pairs):+.1f} to {max(pairs):+.1f}" if len(pairs) == len(runs) else "–"


def spent(runs: Runs, goals: Sequence[float] | FloatArray, cost: str) -> float:
    """Return the mean over seeds of what was spent until the loss came down to its goal; NaN where one never did."""
    found = []
    for one, goal in zip(runs, goals, strict=True):
        there = np.flatnonzero(one.measured["loss"] <= goal).tolist() if one is not None else []
        found.append(float(getattr(one, cost)[there[0]]) if there else float("nan"))
    return float(np.mean(found))


def shown(value: float, digits: int = 1) -> str:
    """Return a number, or a dash for none."""
    return "–" if np.isnan(value) else f"{value:,.{digits}f}"


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Print a table."""
    wide = max(len(name) for name in rows)
    widths = [max(len(name), *(len(row[place]) for row in rows.values())) for place, name in enumerate(columns)]
    print(f"\n{title}")
    for name, row in {"": columns, **rows}.items():
        cells = "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        print(f"  {name:<{wide}}  {cells}".rstrip(), flush=True)


def accuracy_study(size: Size, wrong: float) -> None:
    """Print accuracy and loss at the end, what it took to come near the pooled ones, and what budgets buy."""
    grounds = {
        f"{spread} {graph}": Ground(spread=spread, upper_graph=graph, lower_graph=graph, wrong=wrong)
        for spread, graph in product(ALPHAS, size.graphs)
    }
    runs: dict[str, list[Runs]] = {}
    for name, kind in product(size.solvers, ("fixed", "free")):
        runs[f"{name} {kind}"] = [
            simulate_seeds(
                name, tuned(name, replace(ground, wrong=0.2), size) if kind == "fixed" else Adaptive(), ground, size
            )
            for ground in grounds.values()
        ]
    goals = np.array([pooled(wrong, seed, size.steps) for seed in range(size.seeds)])
    alike = np.array([pooled(wrong, seed, size.steps, cleaned=False) for seed in range(size.seeds)])
    where = f"p = {wrong:g}, {size.sampled}"

    def both(found: Sequence[float]) -> str:
        return f"{shown(found[0])} {shown(found[1], 3)}"

    table(
        f"{where}: accuracy in percent and loss after {size.steps:,} steps; pooled {both(goals.mean(axis=0))}, with "
        f"all weights alike {both(alike.mean(axis=0))}",
        list(grounds),
        {row: [both([at_end(one, what) for what in ("accuracy", "loss")]) for one in ran] for row, ran in runs.items()},
    )
    base = size.solvers[0]
    table(
        f"{where}: points of accuracy ahead of {base} with steps of the same kind, over the seeds",
        list(grounds),
        {
            row: [ahead(one, other) for one, other in zip(ran, runs[f"{base} {row.rpartition(' ')[2]}"], strict=True)]
            for row, ran in runs.items()
            if not row.startswith(base)
        },
    )
    for cost, unit, scale in (("gradients", "a node's gradients", 1.0), ("floats", "thousands of floats sent", 1e3)):
        table(
            f"{where}: {unit} until the loss is at most {NEAR} of the pooled",
            list(grounds),
            {row: [shown(spent(one, NEAR * goals[:, 1], cost) / scale, 0) for one in ran] for row, ran in runs.items()},
        )
    place = list(grounds).index(f"severe {size.graphs[0]}")
    first = next(iter(runs.values()))[place][0]
    if first is None:
        return
    whole = {"gradients": float(first.gradients[-1]), "floats": float(first.floats[-1])}
    budgets = [(cost, share) for cost in whole for share in (1 / 8, 1 / 4, 1 / 2, 1.0)]
    table(
        f"{where}, severe {size.graphs[0]}: accuracy and loss at shares of {size.solvers[0]}'s "
        f"{whole['gradients']:,.0f} gradients and {whole['floats']:,.0f} floats",
        [f"{cost} {share:g}" for cost, share in budgets],
        {
            row: [
                both([at_cost(ran[place], what, cost, share * whole[cost]) for what in ("accuracy", "loss")])
                for cost, share in budgets
            ]
            for row, ran in runs.items()
        },
    )


def topology_study(size: Size) -> None:
    """Print what a better graph than a ring brings for x, and for y and z; steps are those chosen on the ring."""
    pairs = [("ring", "ring"), ("torus", "ring"), ("complete", "ring"), ("ring", "torus"), ("ring", "complete")]
    rows = {}
    for name, kind in product(size.solvers, ("fixed", "free")):
        sizes = tuned(name, Ground(), size) if kind == "fixed" else Adaptive()
        ran = [simulate_seeds(name, sizes, Ground(upper_graph=x, lower_graph=yz), size) for x, yz in pairs]
        rows[f"{name} {kind}"] = [f"{shown(at_end(one, 'accuracy'), 2)} {shown(at_end(one, 'loss'), 4)}" for one in ran]
    table(
        f"severe, p = 0.2, {size.sampled}: accuracy and loss after {size.steps:,} steps by the graph of x / of y and z",
        [f"{x} / {yz}" for x, yz in pairs],
        rows,
    )


def steps_study(size: Size) -> None:
    """Print how much accuracy hangs on the scale of parameter-free steps, and on that of fixed ones."""
    free, fixed = {}, {}
    for name in size.solvers:
        best = tuned(name, Ground(), size)
        scaled = [Adaptive(c, c, c) for c in SCALES]
        found = [at_end(simulate_seeds(name, sizes, Ground(), size), "accuracy") for sizes in scaled]
        free[name] = [*map(shown, found), shown(max(found) - min(found))]
        multiples = [Fixed(k * best.x, k * best.y, k * best.z) for k in MULTIPLES]
        found = [at_end(simulate_seeds(name, sizes, Ground(), size), "accuracy") for sizes in multiples]
        fixed[name] = [*map(shown, found), f"{best.x:g}, {best.y:g}"]
    where = f"severe ring, p = 0.2, {size.sampled}: accuracy after {size.steps:,} steps by"
    base = size.solvers[1]
    for level in "xyz":
        alone = [replace(Adaptive(), **{level: c}) for c in SCALES]
        found = [at_end(simulate_seeds(base, sizes, Ground(), size), "accuracy") for sizes in alone]
        free[f"{base}, {level} alone"] = [*map(shown, found), shown(max(found) - min(found))]
    table(f"{where} the scale c of parameter-free steps", [*(f"{c:g}" for c in SCALES), "best less worst"], free)
    table(f"{where} multiples of the fixed steps", [*(f"{k:g}" for k in MULTIPLES), "of a_x, and a_y = a_z"], fixed)


def synthetic_errors(
    name: str, spread: str, graph: str, noise: float, step: float, seed: int, steps: int
) -> FloatArray:
    """Return how far the nodes' mean x is from the solution, beside its size, after every tenth step."""
    problem = QuadraticProblem.random(NODES, 5, 5, spread=SYNTHETIC_SPREADS[spread], noise=noise, seed=seed)
    solver, (solution, _) = SOLVERS[name], problem.solution()

    def measure(x: Tensor, y: Tensor) -> Mapping[str, float]:
        return {"error": float((x.mean(dim=0) - solution).norm() / solution.norm())}

    try:
        history = solve(
            problem,
            mixing_matrix(graph, NODES),
            method=solver.method,
            upper=solver.upper,
            lower=solver.lower,
            step_sizes=Fixed(0.1 * step, step, step),
            steps=steps,
            seed=seed,
            record_every=10,
            measure=measure,
        ).history
    except NumericsError:
        return np.full(steps // 10 + 1, np.inf)
    return history.measured["error"]


def synthetic_study(size: Size) -> None:
    """Print how long quadratics take to come to a level, and where they stay, with exact and with noisy answers."""
    steps = SYNTHETIC_STEPS * size.steps // 100
    grounds = list(product(SYNTHETIC_SPREADS, ("ring", "complete")))
    for noise in (0.0, SYNTHETIC_NOISE):
        stable = (
            step
            for step in SYNTHETIC_GRID
            if all(
                synthetic_errors(name, *ground, noise, step, TUNED_ON, steps // 4).max() < 10.0
                for name, ground in product(size.solvers, grounds)
            )
        )
        step = 0.5 * next(stable, SYNTHETIC_GRID[-1])  # other seeds are not as stable
        rows: dict[str, list[str]] = {name: [] for name in size.solvers}
        for name, ground in product(size.solvers, grounds):
            found = [synthetic_errors(name, *ground, noise, step, seed, steps) for seed in range(size.seeds)]
            errors = np.sqrt(np.mean(np.square(found), axis=0))
            there = np.flatnonzero(errors <= SYNTHETIC_LEVEL).tolist()
            floor = float(np.sqrt(np.mean(np.square(errors[-len(errors) // 4 :]))))
            rows[name].append(f"{shown(10.0 * there[0] if there else float('nan'), 0)} {floor:.1e}")
        table(
            f"quadratics, noise {noise:g}, a_y = a_z = {step:g} = 10 a_x: steps until the error is "
            f"{SYNTHETIC_LEVEL:g}, and the error over the last quarter of {steps:,}",
            [f"{spread} {graph}" for spread, graph in grounds],
            rows,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(description="Decentralized hyper-cleaning of digits with wrong labels.")
    studies = ("accuracy", "topology", "steps", "synthetic")
    parser.add_argument("--study", choices=studies, action="append", help="by default all four")
    parser.add_argument("--full", action="store_true", help="all solvers, graphs, p and three seeds: half an hour")
    parser.add_argument("--steps", type=int, help=f"of every run, {QUICK.steps}, or {Size().steps} with --full")
    parser.add_argument("--seeds", type=int, help=f"that results are means of, {QUICK.seeds}, or {Size().seeds}")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so small a problem gains nothing by a second one
    size = Size() if asked.full else QUICK
    size = replace(size, steps=asked.steps or size.steps, seeds=asked.seeds or size.seeds)
    chosen = asked.study or studies
    if "accuracy" in chosen:
        accuracy_study(size, 0.2)
    if "topology" in chosen:
        topology_study(size)
    if "steps" in chosen:
        steps_study(size)
    if "synthetic" in chosen:
        synthetic_study(size)
    if "accuracy" in chosen and asked.full:
        accuracy_study(replace(size, batch=None, graphs=("ring", "complete")), 0.2)
        for wrong in (0.1, 0.3):
            accuracy_study(size, wrong)
    return 0


if __name__ == "__main__":
    sys.exit(main())
