"""Random numbers from one recorded seed.

Seeds for parts of a measurement are derived by hashing, never by adding: `seed + 1` would share its probes
with a run that was given the next seed.
"""

import hashlib


def derive_seed(seed: int, *path: str | int) -> int:
    """Derive the seed of one part of a measurement.

    Args:
        seed: The user's seed.
        path: Names and numbers that identify the part, for example `"probe", 3`.

    Returns:
        A seed in [0, 2⁶³), the same on every platform.
    """
    text = "/".join([str(seed), *(str(part) for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
