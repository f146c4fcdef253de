"""What the manifest says of a weight that is packed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import attrs

from permllm.core.codes import BITS, Grid
from permllm.core.packing import packed_shapes
from permllm.core.patterns import Pattern
from permllm.models.checkpoint_files import DTYPE_NAMES

VALUES, INDICES, SCALES = ".values", ".indices", ".scales"
"""What the names of the tensors end with that stand for a packed weight."""


@attrs.frozen
class PackedEntry:
    """A weight that stands in the files as values and indices.

    Attributes:
        pattern: N:M.
        shape: ``[…, C_out, C_in]``, once it is unpacked.
        axis: -1, or -2 where the model holds it ``[…, C_in, C_out]``.
        values: ``int8`` or ``int4`` where values are codes, which have scales; else None.
        group_size: how many input channels share a scale; None for a whole row.
        dtype: what products of codes and scales are rounded to, in safetensors' words.
    """

    pattern: str
    shape: tuple[int, ...]
    axis: int = -1
    values: Literal["int8", "int4"] | None = None
    group_size: int | None = None
    dtype: str | None = None

    @property
    def grid(self) -> Grid | None:
        """What its values were rounded to; None where they were not."""
        return None if self.values is None else Grid(BITS[self.values], self.group_size)

    @property
    def ends(self) -> tuple[str, ...]:
        """What the names of the tensors end with that stand for it."""
        return (VALUES, INDICES) if self.values is None else (VALUES, INDICES, SCALES)

    def stored_shapes(self) -> dict[str, tuple[int, int]]:
        """The shapes of these tensors, by these ends.

        Raises:
            ValueError: the pattern does not divide the channels, or those that share a scale.
        """
        pattern, c_in = Pattern.parse(self.pattern), self.shape[-1]
        values, indices = packed_shapes(math.prod(self.shape[:-1]), c_in, pattern)
        grid = self.grid
        if grid is None:
            return {VALUES: values, INDICES: indices}
        grid.kept(c_in, pattern)
        rows, kept = values
        width = kept if grid.bits == 8 else -(-kept // 2)
        return {VALUES: (rows, width), INDICES: indices, SCALES: (rows, grid.scales(c_in))}

    def wrong_parts(
        self, name: str, shapes: Mapping[str, tuple[int, ...]]
    ) -> Iterator[tuple[str, str]]:
        """What cannot be of its fields and of the tensors that stand for it.

        Args:
            name: of the weight.
            shapes: of all tensors in the files, by name.

        Returns:
            the field, with a point before it, or nothing where it is none; and why.
        """
        if not self.shape:
            yield ".shape", "() is the shape of no weight"
            return
        if self.grid is not None and self.dtype not in DTYPE_NAMES:
            yield ".dtype", f"{str(self.dtype)[:80]} is no type of weights"
        if self.group_size is not None and self.group_size < 1:
            yield ".group_size", f"{self.group_size} is no number of channels"
            return
        try:
            expected = self.stored_shapes()
        except ValueError as error:
            yield "", str(error)[:200]
            return
        for end, shape in expected.items():
            what, found = end.removeprefix("."), shapes.get(f"{name}{end}")
            if found is None:
                yield "", f"the files hold no {what} of it"
            elif found != shape:
                yield ".shape", f"{self.shape} does not fit {what} of {found}"
