"""How nodes exchange vectors: every node sends its own to its neighbours and averages what comes with W.

All nodes of one process are rows of a stack, and an exchange is a product with W. `ranks.py` has the same for a node
per process.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lite_probe.bilevel.topology import FloatArray


class Exchange(Protocol):
    """One graph's exchanges, and what they have sent so far over all of its edges.

    Attributes:
        floats: Numbers sent.
        messages: Vectors sent, from one node to one neighbour each.
    """

    floats: int
    messages: int

    def mix(self, stack: Tensor) -> Tensor:
        """Return the rows of W s that belong to this process's nodes, from its rows of s, (rows, dim)."""
        ...


class Network(Protocol):
    """All nodes, and which of them this process holds.

    Attributes:
        num_nodes: n.
        num_rows: Nodes of this process.
    """

    num_nodes: int
    num_rows: int

    def exchange(self, mixing: FloatArray, like: Tensor) -> Exchange:
        """Return exchanges over a graph, in the element type and on the device of a tensor."""
        ...

    def gather(self, stack: Tensor) -> Tensor:
        """Return the rows of all nodes, (n, dim), for the record: it is no part of a method, and not counted."""
        ...

    def agree(self, settings: Mapping[str, str]) -> None:
        """Refuse settings, by name, that are not the same in every process."""
        ...

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Turn what goes wrong in another process into an error that names it."""
        ...


def num_edges(mixing: FloatArray) -> int:
    """Return how many messages one exchange takes: pairs of nodes with a weight, each in both directions."""
    return int(np.count_nonzero(mixing)) - int(np.count_nonzero(np.diagonal(mixing)))


class StackedExchange:
    """Exchanges between nodes that are all in this process."""

    def __init__(self, mixing: FloatArray, like: Tensor) -> None:
        self._weights = torch.as_tensor(mixing, dtype=like.dtype, device=like.device).clone().fill_diagonal_(0.0)
        self._weights -= torch.diag(self._weights.sum(dim=1))
        self._edges = num_edges(mixing)
        self.floats = 0
        self.messages = 0

    def mix(self, stack: Tensor) -> Tensor:
        """Return W s, as s − (I − W) s: what rounding adds to the mean is then beside the nodes' differences."""
        self.messages += self._edges
        self.floats += self._edges * stack.shape[1]
        return stack + self._weights @ (stack - stack[:1])


class StackedNetwork:
    """All nodes in this process."""

    def __init__(self, num_nodes: int) -> None:
        self.num_nodes = num_nodes
        self.num_rows = num_nodes

    def exchange(self, mixing: FloatArray, like: Tensor) -> Exchange:
        """Return exchanges that are products with W."""
        return StackedExchange(mixing, like)

    def gather(self, stack: Tensor) -> Tensor:
        """Return the stack."""
        return stack

    def agree(self, settings: Mapping[str, str]) -> None:
        """Do nothing: there is no other process."""

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Do nothing: there is no other process."""
        yield
