"""Questions for every optimizer: repeatable, converging, resumable, in its band; and odd numbers, types and uses."""

import copy
import io
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lite_probe.errors import InputError, NumericsError, UsageError
from lite_probe.optim import OPTIMIZERS, LiteOptimizer, make_optimizer, restore_state
from lite_probe.optim.diagonal import Diagonal
from lite_probe.optim.lite import _FiniteCheck
from lite_probe.results.blocks import BlockPart
from tests import models
from tests.checkpoints import writers

pytestmark = pytest.mark.slow

RAMPS: dict[str, Any] = {"schedule": "cosine", "total_steps": 40, "warmup_steps": 3, "min_lr_ratio": 0.1}
# Small enough that SOAP renews its bases in a short run.
OFTEN: dict[str, Any] = {"precondition_frequency": 3}


def make(name: str, named: Any, lr: float = 1e-2, **hyper: Any) -> LiteOptimizer:
    ramps = RAMPS if name.endswith("-lite") else {}
    often = OFTEN if name.startswith("soap") else {}
    return make_optimizer(name, named, **{"lr": lr, **ramps, **often, **hyper})


def train(model: nn.Module, optimizer: LiteOptimizer, steps: range) -> list[float]:
    """Train a causal language model on tokens drawn per step; return the losses."""
    losses = []
    for step in steps:
        tokens = writers.tokens(seed=step)
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


# -- the four questions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_repeatable_bitwise(name: str) -> None:
    runs = []
    for _ in range(2):
        model = writers.make_model("qwen2_moe")
        train(model, make(name, model.named_parameters()), range(7))
        runs.append(weights(model))
    assert same(*runs)
    assert not same(runs[0], weights(writers.make_model("qwen2_moe")))


@pytest.mark.parametrize(
    ("name", "lr"),
    [
        ("sgd", 0.5),
        ("samuon", 5e-3),
        ("adamw", 1e-2),
        ("adamw-lite", 1e-2),
        ("muon", 1e-2),
        ("muon-lite", 1e-2),
        ("soap", 1e-2),
        ("soap-lite", 3e-3),  # its first steps are tens of rates long, since β₂ = 1 from the second on
    ],
)
def test_it_learns_a_small_real_task(name: str, lr: float) -> None:
    """The walk of `models.token_batches`: each token is one of three, so log 3 is what can be reached."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = models._llama()
    batches = models.token_batches(11)
    optimizer = make_optimizer(name, model.named_parameters(), lr=lr, weight_decay=0.0)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = torch.stack([model(batch, labels=batch).loss for batch in batches]).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(11), rel=0.1)
    assert losses[-1] < math.log(3) + 0.3


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt2"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_goes_on_bitwise_after_saving(name: str, family: str) -> None:
    whole = writers.make_model(family)
    optimizer = make(name, whole.named_parameters())
    train(whole, optimizer, range(5))
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    rest = train(whole, optimizer, range(5, 12))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = writers.make_model(family, seed=3)
    resumed.load_state_dict(saved["model"])
    again = make(name, resumed.named_parameters(), lr=7.0)  # the saved rate counts
    again.load_state_dict(saved["optimizer"])
    assert train(resumed, again, range(5, 12)) == rest
    assert same(weights(whole), weights(resumed))
    first, second = optimizer.state_dict(), again.state_dict()
    assert first["param_groups"] == second["param_groups"]
    assert all(group["step"] == 12 for group in second["param_groups"])


RESUME = """
import sys, torch
from tests.checkpoints import writers
from tests.optim.test_optimizers import make, train
saved = torch.load(sys.argv[1], weights_only=True)
model = writers.make_model("llama")
model.load_state_dict(saved["model"])
optimizer = make("muon-lite", model.named_parameters())
optimizer.load_state_dict(saved["optimizer"])
train(model, optimizer, range(4, 8))
torch.save(model.state_dict(), sys.argv[2])
"""


def test_it_goes_on_bitwise_in_another_process(tmp_path: Path) -> None:
    model = writers.make_model("llama")
    optimizer = make("muon-lite", model.named_parameters())
    train(model, optimizer, range(4))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "saved.pt")
    train(model, optimizer, range(4, 8))
    command = [sys.executable, "-c", RESUME, str(tmp_path / "saved.pt"), str(tmp_path / "resumed.pt")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    resumed = torch.load(tmp_path / "resumed.pt", weights_only=True)
    assert all(torch.equal(resumed[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("coefficients", ["polar-express", "quintic"])
def test_a_muon_update_has_singular_values_in_its_band(coefficients: str) -> None:
    """See `test_msign`: polar-express is within 1% of 1 after six steps, the quintic within [0.68, 1.13]."""
    low, high = {"polar-express": (0.99, 1.01), "quintic": (0.65, 1.15)}[coefficients]
    generator = torch.Generator().manual_seed(0)
    for shape in [(24, 24), (12, 40), (40, 12)]:
        weight = nn.Parameter(torch.zeros(shape))
        optimizer = make_optimizer(
            "muon", [("mlp.up_proj.weight", weight)], lr=1e-2, ns_coefficients=coefficients, weight_decay=0.0
        )
        weight.grad = torch.randn(shape, generator=generator)
        optimizer.step()
        # RMS-aligned: 0.2·lr·√max(m, n) times an orthogonal matrix has the root mean square 0.2·lr.
        values = torch.linalg.svdvals(weight.detach().double()) / (0.2 * 1e-2 * math.sqrt(max(shape)))
        assert low < float(values.min())
        assert float(values.max()) < high
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 1e-2, rel=0.2)


# -- gradients that are odd --------------------------------------------------------------------------------------


def two_matrices(dtype: torch.dtype = torch.float32) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(2)
    named = {
        "layers.0.mlp.up_proj.weight": (8, 4),
        "layers.1.mlp.up_proj.weight": (8, 4),
        "norm.weight": (4,),
        "lm_head.weight": (8, 4),
    }
    return [(key, nn.Parameter(torch.randn(shape, generator=generator).to(dtype))) for key, shape in named.items()]


def give(named: list[tuple[str, nn.Parameter]], make_gradient: Callable[[nn.Parameter], Tensor | None]) -> None:
    for _, parameter in named:
        parameter.grad = make_gradient(parameter)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-30, 1e-12, 1e15])
def test_no_gradient_is_too_small_or_too_large(name: str, scale: float) -> None:
    named = two_matrices()
    before = [parameter.detach().clone() for _, parameter in named]
    optimizer = make(name, named, weight_decay=0.0, lr=1e-2 if name != "sgd" else 1e-2 / max(scale, 1.0))
    generator = torch.Generator().manual_seed(4)
    for _ in range(5):
        give(named, lambda p: torch.randn(p.shape, generator=generator) * scale)
        optimizer.step()
    for (key, parameter), old in zip(named, before, strict=True):
        assert torch.isfinite(parameter).all(), key
        moved = float((parameter.detach() - old).abs().max())
        assert moved < 5.0, key
        if scale < 1e-20:
            # Below ε and the floor of msign a gradient is noise, and makes no step of the usual size.
            assert moved < 1e-6, key


@pytest.mark.parametrize("name", ["muon-lite", "soap-lite", "adamw-lite"])
def test_rows_without_gradient_do_not_move(name: str) -> None:
    """Tokens that never occur have exactly zero gradients; rounding must not be normalised to full steps."""
    weight = nn.Parameter(torch.ones(32, 8))
    optimizer = make(name, [("mlp.up_proj.weight", weight)], weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        weight.grad = torch.randn(32, 8, generator=generator) * 0.1
        weight.grad[20:] = 0.0
        optimizer.step()
    assert float((weight.detach()[:20] - 1).abs().max()) > 5e-3
    assert float((weight.detach()[20:] - 1).abs().max()) < 1e-4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_gradient_waits(name: str) -> None:
    """Those that have one move as if they were alone; the waiting one keeps its own count."""
    together, alone = two_matrices(), two_matrices()[:1]
    optimizers = make(name, together), make(name, alone)
    generator = torch.Generator().manual_seed(6)
    for step in range(8):
        gradient = torch.randn(8, 4, generator=generator)
        together[0][1].grad, alone[0][1].grad = gradient, gradient.clone()
        for _, parameter in together[1:]:
            parameter.grad = None if step < 4 else torch.ones_like(parameter)
        if step == 3:
            assert torch.equal(together[1][1], two_matrices()[1][1])
            assert torch.equal(together[0][1], alone[0][1])
        for optimizer in optimizers:
            optimizer.step()
    state = optimizers[0].state
    assert [state[parameter]["step"] for _, parameter in together] == [8, 4, 4, 4]
    # A stack of two rounds its products as one alone does, or differs in the last bits.
    assert torch.allclose(together[0][1], alone[0][1], atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e20])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    named = two_matrices()
    optimizer = make(name, named)
    give(named, torch.ones_like)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()), [parameter.detach().clone() for _, parameter in named]
    named[1][1].grad[3, 2] = bad  # type: ignore[index]
    message = r"below 1e\+19, got more or NaN in that of layers\.1\.mlp\.up_proj\.weight; the parameters are"
    with pytest.raises(NumericsError, match=message):
        optimizer.step()
    assert all(torch.equal(parameter, old) for (_, parameter), old in zip(named, before[1], strict=True))
    assert same_states(optimizer.state_dict(), before[0])
    give(named, lambda p: torch.full_like(p, bad))
    with pytest.raises(NumericsError, match=r"that of (\S+, ){3}\S+; the parameters"):
        optimizer.step()


def same_states(first: dict[str, Any], second: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)

    if first["param_groups"] != second["param_groups"] or first["state"].keys() != second["state"].keys():
        return False
    return all(
        own.keys() == second["state"][index].keys()
        and all(equal(value, second["state"][index][key]) for key, value in own.items())
        for index, own in first["state"].items()
    )


def test_many_bad_gradients_are_counted() -> None:
    check = _FiniteCheck([f"w{index}" for index in range(6)], [torch.full((1,), math.nan)] * 6)
    with pytest.raises(NumericsError, match="that of w0, w1, w2, w3 and 2 more"):
        check.require_finite()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_where_asking_would_mean_waiting_the_step_is_masked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator does, on a CPU: same numbers, no trace of a bad step, the error one step later."""
    plain, deferred = two_matrices(), two_matrices()
    optimizer, other = make(name, plain), make(name, deferred)
    monkeypatch.setattr(other, "_defers_checks", lambda device: True)
    generator = torch.Generator().manual_seed(3)
    for step in range(6):
        for (_, first), (_, second) in zip(plain, deferred, strict=True):
            first.grad = torch.randn(first.shape, generator=generator)
            second.grad = first.grad.clone()
        optimizer.step()
        other.step()
        for (key, first), (_, second) in zip(plain, deferred, strict=True):
            # Masked and plain steps group their sums differently.
            assert torch.allclose(first, second, rtol=1e-5, atol=1e-6), (key, step)
    before = [parameter.detach().clone() for _, parameter in deferred]
    state = {
        (key, entry): value.clone()
        for key, parameter in deferred
        for entry, value in other.state[parameter].items()
        if isinstance(value, Tensor)
    }
    deferred[0][1].grad[0, 0] = math.nan  # type: ignore[index]
    other.step()
    assert all(torch.equal(parameter, old) for (_, parameter), old in zip(deferred, before, strict=True))
    for key, parameter in deferred:
        for entry, value in other.state[parameter].items():
            if isinstance(value, Tensor):
                assert torch.equal(value, state[key, entry]), (key, entry)
    with pytest.raises(NumericsError, match=r"NaN in that of layers\.0\.mlp\.up_proj\.weight"):
        other.step()


def test_who_starts_from_another_state_is_not_told_of_a_step_before(monkeypatch: pytest.MonkeyPatch) -> None:
    named = two_matrices()
    optimizer = make("adamw", named)
    monkeypatch.setattr(optimizer, "_defers_checks", lambda device: True)
    start = copy.deepcopy(optimizer.state_dict())

    def step_badly() -> None:
        give(named, lambda p: torch.full_like(p, math.nan))
        optimizer.step()
        give(named, torch.ones_like)

    for begin in (lambda: optimizer.load_state_dict(start), optimizer.drop_state):
        step_badly()
        begin()
        optimizer.step()
        optimizer.require_finite()
    step_badly()
    with pytest.raises(NumericsError, match="expected gradients whose norm is finite"):
        optimizer.require_finite()
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_are_only_read(name: str) -> None:
    named = two_matrices()
    optimizer = make(name, named)
    generator = torch.Generator().manual_seed(8)
    for _ in range(5):
        give(named, lambda p: torch.randn(p.shape, generator=generator))
        before = [parameter.grad.clone() for _, parameter in named if parameter.grad is not None]
        versions = [parameter.grad._version for _, parameter in named if parameter.grad is not None]
        optimizer.step()
        for (_, parameter), old, version in zip(named, before, versions, strict=True):
            assert parameter.grad is not None
            assert parameter.grad._version == version
            assert torch.equal(parameter.grad, old)


def test_sparse_gradients_are_refused() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = make_optimizer("adamw", table.named_parameters(), lr=1e-3)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(InputError, match=r"expected dense gradients, got one of layout torch.sparse_coo for weight"):
        optimizer.step()


# -- precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bfloat16_parameters_follow_their_float32_selves(name: str) -> None:
    """State and weights are kept in float32: steps far below bfloat16's spacing add up."""
    rough, fine = two_matrices(torch.bfloat16), two_matrices()
    for (_, first), (_, second) in zip(rough, fine, strict=True):
        second.data.copy_(first.float())
    optimizers = make(name, rough, lr=1e-4), make(name, fine, lr=1e-4)
    start = [parameter.detach().clone() for _, parameter in fine]
    for _ in range(30):
        for (_, first), (_, second) in zip(rough, fine, strict=True):
            # A descent along one sign: each step is 1e-4 or 2e-5, where bfloat16 near 1 has a spacing of 8e-3.
            first.grad = torch.full_like(first, 0.5)
            second.grad = first.grad.float()
        for optimizer in optimizers:
            optimizer.step()
    for (key, first), (_, second), old in zip(rough, fine, start, strict=True):
        assert first.dtype == torch.bfloat16
        assert all(v.dtype == torch.float32 for v in optimizers[0].state[first].values() if isinstance(v, Tensor))
        assert torch.equal(first, second.to(torch.bfloat16)), key
        assert not torch.equal(second, old)


def test_a_bfloat16_parameter_that_somebody_set_is_taken_as_it_is() -> None:
    named = two_matrices(torch.bfloat16)
    optimizer = make("adamw", named, lr=1e-3, weight_decay=0.0)
    give(named, torch.ones_like)
    optimizer.step()
    with torch.no_grad():
        named[0][1].fill_(5.0)
    optimizer.step()
    assert float((named[0][1].detach().float() - 5.0).abs().max()) < 0.05


def test_bfloat16_states_survive_saving_with_their_precision() -> None:
    named, again = two_matrices(torch.bfloat16), two_matrices(torch.bfloat16)
    optimizer, other = make("soap-lite", named), make("soap-lite", again)
    generator = torch.Generator().manual_seed(8)
    gradients = [[torch.randn(p.shape, generator=generator).bfloat16() for _, p in named] for _ in range(9)]
    for step, drawn in enumerate(gradients):
        if step == 4:
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            for (_, first), (_, second) in zip(named, again, strict=True):
                second.data.copy_(first)
        for (_, first), (_, second), gradient in zip(named, again, drawn, strict=True):
            first.grad, second.grad = gradient, gradient.clone()
        optimizer.step()
        if step >= 4:
            other.step()
    assert all(torch.equal(first, second) for (_, first), (_, second) in zip(named, again, strict=True))


def test_msign_in_bfloat16_is_an_option() -> None:
    rough, fine = two_matrices(), two_matrices()
    for named, dtype in ((rough, "bfloat16"), (fine, None)):
        optimizer = make("muon", named, msign_dtype=dtype)
        give(named, torch.ones_like)
        optimizer.step()
    difference = (rough[0][1] - fine[0][1]).detach()
    assert 0 < float(difference.abs().max()) < 1e-3


# -- the object --------------------------------------------------------------------------------------------------


def test_large_stacks_are_stepped_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from lite_probe.optim import buckets

    whole, chunked = two_matrices(), two_matrices()
    for named, limit in ((whole, 2**24), (chunked, 40)):
        monkeypatch.setattr(buckets, "_LARGEST_STACK", limit)
        optimizer = make("muon-lite", named)
        for _ in range(3):
            give(named, torch.ones_like)
            optimizer.step()
        sizes = [len(bucket.pieces) for bucket in optimizer._buckets if bucket.pieces[0].geometry.name == "orthogonal"]
        assert sizes == ([2] if limit == 2**24 else [1, 1])
    assert all(torch.allclose(first, second, atol=1e-6) for (_, first), (_, second) in zip(whole, chunked, strict=True))


def test_state_of_other_parameters_is_refused() -> None:
    named = two_matrices()
    optimizer = make("muon", named)
    with pytest.raises(InputError, match=r"expected the state of 4 parameters in 3 groups .*got 2 in 1; load it into"):
        optimizer.load_state_dict(make("muon", named[:2]).state_dict())


@pytest.mark.parametrize(("saved", "name"), [("soap", "muon"), ("muon-lite", "muon"), ("soap", "soap-lite")])
def test_the_state_of_another_optimizer_is_refused_by_name(saved: str, name: str) -> None:
    model = writers.make_model("llama")
    other, optimizer = make(saved, model.named_parameters()), make(name, model.named_parameters())
    train(model, other, range(2))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(InputError, match=rf"expected the state of {name}, got that of {saved}; .*restore_state takes"):
        optimizer.load_state_dict(other.state_dict())
    assert same_states(optimizer.state_dict(), before)
    with pytest.raises(InputError, match="got that of another"):
        optimizer.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())
    restore_state(optimizer, [other.state_dict()], named_parameters=model.named_parameters())  # the hint's other way


def test_the_state_of_other_blocks_is_refused() -> None:
    named = [("w.weight", nn.Parameter(torch.ones(8, 4)))]
    whole = make("muon", named, blocks={"w.weight": "ffn"})
    halves = make("muon", named, blocks={"w.weight": [BlockPart("ffn", 0, 0, 4), BlockPart("ffn", 0, 4)]})
    for optimizer in (whole, halves):
        give(named, torch.ones_like)
        optimizer.step()
    message = (
        r"expected a state of w\.weight with momentum missing, momentum\.0 \(4, 4\), momentum\.1 \(4, 4\), "
        r"got momentum \(8, 4\), momentum\.0 missing, momentum\.1 missing; load it into"
    )
    with pytest.raises(InputError, match=message):
        halves.load_state_dict(whole.state_dict())
    with pytest.raises(InputError, match="with the names and blocks of this optimizer's, got 1 in 1"):
        make("muon", named, blocks={"w.weight": "qk"}).load_state_dict(whole.state_dict())


HEADS = (BlockPart("qk", 0, 0, 4, 12), BlockPart("qk", 0, 4, 8, 12), BlockPart("vo", 0, 8, 12, 12))


def of_heads(fused: Tensor, place: int) -> Tensor:
    """The rows of two heads' queries, keys or values in a weight that has them head by head."""
    return torch.cat([fused[12 * head + 4 * place : 12 * head + 4 * place + 4] for head in range(2)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_fused_head_by_head_step_as_if_they_were_apart(name: str, transposed: bool, dtype: torch.dtype) -> None:
    """Also where the fused one is stored (in, out); and a state that was saved goes on."""
    generator = torch.Generator().manual_seed(9)
    weight, bias = torch.randn(24, 5, generator=generator).to(dtype), torch.randn(24, generator=generator).to(dtype)
    # GPT-2's name says that it is stored (in, out).
    key = "attn.c_attn" if transposed else "attn.query_key_value"
    parts = [replace(part, dim=1) for part in HEADS] if transposed else HEADS
    fused = [(f"{key}.weight", nn.Parameter(weight.T.clone() if transposed else weight.clone()))]
    fused += [(f"{key}.bias", nn.Parameter(bias.clone()))]
    apart = [
        (f"{word}.{kind}", nn.Parameter(of_heads(tensor, place)))
        for kind, tensor in (("weight", weight), ("bias", bias))
        for place, word in enumerate("qkv")
    ]
    together = {f"{key}.weight": parts, f"{key}.bias": HEADS}
    one = make(name, fused, blocks=together)
    other = make(name, apart, blocks={"[qk].(weight|bias)": "qk", "v.(weight|bias)": "vo"})
    for step in range(4):
        if step == 2:
            saved = copy.deepcopy(one.state_dict())
            one = make(name, fused, blocks=together)
            one.load_state_dict(saved)
        change = [torch.randn(shape, generator=generator).to(dtype) for shape in ((24, 5), (24,))]
        fused[0][1].grad = change[0].T if transposed else change[0]
        fused[1][1].grad = change[1]
        gradients = [of_heads(tensor, place) for tensor in change for place in range(3)]
        for (_, parameter), gradient in zip(apart, gradients, strict=True):
            parameter.grad = gradient
        one.step()
        other.step()
    moved = [fused[0][1].T if transposed else fused[0][1], fused[1][1]]
    found = [of_heads(tensor.detach(), place) for tensor in moved for place in range(3)]
    for got, (_, expected) in zip(found, apart, strict=True):
        tolerance = 1e-6 if dtype == torch.float32 else 4e-3
        torch.testing.assert_close(got, expected.detach(), rtol=tolerance, atol=tolerance)
    assert not torch.equal(found[0], of_heads(weight, 0))


def test_what_schedulers_add_to_a_state_is_kept() -> None:
    named = two_matrices()
    optimizer, again = make("muon-lite", named), make("muon-lite", named)
    torch.optim.lr_scheduler.StepLR(optimizer, 3)
    again.load_state_dict(optimizer.state_dict())
    assert all(group["initial_lr"] == 1e-2 for group in again.param_groups)


def test_parameters_cannot_join_later() -> None:
    optimizer = make("muon", two_matrices())
    with pytest.raises(UsageError, match="expected the parameters this optimizer was made with, got a group of others"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def test_hyperparameters_may_change_between_steps() -> None:
    named = two_matrices()
    optimizer = make("adamw", named, weight_decay=0.0)
    give(named, torch.ones_like)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [parameter.detach().clone() for _, parameter in named]
    optimizer.step()
    assert all(torch.equal(parameter, old) for (_, parameter), old in zip(named, before, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_copies_and_pickles_go_on_by_themselves(name: str) -> None:
    model = writers.make_model("llama")
    optimizer = make(name, model.named_parameters())
    train(model, optimizer, range(3))
    for copied in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        losses = train(*copied, range(3, 6))
        again = copy.deepcopy((model, optimizer))
        assert train(*again, range(3, 6)) == losses
        assert same(weights(copied[0]), weights(again[0]))


def test_a_closure_is_called_with_gradients_on() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer("sgd", [("w", weight)], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return float(loss)

    assert optimizer.step(closure) == 3.0
    assert torch.allclose(weight, torch.full((3,), 0.8))


def test_no_gradients_make_no_step() -> None:
    optimizer = make("muon", two_matrices())
    optimizer.step()
    assert all(not optimizer.state[p].get("step") for group in optimizer.param_groups for p in group["params"])


def test_a_scalar_parameter_is_a_vector() -> None:
    for name in OPTIMIZERS:
        scalar = nn.Parameter(torch.tensor(2.0))
        optimizer = make(name, [("scale", scalar)], weight_decay=0.0)
        for _ in range(3):
            scalar.grad = torch.tensor(1.0)
            optimizer.step()
        assert float(scalar) < 2.0, name


def test_state_dicts_are_plain() -> None:
    """They open with weights_only, and what is no tensor is JSON."""
    named = two_matrices()
    optimizer = make("soap-lite", named)
    give(named, torch.ones_like)
    optimizer.step()
    json.dumps(optimizer.state_dict()["param_groups"])
    assert isinstance(optimizer.state[named[0][1]]["step"], int)


def test_the_mask_is_per_tensor_of_a_stack() -> None:
    """A tensor with tiny second moments is not all flat beside one with large ones."""
    geometry = Diagonal()
    state = geometry.new_state(torch.Size((2, 4)), {"flat_lr_ratio": {}}, torch.float64, torch.device("cpu"))
    assert state["mask_low"].shape == (2, 1)
    from lite_probe.optim.diagonal import flat_mask
    from lite_probe.optim.geometry import LiteSettings

    lite = LiteSettings(flat_lr_ratio=2.0, sharp_ratio=0.25, projected=True)
    second = torch.tensor([[1.0, 0.1, 0.1, 0.1], [1e-6, 1e-7, 1e-7, 1e-7]], dtype=torch.float64)
    flat = flat_mask(state, second, lite, None)
    assert flat is not None
    assert flat.tolist() == [[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]]
