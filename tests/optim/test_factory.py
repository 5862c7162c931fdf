"""Which parameter goes where, which blocks and hyperparameters apply, and what is refused."""

from typing import Any

import pytest
import torch
from torch import nn

from lite_probe.criteria import classification_cross_entropy
from lite_probe.errors import InputError, UsageError
from lite_probe.optim import OPTIMIZERS, hyperparameters_of, make_optimizer
from lite_probe.results.blocks import BLOCK_NAMES, BlockPart
from lite_probe.task import Task
from tests import models
from tests.checkpoints import writers


def geometries(name: str, model: nn.Module, **hyper: Any) -> dict[str, list[tuple[str, str, tuple[int, ...]]]]:
    """Parameter name → (block, geometry, shape as the geometry sees it) of each piece, after one step."""
    optimizer = make_optimizer(name, model.named_parameters(), lr=1e-3, **hyper)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    found: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
    for bucket in optimizer._buckets:
        for piece in bucket.pieces:
            shape = tuple(piece.view(piece.parameter.detach()).shape)
            found.setdefault(piece.name, []).append((piece.block, piece.geometry.name, shape))
    return found


@pytest.mark.parametrize("family", writers.CONFIGS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_family_is_mapped_whole(name: str, family: str) -> None:
    model = writers.make_model(family)
    found = geometries(name, model)
    assert set(found) == {key for key, _ in model.named_parameters()}
    for key, parameter in model.named_parameters():
        entries = sum(torch.Size(shape).numel() for _, _, shape in found[key])
        assert entries == parameter.numel(), key
    assert not any(block == "other" for pieces in found.values() for block, _, _ in pieces)


def test_llama_under_muon() -> None:
    found = geometries("muon-lite", writers.make_model("llama"))
    assert found["model.layers.0.self_attn.q_proj.weight"] == [("qk", "orthogonal", (1, 8, 8))]
    assert found["model.layers.0.mlp.down_proj.weight"] == [("ffn", "orthogonal", (1, 8, 16))]
    assert found["model.embed_tokens.weight"] == [("emb", "diagonal", (1, 32, 8))]
    assert found["lm_head.weight"] == [("out", "diagonal", (1, 32, 8))]
    assert found["model.norm.weight"] == [("norm", "diagonal", (1, 8))]


def test_fused_attention_is_three_matrices_the_right_way_round() -> None:
    found = geometries("muon-lite", writers.make_model("gpt2"))
    # Conv1D stores (8, 24): q, k and v are columns, and each is seen as (out, in).
    expected = [("qk", "orthogonal", (1, 8, 8)), ("qk", "orthogonal", (1, 8, 8)), ("vo", "orthogonal", (1, 8, 8))]
    assert sorted(found["transformer.h.0.attn.c_attn.weight"]) == expected
    assert found["transformer.h.0.mlp.c_fc.weight"] == [("ffn", "orthogonal", (1, 32, 8))]
    assert sorted(found["transformer.h.0.attn.c_attn.bias"]) == [
        ("qk", "diagonal", (1, 8)),
        ("qk", "diagonal", (1, 8)),
        ("vo", "diagonal", (1, 8)),
    ]
    assert found["transformer.wpe.weight"] == [("emb", "diagonal", (1, 16, 8))]


@pytest.mark.parametrize("name", ["muon", "muon-lite"])
def test_gpt2_moves_as_nanogpt_does_transposed(name: str) -> None:
    """The same weights in Conv1D's and in nn.Linear's layout get the same update."""
    generator = torch.Generator().manual_seed(0)
    linear = {
        "h.0.attn.c_attn.weight": torch.randn(24, 8, generator=generator),
        "h.0.attn.c_proj.weight": torch.randn(8, 8, generator=generator),
        "h.0.mlp.c_fc.weight": torch.randn(32, 8, generator=generator),
    }
    gradients = {key: torch.randn(value.shape, generator=generator) for key, value in linear.items()}
    moved = []
    for flip in (False, True):
        named = {key: nn.Parameter(value.T.clone() if flip else value.clone()) for key, value in linear.items()}
        optimizer = make_optimizer(name, named.items(), lr=1e-2)
        for _ in range(3):
            for key, parameter in named.items():
                parameter.grad = gradients[key].T.clone() if flip else gradients[key].clone()
            optimizer.step()
        moved.append({key: parameter.detach().T if flip else parameter.detach() for key, parameter in named.items()})
    for key in linear:
        # Float32 products of strided operands round differently.
        assert float((moved[0][key] - moved[1][key]).abs().max()) < 1e-5, key
        assert not torch.allclose(moved[0][key], linear[key], atol=1e-3)


def test_fused_parts_are_orthogonalised_one_by_one() -> None:
    weight = nn.Parameter(torch.zeros(24, 8, dtype=torch.float64))
    optimizer = make_optimizer("muon", [("h.0.attn.c_attn.weight", weight)], lr=1.0, weight_decay=0.0, ns_steps=12)
    weight.grad = torch.randn(24, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight.grad[:8] *= 100  # as one matrix, q would drown k and v
    optimizer.step()
    for part in weight.detach().split(8):
        # 0.2·√8 times an orthogonal matrix.
        values = torch.linalg.svdvals(part) / (0.2 * 8**0.5)
        assert float((values - 1).abs().max()) < 1e-6


def test_experts_are_a_batch_of_matrices() -> None:
    model = writers.make_model("qwen2_moe")
    found = geometries("muon-lite", model)
    gate_up, down = (f"model.layers.0.mlp.experts.{which}_proj" for which in ("gate_up", "down"))
    assert found[gate_up] == [("ffn", "orthogonal", (4, 8, 8))] * 2
    assert found[down] == [("ffn", "orthogonal", (4, 8, 8))]
    assert found["model.layers.0.mlp.gate.weight"] == [("router", "orthogonal", (1, 4, 8))]
    # One row has one singular direction: a vector.
    assert found["model.layers.0.mlp.shared_expert_gate.weight"] == [("router", "diagonal", (1, 1, 8))]


def test_each_expert_gets_its_own_update() -> None:
    gradients = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))
    stacked = nn.Parameter(torch.zeros(3, 6, 4))
    alone = [nn.Parameter(torch.zeros(6, 4)) for _ in range(3)]
    for name in ("muon-lite", "soap-lite"):
        named = [(f"mlp.experts.{index}.up_proj.weight", weight) for index, weight in enumerate(alone)]
        optimizers = [
            make_optimizer(name, [("mlp.experts.down_proj", stacked)], lr=1e-2),
            make_optimizer(name, named, lr=1e-2),
        ]
        for step in range(4):
            stacked.grad = gradients * (step + 1)
            for index, weight in enumerate(alone):
                weight.grad = gradients[index] * (step + 1)
            for optimizer in optimizers:
                optimizer.step()
        together = torch.stack([weight.detach() for weight in alone])
        assert torch.equal(stacked.detach(), together)


def test_groups_are_blocks_and_hyperparameters_reach_them() -> None:
    model = writers.make_model("gpt2")
    optimizer = make_optimizer(
        "muon-lite", model.named_parameters(), lr=1e-3, flat_lr_ratio={"qk": 3.0}, sharp_ratio=0.25
    )
    assert {group["block"] for group in optimizer.param_groups} == {"emb", "norm", "qk+vo", "vo", "ffn"}
    group = optimizer.param_groups[0]
    assert group["flat_lr_ratio"]["qk"] == 3.0
    assert group["flat_lr_ratio"]["emb"] == hyperparameters_of("muon-lite")["flat_lr_ratio"]["emb"] == 4.0
    assert group["sharp_ratio"] == dict.fromkeys(BLOCK_NAMES, 0.25)
    assert group["optimizer"] == "muon-lite"
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_frozen_parameters_are_left_out() -> None:
    model = writers.make_model("llama")
    model.get_parameter("lm_head.weight").requires_grad_(False)
    optimizer = make_optimizer("adamw", model.named_parameters(), lr=1e-3)
    assert not any("lm_head.weight" in group["param_names"] for group in optimizer.param_groups)


def test_a_table_of_numbers_is_no_matrix() -> None:
    """Mamba's A has two dimensions and is multiplied by nothing: entries step by themselves, undamped as biases do."""
    model = nn.ModuleDict({"mixer": nn.ParameterDict({"A_log": nn.Parameter(torch.ones(6, 4))})})
    found = {name: geometries(name, model)["mixer.A_log"] for name in ("muon", "muon-lite", "soap", "adamw")}
    assert found == {
        "muon": [("other", "diagonal", (1, 24))],
        "muon-lite": [("other", "diagonal", (1, 24))],
        "soap": [("other", "kronecker", (1, 24))],
        "adamw": [("other", "diagonal", (1, 24))],
    }
    moved = {}
    for name in ("muon", "muon-lite", "soap", "soap-lite"):
        table = nn.Parameter(torch.ones(6, 4))
        vector = nn.Parameter(torch.ones(24))
        named = [("mixer.A_log", table), ("mixer.D", vector)]
        optimizer = make_optimizer(name, named, lr=1e-2)
        gradient = torch.randn(24, generator=torch.Generator().manual_seed(4))
        for _ in range(3):
            table.grad, vector.grad = gradient.view(6, 4), gradient
            optimizer.step()
        assert torch.equal(table.flatten(), vector), name
        moved[name] = table.detach()
    assert not torch.equal(moved["muon"], torch.ones(6, 4))
    assert torch.equal(moved["muon"], moved["muon-lite"])


def test_a_model_of_ones_own_is_mapped_by_patterns() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))
    blocks = {r"[02]\.weight": "ffn", r"3\.weight": "out"}
    found = geometries("muon-lite", model, blocks=blocks)
    assert found["2.weight"] == [("ffn", "orthogonal", (1, 4, 4))]
    assert found["3.weight"] == [("out", "diagonal", (1, 2, 4))]
    assert found["0.bias"] == [("other", "diagonal", (1, 4))]
    fused = {r"0\.weight": [BlockPart("qk", 0, 0, 2), BlockPart("vo", 0, 2)]}
    assert len(geometries("muon", model, blocks={**fused, **blocks})["0.weight"]) == 2


@pytest.mark.parametrize("name", ["muon", "muon-lite", "soap-lite", "adamw-lite"])
def test_an_unmapped_matrix_is_an_error_that_says_how(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    message = r"expected a block for every matrix, got none for 0\.weight, 1\.weight; say which block .*blocks="
    with pytest.raises(InputError, match=message):
        make_optimizer(name, model.named_parameters(), lr=1e-3)
    many = {f"w{index}": nn.Parameter(torch.zeros(2, 2)) for index in range(8)}
    with pytest.raises(InputError, match="w5 and 2 more"):
        make_optimizer(name, many.items(), lr=1e-3)


@pytest.mark.parametrize("name", ["adamw", "soap", "sgd"])
def test_where_blocks_change_nothing_none_are_needed(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert {group["block"] for group in make_optimizer(name, model.named_parameters(), lr=1e-3).param_groups} == {
        "other"
    }


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("lion", {}, "expected an optimizer among adamw, adamw-lite, muon, .*got 'lion'"),
        ("muon", {"nesterov": True}, "expected hyperparameters of muon among lr, .*momentum.*, got nesterov"),
        ("muon", {"beta2": 1.0}, "got beta2; use muon-lite for those of LITE"),
        ("sgd", {"beta2": 1.0}, "expected hyperparameters of sgd among lr, momentum, weight_decay, got beta2$"),
        ("muon", {"momentum": 1.0}, r"expected momentum in \[0, 1\), got 1.0"),
        ("muon", {"ns_steps": 0}, r"expected ns_steps in \[1, 100\], got 0"),
        ("muon", {"ns_coefficients": "cubic"}, "expected ns_coefficients among polar-express, quintic, got 'cubic'"),
        ("muon", {"msign_dtype": "int8"}, "expected msign_dtype float32, bfloat16 or None, got 'int8'"),
        ("soap", {"betas": (0.9, 1.0)}, r"expected betas in \[0, 1\), got 1.0"),
        ("soap", {"precondition_frequency": 0}, r"expected precondition_frequency in \[1, 1e9\], got 0"),
        ("adamw", {"lr": -1.0}, r"expected lr in \[0, 1e6\], got -1.0"),
        ("adamw", {"lr": float("nan")}, r"expected lr in \[0, 1e6\], got nan"),
        ("adamw", {"eps": "small"}, r"expected eps in \[0, 1e12\], got 'small'"),
        ("muon-lite", {"flat_lr_ratio": 0.5}, r"expected flat_lr_ratio in \[1, 1e6\], got 0.5"),
        ("muon-lite", {"sharp_ratio": {"qk": 2.0}}, r"expected sharp_ratio in \[0, 1\], got 2.0"),
        (
            "muon-lite",
            {"sharp_ratio": {"attention": 0.1}},
            "expected sharp_ratio for blocks among emb, .*got attention",
        ),
        ("muon", {"momentum": None}, r"expected momentum in \[0, 1\), got None"),
        ("muon", {"momentum": True}, r"expected momentum in \[0, 1\), got True"),
        ("muon", {"momentum": [[0.9]]}, r"expected momentum in \[0, 1\), got \[0\.9\]"),
        ("muon", {"ns_steps": 10**5000}, r"expected ns_steps in \[1, 100\], got a int too large to show"),
        ("muon", {"ns_steps": 2.5}, r"expected ns_steps in \[1, 100\], got 2\.5"),
        ("muon", {"ns_coefficients": ["quintic"]}, r"expected ns_coefficients among .*got \['quintic'\]"),
        ("muon", {"msign_dtype": {"a": 1}}, r"expected msign_dtype float32, bfloat16 or None, got \{'a': 1\}"),
        ("muon", {"weight_decay": None}, r"expected weight_decay in \[0, 1e6\], got None"),
        ("adamw", {"lr": None}, r"expected lr in \[0, 1e6\], got None"),
        ("adamw", {"eps": "x" * 99}, r"expected eps in \[0, 1e12\], got 'x{56}\.\.\.$"),
        ("adamw-lite", {"adamw_damping": 2}, "expected adamw_damping to be True or False, got 2"),
        ("soap", {"betas": None}, r"expected betas in \[0, 1\), got None"),
        ("soap", {"betas": 0.9}, r"expected betas to be 2 numbers, got 0\.9"),
        ("soap", {"betas": (0.9,)}, r"expected betas to be 2 numbers, got \(0\.9,\)"),
        ("soap", {"shampoo_beta": 1.0}, r"expected shampoo_beta None or in \[0, 1\), got 1\.0"),
        ("muon-lite", {"sharp_ratio": None}, r"expected sharp_ratio in \[0, 1\], got None"),
        ("soap-lite", {"schedule": "cosine"}, "expected total_steps with a cosine schedule, got None"),
    ],
)
def test_what_is_refused(name: str, hyper: dict[str, Any], message: str) -> None:
    named = [("mlp.up_proj.weight", nn.Parameter(torch.zeros(2, 2)))]
    with pytest.raises(UsageError, match=message):
        make_optimizer(name, named, **{"lr": 1e-3, **hyper})


def test_no_parameters_and_tensors_of_four_dimensions_are_refused() -> None:
    with pytest.raises(InputError, match="expected trainable parameters, got none"):
        make_optimizer("adamw", [], lr=1e-3)
    with pytest.raises(InputError, match=r"expected parameters of real .*numbers, got w of torch\.complex64"):
        make_optimizer("adamw", [("w", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))], lr=1e-3)
    filters = [("mlp.up_proj.weight", nn.Parameter(torch.zeros(2, 2, 3, 3)))]
    with pytest.raises(
        InputError, match=r"expected vectors, matrices or stacks .*got mlp.up_proj.weight with shape \(2, 2, 3, 3\)"
    ):
        make_optimizer("muon", filters, lr=1e-3)
    with pytest.raises(InputError, match=r"name one of them instead of soap, or freeze mlp\.up_proj\.weight by"):
        make_optimizer("soap", filters, lr=1e-3)
    for name in ("adamw", "adamw-lite", "sgd"):  # as the hint says
        make_optimizer(name, filters, lr=1e-3)
    others = [("mlp.down_proj.weight", nn.Parameter(torch.zeros(2, 2)))]
    filters[0][1].requires_grad_(False)
    make_optimizer("soap", [*filters, *others], lr=1e-3)


def test_the_hint_on_blocks_is_followed() -> None:
    """By the optimizer, and by a task; names go before patterns."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r'blocks=\{"fc1.weight": "ffn", r"h'):
        make_optimizer("muon", model.named_parameters(), lr=1e-3)
    with pytest.raises(InputError, match=r"expected a block for every matrix, got none for 1\.weight; say which block"):
        task_with(model, {"0.weight": "ffn"})
    given = {r"\d\.weight": "ffn", "1.weight": "out"}
    make_optimizer("muon", model.named_parameters(), lr=1e-3, blocks=given)
    task = task_with(model, given)
    assert task.blocks == {
        "0.weight": (BlockPart("ffn"),),
        "0.bias": (BlockPart("other"),),
        "1.weight": (BlockPart("out"),),
        "1.bias": (BlockPart("other"),),
    }
    assert task_with(model, task.blocks).blocks == task.blocks
    with pytest.raises(
        InputError, match=r"expected a block, or parts of one parameter, for 0\.weight, got \[1, 2\]; write"
    ):
        task_with(model, {**given, "0.weight": (1, 2)})


def task_with(model: nn.Module, blocks: Any) -> Task:
    return Task(
        model=model,
        predict=models.predict_first,
        criterion=classification_cross_entropy,
        evaluation=[(torch.ones(2, 3), torch.zeros(2, dtype=torch.long))],
        blocks=blocks,
    )


def test_routers_and_vectors_of_hidden_blocks_stay_with_the_base() -> None:
    """As in the published runs: they move as under Muon while the rest moves as LITE's, in the first steps."""
    ends = []
    for name in ("muon", "muon-lite"):
        model = writers.make_model("qwen2_moe")
        optimizer = make_optimizer(name, model.named_parameters(), lr=1e-2)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        ends.append({key: parameter.detach() for key, parameter in model.named_parameters()})
    same = {key for key, value in ends[0].items() if torch.equal(value, ends[1][key])}
    assert same == {key for key in ends[0] if key.endswith(("gate.weight", "_proj.bias", "lm_head.weight"))}


def test_muon_lite_without_sharp_directions_is_muon() -> None:
    ends = []
    for name, hyper in (("muon", {}), ("muon-lite", {"sharp_ratio": 0.0, "beta1": -0.2, "flat_lr_ratio": 3.0})):
        weight = nn.Parameter(torch.ones(6, 4))
        optimizer = make_optimizer(name, [("mlp.up_proj.weight", weight)], lr=1e-2, **hyper)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            weight.grad = torch.randn(6, 4, generator=generator)
            optimizer.step()
        ends.append(weight.detach())
    assert torch.equal(*ends)


def test_hyperparameters_are_told() -> None:
    assert set(hyperparameters_of("sgd")) == {"momentum", "weight_decay"}
    assert "adamw_damping" not in hyperparameters_of("adamw")
    assert hyperparameters_of("adamw-lite")["adamw_damping"] is True
    assert hyperparameters_of("muon-lite")["adamw_damping"] is False
    with pytest.raises(UsageError, match="expected an optimizer among"):
        hyperparameters_of("adam")
