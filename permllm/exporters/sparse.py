"""A folder that holds of every N:M weight the kept values and their places."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs

from permllm.components import Exporter
from permllm.option import option

if TYPE_CHECKING:
    import torch

    from permllm.contexts.export import ExportContext
    from permllm.core.patterns import Pattern
    from permllm.folding.plan import StoragePlan

FORMAT = """\
Of every pruned weight `NAME` there are `NAME.values`, the kept entries of every row, and
`NAME.indices`, where in its group of M consecutive inputs each of them stands: so many bits a
value as M - 1 needs, the first value in the lowest bits of the first byte, every row from a
new byte on. Once permllm is imported, transformers opens the folder, and its linears multiply with
the packed weights where that is faster; `permllm.load` gives an ordinary model of transformers with
the same weights."""


@attrs.frozen
class Sparse(Exporter):
    """A folder with N:M weights packed: values and the bits of their places.

    At 2:4 in bfloat16 a pruned weight takes 0.5625 of its dense size. transformers
    opens it once permllm is imported.
    """

    name: ClassVar[str] = "sparse"
    stores_orders: ClassVar[bool] = True

    dtype: str | None = option(
        None,
        help="of the saved weights; null for that of the model's files",
        choices=("float32", "bfloat16", "float16"),
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

        dtype = context.dtype if self.dtype is None else DTYPES[self.dtype]
        check_claim(directory, _bytes(context, dtype))
        storage = context.storage
        with emptied_on_failure(directory):
            _write(context, directory, storage, dtype)

    def stored_bytes(self, parameters: int, pruned: int, itemsize: int, pattern: Pattern) -> int:
        """All weights in the dtype that is saved, the pruned ones packed."""
        from permllm.exporters.permuted import saved_itemsize
        from permllm.formats.packed import packed_share

        size = saved_itemsize(self.dtype, itemsize)
        return round(size * (parameters - pruned * (1 - packed_share(pattern, size))))


def _write(
    context: ExportContext, directory: Path, storage: StoragePlan, dtype: torch.dtype | None
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
    write_shards(directory, packed_tensors(stored, packed))
    write_config(context.model, directory, dtype)
    text = f"{FORMAT}\n\n{about(storage, plain=False)}"
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


def _bytes(context: ExportContext, dtype: torch.dtype | None) -> int:
    """What the weights will take on the disk."""
    from permllm.formats.packed import packed_share
    from permllm.formats.stored import parameter_patterns

    pruned = parameter_patterns(context.decoder, context.patterns)
    total = 0.0
    for name, parameter in context.model.named_parameters():
        size = dtype.itemsize if dtype is not None else parameter.element_size()
        pattern: Pattern | None = pruned[name][0] if name in pruned else None
        share = 1.0 if pattern is None else packed_share(pattern, size)
        total += parameter.numel() * size * share
    return round(total)
