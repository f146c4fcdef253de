"""Opens what a command names: a model of any source, or an export of permllm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from permllm.errors import UserError

if TYPE_CHECKING:
    import torch

    from permllm.models.loading import LoadedModel
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


def open_model(source: Source, device: torch.device) -> LoadedModel:
    """Load a model to a device; an export whose inputs are gathered gets its gathers.

    Raises:
        UserError: something is missing or damaged.
    """
    from permllm.formats.loading import load as load_export
    from permllm.formats.manifest import MANIFEST, read_manifest
    from permllm.models.devices import pick_dtype
    from permllm.models.loading import load
    from permllm.models.sources import DirectorySource

    dtype = pick_dtype("auto", device)
    if (
        isinstance(source, DirectorySource)
        and (source.path / MANIFEST).is_file()
        # A masked one is anybody's: they may have gone on with it.
        and read_manifest(source.path).format != "masked"
    ):
        return load_export(
            source.path, dtype=dtype, device=device, trust_remote_code=source.trust_remote_code
        )
    loaded = load(source, dtype)
    loaded.model.to(device)
    return loaded
