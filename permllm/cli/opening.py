"""Opens what a command names: a model of any source, or an export of permllm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from permllm.errors import UserError

if TYPE_CHECKING:
    import torch

    from permllm.formats.loading import LoadedExport
    from permllm.models.sources import Source


def model_source(model: str) -> dict[str, str]:
    """The ``model:`` section of a pipeline file for a model on the command line.

    Raises:
        UserError: nothing is there.
    """
    kind, _, rest = model.partition(":")
    if kind == "package" and rest:
        return {"source": "package", "package": rest}
    if kind == "hub" and rest:
        return {"source": "hub", "id": rest}
    path = Path(model).absolute()
    if path.is_dir():
        return {"source": "directory", "path": str(path)}
    if path.is_file():
        return {"source": "gguf", "path": str(path)}
    raise UserError(
        f"there is no folder and no file '{model}'",
        hint="MODEL is a folder, a GGUF file, package:NAME or hub:ID",
    )


def named_source(model: str) -> Source:
    """The same as :func:`open_model` takes it, without what reads pipeline files.

    Raises:
        UserError: nothing is there, or nothing can have that name.
    """
    from permllm.models.sources import Source

    section = model_source(model)
    kinds: dict[str, Any] = {kind.source: kind for kind in get_args(Source)}
    kind = kinds[section.pop("source")]
    try:
        source: Source = kind(
            **{key: Path(value) if key == "path" else value for key, value in section.items()}
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return source


def open_model(source: Source, device: torch.device, *, sparse: bool = False) -> LoadedExport:
    """Load a model to a device; an export whose inputs are gathered gets its gathers.

    Args:
        source: where it is.
        device: where to.
        sparse: have pruned linears multiply with packed weights where that is faster.

    Raises:
        UserError: something is missing or damaged, or it cannot run sparse.
    """
    from permllm.formats.loading import LoadedExport, patterns_of
    from permllm.formats.loading import load as load_export
    from permllm.formats.manifest import MANIFEST, read_manifest
    from permllm.models.devices import pick_dtype
    from permllm.models.loading import load
    from permllm.models.sources import DirectorySource

    dtype = pick_dtype("auto", device)
    folder = source if isinstance(source, DirectorySource) else None
    exported = folder if folder and (folder.path / MANIFEST).is_file() else None
    if sparse and not exported:
        raise UserError(
            f"{source.describe()} is no export of permllm, so it cannot run sparse",
            hint="name the folder of a permuted or sparse export, or leave --sparse out",
        )
    # A masked one is anybody's: they may have gone on with it.
    manifest = read_manifest(exported.path) if exported else None
    if exported and manifest and (sparse or manifest.format != "masked"):
        return load_export(
            exported.path,
            sparse=sparse,
            dtype=dtype,
            device=device,
            trust_remote_code=exported.trust_remote_code,
        )
    loaded = load(source, dtype)
    loaded.model.to(device)
    patterns = patterns_of(manifest) if manifest else {}
    return LoadedExport(loaded.model, loaded.tokenizer, loaded.description, patterns=patterns)
