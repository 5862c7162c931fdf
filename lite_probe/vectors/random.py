"""Random vectors from a seed: the same entries on every device and in every precision."""

import torch
from torch import Tensor


def random_vector(size: int, *, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a standard normal vector (size,), drawn in float32 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float32).to(dtype=dtype, device=device)
