"""Calls of layers are split into hidden states and the rest, without caches."""

from __future__ import annotations

import pytest
import torch
from transformers.cache_utils import DynamicCache

from permllm.models.calls import LayerCall


@pytest.mark.parametrize("positional", [True, False])
def test_a_call_is_made_again_with_other_hidden_states(positional: bool) -> None:
    hidden, other, mask = (torch.full((1, 2, 3), float(value)) for value in range(3))
    args = (hidden, mask) if positional else ()
    kwargs = {"use_cache": False} if positional else {"hidden_states": hidden, "mask": mask}
    given, call = LayerCall.of(args, dict(kwargs))
    assert given is hidden
    again_args, again_kwargs = call.with_hidden(other)
    if positional:
        assert again_args == (other, mask)
        assert again_kwargs == kwargs
    else:
        assert again_args == ()
        assert again_kwargs == {"hidden_states": other, "mask": mask}


def test_layers_get_no_cache_to_write_to() -> None:
    cache = DynamicCache()
    _, call = LayerCall.of((torch.zeros(1), cache), {"past_key_values": cache, "use_cache": True})
    assert call.args == (None,)
    assert call.kwargs == {"past_key_values": None, "use_cache": True}
