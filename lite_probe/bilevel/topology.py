"""Who talks to whom: graphs of n nodes, and the mixing matrices on them.

A mixing matrix W is symmetric with rows that sum to 1, and W_ij is not zero only between neighbours. Its spectral gap
1 − ρ, with ρ the largest |eigenvalue| beside the 1 of the mean, says how fast nodes come to agree.
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lite_probe.errors import InputError, UsageError, shown
from lite_probe.files import read_bounded
from lite_probe.seeds import derive_seed

FloatArray = NDArray[np.float64]
Edges = Iterable[tuple[int, int]]
Topology = str | Path | Sequence[tuple[int, int]]

MAX_NODES = 4096  # a mixing matrix is n × n
_MAX_FILE_BYTES = 16 * 2**20
_TOLERANCE = 1e-10  # of a row's sum and of symmetry
_DRAWS = 1000  # of a random graph, until one is connected


def _ring(n: int) -> Edges:
    return ((i, (i + 1) % n) for i in range(n))


def _torus(n: int) -> Edges:
    rows = next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
    if rows == 1:
        raise UsageError(
            f"expected a number of nodes that is a product for a torus, got {n}", "ring takes any number of nodes"
        )
    columns = n // rows
    for i in range(n):
        row, column = divmod(i, columns)
        yield i, row * columns + (column + 1) % columns
        yield i, (row + 1) % rows * columns + column


def _exponential(n: int) -> Edges:
    return ((i, (i + 2**k) % n) for i in range(n) for k in range((n - 1).bit_length()))


def _star(n: int) -> Edges:
    return ((0, i) for i in range(1, n))


def _complete(n: int) -> Edges:
    return combinations(range(n), 2)


GRAPHS: dict[str, Callable[[int], Edges]] = {
    "ring": _ring,
    "adjusted-ring": _ring,
    "torus": _torus,
    "exponential": _exponential,
    "star": _star,
    "complete": _complete,
}
TOPOLOGIES = (*GRAPHS, "erdos-renyi")


def mixing_matrix(topology: Topology, num_nodes: int, *, probability: float | None = None, seed: int = 0) -> FloatArray:
    """Return the mixing matrix of a graph, with Metropolis weights.

    W_ij = 1 / (1 + max(deg i, deg j)) between neighbours, W_ii = 1 − Σ_j W_ij. The adjusted ring has the one weight
    on all its edges for which ρ is smallest, 2 / (λ₂ + λ_n) with λ of the graph's Laplacian.

    Args:
        topology: "ring", "adjusted-ring", "torus" (2-D, as square as n allows), "exponential" (i and i ± 2ᵏ), "star",
            "complete", "erdos-renyi" (drawn again until connected), a list of edges (i, j), or the path of a file with
            an edge, two numbers from 0, on each line.
        num_nodes: n.
        probability: Of an edge of the random graph; by default 2 ln n / n, at which most are connected.
        seed: Of the random graph.

    Returns:
        (n, n) float64.

    Raises:
        UsageError: If there is no such topology for so many nodes.
        InputError: If an edge joins nodes that there are not, or the graph is not connected.
    """
    if not 1 <= num_nodes <= MAX_NODES:
        raise UsageError(f"expected 1 to {MAX_NODES:,} nodes, got {num_nodes:,}")
    if probability is not None and not 0.0 < probability <= 1.0:
        raise UsageError(f"expected a probability of an edge in (0, 1], got {probability:g}")
    name = topology if isinstance(topology, str) else ""
    if name == "erdos-renyi":
        adjacent = _random_graph(num_nodes, probability, seed)
    elif name in GRAPHS:
        adjacent = _adjacency(GRAPHS[name](num_nodes), num_nodes)
    elif isinstance(topology, str | Path):
        adjacent = _adjacency(_read_edges(Path(topology)), num_nodes)
    elif isinstance(topology, Iterable):
        adjacent = _adjacency(topology, num_nodes)
    else:
        raise UsageError(f"expected a topology, {', '.join(TOPOLOGIES)}, or a list of edges, got {shown(topology)}")
    _require_connected(adjacent)
    degrees = adjacent.sum(axis=1)
    if name == "adjusted-ring" and num_nodes > 1:
        laplacian = np.linalg.eigvalsh(np.diag(degrees) - adjacent.astype(np.float64))
        weights = adjacent * (2.0 / (laplacian[1] + laplacian[-1]))
    else:
        weights = adjacent / (1.0 + np.maximum.outer(degrees, degrees))
    return np.asarray(weights + np.diag(1.0 - weights.sum(axis=1)))


def spectral_gap(mixing: ArrayLike) -> float:
    """Return 1 − ρ: 1 where one exchange makes all equal, 0 where nodes never agree."""
    matrix = np.asarray(mixing, dtype=np.float64)
    return 1.0 - float(np.abs(np.linalg.eigvalsh(matrix - 1.0 / len(matrix))).max())


def lazy(mixing: FloatArray) -> FloatArray:
    """Return (I + W)/2, which is positive semidefinite."""
    return 0.5 * (np.eye(len(mixing)) + mixing)


def neighbours(mixing: FloatArray, node: int) -> list[int]:
    """Return whom a node exchanges with."""
    return [other for other in np.flatnonzero(mixing[node]).tolist() if other != node]


def require_mixing_matrix(mixing: ArrayLike, num_nodes: int, name: str = "W") -> FloatArray:
    """Return a mixing matrix as float64, what it lacks of symmetry and of row sums of 1 made up on its diagonal.

    A row sum that is off by 1e-10 would move the mean of all nodes by as much at every step.

    Raises:
        InputError: If it is not (n, n), finite, symmetric with rows that sum to 1, or its nodes never agree.
    """
    found = np.asarray(mixing, dtype=np.float64)
    if found.shape != (num_nodes, num_nodes):
        raise InputError(f"expected {name} of {num_nodes} × {num_nodes}, a row for each node, got {found.shape}")
    if not np.isfinite(found).all():
        raise InputError(f"expected finite numbers in {name}, got {found[~np.isfinite(found)][0]}")
    hint = "mixing_matrix(edges, n) makes one from edges"
    if (row := int(np.abs(found.sum(axis=1) - 1.0).argmax())) >= 0 and abs(found[row].sum() - 1.0) > _TOLERANCE:
        raise InputError(f"expected rows of {name} that sum to 1, got {found[row].sum():.6g} in row {row}", hint)
    if (gap := np.abs(found - found.T)).max() > _TOLERANCE:
        i, j = np.unravel_index(int(gap.argmax()), gap.shape)
        raise InputError(
            f"expected {name} to be symmetric, got {found[i, j]:.6g} at ({i}, {j}) and {found[j, i]:.6g} at ({j}, {i})",
            hint,
        )
    _require_connected((found != 0.0) & ~np.eye(num_nodes, dtype=bool))
    if spectral_gap(found) <= _TOLERANCE:
        raise InputError(
            f"expected {name} with all eigenvalues but one inside (−1, 1), got |eigenvalue| "
            f"{1.0 - spectral_gap(found):.6g}: its nodes never agree",
            "mix with (I + W)/2",
        )
    exact = 0.5 * (found + found.T)
    np.fill_diagonal(exact, 0.0)
    np.fill_diagonal(exact, 1.0 - exact.sum(axis=1))
    return exact


def _adjacency(edges: Edges, num_nodes: int) -> NDArray[np.bool_]:
    adjacent = np.zeros((num_nodes, num_nodes), dtype=bool)
    for edge in edges:
        i, j = _nodes_of(edge)
        if not (0 <= i < num_nodes and 0 <= j < num_nodes):
            raise InputError(f"expected edges between nodes 0 to {num_nodes - 1}, got ({i}, {j})")
        adjacent[i, j] = adjacent[j, i] = i != j
    return adjacent


def _nodes_of(edge: Iterable[int]) -> tuple[int, int]:
    try:
        i, j = (operator.index(node) for node in edge)
        return i, j
    except (TypeError, ValueError):
        raise InputError(f"expected edges as pairs of whole numbers, got {shown(edge)}") from None


def _random_graph(num_nodes: int, probability: float | None, seed: int) -> NDArray[np.bool_]:
    chance = min(1.0, 2.0 * math.log(num_nodes) / num_nodes) if probability is None else probability
    upper = np.triu_indices(num_nodes, 1)
    for draw in range(_DRAWS):
        generator = np.random.default_rng(derive_seed(seed, "erdos-renyi", draw))
        adjacent = np.zeros((num_nodes, num_nodes), dtype=bool)
        adjacent[upper] = generator.random(len(upper[0])) < chance
        adjacent |= adjacent.T
        if len(_component(adjacent)) == num_nodes:
            return adjacent
    raise UsageError(
        f"expected a connected random graph of {num_nodes} nodes, got none in {_DRAWS} with edges of probability "
        f"{chance:g}",
        "raise the probability",
    )


def _read_edges(path: Path) -> Iterator[tuple[int, int]]:
    expected = f"a topology, {', '.join(TOPOLOGIES)}, or a file of edges,"
    text = read_bounded(path, expected, max_bytes=_MAX_FILE_BYTES)
    for number, line in enumerate(text.decode(errors="replace").splitlines(), start=1):
        words = line.partition("#")[0].replace(",", " ").split()
        if words and not (len(words) == 2 and all(_is_node(word) for word in words)):
            raise InputError(
                f"expected two nodes, as in 0 1, on line {number} of {path}, got {line[:40]!r}",
                "write an edge on each line, nodes counted from 0",
            )
        if words:
            yield int(words[0]), int(words[1])


def _is_node(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) <= 9


def _component(adjacent: NDArray[np.bool_]) -> set[int]:
    """Return the nodes that node 0 can reach."""
    reached, edge = {0}, [0]
    while edge:
        fresh = set(np.flatnonzero(adjacent[edge].any(axis=0)).tolist()) - reached
        reached |= fresh
        edge = sorted(fresh)
    return reached


def _require_connected(adjacent: NDArray[np.bool_]) -> None:
    reached = _component(adjacent)
    if missing := sorted(set(range(len(adjacent))) - reached):
        shown = ", ".join(str(node) for node in missing[:8]) + (", …" if len(missing) > 8 else "")
        raise InputError(
            f"expected a connected graph, got no path from node 0 to {shown}",
            f"add an edge such as (0, {missing[0]})",
        )
