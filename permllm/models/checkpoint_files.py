"""Looks at a model's files without loading their weights."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from permllm.errors import UserError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

LARGEST_HEADER = 100_000_000
"""Bytes of the longest header that safetensors reads."""


def check_gguf(path: Path) -> None:
    """Refuse a file that is no complete GGUF file.

    Raises:
        UserError: it is missing, cut short, or something else.
    """
    if not path.is_file():
        raise UserError(f"there is no GGUF file '{path}'")
    try:
        status = path.stat()
        fields = _gguf_fields(path, status.st_size, status.st_mtime_ns)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError) as error:
        raise UserError(
            f"'{path}' is no complete GGUF file: {error}",
            hint="a download that broke off looks like this: fetch it again",
        ) from error
    # Without these, transformers would build a model of its default sizes.
    for key in ("general.architecture", ".block_count", ".embedding_length", "ggml.tokens"):
        if not any(field.endswith(key) for field in fields):
            raise UserError(
                f"'{path}' holds no language model: it has no '{key.removeprefix('.')}'"
            )


@functools.lru_cache(maxsize=4)
def _gguf_fields(path: Path, size: int, modified: int) -> frozenset[str]:
    """The names of a GGUF file's fields; read once, since that takes seconds."""
    import gguf

    return frozenset(gguf.GGUFReader(path).fields)


def check_folder(folder: Path) -> None:
    """Refuse a folder without a configuration or without complete weights.

    Raises:
        UserError: it names what is missing or cut short.
    """
    if not folder.is_dir():
        raise UserError(f"there is no model folder '{folder}'")
    if not (folder / CONFIG).is_file():
        raise UserError(f"the model folder '{folder}' has no {CONFIG}", hint=_other_files(folder))
    read_json(folder / CONFIG)
    for path in weight_files(folder):
        check_safetensors(path)


def weight_files(folder: Path) -> Sequence[Path]:
    """The safetensors of a model folder, all of which exist.

    Raises:
        UserError: there are none, or some are missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise UserError(
            f"the model folder '{folder}' has no weights: neither {WEIGHTS} nor {INDEX}",
            hint=_other_files(folder),
        )
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError("the index has no 'weight_map'", file=str(folder / INDEX))
    names = sorted({str(name) for name in shards.values()})
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"the model folder '{folder}' lacks {', '.join(missing)}, which {INDEX} names"
        )
    return [folder / name for name in names]


def check_safetensors(path: Path) -> None:
    """Refuse a safetensors file that is shorter or longer than its header says.

    Raises:
        UserError: it is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size, LARGEST_HEADER):
            raise _damaged(path, "its header is cut short")
        header = file.read(length)
    try:
        tensors = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name[:2] != "__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(path, "its header cannot be read") from error
    expected = 8 + length + max(ends, default=0)
    if expected != size:
        raise _damaged(path, f"it has {size} bytes and should have {expected}")


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        UserError: it is no JSON, or no mapping.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"this is no JSON: {error.msg}", file=str(path), line=error.lineno, column=error.colno
        ) from error
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"this cannot be read: {error}", file=str(path)) from error
    if not isinstance(data, dict):
        raise UserError("this is no JSON object", file=str(path))
    return data


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"'{path}' is no complete safetensors file: {why}",
        hint="a download that broke off looks like this: fetch it again",
    )


def _other_files(folder: Path) -> str | None:
    """What to do about a folder that holds a model in another form."""
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return f"it holds a GGUF file: {{source: gguf, path: {ggufs[0]}}}"
    if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
        return "its weights are pickled, which permllm does not read: save it as safetensors"
    return None
