"""Linears hold what an export packed, where packed products are faster, and say so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from permllm.core.codes import store_codes
from permllm.core.packing import pack
from permllm.core.patterns import Pattern, nm_mask
from permllm.errors import UserError
from permllm.formats.packed_entry import PackedEntry
from permllm.formats.packed_linears import hold_packed, reports_of
from permllm.sparse.linear import SparseLinear

ENTRY = PackedEntry("2:4", (6, 16), values="int4", group_size=8, dtype="F32")


def model() -> nn.Module:
    layers = {"up": nn.Linear(16, 6, dtype=torch.bfloat16), "norm": nn.LayerNorm(16)}
    return nn.ModuleDict(layers).to("meta")


def filled(weight: torch.Tensor, scale: float) -> SparseLinear:
    whole = model()
    assert hold_packed(whole, {"up.weight": ENTRY}) == {}
    linear = whole.get_submodule("up")
    assert isinstance(linear, SparseLinear)
    codes, indices = pack(weight, Pattern(2, 4))
    linear.values, linear.indices = store_codes(codes, 4), indices
    linear.scales = torch.full((6, 2), scale, dtype=torch.bfloat16)
    linear.bias = None
    return linear


def test_only_linears_that_the_kernel_multiplies_are_exchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = model()
    others = {"norm.weight": ENTRY, "up.bias": ENTRY}
    assert hold_packed(whole, others) == others
    odd = {"up.weight": PackedEntry("3:4", (6, 16))}
    assert hold_packed(whole, odd) == odd
    assert isinstance(whole.get_submodule("up"), nn.Linear)
    assert hold_packed(whole, {"up.weight": ENTRY}) == {}
    linear = whole.get_submodule("up")
    assert isinstance(linear, SparseLinear)
    types = {name: (tuple(one.shape), one.dtype) for name, one in linear.state_dict().items()}
    assert types == {
        "values": ((6, 4), torch.uint8),
        "indices": ((6, 2), torch.uint8),
        "scales": ((6, 2), torch.bfloat16),
        "bias": ((6,), torch.bfloat16),
    }


def test_a_report_counts_the_bytes_that_are_held() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(1, 8, (6, 16), generator=generator).to(torch.int8)
    codes *= nm_mask(torch.rand(6, 16, generator=generator), Pattern(2, 4))
    linear = filled(codes, 0.5)
    (report,) = reports_of(nn.ModuleDict({"up": linear})).values()
    assert (report.name, report.runs, report.bytes) == ("up", "cpu kernel", 6 * (4 + 2 + 4))
    assert torch.equal(linear.weight, 0.5 * codes.to(torch.bfloat16))


@pytest.mark.parametrize("scale", [float("nan"), 0.0, -2.0])
def test_damaged_scales_are_named_with_the_module(scale: float) -> None:
    linear = filled(torch.zeros(6, 16, dtype=torch.int8), scale)
    with pytest.raises(UserError, match=r"'up' is damaged: the scale .* in row 0, place 0"):
        reports_of(nn.ModuleDict({"up": linear}))
