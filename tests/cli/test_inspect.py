"""``permllm inspect``: every linear of an export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.mark.parametrize("kind", ["permuted", "sparse"])
def test_inspect_lists_every_linear(permllm, exports: Path, kind: str) -> None:
    found = json.loads(permllm("inspect", exports / kind, "--json").stdout)
    assert found["format"] == kind
    linears = {row["linear"]: row for row in found["linears"]}
    assert len(linears) == 14
    down = linears["model.layers.0.mlp.down_proj"]
    assert (down["pattern"], down["input"], down["shape"]) == ("2:4", "folded", "32 × 48")
    dense = 32 * 48 * 4
    assert down["bytes"] == (dense if kind == "permuted" else dense * 17 // 32)
    table = permllm("inspect", exports / kind).stdout
    assert "gathered at" in table


def test_names_are_whole_on_a_narrow_terminal(permllm, exports: Path) -> None:
    done = permllm("inspect", exports / "sparse", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "…" not in done.stdout
    for part in ("input_layernorm", "self_attn.q_proj", "post_attention_layernorm"):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines()[1:-1])) <= 80
