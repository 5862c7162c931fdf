"""Where the suite computes: on a CUDA device, or, to try the suite itself, in tiny sizes on the CPU."""

import pytest
import torch

from lite_probe.commands.compute import choose_device


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    name = str(request.config.getoption("--device"))
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"needs a CUDA device; torch {torch.__version__} sees none")
    return choose_device(name)


@pytest.fixture(scope="session")
def tiny(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--tiny"))
