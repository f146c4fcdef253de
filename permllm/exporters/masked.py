"""A folder in the format of transformers, with zeros in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from permllm.components import Exporter
from permllm.exporters.card import model_card

if TYPE_CHECKING:
    from permllm.runner.export import ExportContext

ABOUT = """\
The input channels of every weight are in their original order, and what was pruned is
stored as zeros. So the folder opens like that of the dense model, needs nothing of
permllm, and takes as much memory and time. In the learned order each pruned weight keeps
the pattern; in the stored order it does not, so that kernels for N:M sparsity cannot use
it as it is."""


@attrs.frozen
class Masked(Exporter):
    """A folder that AutoModelForCausalLM.from_pretrained opens, with zeros in place."""

    name: ClassVar[str] = "masked"

    def export(self, context: ExportContext, directory: Path) -> None:
        """Write weights (safetensors), config, generation config, tokenizer and model card."""
        with _as_for_users(context.model), _without_bars():
            context.model.save_pretrained(directory)
        context.tokenizer.save_pretrained(directory)
        (directory / "pipeline.yaml").write_text(context.pipeline_yaml, encoding="utf-8")
        (directory / "README.md").write_text(model_card(context, ABOUT), encoding="utf-8")


@contextmanager
def _as_for_users(model: Any) -> Iterator[None]:
    """Settings for the block as someone who generates text wants them saved.

    The cache of keys and values is off while models are pruned. And a generation config
    that sets a temperature but does not sample, as some published models have it, is
    refused by transformers when it is saved.
    """
    config, generation = model.config, getattr(model, "generation_config", None)
    before = getattr(config, "use_cache", None)
    sampled = getattr(generation, "do_sample", None)
    try:
        if before is not None:
            config.use_cache = True
        if generation is not None:
            try:
                generation.validate(strict=True)
            except ValueError:
                generation.do_sample = True
        yield
    finally:
        if before is not None:
            config.use_cache = before
        if generation is not None:
            generation.do_sample = sampled


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers' progress bars off the screen for the block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
