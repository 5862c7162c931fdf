"""Whether a saved spectrum is the one of a task: its eigenvectors mean nothing to another θ₀ or other batches."""

from lite_probe.errors import InputError
from lite_probe.operators.layout import ParameterLayout
from lite_probe.results.spectrum import Spectrum
from lite_probe.spectra.fingerprint import batches_digest
from lite_probe.task import Task

_SAME_LOSS = 1e-4
_HINT = "measure the spectrum again with the same --data, --seq-len, --batch-size, --batches and --seed"


def require_same_task(spectrum: Spectrum, task: Task, *, loss: float | None = None) -> None:
    """Refuse a spectrum whose eigenvectors are not the Hessian's at this task's θ₀ and evaluation batches.

    Args:
        spectrum: A saved one.
        task: What is to be measured with it.
        loss: The task's evaluation loss, once it is known: a user's own task has no fingerprint of its weights.

    Raises:
        InputError: If it holds no eigenvectors, or is of another checkpoint, other batches, another split, another
            number of parameters or another operator; the message says which.

    Cost: one hash of the evaluation batches.
    """
    origin, info = spectrum.provenance, task.info
    size = ParameterLayout(list(task.model.named_parameters())).size
    if spectrum.operator != "hessian":
        raise InputError(f"expected a spectrum of the Hessian, got one of operator {spectrum.operator}", _HINT)
    if spectrum.whole.num_parameters != size:
        raise InputError(
            f"expected a spectrum of {size:,} parameters, got one of {spectrum.whole.num_parameters:,}", _HINT
        )
    if origin.checkpoint_fingerprint != info.checkpoint_fingerprint:
        raise InputError(
            f"expected a spectrum of checkpoint {info.checkpoint_name} ({info.checkpoint_fingerprint[:12]}), got one "
            f"of {origin.checkpoint_name} ({origin.checkpoint_fingerprint[:12]})",
            "measure this checkpoint's spectrum, or choose its run directory with --out",
        )
    if origin.data_split != "evaluation":
        raise InputError(f"expected a spectrum of evaluation batches, got one of {origin.data_split} batches", _HINT)
    digest = batches_digest(task.evaluation)
    if origin.batches_digest != digest:
        raise InputError(
            f"expected a spectrum of these evaluation batches (digest {digest[:12]}), got one of others "
            f"({origin.batches_digest[:12]}): {origin.num_batches} × {origin.batch_size} of {origin.data_name}",
            _HINT,
        )
    # Another machine may round the loss differently, by far less than another θ₀ would change it.
    if loss is not None and abs(loss - spectrum.loss) > _SAME_LOSS * abs(spectrum.loss):
        raise InputError(
            f"expected a spectrum at the loss {loss:.6g} of these weights, got one at {spectrum.loss:.6g}", _HINT
        )
    if spectrum.eigenvectors is None:
        raise InputError("expected a spectrum with eigenvectors, got one without", "measure it again with --fresh")
