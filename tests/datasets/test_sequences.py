from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, ClassVar

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from permllm.components import Dataset
from permllm.datasets import sequences
from permllm.datasets.sequences import calibration_sequences, cut, first_tokens, token_stream
from permllm.errors import UserError
from permllm.testing.tokenizers import byte_tokenizer


@attrs.frozen
class Lines(Dataset):
    """Documents of which no two parts are equal."""

    name: ClassVar[str] = "lines"
    documents: int = 40
    length: int = 25

    def texts(self, split: str) -> Iterator[str]:
        for index in range(self.documents):
            yield hashlib.sha256(f"{split} {index}".encode()).hexdigest()[: self.length]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def test_documents_are_joined_by_the_end_token(tokenizer: Any) -> None:
    ids = [token for part in token_stream(["ab", "c"], tokenizer) for token in part]
    assert tokenizer.decode(ids) == "ab<|end|>c"


def test_a_tokenizer_without_an_end_token_joins_without_one() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    ids = [token for part in token_stream(["ab", "c"], tokenizer) for token in part]
    assert tokenizer.decode(ids) == "abc"


def test_sequences_are_consecutive_and_each_comes_once(tokenizer: Any) -> None:
    whole = first_tokens(Lines().texts("train"), tokenizer, None)
    count = len(whole) // 16
    found = cut(Lines(), "train", tokenizer, length=16, count=count, seed=3)
    expected = whole[: count * 16].view(count, 16)
    assert sorted(found.tolist()) == sorted(expected.tolist())
    assert found.tolist() != expected.tolist()


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 30), st.integers(0, 2**62))
def test_a_smaller_request_is_the_start_of_a_larger_one(
    small: int, more: int, length: int, seed: int
) -> None:
    tokenizer = byte_tokenizer()
    dataset = Lines(documents=100)
    # Small chapters, so that requests reach over several.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "CHAPTER_TOKENS", 100)
        one = cut(dataset, "train", tokenizer, length=length, count=small, seed=seed)
        two = cut(dataset, "train", tokenizer, length=length, count=small + more, seed=seed)
    assert one.shape == (small, length)
    assert torch.equal(two[:small], one)


def test_only_the_chapters_that_are_needed_are_read(tokenizer: Any) -> None:
    class Endless(Lines):
        def texts(self, split: str) -> Iterator[str]:
            while True:
                yield "and so on "

    found = cut(Endless(), "train", tokenizer, length=100, count=10, seed=0)
    assert found.shape == (10, 100)


def test_the_seed_decides_the_order(tokenizer: Any) -> None:
    one, two, three = (
        cut(Lines(), "train", tokenizer, length=8, count=20, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_held_out_sequences_stay_the_same_and_apart(tokenizer: Any) -> None:
    options = {"length": 16, "held_out": 3, "seed": 5}
    few, held_out = calibration_sequences(Lines(), tokenizer, sequences=4, **options)
    many, again = calibration_sequences(Lines(), tokenizer, sequences=40, **options)
    assert torch.equal(held_out, again)
    assert torch.equal(many[:4], few)
    learned = {tuple(row) for row in many.tolist()}
    assert learned.isdisjoint(tuple(row) for row in held_out.tolist())


def test_no_held_out_sequences(tokenizer: Any) -> None:
    learning, held_out = calibration_sequences(
        Lines(), tokenizer, length=16, sequences=4, held_out=0, seed=0
    )
    assert learning.shape == (4, 16)
    assert held_out.shape == (0, 16)


def test_too_short_a_text_says_how_much_there_is(tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"'lines' has 77 tokens where 200 are needed \(10 × 20\)"):
        cut(Lines(documents=3), "train", tokenizer, length=20, count=10, seed=0)


def test_a_long_document_is_tokenised_in_pieces(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "a line\n" * 50 + "y" * 90
    whole = first_tokens([text], tokenizer, None)
    monkeypatch.setattr(sequences, "PIECE", 40)
    parts = list(token_stream([text], tokenizer))
    assert len(parts) > 5
    assert [token for part in parts for token in part] == whole.tolist()


def test_first_tokens_stop_at_the_limit(tokenizer: Any) -> None:
    assert tokenizer.decode(first_tokens(["abcdef"], tokenizer, 3)) == "abc"
