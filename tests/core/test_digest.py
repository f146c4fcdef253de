"""A tensor's hash tells its shape, type and values."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from permllm.core.digest import tensor_digest


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_tensors_with_other_values_shapes_or_types_differ(values: list[int]) -> None:
    tensor = torch.tensor(values)
    assert tensor_digest(tensor) == tensor_digest(tensor.clone())
    changed = tensor.clone()
    changed[-1] += 1
    others = [changed, tensor.unsqueeze(0), tensor.int(), torch.cat([tensor, tensor[:1]])]
    assert len({tensor_digest(other) for other in [tensor, *others]}) == 5


def test_how_a_tensor_lies_in_memory_does_not_matter() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert tensor_digest(tensor.T.contiguous().T) == tensor_digest(tensor)
