"""How contracts fail: what is not so, and only that."""

from __future__ import annotations

import pytest
import torch

from permllm.testing.expect import expect, expect_close, expect_equal


def test_what_holds_passes_and_what_does_not_fails_with_its_message() -> None:
    expect([1], "fine")
    with pytest.raises(AssertionError, match="not so"):
        expect([], "not so")


def test_equal_tensors_have_one_type_and_the_same_bits() -> None:
    one = torch.tensor([1.0, 2.0])
    expect_equal(one, one.clone(), "fine")
    for other in (one + 1e-6, one.double(), one[:1]):
        with pytest.raises(AssertionError, match="another"):
            expect_equal(one, other, "another")


def test_close_tensors_differ_by_rounding_alone() -> None:
    one = torch.tensor([1.0, 2.0])
    expect_close(one, one.double() * (1 + 1e-6), "fine")
    expect_close(one[:0], one[:0], "fine")
    for other in (one * 1.01, one[None], one * torch.nan, one / 0, one.repeat(2)):
        with pytest.raises(AssertionError, match="another"):
            expect_close(one, other, "another")
