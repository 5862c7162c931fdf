"""How a replay gets to its learning rate: linearly over the first steps, so that none of it is a shock of the start."""

from lite_probe.errors import UsageError

_SHARE = 10  # of a segment's steps, one in so many is of the ramp
_LEAST = 5  # steps of a ramp, where half a segment holds them


def ramp_steps(steps: int, asked: int | None = None) -> int:
    """Return R, the steps over which the rate rises: as asked, else min(max(5, ⌈K/10⌉), ⌊K/2⌋).

    Args:
        steps: K, of the segment.
        asked: R; None leaves it to K.

    Raises:
        UsageError: If the ramp is negative, or longer than the segment.
    """
    if asked is None:
        return min(max(_LEAST, -(-steps // _SHARE)), steps // 2)
    if not 0 <= asked <= steps:
        raise UsageError(
            f"expected a ramp of 0 to {steps} steps, those of the segment, got {asked}", "pass a shorter --ramp"
        )
    return asked


def rate_at(lr: float, ramp: int, step: int) -> float:
    """Return the learning rate of a step, 0-based: lr·(step + 1)/R on the ramp, lr from its last step on."""
    return lr * min(1.0, (step + 1) / ramp) if ramp else lr
