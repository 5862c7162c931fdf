"""What can be asked of a spectrum."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lite_probe.errors import UsageError
from lite_probe.measurements.requests import Request, option

PRODUCTS = ("auto", "float32", "tf32", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumRequest(Request):
    """Both ends of the spectrum, density and trace of a task's curvature.

    Args:
        split: Batches to measure on.
        top: Largest eigenpairs, algebraically.
        bottom: Smallest eigenpairs.
        probes: Random probes behind density and trace.
        probe_steps: Lanczos steps of each probe.
        tolerance: A pair has converged when ‖Hv − λv‖ ≤ tolerance·|λ|, or at the rounding floor.
        operator: "hessian", or "ggn" for Gauss–Newton.
        method: "autograd", or "finite-differences" for a Hessian without double backward.
        per_block: Also every block alone, the rest held fixed: its three largest pairs, its smallest, density and
            trace.
        max_products: Products that the pairs of one operator may take.
        products: What products are multiplied in: "float32"; "tf32" or "bf16", whose error is measured and mended; or
            "auto", the one of the two that pays on a device with units for it, else float32.
    """

    kind: ClassVar[str] = "spectrum"

    split: Literal["evaluation", "train"] = option(
        "evaluation", "Which batches to measure on.", flag="--on", among=("evaluation", "train")
    )
    top: int = option(10, "Largest eigenpairs.", least=1)
    bottom: int = option(3, "Smallest eigenpairs.", least=0)
    probes: int = option(4, "Random probes of density and trace.", least=2)
    tolerance: float = option(
        1e-3, "A pair has converged when its residual is below this share of |λ|.", flag="--tol", below=1.0
    )
    operator: Literal["hessian", "ggn"] = option(
        "hessian", "The Hessian, or the generalised Gauss–Newton matrix.", among=("hessian", "ggn")
    )
    method: Literal["autograd", "finite-differences"] = option(
        "autograd", "How Hessian products are taken.", among=("autograd", "finite-differences")
    )
    per_block: bool = option(False, "Also the spectrum of every block alone.")
    probe_steps: int = 10
    max_products: int | None = None
    products: Literal["auto", "float32", "tf32", "bf16"] = "auto"

    def _check(self) -> None:
        for name, value, least in (("probe_steps", self.probe_steps, 2), ("max_products", self.max_products, 1)):
            if value is not None and value < least:
                raise UsageError(f"expected {name} of at least {least}, got {value}")
        if self.products not in PRODUCTS:
            raise UsageError(f"expected products in one of {', '.join(PRODUCTS)}, got {self.products!r}")
        if self.method == "finite-differences" and self.products in ("tf32", "bf16"):
            raise UsageError(
                f"expected finite differences in float32, got {self.products}: they would magnify its rounding",
                "leave out one of the two",
            )
        if self.operator == "ggn" and self.method == "finite-differences":
            raise UsageError("expected finite differences of the Hessian, got ggn", "leave out one of the two")

    def train_batches(self, batches: int) -> int:
        """Return the training batches that it takes: as many as of the others, where it is measured on them."""
        return batches if self.split == "train" else 0
