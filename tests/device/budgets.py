"""How often a device may be waited for: more is a queue that runs dry. Numbers read back, and blocking copies."""

BATCHES = 3  # of `tests.models`
BUDGETS = {
    "product, kept": 0,
    # Each batch: the count of its targets, and transformers' look at its mask.
    "product, rebuilt": 2 * BATCHES,
    # Experts run one by one; which of them is asked for is known to the device alone.
    "product, rebuilt, experts": 70,
    "gradient": 3 * BATCHES,  # its loss, too
    "lanczos step": 5,  # norms of the image and of what is left of it, and the coefficients
    "probe step": 6,
    "optimizer step": 1,  # whether gradients are finite; on a GPU the answer travels by itself
    "replayed step": 160,  # of which bands, 12 or so, take most
}


def require_within(waits: dict[str, float], budget: str) -> None:
    """Each wait with the line that asks for it is in the message."""
    assert sum(waits.values()) <= BUDGETS[budget], (budget, waits)
