"""Optimizer steps side by side: torch's, pytorch_optimizer's SOAP, and lite-probe's, in one process on 2 threads.

A byte-level Llama of 5.2M parameters with the gradient of one batch. Times are medians of a step over rounds in which
all take turns; SOAP's are means over a cycle of ten steps, so that each renews its bases once. `make benchmark` runs it
(about three minutes).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lite_probe.optim import make_optimizer
from lite_probe.training import build_byte_llama

ROUNDS, CYCLE = 9, 10
ROWS: list[dict[str, Any]] = []
Named = list[tuple[str, nn.Parameter]]


def gradients() -> dict[str, tuple[Tensor, Tensor]]:
    """Parameter name → weight and gradient of one batch of random bytes."""
    model = build_byte_llama(hidden=256, layers=6, heads=8, seq_len=128, seed=0)
    tokens = torch.randint(256, (8, 128), generator=torch.Generator().manual_seed(0))
    model(tokens, labels=tokens).loss.backward()
    return {name: (p.detach(), p.grad) for name, p in model.named_parameters() if p.grad is not None}


def copies(source: dict[str, tuple[Tensor, Tensor]], *, hidden_only: bool = False) -> Named:
    """Fresh parameters with their gradients."""
    named: Named = []
    for name, (weight, gradient) in source.items():
        if hidden_only and (weight.ndim < 2 or "embed" in name or "lm_head" in name):
            continue
        parameter = nn.Parameter(weight.clone())
        parameter.grad = gradient.clone()
        named.append((name, parameter))
    return named


def state_bytes(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of state per parameter, as allocated."""
    tensors = [value for state in optimizer.state.values() for value in _tensors(state)]
    entries = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / entries


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from _tensors(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _tensors(member)


def time_together(optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, float]:
    """Return the median seconds of a step of each; every round times a cycle of each in turn."""
    for optimizer in optimizers.values():
        for _ in range(CYCLE + 1):  # SOAP's first step makes its bases and does not count in its cycle
            optimizer.step()
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(ROUNDS):
        for name, optimizer in optimizers.items():
            started = time.perf_counter()
            for _ in range(CYCLE):
                optimizer.step()
            times[name].append((time.perf_counter() - started) / CYCLE)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, optimizers: dict[str, torch.optim.Optimizer], ratios: list[tuple[str, str]]) -> None:
    print(f"\n{title}")
    seconds = time_together(optimizers)
    for name, optimizer in optimizers.items():
        memory = state_bytes(optimizer)
        print(f"  {name:<36} {1e3 * seconds[name]:8.2f} ms a step   {memory:6.2f} bytes of state a parameter")
        ROWS.append({"what": title, "name": name, "seconds": seconds[name], "state_bytes": memory})
    for first, second in ratios:
        print(f"  {first} over {second}: {seconds[first] / seconds[second]:.2f}", flush=True)


class PublishedSoapProducts(torch.optim.Optimizer):
    """The matrix products of the published SOAP's step and nothing else.

    Each step rotates the gradient in, the update out, the momentum out and in, and forms both factors; every tenth
    makes diag(QᵀLQ), LQ and a QR of each side.
    """

    def __init__(self, named: Named) -> None:
        super().__init__([parameter for _, parameter in named], {})
        self.steps = 0
        self.bases = {p: [torch.linalg.qr(torch.randn(n, n))[0] for n in p.shape] for _, p in named if p.ndim == 2}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for parameter, (left, right) in self.bases.items():
            g = parameter.grad
            assert g is not None
            for _ in range(2):
                left.T @ g @ right
                left @ g @ right.T
            factors = g @ g.T, g.T @ g
            if self.steps % CYCLE == 0:
                for factor, basis in zip(factors, (left, right), strict=True):
                    basis.T @ factor @ basis
                    torch.linalg.qr(factor @ basis)
        self.steps += 1


class Float32Muon(torch.optim.Muon):
    """torch's Muon iterating in float32, for a comparison of like with like."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        keep, Tensor.bfloat16 = Tensor.bfloat16, lambda tensor: tensor.clone()  # type: ignore[method-assign,assignment]
        try:
            return super().step(closure)
        finally:
            Tensor.bfloat16 = keep  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the rows there")
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    source = gradients()
    print(f"{sum(weight.numel() for weight, _ in source.values()):,} parameters in {len(source)} tensors")

    def ours(name: str, *, hidden_only: bool = False, **hyper: Any) -> torch.optim.Optimizer:
        return make_optimizer(name, copies(source, hidden_only=hidden_only), lr=1e-5, **hyper)

    def torch_muon(kind: type[torch.optim.Muon]) -> torch.optim.Optimizer:
        hidden = [parameter for _, parameter in copies(source, hidden_only=True)]
        return kind(hidden, lr=1e-5, ns_steps=6, adjust_lr_fn="match_rms_adamw")

    hidden: dict[str, Any] = {"hidden_only": True, "ns_coefficients": "quintic"}
    report(
        "hidden matrices, six Newton-Schulz steps",
        {
            "muon, bfloat16": ours("muon", msign_dtype="bfloat16", **hidden),
            "torch.optim.Muon": torch_muon(torch.optim.Muon),
            "muon, float32": ours("muon", **hidden),
            "torch.optim.Muon in float32": torch_muon(Float32Muon),
        },
        [("muon, bfloat16", "torch.optim.Muon"), ("muon, float32", "torch.optim.Muon in float32")],
    )
    report(
        "all parameters",
        {
            "muon": ours("muon"),
            "muon-lite": ours("muon-lite"),
            "muon, bfloat16": ours("muon", msign_dtype="bfloat16"),
            "muon-lite, bfloat16": ours("muon-lite", msign_dtype="bfloat16"),
        },
        [("muon-lite", "muon"), ("muon-lite, bfloat16", "muon, bfloat16")],
    )
    from pytorch_optimizer import SOAP

    report(
        "all parameters, bases renewed every ten steps",
        {
            "soap": ours("soap"),
            "soap-lite": ours("soap-lite"),
            "pytorch_optimizer.SOAP": SOAP([p for _, p in copies(source)], lr=1e-5),
            "products of the published SOAP": PublishedSoapProducts(copies(source)),
        },
        [("soap", "pytorch_optimizer.SOAP"), ("soap", "products of the published SOAP"), ("soap-lite", "soap")],
    )
    report(
        "all parameters, element by element",
        {
            "adamw": ours("adamw"),
            "torch.optim.AdamW": torch.optim.AdamW([p for _, p in copies(source)], lr=1e-5, weight_decay=0.1),
            "adamw-lite": ours("adamw-lite"),
            "sgd": ours("sgd"),
        },
        [("adamw", "torch.optim.AdamW"), ("adamw-lite", "adamw")],
    )
    if chosen.json:
        chosen.json.write_text(json.dumps(ROWS, indent=1))


if __name__ == "__main__":
    main()
