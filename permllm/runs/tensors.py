"""Files of tensors that say by hashes what they hold, so that nothing else is ever believed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from permllm.core.digest import tensor_digest
from permllm.errors import UserError
from permllm.files import parse_json, sealed, unsealed
from permllm.runs import folder

DIGESTS = "tensors"
"""Under which a file's facts hold the hash of each tensor, by its name."""


def save_tensors(
    path: Path, form: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write tensors to a file, with plain data and the hashes of both.

    Args:
        path: where.
        form: names the layout of the file.
        tensors: contiguous ones on the CPU, which share no memory.
        facts: plain data by name.

    Raises:
        OSError: that fails.
    """
    digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    fields = {key: json.dumps(value) for key, value in ({**facts, DIGESTS: digests}).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(dict(tensors), path, metadata=sealed({"format": form} | fields))
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def read_facts(path: Path, form: str, what: str) -> dict[str, Any]:
    """The plain data of a file, the tensors' hashes among them.

    Args:
        path: the file.
        form: the layout that it must have.
        what: it is called in errors, such as ``window``.

    Raises:
        UserError: the file is damaged, or of another layout.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        raise damaged(path, what, str(error)) from error
    if metadata.get("format") != form:
        raise UserError(f"{path} is not a {what} of this version", hint="choose another --out")
    fields = unsealed(metadata, str(path))
    del fields["format"]
    return {key: parse_json(text, str(path)) for key, text in fields.items()}


def read_tensors(
    path: Path, digests: Mapping[str, str], wanted: Iterable[str], what: str
) -> dict[str, Tensor]:
    """Some tensors of a file, each of which is what was written.

    Args:
        path: the file.
        digests: the hash of each tensor, by name.
        wanted: the names.
        what: it is called in errors.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError, ValueError) as error:
        raise damaged(path, what, str(error)) from error
    for name, tensor in tensors.items():
        if tensor_digest(tensor) != digests[name]:
            raise damaged(path, what, f"'{name}' is not what was written")
    return tensors


def mapped_tensors(path: Path, prefix: str, what: str) -> dict[str, Tensor]:
    """The tensors of a file whose names begin so, mapped into memory and not checked.

    They are read where they are wanted, and take no memory that could not be had back.

    Args:
        path: the file.
        prefix: of the names.
        what: it is called in errors.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, ValueError) as error:
        raise damaged(path, what, str(error)) from error


def damaged(path: Path, what: str, why: str) -> UserError:
    """The error for a file that is not what was written."""
    # It is OUT/runs/LABEL/windows/NUMBER.safetensors, unless somebody took it elsewhere.
    run = path.absolute().parent.parent
    kept = (run.parent.parent / folder.PIPELINE).is_file()
    hint = folder.pruned_anew(run) if kept else None
    return UserError(f"the {what} {path} is damaged: {why}", hint=hint)
