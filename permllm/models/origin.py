"""Which published model a model is, as far as its files say: for model cards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from permllm.errors import UserError
from permllm.files import read_json
from permllm.models.sources import DirectorySource, HubSource, Source

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
"""Such as ``HuggingFaceTB/SmolLM2-135M-Instruct``."""

SNAPSHOT = re.compile(r"models--([\w.-]+?)--([\w.-]+)$")
"""The name of a model's folder in the hub's cache."""

QUANTISATION = re.compile(r"[.-](I?Q\d\w*|F16|F32|BF16)$", re.IGNORECASE)
"""What the names of GGUF files end in."""


@attrs.frozen
class Origin:
    """Which published model it is.

    Attributes:
        name: such as ``SmolLM2-135M-Instruct``.
        hub: its id on the Hugging Face hub; None where that is not known.
        licence: in the hub's words, such as ``apache-2.0``; None where that is not known.
    """

    name: str
    hub: str | None = None
    licence: str | None = None


def origin_of(source: Source) -> Origin:
    """What the files of a model say of it; nothing is asked of the hub."""
    if isinstance(source, HubSource):
        return Origin(source.id.rpartition("/")[2], source.id, _licence(_cached_card(source)))
    if isinstance(source, DirectorySource):
        return _of_folder(source.path)
    return _of_gguf(source.gguf())


def _of_folder(folder: Path) -> Origin:
    folder = folder.absolute()
    card = _metadata(folder / "README.md")
    snapshot = SNAPSHOT.fullmatch(folder.parent.parent.name)
    hub = "/".join(snapshot.groups()) if snapshot else _hub_id(card.get("base_model"))
    name = snapshot[2] if snapshot else folder.name
    with suppress(UserError):
        hub = hub or _hub_id(read_json(folder / "config.json").get("_name_or_path"))
    return Origin(name, hub, _licence(card))


def _of_gguf(path: Path) -> Origin:
    from gguf import GGUFReader

    said: dict[str, Any] = {}
    # A card is no reason for an export to fail.
    with suppress(OSError, ValueError, KeyError, IndexError):
        fields = GGUFReader(path).fields
        said = {key: one.contents() for key, one in fields.items() if key.startswith("general.")}
    name = QUANTISATION.sub("", path.stem)
    # Who packs a file again leaves the organisation of the model in it.
    guessed = f"{said.get('general.organization', '')}/{name}"
    urls = ("general.base_model.0.repo_url", "general.source.repo_url", "general.repo_url")
    named = (str(said.get(key, "")).partition("huggingface.co/")[2] for key in urls)
    hub = next(filter(None, map(_hub_id, (*named, guessed))), None)
    licence = said.get("general.license")
    return Origin(name, hub, str(licence) if licence else None)


def _hub_id(value: Any) -> str | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) and HUB_ID.fullmatch(value) else None


def _licence(card: Mapping[str, Any]) -> str | None:
    licence = card.get("license")
    return licence if isinstance(licence, str) else None


def _cached_card(source: HubSource) -> Mapping[str, Any]:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(source.id, "README.md", revision=source.revision)
    return _metadata(Path(path)) if isinstance(path, str) else {}


def _metadata(card: Path) -> Mapping[str, Any]:
    """What stands before a model card's text; nothing where there is none, or it is damaged."""
    from huggingface_hub import metadata_load

    data: Any = None
    # Cards are anybody's: YAML's own errors are no ValueErrors.
    with suppress(Exception):
        data = metadata_load(card)
    return data if isinstance(data, dict) else {}
