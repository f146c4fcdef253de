"""Names and batches as MLflow takes them."""

from __future__ import annotations

from permllm.observers.mlflow_store import first_line, in_parts, key


def test_names_are_made_acceptable() -> None:
    assert key("perplexity/python-docs") == "perplexity/python-docs"
    assert key("a/../b") == "a/_/b"
    assert key("a//b/") == "a/_/b/_"
    assert len(key("x" * 1000)) == 250
    assert list(in_parts(range(5), 2)) == [[0, 1], [2, 3], [4]]


def test_an_error_is_one_line_without_secrets() -> None:
    uri = "https://me:hush-hush@host?token=s3cret"
    error = ConnectionError(
        f"no route to {uri}/api (url: /?token=s3cret/api, as me:hush-hush)\nmore"
    )
    said = first_line(error, uri)
    assert "hush-hush" not in said
    assert "s3cret" not in said
    assert said.startswith("no route to https://***@host")
    assert first_line(ValueError(), uri) == "ValueError"
