"""Block patterns partition the parameters of every shipped family, or say what is left."""

import pytest
import torch
from torch import nn

from lite_probe.blocks import FAMILIES, block_map, block_sizes
from lite_probe.errors import InputError
from lite_probe.results.blocks import BlockMap, BlockPart
from tests import families
from tests.checkpoints import writers

# A llama of hidden 8, feed-forward 16, two heads, one key-value head of 4, one layer, 32 tokens.
LLAMA = {"emb": 256, "qk": 64 + 32, "vo": 32 + 64, "ffn": 3 * 128, "norm": 3 * 8, "out": 256}
EXPECTED = {
    "llama": LLAMA,
    "llama-tied": {name: size for name, size in LLAMA.items() if name != "out"},
    "mistral": LLAMA,
    "qwen2": {**LLAMA, "qk": 96 + 12, "vo": 96 + 4},  # biases of q, k and v
    "qwen2-tied": {"emb": 256, "qk": 108, "vo": 100, "ffn": 384, "norm": 24},
    "qwen3": {**LLAMA, "norm": 3 * 8 + 2 * 4},  # norms of queries and keys
    # Four experts and a shared one of width 8; gates of the experts and of the shared one.
    "qwen2_moe": {**LLAMA, "qk": 108, "vo": 100, "ffn": 5 * 3 * 64, "router": 4 * 8 + 8},
    "qwen3_moe": {**LLAMA, "ffn": 4 * 3 * 64, "router": 32, "norm": 32},
    "mixtral": {**LLAMA, "ffn": 4 * 3 * 128, "router": 32},
    "gpt2": {
        "emb": 256 + 128,
        "qk": 128 + 16,  # two thirds of c_attn and of its bias
        "vo": 64 + 8 + 64 + 8,
        "ffn": 2 * 256 + 32 + 8,
        "norm": 6 * 8,
    },
}


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def assert_partition(shapes: dict[str, tuple[int, ...]], blocks: BlockMap) -> None:
    """Paint each part onto a tensor of its parameter's shape; every element must be painted once."""
    assert list(blocks) == list(shapes)
    for name, parts in blocks.items():
        painted = torch.zeros(shapes[name])
        for part in parts:
            if part == BlockPart(part.block):
                painted += 1
                continue
            stop = painted.shape[part.dim] if part.stop is None else part.stop
            painted.narrow(part.dim, part.start, stop - part.start).add_(1)
        assert torch.equal(painted, torch.ones(shapes[name])), name


@pytest.mark.parametrize("name", writers.CONFIGS)
def test_blocks_partition_every_family(name: str) -> None:
    shapes = shapes_of(writers.make_model(name))
    blocks = block_map(shapes, writers.CONFIGS[name]["model_type"])
    assert_partition(shapes, blocks)
    assert block_sizes(shapes, blocks) == EXPECTED[name]


def test_every_family_is_tested() -> None:
    assert {config["model_type"] for config in (writers.CONFIGS | families.CONFIGS).values()} | {"nanogpt"} == set(
        FAMILIES
    )


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_names_in_linear_layout(bias: bool) -> None:
    weights = writers.nanogpt_state_dict(bias=bias)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items() if name != "lm_head.weight"}
    blocks = block_map(shapes, "nanogpt")
    assert_partition(shapes, blocks)
    assert block_sizes(shapes, blocks)["qk"] == 128 + (16 if bias else 0)


def test_a_fused_weight_is_divided_along_its_fused_dimension() -> None:
    gpt2 = block_map({"transformer.h.0.attn.c_attn.weight": (8, 24)}, "gpt2")
    assert list(gpt2.values()) == [(BlockPart("qk", 1, 0, 8), BlockPart("qk", 1, 8, 16), BlockPart("vo", 1, 16, 24))]
    nanogpt = block_map({"transformer.h.0.attn.c_attn.weight": (24, 8)}, "nanogpt")
    assert list(nanogpt.values()) == [(BlockPart("qk", 0, 0, 8), BlockPart("qk", 0, 8, 16), BlockPart("vo", 0, 16, 24))]
    with pytest.raises(InputError, match=r"expected a fused dimension divisible by 3 in h\.0\.attn\.c_attn\.weight"):
        block_map({"h.0.attn.c_attn.weight": (8, 25)}, "gpt2")


def test_names_that_match_nothing_are_an_error_that_names_them() -> None:
    names = {f"model.layers.{layer}.adapter.weight": (2, 2) for layer in range(9)}
    message = r"got none for model\.layers\.0\.adapter\.weight, .* and 1 more; known families are llama, mistral"
    with pytest.raises(InputError, match=message):
        block_map({"lm_head.weight": (2, 2), **names}, "llama")


@pytest.mark.parametrize("family", [None, "rwkv"])
def test_an_unknown_family_is_an_error(family: str | None) -> None:
    message = f"expected a block for every parameter of {family or 'a model of no known family'}, got none for w; known"
    with pytest.raises(InputError, match=message):
        block_map({"w": (2, 2)}, family)


def test_overrides_come_first() -> None:
    shapes = {"lm_head.weight": (4, 2), "blocks.0.qkv.weight": (6, 2), "scale": ()}
    parts = (BlockPart("qk", 0, 0, 4), BlockPart("vo", 0, 4))
    blocks = block_map(shapes, "llama", overrides={r"qkv\.weight": parts, "scale|lm_head.weight": "other"})
    assert_partition(shapes, blocks)
    assert block_sizes(shapes, blocks) == {"qk": 8, "vo": 4, "other": 9}
    assert block_map({"scale": ()}, None, overrides={"scale": "other"}) == {"scale": (BlockPart("other"),)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"w": "head"}, "expected a block among emb, qk, .* for w, got 'head'"),
        ({"w": ()}, "expected parts that partition one dimension of w"),
        ({"w": (BlockPart("qk", 0, 0, 2),)}, "expected parts that partition one dimension of w"),
        ({"w": (BlockPart("qk", 0, 0, 2), BlockPart("vo", 0, 3))}, "expected parts that partition"),
        ({"w": (BlockPart("qk", 0, 0, 2), BlockPart("vo", 1, 2))}, "expected parts that partition"),
        ({"w": (BlockPart("qk", 5),)}, "expected parts that partition"),
        ({"(": "qk"}, "expected a regular expression as block override"),
    ],
)
def test_overrides_that_are_no_partition(override: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        block_map({"w": (4, 4)}, "llama", overrides=override)


def test_the_checkpoint_maps_its_own_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    from lite_probe.checkpoints import open_checkpoint

    path = tmp_path_factory.mktemp("nanogpt") / "ckpt.pt"
    writers.write_nanogpt(path)
    checkpoint = open_checkpoint(path)
    model = checkpoint.build_model()
    blocks = checkpoint.block_map(model)
    assert_partition(shapes_of(model), blocks)
    assert block_sizes(shapes_of(model), blocks) == checkpoint.summary().block_parameters
    assert set(checkpoint.block_map(model, overrides={".*": "other"}).values()) == {(BlockPart("other"),)}
