"""What every exporter must do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from permllm.components import Exporter
from permllm.contexts.export import ExportContext
from permllm.contexts.sequences import Sequences
from permllm.core.patterns import Pattern, nm_mask
from permllm.core.permutations import invert
from permllm.deprecation import warn_of_old_name
from permllm.folding.layout import Layout
from permllm.models.decoder import Decoder
from permllm.models.linears import Group
from permllm.results import LayerReport, RunResult
from permllm.testing.expect import expect, expect_equal
from permllm.testing.models import VOCABULARY, tiny_model
from permllm.testing.tokenizers import byte_tokenizer


def check_exporter(exporter: Exporter) -> None:
    """Fail unless an exporter keeps to its interface.

    It writes files into the folder that it is given, and leaves the model as it is, so
    that another exporter can write it too.
    """
    name = f"exporter '{exporter.name}'"
    generator = torch.Generator().manual_seed(0)
    context = pruned_export(
        tiny_model("llama-gqa"),
        lambda name, group: torch.randperm(group.channels, generator=generator),
    )
    before = {key: value.clone() for key, value in context.model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        parent = Path(folder)
        for place in ("one", "two"):
            directory = parent / place
            directory.mkdir()
            exporter.export(context, directory)
            files = [path for path in directory.rglob("*") if path.is_file()]
            expect(files, f"{name}: wrote no file")
            expect(all(path.stat().st_size for path in files), f"{name}: wrote an empty file")
        expect(
            sorted(path.name for path in parent.iterdir()) == ["one", "two"],
            f"{name}: must write into the given folder only",
        )
    for key, value in context.model.state_dict().items():
        expect_equal(value, before[key], f"{name}: changed {key}")


def write_export(form: str, context: ExportContext, directory: Path, **options: Any) -> None:
    """Write a folder as a built-in exporter does, for the tests of what reads it.

    Args:
        form: ``masked``, ``permuted`` or ``sparse``.
        context: such as :func:`pruned_export` makes.
        directory: an empty folder.
        options: the exporter's, such as ``values`` of ``sparse``.
    """
    from permllm.exporters.masked import Masked
    from permllm.exporters.permuted import Permuted
    from permllm.exporters.sparse import Sparse

    exporters: dict[str, Callable[..., Exporter]] = {
        exporter.name: exporter for exporter in (Masked, Permuted, Sparse)
    }
    exporters[form](**options).export(context, directory)


def toy_export(model: Any, **changes: Any) -> ExportContext:
    """What the runner hands to an exporter, made up but for the model.

    Without ``permutations`` and ``patterns`` nothing counts as pruned; :func:`pruned_export`
    prunes.

    Args:
        model: the model to export.
        changes: attributes of the context to set otherwise.
    """
    report = LayerReport("model.layers.0.mlp.up_proj", "g", (48, 16), "2:4", 0.7, 0.8, 0.5, 0.1)
    attributes: dict[str, Any] = {
        "model": model,
        "tokenizer": byte_tokenizer(),
        "pipeline_yaml": 'permllm: 1\nname: toy\npattern: "2:4"\n',
        "label": "lcp",
        "result": RunResult("lcp", {"perplexity/toy": 59.2}, 1.0, 2**20, layers=(report,)),
        "dense": RunResult("dense", {"perplexity/toy": 16.8}, 0.0, 2**20),
        "versions": {"permllm": "0.1.0"},
        "model_description": "a toy model",
        "permutations": {},
        "patterns": {},
    }
    if "perms" in changes:
        warn_of_old_name("toy_export's perms", "permutations")
        changes["permutations"] = changes.pop("perms")
    decoder = changes.get("decoder") or Decoder.trace(model)
    attributes |= {"decoder": decoder, "layout": Layout(decoder), "calibration": _sequences}
    return ExportContext(**{**attributes, **changes})


def _sequences() -> Sequences:
    """A calibration text that is made up."""
    tokens = torch.randint(VOCABULARY, (8, 24), generator=torch.Generator().manual_seed(0))
    return Sequences(tokens, 8, torch.arange(8), torch.arange(0), 4)


def pruned_export(
    model: Any,
    order: Callable[[str, Group], Tensor | None],
    pattern: Pattern | None = None,
    **changes: Any,
) -> ExportContext:
    """Prune a model by magnitude, in place, and make up the rest of what exporters get.

    Args:
        model: the model.
        order: for the name and the group gives its order, ``LongTensor[C_in]``; groups for
            which it gives None stay dense.
        pattern: N:M; 2:4 where it is None.
        changes: attributes of the context to set otherwise.
    """
    decoder = Decoder.trace(model)
    pattern = pattern or Pattern(2, 4)
    permutations, patterns = {}, {}
    for name, group in decoder.groups.items():
        permutation = order(name, group)
        if permutation is None:
            continue
        permutations[name] = permutation
        for linear in group.linears:
            weight = decoder.weight(linear)
            mask = nm_mask(weight.float().abs()[:, permutation], pattern)[:, invert(permutation)]
            weight.mul_(mask)
            patterns[linear] = pattern
    attributes = {"decoder": decoder, "permutations": permutations, "patterns": patterns}
    return toy_export(model, **{**attributes, **changes})
