"""How often a device may be waited for: more is a queue that runs dry. Numbers read back, and blocking copies."""

BATCHES = 3  # of `tests.models`
PIECES, BLOCKS = 21, 6  # of its Llama, which optimizers see
BUDGETS = {
    "product, kept": 0,
    "product, rebuilt": BATCHES,  # transformers' look at each batch's mask
    # Experts run one by one; which of them is asked for is known to the device alone.
    "product, rebuilt, experts": 70,
    "gradient": BATCHES + 1,  # the losses, together
    "lanczos step": 4,  # norms of the image and of what is left of it, the coefficients, and what is owed to the basis
    "probe step": 3,  # the two norms, and the coefficient
    "optimizer step": 1,  # whether gradients are finite; on a GPU the answer travels by itself
    # The optimizer's, the loss and the count of its batch, losses and largest entry of two evaluation gradients, their
    # slopes, the update's norm, and what is recorded of it, together; seven looks at masks.
    "replayed step": 10 + 2 * BATCHES + 1,
    # The optimizer's, the loss and the count of its batch, signs of bands, what is found in them and of the whole step,
    # in one piece each; two looks at masks.
    "measured step": 8,
    "calibration probe": 2,  # the pairs' eigenvalues; what is found in bands and on LITE's sides, together
    "products of bands": 0,
    # Once for each optimizer: of a piece three looks for what is near an edge and three tables, of a block six tables
    # of what to look for and four of what was found; proxies that are equal on an edge.
    "bands cut": 6 * PIECES + 10 * BLOCKS + 5,
    "theory along a vector": 1,  # its copy where it is in main memory; what is found along all is read together
}


def require_within(waits: dict[str, float], budget: str) -> None:
    """Each wait with the line that asks for it is in the message."""
    assert sum(waits.values()) <= BUDGETS[budget], (budget, waits)
