"""Graphs against networkx and closed forms; mixing matrices are doubly stochastic and bring nodes together."""

import math
from pathlib import Path

import networkx as nx  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_probe.bilevel import TOPOLOGIES, mixing_matrix, solve, spectral_gap
from lite_probe.bilevel.quadratic import QuadraticProblem
from lite_probe.bilevel.topology import Topology, neighbours, require_mixing_matrix
from lite_probe.errors import InputError, UsageError
from tests.bilevel.oracles import Matrix


def graph_of(W: Matrix) -> nx.Graph:
    return nx.from_numpy_array((W != 0.0) & ~np.eye(len(W), dtype=bool))


def require_valid(W: Matrix) -> None:
    n = len(W)
    assert W.dtype == np.float64
    assert (np.abs(W - W.T)).max() == 0.0
    assert np.abs(W.sum(axis=1) - 1.0).max() <= n * 1e-16
    assert W.min() >= 0.0
    assert np.array_equal(require_mixing_matrix(W, n), W)


EXPECTED = {
    "ring": lambda n: nx.cycle_graph(n),
    "adjusted-ring": lambda n: nx.cycle_graph(n),
    "exponential": lambda n: nx.circulant_graph(n, [2**k for k in range(n.bit_length()) if 2**k < n]),
    "star": lambda n: nx.star_graph(n - 1),
    "complete": lambda n: nx.complete_graph(n),
}


@pytest.mark.parametrize("n", [3, 4, 7, 12, 16])
@pytest.mark.parametrize("name", EXPECTED)
def test_a_graph_is_the_one_networkx_has(name: str, n: int) -> None:
    W = mixing_matrix(name, n)
    require_valid(W)
    wanted = EXPECTED[name](n)
    assert sorted(d for _, d in graph_of(W).degree()) == sorted(d for _, d in wanted.degree())
    assert nx.to_dict_of_lists(graph_of(W)) == {node: sorted(wanted[node]) for node in sorted(wanted)}


@pytest.mark.parametrize(("n", "rows", "columns"), [(9, 3, 3), (12, 3, 4), (20, 4, 5), (4, 2, 2), (14, 2, 7)])
def test_a_torus_is_as_square_as_it_can_be(n: int, rows: int, columns: int) -> None:
    W = mixing_matrix("torus", n)
    require_valid(W)
    wanted = nx.convert_node_labels_to_integers(nx.grid_2d_graph(rows, columns, periodic=True), ordering="sorted")
    wanted.remove_edges_from(nx.selfloop_edges(wanted))
    # networkx leaves out the way round a side of two, which is the way straight.
    assert nx.to_dict_of_lists(graph_of(W)) == {node: sorted(wanted[node]) for node in sorted(wanted)}


@pytest.mark.parametrize("n", [3, 5, 8, 21])
def test_spectral_gaps_are_the_closed_forms(n: int) -> None:
    ring = [1 / 3 + 2 / 3 * math.cos(2 * math.pi * k / n) for k in range(1, n)]
    assert spectral_gap(mixing_matrix("ring", n)) == pytest.approx(1 - max(map(abs, ring)), abs=1e-13)
    if n > 4:
        assert spectral_gap(mixing_matrix("ring", n)) == pytest.approx(2 / 3 * (1 - math.cos(2 * math.pi / n)))
    assert spectral_gap(mixing_matrix("star", n)) == pytest.approx(1 / n, abs=1e-13)
    assert spectral_gap(mixing_matrix("complete", n)) == pytest.approx(1.0, abs=1e-13)
    powers = {2**k % n for k in range(n.bit_length()) if 2**k < n}
    jumps = sorted(powers | {n - jump for jump in powers})
    share = 1 / (1 + len(jumps))
    circulant = [share * (1 + sum(math.cos(2 * math.pi * k * j / n) for j in jumps)) for k in range(1, n)]
    assert spectral_gap(mixing_matrix("exponential", n)) == pytest.approx(1 - max(map(abs, circulant)), abs=1e-13)


def test_the_gap_of_a_torus_is_the_closed_form() -> None:
    turns = [(math.cos(2 * math.pi * i / 4), math.cos(2 * math.pi * j / 5)) for i in range(4) for j in range(5)]
    rho = max(abs(1 / 5 + 2 / 5 * (a + b)) for a, b in turns[1:])
    assert spectral_gap(mixing_matrix("torus", 20)) == pytest.approx(1 - rho, abs=1e-13)


@pytest.mark.parametrize("n", [3, 4, 5, 8, 13])
def test_the_adjusted_ring_has_the_largest_gap_of_all_edge_weights(n: int) -> None:
    W = mixing_matrix("adjusted-ring", n)
    adjacent = nx.to_numpy_array(nx.cycle_graph(n))

    def gap(weight: float) -> float:
        return spectral_gap(weight * adjacent + np.diag(1 - weight * adjacent.sum(axis=1)))

    assert np.array_equal(np.unique(W[adjacent > 0]), W[0, 1:2])
    assert spectral_gap(W) == pytest.approx(gap(float(W[0, 1])), abs=1e-13)
    scanned = [gap(weight) for weight in np.linspace(0.005, 0.75, 150)]
    assert spectral_gap(W) >= max(scanned) - 1e-12
    assert spectral_gap(W) <= max(scanned) + 4 * 0.005  # no eigenvalue of a ring moves faster than 4 a weight
    assert spectral_gap(W) >= spectral_gap(mixing_matrix("ring", n)) - 1e-12


@pytest.mark.parametrize("name", [name for name in TOPOLOGIES if name != "torus"])
@pytest.mark.parametrize("n", [1, 2])
def test_one_and_two_nodes_have_every_graph(name: str, n: int) -> None:
    W = mixing_matrix(name, n)
    require_valid(W)
    assert np.allclose(W, 1.0 / n)
    assert spectral_gap(W) == pytest.approx(1.0)


def test_a_random_graph_is_connected_and_that_of_its_seed() -> None:
    W = mixing_matrix("erdos-renyi", 20, probability=0.2, seed=3)
    require_valid(W)
    assert nx.is_connected(graph_of(W))
    assert np.array_equal(W, mixing_matrix("erdos-renyi", 20, probability=0.2, seed=3))
    assert not np.array_equal(W, mixing_matrix("erdos-renyi", 20, probability=0.2, seed=4))
    # 190 pairs at 0.2: 38 edges, ± 5.5; connected ones have a few more. Five deviations.
    edges = [graph_of(mixing_matrix("erdos-renyi", 20, probability=0.2, seed=s)).number_of_edges() for s in range(10)]
    assert abs(float(np.mean(edges)) - 38) <= 5 * 5.5 / math.sqrt(10) + 2
    assert np.allclose(mixing_matrix("erdos-renyi", 6, probability=1.0), 1 / 6)


def test_metropolis_weights_are_by_the_larger_degree() -> None:
    W = mixing_matrix([(0, 1), (1, 2), (1, 3), (1, 0), (2, 2)], 4)  # twice told, and with itself: no more edges
    quarter = 1 / 4
    assert np.array_equal(W[1], [quarter] * 4)
    assert np.array_equal(W[0], [3 * quarter, quarter, 0, 0])
    assert neighbours(W, 1) == [0, 2, 3]
    assert neighbours(W, 0) == [1]


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_connected_edges_make_a_valid_matrix(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 24))
    tree = [(node, data.draw(st.integers(0, node - 1))) for node in range(1, n)]
    more = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=20))
    W = mixing_matrix(data.draw(st.permutations(tree + more)), n)
    require_valid(W)
    assert {tuple(edge) for edge in graph_of(W).edges()} == {(min(e), max(e)) for e in tree + more if e[0] != e[1]}
    assert 0.0 < spectral_gap(W) <= 1.0 + 1e-12


def test_edges_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "edges.txt"
    path.write_text("# a path\n0 1\n1,2  # the middle\n\n 2, 3 \r\n0000000 1\n")
    wanted = mixing_matrix([(0, 1), (1, 2), (2, 3)], 4)
    assert np.array_equal(mixing_matrix(path, 4), wanted)
    assert np.array_equal(mixing_matrix(str(path), 4), wanted)


@pytest.mark.parametrize(
    "line", ["0", "0 1 2", "a b", "-1 0", "0.5 1", "0 ¹", "0 1000000000", "0 0000000001", "\x00 1"]
)
def test_a_line_that_is_no_edge_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "edges.txt"
    path.write_text(f"0 1\n{line}\n")
    with pytest.raises(InputError, match=r"expected two nodes, as in 0 1, on line 2 of .*edges.txt, got .*; write an"):
        mixing_matrix(path, 4)


def test_files_that_are_none_or_huge_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a topology, ring, .*, erdos-renyi, or a file of edges, .*wheel"):
        mixing_matrix("wheel", 4)
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(InputError, match=r"of at most 16,777,216 bytes at .*, got 1,073,741,824"):
        mixing_matrix(huge, 4)
    (tmp_path / "far").write_text("0 999999999\n")
    with pytest.raises(InputError, match=r"expected edges between nodes 0 to 3, got \(0, 999999999\)"):
        mixing_matrix(tmp_path / "far", 4)
    with pytest.raises(InputError, match="expected a topology"):
        mixing_matrix(tmp_path, 4)


REFUSED: list[tuple[object, int, dict[str, float], type[Exception], str]] = [
    ("torus", 7, {}, UsageError, "a number of nodes that is a product for a torus, got 7; ring takes any number"),
    ("torus", 1, {}, UsageError, "a product for a torus, got 1"),
    ("ring", 0, {}, UsageError, "expected 1 to 4,096 nodes, got 0"),
    ("ring", -3, {}, UsageError, "expected 1 to 4,096 nodes, got -3"),
    ("ring", 10**9, {}, UsageError, "expected 1 to 4,096 nodes, got 1,000,000,000"),
    ("erdos-renyi", 5, {"probability": 0.0}, UsageError, r"probability of an edge in \(0, 1\], got 0"),
    ("erdos-renyi", 5, {"probability": math.nan}, UsageError, r"probability of an edge in \(0, 1\], got nan"),
    (
        "erdos-renyi",
        60,
        {"probability": 0.001},
        UsageError,
        "connected random graph of 60 nodes, got none in 1000 with",
    ),
    (
        [(0, 1), (2, 3)],
        4,
        {},
        InputError,
        r"connected graph, got no path from node 0 to 2, 3; add an edge such as \(0, 2",
    ),
    ([], 2, {}, InputError, "got no path from node 0 to 1"),
    ([(0, 1)], 20, {}, InputError, "to 2, 3, 4, 5, 6, 7, 8, 9, …; add"),
    ([(0, 4)], 4, {}, InputError, r"expected edges between nodes 0 to 3, got \(0, 4\)"),
    ([(-1, 0)], 4, {}, InputError, r"expected edges between nodes 0 to 3, got \(-1, 0\)"),
    ([(0, 1, 2)], 4, {}, InputError, r"expected edges as pairs of whole numbers, got \(0, 1, 2\)"),
    ([(0, 0.5)], 4, {}, InputError, r"expected edges as pairs of whole numbers, got \(0, 0.5\)"),
    ([3], 4, {}, InputError, "expected edges as pairs of whole numbers, got 3"),
    (np.eye(3), 3, {}, InputError, "expected edges as pairs of whole numbers, got a ndarray"),
    (None, 4, {}, UsageError, "expected a topology, ring, .*, or a list of edges, got None"),
]


@pytest.mark.parametrize(("topology", "n", "options", "kind", "message"), REFUSED)
def test_what_is_no_topology_is_refused(
    topology: Topology, n: int, options: dict[str, float], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        mixing_matrix(topology, n, **options)  # type: ignore[arg-type]


def bipartite_star() -> Matrix:
    """A star with all of a leaf's weight on its centre would not be doubly stochastic; two nodes are."""
    return np.array([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3), r"expected W of 2 × 2, a row for each node, got \(3, 3\)"),
        (np.ones(2), r"expected W of 2 × 2, a row for each node, got \(2,\)"),
        ([[0.5, 0.5], [0.5, math.nan]], "expected finite numbers in W, got nan"),
        ([[0.5, 0.4], [0.4, 0.5]], "rows of W that sum to 1, got 0.9 in row 0; mixing_matrix"),
        ([[0.5, 0.5], [0.4, 0.6]], r"W to be symmetric, got 0.5 at \(0, 1\) and 0.4 at \(1, 0\)"),
        (np.eye(2), "expected a connected graph, got no path from node 0 to 1"),
        (
            bipartite_star(),
            r"all eigenvalues but one inside \(−1, 1\), got .eigenvalue. 1: its nodes never agree; mix with",
        ),
        ([[-1.0, 2.0], [2.0, -1.0]], r"all eigenvalues but one inside \(−1, 1\), got .eigenvalue. 3"),
        ([[2.0, -1.0], [-1.0, 2.0]], r"all eigenvalues but one inside \(−1, 1\), got .eigenvalue. 3"),
    ],
)
def test_what_is_no_mixing_matrix_is_refused(matrix: Matrix, message: str) -> None:
    with pytest.raises(InputError, match=message):
        solve(QuadraticProblem.random(2, 1, 2), matrix, steps=1)


def test_a_cycle_of_even_length_without_a_share_of_its_own_never_agrees() -> None:
    W = nx.to_numpy_array(nx.cycle_graph(4)) / 2
    with pytest.raises(InputError, match="its nodes never agree"):
        require_mixing_matrix(W, 4)
    assert spectral_gap(require_mixing_matrix((np.eye(4) + W) / 2, 4)) == pytest.approx(0.5)


def test_rounded_weights_are_made_exact() -> None:
    """Row sums off by 1e-11 pass, and would drift for good."""
    rounded = np.round(mixing_matrix("ring", 6), 11)
    assert abs(rounded[0].sum() - 1.0) >= 5e-12
    exact = require_mixing_matrix(rounded, 6)
    assert np.abs(exact.sum(axis=1) - 1.0).max() <= 1e-15
    assert np.array_equal(exact, exact.T)
