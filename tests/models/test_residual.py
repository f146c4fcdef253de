"""The residual stream of every architecture can be stored in another order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from permllm.errors import UserError
from permllm.models.decoder import Decoder
from permllm.models.folding import Fold, find_folds, reordered, row_orders
from permllm.models.residual import Residual, find_residual, prove_residual
from permllm.testing.models import ARCHITECTURES, HIDDEN, VOCABULARY, tiny_model

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)

FIRST = ("q_proj", "qkv_proj", "c_attn", "query_key_value")
"""How linears that read the residual stream are called, in attention …"""

SECOND = ("gate_proj", "gate_up_proj", "c_fc", "dense_h_to_4h", "fc1")
"""… and in an MLP."""


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))


def shuffled(seed: int = 5) -> Tensor:
    return torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(seed))


def moved(residual: Residual, model: nn.Module, perm: Tensor) -> dict[str, Tensor]:
    return {key: residual.reordered(key, t, perm) for key, t in model.state_dict().items()}


@every_architecture
def test_who_reads_it(name: str) -> None:
    model = tiny_model(name)
    decoder = Decoder.trace(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    residual = find_residual(decoder)
    expected = [
        group
        for group, found in decoder.groups.items()
        if any(f".{word}" in f".{linear}" for word in (*FIRST, *SECOND) for linear in found.linears)
    ]
    assert list(residual.groups) == expected
    assert residual.channels == HIDDEN
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@every_architecture
@torch.no_grad()
def test_the_whole_model_gives_the_same(name: str, tokens: Tensor) -> None:
    model = tiny_model(name)
    decoder = Decoder.trace(model)
    residual, perm = find_residual(decoder), shuffled()
    expected, embedded = model(tokens).logits, decoder.embed(tokens).hidden
    weights = {one: decoder.weight(one).clone() for one in decoder.linears}
    model.load_state_dict(moved(residual, model, perm))
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(decoder.embed(tokens).hidden, embedded[..., perm])
    for group in decoder.groups.values():
        for linear in group.linears:
            # Rows aside, which move where the linear writes the stream.
            columns = perm if group.name in residual.groups else torch.arange(group.channels)
            placed = weights[linear][:, columns]
            assert torch.equal(decoder.weight(linear).sum(0).argsort(), placed.sum(0).argsort())


@every_architecture
@torch.no_grad()
def test_it_goes_with_folds(name: str, tokens: Tensor) -> None:
    """With both, no order is left that would have to be gathered."""
    model = tiny_model(name)
    decoder = Decoder.trace(model)
    residual, generator = find_residual(decoder), torch.Generator().manual_seed(2)
    folds = {n: f for n, f in find_folds(decoder).items() if isinstance(f, Fold)}
    perms = {group: fold.random_perm(generator) for group, fold in folds.items()}
    assert set(perms) | set(residual.groups) == set(decoder.groups)
    assert not set(perms) & set(residual.groups)
    expected = model(tokens).logits
    model.load_state_dict(moved(residual, model, shuffled()))
    rows = row_orders(decoder, folds, perms)
    columns = {one: perm for n, perm in perms.items() for one in decoder.groups[n].linears}
    tensors = model.state_dict()
    for index, (title, layer) in enumerate(zip(decoder.layer_names, decoder.layers, strict=True)):
        linears = [linear for linear in decoder.linears.values() if linear.layer == index]
        own = dict(layer.named_parameters())
        new = reordered(layer, linears, own, rows=rows, columns=columns)
        tensors |= {f"{title}.{key}": tensor for key, tensor in new.items()}
    model.load_state_dict(tensors)
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_head_that_shares_the_embeddings(tokens: Tensor) -> None:
    model = tiny_model("gemma")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    residual = find_residual(Decoder.trace(model))
    assert residual.axes["model.embed_tokens.weight"] == (1,)
    assert residual.axes["lm_head.weight"] == (1,)


def test_bfloat16() -> None:
    model = tiny_model("llama-gqa").to(torch.bfloat16)
    assert len(find_residual(Decoder.trace(model)).groups) == 4
    assert model.dtype == torch.bfloat16


def test_a_wrong_hypothesis_is_refused_where_it_shows() -> None:
    decoder = Decoder.trace(tiny_model("llama"))
    right = find_residual(decoder)
    wrongs = {
        "model.embed_tokens.weight": "the embeddings",
        "model.layers.1.mlp.down_proj.weight": "model.layers.1",
        "model.norm.weight": "the final norm or the head",
        "lm_head.weight": "the final norm or the head",
    }
    for left_out, said in wrongs.items():
        axes = {name: axis for name, axis in right.axes.items() if name != left_out}
        wrong = Residual(right.channels, right.groups, axes)
        with pytest.raises(UserError, match=said):
            prove_residual(decoder, wrong, shuffled())


def test_what_is_no_order() -> None:
    decoder = Decoder.trace(tiny_model("llama"))
    residual = find_residual(decoder)
    with pytest.raises(ValueError, match="no order of 32 channels"):
        prove_residual(decoder, residual, torch.zeros(HIDDEN, dtype=torch.long))


# --- streams that have an order of their own ------------------------------------------


class Block(nn.Module):
    """Reads and writes the hidden states with one linear, whose both axes move."""

    def __init__(self, mixes: str = "") -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.mixes = mixes

    def forward(self, hidden_states: Tensor) -> Tensor:
        read = hidden_states.roll(1, -1) if self.mixes == "read" else hidden_states
        wrote = self.linear(read)
        return hidden_states + (wrote.cumsum(-1) if self.mixes == "wrote" else wrote)


class Plain(nn.Module):
    """A decoder without attention that transformers knows nothing of."""

    def __init__(self, mixes: str = "", bridge: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 8)
        self.bridge = nn.Linear(8, 8) if bridge else nn.Identity()
        self.layers = nn.ModuleList((Block(), Block(mixes)))
        self.head = nn.Linear(8, 50)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        hidden = self.bridge(self.embedding(input_ids))
        for layer in self.layers:
            hidden = layer(hidden)
        return SimpleNamespace(logits=self.head(hidden))


def test_a_linear_that_reads_and_writes() -> None:
    residual = find_residual(Decoder.trace(Plain()))
    assert residual.axes == {
        "embedding.weight": (1,),
        "head.weight": (1,),
        **{f"layers.{index}.linear.weight": (0, 1) for index in (0, 1)},
        **{f"layers.{index}.linear.bias": (0,) for index in (0, 1)},
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mixes": "read"}, "layers.1:linear: what it reads"),
        ({"mixes": "wrote"}, "layers.1: what it gives"),
        ({"bridge": True}, "bridge: it is a linear"),
    ],
)
def test_streams_that_keep_their_order(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_residual(Decoder.trace(Plain(**options)))
