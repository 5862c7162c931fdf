"""One node in each process: ranks under `torchrun`, which send to their neighbours only.

with RankNetwork(timeout=60) as network:
run = solve(problem.of_node(network.rank), mixing, network=network)
"""

from torch import Tensor

from lite_probe.bilevel.exchange import num_edges
from lite_probe.bilevel.topology import FloatArray, neighbours
from lite_probe.operators.ranks import ProcessRanks


class RankExchange:
    """Exchanges of this rank's node with its neighbours over one graph.

    Args:
        network: Of the ranks.
        mixing: W, (n, n), the same on every rank.
    """

    def __init__(self, network: "RankNetwork", mixing: FloatArray) -> None:
        self._network = network
        # An entry that rounding has left on one side of the diagonal would leave one rank waiting.
        self._neighbours = neighbours((mixing != 0.0) | (mixing.T != 0.0), network.rank)
        self._weights: list[float] = mixing[network.rank].tolist()
        self._edges = num_edges(mixing)
        self.floats = 0
        self.messages = 0

    def mix(self, stack: Tensor) -> Tensor:
        """Return Σ_j W_ij s_j, (1, dim), from this rank's s_i, (1, dim).

        Raises:
            PeerError: If a neighbour's message does not come within the network's timeout.

        Cost: one message to and one from each neighbour.
        """
        mixed = stack  # and what neighbours differ by, as `StackedExchange` has it
        for peer, received in self._network.swapped(stack, self._neighbours).items():
            mixed = mixed + self._weights[peer] * (received - stack)
        self.messages += self._edges
        self.floats += self._edges * stack.shape[1]
        return mixed


class RankNetwork(ProcessRanks):
    """One node for each rank of `torchrun`.

    Args:
        timeout: As of `ProcessRanks`.

    Attributes:
        num_nodes: Ranks; this process holds the node of its rank's number.
        num_rows: 1.
    """

    def __init__(self, *, timeout: float = 300.0) -> None:
        super().__init__(timeout=timeout)
        self.num_nodes = self.count
        self.num_rows = 1

    def __enter__(self) -> "RankNetwork":
        """Guard what follows."""
        super().__enter__()
        return self

    def exchange(self, mixing: FloatArray, like: Tensor) -> RankExchange:
        """Return exchanges with this rank's neighbours in W; a tensor's type and device are that of what is mixed."""
        return RankExchange(self, mixing)
