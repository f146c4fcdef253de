"""A model that runs as it would be served says the same, and is as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from permllm.contexts.export import ExportContext
from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.formats.gathers import BUFFER
from permllm.formats.served import as_served
from permllm.models.linears import Group
from permllm.sparse import cpu
from permllm.sparse.linear import SparseLinear
from permllm.testing.exporters import pruned_export
from permllm.testing.models import VOCABULARY, tiny_model

TOKENS = torch.randint(VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def compiled() -> None:
    """Skips where the kernel cannot be had."""
    if (reason := cpu.kernel_reason(torch.float32, Pattern(2, 4))) is not None:
        pytest.skip(reason)


def pruned(architecture: str, pattern: Pattern | None = None) -> ExportContext:
    """A model under random permutations: those of ``down_proj`` fold, the others are gathered."""
    generator = torch.Generator().manual_seed(0)

    def order(name: str, group: Group) -> Tensor:
        return torch.randperm(group.channels, generator=generator)

    return pruned_export(tiny_model(architecture), order, pattern)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("architecture", ["llama-gqa", "opt"])
@torch.no_grad()
def test_the_same_logits_and_afterwards_the_same_model(architecture: str) -> None:
    context = pruned(architecture)
    model, before = context.model, dict(context.model.named_parameters())
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masked, one = model(TOKENS).logits, model(TOKENS[:, :1]).logits
    assert {"folded", "gathered"} <= {group.order for group in context.storage.groups}
    with as_served(context.decoder, lambda: context.storage, context.patterns) as linears:
        assert [linear.name for linear in linears] == list(context.patterns)
        assert {linear.runs for linear in linears} == {"cpu kernel"}
        assert any(isinstance(module, SparseLinear) for module in model.modules())
        torch.testing.assert_close(model(TOKENS).logits, masked, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(TOKENS[:, :1]).logits, one, rtol=1e-4, atol=1e-4)
    assert list(model.state_dict()) == list(kept)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert not any(hasattr(module, BUFFER) for module in model.modules())
    assert torch.equal(model(TOKENS).logits, masked)


@torch.no_grad()
def test_where_nothing_can_be_packed_the_reason_is_said_and_the_model_is_as_it_was() -> None:
    context = pruned("llama-gqa", Pattern(3, 8))
    kept = {name: tensor.clone() for name, tensor in context.model.state_dict().items()}
    served = as_served(context.decoder, lambda: context.storage, context.patterns)
    with (
        pytest.raises(UserError, match=r"none of the 14 .* the CPU kernel is for .* not 3:8"),
        served,
    ):
        raise AssertionError("nothing runs packed")
    state = context.model.state_dict()
    assert list(state) == list(kept)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.items())


@pytest.mark.usefixtures("compiled")
def test_a_model_that_breaks_within_is_as_it_was() -> None:
    context = pruned("llama-gqa")
    before = dict(context.model.named_parameters())
    served = as_served(context.decoder, lambda: context.storage, context.patterns)
    with pytest.raises(ZeroDivisionError), served:
        raise ZeroDivisionError
    after = dict(context.model.named_parameters())
    assert all(parameter is before[name] for name, parameter in after.items())
    assert after.keys() == before.keys()


def test_dense_weights_are_not_packed() -> None:
    context = pruned("llama-gqa")
    unpruned = {name: torch.ones_like(context.decoder.weight(name)) for name in context.patterns}
    served = as_served(context.decoder, lambda: context.storage, context.patterns)
    with (
        context.decoder.substituted(unpruned),
        pytest.raises(UserError, match="none of the 14 pruned linears can run packed"),
        served,
    ):
        raise AssertionError("nothing runs packed")
