"""The stored order of a model: folded, gathered, or refused."""

from __future__ import annotations

import pytest
import torch

from permllm.errors import UserError
from permllm.folding import layout
from permllm.folding.layout import Layout
from permllm.models.decoder import Decoder
from permllm.testing.models import tiny_model


def test_one_permutation_for_all_readers_moves_the_stream(llama: Layout) -> None:
    groups = llama.decoder.groups
    readers = llama.residual.groups
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    permutations = {
        name: order if name in readers else torch.arange(group.channels)
        for name, group in groups.items()
    }
    plan = llama.plan(permutations)
    assert torch.equal(plan.stream, order)
    assert not plan.gathers
    assert plan.counts == {
        "stored": len(groups) - len(readers),
        "folded": len(readers),
        "gathered": 0,
    }


def test_a_stream_that_cannot_move_is_gathered_with_its_reason(
    llama: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(decoder: Decoder) -> None:
        raise UserError("its norm does not follow")

    readers = llama.residual.groups
    other = Layout(llama.decoder)
    monkeypatch.setattr(layout, "find_residual", refuse)
    order = torch.arange(32).flip(0)
    plan = other.plan(dict.fromkeys(readers, order))
    assert plan.stream is None
    assert all("its norm does not follow" in str(group.reason) for group in plan.groups)


@pytest.mark.parametrize(
    ("permutations", "message"),
    [
        ({"nonesuch": torch.arange(4)}, "no permutation group 'nonesuch'"),
        ({"model.layers.0:mlp.down_proj": torch.zeros(48, dtype=torch.long)}, "no permutation of"),
        ({"model.layers.0:mlp.down_proj": torch.arange(8)}, "no permutation of"),
    ],
)
def test_what_is_no_permutation_is_refused(
    llama: Layout, permutations: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        llama.plan(permutations)


def test_experts_that_could_not_be_stored_are_refused_before_learning() -> None:
    mixture = Layout(Decoder.trace(tiny_model("mixtral")))
    with pytest.raises(UserError, match=r"can be neither folded .* nor gathered"):
        mixture.check_storable(mixture.decoder.groups)
    dense = Layout(Decoder.trace(tiny_model("llama")))
    dense.check_storable(dense.decoder.groups)
