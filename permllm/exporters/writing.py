"""What exporters write alike: configuration, tokenizer, pipeline and model card."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from permllm.contexts.export import ExportContext


def write_extras(context: ExportContext, directory: Path, card: str) -> None:
    """Write tokenizer, pipeline and model card."""
    context.tokenizer.save_pretrained(directory)
    (directory / "pipeline.yaml").write_text(context.pipeline_yaml, encoding="utf-8")
    (directory / "README.md").write_text(card, encoding="utf-8")


def write_config(model: Any, directory: Path, dtype: torch.dtype | None) -> None:
    """Write the configuration and generation configuration of an export that needs permllm.

    Its weights are written already.
    """
    from permllm.formats.export_files import INDEX, METHOD, SINGLE

    with as_for_users(model):
        config = type(model.config).from_dict(model.config.to_dict())
        config.architectures = [type(model).__name__]
        config.dtype = dtype or model.dtype
        weights = INDEX if (directory / INDEX).is_file() else SINGLE
        config.quantization_config = {"quant_method": METHOD, "weights": weights}
        config.save_pretrained(directory)
        generation = getattr(model, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(directory)


def weight_bytes(model: Any, dtype: torch.dtype | None = None) -> int:
    """What a model's weights take on the disk, in their own dtype or another one."""
    wide = None if dtype is None else dtype.itemsize
    return sum(p.numel() * (wide or p.element_size()) for p in model.parameters())


@contextmanager
def emptied_on_failure(directory: Path) -> Iterator[None]:
    """Empty the folder if the block fails."""
    try:
        yield
    except BaseException:
        for path in directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        raise


@contextmanager
def as_for_users(model: Any) -> Iterator[None]:
    """Settings for the block as someone who generates text wants them saved.

    The cache of keys and values is off while models are pruned. And a generation config
    that sets a temperature but does not sample, as some published models have it, is
    refused by transformers when it is saved. The dtype that is saved is the parameters'.
    """
    config, generation = model.config, getattr(model, "generation_config", None)
    before = getattr(config, "use_cache", None)
    dtype = getattr(config, "dtype", None)
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
        config.dtype = dtype
        if before is not None:
            config.use_cache = before
        if generation is not None:
            generation.do_sample = sampled


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep transformers' progress bars off the screen for the block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
