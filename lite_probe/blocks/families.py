"""The families whose blocks are known: name patterns, as data.

A pattern must match from the last dots of a name backwards: `q_proj.weight` matches
`model.layers.0.self_attn.q_proj.weight`. The first match wins. To add a family is to add one entry to `FAMILIES`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Width = int | str  # a number, or the name that the model's config has for one


@dataclass(frozen=True, slots=True)
class Rule:
    """Names that match `pattern` are divided among `shares`, blocks in order.

    One share takes the whole parameter. Several are matrices that were fused, and divide `axis`, or else the longest
    dimension: a fused attention weight has three times as many output as input features, whichever way round it is
    stored. They are equal, or in proportion to `widths`. Where every head (or group of heads) has its own query, key
    and value one after another, `repeats` is how often they come.
    """

    pattern: str  # a regular expression for the end of a name, from the beginning or behind a dot
    shares: tuple[str, ...]
    axis: int | None = None
    widths: tuple[Width, ...] = ()  # of the shares, over all repeats; (): equal
    repeats: Width = 1
    when: str | None = None  # the name of a config's value that has to be true


def _whole(block: str, *patterns: str) -> tuple[Rule, ...]:
    return tuple(Rule(pattern, (block,)) for pattern in patterns)


_LLAMA = (
    *_whole("emb", r"embed_tokens\.weight"),
    *_whole("norm", r"\w*(layer)?norm\.(weight|bias)"),
    *_whole("qk", r"self_attn\.[qk]_proj\.(weight|bias)"),
    *_whole("vo", r"self_attn\.[vo]_proj\.(weight|bias)"),
    *_whole("router", r"mlp\.gate\.weight", r"mlp\.shared_expert_gate\.weight", r"block_sparse_moe\.gate\.weight"),
    *_whole(
        "ffn",
        r"mlp\.(gate|up|down)_proj\.(weight|bias)",
        r"mlp\.shared_experts?\.(gate|up|down)_proj\.weight",
        r"mlp\.experts\.down_proj",  # (experts, out, in): batches of matrices
        r"mlp\.experts\.\d+\.(gate|up|down)_proj\.weight",
    ),
    Rule(r"mlp\.experts\.gate_up_proj", ("ffn", "ffn"), axis=1),
    *_whole("out", r"lm_head\.(weight|bias)"),
)

_GPT2 = (
    *_whole("emb", r"wte\.weight", r"wpe\.weight"),
    *_whole("norm", r"ln_(1|2|f)\.(weight|bias)"),
    Rule(r"attn\.c_attn\.(weight|bias)", ("qk", "qk", "vo")),
    *_whole("vo", r"attn\.c_proj\.(weight|bias)"),
    *_whole("ffn", r"mlp\.c_(fc|proj)\.(weight|bias)"),
    *_whole("out", r"lm_head\.weight"),
)

_PHI = (
    *_whole("vo", r"self_attn\.dense\.(weight|bias)"),
    *_whole("ffn", r"mlp\.fc[12]\.(weight|bias)"),
    *_LLAMA,
)

_PHI3 = (
    Rule(
        r"self_attn\.qkv_proj\.weight",  # all queries, all keys, all values
        ("qk", "qk", "vo"),
        axis=0,
        widths=("num_attention_heads", "num_key_value_heads", "num_key_value_heads"),
    ),
    Rule(r"mlp\.gate_up_proj\.weight", ("ffn", "ffn"), axis=0),
    *_LLAMA,
)

_OPT = (
    *_whole("emb", r"embed_tokens\.weight", r"embed_positions\.weight"),
    *_whole("norm", r"\w*layer_norm\.(weight|bias)"),
    *_whole("qk", r"self_attn\.[qk]_proj\.(weight|bias)"),
    *_whole("vo", r"self_attn\.(v|out)_proj\.(weight|bias)"),
    *_whole("ffn", r"fc[12]\.(weight|bias)"),
    *_whole("other", r"project_(in|out)\.weight"),  # between embeddings and a wider model
    *_whole("out", r"lm_head\.weight"),
)

# GPT-NeoX, Bloom and Falcon: each head has its query, key and value one after another.
_PER_HEAD = Rule(
    r"(self_)?attention\.query_key_value\.(weight|bias)", ("qk", "qk", "vo"), axis=0, repeats="num_attention_heads"
)
_NEOX = (
    *_whole("emb", r"embed_in\.weight", r"word_embeddings\.weight"),
    *_whole("norm", r"\w*(layernorm|layer_norm)\.(weight|bias)", r"ln_(f|attn|mlp)\.(weight|bias)"),
    _PER_HEAD,
    *_whole("vo", r"(self_)?attention\.dense\.(weight|bias)"),
    *_whole("ffn", r"mlp\.dense_(h_to_4h|4h_to_h)\.(weight|bias)"),
    *_whole("out", r"(lm_head|embed_out)\.weight"),
)
_FALCON = (
    # Groups of several queries with one key and one value.
    Rule(
        _PER_HEAD.pattern,
        _PER_HEAD.shares,
        axis=0,
        widths=("num_attention_heads", "num_kv_heads", "num_kv_heads"),
        repeats="num_kv_heads",
        when="new_decoder_architecture",
    ),
    # All queries, then the one key and the one value.
    Rule(_PER_HEAD.pattern, _PER_HEAD.shares, axis=0, widths=("num_attention_heads", 1, 1), when="multi_query"),
    *_NEOX,
)

_DEEPSEEK = (
    *_whole("qk", r"self_attn\.q_[ab]_proj\.(weight|bias)"),
    # What keys and values are both made of belongs to neither; the rotary part of the keys comes after it.
    Rule(
        r"self_attn\.kv_a_proj_with_mqa\.(weight|bias)",
        ("other", "qk"),
        axis=0,
        widths=("kv_lora_rank", "qk_rope_head_dim"),
    ),
    Rule(
        r"self_attn\.kv_b_proj\.weight",  # each head's key, then its value
        ("qk", "vo"),
        axis=0,
        widths=("qk_nope_head_dim", "v_head_dim"),
        repeats="num_attention_heads",
    ),
    *_LLAMA,
)

_BERT = (
    *_whole("emb", r"embeddings\.(word|position|token_type)_embeddings\.weight"),
    *_whole("norm", r"LayerNorm\.(weight|bias)"),
    *_whole("qk", r"attention\.self\.(query|key)\.(weight|bias)"),
    *_whole("vo", r"attention\.self\.value\.(weight|bias)", r"attention\.output\.dense\.(weight|bias)"),
    *_whole("ffn", r"(intermediate|output)\.dense\.(weight|bias)"),
    # The head is a layer of its own before the decoder, which is tied to the embedding.
    *_whole("out", r"predictions\.transform\.dense\.(weight|bias)", r"predictions\.(decoder\.)?(weight|bias)"),
)

# A layer is one gated feed-forward network whose wide part is scanned: what goes in and out is `ffn`; the convolution,
# the scan's own parameters and what computes them have no counterpart in a transformer and are `other`.
_MAMBA = (
    *_whole("emb", r"embeddings?\.weight"),
    *_whole("norm", r"norm(_f)?\.weight"),
    Rule(r"mixer\.in_proj\.(weight|bias)", ("ffn", "ffn"), axis=0),  # what is scanned, and its gate
    *_whole("ffn", r"mixer\.out_proj\.(weight|bias)"),
    *_whole("other", r"mixer\.(x_proj|dt_proj|conv1d)\.(weight|bias)", r"mixer\.(A_log|D)"),
    *_whole("out", r"lm_head\.weight"),
)

# model_type of transformers → its rules.
FAMILIES: Mapping[str, tuple[Rule, ...]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen2_moe": _LLAMA,
    "qwen3_moe": _LLAMA,
    "mixtral": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": _LLAMA,
    "olmoe": _LLAMA,
    "smollm3": _LLAMA,
    "gpt2": _GPT2,
    "nanogpt": _GPT2,  # the same names; nn.Linear stores (out, in) where Conv1D stores (in, out)
    "phi": _PHI,
    "phi3": _PHI3,
    "opt": _OPT,
    "gpt_neox": _NEOX,
    "bloom": _NEOX,
    "falcon": _FALCON,
    "deepseek_v3": _DEEPSEEK,
    "bert": _BERT,
    "mamba": _MAMBA,
}

# Stored with two dimensions, and yet no linear map: each entry stands for itself.
TABLES = r"mixer\.A_log"
GPT2_LINEAR = r"attn\.c_attn\.weight|attn\.c_proj\.weight|mlp\.c_(fc|proj)\.weight"
GPT2_FUSED = r"attn\.c_attn\.weight"
