"""The number of threads, for a block."""

from __future__ import annotations

import pytest
import torch

from permllm.core.threads import threads


def test_a_block_has_its_own_number_of_threads() -> None:
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
        with threads(2):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_the_number_is_put_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ArithmeticError), threads(before + 1):
        raise ArithmeticError
    assert torch.get_num_threads() == before
