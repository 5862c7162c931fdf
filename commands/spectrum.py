"""`lite-probe spectrum`: from a checkpoint to eigenpairs, density and trace, in files and on a page."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lite_probe.commands.measuring import Measuring
from lite_probe.commands.task import Opened

if TYPE_CHECKING:
    from lite_probe.results.spectrum import Spectrum


class SpectrumMeasuring(Measuring):
    """Measure the Hessian spectrum of a checkpoint.

    Both ends of the spectrum with a residual for every pair, density, trace and anisotropy, as files and as a
    page in probe/NAME. Killed or interrupted, the same command continues.
    """

    kind = "spectrum"
    examples = (
        "spectrum runs/gpt/ckpt.pt --data val.bin --per-block",
        "spectrum runs/gpt/ckpt.pt --data val.bin --per-block --format latex --table blocks",
    )
    own_options = (click.option("--verify", is_flag=True, help="Ask PyHessian for a second opinion."),)

    def vet(self) -> None:
        """Refuse what PyHessian does not know."""
        super().vet()
        if self.own["verify"]:
            from lite_probe.spectra import require_verifiable

            require_verifiable(self.request.operator)

    @classmethod
    def is_complete(cls, result: "Spectrum", own: Mapping[str, Any]) -> bool:
        """Whether the second opinion is there that was asked for."""
        return not own["verify"] or result.verification is not None

    def completed(self, opened: Opened, result: "Spectrum", folder: Path) -> "Spectrum":
        """Ask for the second opinion; it may be interrupted, and what it is about is saved by then."""
        from lite_probe.spectra import verify_spectrum

        with self.terminal.progress() as on_progress:
            return verify_spectrum(opened.task, result, on_progress=on_progress)


command = SpectrumMeasuring.command()
