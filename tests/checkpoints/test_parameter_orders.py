"""Saved entries find their parameters by name, or by an order that every shape fits."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer

from lite_probe.blocks import assign_blocks
from lite_probe.checkpoints.parameter_orders import Assignment, assign_entries, saved_entries
from lite_probe.errors import InputError
from tests.checkpoints import writers

Shapes = dict[str, tuple[int, ...]]
Part = list[str]


def shapes_of(name: str) -> Shapes:
    return {key: tuple(parameter.shape) for key, parameter in writers.make_model(name).named_parameters()}


def blocks_of(shapes: Shapes, family: str) -> dict[str, str]:
    parts, unknown = assign_blocks(shapes, family)
    assert not unknown
    return {name: own[0].block for name, own in parts.items()}


def moments(shape: tuple[int, ...], kind: str = "adam") -> dict[str, Tensor]:
    if kind == "muon":
        return {"momentum_buffer": torch.zeros(shape)}
    return {"exp_avg": torch.zeros(shape), "exp_avg_sq": torch.zeros(shape), "step": torch.tensor(1.0)}


def saved(shapes: Shapes, *parts: Part, muon: Part | None = None, apart: bool = False) -> list[dict[str, Any]]:
    """Return the state dict of an optimizer with these groups, or one optimizer for each of them."""
    state, groups, count = {}, [], 0
    for part in parts:
        for offset, name in enumerate(part):
            state[count + offset] = moments(shapes[name], "muon" if name in (muon or ()) else "adam")
        groups.append({"params": list(range(count, count + len(part)))})
        count += len(part)
    if not apart:
        return [{"state": state, "param_groups": groups}]
    return [{"state": {i: state[i] for i in group["params"]}, "param_groups": [group]} for group in groups]


def assign(states: list[dict[str, Any]], shapes: Shapes, family: str = "llama") -> Assignment:
    return assign_entries(saved_entries(states), shapes, blocks_of(shapes, family))


def split(shapes: Shapes, family: str = "llama") -> tuple[Part, Part, Part, Part]:
    """Return hidden matrices, embeddings, head and vectors."""
    blocks = blocks_of(shapes, family)
    matrices = [name for name in shapes if len(shapes[name]) > 1]
    hidden = [name for name in matrices if blocks[name] not in ("emb", "out")]
    embeddings = [name for name in matrices if blocks[name] == "emb"]
    head = [name for name in matrices if blocks[name] == "out"]
    return hidden, embeddings, head, [name for name in shapes if name not in matrices]


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2", "qwen2_moe", "gpt2"])
def test_the_models_own_order(name: str) -> None:
    shapes = shapes_of(name)
    assigned = assign(saved(shapes, list(shapes)), shapes, writers.CONFIGS[name]["model_type"])
    assert assigned.names == tuple(shapes)
    assert assigned.order == "all parameters, in the model's order"


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mixtral", "gpt2"])
def test_the_order_of_hugging_faces_trainer(name: str) -> None:
    model = writers.make_model(name)
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # it needs no trainer
    shapes = shapes_of(name)
    parts = [key for key in shapes if key in decayed], [key for key in shapes if key not in decayed]
    assert all(parts)
    assigned = assign(saved(shapes, *parts), shapes, writers.CONFIGS[name]["model_type"])
    assert assigned.names == (*parts[0], *parts[1])
    assert not assigned.disputed


def test_the_trainers_older_order_and_mingpts() -> None:
    shapes = shapes_of("qwen2")
    parts = [key for key in shapes if "bias" not in key], [key for key in shapes if "bias" in key]
    assigned = assign(saved(shapes, *parts), shapes, "qwen2")
    assert assigned.names == (*parts[0], *parts[1])
    assert assigned.order == "all but biases, then biases, in the model's order"
    shapes = shapes_of("gpt2")
    linear = sorted(key for key in shapes if len(shapes[key]) > 1 and "transformer.w" not in key)
    others = sorted(set(shapes) - set(linear))
    assigned = assign(saved(shapes, linear, others), shapes, "gpt2")
    assert assigned.names == (*linear, *others)
    assert assigned.order == "hidden matrices, then all but hidden matrices, each by name"  # the head is tied


@pytest.mark.parametrize("apart", [True, False], ids=["optimizers", "groups"])
@pytest.mark.parametrize("first", ["hidden", "rest"])
def test_muon_for_hidden_matrices_and_adamw_for_the_rest(first: str, apart: bool) -> None:
    shapes = shapes_of("llama")
    hidden, *_ = split(shapes)
    rest = [name for name in shapes if name not in hidden]
    parts = (hidden, rest) if first == "hidden" else (rest, hidden)
    assigned = assign(saved(shapes, *parts, muon=hidden, apart=apart), shapes)
    assert assigned.names == (*parts[0], *parts[1])
    one_group = assign(saved(shapes, [*parts[0], *parts[1]], muon=hidden), shapes)  # Moonlight's
    assert one_group.names == (*parts[0], *parts[1])


def test_k_jordans_example_sorts_hidden_matrices_by_size_and_leaves_embedding_and_head_undecided() -> None:
    shapes = shapes_of("llama")
    hidden, embeddings, head, vectors = split(shapes)
    by_size = sorted(hidden, key=lambda name: torch.Size(shapes[name]), reverse=True)
    assert by_size != hidden
    assigned = assign(saved(shapes, head, embeddings, vectors, by_size, muon=hidden), shapes)
    # Head and embedding have one shape, and either may have come first.
    assert assigned.disputed == {*head, *embeddings}
    assert assigned.names == (None, None, *vectors, *by_size)
    tied = shapes_of("llama-tied")
    hidden, embeddings, head, vectors = split(tied)
    by_size = sorted(hidden, key=lambda name: torch.Size(tied[name]), reverse=True)
    assigned = assign(saved(tied, embeddings, vectors, by_size, muon=hidden), tied)
    assert not assigned.disputed
    assert assigned.names == (*embeddings, *vectors, *by_size)


def test_one_of_two_optimizers_alone() -> None:
    shapes = shapes_of("llama")
    hidden, *_ = split(shapes)
    assigned = assign(saved(shapes, hidden, muon=hidden), shapes)
    assert assigned.names == tuple(hidden)
    assert assigned.order == "hidden matrices, in the model's order"


def test_the_groups_decide_between_orders_that_fit() -> None:
    """Everything square: any order of the matrices fits."""
    shapes: Shapes = {
        "model.embed_tokens.weight": (4, 4),
        "model.layers.0.self_attn.q_proj.weight": (4, 4),
        "model.layers.0.mlp.up_proj.weight": (4, 4),
        "lm_head.weight": (4, 4),
    }
    whole = assign(saved(shapes, list(shapes)), shapes)
    assert whole.names == tuple(shapes)
    assert whole.others == ("all parameters, each by name",)
    assert not whole.disputed  # custom decides
    hidden = list(shapes)[1:3]
    rest = [name for name in shapes if name not in hidden]
    parted = assign(saved(shapes, hidden, rest), shapes)
    assert parted.disputed == set(shapes)  # two and two: nothing tells which two are the hidden ones
    assert parted.names == (None,) * 4
    shapes["model.layers.0.mlp.down_proj.weight"] = (4, 4)
    hidden.append("model.layers.0.mlp.down_proj.weight")
    parted = assign(saved(shapes, hidden, rest), shapes)
    assert parted.names == (*hidden, *rest)
    assert not parted.disputed


def test_the_kinds_of_entries_decide_between_orders_that_fit() -> None:
    """One group for Muon and its AdamW, as Moonlight's: what is saved changes where the hidden matrices end."""
    names = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"]
    names += ["model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight", "lm_head.weight"]
    shapes: Shapes = dict.fromkeys(names, (4, 4))
    hidden, rest = names[1:4], [names[0], names[4]]
    assigned = assign(saved(shapes, [*hidden, *rest], muon=hidden), shapes)
    assert assigned.names == (*hidden, *rest)
    assert not assigned.disputed


def test_an_order_is_not_believed_where_a_shape_is_wrong() -> None:
    shapes = shapes_of("llama")
    states = saved(shapes, list(shapes))
    states[0]["state"][3]["exp_avg"] = torch.zeros(3, 3)
    assigned = assign(states, shapes)
    assert set(assigned.names) == {None}
    assert assigned.problem.startswith("no known order of the model's 12 parameters has the shapes of the 12 saved")
    shuffled = list(shapes)
    random.Random(0).shuffle(shuffled)
    assert assign(saved(shapes, shuffled), shapes).problem.startswith("no known order")


def test_entries_that_never_stepped_do_not_disturb_the_order() -> None:
    shapes = shapes_of("llama")
    states = saved(shapes, list(shapes))
    del states[0]["state"][2]
    assigned = assign(states, shapes)
    assert assigned.names == tuple(shapes)
    assert not assigned.disputed


def test_names_win_over_order() -> None:
    shapes = shapes_of("llama")
    backwards = list(reversed(shapes))
    states = saved(shapes, backwards)
    states[0]["param_groups"][0]["param_names"] = [f"module._orig_mod.net.{name}" for name in backwards]
    assigned = assign(states, shapes)
    assert assigned.names == tuple(backwards)
    assert assigned.order == ""
    states = saved(shapes, backwards)
    for values, name in zip(states[0]["state"].values(), backwards, strict=True):
        values["name"] = name.lower()
    assert assign(states, shapes).names == tuple(backwards)
    keyed = {"state": {name: moments(shapes[name]) for name in shapes}, "param_groups": [{"params": backwards}]}
    assert assign([keyed], shapes).names == tuple(backwards)


def test_names_of_another_model_belong_to_nothing() -> None:
    shapes = shapes_of("llama")
    states = saved(shapes, list(shapes))
    states[0]["param_groups"][0]["param_names"] = [f"encoder.{index}" for index in range(len(shapes))]
    assert assign(states, shapes).problem == "the saved names, such as encoder.0, are not this model's"


def test_nothing_saved_and_nothing_known() -> None:
    shapes = shapes_of("llama")
    assert assign([], shapes).problem == "none was saved"
    unknown = {"state": {0: {"square_avg": torch.ones(3)}}, "param_groups": [{"params": [0]}]}
    assert assign([unknown], shapes).problem == "the saved state has no entries of a known optimizer"


def test_two_entries_of_one_name_are_refused() -> None:
    shapes = shapes_of("llama")
    names = ["lm_head.weight", "model.norm.weight", "lm_head.weight"]
    states = saved(shapes, names)
    states[0]["param_groups"][0]["param_names"] = names
    with pytest.raises(InputError, match="expected one saved optimizer state per parameter, got two for lm_head"):
        assign(states, shapes)


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({}, "expected a list of state dicts as optimizer state, got dict {}; pass the state dicts that"),
        ([3], "expected state dicts as optimizer state, got int 3"),
        ([{"state": [], "param_groups": []}], r"expected a dict as state as optimizer state, got list \[\]"),
        ([{"state": {}}], "expected a list as param_groups as optimizer state, got NoneType"),
        ([{"state": {}, "param_groups": [7]}], "expected parameter groups with a list of params"),
        ([{"state": {}, "param_groups": [{"params": 0}]}], "expected parameter groups with a list of params"),
        ([{"state": {}, "param_groups": [{"params": [True]}]}], "expected numbers or names as params"),
        ([{"state": {0: 1}, "param_groups": [{"params": [0]}]}], "expected dicts as state of a parameter"),
        ([{"state": {}, "param_groups": [{"params": [0], "param_names": ["a", "b"]}]}], "expected 1 param_names"),
    ],
)
def test_what_is_no_state_dict_is_refused(states: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        saved_entries(states)
