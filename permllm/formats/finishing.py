"""The end of every export: the manifest, and the checks that let it stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs
import torch

from permllm.core.patterns import Pattern
from permllm.errors import RunFailed
from permllm.files import listing
from permllm.folding.plan import StoragePlan, StoredGroup
from permllm.formats.export_files import check_files, tensor_entries
from permllm.formats.loading import load
from permllm.formats.logits import (
    compare_logits,
    fixed_tokens,
    float32_logits,
    record_logits,
)
from permllm.formats.manifest import (
    MANIFEST,
    Format,
    GroupEntry,
    Manifest,
    PackedEntry,
    TensorEntry,
    schema_of,
    write_manifest,
)
from permllm.models.decoder import Decoder
from permllm.version import __version__


def finish(
    directory: Path,
    kind: Format,
    decoder: Decoder,
    storage: StoragePlan,
    patterns: Mapping[str, Pattern],
    held: Mapping[str, tuple[Pattern, int]],
    dtype: torch.dtype | None,
    entries: dict[str, TensorEntry] | None = None,
    packed: dict[str, PackedEntry] | None = None,
) -> Manifest:
    """Write the manifest of a folder, open the folder, and compare it with the pruned model.

    Args:
        directory: the folder, with everything else in it.
        kind: the format of its weights.
        decoder: the model with its pruned weights, in original order.
        storage: how it is stored.
        patterns: of the pruned linears.
        held: pattern and axis by tensor of the files.
        dtype: in which floating-point tensors were saved; their own where it is None.
        entries: of all tensors, where they are known already; else they are read.
        packed: the weights that stand in the files as values and indices.

    Raises:
        RunFailed: a tensor is not N:M, not finite or not what was written, or the opened
            model does not compute the same. No manifest is left then.
    """
    tokens = fixed_tokens(decoder.model)
    expected = float32_logits(decoder.model, tokens, through=dtype)
    manifest = Manifest(
        permllm=schema_of(packed or {}),
        version=__version__,
        format=kind,
        groups=_groups(storage.groups, patterns),
        tensors=tensor_entries(directory, held) if entries is None else entries,
        logits=record_logits(tokens, expected),
        residual=tuple(storage.axes) if storage.stream is not None else (),
        packed=packed or {},
        contents=listing(directory),
    )
    for name, wrong in check_files(directory, manifest):
        if wrong:
            raise RunFailed(f"the export is not right: {name}: {wrong}")
    write_manifest(directory, manifest)
    try:
        # As the model was opened, since buffers that are in no file are rounded to that.
        as_opened = None if dtype is None else decoder.residency.opened_as
        # Its files were read a moment ago.
        opened = load(directory, dtype=as_opened, check=False)
        agreement = compare_logits(expected, float32_logits(opened.model, tokens))
        if not agreement.holds:
            raise RunFailed(
                f"the exported model in {directory} does not compute what the pruned model does: "
                f"its logits differ by {agreement.difference:.2g} of the largest, and "
                f"{1 - agreement.argmax:.1%} of the most likely tokens are others"
            )
    except BaseException:
        (directory / MANIFEST).unlink()
        raise
    return manifest


def unmoved(decoder: Decoder) -> StoragePlan:
    """How a model is stored whose channels all keep their original order."""
    groups = (
        StoredGroup(group.name, group.linears, group.channels, "stored")
        for group in decoder.groups.values()
    )
    return StoragePlan(groups=tuple(groups), rows={}, columns={}, gathers={})


def _groups(
    groups: Iterable[StoredGroup], patterns: Mapping[str, Pattern]
) -> tuple[GroupEntry, ...]:
    """What the manifest says of groups; its fields are theirs, and the pattern."""
    return tuple(
        GroupEntry(
            pattern=_pattern(group.linears, patterns),
            **attrs.asdict(group, recurse=False),
        )
        for group in groups
    )


def _pattern(linears: tuple[str, ...], patterns: Mapping[str, Pattern]) -> str | None:
    """The pattern of a group; linears of it that stay dense have none."""
    return next((str(patterns[linear]) for linear in linears if linear in patterns), None)
