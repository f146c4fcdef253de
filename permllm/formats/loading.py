"""``permllm.load``: opens an exported folder, with gathers where some are left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from permllm.contexts.evaluation import LinearReport
from permllm.core.patterns import Pattern
from permllm.core.permutations import is_permutation
from permllm.errors import UserError
from permllm.formats.export_files import check_folder, read_tensors
from permllm.formats.gathers import BUFFER, attach_gathers
from permllm.formats.manifest import Manifest, read_manifest
from permllm.formats.packed import unpacked_tensors
from permllm.formats.packed_entry import PackedEntry
from permllm.formats.packed_linears import hold_packed, reports_of
from permllm.models.loading import LoadedModel, load_tokenizer, quiet, read_config
from permllm.models.loading import load as load_plain
from permllm.models.sources import DirectorySource
from permllm.sparse.models import sparsify


@attrs.frozen(eq=False)
class LoadedExport(LoadedModel):
    """A model that permllm exported.

    Attributes:
        model: in eval mode.
        tokenizer: as transformers makes it.
        description: where it came from, for people.
        saved_dtype: of its numbers in its files; None where these do not say.
        linears: how each pruned linear runs, if it was opened with ``sparse=True``.
        patterns: of the pruned linears, by name; none for a model that is no export.
    """

    linears: tuple[LinearReport, ...] = ()
    patterns: dict[str, Pattern] = attrs.field(factory=dict)


def load(
    path: str | Path,
    *,
    sparse: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
    check: bool = True,
) -> LoadedExport:
    """Open a model that permllm exported.

    Args:
        path: the folder of the export.
        sparse: have pruned linears multiply with packed weights where that is faster; the
            result says of each how it runs, and why.
        dtype: of the parameters; None for the one they are saved in.
        device: where to; the CPU where it is None.
        trust_remote_code: whether code in the folder may run, for models whose code is not
            in transformers.
        check: read every file once before, and refuse a folder that is not what was exported:
            a second for 1.5 GB or so.

    Returns:
        model, in eval mode, and tokenizer.

    Raises:
        UserError: it is no finished export, a newer version wrote it, or files are missing,
            damaged, or not of it.
    """
    directory = Path(path)
    manifest = read_manifest(directory)
    if check:
        check_folder(directory, manifest)
    source = DirectorySource(directory, trust_remote_code=trust_remote_code)
    if sparse and manifest.format == "masked":
        raise UserError(
            f"'{directory}' is a masked export: its weights are in the original order, in which "
            "they are not N:M, so they cannot run sparse",
            hint="export the run as permuted or sparse, and open that",
        )
    if manifest.format != "sparse" and not manifest.gathers:
        loaded = load_plain(source, dtype)
    else:
        model = _skeleton(source, dtype)
        packed = manifest.packed
        if sparse and torch.device(device or "cpu").type == "cpu":
            # Codes are not made again of unpacked weights.
            coded = {name: entry for name, entry in packed.items() if entry.grid is not None}
            packed = {name: one for name, one in packed.items() if name not in coded}
            packed |= hold_packed(model, coded)
        # To the linears that stand there now.
        attach_gathers_of(model, manifest)
        _fill(model, directory, manifest, packed, dtype)
        loaded = LoadedModel(model.eval(), load_tokenizer(source), str(directory))
    if device is not None:
        loaded.model.to(device)
    patterns = patterns_of(manifest)
    linears = running_sparse(loaded.model, patterns) if sparse else ()
    return LoadedExport(loaded.model, loaded.tokenizer, loaded.description, linears, patterns)


def running_sparse(model: nn.Module, patterns: Mapping[str, Pattern]) -> tuple[LinearReport, ...]:
    """Have linears run sparse that do not hold packed weights yet, and say of all how they run.

    Raises:
        UserError: packed weights are damaged.
    """
    reports = reports_of(model)
    others = {name: one for name, one in patterns.items() if name not in reports}
    reports |= {report.name: report for report in sparsify(model, others)}
    return tuple(reports[name] for name in patterns)


def patterns_of(manifest: Manifest) -> dict[str, Pattern]:
    """The N:M of every pruned linear of an export."""
    return {
        linear: Pattern.parse(group.pattern)
        for group in manifest.groups
        if group.pattern is not None
        for linear in group.linears
    }


def _skeleton(source: DirectorySource, dtype: torch.dtype | None) -> Any:
    """The model as its configuration describes it, without memory for its parameters.

    Buffers that are in no file, such as a factor of the embeddings, are computed in ``dtype``.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = read_config(source)
    # Of stock transformers; what is made here is an ordinary model.
    vars(config).pop("quantization_config", None)
    with quiet():
        try:
            with init_empty_weights(include_buffers=False):
                model = AutoModelForCausalLM.from_config(
                    config, dtype=dtype or config.dtype, trust_remote_code=source.trust_remote_code
                )
            if (source.path / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(source.path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            first = str(error).strip().partition("\n")[0]
            raise UserError(
                f"transformers cannot build the model of '{source.path}': {first}"
            ) from error
    return model


def attach_gathers_of(model: nn.Module, manifest: Manifest) -> None:
    """Attach the gathers of an export, whose buffers are still to be filled."""
    places = {name: group.gathers_inputs for group in manifest.gathers for name in group.at}
    sizes = {name: group.channels for group in manifest.gathers for name in group.at}
    attach_gathers(model, places, sizes)


def _fill(
    model: Any,
    directory: Path,
    manifest: Manifest,
    packed: Mapping[str, PackedEntry],
    dtype: torch.dtype | None,
) -> None:
    """Put the tensors of the files in their places, one file at a time.

    Args:
        model: the model.
        directory, manifest: the export.
        packed: what of it is to be unpacked.
        dtype: as for :func:`load`.
    """
    # Codes say nothing of the type that the model has.
    parts = {
        f"{name}{end}": f"{name.removesuffix('.weight')}{end}"
        for name, entry in manifest.packed.items()
        if name not in packed
        for end in entry.ends
    }
    as_model = {name for name, entry in packed.items() if entry.grid is not None} | {*parts}
    wanted = set(model.state_dict())
    read = (
        (name, tensor)
        for file in manifest.files
        for name, tensor, _ in read_tensors(directory / file)
    )
    for stored, tensor in unpacked_tensors(read, packed):
        name = parts.get(stored, stored)
        if name not in wanted:
            raise UserError(f"'{directory}' holds '{name}', which the model has not")
        if name.endswith(f".{BUFFER}") and not is_permutation(tensor):
            raise UserError(f"'{name}' in '{directory}' is no permutation")
        _place(model, name, tensor, dtype, as_model=stored in as_model)
    model.tie_weights()
    empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if empty:
        raise UserError(f"'{directory}' has no weights for {empty[0]}")


def _place(
    model: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype | None, *, as_model: bool
) -> None:
    where, _, own = name.rpartition(".")
    module = model.get_submodule(where)
    old = module.get_parameter(own) if own in module._parameters else module.get_buffer(own)
    if old.shape != tensor.shape:
        raise UserError(
            f"'{name}' has the shape {tuple(tensor.shape)}, and the model wants {tuple(old.shape)}"
        )
    if tensor.is_floating_point() and (dtype is not None or as_model):
        tensor = tensor.to(dtype or old.dtype)
    if own in module._parameters:
        module._parameters[own] = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    else:
        module._buffers[own] = tensor
