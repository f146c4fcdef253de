"""What can be taken apart, what stays dense, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from permllm.core.statistics import SQUARE_SUM, TOKENS
from permllm.errors import UserError
from permllm.models.decoder import Decoder
from permllm.testing.models import tiny_model

TOKENS_2 = torch.arange(24).reshape(2, 12)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + self.linear(hidden_states)


class Plain(nn.Module):
    """A decoder without attention that transformers knows nothing of."""

    def __init__(self, layers: int = 3, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, width)
        self.layers = nn.ModuleList(Block() for _ in range(layers))
        self.out = nn.Linear(width, 50)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return SimpleNamespace(logits=self.out(hidden))


class Scaled(Plain):
    """Does something between its layers."""

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden) / 2
        return SimpleNamespace(logits=self.out(hidden))


class Backwards(Plain):
    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        hidden = self.embedding(input_ids)
        for layer in reversed(self.layers):
            hidden = layer(hidden)
        return SimpleNamespace(logits=self.out(hidden))


class Bare(nn.Module):
    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=input_ids)


def test_any_module_with_a_list_of_layers_will_do() -> None:
    decoder = Decoder.trace(Plain())
    assert list(decoder.groups) == [f"layers.{index}:linear" for index in range(3)]
    assert decoder.skipped == {}


def test_no_layers_are_refused() -> None:
    with pytest.raises(UserError, match="Bare has no list of decoder layers"):
        Decoder.trace(Bare(), TOKENS_2[:1])


def test_work_between_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"Scaled cannot be run layer by layer.*layers\.0"):
        Decoder.trace(Scaled())


def test_layers_out_of_order_are_refused() -> None:
    with pytest.raises(UserError, match=r"from layers\.0 on do not run in their order"):
        Decoder.trace(Backwards())


def test_a_layer_that_runs_twice_is_refused_and_left_as_it_was() -> None:
    model = Plain()
    model.layers[1] = model.layers[0]
    with pytest.raises(UserError, match=r"layers\.0 runs \d times"):
        Decoder.trace(model)
    assert "forward" not in vars(model.layers[0])


def test_a_model_that_fails_is_refused_with_its_reason() -> None:
    with pytest.raises(UserError, match="Plain fails in a forward pass: index out of range"):
        Decoder.trace(Plain(), torch.tensor([[99]]))


class Experts(nn.Module):
    """All experts in one product, and a router that is a linear module."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, 8, 8))
        self.fused = fused

    def forward(self, inputs: Tensor) -> Tensor:
        if self.fused:
            return torch.baddbmm(inputs.new_zeros(3, 1, 8), inputs, batch2=self.weights)
        return inputs @ self.weights


class Mixture(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(8, 3), Experts(fused)

    def forward(self, hidden_states: Tensor) -> Tensor:
        tokens = hidden_states.reshape(-1, 8)
        shares = self.router(tokens).softmax(-1)
        outputs = self.experts(tokens.expand(3, -1, -1))
        mixed = (shares.T[..., None] * outputs).sum(0)
        return hidden_states + mixed.reshape(hidden_states.shape)


@pytest.mark.parametrize("fused", [False, True])
def test_all_experts_in_one_product_are_met_one_by_one(fused: bool) -> None:
    model = Plain()
    model.layers = nn.ModuleList([Block(), Mixture(fused)])
    decoder = Decoder.trace(model)
    names = [f"layers.1.experts.weights[{index}]" for index in range(3)]
    assert set(decoder.linears) == {"layers.0.linear", *names}
    assert decoder.skipped == {
        "layers.1.router": "it gives a number to each expert, as a router does"
    }
    for index, name in enumerate(names):
        assert torch.equal(decoder.weight(name), model.layers[1].experts.weights[index].T)
    calls = decoder.embed(TOKENS_2)
    _, sums = decoder.statistics(1, calls.hidden, calls, [SQUARE_SUM])
    expected = calls.hidden.reshape(-1, 8).square().sum(0)
    for one in sums.values():
        torch.testing.assert_close(one["square_sum"], expected)
    zeros = {name: torch.zeros(8, 8) for name in names}
    assert torch.equal(decoder.run_layer(1, calls.hidden, calls, zeros), calls.hidden)
    assert decoder.entries == 8 * 8 + 3 * 8 * 8 + 3 * 8


class Tower(Plain):
    """Images have more layers than text."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.layers, self.layers = self.layers, nn.ModuleList()
        self.images = nn.ModuleList(Block() for _ in range(9))

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        hidden = self.embedding(input_ids)
        for layer in self.decoder.layers:
            hidden = layer(hidden)
        return SimpleNamespace(logits=self.out(hidden))


def test_layers_are_looked_for_in_the_decoder() -> None:
    assert Decoder.trace(Tower()).layer_names == [f"decoder.layers.{index}" for index in range(3)]


class Ahead(Block):
    """Adds what comes next."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return super().forward(hidden_states) + hidden_states.roll(-1, dims=1)


def test_a_model_that_sees_the_future_is_refused() -> None:
    model = Plain()
    model.layers[1] = Ahead()
    with pytest.raises(UserError, match="Plain reads tokens that are still to come") as caught:
        Decoder.trace(model)
    assert "is_decoder" in str(caught.value.hint)


def test_the_last_token_of_the_vocabulary_is_changed_as_any() -> None:
    assert len(Decoder.trace(Plain(), torch.full((2, 4), 49)).layers) == 3


class Turned(Plain):
    """Tokens come first between its layers."""

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        hidden = self.embedding(input_ids).transpose(0, 1)
        for layer in self.layers:
            hidden = layer(hidden)
        return SimpleNamespace(logits=self.out(hidden.transpose(0, 1)))


class Streams(Plain):
    """Several streams of hidden states go through its layers."""

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        hidden = self.embedding(input_ids).expand(4, -1, -1, -1)
        for layer in self.layers:
            hidden = layer(hidden)
        return SimpleNamespace(logits=self.out(hidden.mean(0)))


@pytest.mark.parametrize(
    ("model", "shape"), [(Turned, r"\[12, 2, 8\]"), (Streams, r"\[4, 2, 12, 8\]")]
)
def test_hidden_states_with_other_axes_are_refused(model: type[Plain], shape: str) -> None:
    with pytest.raises(UserError, match=rf"layers\.0 reads {shape} for 2 sequences of 12 tokens"):
        Decoder.trace(model(), TOKENS_2[:1])


def test_linears_with_one_weight_stay_dense() -> None:
    model = tiny_model("llama")
    first, second = model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    decoder = Decoder.trace(model)
    assert set(decoder.skipped) == {
        "model.layers.0.mlp.up_proj",
        "model.layers.1.mlp.up_proj",
    }
    reason = decoder.skipped["model.layers.0.mlp.up_proj"]
    assert reason == "it shares its weight with model.layers.1.mlp.up_proj.weight"
    assert "model.layers.0:mlp.gate_proj" in decoder.groups


def test_a_linear_that_does_not_run_stays_dense() -> None:
    model = tiny_model("llama")
    model.model.layers[1].spare = nn.Linear(32, 32)
    skipped = Decoder.trace(model).skipped
    assert skipped == {"model.layers.1.spare": "it was not multiplied as a whole in a forward pass"}


def test_a_weight_that_is_used_in_parts_stays_dense() -> None:
    model = Plain()
    part = model.layers[2]

    def halves(hidden_states: Tensor) -> Tensor:
        weight = part.linear.weight
        parts = [nn.functional.linear(hidden_states, half) for half in weight.chunk(2)]
        return torch.cat(parts, -1)

    part.forward = halves
    decoder = Decoder.trace(model)
    reason = "only a part of its weight is multiplied at a time"
    assert decoder.skipped == {"layers.2.linear": reason}
    assert part.forward is halves


def test_experts_in_a_list_of_modules_are_grouped_even_if_no_token_comes() -> None:
    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w3 = nn.Linear(8, 16), nn.Linear(8, 16)
            self.w2 = nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.w2(self.w1(x) * self.w3(x))

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(Expert() for _ in range(3))

        def forward(self, hidden_states: Tensor) -> Tensor:
            return self.experts[1](hidden_states[:, ::2]).repeat_interleave(2, 1)

    model = Plain(layers=0)
    model.layers.extend([Mixture(), Mixture()])
    decoder = Decoder.trace(model, TOKENS_2[:1])
    groups = [name.partition(":")[2] for name, g in decoder.groups.items() if g.layer == 0]
    expected = [
        group
        for index in (1, 0, 2)
        for group in (f"experts.{index}.w1,experts.{index}.w3", f"experts.{index}.w2")
    ]
    assert sorted(groups) == sorted(expected)
    calls = decoder.embed(TOKENS_2)
    _, sums = decoder.statistics(0, calls.hidden, calls, [TOKENS, SQUARE_SUM])
    assert float(sums["layers.0:experts.1.w2"]["tokens"]) == 12
    assert float(sums["layers.0:experts.2.w2"]["tokens"]) == 0
