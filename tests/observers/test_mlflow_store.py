"""Names and batches as MLflow takes them."""

from __future__ import annotations

from permllm.observers.mlflow_store import in_parts, key


def test_names_are_made_acceptable() -> None:
    assert key("perplexity/python-docs") == "perplexity/python-docs"
    assert key("a/../b") == "a/_/b"
    assert key("a//b/") == "a/_/b/_"
    assert len(key("x" * 1000)) == 250
    assert list(in_parts(range(5), 2)) == [[0, 1], [2, 3], [4]]
