"""A folder in the format of transformers, with zeros in place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs

from permllm.components import Exporter
from permllm.exporters.card import NOT_SPARSE, model_card
from permllm.exporters.writing import (
    as_for_users,
    emptied_on_failure,
    weight_bytes,
    without_bars,
    write_extras,
)

if TYPE_CHECKING:
    from permllm.contexts.export import ExportContext

ABOUT = """\
The input channels of every weight are in their original order, and what was pruned is
stored as zeros. So the folder opens like that of the dense model, needs nothing of
permllm (`permllm.json` is for checks only), and takes as much memory and time. In the
learned order each pruned weight keeps the pattern; in the stored order it does not, so
that kernels for N:M sparsity cannot use it as it is."""


@attrs.frozen
class Masked(Exporter):
    """A folder that AutoModelForCausalLM.from_pretrained opens, with zeros in place."""

    name: ClassVar[str] = "masked"

    def export(self, context: ExportContext, directory: Path) -> None:
        """Write weights (safetensors), config, generation config, tokenizer, card and manifest.

        What was written is opened and gives the logits of the pruned model. Where it does not,
        nothing is left in the folder.

        Raises:
            UserError: the folder is in use.
            NoSpace: the disk is too full.
            RunFailed: the saved model is not the pruned one.
        """
        from permllm.formats.export_files import check_claim

        check_claim(directory, weight_bytes(context.model, context.dtype))
        with emptied_on_failure(directory):
            _write(context, directory)


def _write(context: ExportContext, directory: Path) -> None:
    from permllm.formats.export_files import SHARD_BYTES, check_complete
    from permllm.formats.finishing import finish, unmoved
    from permllm.formats.stored import in_stored_order

    model, decoder, dtype = context.model, context.decoder, context.dtype
    storage = unmoved(decoder)
    stored = in_stored_order(decoder, storage, dtype, directory)
    with stored, as_for_users(model), without_bars():
        model.save_pretrained(directory, max_shard_size=SHARD_BYTES)
    check_complete(directory, model)
    write_extras(context, directory, model_card(context, ABOUT, sparse=NOT_SPARSE))
    finish(directory, "masked", decoder, storage, context.patterns, held={}, dtype=dtype)
