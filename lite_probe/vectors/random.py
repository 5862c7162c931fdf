"""Random vectors from a seed, each entry a function of seed and place alone.

So a slice needs nothing of the rest, and is the same for any number of ranks and threads and, but for a last bit once
in a while, on every device. A vector is made of blocks. Word w of a block, 64 bits hashed from its place (SplitMix64,
Steele, Lea & Flood 2014), gives two entries, w and the one half a block further, by Box and Muller's formula in
float64; both are rounded to float32.
"""

import math

import torch
from torch import Tensor

_WORDS = 1 << 12  # of a block
_CPU_BLOCKS = 1 << 3  # that a thread takes at a time, which keeps what is in between in the cache
_MOST_BLOCKS = 1 << 10  # on an accelerator: 0.2 GB in between
_STEP = 0x9E3779B97F4A7C15  # 2⁶⁴ over the golden ratio
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31
_ALL = (1 << 64) - 1
_FRACTION = 0xFFFFFFFF << 20  # the first 32 bits behind a float64's binary point
_ONE = 0x3FF << 52  # the float64 1.0


def random_vector(
    size: int, *, seed: int, dtype: torch.dtype, device: torch.device, start: int = 0, stop: int | None = None
) -> Tensor:
    """Return a standard normal vector (size,), or entries start … stop−1 of it, drawn on the device.

    Args:
        size: Of the whole vector.
        seed: Vectors of different seeds are independent.
        dtype: Of the result; the numbers are those of float32 in every type.
        device: Where it is drawn.
        start: First entry wanted.
        stop: Behind the last; None for the end.
    """
    stop = size if stop is None else stop
    result = torch.empty(stop - start, dtype=dtype, device=device)
    key, last_block = _mixed(seed), -(-stop // (2 * _WORDS))
    at_once = _CPU_BLOCKS * torch.get_num_threads() if device.type == "cpu" else _MOST_BLOCKS
    places = torch.arange(min(at_once, last_block) * _WORDS, device=device).mul_(_signed(_STEP))
    # Whole blocks whatever is wanted: vectorised functions may round the last entries of a run otherwise.
    for block in range(start // (2 * _WORDS), last_block, at_once):
        count = min(at_once, last_block - block)
        drawn = _normal(_hashed(places[: count * _WORDS] + _signed(key + block * _WORDS * _STEP)))
        first = block * 2 * _WORDS
        low, high = max(start, first), min(stop, first + len(drawn))
        result[low - start : high - start] = drawn[low - first : high - first]
    return result


def _hashed(bits: Tensor) -> Tensor:
    """Mix 64-bit words in place; int64 products wrap as they must."""
    shifted = torch.empty_like(bits)
    for shift, factor in _MIX:
        bits ^= _shifted_right(bits, shift, shifted)
        bits *= _signed(factor)
    bits ^= _shifted_right(bits, _LAST_SHIFT, shifted)
    return bits


def _normal(bits: Tensor) -> Tensor:
    """Return standard normal numbers, two blocks for each of words; uniform ones have the words' halves as digits."""
    radius = _from_one_to_two(torch.bitwise_right_shift(bits, 12))
    radius.sub_(1.0 - 2.0**-33).log_().mul_(-2.0).sqrt_()
    angle = _from_one_to_two(bits.bitwise_left_shift_(20)).mul_(2.0 * math.pi)
    normal = torch.empty(len(bits) // _WORDS, 2, _WORDS, dtype=torch.float32, device=bits.device)
    normal[:, 0] = angle.cos().mul_(radius).view(-1, _WORDS)
    normal[:, 1] = angle.sin_().mul_(radius).view(-1, _WORDS)
    return normal.view(-1)


def _from_one_to_two(bits: Tensor) -> Tensor:
    """Return float64 numbers in [1, 2) whose first 32 binary digits are in the words, in place."""
    return bits.bitwise_and_(_FRACTION).bitwise_or_(_ONE).view(torch.float64)


def _shifted_right(bits: Tensor, shift: int, out: Tensor) -> Tensor:
    """Shift zeros in from the left, where torch repeats the sign."""
    return torch.bitwise_right_shift(bits, shift, out=out).bitwise_and_((1 << (64 - shift)) - 1)


def _mixed(seed: int) -> int:
    """Return a seed's key: keys of neighbouring seeds lie apart, or one's vector were the other's shifted."""
    bits = (seed + _STEP) & _ALL
    for shift, factor in _MIX:
        bits = ((bits ^ (bits >> shift)) * factor) & _ALL
    return bits ^ (bits >> _LAST_SHIFT)


def _signed(number: int) -> int:
    """Return the int64 of a number's last 64 bits."""
    return ((number + (1 << 63)) & _ALL) - (1 << 63)
