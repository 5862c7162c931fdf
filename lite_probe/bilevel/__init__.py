"""Decentralized bilevel optimization: n nodes, each with data of its own, solve one nested problem together.

    W = mixing_matrix("ring", 8)
    run = solve(problem, W, method="sparkle", upper="gt", lower="ed", step_sizes="adaptive", steps=2000)
    run.x, run.y, run.history

`problem` is anything with the methods of `BilevelProblem`; docs/bilevel.md brings one. Methods are D-SOBA and SPARKLE
with every strategy of its table. All nodes live in one process, or one in each under `torchrun`, by the same code.
"""

from lite_probe.bilevel.exchange import Network, StackedNetwork
from lite_probe.bilevel.methods import STRATEGIES, Strategy
from lite_probe.bilevel.problem import BilevelProblem
from lite_probe.bilevel.quadratic import QuadraticProblem
from lite_probe.bilevel.ranks import RankNetwork
from lite_probe.bilevel.solve import METHODS, BilevelRun, History, State, solve
from lite_probe.bilevel.step_sizes import Adaptive, Fixed
from lite_probe.bilevel.topology import TOPOLOGIES, mixing_matrix, spectral_gap

__all__ = [
    "METHODS",
    "STRATEGIES",
    "TOPOLOGIES",
    "Adaptive",
    "BilevelProblem",
    "BilevelRun",
    "Fixed",
    "History",
    "Network",
    "QuadraticProblem",
    "RankNetwork",
    "StackedNetwork",
    "State",
    "Strategy",
    "mixing_matrix",
    "solve",
    "spectral_gap",
]
