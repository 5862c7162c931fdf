import json

import numpy as np
import pytest

from lite_probe.commands.summary import block_table, figures, json_object, verification_line
from lite_probe.results.estimate import Estimate
from lite_probe.results.provenance import Note, Provenance
from lite_probe.results.spectrum import OperatorSpectrum, Spectrum, Verification

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


def operator_spectrum(*, top: int = 10, bottom: int = 1, probes: bool = True) -> OperatorSpectrum:
    nodes = np.array([0.5, 1.0, 0.25, 1.5]) if probes else np.zeros(0)
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
        weights=np.full(len(nodes), 0.5),
        probe_index=np.array([0, 0, 1, 1]) if probes else np.zeros(0, dtype=np.int64),
        atoms=np.zeros(0),
        trace=Estimate(value=200.0, stderr=4.0, low=190.0, high=210.0, num_samples=4),
        trace_h2=Estimate(value=400.0, stderr=8.0, low=380.0, high=420.0, num_samples=4),
        num_hvps=84,
    )


def spectrum(whole: OperatorSpectrum, *, blocks: bool = False, verified: bool | None = None) -> Spectrum:
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
        loss=1.4721,
        gradient_norm=0.5,
        whole=whole,
        blocks={"emb": whole, "qk": whole} if blocks else {},
        verification=verification,
        config={},
        fingerprint="f",
        notes=(Note(code="unused-parameters", message="expected all, got some"),),
        provenance=PROVENANCE,
    )


def test_figures_carry_their_errors() -> None:
    assert figures(spectrum(operator_spectrum())) == [
        "loss 1.472",
        "λ₁ 10.0000 ± 0.0010",
        "λ₁₀ 1.0000 ± 0.0010",
        "λmin −1.0000 ± 0.0020",
        "trace 200.0 ± 4.0",
        "λ₁/median|λ| 13",
        "effective rank 100.0 ± 4.5",
    ]


def test_figures_of_what_was_not_asked_are_left_out() -> None:
    found = figures(spectrum(operator_spectrum(top=1, bottom=0, probes=False)))
    assert [text.split()[0] for text in found] == ["loss", "λ₁", "trace", "λ₁/median|λ|", "effective"]
    assert "λ₁/median|λ| –" in found


def test_the_block_table_has_a_row_for_every_block() -> None:
    header, rows = block_table(spectrum(operator_spectrum(), blocks=True).blocks)
    assert [row[0] for row in rows] == ["emb", "qk"]
    assert {len(row) for row in rows} == {len(header)}


@pytest.mark.parametrize(("verified", "verdict"), [(True, "PyHessian 0.1 agrees"), (False, "PyHessian 0.1 DISAGREES")])
def test_the_second_opinion_is_told_either_way(verified: bool, verdict: str) -> None:
    verification = spectrum(operator_spectrum(), verified=verified).verification
    assert verification is not None
    line = verification_line(verification)
    assert line.startswith(verdict)
    assert "205.0 ± 5.0 here 200" in line


def test_the_json_object_holds_what_the_readme_promises() -> None:
    found = json.loads(
        json.dumps(json_object(spectrum(operator_spectrum(), blocks=True, verified=True)), allow_nan=False)
    )
    per_operator = {
        "num_parameters",
        "num_hvps",
        "eigenvalues",
        "residual_norms",
        "trace",
        "trace_h2",
        "effective_rank",
        "median_abs_eigenvalue",
        "most_negative_eigenvalue",
        "loss",
    }
    assert per_operator | {"blocks", "notes", "wall_seconds"} <= found.keys()
    assert per_operator <= found["blocks"]["qk"].keys()
    assert found["trace"] == {"value": 200.0, "stderr": 4.0}
    assert found["eigenvalues"][0] == 10.0
    assert found["notes"] == [{"code": "unused-parameters", "message": "expected all, got some"}]
