"""Changes of weights are noticed, however they are made; what only reads them passes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from permllm.given import Giver, WeightsChanged
from permllm.models.decoder import Decoder
from permllm.models.unchanged import unchanged
from permllm.testing.models import tiny_model


class Mine:
    name = "mine"


MINE = Giver("evaluator", Mine())


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4))


def in_place(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        parameter[0] += 1


def past_the_count(parameter: nn.Parameter) -> None:
    parameter.data.mul_(2).add_(1)


def other_data(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data + 1


def other_type(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data.double()


@pytest.mark.parametrize("name", ["0.weight", "1.bias"])
@pytest.mark.parametrize("change", [in_place, past_the_count, other_data, other_type])
def test_a_change_names_who_made_it_and_the_tensor(
    name: str, change: Callable[[nn.Parameter], None]
) -> None:
    model = small()
    message = rf"^evaluator 'mine' changed the model's {name}, which others read after it; it has"
    with pytest.raises(WeightsChanged, match=message), unchanged(model, MINE):
        change(model.get_parameter(name))


def test_where_nothing_is_compared_changes_are_counted_still() -> None:
    model = small()
    with unchanged(model, MINE, sampled=0):
        past_the_count(model[0].weight)
    with pytest.raises(WeightsChanged), unchanged(model, MINE, sampled=0):
        model[0].weight.detach().abs_()


def test_a_parameter_that_is_gone_is_a_change() -> None:
    model = small()
    with pytest.raises(WeightsChanged, match=r"1\.bias"), unchanged(model, MINE):
        model[1].bias = None


def test_a_change_counts_where_the_component_broke_after_it() -> None:
    model = small()

    def breaks() -> None:
        in_place(model[0].bias)
        raise ArithmeticError

    with pytest.raises(WeightsChanged), unchanged(model, MINE):
        breaks()


def test_what_reads_weights_or_changes_copies_of_them_passes() -> None:
    model = small()
    model.register_parameter("one", nn.Parameter(torch.tensor(torch.nan)))
    model.register_parameter("none", nn.Parameter(torch.zeros(0, 3)))
    with unchanged(model, MINE):
        model[0](torch.ones(1, 8)).sum().backward()
        in_place(copy.deepcopy(model)[0].weight)
        model.to("cpu").requires_grad_(False)
        model.one.data = model.one.data.clone()


def test_other_weights_for_a_while_are_no_change() -> None:
    model = tiny_model("llama")
    decoder = Decoder.trace(model)
    linear = next(iter(decoder.linears))
    halved = {linear: decoder.weight(linear) / 2}
    with unchanged(model, MINE), decoder.substituted(halved), decoder.dense(), decoder.streamed():
        model(input_ids=torch.tensor([[1, 2, 3]]))
