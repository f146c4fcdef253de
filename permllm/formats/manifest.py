"""``permllm.json``: what stands in an exported folder, to be checked against.

It is written last: a folder without it is no finished export.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import attrs

from permllm.errors import UserError
from permllm.fields.errors import ERRORS, leaves
from permllm.fields.reading import Reader
from permllm.fields.writing import writer
from permllm.files import write_text
from permllm.models.checkpoint_files import read_json

MANIFEST = "permllm.json"
"""Its name in the folder."""

SCHEMA = 1
"""The number of its layout. Folders of a larger one are refused."""

Format = Literal["permuted", "sparse"]


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
        at: where it is gathered: one module, whose output it is, or the linears themselves,
            whose inputs are.
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
        return self.at == self.linears


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
class PackedEntry:
    """A weight that stands in the files as values and indices.

    Attributes:
        pattern: N:M.
        shape: ``[…, C_out, C_in]``, once it is unpacked.
        axis: -1, or -2 where the model holds it ``[…, C_in, C_out]``.
    """

    pattern: str
    shape: tuple[int, ...]
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
    """

    permllm: int
    version: str
    format: Format
    groups: tuple[GroupEntry, ...]
    tensors: dict[str, TensorEntry]
    logits: LogitsEntry
    residual: tuple[str, ...] = ()
    packed: dict[str, PackedEntry] = attrs.field(factory=dict)

    @property
    def gathers(self) -> tuple[GroupEntry, ...]:
        """The groups whose order is gathered at run time."""
        return tuple(group for group in self.groups if group.order == "gathered")

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files with weights."""
        return tuple(sorted({entry.file for entry in self.tensors.values()}))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest under a temporary name and rename it."""
    text = json.dumps(writer().unstructure(manifest), indent=1, ensure_ascii=False) + "\n"
    write_text(directory / MANIFEST, text)


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
        # Versions with the same number may add fields.
        manifest: Manifest = Reader(lenient=True).read(data, Manifest)
    except ERRORS as error:
        wrong = [f"{'.'.join(map(str, place))}: {leaf}" for place, leaf in leaves(error)]
        message = f"the manifest is damaged: {'; '.join(wrong[:3])}"
        raise UserError(message, file=str(path)) from error
    return manifest


def _what(directory: Path) -> str | None:
    """What a folder without a manifest may be."""
    if list(directory.glob("permllm*.safetensors")):
        return "the export was interrupted: export again"
    if (directory / "config.json").is_file():
        return (
            "it looks like a model of transformers: AutoModelForCausalLM.from_pretrained opens it"
        )
    return "name the folder of an export, such as runs/NAME/runs/LABEL/exports/permuted"
