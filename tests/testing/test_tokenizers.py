"""The tokenizer of tiny models."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from permllm.testing.models import VOCABULARY
from permllm.testing.tokenizers import byte_tokenizer

TOKENIZER = byte_tokenizer()


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back_from_as_many_tokens_as_it_has_bytes(text: str) -> None:
    tokens = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert len(tokens) == len(text.encode())
    assert all(0 <= token < VOCABULARY for token in tokens)
    assert TOKENIZER.decode(tokens) == text
