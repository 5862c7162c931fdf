"""Token sources, and the fixed batches drawn from them. No torch here."""

from lite_probe.data.batches import BatchPlan, draw_batches
from lite_probe.data.stream import TokenPart, TokenStream, open_tokens
from lite_probe.data.tokenization import ByteTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "BatchPlan",
    "ByteTokenizer",
    "TokenPart",
    "TokenStream",
    "Tokenizer",
    "draw_batches",
    "load_tokenizer",
    "open_tokens",
]
