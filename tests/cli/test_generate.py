"""``permllm generate``: every export writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from permllm.cli.generate import lines_of
from permllm.core.patterns import Pattern
from permllm.sparse.models import LinearReport


@pytest.mark.parametrize("kind", ["masked", "permuted", "sparse"])
def test_every_export_is_measured_and_writes(
    permllm, exports: Path, project: Path, kind: str
) -> None:
    words = ["--text", project / "text.txt", "--length", 16, "--max-tokens", 128, "--json"]
    done = permllm("eval", exports / kind, *words)
    assert done.returncode == 0, done.stderr
    reference = permllm("eval", exports / "masked", *words)
    one, other = (
        json.loads(found.stdout)["figures"]["perplexity/text"] for found in (done, reference)
    )
    assert one == pytest.approx(other, rel=1e-4)
    written = permllm("generate", exports / kind, "The quick", "--tokens", 4)
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("The quick")
    assert written.stderr == ""


@pytest.mark.parametrize("kind", ["permuted", "sparse"])
def test_exports_write_the_same_with_packed_weights(permllm, exports: Path, kind: str) -> None:
    words = [exports / kind, "The quick", "--tokens", 4]
    packed, dense = permllm("generate", *words, "--sparse"), permllm("generate", *words)
    assert packed.returncode == 0, packed.stderr
    assert packed.stdout == dense.stdout
    assert " of 14 pruned linears " in packed.stderr
    assert "model.layers.*.mlp.down_proj" in packed.stderr


def test_what_cannot_run_sparse_is_refused(permllm, exports: Path, project: Path) -> None:
    for model, says in (
        (exports / "masked", "masked export"),
        (project / "model", "is no export of permllm"),
    ):
        done = permllm("generate", model, "The", "--sparse")
        assert done.returncode == 2
        assert says in done.stderr
        assert "hint: " in done.stderr


def test_linears_are_named_by_how_they_run() -> None:
    linears = [
        LinearReport("model.layers.0.q", Pattern(2, 4), "cpu kernel", None, 8),
        LinearReport("model.layers.1.q", Pattern(2, 4), "cpu kernel", None, 8),
        LinearReport("model.layers.0.up[3]", Pattern(2, 4), "dense", "it is a slice", 8),
    ]
    assert lines_of(linears) == [
        "2 of 3 pruned linears run packed (cpu kernel): model.layers.*.q",
        "1 of 3 pruned linears stay dense, since it is a slice: model.layers.*.up[*]",
    ]
