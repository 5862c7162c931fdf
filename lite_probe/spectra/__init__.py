"""Eigenpairs, density and trace of symmetric operators, and of a task's curvature."""

from lite_probe.runtime.fingerprint import batches_digest
from lite_probe.spectra.compatibility import require_same_task
from lite_probe.spectra.lanczos import lanczos
from lite_probe.spectra.operator import OperatorRequest, measure_operator
from lite_probe.spectra.verify import require_verifiable, verify_spectrum

__all__ = [
    "OperatorRequest",
    "batches_digest",
    "lanczos",
    "measure_operator",
    "require_same_task",
    "require_verifiable",
    "verify_spectrum",
]
