"""Looks at a model's configuration before transformers acts on it.

What stands in ``config.json`` decides which files transformers opens, how many modules it
builds, and which code it fetches and runs. All of that is data of somebody else.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from permllm.errors import UserError

ADAPTER = "adapter_config.json"
"""Where this file is, transformers opens the model that it names, which may be any other."""

MOST_LAYERS = 1000
"""More decoder layers than any model has; each takes a third of a millisecond to build."""

IMPLEMENTATIONS = {
    "attn_implementation": ("eager", "sdpa", "flex_attention"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
}
"""What comes with torch and transformers; for others, transformers fetches code from the hub."""

FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Where an implementation of attention comes from; without it, from the hub."""

FETCHING_QUANTISERS = ("eetq", "fbgemm_fp8", "fp8", "metal", "mxfp4", "nvfp4")
"""Forms of quantised weights whose kernels transformers fetches from the hub."""

_LAYERS = re.compile(r"(?:^|_)(?:layers?|blocks|depth)$")
_WHOLE = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
_WEIGHTS = (None, "model.safetensors", "model.safetensors.index.json")


def check_config(data: Mapping[str, Any], path: Path, *, trust_remote_code: bool) -> None:
    """Refuse a configuration that leads transformers somewhere else, or into endless work.

    Args:
        data: the configuration.
        path: its file, for messages.
        trust_remote_code: whether the user trusts the code that the model asks for.

    Raises:
        UserError: it names other weights or, without trust, code of the hub; or a size is no
            whole number, or larger than that of any model.
    """
    for field, value in _fields(data):
        key = field.rpartition(".")[2]
        if key == "transformers_weights" and value not in _WEIGHTS:
            raise UserError(f"'{field}' names weights that permllm does not check", file=str(path))
        if not trust_remote_code:
            _refuse_fetched_code(field, value, path)
        _check_size(field, value, path)


def check_no_adapter(folder: Path) -> None:
    """Refuse the folder of an adapter, for which transformers opens the model that it names.

    Raises:
        UserError: it is one.
    """
    if (folder / ADAPTER).is_file():
        raise UserError(
            f"'{folder}' holds a PEFT adapter ({ADAPTER}), which names another model to open",
            hint="merge it with merge_and_unload() and save the model, or remove that file",
        )


def _refuse_fetched_code(field: str, value: Any, path: Path) -> None:
    """Refuse a value for which transformers would fetch code from the hub and run it."""
    key = field.rpartition(".")[2].strip("_").removesuffix("_internal")
    if key in IMPLEMENTATIONS:
        for name in _texts(value):
            if name not in IMPLEMENTATIONS[key] and _is_fetched(name):
                raise _foreign(field, name, path)
    elif key.endswith("_implementation"):
        for name in _texts(value):
            if "/" in name:
                raise _foreign(field, name, path)
    elif key in ("use_kernels", "kernel_config") and value:
        raise _foreign(field, str(value)[:60], path)
    elif key == "quant_method" and value in FETCHING_QUANTISERS and _has("kernels"):
        raise _foreign(field, str(value), path)


def _is_fetched(name: str) -> bool:
    """Whether transformers fetches the code of an implementation, if it can."""
    package = FLASH_PACKAGES.get(name.removeprefix("paged|"))
    if package is not None:
        return _has("kernels") and not _has(package)
    return name.removeprefix("paged|") not in IMPLEMENTATIONS["attn_implementation"]


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _foreign(field: str, name: str, path: Path) -> UserError:
    return UserError(
        f"'{field}' asks for code that transformers fetches from the hub and runs: '{name}'",
        file=str(path),
        hint=f"remove '{field}' from the file; or read that code, and add trust_remote_code: "
        "true to the pipeline's 'model' if you trust it",
    )


def _check_size(field: str, value: Any, path: Path) -> None:
    """Refuse sizes and types that are none, and more layers than any model has."""
    key = field.rpartition(".")[2]
    if value is None:
        return
    if key in ("dtype", "torch_dtype") and not isinstance(value, str | Mapping):
        raise UserError(
            f"'{field}' must be a text such as 'bfloat16', not {str(value)[:40]!r}", file=str(path)
        )
    if key in _WHOLE and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UserError(
            f"'{field}' must be a positive whole number, not {str(value)[:40]!r}", file=str(path)
        )
    if _LAYERS.search(key) and isinstance(value, int | float) and value > MOST_LAYERS:
        raise UserError(
            f"'{field}' is {str(value)[:20]}; a model of more than {MOST_LAYERS} is not built",
            file=str(path),
        )


def _fields(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every field with its dotted name, those of configurations within it included."""
    left: list[tuple[str, Any]] = [("", data)]
    while left:
        place, value = left.pop()
        inside: Any = ()
        if isinstance(value, Mapping):
            inside = value.items()
        elif isinstance(value, list):
            inside = enumerate(value)
        for key, item in inside:
            field = f"{place}.{key}".lstrip(".")
            yield field, item
            if isinstance(item, Mapping | list):
                left.append((field, item))


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value: itself, or those of a mapping of sub-configurations."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for _, item in _fields({"": value}):
            if isinstance(item, str):
                yield item
