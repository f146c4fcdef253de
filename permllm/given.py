"""What components give, which may be anybody's: a mistake in it is said in its own terms."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from permllm.errors import RunFailed, nearest

if TYPE_CHECKING:
    from torch import Tensor


class Named(Protocol):
    """A component, as far as a message names it."""

    @property
    def name(self) -> str: ...


class GivenWrong(RunFailed):
    """What a component gave cannot be used: its code is to blame, although it did not break.

    Attributes:
        module: in which the component is defined.
    """

    def __init__(self, message: str, module: str) -> None:
        super().__init__(message)
        self.module = module


class WeightsChanged(GivenWrong):
    """A component changed weights that it was to read: what comes after it would be wrong, too."""


@attrs.frozen
class Giver:
    """A component that gives something.

    Attributes:
        kind: of component, in words, such as ``pruner``.
        component: it.
    """

    kind: str
    component: Named

    def wrong(self, what: str, error: type[GivenWrong] = GivenWrong) -> GivenWrong:
        """The error for something that it did, such as ``gave no scores for q_proj``."""
        message = f"{self.kind} '{self.component.name}' {what}"
        return error(message, type(self.component).__module__)


def by_name(given: Any, giver: Giver, what: str, names: Collection[str] | None = None) -> Any:
    """A mapping by name, as it was given.

    Args:
        given: what it should be.
        giver: gave it.
        what: it has for each name, such as ``scores``.
        names: those that it may have; any if None.

    Raises:
        GivenWrong: it is no mapping, or has something for another name.
    """
    if not isinstance(given, Mapping):
        raise giver.wrong(f"gave {what} as {kind_of(given)}, where a dict by name is expected")
    others = [name for name in given if name not in names] if names is not None else []
    for name in others:
        near = nearest(str(name), names or ())
        hint = f"; did you mean '{near}'?" if near else ""
        raise giver.wrong(f"gave {what} for {name!r}, which it was not asked for{hint}")
    return given


def permutation_fault(given: Any, channels: int) -> str | None:
    """Why something is no permutation of so many channels; None if it is."""
    from torch import Tensor

    from permllm.core.permutations import is_permutation

    if not isinstance(given, Tensor):
        return "it is None" if given is None else f"it is {kind_of(given)}, not a tensor"
    if tuple(given.shape) != (channels,):
        return f"it is of shape {tuple(given.shape)}"
    if given.is_floating_point() or given.is_complex():
        return f"it is of {given.dtype}, not of whole numbers"
    if not is_permutation(given):
        return f"it does not hold each of 0 to {channels - 1} once"
    return None


def pruned_weight(given: Any, dense: Tensor, giver: Giver, linear: str) -> Tensor:
    """The weight of a pair of a weight and its mask, of the dense one's shape and type.

    Args:
        given: what it should be.
        dense: ``[C_out, C_in]``.
        giver: gave it.
        linear: for which.

    Raises:
        GivenWrong: it is something else, or has NaN or infinite entries.
    """
    from torch import Tensor

    gave = f"gave {linear}"
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise giver.wrong(f"{gave} {kind_of(given)}, where (weight, mask) is expected")
    weight = given[0]
    if not isinstance(weight, Tensor):
        raise giver.wrong(f"{gave} {kind_of(weight)} as its weight, where a tensor is expected")
    if weight.shape != dense.shape:
        shapes = f"{tuple(weight.shape)}, where the dense one has {tuple(dense.shape)}"
        raise giver.wrong(f"{gave} a weight of shape {shapes}")
    if weight.dtype != dense.dtype:
        types = f"{weight.dtype}, where the dense one is {dense.dtype}"
        raise giver.wrong(f"{gave} a weight of {types}")
    if not bool(weight.isfinite().all()):
        raise giver.wrong(f"{gave} NaN or infinite weights")
    return weight


def plain_figures(given: Any, giver: Giver) -> dict[str, float]:
    """What a component measured, as plain numbers.

    Raises:
        GivenWrong: it is no mapping of names to numbers.
    """
    plain = {}
    for name, value in by_name(given, giver, "figures").items():
        try:
            if isinstance(value, str):
                raise TypeError
            # A number of numpy's, or a tensor with one entry, cannot be kept as JSON.
            plain[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            what = f"gave '{name}' as {value!r}, where a number is expected"
            raise giver.wrong(what) from None
    return plain


def kind_of(given: Any) -> str:
    """What somebody gave, in words: ``None``, or its class with an article."""
    if given is None:
        return "None"
    name = type(given).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
