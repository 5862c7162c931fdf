"""Eigenpairs, density and trace of symmetric operators, and of a task's curvature."""

from lite_probe.runtime.fingerprint import batches_digest
from lite_probe.spectra.compatibility import require_same_task
from lite_probe.spectra.lanczos import lanczos
from lite_probe.spectra.measure import discard_state, measure_spectrum, plan_spectrum
from lite_probe.spectra.operator import SpectrumRequest, measure_operator
from lite_probe.spectra.plan import SpectrumPlan
from lite_probe.spectra.verify import require_verifiable, verify_spectrum

__all__ = [
    "SpectrumPlan",
    "SpectrumRequest",
    "batches_digest",
    "discard_state",
    "lanczos",
    "measure_operator",
    "measure_spectrum",
    "plan_spectrum",
    "require_same_task",
    "require_verifiable",
    "verify_spectrum",
]
