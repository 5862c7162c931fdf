"""torch.optim.AdamW, Muon and SGD make the same steps, to float32 rounding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lite_probe.optim import make_optimizer

NAMES = {"model.layers.0.mlp.up_proj.weight": (24, 12), "model.layers.0.mlp.down_proj.weight": (12, 24)}
STEPS = 20


def pair(extra: bool) -> list[dict[str, nn.Parameter]]:
    shapes: dict[str, tuple[int, ...]] = {**NAMES, **({"model.norm.weight": (12,)} if extra else {})}
    copies = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        copies.append({key: nn.Parameter(torch.randn(shape, generator=generator)) for key, shape in shapes.items()})
    return copies


def distance(
    ours: dict[str, nn.Parameter],
    theirs: dict[str, nn.Parameter],
    optimizers: list[torch.optim.Optimizer],
) -> tuple[float, float]:
    """Feed both the same gradients; return the largest distance of an entry over all steps, and how far they moved."""
    start = [parameter.detach().clone() for parameter in ours.values()]
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for _ in range(STEPS):
        for first, second in zip(ours.values(), theirs.values(), strict=True):
            first.grad = torch.randn(first.shape, generator=generator)
            second.grad = first.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for first, second in zip(ours.values(), theirs.values(), strict=True):
            worst = max(worst, float((first - second).detach().abs().max()))
    moved = min(float((p.detach() - old).abs().max()) for p, old in zip(ours.values(), start, strict=True))
    return worst, moved


# Entries of size 1 round by 6e-8 a step; gradients of size 1 make ε = 1e-8 vanish beside √v.
ROUNDING = STEPS * 6e-8 * 4


def test_torch_adamw() -> None:
    ours, theirs = pair(extra=True)
    mine = make_optimizer("adamw", ours.items(), lr=1e-2, adamw_beta1=0.9, adamw_beta2=0.95, weight_decay=0.1, eps=1e-8)
    peer = torch.optim.AdamW(theirs.values(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, eps=1e-8)
    worst, moved = distance(ours, theirs, [mine, peer])
    assert worst < ROUNDING
    assert moved > 0.02


@pytest.fixture
def float32_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's Muon iterates in bfloat16 whatever it is given; here it keeps float32."""
    keep: Callable[[Tensor], Tensor] = lambda tensor: tensor.clone()  # noqa: E731
    monkeypatch.setattr(Tensor, "bfloat16", keep)


@pytest.mark.parametrize("steps", [5, 3])
@pytest.mark.usefixtures("float32_muon")
def test_torch_muon_in_float32(steps: int) -> None:
    ours, theirs = pair(extra=False)
    mine = make_optimizer(
        "muon", ours.items(), lr=1e-2, momentum=0.95, weight_decay=0.1, ns_steps=steps, ns_coefficients="quintic"
    )
    peer = torch.optim.Muon(
        theirs.values(),
        lr=1e-2,
        momentum=0.95,
        weight_decay=0.1,
        ns_steps=steps,
        adjust_lr_fn="match_rms_adamw",
    )
    worst, moved = distance(ours, theirs, [mine, peer])
    # An update of 1e-2 is made of products with some 50 roundings of 1e-7 beside entries of size 1.
    assert worst < ROUNDING
    assert moved > 0.02


def test_torch_muon_as_it_is() -> None:
    """Both in bfloat16, whose eight bits are all that the two have in common: stacked products sum in another order."""
    ours, theirs = pair(extra=False)
    mine = make_optimizer(
        "muon",
        ours.items(),
        lr=1e-2,
        weight_decay=0.1,
        ns_steps=5,
        ns_coefficients="quintic",
        msign_dtype="bfloat16",
    )
    peer = torch.optim.Muon(theirs.values(), lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    worst, moved = distance(ours, theirs, [mine, peer])
    assert worst < 0.1 * moved


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_torch_sgd(momentum: float) -> None:
    ours, theirs = pair(extra=True)
    mine = make_optimizer("sgd", ours.items(), lr=1e-2, momentum=momentum)
    # Its momentum is a sum: dampening makes it an average, but for the first gradient, which counts whole.
    peer = torch.optim.SGD(theirs.values(), lr=1e-2, momentum=momentum, dampening=momentum)
    if momentum:
        for parameter in theirs.values():
            peer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    worst, moved = distance(ours, theirs, [mine, peer])
    assert worst < ROUNDING
    assert moved > 0.01
