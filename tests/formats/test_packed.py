"""What is packed comes back bit for bit, and parts that do not fit are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from permllm.core.patterns import Pattern, nm_mask
from permllm.errors import UserError
from permllm.formats.manifest import PackedEntry
from permllm.formats.packed import packed_share, packed_tensors, unpacked_tensors
from permllm.formats.stored import StoredTensor

PATTERNS = [Pattern(2, 4), Pattern(1, 4), Pattern(3, 8)]


def stored(pattern: Pattern, axis: int, *, experts: bool, dtype: torch.dtype) -> StoredTensor:
    along = torch.randn(2, 3, 16) if experts else torch.randn(3, 16)
    along = (along * nm_mask(along.abs(), pattern)).to(dtype)
    tensor = along if axis == -1 else along.transpose(-1, -2).contiguous()
    return StoredTensor("a.weight", tensor, pattern, axis, ("a",))


@given(
    st.sampled_from(PATTERNS),
    st.sampled_from([-1, -2]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_all_comes_back(pattern: Pattern, axis: int, experts: bool, dtype: torch.dtype) -> None:
    pruned = stored(pattern, axis, experts=experts, dtype=dtype)
    dense = StoredTensor("a.bias", torch.randn(3))
    entries: dict[str, PackedEntry] = {}
    parts = list(packed_tensors([pruned, dense], entries))
    assert [name for name, _ in parts] == ["a.weight.values", "a.weight.indices", "a.bias"]
    back = dict(unpacked_tensors(reversed(parts), entries))
    assert torch.equal(back["a.weight"], pruned.tensor)
    assert back["a.weight"].is_contiguous()
    assert torch.equal(back["a.bias"], dense.tensor)


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8)], ids=str)
def test_the_share_is_that_of_the_bytes(pattern: Pattern) -> None:
    pruned = stored(pattern, -1, experts=False, dtype=torch.bfloat16)
    size = sum(tensor.nbytes for _, tensor in packed_tensors([pruned], {}))
    assert size == packed_share(pattern, 2) * pruned.tensor.nbytes


def test_parts_that_are_missing_or_do_not_fit_are_named() -> None:
    entries: dict[str, PackedEntry] = {}
    pruned = stored(Pattern(2, 4), -1, experts=False, dtype=torch.float32)
    values, indices = packed_tensors([pruned], entries)
    with pytest.raises(UserError, match=r"no 'a\.weight\.indices' beside 'a\.weight\.values'"):
        list(unpacked_tensors([values], entries))
    shorter = (values[0], values[1][:1])
    with pytest.raises(UserError, match=r"'a\.weight' cannot be unpacked"):
        list(unpacked_tensors([shorter, indices], entries))
