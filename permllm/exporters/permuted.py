"""A folder whose pruned weights are N:M in the order in which they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from permllm.components import Exporter
from permllm.option import option

if TYPE_CHECKING:
    import torch

    from permllm.contexts.export import ExportContext
    from permllm.core.patterns import Pattern
    from permllm.folding.plan import StoragePlan


@attrs.frozen
class Permuted(Exporter):
    """A folder whose pruned weights are N:M in stored order, orders folded where they can be.

    Where every order folds, it is an ordinary checkpoint of transformers. Where some input
    has to be gathered at run time, transformers opens it once permllm is imported.
    """

    name: ClassVar[str] = "permuted"
    stores_orders: ClassVar[bool] = True

    dtype: str | None = option(
        None,
        help="of the saved weights; null for that of the model's files",
        choices=("float32", "bfloat16", "float16"),
    )

    def export(self, context: ExportContext, directory: Path) -> None:
        """Write weights, manifest, configuration, tokenizer and model card.

        What was written is read back and checked: patterns, orders, and the logits, which
        must be those of the pruned model. Where that fails, nothing is left in the folder.

        Raises:
            UserError: an order can neither be folded nor gathered, or the folder is in use.
            NoSpace: the disk is too full.
            RunFailed: the saved model is not the pruned one.
        """
        from permllm.exporters.writing import emptied_on_failure, weight_bytes
        from permllm.formats.export_files import check_claim
        from permllm.models.devices import DTYPES

        dtype = context.dtype if self.dtype is None else DTYPES[self.dtype]
        check_claim(directory, weight_bytes(context.model, dtype))
        storage = context.storage
        with emptied_on_failure(directory):
            self._write(context, directory, storage, dtype)

    def stored_bytes(self, parameters: int, pruned: int, itemsize: int, pattern: Pattern) -> int:
        """All weights in the dtype that is saved."""
        return parameters * saved_itemsize(self.dtype, itemsize)

    def _write(
        self,
        context: ExportContext,
        directory: Path,
        storage: StoragePlan,
        dtype: torch.dtype | None,
    ) -> None:
        from permllm.exporters.card import LOADING, LOADING_PERMLLM, model_card
        from permllm.exporters.plain import write_plain
        from permllm.exporters.writing import write_config, write_extras
        from permllm.formats.export_files import write_shards
        from permllm.formats.finishing import finish
        from permllm.formats.stored import parameter_patterns, stored_tensors

        decoder, patterns = context.decoder, context.patterns
        held: dict[str, tuple[Pattern, int]]
        if storage.gathers:
            tensors = stored_tensors(decoder, storage, patterns, dtype)
            write_shards(directory, ((stored.name, stored.tensor) for stored in tensors))
            write_config(context.model, directory, dtype)
            whole = parameter_patterns(decoder, patterns)
            held = {name: (pattern, axis) for name, (pattern, axis, _) in whole.items()}
        else:
            held = write_plain(decoder, storage, patterns, dtype, directory)
        loading = LOADING_PERMLLM if storage.gathers else LOADING
        write_extras(context, directory, model_card(context, about(storage), loading))
        finish(directory, "permuted", context.decoder, storage, patterns, held, dtype)


def about(storage: StoragePlan, *, plain: bool = True) -> str:
    """What the card says of the order.

    Args:
        storage: how it is stored.
        plain: whether transformers opens the folder where nothing is gathered.
    """
    counts = storage.counts
    parts = [
        "Every pruned weight holds its pattern in the order in which it is stored: of M "
        "consecutive inputs at most N are not zero, so that kernels for N:M sparsity can use it "
        "as it is. Its input has to come in the same order."
    ]
    if counts["folded"]:
        parts.append(
            f"{counts['folded']} of {len(storage.groups)} inputs come in order by themselves, "
            "since the rows of the linears that make them are stored so (folded):\n\n"
            + _listing(storage, "folded")
        )
    if counts["gathered"]:
        parts.append(
            f"{counts['gathered']} of {len(storage.groups)} are put in order at run time "
            "(gathered), by an index buffer `permllm_order` at\n\n"
            + _listing(storage, "gathered")
            + "\n\nTransformers alone would leave these out. So the weights are called "
            "`permllm*.safetensors`, which it does not open; once permllm is imported it does, "
            "and gives its ordinary model with hooks."
        )
    if counts["stored"]:
        parts.append(f"{counts['stored']} keep the original order of their channels.")
    if plain and not counts["gathered"]:
        parts.append(
            "Nothing is left to do at run time: this is an ordinary checkpoint of transformers, "
            "and `permllm.json` beside it is for checks only."
        )
    return "\n\n".join(parts)


def _listing(storage: StoragePlan, order: str) -> str:
    """One line for all layers' groups of one kind."""
    lines: dict[str, int] = {}
    for group in storage.groups:
        if group.order != order:
            continue
        readers = _short(linear.removesuffix(".weight") for linear in group.linears)
        if order == "folded" and not group.into:
            line = (
                f"- the input of {readers}: the whole residual stream, so embeddings, norms, and "
                "the rows of all linears that write to it"
            )
        elif order == "folded":
            rows = _short(name for name in group.into)
            line = f"- the input of {readers}: rows of {rows}"
        else:
            line = f"- {_short(group.at)}, for {readers}: {group.reason}"
        lines[line] = lines.get(line, 0) + 1
    return "\n".join(
        f"{line} ({count} layers)" if count > 1 else line for line, count in lines.items()
    )


def _short(names: Any) -> str:
    """Names of modules without their layer and the experts' numbers."""
    import re

    shown = (re.sub(r"\[\d+\]", "[*]", re.sub(r"^.*?\.\d+\.", "", name)) for name in names)
    return ", ".join(f"`{name}`" for name in dict.fromkeys(shown))


def saved_itemsize(dtype: str | None, itemsize: int) -> int:
    """Bytes of a number in a dtype of a pipeline file; of the model's where it is None."""
    from permllm.models.devices import DTYPES

    return itemsize if dtype is None else DTYPES[dtype].itemsize
