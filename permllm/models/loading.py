"""Loads models and tokenizers from their sources."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch

from permllm.errors import UserError
from permllm.models.checkpoint_files import CONFIG, read_json, saved_dtype
from permllm.models.config_file import check_config, check_no_adapter
from permllm.models.shape import mismatched
from permllm.models.sources import DirectorySource, GgufSource, HubSource, PackageSource, Source

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_HUB_DOUBLES = ["consolidated*", "original/*", "onnx/*"]


TRUST = "read that code, and add trust_remote_code: true if you trust it"
NO_TRUST = "no code beside a GGUF file is ever run: remove 'auto_map' from the JSON files beside it"


@attrs.frozen(eq=False)
class LoadedModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: in eval mode, on the CPU.
        tokenizer: as transformers makes it.
        description: where it came from, for people.
        saved_dtype: of its numbers in its files; None where these do not say.
    """

    model: Any
    tokenizer: Any
    description: str
    saved_dtype: torch.dtype | None = attrs.field(default=None, kw_only=True)


def load(
    source: Source,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
    *,
    as_saved: bool = False,
) -> LoadedModel:
    """Load a model and its tokenizer.

    Args:
        source: where from.
        dtype: type of its parameters, None for the one they are saved in; a quantised GGUF
            file is dequantised.
        tokenizer: its tokenizer, where it is loaded already.
        as_saved: leave what is saved in a narrower type than ``dtype`` in that, mapped from
            its files: whoever computes with it widens it piece by piece.

    Raises:
        UserError: something is missing or damaged, or transformers cannot read it.
    """
    from transformers import AutoModelForCausalLM

    description = source.describe()
    # Before loading, since transformers makes up weights and sizes that it does not find.
    source.check()
    folder, options = located(source)
    if isinstance(source, HubSource):
        DirectorySource(folder).check()
    saved = None if "gguf_file" in options else saved_dtype(folder)
    if as_saved and saved is not None and dtype is not None and saved.itemsize < dtype.itemsize:
        dtype = saved
    with quiet(), one_reading(options):
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype or "auto",
                output_loading_info=True,
                # They are told here, by what is wrong with them.
                ignore_mismatched_sizes=True,
                # Other forms of weights are pickled.
                use_safetensors="gguf_file" not in options,
                **options,
                **_unpacked(options),
            )
        except Exception as error:
            # For files that they make no sense of, transformers, huggingface_hub, safetensors
            # and gguf raise whatever comes up.
            raise _unreadable(source, "model", error) from error
        for name, held, made in sorted(info.get("mismatched_keys") or ()):
            raise mismatched(folder, name, held, made)
        tokenizer = tokenizer or load_tokenizer(source)
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(f"{description} has no weights for {_some(missing)}")
    if "gguf_file" in options and hasattr(model.config, "quantization_config"):
        # Older versions of transformers leave a note that stops the model from being saved.
        del model.config.quantization_config
    model.eval()
    return LoadedModel(model, tokenizer, description, saved_dtype=saved)


def load_tokenizer(source: Source) -> Any:
    """Load a model's tokenizer alone.

    Raises:
        UserError: it is missing or damaged, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    folder, options = located(source)
    with quiet():
        try:
            return AutoTokenizer.from_pretrained(folder, **options)
        except Exception as error:
            # For files that they make no sense of, transformers, huggingface_hub, safetensors
            # and gguf raise whatever comes up.
            raise _unreadable(source, "tokenizer", error) from error


def read_config(source: Source) -> Any:
    """A model's configuration, as transformers makes it, without its weights.

    Raises:
        UserError: it is missing or damaged, or transformers does not know the model.
    """
    from transformers import AutoConfig

    folder, options = located(source, config_only=True)
    with quiet():
        try:
            return AutoConfig.from_pretrained(folder, **options)
        except Exception as error:
            # For files that they make no sense of, transformers, huggingface_hub, safetensors
            # and gguf raise whatever comes up.
            raise _unreadable(source, "configuration", error) from error


def located(source: Source, config_only: bool = False) -> tuple[Path, dict[str, Any]]:
    """The local folder of a model, and the options that ``from_pretrained`` needs.

    Whether code may run is always among them: where it is left out, transformers asks at the
    terminal.

    Raises:
        UserError: the configuration asks for what permllm does not open, or does not trust.
    """
    if isinstance(source, PackageSource | GgufSource):
        path = source.gguf()
        # Before anything is read, since sizes that a header claims are believed.
        source.check()
        check_no_adapter(path.parent)
        return path.parent, {"gguf_file": path.name, "trust_remote_code": False}
    trust = source.trust_remote_code
    folder = _fetched(source, config_only) if isinstance(source, HubSource) else source.path
    check_no_adapter(folder)
    if (folder / CONFIG).is_file():
        config = read_json(folder / CONFIG)
        check_config(config, folder / CONFIG, trust_remote_code=trust)
    return folder, {"trust_remote_code": trust}


def _unpacked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Has the weights of a GGUF file unpacked where transformers could keep them packed."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    if config is None or "gguf_file" not in options:
        return {}
    return {"quantization_config": config(dequantize=True)}


def _fetched(source: HubSource, config_only: bool) -> Path:
    """The folder in the hub's cache, downloaded where it is not there."""
    from huggingface_hub import snapshot_download

    wanted = ["*.json"] if config_only else _HUB_FILES
    code = ["*.py"] if source.trust_remote_code else []
    with quiet():
        try:
            folder = snapshot_download(
                source.id,
                revision=source.revision,
                allow_patterns=wanted + code,
                ignore_patterns=_HUB_DOUBLES,
            )
        except Exception as error:
            # Hub, network and file system each raise their own.
            raise UserError(
                f"'{source.id}' at '{source.revision}' cannot be fetched from the hub: "
                f"{_first_line(error)}",
                hint="check the id, the revision and the network; a model that is already "
                "on disk opens with {source: directory, path: …}",
            ) from error
    return Path(folder)


def _unreadable(source: Source, what: str, error: Exception) -> UserError:
    """The clearest error for a source that could not be read."""
    try:
        source.check()
    except UserError as clearer:
        return clearer
    untrusted = "trust_remote_code" in str(error)
    trusting = isinstance(source, DirectorySource | HubSource)
    folder = source.path if isinstance(source, DirectorySource) else None
    return UserError(
        f"transformers cannot read the {what} of {source.describe()}: {_first_line(error)}",
        file=str(folder / CONFIG) if folder and what == "configuration" else None,
        hint=(TRUST if trusting else NO_TRUST) if untrusted else None,
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    first, _, rest = text.partition("\n")
    first = first.strip()
    # Of a field that does not fit, the first line says which, and the second how.
    return f"{first} {rest.strip().partition(chr(10))[0]}".strip() if first.endswith(":") else first


def _some(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


@contextmanager
def one_reading(options: Mapping[str, Any]) -> Iterator[None]:
    """Has the header of a GGUF file read once in the block, where transformers does so thrice.

    A vocabulary takes it two seconds each time. The block over, nothing is kept: a header in
    the reader's form may be hundreds of megabytes.

    Args:
        options: of :func:`located`; where they name no GGUF file, nothing changes.
    """
    if "gguf_file" not in options:
        yield
        return
    import gguf

    reader = gguf.GGUFReader
    try:
        gguf.GGUFReader = functools.cache(reader)
        yield
    finally:
        gguf.GGUFReader = reader


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the screen for the block."""
    import transformers.modeling_gguf_pytorch_utils as gguf_utils
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # Reading GGUF has a bar that no setting turns off.
    bar = getattr(gguf_utils, "tqdm", None)
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        if bar is not None:
            gguf_utils.tqdm = functools.partial(bar, disable=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if bar is not None:
            gguf_utils.tqdm = bar
