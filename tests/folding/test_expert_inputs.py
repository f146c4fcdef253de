"""Experts that read one tensor share a permutation, which is gathered where all of them begin."""

from __future__ import annotations

import pytest
import torch

from permllm.errors import UserError
from permllm.folding.constraints import RESIDUAL
from permllm.folding.expert_inputs import expert_inputs
from permllm.folding.layout import Layout
from permllm.models.decoder import Decoder
from permllm.testing.models import tiny_model

EXPERTS = {
    "mixtral": "model.layers.1.mlp.experts",
    "gpt-oss": "model.layers.1.mlp.experts",
    "llama4": "model.layers.1.feed_forward.experts",
    "jamba": "model.layers.1.feed_forward.experts",
}


@pytest.mark.parametrize("name", EXPERTS)
def test_what_reads_the_input_of_all_experts(name: str) -> None:
    decoder = Decoder.trace(tiny_model(name))
    where = EXPERTS[name]
    found = expert_inputs(decoder, 1)
    title, _, inside = where.partition("1.")
    # The down projections read something else, though it may be as wide.
    expected = [f"{title}1:{inside}.gate_up_proj[{index}]" for index in range(4)]
    assert {one: sorted(names) for one, names in found.items()} == {where: expected}


def test_dense_layers_have_none(llama: Layout) -> None:
    assert expert_inputs(llama.decoder, 0) == {}


def test_experts_that_change_their_input_first_share_nothing() -> None:
    model = tiny_model("mixtral")
    experts = model.model.layers[1].mlp.experts
    scale = torch.linspace(1, 2, 32)
    forward = experts.forward
    experts.forward = lambda hidden, *rest: forward(hidden * scale, *rest)
    assert expert_inputs(Decoder.trace(model), 1) == {}


def test_they_share_a_permutation_unless_the_options_bind_them() -> None:
    layout = Layout(Decoder.trace(tiny_model("mixtral")))
    free = layout.constraints(foldable=False, residual="free")
    assert set(free.shared) == {f"model.layers.{index}.mlp.experts" for index in range(2)}
    assert all(len(names) == 4 for names in free.shared.values())
    assert set(layout.constraints(foldable=False, residual="shared").shared) == {RESIDUAL}
    assert not layout.constraints(foldable=True, residual="original").shared


def test_one_permutation_is_gathered_at_the_module_of_all_experts() -> None:
    layout = Layout(Decoder.trace(tiny_model("mixtral")))
    where = EXPERTS["mixtral"]
    names = layout.experts(1)[where]
    permutation = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    # The last expert stays dense, and reads the same.
    other = next(name for name in layout.decoder.groups if "q_proj" in name)
    plan = layout.plan({other: permutation.flip(0)} | dict.fromkeys(names[:3], permutation))
    assert {group.at for group in plan.groups if "experts" in group.name} == {(where,)}
    assert torch.equal(plan.gathers[where], permutation)
    for name in names:
        (linear,) = layout.decoder.groups[name].linears
        assert torch.equal(plan.columns[linear], permutation)
    with pytest.raises(UserError, match=r"neither folded .* nor gathered"):
        layout.plan({name: permutation.roll(place) for place, name in enumerate(names)})
