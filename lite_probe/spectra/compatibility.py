"""Whether a saved spectrum is the one of a task: its eigenvectors mean nothing to another θ₀ or other batches."""

from lite_probe.errors import InputError
from lite_probe.operators.guards import require_precision
from lite_probe.results.spectrum import Spectrum
from lite_probe.runtime.fingerprint import batches_digest, landscape, task_fingerprint
from lite_probe.task import Task
from lite_probe.vectors.layout import ParameterLayout

_SAME_LOSS = 1e-4
_OTHER_BATCHES = "measure the spectrum again with the same --data, --seq-len, --batch-size, --batches and --seed"
_OTHER_WEIGHTS = "measure this checkpoint's spectrum, or choose its run directory with --out"


def require_same_task(spectrum: Spectrum, task: Task, *, loss: float | None = None) -> None:
    """Refuse a spectrum whose eigenvectors are not the Hessian's at this task's θ₀ and evaluation batches.

    The weights are told by the spectrum's own fingerprint, which hashed them: it is made anew from its configuration
    and from what the task holds now. A checkpoint's name would not see weights that were changed in memory.

    Args:
        spectrum: A saved one.
        task: What is to be measured with it.
        loss: The task's evaluation loss, once it is known: another criterion on the same weights and batches.

    Raises:
        InputError: If the task's parameters are in half precision, or the spectrum holds no eigenvectors, or is of
            another operator, number of parameters, split, precision, other batches or other weights; the message says
            which.

    Cost: one hash of weights and evaluation batches.
    """
    require_precision(task.model)
    origin, info, size = spectrum.provenance, task.info, ParameterLayout(list(task.model.named_parameters())).size
    if spectrum.operator != "hessian":
        raise InputError(
            f"expected a spectrum of the Hessian, got one of operator {spectrum.operator}",
            "measure it with lite-probe spectrum --operator hessian",
        )
    if spectrum.whole.num_parameters != size:
        raise InputError(
            f"expected a spectrum of {size:,} parameters, got one of {spectrum.whole.num_parameters:,}", _OTHER_WEIGHTS
        )
    if spectrum.eigenvectors is None:
        raise InputError("expected a spectrum with eigenvectors, got one without", "measure it again with --fresh")
    if origin.data_split != "evaluation":
        raise InputError(
            f"expected a spectrum of evaluation batches, got one of {origin.data_split} batches",
            "measure it with lite-probe spectrum --on evaluation",
        )
    precision = str(next(task.model.parameters()).dtype).removeprefix("torch.")
    if origin.precision != precision:
        raise InputError(
            f"expected a spectrum of {precision} weights, got one of {origin.precision}",
            "measure it again with the same --precision",
        )
    digest = batches_digest(task.evaluation)
    if origin.batches_digest != digest:
        raise InputError(
            f"expected a spectrum of these evaluation batches (digest {digest[:12]}), got one of others "
            f"({origin.batches_digest[:12]}): {origin.num_batches} × {origin.batch_size} of {origin.data_name}",
            _OTHER_BATCHES,
        )
    known = {**spectrum.config, **landscape(task, spectrum.loss, bool(spectrum.config.get("per_block")))}
    if task_fingerprint(task, "evaluation", known) != spectrum.fingerprint:
        raise InputError(
            f"expected a spectrum of these weights, those of {info.checkpoint_name}, got one of others, those of "
            f"{origin.checkpoint_name}",
            _OTHER_WEIGHTS,
        )
    # Another machine may round the loss differently, by far less than another criterion would change it.
    if loss is not None and abs(loss - spectrum.loss) > _SAME_LOSS * abs(spectrum.loss):
        raise InputError(
            f"expected a spectrum at the loss {loss:.6g} of this task, got one at {spectrum.loss:.6g}", _OTHER_WEIGHTS
        )
