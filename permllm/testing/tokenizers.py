"""A tokenizer for tests, made on the spot."""

from __future__ import annotations

from typing import Any

END = "<|end|>"
"""The end-of-text token, which has the highest id."""


def byte_tokenizer() -> Any:
    """A fast tokenizer of transformers whose tokens are the 256 bytes of UTF-8, and an end.

    It is complete: it can be called, decode, and be saved and loaded.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
