"""``permllm.json``: what stands in an exported folder, to be checked against.

It is written last: a folder without it is no finished export.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

import attrs

from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.files import converted, read_json, unsealed, write_sealed
from permllm.folding.gather_points import at_inputs
from permllm.formats.packed_entry import PackedEntry

MANIFEST = "permllm.json"
"""Its name in the folder."""

LARGEST_SIZE = 2**32
"""The most entries along an axis of a tensor."""

SCHEMA = 2
"""The largest number of a layout that is read. Folders of a larger one are refused."""

Format = Literal["masked", "permuted", "sparse"]
"""Of the weights; those of ``masked`` are in the original order, in which they are not N:M."""


@attrs.frozen
class GroupEntry:
    """How the order of one permutation group reaches its linears.

    Attributes:
        name: the group.
        linears: the full names of the linears that read one tensor.
        pattern: such as ``"2:4"``; None where none of them is pruned.
        channels: of that tensor.
        order: ``stored`` (in original order), ``folded`` (into the rows of the linears
            before) or ``gathered`` (at run time).
        into: the parameters whose rows are in another order, where it is folded.
        at: where it is gathered: one module, whose output it is; or the linears themselves,
            or the module of all experts that they belong to, whose inputs are.
        reason: why it is not folded.
    """

    name: str
    linears: tuple[str, ...]
    pattern: str | None
    channels: int
    order: Literal["stored", "folded", "gathered"]
    into: tuple[str, ...] = ()
    at: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def gathers_inputs(self) -> bool:
        """Whether the modules of ``at`` are gathered at their input, not at their output."""
        return at_inputs(self.at, self.linears)


@attrs.frozen
class TensorEntry:
    """One tensor of the files.

    Attributes:
        file: its name in the folder.
        sha256: of its bytes.
        shape, dtype: as safetensors says, such as ``"BF16"``.
        pattern: the N:M that it holds along ``axis``, else None.
        axis: -1, or -2 for weights that are stored ``[C_in, C_out]``.
    """

    file: str
    sha256: str
    shape: tuple[int, ...]
    dtype: str
    pattern: str | None = None
    axis: int = -1


@attrs.frozen
class LogitsEntry:
    """What the pruned model said to some tokens, computed in float32.

    Attributes:
        tokens: sequences of one length.
        dtype: ``"float32"``.
        indices: for every token of every sequence some entries of the logits, the largest
            first, and others spread over the vocabulary.
        values: those entries.
        largest: the largest absolute logit of all.
    """

    tokens: tuple[tuple[int, ...], ...]
    dtype: str
    indices: tuple[tuple[int, ...], ...]
    values: tuple[tuple[float, ...], ...]
    largest: float


@attrs.frozen
class Manifest:
    """What stands in an exported folder.

    Attributes:
        permllm: the number of this layout.
        version: of the package that wrote it.
        format: of the weights.
        groups: every permutation group that was ordered.
        tensors: every tensor of the files, by name.
        logits: what the model is to say.
        residual: the parameters that are stored in another order of the residual stream;
            the groups that read it are then ``folded`` without ``into``.
        packed: the weights of a sparse export that are packed, by the model's name.
        contents: the SHA-256 of every other file of the folder, by its path within; empty in
            folders of versions that did not keep it.
    """

    permllm: int
    version: str
    format: Format
    groups: tuple[GroupEntry, ...]
    tensors: dict[str, TensorEntry]
    logits: LogitsEntry
    residual: tuple[str, ...] = ()
    packed: dict[str, PackedEntry] = attrs.field(factory=dict)
    contents: dict[str, str] = attrs.field(factory=dict)

    @property
    def gathers(self) -> tuple[GroupEntry, ...]:
        """The groups whose order is gathered at run time."""
        return tuple(group for group in self.groups if group.order == "gathered")

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files with weights."""
        return tuple(sorted({entry.file for entry in self.tensors.values()}))


def schema_of(packed: Mapping[str, PackedEntry]) -> int:
    """The number of a manifest: the least whose readers understand what is packed."""
    return 2 if any(entry.values is not None for entry in packed.values()) else 1


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest, sealed."""
    write_sealed(directory / MANIFEST, attrs.asdict(manifest))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an exported folder.

    Raises:
        UserError: there is none, a newer version wrote it, or it is damaged.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        raise UserError(f"there is no folder '{directory}'")
    if not path.is_file():
        raise UserError(
            f"'{directory}' is no finished export: it has no {MANIFEST}", hint=_what(directory)
        )
    data = read_json(path)
    number = data.get("permllm")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise UserError("this is no manifest: 'permllm' is not its number", file=str(path))
    if number > SCHEMA:
        raise UserError(
            f"permllm {data.get('version', 'of a later version')} wrote this manifest of number "
            f"{number}; this version reads up to {SCHEMA}",
            file=str(path),
            hint="install a newer version of permllm",
        )
    try:
        # The versions that did not seal did not list the files either.
        whole = unsealed(data, str(path), older=not data.get("contents"))
        manifest = converted(whole, Manifest, str(path))
        check_manifest(manifest)
    except UserError as error:
        wrong = error.message.removeprefix("this is damaged: ")
        raise UserError(f"the manifest is damaged: {wrong}", file=str(path)) from error
    return manifest


def check_manifest(manifest: Manifest) -> None:
    """Refuse a manifest that says what no export can be, before anything is made of it.

    Raises:
        UserError: with the field.
    """
    for place, why in _impossible(manifest):
        raise UserError(f"{place}: {why}")


def _impossible(manifest: Manifest) -> Iterator[tuple[str, str]]:
    if not manifest.tensors:
        yield "tensors", "there are none"
    for name in manifest.contents:
        if not _is_inside(name):
            yield "contents", f"{name[:80]!r} is no file of the folder"
    for name, entry in manifest.tensors.items():
        place = f"tensors[{name[:80]!r}]"
        if not _is_inside(entry.file) or not entry.file.endswith(".safetensors"):
            yield f"{place}.file", f"{entry.file[:80]!r} is no file of the folder"
        yield from _wrong_layout(place, entry.shape, entry.pattern, entry.axis)
    shapes = {name: entry.shape for name, entry in manifest.tensors.items()}
    for name, packed in manifest.packed.items():
        place = f"packed[{name[:80]!r}]"
        yield from _wrong_layout(place, packed.shape, packed.pattern, packed.axis)
        for field, why in packed.wrong_parts(name, shapes):
            yield f"{place}{field}", why
    for index, group in enumerate(manifest.groups):
        place = f"groups[{index}]"
        yield from _wrong_layout(place, (group.channels,), group.pattern, -1)
        for module in group.at if group.order == "gathered" else ():
            stored = manifest.tensors.get(f"{module}.permllm_order")
            if stored is not None and stored.shape != (group.channels,):
                yield f"{place}.channels", f"{group.channels} are not those of {module}"
    yield from _wrong_logits(manifest.logits)


def _wrong_layout(
    place: str, shape: tuple[int, ...], pattern: str | None, axis: int
) -> Iterator[tuple[str, str]]:
    if not all(0 <= size <= LARGEST_SIZE for size in shape):
        yield f"{place}.shape", f"{str(shape)[:80]} is the shape of no tensor"
    if axis not in (-1, -2):
        yield f"{place}.axis", f"{str(axis)[:80]} is neither -1 nor -2"
    if pattern is not None:
        try:
            Pattern.parse(pattern)
        except ValueError as error:
            yield f"{place}.pattern", str(error)[:200]


def _wrong_logits(logits: LogitsEntry) -> Iterator[tuple[str, str]]:
    lengths = {len(row) for row in logits.tokens}
    counted = sum(map(len, logits.tokens))
    if len(lengths) != 1 or not counted:
        yield "logits.tokens", "they are not sequences of one length"
    rows = len(logits.indices), len(logits.values)
    widths = {len(row) for row in (*logits.indices, *logits.values)}
    if rows != (counted, counted) or len(widths) != 1 or 0 in widths:
        yield "logits.indices", "they are not as many for every token, each with its value"
    numbers = [number for row in (*logits.tokens, *logits.indices) for number in row]
    if not all(0 <= number < 2**31 for number in numbers):
        yield "logits", "a token or an index is no number of one"
    if not all(math.isfinite(value) for row in logits.values for value in row):
        yield "logits.values", "they are not all finite"
    if not (math.isfinite(logits.largest) and logits.largest >= 0):
        yield "logits.largest", "it is no size"


def _is_inside(name: str) -> bool:
    """Whether a name is one of a file in the folder, wherever that is."""
    path = PurePosixPath(name)
    parts = path.parts
    return (
        bool(parts)
        and not path.is_absolute()
        and ".." not in parts
        and name.isprintable()
        and "\\" not in name
        and all(len(part.encode()) <= 255 for part in parts)
    )


def _what(directory: Path) -> str | None:
    """What a folder without a manifest may be."""
    if list(directory.glob("permllm*.safetensors")):
        return "the export was interrupted: export again"
    if (directory / "pipeline.yaml").is_file() and (directory / "config.json").is_file():
        return "if an earlier version exported it as masked, export it again to have it checked"
    if (directory / "config.json").is_file():
        return (
            "it looks like a model of transformers: AutoModelForCausalLM.from_pretrained opens it"
        )
    return "name the folder of an export, such as runs/NAME/runs/LABEL/exports/permuted"
