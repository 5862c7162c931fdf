"""States of other optimizers and of our own, taken over, and gone on with as if nothing had happened."""

import copy
import math
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lite_probe.checkpoints import open_checkpoint
from lite_probe.checkpoints.models import quiet_transformers
from lite_probe.errors import InputError, LiteProbeError, UsageError
from lite_probe.optim import OPTIMIZERS, LiteOptimizer, Restored, Schedule, make_optimizer, restore_state
from lite_probe.optim.saved_rules import MSIGN
from tests.checkpoints import writers
from tests.fuzz.test_mutated_checkpoints import FORMATS, mutate
from tests.optim import transcriptions

Parameters = dict[str, nn.Parameter]

LLAMA = {
    "model.embed_tokens.weight": (12, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 16),
    "model.norm.weight": (8,),
    "lm_head.weight": (12, 8),
}
GPT2 = {
    "transformer.wte.weight": (12, 8),
    "transformer.h.0.ln_1.weight": (8,),
    "transformer.h.0.attn.c_attn.weight": (8, 24),
    "transformer.h.0.attn.c_attn.bias": (24,),
    "transformer.h.0.attn.c_proj.weight": (8, 8),
    "transformer.h.0.mlp.c_fc.weight": (8, 32),
    "transformer.h.0.mlp.c_proj.weight": (32, 8),
}
EXPERTS = {
    "model.embed_tokens.weight": (12, 8),
    "model.layers.0.mlp.experts.gate_up_proj": (3, 12, 8),
    "model.layers.0.mlp.experts.down_proj": (3, 8, 6),
    "model.layers.0.mlp.shared_expert_gate.weight": (1, 8),
}
MODELS = {"llama": LLAMA, "gpt2": GPT2, "experts": EXPERTS}


def make_parameters(
    shapes: Mapping[str, tuple[int, ...]] = LLAMA, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for name, shape in shapes.items()
    }


def copied(parameters: Parameters) -> Parameters:
    return {name: nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}


def run(optimizer: torch.optim.Optimizer, parameters: Parameters, start: int, steps: int) -> None:
    """Feed the gradients of steps `start` and following; they depend on names and step alone."""
    for step in range(start, start + steps):
        for index, parameter in enumerate(parameters.values()):
            generator = torch.Generator().manual_seed(1000 * step + index)
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def restore(optimizer: LiteOptimizer, states: list[Any], parameters: Parameters, **options: Any) -> Restored:
    return restore_state(optimizer, states, named_parameters=parameters.items(), **options)


def codes(restored: Restored) -> list[str]:
    return [note.code for note in restored.notes]


def rows(restored: Restored) -> dict[tuple[str, str], Any]:
    return {(group.block, group.geometry): group for group in restored.groups}


# -- our own -----------------------------------------------------------------------------------------------------------

RAMPS: dict[str, Any] = {"schedule": "cosine", "total_steps": 20, "warmup_steps": 3, "min_lr_ratio": 0.1}


def ours(name: str, parameters: Parameters) -> LiteOptimizer:
    options: dict[str, Any] = dict(RAMPS) if name.endswith("-lite") else {}
    if name.startswith("soap"):
        options |= {"precondition_frequency": 4, "max_precond_dim": 16}
    if name == "sgd":
        options["momentum"] = 0.9
    return make_optimizer(name, parameters.items(), lr=1e-2, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_our_own_state_goes_on_bitwise(tmp_path: Path, name: str, model: str, dtype: torch.dtype) -> None:
    parameters = make_parameters(MODELS[model], dtype)
    optimizer = ours(name, parameters)
    run(optimizer, parameters, 0, 6)
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "optimizer.pt")
    continued = copied(parameters)
    run(optimizer, parameters, 6, 7)

    saved = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    other = ours(name, continued)
    restored = restore_state(other, [saved["optimizer"]])
    assert restored.fresh == 0
    assert restored.notes == ()
    assert {group.step for group in restored.groups} == {6}
    run(other, continued, 6, 7)
    for key, parameter in parameters.items():
        assert torch.equal(parameter, continued[key]), key


def test_our_own_state_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    model = writers.write_huggingface(tmp_path)
    optimizer = make_optimizer("muon-lite", model.named_parameters(), lr=1e-2, **RAMPS)
    run(optimizer, dict(model.named_parameters()), 0, 4)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with quiet_transformers():
        model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.optimizer is not None
    assert checkpoint.optimizer.name == "muon-lite"
    built = checkpoint.build_model()
    other = make_optimizer("muon-lite", built.named_parameters(), lr=1e-2, **RAMPS)
    assert restore_state(other, checkpoint.optimizer_states()).fresh == 0
    run(optimizer, dict(model.named_parameters()), 4, 5)
    run(other, dict(built.named_parameters()), 4, 5)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, built.get_parameter(key)), key


def test_a_base_optimizers_momentum_goes_on_under_lite_with_fresh_thresholds() -> None:
    parameters = make_parameters()
    optimizer = ours("muon", parameters)
    run(optimizer, parameters, 0, 5)
    lite = ours("muon-lite", parameters)
    restored = restore_state(lite, [optimizer.state_dict()])
    row = rows(restored)["qk", "orthogonal"]
    assert (row.state_names, row.fresh_names) == (("momentum",), ("threshold",))
    assert row.line == "qk, orthogonal: 2 restored (momentum; threshold anew) at step 5"
    assert rows(restored)["norm", "diagonal"].fresh_names == ("mask_low", "mask_high")
    assert all(group["step"] == 5 for group in lite.param_groups)
    run(lite, parameters, 5, 1)  # the next step makes the thresholds


def test_parameters_without_saved_state_start_anew_whatever_they_had() -> None:
    parameters = make_parameters()
    optimizer = ours("adamw", parameters)
    run(optimizer, parameters, 0, 2)
    state_dict = optimizer.state_dict()
    gone = optimizer.param_groups[0]["param_names"].index("model.embed_tokens.weight")
    del state_dict["state"][gone]
    restored = restore_state(optimizer, [state_dict])
    assert parameters["model.embed_tokens.weight"] not in optimizer.state
    assert rows(restored)["emb", "diagonal"].line == "emb, diagonal: 1 fresh: it had not stepped yet"
    run(optimizer, parameters, 2, 1)
    assert optimizer.state[parameters["model.embed_tokens.weight"]]["step"] == 1
    assert optimizer.state[parameters["lm_head.weight"]]["step"] == 3


# -- torch -------------------------------------------------------------------------------------------------------------


def torch_adamw(groups: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def our_adamw(parameters: Parameters) -> LiteOptimizer:
    return make_optimizer(
        "adamw", parameters.items(), lr=1e-3, adamw_beta1=0.9, adamw_beta2=0.95, eps=1e-8, weight_decay=0.1
    )


# A step rounds the weights three times (decay, step, their sum), each by half a unit in the last place, and the step
# itself a dozen times, being a hundredth of a weight. ε enters √v at another place: 1e-8 of gradients of 1 is below
# rounding. Five steps stay within 5·(3 + 1)/2 = 10 units of the largest weight.
def assert_rounding(found: Parameters, expected: Mapping[str, Tensor]) -> None:
    for name, parameter in expected.items():
        bound = 10 * torch.finfo(torch.float32).eps * float(parameter.detach().abs().max())
        assert float((found[name] - parameter).detach().abs().max()) <= bound, name


@pytest.mark.parametrize("shapes", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("named", [True, False])
def test_torchs_adamw_goes_on_as_torch_itself(shapes: dict[str, tuple[int, ...]], named: bool) -> None:
    theirs = make_parameters(shapes)
    optimizer = torch_adamw(theirs.items() if named else theirs.values())
    run(optimizer, theirs, 0, 4)
    parameters, fresh = copied(theirs), copied(theirs)
    other = our_adamw(parameters)
    restored = restore(other, [optimizer.state_dict()], parameters)
    assert restored.fresh == 0
    assert codes(restored) == [*([] if named else ["optimizer-order"]), "optimizer-hyperparameters"]
    assert restored.notes[-1].message == (
        "adamw goes on under the saved hyperparameters: eps_after_correction true instead of false."
    )
    anew = our_adamw(fresh)
    for trained, by in ((theirs, optimizer), (parameters, other), (fresh, anew)):
        run(by, trained, 4, 5)
    assert_rounding(parameters, theirs)
    with pytest.raises(AssertionError):  # without the state another trajectory
        assert_rounding(fresh, theirs)


def test_without_names_and_order_nothing_is_guessed() -> None:
    theirs = make_parameters()
    optimizer = torch_adamw(theirs.values())
    run(optimizer, theirs, 0, 2)
    restored = restore_state(our_adamw(copied(theirs)), [optimizer.state_dict()])
    assert restored.restored == 0
    assert "without named_parameters the model's order is not known" in restored.groups[0].reason
    parameters = copied(theirs)
    other = our_adamw(parameters)
    some = [(name, parameter) for name, parameter in parameters.items() if "lm_head" not in name]
    with pytest.raises(UsageError, match="expected named_parameters with all of the optimizer's, got none for lm_head"):
        restore_state(other, [optimizer.state_dict()], named_parameters=some)


def test_amsgrads_maxima_are_left_out_with_a_note() -> None:
    theirs = make_parameters()
    optimizer = torch.optim.AdamW(theirs.values(), amsgrad=True)
    run(optimizer, theirs, 0, 2)
    parameters = copied(theirs)
    restored = restore(our_adamw(parameters), [optimizer.state_dict()], parameters)
    assert restored.fresh == 0
    assert codes(restored) == ["optimizer-order", "optimizer-amsgrad", "optimizer-hyperparameters"]


def hidden_and_rest(parameters: Parameters) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    hidden = [p for name, p in parameters.items() if p.ndim >= 2 and "embed" not in name and "head" not in name]
    return hidden, [p for p in parameters.values() if not any(p is q for q in hidden)]


@pytest.mark.parametrize("backwards", [False, True])
def test_torchs_muon_beside_adamw_goes_on(backwards: bool) -> None:
    theirs = make_parameters()
    hidden, rest = hidden_and_rest(theirs)
    muon = torch.optim.Muon(hidden, lr=1e-3, momentum=0.9)
    adamw = torch_adamw(rest)
    both = [adamw, muon] if backwards else [muon, adamw]
    for by in both:
        run(by, theirs, 0, 4)
    parameters = copied(theirs)
    other = make_optimizer(
        "muon", parameters.items(), lr=1e-3, momentum=0.9, adamw_beta2=0.95, eps=1e-8, weight_decay=0.1
    )
    restored = restore(other, [by.state_dict() for by in both], parameters)
    assert restored.fresh == 0
    assert rows(restored)["qk", "orthogonal"].fresh_names == ()
    assert {group.step for group in restored.groups} == {4}
    for by in both:
        run(by, theirs, 4, 5)
    run(other, parameters, 4, 5)
    vectors = {name: theirs[name] for name in LLAMA if any(theirs[name] is p for p in rest)}
    assert_rounding(parameters, vectors)
    for name in LLAMA:
        if name not in vectors:
            buffer = muon.state[theirs[name]]["momentum_buffer"]
            # The same averages of the same gradients, rounded twice a step.
            bound = 5 * 2 * torch.finfo(torch.float32).eps * float(buffer.abs().max())
            assert float((other.state[parameters[name]]["momentum"] - buffer).abs().max()) <= bound


def test_a_muon_alone_takes_the_step_it_is_given() -> None:
    theirs = make_parameters()
    hidden, _ = hidden_and_rest(theirs)
    muon = torch.optim.Muon(hidden)
    run(muon, theirs, 0, 2)
    parameters = copied(theirs)
    restored = restore(ours("muon-lite", parameters), [muon.state_dict()], parameters, step=17)
    row = rows(restored)["ffn", "orthogonal"]
    assert (row.restored, row.fresh, row.step) == (2, 0, 17)
    assert rows(restored)["emb", "diagonal"].line == "emb, diagonal: 1 fresh: nothing was saved for it"


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_torchs_sgd_goes_on_as_an_average(dampening: float) -> None:
    theirs = make_parameters()
    optimizer = torch.optim.SGD(theirs.values(), lr=1e-2, momentum=0.9, dampening=dampening)
    run(optimizer, theirs, 0, 6)
    parameters = copied(theirs)
    other = make_optimizer("sgd", parameters.items(), lr=1e-2 * (1 - dampening) / (1 - 0.9), momentum=0.9)
    assert restore(other, [optimizer.state_dict()], parameters).fresh == 0
    run(optimizer, theirs, 6, 5)
    run(other, parameters, 6, 5)
    assert_rounding(parameters, theirs)


# -- published codes, from their formulas ------------------------------------------------------------------------------

LITE = {"beta1": -0.25, "beta2": 1.0, "flat_lr_ratio": 2.0, "sharp_ratio": 0.1, "smooth_ratio": 0.1, "lr": 2e-3}
MUON_LITE = {**LITE, "momentum": 0.9, "weight_decay": 0.1, "adamw_beta1": 0.9, "adamw_beta2": 0.98, "eps": 1e-8}
SOAP = {
    "betas": (0.9, 0.95),
    "shampoo_beta": None,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "precondition_frequency": 3,
    "max_precond_dim": 14,
    "lr": 2e-3,
}
NEUTRAL = {"beta1": 0.0, "beta2": 0.0, "chi": 1.0}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def published_muon_lite(slow: dict[str, Any], step: int) -> dict[str, Any]:
    """Return what the published optimizer saves: one group, hidden matrices first, names in lower case."""
    hidden = [name for name in slow if isinstance(slow[name], transcriptions.SlowMuonLite)]
    order = [*hidden, *(name for name in slow if name not in hidden)]
    state: dict[int, dict[str, Any]] = {}
    for index, name in enumerate(order):
        one = slow[name]
        flags = {"name": name.lower(), "subspace_ratio": 0.1, "lr_ratio": 2.0, "flat_warmup": 1, "step": step}
        if name in hidden:
            state[index] = {**flags, "use_muon": 1, "momentum": one.m, "subspace_threshold_ratio": float(one.tau)}
        else:
            numbers = {"lower_topk_ratio": one.mask.low, "upper_topk_ratio": one.mask.high}
            state[index] = {**flags, "use_muon": 0, "moment1": one.m, "moment2": one.v, "P": None, **numbers}
    return {"state": state, "param_groups": [{"lr": 2e-3, "muon_theta": 0.9, "params": list(range(len(order)))}]}


# Float64 with some hundred operations a step: 1e-12 is a thousand times their rounding.
def test_the_published_muon_lite_goes_on_thresholds_and_ramps_included() -> None:
    parameters = make_parameters(dtype=torch.float64)
    hidden, _ = hidden_and_rest(parameters)
    slow: dict[str, Any] = {
        name: (transcriptions.SlowMuonLite if any(p is q for q in hidden) else transcriptions.SlowAdamWLite)(
            p.detach(), MUON_LITE
        )
        for name, p in parameters.items()
    }
    schedule = Schedule(name="cosine", total_steps=20, warmup_steps=3, min_lr_ratio=0.1)
    keys = {"name", "total_steps", "warmup_steps", "min_lr_ratio"}
    ramps = {("schedule" if key == "name" else key): getattr(schedule, key) for key in keys}

    def step_slowly(step: int) -> None:
        for index, (name, one) in enumerate(slow.items()):
            generator = torch.Generator().manual_seed(1000 * step + index)
            gradient = torch.randn(LLAMA[name], generator=generator, dtype=torch.float64)
            matrix = isinstance(one, transcriptions.SlowMuonLite)
            beta2 = schedule.damping(step, -0.25, 1.0)
            chi = schedule.flat_lr_ratio(step, 2.0, hidden_matrix=matrix)
            one.step(gradient, beta1=-0.25 if matrix else 0.0, beta2=beta2 if matrix else 0.0, chi=chi)

    for step in range(8):
        step_slowly(step)
    for name, parameter in parameters.items():
        parameter.data.copy_(slow[name].w)
    optimizer = make_optimizer("muon-lite", parameters.items(), **MUON_LITE, **ramps)
    restored = restore_state(optimizer, [published_muon_lite(slow, 8)])
    assert restored.fresh == 0
    assert all(not group.fresh_names for group in restored.groups)
    assert codes(restored) == ["optimizer-hyperparameters-unsaved"]
    for step in range(8, 16):
        step_slowly(step)
    run(optimizer, parameters, 8, 8)
    assert max(relative(parameters[name].detach(), slow[name].w) for name in slow) < 1e-12


def test_moonlights_sum_of_gradients_becomes_an_average() -> None:
    parameters = make_parameters(dtype=torch.float64)
    hidden, rest = hidden_and_rest(parameters)
    optimizer = ours("muon", parameters)
    run(optimizer, parameters, 0, 5)
    theta = optimizer.param_groups[0]["momentum"]
    state: dict[int, dict[str, Any]] = {}
    for index, parameter in enumerate([*hidden, *rest]):
        own = optimizer.state[parameter]
        if any(parameter is p for p in hidden):
            state[index] = {"use_muon": True, "momentum_buffer": own["momentum"] / (1 - theta)}
        else:
            moments = {"moment1": own["exp_avg"].clone(), "moment2": own["exp_avg_sq"].clone()}
            state[index] = {"use_muon": False, "step": 5, **moments}
    group = {
        "lr": 1e-3,
        "wd": 0.1,
        "momentum": theta,
        "nesterov": True,
        "ns_steps": 5,
        "adamw_betas": (0.9, 0.99),
        "adamw_eps": 1e-8,
        "params": list(range(len(state))),
    }
    continued = copied(parameters)
    other = ours("muon", continued)
    restored = restore(other, [{"state": state, "param_groups": [group]}], continued, keep=MSIGN)
    assert restored.fresh == 0
    assert codes(restored) == [
        "optimizer-order",
        "optimizer-momentum",
        "optimizer-hyperparameters-kept",
        "optimizer-departures",
    ]
    assert "scaled by 0.05" in restored.notes[1].message
    assert "hidden matrices, then all but hidden matrices" in restored.notes[0].message
    run(optimizer, parameters, 5, 5)
    run(other, continued, 5, 5)
    # Divided and multiplied once in float64.
    assert max(relative(continued[name].detach(), parameters[name].detach()) for name in LLAMA) < 1e-14
    # As a plain average it would be twenty times as large, and stay for as long as the momentum remembers.
    del group["adamw_betas"]
    restored = restore(other, [{"state": state, "param_groups": [group]}], continued)
    assert "taken to be an average" in restored.notes[1].message


def soap_state(slow: Any, *, rotated_moment: bool) -> dict[str, Any]:
    sides = (("left", slow.w.shape[0]), ("right", slow.w.shape[1]))
    factors = [getattr(slow, side) if getattr(slow, side) is not None else [] for side, _ in sides]
    bases = [getattr(slow, f"q_{side}") if getattr(slow, side) is not None else [] for side, _ in sides]
    first = slow.m if rotated_moment else slow.out_of(slow.m)
    return {"exp_avg": first, "exp_avg_sq": slow.v, "GG": factors, "Q": bases, "precondition_frequency": 3}


# As above: 1e-12 is a thousand times the rounding of float64.
@pytest.mark.parametrize("code", ["authors", "pytorch_optimizer"])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (16, 5), (5, 16)])
@pytest.mark.parametrize("stored_transposed", [False, True])
def test_soap_goes_on(shape: tuple[int, int], code: str, stored_transposed: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    names = ["transformer.h.0.mlp.c_fc.weight"] if stored_transposed else ["model.layers.0.mlp.up_proj.weight"]
    hyper = {**SOAP, "sharp_ratio": 1.0, "smooth_ratio": 0.1}
    slow = transcriptions.SlowSoapLite(torch.randn(shape, generator=generator, dtype=torch.float64), hyper)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(12)]
    for gradient in gradients[:6]:
        slow.step(gradient, **NEUTRAL)
    values = soap_state(slow, rotated_moment=code == "authors")
    group: dict[str, Any] = {"lr": 1e-3, "params": [0]}
    if code == "authors":
        values["step"] = 5  # it does not count the first
    else:
        group |= {"step": 6, "max_precondition_dim": 14}
    parameters = {names[0]: nn.Parameter(slow.w.clone())}
    if stored_transposed:  # by the company of a fused weight with the longer side last
        parameters["transformer.h.0.attn.c_attn.weight"] = nn.Parameter(torch.zeros(4, 12, dtype=torch.float64))
    optimizer = make_optimizer("soap", parameters.items(), **SOAP)
    state_dict = {"state": {0: values}, "param_groups": [{**group, "param_names": names}]}
    restored = restore_state(optimizer, [state_dict])
    row = rows(restored)["ffn", "kronecker"]
    assert (row.restored, row.fresh, row.step) == (1, 0, 6)
    assert ("optimizer-soap" in codes(restored)) == (code == "authors")
    assert {"factor_left", "basis_left"} <= set(row.state_names) or shape[0 if not stored_transposed else 1] > 14
    for gradient in gradients[6:]:
        slow.step(gradient, **NEUTRAL)
        parameters[names[0]].grad = gradient
        optimizer.step()
    assert relative(parameters[names[0]].detach(), slow.w) < 1e-12


def test_vectors_of_soap_and_of_an_adamw_beside_it_are_plain_adams() -> None:
    values = {"exp_avg": torch.randn(8), "exp_avg_sq": torch.rand(8)}
    group = {"params": [0], "param_names": ["model.norm.weight"]}
    for saved in ({**values, "GG": [[]], "Q": [[]], "step": 5}, {**values, "step": torch.tensor(5.0)}):
        parameters = {"model.norm.weight": nn.Parameter(torch.ones(8))}
        optimizer = make_optimizer("soap", parameters.items(), lr=1e-3)
        restored = restore_state(optimizer, [{"state": {0: saved}, "param_groups": [group]}])
        assert restored.restored == 1
        own = optimizer.state[parameters["model.norm.weight"]]
        assert own["step"] == 6  # five updates of the moments, and the step that only builds bases
        assert torch.equal(own["exp_avg"], values["exp_avg"])
        other = our_adamw(parameters)
        assert restore_state(other, [optimizer.state_dict()]).restored == 1
        assert other.state[parameters["model.norm.weight"]]["step"] == 5


# -- whole checkpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_adamw_goes_on_in_gpt2s_layout(tmp_path: Path, bias: bool) -> None:
    path = tmp_path / "ckpt.pt"
    weights = writers.write_nanogpt(path, bias=bias, num_layers=2)
    theirs = writers.nanogpt_parameters(weights)
    optimizer = writers.nanogpt_optimizer(theirs)
    checkpoint = open_checkpoint(path)
    model = checkpoint.build_model()
    parameters = dict(model.named_parameters())
    other = make_optimizer(
        "adamw", parameters.items(), lr=1e-3, adamw_beta1=0.9, adamw_beta2=0.95, eps=1e-8, weight_decay=0.1
    )
    restored = restore(other, checkpoint.optimizer_states(), parameters, step=checkpoint.step)
    assert restored.fresh == 0
    assert [note.message for note in restored.notes] == [
        "The optimizer state has no parameter names; its order was taken to be: matrices, then vectors, in the "
        "model's order.",
        "adamw goes on under the saved hyperparameters: eps_after_correction true instead of false; weight_decay 0 "
        "instead of 0.1.",
    ]
    fused = theirs["transformer.h.1.attn.c_attn.weight"]
    own = other.state[parameters["transformer.h.1.attn.c_attn.weight"]]
    for index in range(3):  # q, k and v, each (out, in)
        rows_of = slice(8 * index, 8 * index + 8)
        assert torch.equal(own[f"exp_avg.{index}"], optimizer.state[fused]["exp_avg"][rows_of])
        assert torch.equal(own[f"exp_avg_sq.{index}"], optimizer.state[fused]["exp_avg_sq"][rows_of])
    assert own["step"] == 3
    # The steps that follow, from the same weights with the same gradients.
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(weights[name])
    generator = torch.Generator().manual_seed(23)
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    for _ in range(5):
        for name, parameter in theirs.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            parameters[name].grad = parameter.grad.t() if name.endswith(linear) else parameter.grad.clone()
        optimizer.step()
        other.step()
    as_gpt2 = {name: p.detach().t() if name.endswith(linear) else p.detach() for name, p in theirs.items()}
    assert_rounding(parameters, as_gpt2)


def test_our_own_state_inside_a_nanogpt_file(tmp_path: Path) -> None:
    """Our optimizers see linear weights as (out, in) wherever they are stored: nothing is transposed."""
    path = tmp_path / "ckpt.pt"
    theirs = writers.nanogpt_parameters(writers.write_nanogpt(path))
    optimizer = make_optimizer("muon", theirs.items(), lr=1e-3)
    run(optimizer, theirs, 0, 3)
    saved = torch.load(path)
    torch.save({**saved, "optimizer": optimizer.state_dict()}, path)
    checkpoint = open_checkpoint(path)
    model = checkpoint.build_model()
    other = make_optimizer("muon", model.named_parameters(), lr=1e-3)
    assert restore_state(other, checkpoint.optimizer_states()).fresh == 0
    for name in ("c_attn.weight", "c_proj.weight"):
        key = f"transformer.h.0.attn.{name}"
        own = other.state[model.get_parameter(key)]
        assert all(torch.equal(own[entry], optimizer.state[theirs[key]][entry]) for entry in own if entry != "step")
        assert [entry.partition(".")[0] for entry in own] == ["momentum"] * (len(own) - 1) + ["step"]


def outcome(attempt: Callable[[], Restored]) -> str:
    """Return "restored" or "refused"; any exception but the library's own escapes."""
    refusal: LiteProbeError | None = None
    try:
        restored = attempt()
    except LiteProbeError as error:
        refusal = error
    if refusal is None:
        assert len(restored.lines) == len(restored.groups)
        assert restored.restored + restored.fresh > 0
        return "restored"
    assert refusal.message.startswith("expected ")
    assert refusal.hint
    return "refused"


def write_format(name: str, folder: Path) -> Path:
    path = FORMATS[name](folder)
    if name.startswith("huggingface"):
        architecture = "gpt2" if name.endswith("bin") else "llama"
        torch.save(writers.trained_optimizer(writers.make_model(architecture)).state_dict(), folder / "optimizer.pt")
    return path


def restore_from(path: Path) -> Restored:
    checkpoint = open_checkpoint(path, model_config=None if _knows_its_model(path) else writers.CONFIGS["llama"])
    model = checkpoint.build_model()
    optimizer = make_optimizer("adamw", model.named_parameters(), lr=1e-3)
    states = checkpoint.optimizer_states()
    return restore_state(optimizer, states, named_parameters=model.named_parameters(), step=checkpoint.step)


def _knows_its_model(path: Path) -> bool:
    return path.is_dir() or path.name == "ckpt.pt"


@pytest.mark.parametrize("name", FORMATS)
def test_the_state_of_every_format_is_restored(name: str, tmp_path: Path) -> None:
    restored = restore_from(write_format(name, tmp_path))
    assert restored.fresh == 0
    assert restored.restored > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_states_of_damaged_files_are_restored_or_refused(name: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    inside = write_format(name, whole).relative_to(whole)
    outcomes = []
    for number in range(40):
        copy_of = tmp_path / "copy"
        shutil.copytree(whole, copy_of)
        mutate(copy_of, random.Random(f"states/{name}/{number}"))
        outcomes.append(outcome(lambda path=copy_of / inside: restore_from(path)))
        shutil.rmtree(copy_of)
    assert set(outcomes) == {"restored", "refused"}


# -- what does not fit -------------------------------------------------------------------------------------------------


def test_what_belongs_to_another_optimizer_starts_anew() -> None:
    theirs = make_parameters()
    optimizer = torch_adamw(theirs.values())
    run(optimizer, theirs, 0, 4)
    parameters = copied(theirs)
    muon = ours("muon", parameters)
    restored = restore(muon, [optimizer.state_dict()], parameters)
    assert restored.lines == (
        "emb, diagonal: 1 restored (exp_avg, exp_avg_sq) at step 4",
        "norm, diagonal: 2 restored (exp_avg, exp_avg_sq) at step 4",
        "qk, orthogonal: 2 fresh: what was saved of it is AdamW's, not Muon's",
        "ffn, orthogonal: 2 fresh: what was saved of it is AdamW's, not Muon's",
        "out, diagonal: 1 restored (exp_avg, exp_avg_sq) at step 4",
    )
    assert (restored.restored, restored.fresh) == (4, 4)
    # Ramps belong to the run; bias corrections to each parameter.
    assert {group["step"] for group in muon.param_groups} == {4}
    run(muon, parameters, 4, 1)
    assert muon.state[parameters["model.layers.0.self_attn.q_proj.weight"]]["step"] == 1
    assert muon.state[parameters["lm_head.weight"]]["step"] == 5


def single(values: dict[str, Any], name: str = "model.layers.0.mlp.up_proj.weight", **group: Any) -> list[Any]:
    return [{"state": {0: values}, "param_groups": [{**group, "params": [0], "param_names": [name]}]}]


def adam(**changes: Any) -> dict[str, Any]:
    return {"exp_avg": torch.zeros(16, 8), "exp_avg_sq": torch.ones(16, 8), "step": 3, **changes}


SQUARES = {"GG": [torch.eye(16), torch.eye(8)], "Q": [torch.eye(16), torch.eye(8)]}


@pytest.mark.parametrize(
    ("name", "states", "reason"),
    [
        ("adamw", [], "none was saved"),
        ("adamw", single({"exp_avg": torch.ones(16, 8)}), "(exp_avg) is lion's, which no optimizer here goes on from"),
        ("adamw", single({"square_avg": torch.ones(16, 8)}), "(square_avg) is of no known optimizer"),
        (
            "adamw",
            single({key: torch.ones(16, 8) for key in ("state1", "state2", "qmap1", "absmax1")}),
            "(absmax1, qmap1, state1, state2) is adamw-8bit's, which no optimizer here goes on from",
        ),
        ("soap", single({"step": 3, "preconditioners": [torch.eye(16), torch.eye(8)]}), "is shampoo's, which no"),
        ("adamw", single(adam(), maximize=True), "it was trained with maximize, upwards"),
        ("adamw", single({"use_muon": True}), "it had not stepped yet"),
        ("adamw", single({key: v for key, v in adam().items() if key != "step"}), "without a step counter"),
        ("adamw", single(adam(**SQUARES)), "is SOAP's, not AdamW's"),
        ("muon", single({"momentum_buffer": torch.ones(16, 8)}, dampening=0.0, momentum=0.9), "is gradient descent's"),
        ("sgd", single({"momentum_buffer": torch.ones(16, 8)}, dampening=1.0, momentum=0.9), "was damped away"),
        ("soap", single(adam()), "is AdamW's, not SOAP's"),
        ("soap", single(adam(GG=[torch.eye(128)], Q=[torch.eye(128)])), "SOAP kept 1 factors of its 2 axes"),
        ("soap", single(adam(GG=SQUARES["GG"], Q=None)), "its bases had not been built yet"),
        ("soap", single(adam(GG=[torch.eye(16), []], Q=[torch.eye(16), []])), "SOAP rotated other sides of it"),
        ("soap", single({**adam(**SQUARES), "step": None}), "without a step counter"),
        ("soap", single(adam(GG=[[], []], Q=[[], []])), "is AdamW's, not SOAP's"),
    ],
)
def test_reasons_to_start_anew(name: str, states: list[Any], reason: str) -> None:
    parameters = make_parameters()
    options = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = make_optimizer(name, parameters.items(), lr=1e-3, **options)
    restored = restore_state(optimizer, states)
    assert restored.restored == 0
    assert reason in "; ".join(group.reason for group in restored.groups if group.block == "ffn")
    assert not optimizer.state
    run(optimizer, parameters, 0, 1)


def test_soap_of_a_fused_weight_and_of_a_rotated_vector_start_anew() -> None:
    parameters = make_parameters(GPT2)
    optimizer = make_optimizer("soap", parameters.items(), lr=1e-3)
    fused, bias = "transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.bias"
    whole = {"exp_avg": torch.ones(8, 24), "exp_avg_sq": torch.ones(8, 24), "step": 3}
    squares = [torch.eye(8), torch.eye(24)]
    restored = restore_state(optimizer, single({**whole, "GG": squares, "Q": squares}, fused))
    assert "its parts are rotated one by one" in rows(restored)["qk+vo", "kronecker"].reason
    vector = {"exp_avg": torch.ones(24), "exp_avg_sq": torch.ones(24), "step": 3}
    square = [torch.eye(24)]
    restored = restore_state(optimizer, single({**vector, "GG": square, "Q": square}, bias))
    assert "SOAP rotated this vector" in rows(restored)["qk+vo", "kronecker"].reason


def test_entries_of_ours_that_are_missing_start_anew() -> None:
    parameters = make_parameters()
    optimizer = ours("muon", parameters)
    run(optimizer, parameters, 0, 2)
    state_dict = optimizer.state_dict()
    for values in state_dict["state"].values():
        values.pop("momentum", None)
        values.pop("exp_avg_sq", None)
    restored = restore_state(optimizer, [state_dict])
    assert restored.restored == 0
    assert rows(restored)["norm", "diagonal"].reason == "what was saved of it has no exp_avg_sq"


def test_a_disputed_order_leaves_those_parameters_alone_and_says_so() -> None:
    theirs = make_parameters()
    hidden, _ = hidden_and_rest(theirs)
    vectors = [p for p in theirs.values() if p.ndim == 1]
    head, embedding = theirs["lm_head.weight"], theirs["model.embed_tokens.weight"]
    groups = [{"params": [head]}, {"params": [embedding]}, {"params": vectors}, {"params": hidden}]
    optimizer = torch_adamw(groups)
    run(optimizer, theirs, 0, 2)
    parameters = copied(theirs)
    restored = restore(our_adamw(parameters), [optimizer.state_dict()], parameters)
    assert (restored.restored, restored.fresh) == (6, 2)
    assert rows(restored)["out", "diagonal"].reason == "nothing tells which of several saved entries is its own"
    assert codes(restored) == ["optimizer-order", "optimizer-order-ambiguous", "optimizer-hyperparameters"]
    assert "they leave lm_head.weight, model.embed_tokens.weight undecided" in restored.notes[1].message


# -- refusals ----------------------------------------------------------------------------------------------------------

NAN = torch.full((16, 8), math.nan)
UP = r"model\.layers\.0\.mlp\.up_proj\.weight in the saved optimizer state"


@pytest.mark.parametrize(
    ("name", "states", "message"),
    [
        ("adamw", single(adam(exp_avg=NAN)), rf"expected finite numbers as exp_avg of {UP}, got NaN or infinity"),
        ("adamw", single(adam(exp_avg_sq=1 / torch.zeros(16, 8))), rf"expected finite numbers as exp_avg_sq of {UP}"),
        (
            "adamw",
            single(adam(exp_avg=torch.full((16, 8), 1e300, dtype=torch.float64))),
            r"numbers in \[-3.40282e\+38, 3.40282e\+38\] as exp_avg of .*, got 1e\+300",
        ),
        (
            "adamw",
            single(adam(exp_avg_sq=-torch.ones(16, 8))),
            rf"numbers in \[0, 3.40282e\+38\] as exp_avg_sq of {UP}, got -1",
        ),
        ("adamw", single(adam(exp_avg=torch.ones(8, 16))), rf"shape \(16, 8\) as exp_avg of {UP}, got \(8, 16\)"),
        ("adamw", single(adam(exp_avg=torch.ones(16, 8, dtype=torch.int64))), "dense floating-point .* torch.int64"),
        ("adamw", single(adam(exp_avg=torch.ones(16, 8).to_sparse())), "dense floating-point numbers as exp_avg"),
        ("adamw", single(adam(exp_avg=torch.ones(16, 8, device="meta"))), "dense floating-point .* on meta"),
        ("adamw", single(adam(exp_avg=torch.ones(1).expand(16, 8))), "in the file whole as exp_avg .* expanded"),
        ("adamw", single(adam(step=-1)), rf"expected a count as step of {UP}, got -1"),
        ("adamw", single(adam(step=2.5)), "expected a count as step of .*, got 2.5"),
        ("adamw", single(adam(step=10**400)), "expected a finite number as step of"),
        ("adamw", single(adam(step=torch.tensor(math.nan))), "expected a finite number as step of .*, got nan"),
        ("adamw", single(adam(step="5")), "expected a number as step of .*, got str"),
        ("muon", single({"momentum_buffer": NAN}), "expected finite numbers as momentum_buffer of"),
        (
            "muon",
            single({"momentum_buffer": torch.ones(16, 8)}, adamw_betas=(0.9, 0.95), momentum=1.5),
            r"expected a number in \[0, 1\) as momentum of .*, got 1.5",
        ),
        (
            "muon-lite",
            single({"momentum": torch.ones(16, 8), "subspace_threshold_ratio": 1.5, "step": 3}, muon_theta=0.9),
            r"expected numbers in \[0, 1\] as subspace_threshold_ratio of .*, got 1.5",
        ),
        (
            "adamw",
            single({"moment1": torch.ones(16, 8), "moment2": torch.ones(16, 8), "upper_topk_ratio": 1e9, "step": 3}),
            r"expected numbers in \[0, 256\] as upper_topk_ratio of .*, got 1e\+09",
        ),
        ("soap", single(adam(GG=torch.eye(16), Q=[])), "expected lists of matrices as GG and Q of .*, got Tensor"),
        ("soap", single(adam(GG=[torch.eye(16), torch.eye(9)], Q=SQUARES["Q"])), r"shape \(8, 8\) as GG of"),
        ("soap", single(adam(GG=SQUARES["GG"], Q=[torch.eye(16), []])), "expected a tensor as Q of .*, got list"),
    ],
)
def test_bad_values_are_refused_and_change_nothing(name: str, states: list[Any], message: str) -> None:
    parameters = make_parameters()
    optimizer = make_optimizer(name, parameters.items(), lr=1e-3)
    run(optimizer, parameters, 0, 2)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(InputError, match=message):
        restore_state(optimizer, states)
    after = optimizer.state_dict()
    for index, values in before["state"].items():
        for key, value in values.items():
            assert torch.equal(torch.as_tensor(after["state"][index][key]), torch.as_tensor(value))
    assert [group["step"] for group in after["param_groups"]] == [2] * len(after["param_groups"])


@pytest.mark.parametrize("step", [-1, True, 2**60])
def test_a_step_that_is_no_count_is_refused(step: Any) -> None:
    with pytest.raises(UsageError, match="expected step ≥ 0 or None, got"):
        restore_state(our_adamw(make_parameters()), [], step=step)


# -- mutations ---------------------------------------------------------------------------------------------------------

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**20),
    st.floats(),
    st.text(max_size=3),
    st.just([]),
    st.just({}),
    st.just([[]]),
    st.sampled_from([torch.ones(()), torch.ones(16, 8), torch.ones(8), torch.ones(0), torch.eye(8), NAN, "step", 0]),
    st.just({"params": [0], "state": {}}),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value in nested dicts and lists."""
    yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from places(member, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    if not isinstance(value, dict | list):
        raise TypeError(type(value))
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


def muon_and_adamw() -> list[Any]:
    theirs = make_parameters()
    hidden, rest = hidden_and_rest(theirs)
    both = [torch.optim.Muon(hidden), torch_adamw(rest)]
    for optimizer in both:
        run(optimizer, theirs, 0, 1)
    return [optimizer.state_dict() for optimizer in both]


def own_states(name: str) -> list[Any]:
    parameters = make_parameters()
    optimizer = ours(name, parameters)
    run(optimizer, parameters, 0, 2)
    return [optimizer.state_dict()]


def lite_states() -> list[Any]:
    slow = {
        name: (transcriptions.SlowMuonLite if "proj" in name else transcriptions.SlowAdamWLite)(
            torch.ones(shape), MUON_LITE
        )
        for name, shape in LLAMA.items()
    }
    return [published_muon_lite(slow, 3)]


def soap_states() -> list[Any]:
    return single({**adam(**{key: list(value) for key, value in SQUARES.items()})})


WHOLE: dict[str, tuple[str, Callable[[], list[Any]]]] = {
    "torch": ("muon", muon_and_adamw),
    "ours": ("muon-lite", lambda: own_states("muon-lite")),
    "soap of ours": ("soap", lambda: own_states("soap")),
    "published lite": ("muon-lite", lite_states),
    "soap": ("soap", soap_states),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", WHOLE)
def test_a_mutated_state_dict_is_restored_or_refused(source: str) -> None:
    name, make_states = WHOLE[source]
    whole = make_states()
    every = list(places(whole))

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.sampled_from(every), JUNK), min_size=1, max_size=3))
    def check(mutations: list[tuple[tuple[Any, ...], Any]]) -> None:
        states = whole
        for path, junk in mutations:
            try:
                states = replaced(states, path, junk)
            except (KeyError, IndexError, TypeError):
                continue  # an earlier mutation took the place away
        parameters = make_parameters()
        optimizer = ours(name, parameters)
        if outcome(lambda: restore(optimizer, states, parameters)) == "restored":
            run(optimizer, parameters, 2, 1)
            assert all(bool(parameter.isfinite().all()) for parameter in parameters.values())

    check()
