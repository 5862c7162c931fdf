"""Block patterns partition the parameters of every shipped family, or say what is left."""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from lite_probe.blocks import FAMILIES, Rule, assign_blocks, block_map, block_sizes, infer_family, read_blocks
from lite_probe.errors import InputError
from lite_probe.optim import make_optimizer
from lite_probe.results.blocks import BLOCK_NAMES, BlockMap, BlockPart
from lite_probe.subspaces import optimizer_of
from lite_probe.task import Task
from lite_probe.vectors.layout import narrow
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

# Of hidden 16, four heads of 4, feed-forward 24, 256 tokens and 32 positions; grouped: two heads of keys and values.
EMB, SQUARE, BIASED, FFN = 256 * 16, 16 * 16, 17 * 16, 3 * 24 * 16
GROUPED = {"emb": EMB, "qk": SQUARE + 128, "vo": 128 + SQUARE, "ffn": FFN}
SEPARATE = {"emb": EMB, "qk": 2 * SQUARE, "vo": 2 * SQUARE, "ffn": FFN}
TWO_LAYERS = {"emb": EMB, "qk": 2 * BIASED, "vo": 2 * BIASED, "ffn": 2 * 24 * 16 + 24 + 16}
FOUR_TIMES = {"ffn": 2 * 64 * 16 + 64 + 16}
EXPECTED_OF_OTHERS = {
    "gemma": {**GROUPED, "norm": 3 * 16},
    "gemma2": {**GROUPED, "norm": 5 * 16},
    "gemma3_text": {**GROUPED, "norm": 5 * 16 + 2 * 4},
    "smollm3": {**GROUPED, "norm": 3 * 16},
    "olmo": {**SEPARATE, "out": EMB},
    "olmo2": {**SEPARATE, "norm": 5 * 16, "out": EMB},
    "olmo3": {**SEPARATE, "norm": 5 * 16, "out": EMB},
    "olmoe": {**SEPARATE, "ffn": 4 * FFN, "router": 4 * 16, "norm": 5 * 16, "out": EMB},
    "phi": {**TWO_LAYERS, "norm": 4 * 16, "out": EMB + 256},
    "phi3": {**GROUPED, "norm": 3 * 16, "out": EMB},
    # Embeddings of width 8, two positions more than the model's, and projections to and from the width of 16.
    "opt": {**TWO_LAYERS, "emb": 256 * 8 + 34 * 16, "norm": 6 * 16, "other": 2 * 8 * 16},
    "gpt_neox": {**TWO_LAYERS, "norm": 6 * 16, "out": EMB},
    "bloom": {**TWO_LAYERS, **FOUR_TIMES, "norm": 8 * 16},
    "falcon": {"emb": EMB, "qk": SQUARE + 64, "vo": 64 + SQUARE, "ffn": 2 * 64 * 16, "norm": 4 * 16},
    "falcon-heads": {**TWO_LAYERS, **FOUR_TIMES, "norm": 4 * 16},
    "falcon-groups": {**GROUPED, "ffn": 2 * 64 * 16, "norm": 6 * 16},
    "deepseek_v3": {
        "emb": EMB,
        # Two layers: queries through 6 dimensions, keys of 3 from the latent 5 and of 4 that rotate; values of 2.
        "qk": 2 * (6 * 16 + 4 * 7 * 6 + 4 * 16 + 4 * 3 * 5),
        "vo": 2 * (4 * 2 * 5 + 16 * 8),
        "other": 2 * 5 * 16,
        "ffn": FFN + 5 * 3 * 8 * 16,  # a dense layer; four experts and a shared one
        "router": 4 * 16,
        "norm": 5 * 16 + 2 * (6 + 5),
        "out": EMB,
    },
    "bert": {**TWO_LAYERS, "emb": EMB + 32 * 16 + 2 * 16, "norm": 8 * 16, "out": BIASED + 256},
    "mamba": {
        "emb": EMB,
        "ffn": 64 * 16 + 16 * 32,
        "norm": 2 * 16,
        "other": 32 * 4 + 32 + 32 * 4 + 32 + (3 + 2 * 4) * 32 + 32 * 3 + 32,  # A, D, convolution, x and dt projections
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
            length = part.period or painted.shape[part.dim]
            stop = length if part.stop is None else part.stop
            inside = [part.start <= row % length < stop for row in range(painted.shape[part.dim])]
            painted.movedim(part.dim, 0)[torch.tensor(inside)] += 1
        assert torch.equal(painted, torch.ones(shapes[name])), name


@pytest.mark.parametrize("name", writers.CONFIGS)
def test_blocks_partition_every_family(name: str) -> None:
    shapes = shapes_of(writers.make_model(name))
    blocks = block_map(shapes, writers.CONFIGS[name]["model_type"])
    assert_partition(shapes, blocks)
    assert block_sizes(shapes, blocks) == EXPECTED[name]


@pytest.mark.parametrize("name", families.CONFIGS)
def test_blocks_partition_other_families(name: str) -> None:
    model = families.make_model(families.CONFIGS[name])
    shapes = shapes_of(model)
    blocks = block_map(shapes, model.config.model_type, config=model.config)
    assert_partition(shapes, blocks)
    order = {block: EXPECTED_OF_OTHERS[name][block] for block in BLOCK_NAMES if block in EXPECTED_OF_OTHERS[name]}
    assert block_sizes(shapes, blocks) == order
    # Where the config is not at hand, what only it tells is left open, and all else is as it is.
    parts, unknown = assign_blocks(shapes, model.config.model_type)
    assert all("query_key_value" in one or "qkv" in one or "kv_" in one for one in unknown)
    assert {one: blocks[one] for one in parts} == parts


def captured_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, ...]]:
    """Fills with the queries, keys and values that the model's own code divides a fused weight's outputs into."""
    from transformers.models.bloom.modeling_bloom import BloomAttention
    from transformers.models.falcon.modeling_falcon import FalconAttention

    calls: list[tuple[torch.Tensor, ...]] = []
    divides = {"bloom": (BloomAttention, "_reshape")} | {
        one: (FalconAttention, "_split_heads") for one in families.CONFIGS if one.startswith("falcon")
    }
    if name in divides:
        owner, method = divides[name]
        divide = getattr(owner, method)

        def recorded(self: nn.Module, fused: torch.Tensor) -> tuple[torch.Tensor, ...]:
            heads = divide(self, fused)
            calls.append(tuple(one if name == "bloom" else one.transpose(1, 2) for one in heads))
            return tuple(heads)

        monkeypatch.setattr(owner, method, recorded)
        return calls
    module = import_module(f"transformers.models.{name}.modeling_{name}")
    attend = module.eager_attention_forward

    def attention(of: nn.Module, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append((query, key, value))
        return attend(of, query, key, value, *args, **kwargs)

    monkeypatch.setattr(module, "eager_attention_forward", attention)
    return calls


# What each part of a fused weight makes: queries, keys, values.
MAKES = {
    "query_key_value": ("q", "k", "v"),
    "qkv_proj": ("q", "k", "v"),
    "kv_a_proj_with_mqa": ("kv", "k"),  # the latent of both, which is in `other`
    "kv_b_proj": ("k", "v"),
}
FUSED = ("gpt_neox", "phi3", "bloom", "falcon", "falcon-heads", "falcon-groups", "deepseek_v3")


@pytest.mark.parametrize("name", FUSED)
def test_each_part_of_a_fused_weight_is_what_the_model_takes_it_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Move one part alone: what it makes changes in every head, and the rest stays bitwise."""
    model = families.make_model(families.CONFIGS[name])
    blocks = block_map(shapes_of(model), model.config.model_type, config=model.config)
    calls = captured_attention(name, monkeypatch)
    ids = torch.randint(256, (2, 6), generator=torch.Generator().manual_seed(3))

    def heads_of_first_layer() -> tuple[torch.Tensor, ...]:
        calls.clear()
        model(input_ids=ids, use_cache=False)
        return calls[0]  # each (2, heads, 6, dimensions of a head)

    tested = set()
    with torch.no_grad():
        before = heads_of_first_layer()
        for key, parameter in model.named_parameters():
            fused = key.split(".")[-2]
            if fused not in MAKES or ".1." in key:
                continue
            for part, makes in zip(blocks[key], MAKES[fused], strict=True):
                kept = parameter.clone()
                narrow(parameter, part).add_(1.0)
                after = heads_of_first_layer()
                parameter.copy_(kept)
                for word, old, new in zip("qkv", before, after, strict=True):
                    changed = (old != new).any(dim=2).any(dim=0)  # (heads, dimensions of a head)
                    if word not in makes:
                        assert not changed.any(), (key, part, word)
                    elif name == "deepseek_v3":  # keys are of two parts
                        assert changed.any(dim=1).all(), (key, part, word)
                    else:
                        assert changed.all(), (key, part, word)
                assert part.block == {"q": "qk", "k": "qk", "v": "vo", "kv": "other"}[makes]
                tested.add((fused, makes))
    assert len(tested) == (4 if name == "deepseek_v3" else 3)


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
    message = r"none for model\.layers\.0\.adapter\.weight, .* and 1 more; say which by --blocks FILE .*families: llama"
    with pytest.raises(InputError, match=message):
        block_map({"lm_head.weight": (2, 2), **names}, "llama")


@pytest.mark.parametrize("family", [None, "rwkv"])
def test_an_unknown_family_is_an_error(family: str | None) -> None:
    message = f"expected a block for every parameter of {family or 'a model of no known family'}, got none for w; say"
    with pytest.raises(InputError, match=message):
        block_map({"w": (2, 2)}, family)


def test_what_only_the_config_tells_is_asked_for() -> None:
    model = families.make_model(families.CONFIGS["gpt_neox"])
    message = r"got none for gpt_neox\.layers\.0\.attention\.query_key_value\.weight; say .* config=model\.config"
    with pytest.raises(InputError, match=message):
        make_optimizer("muon", model.named_parameters(), lr=1e-3)
    made = make_optimizer("muon", model.named_parameters(), lr=1e-3, config=model.config)
    assert {group["block"] for group in made.param_groups} == {"emb", "norm", "qk+vo", "vo", "ffn", "out"}
    broken = SimpleNamespace(model_type="gpt_neox", num_attention_heads=5)
    message = (
        r"expected a fused dimension divisible by 3 in .*query_key_value\.weight, each part by 5, got shape \(48, 16\)"
    )
    with pytest.raises(InputError, match=message):
        block_map(shapes_of(model), "gpt_neox", config=broken)


def test_an_unknown_family_may_fuse_its_weights_in_an_order_of_its_own() -> None:
    """GPT-BigCode has GPT-2's names, with one key and one value for all queries: thirds would be wrong."""
    shapes = {"transformer.h.0.attn.c_attn.weight": (24, 16), "transformer.h.0.mlp.c_fc.weight": (64, 16)}
    parts, unknown = assign_blocks(shapes, "gpt_bigcode")
    assert (set(parts), unknown) == ({"transformer.h.0.mlp.c_fc.weight"}, ["transformer.h.0.attn.c_attn.weight"])
    assert assign_blocks(shapes, None)[1] == []
    task = task_of(WithConfig(shapes, SimpleNamespace(model_type="gpt_bigcode")), None)
    with pytest.raises(InputError, match=r"expected a block for every matrix, got none for .*c_attn\.weight"):
        optimizer_of(task, "muon")
    assert optimizer_of(task, "adamw").param_groups


class WithConfig(nn.Module):
    """A module of these parameters and config."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], config: object) -> None:
        super().__init__()
        self.config = config
        for name, shape in shapes.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for word in path:
                if not hasattr(module, word):
                    module.add_module(word, nn.Module())
                module = getattr(module, word)
            module.register_parameter(last, nn.Parameter(torch.ones(shape)))


def task_of(model: nn.Module, blocks: Any) -> Task:
    return Task(
        model=model,
        predict=lambda module, batch: batch,
        criterion=lambda outputs, batch: (outputs.sum(), 1),
        evaluation=[torch.ones(1)],
        blocks=blocks,
    )


TOY = (
    Rule(r"table\.weight", ("emb",)),
    Rule(r"mix\.weight", ("vo", "qk"), axis=0, widths=("value_width", "key_width"), repeats="heads"),
    Rule(r"gain", ("norm",)),
)


def test_a_family_is_one_entry_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast(dict[str, Any], FAMILIES), "toy", TOY)
    config = SimpleNamespace(model_type="toy", heads=2, value_width=3, key_width=1)
    shapes = {"table.weight": (9, 4), "layers.0.mix.weight": (8, 4), "layers.0.gain": (4,)}
    task = task_of(WithConfig(shapes, config), {})
    expected = {
        "table.weight": (BlockPart("emb"),),
        "layers.0.mix.weight": (BlockPart("vo", 0, 0, 3, 4), BlockPart("qk", 0, 3, 4, 4)),
        "layers.0.gain": (BlockPart("norm"),),
    }
    assert task.blocks == expected == block_map(shapes, "toy", config=config)
    assert_partition(shapes, expected)
    assert block_sizes(shapes, expected) == {"emb": 36, "qk": 8, "vo": 24, "norm": 4}
    assert {group["block"] for group in optimizer_of(task, "muon-lite").param_groups} == {"emb", "vo+qk", "norm"}
    assert infer_family(shapes) == "toy"


def test_blocks_may_be_given_to_a_task_later() -> None:
    task = task_of(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), {"0.weight": "ffn", "1.weight": "ffn"})
    task.give_blocks({r"1\..*": "out"})
    blocks = {name: parts[0].block for name, parts in (task.blocks or {}).items()}
    assert blocks == {"0.weight": "ffn", "0.bias": "other", "1.weight": "out", "1.bias": "out"}
    with pytest.raises(InputError, match=r"expected patterns that match .*, got 'fc3', which matches none"):
        task.give_blocks({r"1\..*": "out", "fc3": "ffn"})


def test_a_file_to_start_from_has_a_line_for_all_layers() -> None:
    """What is known by its name, as GPT-2's `wte` and `ln_1` are, is not in it."""
    of_layer = ("attn.q_proj.weight", "attn.qkv.weight", "mlp.fc_in.bias", "mlp.gate.weight", "ln_1.weight", "x.A")
    names = [f"h.{layer}.{name}" for layer in range(2) for name in of_layer]
    shapes = dict.fromkeys(("wte.weight", "head.weight", "it's.o_proj.weight", *names), (2, 2))
    with pytest.raises(InputError) as caught:
        block_map(shapes, "new")
    assert caught.value.sample.splitlines() == [
        "# blocks are emb, qk, vo, ffn, router, norm, out, other",
        r"""'head\.weight' = "out"  # a guess, by its name""",
        r""""it's\\.o_proj\\.weight" = "vo"  # a guess, by its name""",
        r"""'h\.\d+\.attn\.q_proj\.weight' = "qk"  # a guess, by its name""",
        r"""'h\.\d+\.attn\.qkv\.weight' = "other"  # queries, keys and values in one: blocks= in Python divides it""",
        r"""'h\.\d+\.mlp\.fc_in\.bias' = "ffn"  # a guess, by its name""",
        r"""'h\.\d+\.mlp\.gate\.weight' = "router"  # a guess, by its name""",
        r"""'h\.\d+\.x\.A' = "other"  # its name tells nothing""",
    ]
    assert str(caught.value).endswith(caught.value.sample)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"fc1.weight" = "head"\n', r"expected a block among emb, .* for 'fc1\.weight' in .*, got 'head'; write lines"),
        ('"fc1.weight" = 3\n', r"expected a block among emb, .*, got 3"),
        ('"fc1.weight" = ["qk"]\n', r"expected a block among emb, .*, got \['qk'\]"),
        ('fc1.weight = "ffn"\n', r"expected a block for 'fc1' in .*, got a table; put the pattern in quotes"),
        ("", r"expected lines pattern = block in .*, got none"),
        ("fc1\n", r"expected TOML in .*, got Expected '='"),
        ("a = " + "[" * 9000, r"expected TOML in .*, got values nested too deeply"),
        ("# " + "x" * 2**20, r"expected a file of blocks of at most 1,048,576 bytes"),
    ],
)
def test_files_of_blocks_that_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "blocks.toml").write_text(content)
    with pytest.raises(InputError, match=message):
        read_blocks(tmp_path / "blocks.toml")


def test_only_a_regular_file_of_blocks_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"expected a file of blocks at .*, which is no regular file"):
        read_blocks(tmp_path / "pipe")
    (tmp_path / "good.toml").write_text("'fc1\\.weight' = 'ffn'\n\"lm\" = \"out\"\n")
    assert read_blocks(tmp_path / "good.toml") == {r"fc1\.weight": "ffn", "lm": "out"}


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
        ({"w": (BlockPart("qk", 0, 0, 1, 2), BlockPart("vo", 0, 1, 2))}, "expected parts that partition"),
        ({"w": (BlockPart("qk", 0, 0, 1, 3), BlockPart("vo", 0, 1, 3, 3))}, "expected parts that partition"),
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
