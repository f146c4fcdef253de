"""What decoder layers are called with."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor

HIDDEN = "hidden_states"
"""What transformers calls the first argument of a decoder layer."""


@attrs.frozen(eq=False)
class LayerCall:
    """What a layer is called with besides its hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    positional: bool

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, LayerCall]:
        """Split a call into the hidden states and the rest, without caches."""
        kwargs = {name: _no_cache(value) for name, value in kwargs.items()}
        if args:
            return args[0], cls(tuple(_no_cache(value) for value in args[1:]), kwargs, True)
        return kwargs.pop(HIDDEN), cls((), kwargs, False)

    def with_hidden(self, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the call for other hidden states."""
        if self.positional:
            return (hidden, *self.args), self.kwargs
        return (), {HIDDEN: hidden, **self.kwargs}


@attrs.frozen(eq=False)
class LayerCalls:
    """Everything that the decoder layers get for a batch of tokens.

    Attributes:
        hidden: ``[b, L, H]``, the input of the first layer.
        layers: for each layer its other arguments.
    """

    hidden: Tensor
    layers: tuple[LayerCall, ...]


def _no_cache(value: Any) -> Any:
    """The value, or None for a key-value cache, which layers would write to."""
    from transformers.cache_utils import Cache

    return None if isinstance(value, Cache) else value
