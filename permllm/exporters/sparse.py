"""A folder that holds of every N:M weight the kept values and their places."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs

from permllm.components import Exporter
from permllm.errors import UserError
from permllm.option import option

if TYPE_CHECKING:
    import torch

    from permllm.contexts.export import ExportContext
    from permllm.core.codes import Grid
    from permllm.core.patterns import Pattern
    from permllm.folding.plan import StoragePlan
    from permllm.formats.packed import Rounded

FORMAT = """\
Of every pruned weight `NAME` there are `NAME.values`, the kept entries of every row, and
`NAME.indices`, where in its group of M consecutive inputs each of them stands: so many bits a
value as M - 1 needs, the first value in the lowest bits of the first byte, every row from a
new byte on. Once permllm is imported, transformers opens the folder, and its linears multiply with
the packed weights where that is faster; `permllm.load` gives an ordinary model of transformers with
the same weights."""

ROUNDED = """\
Values are rounded: `NAME.values` are whole numbers of {bits} bits{halves}, each to be multiplied
with its scale in `NAME.scales`, of which there is one for {span} of a row."""

INT4_SPAN = 128
"""Input channels that share a scale where nothing is said, of four bits."""


@attrs.frozen
class Sparse(Exporter):
    """A folder with N:M weights packed: values and the bits of their places.

    At 2:4 in bfloat16 a pruned weight takes 0.5625 of its dense size, 1.13 bytes; with values
    of eight bits 0.63 bytes, of four 0.39. These are rounded by the calibration text, layer by
    layer. transformers opens it once permllm is imported.
    """

    name: ClassVar[str] = "sparse"
    stores_orders: ClassVar[bool] = True

    dtype: str | None = option(
        None,
        help="of the saved weights; null for that of the model's files",
        choices=("float32", "bfloat16", "float16"),
    )

    values: str | None = option(
        None,
        help="what kept values are rounded to; null to keep them as they are",
        choices=("int8", "int4"),
    )
    group_size: int | None = option(
        None,
        help="input channels of a row that share a scale, a multiple of M; null for all with "
        "int8, for 128 with int4",
        minimum=1,
    )
    rounding: str = option(
        "compensated",
        help="compensated: later columns make up for the error of earlier ones, by the "
        "calibration text; nearest: each value by itself",
        choices=("compensated", "nearest"),
    )

    @property
    def grid(self) -> Grid | None:
        """What values are rounded to; None where they stay."""
        from permllm.core.codes import BITS, Grid

        if self.values is None:
            return None
        usual = INT4_SPAN if self.values == "int4" else None
        return Grid(BITS[self.values], self.group_size or usual)

    def check(self) -> None:
        """Refuse scales without anything that they are for.

        Raises:
            UserError: there is a ``group_size`` and no ``values``.
        """
        if self.values is None and self.group_size is not None:
            raise UserError(
                f"sparse: group_size: {self.group_size} is for rounded values, and there are none",
                hint="set values: int8 or values: int4, or leave group_size out",
            )

    def check_pattern(self, pattern: Pattern) -> None:
        """Refuse scales that would part a group of M.

        Raises:
            UserError: M does not divide their span.
        """
        grid = self.grid
        if grid is not None and grid.span is not None and grid.span % pattern.m:
            near = max(1, grid.span // pattern.m) * pattern.m
            raise UserError(
                f"sparse: group_size: {grid.span} is no multiple of {pattern.m}, of the pattern "
                f"{pattern}, so that a group of {pattern.m} would have two scales",
                hint=f"group_size: {near} is one",
            )

    def export(self, context: ExportContext, directory: Path) -> None:
        """Write weights, manifest, configuration, tokenizer and model card.

        What was written is read back and checked, and where that fails nothing is left in
        the folder. No more than one file's tensors are in memory beside the model.

        Raises:
            UserError: an order can neither be folded nor gathered, or the folder is in use.
            NoSpace: the disk is too full.
            RunFailed: the saved model is not the pruned one.
        """
        from permllm.exporters.writing import emptied_on_failure
        from permllm.formats.export_files import check_claim
        from permllm.models.devices import DTYPES

        self.check()
        for pattern in {*context.patterns.values()}:
            self.check_pattern(pattern)
        dtype = context.dtype if self.dtype is None else DTYPES[self.dtype]
        check_claim(directory, _bytes(context, dtype, self.grid))
        storage = context.storage
        # What is written, and what it is compared with, is the rounded model.
        with emptied_on_failure(directory), self._rounded(context, directory) as rounded:
            _write(context, directory, storage, dtype, rounded)

    def stored_bytes(self, parameters: int, pruned: int, itemsize: int, pattern: Pattern) -> int:
        """All weights in the dtype that is saved, the pruned ones packed."""
        from permllm.exporters.permuted import saved_itemsize
        from permllm.formats.packed import packed_share

        size = saved_itemsize(self.dtype, itemsize)
        share = packed_share(pattern, size, self.grid)
        return round(size * (parameters - pruned * (1 - share)))

    def _rounded(
        self, context: ExportContext, directory: Path
    ) -> AbstractContextManager[dict[str, Rounded]]:
        from permllm.formats.rounded import holding_rounded

        if self.grid is None:
            return nullcontext({})
        calibrated = self.rounding == "compensated"
        return holding_rounded(context, self.grid, directory.parent, calibrated=calibrated)


def _write(
    context: ExportContext,
    directory: Path,
    storage: StoragePlan,
    dtype: torch.dtype | None,
    rounded: dict[str, Rounded],
) -> None:
    from permllm.exporters.card import LOADING_PERMLLM, model_card
    from permllm.exporters.permuted import about
    from permllm.exporters.writing import write_config, write_extras
    from permllm.formats.export_files import write_shards
    from permllm.formats.finishing import finish
    from permllm.formats.manifest import PackedEntry
    from permllm.formats.packed import packed_tensors
    from permllm.formats.stored import stored_tensors

    packed: dict[str, PackedEntry] = {}
    stored = stored_tensors(context.decoder, storage, context.patterns, dtype)
    write_shards(directory, packed_tensors(stored, packed, rounded))
    write_config(context.model, directory, dtype)
    text = "\n\n".join([FORMAT, *_about_rounded(rounded), about(storage, plain=False)])
    write_extras(context, directory, model_card(context, text, LOADING_PERMLLM))
    finish(
        directory,
        "sparse",
        context.decoder,
        storage,
        context.patterns,
        held={},
        dtype=dtype,
        packed=packed,
    )


def _about_rounded(rounded: dict[str, Rounded]) -> list[str]:
    """What the card says of codes and scales."""
    grids = dict.fromkeys(one.grid for one in rounded.values())
    return [
        ROUNDED.format(
            bits=grid.bits,
            halves=", two a byte" if grid.bits == 4 else "",
            span="all input channels" if grid.span is None else f"every {grid.span} input channels",
        )
        for grid in grids
    ]


def _bytes(context: ExportContext, dtype: torch.dtype | None, grid: Grid | None) -> int:
    """What the weights will take on the disk."""
    from permllm.formats.packed import packed_share
    from permllm.formats.stored import parameter_patterns

    pruned = parameter_patterns(context.decoder, context.patterns)
    total = 0.0
    for name, parameter in context.model.named_parameters():
        size = dtype.itemsize if dtype is not None else parameter.element_size()
        share = 1.0
        if name in pruned:
            pattern, axis, _ = pruned[name]
            share = packed_share(pattern, size, grid, parameter.shape[axis])
        total += parameter.numel() * size * share
    return round(total)
