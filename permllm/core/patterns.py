"""N:M patterns: of every M consecutive entries of a row, at most N are kept.

Which entries are kept is decided by scores: the N highest of every M, the earlier
entry first where scores are equal, so that a mask comes out the same every time.
"""

from __future__ import annotations

import re

import attrs
import torch
from torch import Tensor

_PAIRWISE_LIMIT = 16
"""The largest M whose entries are compared pair by pair; above, sorting is faster."""


@attrs.frozen
class Pattern:
    """At most ``n`` of every ``m`` consecutive entries are non-zero.

    >>> Pattern.parse("2:4")
    Pattern(n=2, m=4)
    >>> str(Pattern(4, 8)), Pattern(1, 4).density
    ('4:8', 0.25)

    Raises:
        ValueError: not ``1 <= n < m``.
    """

    n: int
    m: int

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ValueError(
                f"pattern {self.n}:{self.m} needs 1 <= N < M: N of every M weights are kept"
            )

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern that ``text`` such as ``"2:4"`` names.

        Raises:
            ValueError: the text is not ``N:M`` with whole numbers and ``1 <= N < M``.
        """
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*:\s*([0-9]{1,9})\s*", text)
        if match is None:
            raise ValueError(f"pattern {text[:40]!r} is not N:M with whole numbers, such as '2:4'")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """The share of the entries that are kept: ``n / m``."""
        return self.n / self.m

    def groups(self, channels: int) -> int:
        """How many groups of M there are in ``channels`` entries.

        Raises:
            ValueError: M does not divide ``channels``.
        """
        if channels % self.m:
            raise ValueError(
                f"pattern {self} does not fit {channels} channels: {self.m} must divide them"
            )
        return channels // self.m


def nm_mask(scores: Tensor, pattern: Pattern) -> Tensor:
    """The mask that keeps the N highest of every M along the last axis.

    Args:
        scores: ``[..., C_in]``, without NaN.
        pattern: N:M.

    Returns:
        ``BoolTensor[..., C_in]``, True at exactly N of every M; of equal scores the
        earlier ones are kept.

    Raises:
        ValueError: M does not divide C_in.
    """
    pattern.groups(scores.shape[-1])
    grouped = scores.unflatten(-1, (-1, pattern.m)).movedim(-1, 0)
    # Comparing contiguous planes is several times faster than comparing every M-th entry.
    return _keep(grouped.contiguous(), pattern, dim=0).movedim(0, -1).flatten(-2)


def nm_mask_by_rows(scores: Tensor, pattern: Pattern) -> Tensor:
    """The mask that keeps the N highest of every M along the first axis.

    The same as :func:`nm_mask` for scores that lie channel by channel.

    Args:
        scores: ``[C_in, C_out]``, without NaN.
        pattern: N:M.

    Returns:
        ``BoolTensor[C_in, C_out]``.

    Raises:
        ValueError: M does not divide C_in.
    """
    pattern.groups(scores.shape[0])
    grouped = scores.unflatten(0, (-1, pattern.m))
    return _keep(grouped, pattern, dim=1).flatten(0, 1)


_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""An integer of as many bytes as a number has."""


def kept(tensor: Tensor, mask: Tensor) -> Tensor:
    """The tensor where the mask is True, else zero; no gradient flows.

    On the CPU several times as fast as ``where`` or the product with the mask, for which PyTorch
    converts one entry after the other.

    Args:
        tensor: of any real dtype.
        mask: booleans of the same shape.
    """
    words = as_words(tensor.detach())
    return (words * mask.to(words.dtype)).view(tensor.dtype)


def as_words(tensor: Tensor) -> Tensor:
    """The same memory as integers of as many bytes."""
    return tensor.view(_WORDS[tensor.element_size()])


def is_nm(tensor: Tensor, pattern: Pattern) -> bool:
    """Whether at most N of every M entries along the last axis are non-zero.

    Args:
        tensor: ``[..., C_in]``, of any dtype.

    Raises:
        ValueError: M does not divide C_in.
    """
    pattern.groups(tensor.shape[-1])
    counts = (tensor != 0).unflatten(-1, (-1, pattern.m)).sum(-1)
    return bool((counts <= pattern.n).all())


def retained_score(scores: Tensor, pattern: Pattern, permutation: Tensor | None = None) -> Tensor:
    """The sum of the scores that an N:M mask keeps.

    Args:
        scores: ``[C_out, C_in]``.
        pattern: N:M.
        permutation: ``LongTensor[C_in]``, the order in which the mask is made; None for the
            order of ``scores``.

    Returns:
        a float64 scalar.

    Raises:
        ValueError: M does not divide C_in.
    """
    placed = (
        scores if permutation is None else scores.index_select(-1, permutation.to(scores.device))
    )
    return placed.mul(nm_mask(placed, pattern)).sum(dtype=torch.float64)


def retained_share(scores: Tensor, pattern: Pattern, permutation: Tensor | None = None) -> float:
    """:func:`retained_score` over the sum of all scores; 1 where all scores are zero."""
    total = scores.sum(dtype=torch.float64).item()
    return retained_score(scores, pattern, permutation).item() / total if total else 1.0


def _keep(grouped: Tensor, pattern: Pattern, dim: int) -> Tensor:
    """True for the N highest of the M entries along ``dim``."""
    if pattern.m > _PAIRWISE_LIMIT:
        order = grouped.sort(dim=dim, descending=True, stable=True).indices
        kept = torch.zeros_like(grouped, dtype=torch.bool)
        return kept.scatter_(dim, order.narrow(dim, 0, pattern.n), True)
    # An entry's rank is the number of entries that beat it.
    entries = grouped.unbind(dim)
    ranks = [torch.zeros_like(entry, dtype=torch.uint8) for entry in entries]
    for later in range(pattern.m):
        for earlier in range(later):
            beaten = entries[earlier] >= entries[later]
            ranks[later] += beaten
            ranks[earlier] += ~beaten
    return torch.stack([rank < pattern.n for rank in ranks], dim)
