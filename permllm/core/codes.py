"""Kept values as whole numbers of eight or four bits, with a scale for each part of a row.

A value is ``code * scale``. Codes reach from -127 to 127, or from -7 to 7 with four bits, so
that the grid is symmetric and holds zero. Of four bits (two's complement) there are two codes
a byte, the first in the lower half; a row begins with a byte of its own. Scales are bfloat16,
one for every ``span`` input channels of a row, of which the last ones may be fewer. A product
of the two has 15 bits at most, and is exact in float32.
"""

from __future__ import annotations

from typing import Literal

import attrs
import torch
from torch import Tensor

from permllm.core.packing import pack_numbers, unpack_numbers
from permllm.core.patterns import Pattern

Name = Literal["int8", "int4"]

BITS: dict[str, int] = {"int8": 8, "int4": 4}
"""Bits of a code, by the name that pipeline files and manifests have for it."""


@attrs.frozen
class Grid:
    """What values are rounded to.

    Attributes:
        bits: of a code, 8 or 4.
        span: input channels of a row that share a scale; all of them where it is None.
    """

    bits: int
    span: int | None = None

    @property
    def kind(self) -> Name:
        """What pipeline files and manifests call it."""
        return "int8" if self.bits == 8 else "int4"

    @property
    def top(self) -> int:
        """The largest code; the least is its negative."""
        return int(2 ** (self.bits - 1)) - 1

    def channels(self, c_in: int) -> int:
        """Channels that share a scale, in a row of so many."""
        return c_in if self.span is None else min(self.span, c_in)

    def scales(self, c_in: int) -> int:
        """How many scales a row of so many channels has."""
        return -(-c_in // max(1, self.channels(c_in)))

    def kept(self, c_in: int, pattern: Pattern) -> int:
        """How many kept values of a row share a scale.

        Raises:
            ValueError: M does not divide the channels that share one.
        """
        return pattern.groups(self.channels(c_in)) * pattern.n


def codes_of(values: Tensor, scales: Tensor, kept: int) -> Tensor:
    """The codes of values that are products of a code and a scale, maybe rounded to 8 bits.

    Args:
        values: ``[C_out, K]``, of any dtype with the precision of bfloat16 at least.
        scales: ``[C_out, G]``, above zero.
        kept: how many values of a row share a scale.

    Returns:
        ``int8[C_out, K]``.
    """
    # Rounding to bfloat16 moves a code of 127 by a quarter at most.
    return (values.float() / _spread(scales, kept, values.shape[1])).round().to(torch.int8)


def values_of(codes: Tensor, scales: Tensor, kept: int) -> Tensor:
    """The values ``float32[C_out, K]`` of codes, exactly; see :func:`codes_of`."""
    return codes.float() * _spread(scales, kept, codes.shape[1])


def store_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes ``int8[C_out, K]`` as they stand in a file.

    Returns:
        the same for 8 bits, and ``uint8[C_out, ceil(K / 2)]`` for 4.
    """
    return codes if bits == 8 else pack_numbers((codes & 15).view(torch.uint8), 4)


def read_codes(stored: Tensor, count: int) -> Tensor:
    """The inverse of :func:`store_codes`; its dtype says how many bits a code has.

    Args:
        stored: ``int8[C_out, K]`` or ``uint8[C_out, ceil(K / 2)]``.
        count: K.
    """
    if stored.dtype == torch.int8:
        return stored
    # The fourth bit is the sign.
    return (unpack_numbers(stored, 4, count) ^ 8).view(torch.int8) - 8


def check_codes(stored: Tensor, scales: Tensor, grid: Grid, c_in: int, pattern: Pattern) -> None:
    """Refuse codes and scales that cannot be those of a weight ``[C_out, C_in]``.

    Raises:
        ValueError: their shapes or types are others, or a scale is no size; says which.
    """
    kept = pattern.groups(c_in) * pattern.n
    width, dtype = (kept, torch.int8) if grid.bits == 8 else (-(-kept // 2), torch.uint8)
    if stored.dtype != dtype or stored.ndim != 2 or stored.shape[1] != width:
        raise ValueError(
            f"values {tuple(stored.shape)} of {stored.dtype} are not {kept} codes a row of "
            f"{grid.bits} bits, which are {width} of {dtype}"
        )
    expected = (len(stored), grid.scales(c_in))
    if tuple(scales.shape) != expected or not scales.is_floating_point():
        raise ValueError(
            f"scales {tuple(scales.shape)} of {scales.dtype} should be {expected} of torch.bfloat16"
        )
    fine = scales.isfinite() & (scales > 0)
    if not bool(fine.all()):
        row, place = (~fine).nonzero()[0].tolist()
        raise ValueError(
            f"the scale {float(scales[row, place]):g} in row {row}, place {place} is no size: "
            "the scales are damaged"
        )


def _spread(scales: Tensor, kept: int, count: int) -> Tensor:
    """The scale of every value: ``float32[C_out, K]``."""
    if scales.shape[1] == 1:
        return scales.float()
    return scales.float().repeat_interleave(kept, 1)[:, :count]
