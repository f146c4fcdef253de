"""``permllm generate``: every export writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


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
