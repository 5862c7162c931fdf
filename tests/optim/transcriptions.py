"""MATH 2.3 to 2.5 written out for one tensor at a time, in the order of the formulas; the library shares none of it."""

import math
from typing import Any

import torch
from torch import Tensor

POLAR_EXPRESS = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]


def slow_msign(g: Tensor, steps: int = 6) -> Tensor:
    x = g / (1.01 * g.norm() + 1e-8)
    if g.shape[0] > g.shape[1]:
        x = x.T
    for index in range(steps):
        a, b, c = POLAR_EXPRESS[min(index, 7)]
        if index < 7:
            a, b, c = a / 1.01, b / 1.01**3, c / 1.01**5
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


class SlowMask:
    """The soft mask of 2.4 with its two thresholds."""

    def __init__(self) -> None:
        self.low, self.high = 0.5, 1.0

    def __call__(self, v: Tensor, rho: float, smooth_ratio: float) -> Tensor:
        mean = v.mean()
        low, high = self.low * mean, self.high * mean
        p = torch.empty_like(v)
        for index in range(v.numel()):
            value = v.flatten()[index]
            if value >= high:
                p.view(-1)[index] = 1.0
            elif value < low:
                p.view(-1)[index] = 0.0
            else:
                p.view(-1)[index] = (value - low) / (high - low + 1e-12)
        f_high, f_low = float((v >= high).double().mean()), float((v >= low).double().mean())
        s = min(1 - rho, smooth_ratio)
        self.low = self.low * 1.05 if f_low > rho + s else self.low * 0.95
        self.high = self.high * 1.05 if f_high > rho else self.high * 0.95
        self.low = min(self.low, 0.95 * self.high)
        if rho < 1e-5:
            return torch.zeros_like(v)
        if rho > 1 - 1e-5:
            return torch.ones_like(v)
        return p


class SlowAdamWLite:
    """2.4 with the damping of 2: u = (I − Q)F⁻¹(m + β₁g) + χQF⁻¹(m + β₂g)."""

    def __init__(self, w: Tensor, hyper: dict[str, Any]) -> None:
        self.w, self.h, self.k = w.clone(), hyper, 0
        self.m, self.v, self.mask = torch.zeros_like(w), torch.zeros_like(w), SlowMask()

    def step(self, g: Tensor, *, beta1: float, beta2: float, chi: float) -> None:
        h, b1, b2 = self.h, self.h["adamw_beta1"], self.h["adamw_beta2"]
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        q = 1 - self.mask(self.v, h["sharp_ratio"], h["smooth_ratio"])
        scale = self.v.sqrt() + h["eps"]
        u = (1 - q) * (self.m + beta1 * g) / scale + chi * q * (self.m + beta2 * g) / scale
        bias = (1 - b1 ** (self.k + 1)) / math.sqrt(1 - b2 ** (self.k + 1))
        eta, lam = h["lr"], h["weight_decay"]
        self.w = (1 - eta * lam) * self.w - eta * lam * (chi - 1) * q * self.w - eta / bias * u
        self.k += 1


class SlowSoapLite:
    """2.5: Adam in the eigenbasis, Algorithm 1 there; χ = 1 and β = 0 give SOAP."""

    def __init__(self, w: Tensor, hyper: dict[str, Any]) -> None:
        self.w, self.h, self.k = w.clone(), hyper, 0
        rows, columns = w.shape
        self.m, self.v, self.mask = torch.zeros_like(w), torch.zeros_like(w), SlowMask()
        limit = hyper["max_precond_dim"]
        self.left = torch.zeros(rows, rows, dtype=w.dtype) if rows <= limit else None
        self.right = torch.zeros(columns, columns, dtype=w.dtype) if columns <= limit else None
        self.q_left = self.q_right = torch.empty(0)

    def into(self, x: Tensor) -> Tensor:
        x = self.q_left.T @ x if self.left is not None else x
        return x @ self.q_right if self.right is not None else x

    def out_of(self, x: Tensor) -> Tensor:
        x = self.q_left @ x if self.left is not None else x
        return x @ self.q_right.T if self.right is not None else x

    def step(self, g: Tensor, *, beta1: float, beta2: float, chi: float) -> None:
        h, (b1, b2) = self.h, self.h["betas"]
        if self.k > 0:
            rotated = self.into(g)
            self.m = b1 * self.m + (1 - b1) * rotated
            self.v = b2 * self.v + (1 - b2) * rotated**2
            q = 1 - self.mask(self.v, h["sharp_ratio"], h["smooth_ratio"])
            scale = self.v.sqrt() + h["eps"]
            u = (1 - q) * (self.m + beta1 * rotated) / scale + chi * q * (self.m + beta2 * rotated) / scale
            eta, lam = h["lr"], h["weight_decay"]
            w = self.w - self.out_of(eta * math.sqrt(1 - b2**self.k) / (1 - b1**self.k) * u)
            self.w = w - eta * lam * (w + (chi - 1) * self.out_of(q * self.into(w)))
        self.update_bases(g)
        self.k += 1

    def update_bases(self, g: Tensor) -> None:
        beta = self.h["betas"][1] if self.h["shampoo_beta"] is None else self.h["shampoo_beta"]
        for side, outer in (("left", g @ g.T), ("right", g.T @ g)):
            if getattr(self, side) is not None:
                setattr(self, side, beta * getattr(self, side) + (1 - beta) * outer)
        if self.k == 0:
            for side in ("left", "right"):
                if getattr(self, side) is not None:
                    setattr(self, f"q_{side}", torch.linalg.eigh(getattr(self, side))[1].flip(1))
        elif self.k % self.h["precondition_frequency"] == 0:
            moments = self.out_of(self.m)
            for axis, side in enumerate(("left", "right")):
                factor, basis = getattr(self, side), getattr(self, f"q_{side}")
                if factor is None:
                    continue
                order = torch.diag(basis.T @ factor @ basis).argsort(descending=True)
                self.v = self.v.index_select(axis, order)
                setattr(self, f"q_{side}", torch.linalg.qr(factor @ basis[:, order])[0])
            self.m = self.into(moments)


class SlowMuonLite:
    """2.3; ρ ≤ 1e-6 gives Muon. With `sharp_rank` S is of the leading singular directions, by an exact solver."""

    def __init__(self, w: Tensor, hyper: dict[str, Any]) -> None:
        self.w, self.h = w.clone(), hyper
        self.m, self.tau = torch.zeros_like(w), 1 / math.sqrt(min(w.shape))

    def step(self, g: Tensor, *, beta1: float, beta2: float, chi: float) -> None:
        h, theta, shorter = self.h, self.h["momentum"], min(g.shape)
        self.m = theta * self.m + (1 - theta) * g
        full = self.m + g * (1 - theta) / theta
        o, d = slow_msign(full), slow_msign(g)
        r = min(math.floor(h["sharp_ratio"] * shorter) + 1, shorter - 1)
        s = 0.5 * (o + slow_msign(full / (self.tau * full.norm() + 1e-9) - o))
        self.tau = min(1.0, self.tau * 1.05) if float(s.norm()) > math.sqrt(r) else min(1.0, self.tau * 0.95)
        rank = h.get("sharp_rank")
        if rank:
            left, _, right = torch.linalg.svd(full, full_matrices=False)
            s = left[:, : min(rank, shorter - 1)] @ right[: min(rank, shorter - 1)]
        q = torch.eye(g.shape[1], dtype=g.dtype) - s.T @ s
        if rank or h["sharp_ratio"] > 1e-6:
            u = o + beta1 * d + (beta2 - beta1) * d @ q
            u = u + (chi - 1) * u @ q
        else:
            u, chi = o, 1.0
        eta, lam = h["lr"], h["weight_decay"]
        scale = 0.2 * eta * math.sqrt(max(g.shape))
        self.w = (1 - eta * lam) * self.w - eta * lam * (chi - 1) * self.w @ q - scale * u


class SlowSamuon:
    """SAMuon: the first singular direction by itself, the others γ times as long; 2.3's decay. Polar factors exact."""

    def __init__(self, w: Tensor, hyper: dict[str, Any]) -> None:
        self.w, self.h, self.m = w.clone(), hyper, torch.zeros_like(w)

    def step(self, g: Tensor) -> None:
        theta, gamma, eta, lam = (self.h[name] for name in ("momentum", "flat_lr_ratio", "lr", "weight_decay"))
        self.m = theta * self.m + (1 - theta) * g
        left, _, right = torch.linalg.svd(self.m + g * (1 - theta) / theta, full_matrices=False)
        first, v = torch.outer(left[:, 0], right[0]), right[0]
        flat = self.w - torch.outer(self.w @ v, v)
        update = first + gamma * (left @ right - first)
        self.w = (
            (1 - eta * lam) * self.w - eta * lam * (gamma - 1) * flat - 0.2 * eta * math.sqrt(max(g.shape)) * update
        )
