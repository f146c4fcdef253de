"""Looks at a model's files without loading their weights."""

from __future__ import annotations

import functools
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from safetensors import safe_open

from permllm.errors import UserError
from permllm.files import can_exist, read_json
from permllm.models.devices import DTYPES
from permllm.models.gguf_header import read_header

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PART_OF_GGUF = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")

_TOKENIZER = re.compile(
    r"(tokeniz|vocab|merges|spiece|sentencepiece|tekken|spm)|.*\.(tiktoken|model|spm|bpe|vocab)$"
)
"""The names of tokenizers' files."""

LARGEST_HEADER = 100_000_000
"""Bytes of the longest header that safetensors reads."""


def check_gguf(path: Path) -> None:
    """Refuse a file that is no complete GGUF file.

    Raises:
        UserError: it is missing, cut short, or something else.
    """
    if not path.is_file():
        raise UserError(f"there is no GGUF file '{path}'")
    if part := _PART_OF_GGUF.search(path.name):
        raise UserError(
            f"'{path}' is part {int(part[1])} of {int(part[2])} of a model, and transformers reads "
            "one file",
            hint="put them together: llama-gguf-split --merge FIRST_PART WHOLE",
        )
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
    """The names of a GGUF file's fields; read once, since that takes a moment."""
    return read_header(path)


def check_folder(folder: Path) -> None:
    """Refuse a folder without a configuration, a tokenizer or complete weights.

    Raises:
        UserError: it names what is missing or cut short.
    """
    if not folder.is_dir():
        raise UserError(f"there is no model folder '{folder}'")
    if not (folder / CONFIG).is_file():
        raise UserError(f"the model folder '{folder}' has no {CONFIG}", hint=_other_files(folder))
    config = read_json(folder / CONFIG)
    for path in weight_files(folder):
        check_safetensors(path)
    if not any(_TOKENIZER.match(path.name) for path in folder.iterdir()):
        base = f", {config['_name_or_path']!r}" if config.get("_name_or_path") else ""
        raise UserError(
            f"the model folder '{folder}' has no tokenizer",
            hint="copy the tokenizer's files (tokenizer.json, tokenizer_config.json and the like) "
            f"into it from the model that it was made from{base}",
        )


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
    for name in names:
        _check_shard(folder, name)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"the model folder '{folder}' lacks {', '.join(missing)}, which {INDEX} names"
        )
    return [folder / name for name in names]


def saved_dtype(folder: Path) -> torch.dtype | None:
    """The type of a checkpoint's numbers; None where its files do not say.

    What the configuration says counts; else the type of most of the weights.
    """
    config = read_json(folder / CONFIG)
    text = config.get("text_config")
    for fields in (config, text if isinstance(text, dict) else {}):
        named = fields.get("dtype", fields.get("torch_dtype"))
        if isinstance(named, str) and named.removeprefix("torch.") in DTYPES:
            return DTYPES[named.removeprefix("torch.")]
    counted: Counter[str] = Counter()
    for _, shape, dtype in tensors_in(weight_files(folder)):
        counted[dtype] += math.prod(shape) if dtype in DTYPE_NAMES else 0
    return DTYPE_NAMES.get(counted.most_common(1)[0][0]) if counted else None


def tensors_in(files: Iterable[Path]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and type (such as ``"BF16"``) of every tensor of safetensors files."""
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                yield name, tuple(part.get_shape()), part.get_dtype()


DTYPE_NAMES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F64": torch.float64,
}


def inside(folder: Path, name: str) -> bool:
    """Whether a name that a file of a folder gives is that of a file in this folder.

    Links may lead elsewhere within the folder, and to the blobs of the hub's cache, which its
    snapshots are made of.

    Args:
        folder: the folder.
        name: the name, as an index or a manifest has it; nothing need be there.
    """
    for flavour in (PurePosixPath(name), PureWindowsPath(name)):
        if flavour.is_absolute() or flavour.drive or flavour.root or ".." in flavour.parts:
            return False
    if not name or "\0" in name or not can_exist(folder.absolute() / name):
        return False
    try:
        target = (folder / name).resolve()
        whole = folder.resolve()
    except (OSError, RuntimeError):
        # A link that leads to itself.
        return False
    return (target.is_relative_to(whole) and target != whole) or _is_blob(target)


def _is_blob(path: Path) -> bool:
    """Whether a file is one of the hub's cache: ``models--OWNER--NAME/blobs/HASH``."""
    return path.parent.name == "blobs" and path.parent.parent.name.startswith("models--")


def _check_shard(folder: Path, name: str) -> None:
    if not name.endswith(".safetensors"):
        raise UserError(
            f"the index names '{name[:200]}', which is no safetensors file",
            file=str(folder / INDEX),
            hint="pickled weights are never read: save the model as safetensors",
        )
    if not inside(folder, name):
        raise UserError(
            f"the index names '{name[:200]}', which is no file of the model's folder",
            file=str(folder / INDEX),
            hint="weights lie beside the index, and links lead to files of the folder or of "
            "the hub's cache",
        )


def check_safetensors(path: Path) -> None:
    """Refuse a safetensors file whose header does not fit its tensors, byte for byte.

    Types, shapes and offsets are those that safetensors itself refuses.

    Raises:
        UserError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    # Before it is parsed: a file may claim to be all header.
    if length > min(size, LARGEST_HEADER):
        raise _damaged(path, "its header is cut short")
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error


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
