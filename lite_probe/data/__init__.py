"""Token sources, and the fixed batches drawn from them. No torch here."""

from lite_probe.data.batches import BatchPlan, draw_batches
from lite_probe.data.shards import Shard, ShardPlan, deal_shards, draw_shards, find_shards, label_of
from lite_probe.data.stream import TokenPart, TokenStream, open_tokens
from lite_probe.data.tokenization import ByteTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "BatchPlan",
    "ByteTokenizer",
    "Shard",
    "ShardPlan",
    "TokenPart",
    "TokenStream",
    "Tokenizer",
    "deal_shards",
    "draw_batches",
    "draw_shards",
    "find_shards",
    "label_of",
    "load_tokenizer",
    "open_tokens",
]
