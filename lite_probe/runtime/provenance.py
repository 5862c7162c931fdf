"""What was run, gathered from a task and its machine."""

import platform
from collections.abc import Mapping

import torch

from lite_probe.results.provenance import Provenance
from lite_probe.runtime.fingerprint import batches_digest
from lite_probe.runtime.memory import peak_memory
from lite_probe.task import Split, Task
from lite_probe.version import __version__


def provenance_of(
    task: Task,
    *,
    split: Split,
    seed: int,
    count: int,
    command: str,
    started_at: str,
    seconds: float,
    details: Mapping[str, str],
) -> Provenance:
    """Return the provenance of a measurement that ends now.

    Args:
        task: What was measured.
        split: The batches it was measured on.
        seed: The user's.
        count: Tokens or samples behind the loss.
        command: The command line, or empty.
        started_at: ISO 8601, UTC.
        seconds: Wall-clock time.
        details: Whatever else helps to run it again.
    """
    import transformers

    info, device = task.info, task.device
    return Provenance(
        lite_probe_version=__version__,
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
        python_version=platform.python_version(),
        platform=platform.platform(terse=True),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        num_threads=torch.get_num_threads(),
        precision=str(next(task.model.parameters()).dtype).removeprefix("torch."),
        seed=seed,
        command=command,
        started_at=started_at,
        wall_seconds=seconds,
        peak_memory_bytes=peak_memory(device),
        checkpoint_name=info.checkpoint_name,
        checkpoint_format=info.checkpoint_format,
        checkpoint_fingerprint=info.checkpoint_fingerprint,
        checkpoint_step=info.checkpoint_step,
        architecture=info.architecture,
        data_name=info.data_name,
        data_split=split,
        batches_digest=batches_digest(task.batches(split)),
        num_batches=len(task.batches(split)),
        batch_size=info.batch_size,
        seq_len=info.seq_len,
        num_tokens=count,
        details=details,
    )
