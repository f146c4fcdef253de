"""Writes and reads the weights of an exported folder, tensor by tensor."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from permllm.core.patterns import Pattern, is_nm
from permllm.errors import NoSpace, RunFailed, UserError
from permllm.files import file_hash, write_json
from permllm.formats.manifest import MANIFEST, Manifest, TensorEntry
from permllm.models.checkpoint_files import check_safetensors, tensors_in

SHARD_BYTES = 4 * 2**30
"""The largest file of weights, but for single tensors that are larger."""

STEM = "permllm"
"""What the files are called that plain transformers is not to open."""

SINGLE, INDEX = f"{STEM}.safetensors", f"{STEM}.safetensors.index.json"
"""The only file; or what says where each tensor is, beside several."""

METHOD = "permllm"
"""What ``config.json`` calls the form of weights that only permllm opens."""

CARD = "README.md"
"""The model card."""

SPARE_BYTES = 64 * 2**20
"""To be left on the disk after an export."""


def check_claim(directory: Path, needed: int) -> None:
    """Refuse a folder that is in use, or a disk without room.

    Args:
        directory: where the export is to go.
        needed: bytes.

    Raises:
        UserError: the folder is not empty.
        NoSpace: the disk is too full.
    """
    if any(directory.iterdir()):
        raise UserError(
            f"the folder {directory} holds files already", hint="export to an empty or a new folder"
        )
    free = shutil.disk_usage(directory).free
    if free < needed + SPARE_BYTES:
        raise NoSpace(
            f"the export needs about {needed / 2**20:.0f} MiB and {SPARE_BYTES / 2**20:.0f} MiB to "
            f"spare, but {directory} has {free / 2**20:.0f} MiB left",
            hint="make room, or export to another disk",
        )


def check_complete(directory: Path, model: nn.Module) -> None:
    """Refuse files that transformers wrote without some of a model's weights.

    Parameters are looked for by name. Some models are saved in another layout than they have in
    memory; then there have to be as many numbers.

    Raises:
        RunFailed: weights are missing, of which it names one, or a file is damaged.
    """
    files = sorted(directory.glob("*.safetensors"))
    try:
        shapes = {name: shape for name, shape, _ in tensors_in(files)}
    except SafetensorError as error:
        raise RunFailed(f"what transformers wrote cannot be read back: {error}") from error
    parameters = dict(model.named_parameters())
    missing = [name for name, one in parameters.items() if shapes.get(name) != tuple(one.shape)]
    size = sum(parameter.numel() for parameter in parameters.values())
    if missing and sum(map(math.prod, shapes.values())) < size:
        raise RunFailed(
            f"transformers wrote {type(model).__name__} without '{missing[0]}' and "
            f"{len(missing) - 1} other weights, so that what was pruned is not in the export"
        )


def write_shards(directory: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write tensors to ``permllm.safetensors``, or to several with an index where they are large.

    No more than one file's tensors are in memory.

    Raises:
        OSError: that fails.
    """
    shard: dict[str, Tensor] = {}
    places: dict[str, str] = {}
    files: list[str] = []
    size = total = 0

    def flush() -> None:
        nonlocal shard, size, total
        files.append(f"{STEM}-{len(files) + 1:05d}.safetensors")
        write_file(directory / files[-1], shard)
        places.update(dict.fromkeys(shard, files[-1]))
        shard, size, total = {}, 0, total + size

    for name, tensor in tensors:
        wide = tensor.numel() * tensor.element_size()
        if shard and size + wide > SHARD_BYTES:
            flush()
        shard[name] = tensor
        size += wide
    flush()
    if len(files) == 1:
        (directory / files[0]).rename(directory / SINGLE)
    else:
        # As transformers has it of its own files.
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file.

    Raises:
        OSError: that fails, such as for a full disk.
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor, str]]:
    """The tensors of a file, one at a time: name, tensor, and dtype in safetensors' words.

    Raises:
        UserError: the file is missing, cut short or damaged.
    """
    if not path.is_file():
        raise UserError(f"there is no file '{path}'", hint="export again, or copy the whole folder")
    check_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name), file.get_slice(name).get_dtype()
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{path}' cannot be read: {error}") from error


def tensor_entries(
    directory: Path, patterns: Mapping[str, tuple[Pattern, int]]
) -> dict[str, TensorEntry]:
    """The entries of all tensors in the safetensors files of a folder, read back from them.

    Args:
        directory: the folder.
        patterns: N:M and axis by tensor name.
    """
    entries = {}
    for path in sorted(directory.glob("*.safetensors")):
        for name, tensor, dtype in read_tensors(path):
            pattern, axis = patterns.get(name, (None, -1))
            entries[name] = TensorEntry(
                file=path.name,
                sha256=tensor_hash(tensor),
                shape=tuple(tensor.shape),
                dtype=dtype,
                pattern=None if pattern is None else str(pattern),
                axis=axis,
            )
    return entries


def tensor_hash(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's bytes."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def check_files(directory: Path, manifest: Manifest) -> Iterator[tuple[str, str | None]]:
    """Check every tensor of a folder against its manifest.

    Returns:
        for each tensor its name and what is wrong with it, or None; then the same for
        those that are not in the manifest.

    Raises:
        UserError: a file is missing or damaged.
    """
    seen = set()
    for file in manifest.files:
        for name, tensor, dtype in read_tensors(directory / file):
            seen.add(name)
            entry = manifest.tensors.get(name)
            if entry is None or entry.file != file:
                yield name, f"{file} should not hold it"
            else:
                yield name, _wrong(entry, tensor, dtype)
    for name in sorted(set(manifest.tensors) - seen):
        yield name, f"{manifest.tensors[name].file} does not hold it"


def check_contents(directory: Path, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Check every file of a folder against its manifest, and look for strangers.

    What people add when they publish a model (a licence, pictures, git's own files) is no
    stranger. A folder whose version did not list its files has nothing to compare with.

    Returns:
        each file that is wrong, by its path within, and why; the card, which people edit, only
        where it is missing.
    """
    for name, expected in manifest.contents.items():
        try:
            if file_hash(directory / name) != expected and name != CARD:
                yield name, "it is not what was exported"
        except FileNotFoundError:
            yield name, "it is missing"
        except OSError as error:
            yield name, f"it cannot be read: {error.strerror}"
    if manifest.contents:
        for path in sorted(directory.rglob("*")):
            name = path.relative_to(directory).as_posix()
            known = name in manifest.contents or name == MANIFEST or path.is_dir()
            if not known and not _is_harmless(path.relative_to(directory)):
                yield name, "it was not exported, and does not belong here"


def card_is_edited(directory: Path, manifest: Manifest) -> bool:
    """Whether the model card is another one than was exported."""
    card = directory / CARD
    expected = manifest.contents.get(CARD)
    return expected is not None and card.is_file() and file_hash(card) != expected


def check_folder(directory: Path, manifest: Manifest) -> None:
    """Refuse a folder whose files are not those of its manifest.

    Raises:
        UserError: names the first that is wrong.
    """
    refuse(directory, dict(check_contents(directory, manifest)))


def refuse(directory: Path, wrong: Mapping[str, str]) -> None:
    """Refuse a folder in which something is wrong.

    Args:
        directory: the folder.
        wrong: what is wrong, by the name of a file or a tensor; nothing where it is empty.

    Raises:
        UserError: names the first.
    """
    for name, why in wrong.items():
        more = f", and {len(wrong) - 1} more are not right" if len(wrong) > 1 else ""
        raise UserError(
            f"'{directory}' is not what was exported: {name}: {why}{more}",
            hint="copy the whole folder again, or export anew",
        )


def _is_harmless(path: Path) -> bool:
    """Whether a file, by its path within the folder, is none that anything reads."""
    first, name = path.parts[0], path.name
    return (
        first in (".git", ".cache")
        or name in (".gitattributes", ".gitignore", ".DS_Store")
        or name.upper().startswith(("LICENSE", "LICENCE", "NOTICE"))
        or path.suffix.lower() in (".md", ".png", ".jpg", ".jpeg", ".svg", ".pdf")
    )


def _wrong(entry: TensorEntry, tensor: Tensor, dtype: str) -> str | None:
    """What is wrong with a tensor, the simplest first."""
    if tuple(tensor.shape) != entry.shape:
        return f"its shape is {tuple(tensor.shape)} and should be {entry.shape} ({entry.file})"
    if dtype != entry.dtype:
        return f"its dtype is {dtype} and should be {entry.dtype} ({entry.file})"
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        return f"it holds NaN or infinite numbers ({entry.file})"
    if entry.pattern is not None:
        along = tensor if entry.axis == -1 else tensor.transpose(-1, -2)
        if not is_nm(along, Pattern.parse(entry.pattern)):
            return f"it is not {entry.pattern} in stored order ({entry.file})"
    if tensor_hash(tensor) != entry.sha256:
        return f"its bytes are others than were exported ({entry.file})"
    return None
