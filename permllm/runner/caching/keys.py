"""What results depend on, as hashes: the keys of the cache.

A key covers the model's files, the tokens, the options of every stage before, the code
that computes (permllm's own and that of plugins), the versions of the libraries and the
machine's arithmetic. What cannot be described raises :class:`Unhashable`, and is not kept.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import sys
import types
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.components import Component, Dataset
from permllm.core.digest import tensor_digest
from permllm.core.patterns import Pattern
from permllm.core.statistics import Statistic
from permllm.datasets.local_files import content_digest

LIBRARIES = ("torch", "transformers", "tokenizers", "gguf", "numpy", "numba", "safetensors",
             "datasets")  # fmt: skip
"""Whose versions may change a result's bits."""

AROUND = ("cli", "exporters", "observers", "report", "testing")
"""Folders of permllm that no result depends on."""


class Unhashable(Exception):
    """Something whose content cannot be told apart from another's."""


def digest(*parts: Any) -> str:
    """The SHA-256 of plain data."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def machine(device: torch.device, dtype: torch.dtype | None) -> dict[str, Any]:
    """What decides how a computation is rounded: libraries, processor, types.

    Threads do, too, but are told apart by :func:`rounding`.
    """
    cuda = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "libraries": {name: _version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "processor": [platform.machine(), torch.backends.cpu.get_cpu_capability(), cuda],
        "device": device.type,
        "dtype": str(dtype),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def rounding() -> str:
    """What changes the last digits of a result and nothing else: the number of threads.

    What is kept for other studies is kept apart by it, so that the same threads give the same
    bits, whatever the cache holds.
    """
    return f"threads={torch.get_num_threads()}"


def component_key(value: Any, split: str = "test") -> Any:
    """A component, or a part of a pipeline, as plain data with the contents of its files.

    Args:
        value: a component with all its options.
        split: which split of its datasets it reads, unless it has an option ``split``.

    Raises:
        Unhashable: it holds something that has no content to hash.
    """
    if isinstance(value, Dataset):
        return {"text": value.fingerprint(split), "label": value.label(), **_class(value)}
    if attrs.has(type(value)) and not isinstance(value, Pattern):
        split = str(getattr(value, "split", split))
        options = {
            field.name: component_key(getattr(value, field.name), split)
            for field in attrs.fields(type(value))
        }
        return {"options": options} | (_class(value) if isinstance(value, Component) else {})
    if isinstance(value, Path):
        return {"path": str(value), "content": content_digest(value)}
    if isinstance(value, Mapping):
        return {str(key): component_key(item, split) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [component_key(item, split) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Pattern):
        return str(value)
    raise Unhashable(f"{type(value).__name__}")


def statistic_key(statistic: Statistic) -> Any:
    """A statistic with the function that it sums."""
    return [statistic.name, statistic.channel_axes, _function(statistic.partial)]


@functools.cache
def code_of(module: str) -> str:
    """The SHA-256 of the code that a module belongs to: its top-level package or its file.

    Raises:
        Unhashable: the code is in no file.
    """
    if module.partition(".")[0] == "permllm":
        return own_code()
    package = sys.modules.get(module.partition(".")[0])
    folder = getattr(package, "__path__", None)
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    if folder and file and any(Path(file).is_relative_to(place) for place in folder):
        return _hashed(path for place in folder for path in sorted(Path(place).rglob("*.py")))
    if file is None:
        raise Unhashable(f"the module {module} has no file")
    return _hashed([Path(file)])


@functools.cache
def own_code() -> str:
    """The SHA-256 of permllm's code that computes results."""
    folder = Path(__file__).parents[2]
    paths = sorted(folder.rglob("*.py"))
    return _hashed(path for path in paths if path.relative_to(folder).parts[0] not in AROUND)


def _class(component: Component) -> dict[str, Any]:
    cls = type(component)
    if "<locals>" in cls.__qualname__:
        raise Unhashable(f"the class {cls.__qualname__} is made within a function")
    return {"class": f"{cls.__module__}:{cls.__qualname__}", "code": code_of(cls.__module__)}


def _function(function: Any) -> Any:
    """A function with its code and whatever it is bound to."""
    if isinstance(function, functools.partial):
        keywords = sorted(function.keywords.items())
        return ["partial", _function(function.func), *map(_value, function.args), _value(keywords)]
    if isinstance(function, types.MethodType):
        return ["method", _function(function.__func__), component_key(function.__self__)]
    if not isinstance(function, types.FunctionType):
        raise Unhashable(f"{function!r}")
    cells = [_value(cell.cell_contents) for cell in function.__closure__ or ()]
    defaults = [_value(value) for value in function.__defaults__ or ()]
    # With the code of its file known, the line tells functions of one name apart.
    place = [function.__module__, function.__qualname__, function.__code__.co_firstlineno]
    return [*place, code_of(function.__module__), cells, defaults]


def _value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, types.FunctionType | functools.partial):
        return _function(value)
    return component_key(value)


def _hashed(paths: Iterable[Path]) -> str:
    content = hashlib.sha256()
    for path in paths:
        content.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
