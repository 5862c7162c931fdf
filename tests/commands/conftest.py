import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from lite_probe.results.estimate import Estimate
from lite_probe.results.provenance import Note, Provenance
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum, Verification
from tests.commands.running import replay, subspace


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """Takes `--threads` of a command run in this process back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def save_llama(folder: Path, seed: int, hidden: int = 16) -> Path:
    """Save a byte-level Llama of one layer, as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level Llama of one layer and 16 hidden units, as a Hugging Face folder."""
    return save_llama(tmp_path_factory.mktemp("checkpoints") / "tiny", seed=5)


@pytest.fixture(scope="session")
def other_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other weights."""
    return save_llama(tmp_path_factory.mktemp("checkpoints") / "other", seed=6)


@pytest.fixture(scope="session")
def wider_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of more parameters."""
    return save_llama(tmp_path_factory.mktemp("checkpoints") / "wider", seed=5, hidden=24)


@pytest.fixture(scope="session")
def adamw_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama trained for four steps with AdamW, whose state lies beside its weights."""
    from lite_probe.training import train_byte_llama

    record = train_byte_llama(
        tmp_path_factory.mktemp("checkpoints"),
        steps=4,
        save_at=(4,),
        eval_batches=1,
        hidden=16,
        layers=1,
        heads=2,
        seq_len=16,
        batch_size=2,
        learning_rate=0.003,
    )
    return Path(record.checkpoints[0])


@pytest.fixture(scope="session")
def probed(tiny_llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, Result]:
    """A run directory with spectrum, subspace and replay, and what the commands said; to be left as it is."""
    out = tmp_path_factory.mktemp("probe") / "tiny"
    return out, subspace(tiny_llama, text, out), replay(tiny_llama, text, out)


@pytest.fixture
def run_folder(probed: tuple[Path, Result, Result], tmp_path: Path) -> Path:
    """A copy of a run directory with everything in it."""
    return Path(shutil.copytree(probed[0], tmp_path / "run"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough text for a few small batches."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"line {index}: {index * index} is a square.\n" for index in range(800)))
    return path


PROVENANCE = Provenance(
    lite_probe_version="0",
    torch_version="0",
    transformers_version="0",
    python_version="0",
    platform="",
    device="cpu",
    num_threads=2,
    precision="float32",
    seed=0,
    command="lite-probe spectrum",
    started_at="2026-01-01T00:00:00Z",
    wall_seconds=12.5,
    peak_memory_bytes=100,
    checkpoint_name="tiny",
    checkpoint_format="huggingface",
    checkpoint_fingerprint="0",
    checkpoint_step=None,
    architecture="",
    data_name="text",
    data_split="evaluation",
    batches_digest="0",
    num_batches=1,
    batch_size=1,
    seq_len=8,
    num_tokens=8,
)


def operator_spectrum(*, top: int, bottom: int, probes: bool) -> OperatorSpectrum:
    nodes = np.array([0.5, 0.75, 1.0, 0.25, 0.75, 1.5]) if probes else np.zeros(0)
    return OperatorSpectrum(
        num_parameters=1000,
        eigenvalues=np.arange(top, 0.0, -1.0),
        residual_norms=np.full(top, 1e-3),
        lower_eigenvalues=-np.arange(bottom, 0.0, -1.0),
        lower_residual_norms=np.full(bottom, 2e-3),
        converged=np.ones(top, dtype=bool),
        lower_converged=np.ones(bottom, dtype=bool),
        tolerance=1e-3,
        num_requested=top,
        stop_reason="converged",
        nodes=nodes,
        weights=np.full(len(nodes), 1 / 3),
        probe_index=np.array([0, 0, 0, 1, 1, 1]) if probes else np.zeros(0, dtype=np.int64),
        deflated_eigenvalues=np.zeros(0),
        trace=Estimate(value=200.0, stderr=4.0, low=190.0, high=210.0, num_samples=4),
        trace_h2=Estimate(value=400.0, stderr=8.0, low=380.0, high=420.0, num_samples=4),
        num_hvps=84,
    )


def spectrum(
    *,
    top: int = 10,
    bottom: int = 1,
    probes: bool = True,
    blocks: bool = False,
    verified: bool | None = None,
    step: int | None = None,
    loss: float = 1.4721,
) -> Spectrum:
    whole = operator_spectrum(top=top, bottom=bottom, probes=probes)
    verification = None
    if verified is not None:
        verification = Verification(
            library="PyHessian 0.1",
            eigenvalues=whole.eigenvalues[:2] + 0.01,
            eigenvalue_errors=np.full(2, 0.02),
            our_eigenvalues=whole.eigenvalues[:2],
            trace=Estimate(value=205.0, stderr=5.0, low=190.0, high=220.0, num_samples=9),
            our_trace=whole.trace,
            eigenvalues_agree=verified,
            trace_agrees=True,
            num_hvps=30,
            wall_seconds=1.0,
        )
    return Spectrum(
        operator="hessian",
        loss=loss,
        gradient_norm=0.5,
        whole=whole,
        blocks={"emb": whole, "qk": whole} if blocks else {},
        verification=verification,
        config={},
        fingerprint="f",
        notes=(Note(code="unused-parameters", message="expected all, got some"),),
        provenance=replace(PROVENANCE, checkpoint_step=step),
    )


@pytest.fixture
def make_spectrum() -> Callable[..., Spectrum]:
    """Returns made-up spectra with round numbers."""
    return spectrum
