"""The layout of a decoder: found once, and carried to all who want it."""

from __future__ import annotations

import pytest
import torch

from permllm.errors import UserError
from permllm.folding import find, layout
from permllm.folding.fold import Fold, NoFold
from permllm.folding.layout import Layout
from permllm.models.decoder import Decoder
from permllm.testing.models import tiny_model


@pytest.fixture
def llama() -> Layout:
    return Layout(Decoder.trace(tiny_model("llama-gqa")))


def test_each_layer_is_proved_once(llama: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    proved: list[int] = []
    prove = find.prove

    def watched(decoder: Decoder, index: int, folds: object) -> object:
        proved.append(index)
        return prove(decoder, index, folds)

    monkeypatch.setattr(find, "prove", watched)
    llama.folds([1])
    llama.constraints(foldable=True, residual="original")
    llama.folds()
    assert sorted(proved) == [0, 1]


def test_the_residual_stream_is_looked_at_once(
    llama: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Decoder] = []

    def refuse(decoder: Decoder) -> None:
        calls.append(decoder)
        raise UserError("the stream does not follow")

    monkeypatch.setattr(layout, "find_residual", refuse)
    for _ in range(2):
        with pytest.raises(UserError, match="the stream does not follow"):
            llama.constraints(foldable=False, residual="shared")
    assert len(calls) == 1


def test_without_options_nothing_is_looked_for(
    llama: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "prove", None)
    assert not llama.constraints(foldable=False, residual="free")


def test_constraints_are_what_the_options_mean(llama: Layout) -> None:
    folds = llama.folds()
    folding = {name for name, fold in folds.items() if isinstance(fold, Fold)}
    gathered = {name for name, fold in folds.items() if isinstance(fold, NoFold)}
    assert folding
    assert gathered
    original = llama.constraints(foldable=True, residual="original")
    assert (set(original.folds), original.kept) == (folding, gathered)
    assert not any(map(original.leaves_free, folds))
    shared = llama.constraints(foldable=False, residual="shared")
    assert shared.shared == gathered
    assert {name for name in folds if shared.leaves_free(name)} == folding


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
