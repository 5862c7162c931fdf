"""What can be asked of a sharp subspace and LITE's proxies of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lite_probe.measurements.requests import Request, given, option

if TYPE_CHECKING:
    from lite_probe.results.spectrum import Spectrum


@dataclass(frozen=True, slots=True, kw_only=True)
class SubspaceRequest(Request):
    """How sharp directions lie: the gradient's share, how firm they are, and whether LITE's proxies find them.

    Args:
        spectrum: Of the task, with eigenvectors.
        others: (name, spectrum) of other checkpoints of the same model, to compare with.
        label: This checkpoint's name in those comparisons.
        size: k, sharp directions; None takes all converged top pairs of positive curvature.
        probes: Random probes of the calibration; each costs one product, whatever is calibrated.
        warm_batches: W, at fixed θ₀.
        optimizers: LITE variants whose proxies are calibrated; a base optimizer has a proxy but no projector. None
            takes AdamW's, Muon's and SOAP's, as far as they can take the model.
        overlaps: Also compare the subspace with that of halves of the batches, and with the Gauss–Newton matrix's.
        preconditioned: Also measure the spectrum in each optimizer's metric, and the sharpness in its own norm.
    """

    kind: ClassVar[str] = "subspace"

    spectrum: "Spectrum | None" = given()
    others: "Sequence[tuple[str, Spectrum]]" = given(())
    label: str = given("")
    size: int | None = option(None, "Sharp directions; by default all that the spectrum has.", least=1, metavar="K")
    probes: int = option(16, "Random probes of the calibration.", least=2)
    warm_batches: int = option(50, "Training batches that optimizer states are warmed on.", least=2)
    optimizers: Sequence[str] | None = None
    overlaps: bool = True
    preconditioned: bool = True

    def train_batches(self, batches: int) -> int:
        """Return the training batches that it takes: those to warm on."""
        return self.warm_batches
