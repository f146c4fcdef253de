"""Batches of calibration sequences."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from permllm.contexts.sequences import Sequences


def sequences(learning: int, held_out: int, size: int) -> Sequences:
    rows = torch.arange(learning + held_out)
    tokens = rows[:, None].repeat(1, 3)
    return Sequences(tokens, min(2, learning), rows[:learning], rows[learning:], size)


@given(st.integers(1, 20), st.integers(0, 9), st.integers(1, 8))
def test_batches_hold_every_row_once_and_one_kind_each(
    learning: int, held_out: int, size: int
) -> None:
    batches = sequences(learning, held_out, size).batches()
    assert torch.cat(batches).tolist() == list(range(learning + held_out))
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert bool((batch < learning).all()) or bool((batch >= learning).all())


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 8))
def test_a_longer_request_begins_as_a_shorter_one(fewer: int, more: int, size: int) -> None:
    """Up to the last batch of the shorter, which the longer one fills up."""
    short = sequences(fewer, 0, size).batches()
    long = sequences(fewer + more, 0, size).batches()
    for one, other in zip(short[:-1], long, strict=False):
        assert torch.equal(one, other)
