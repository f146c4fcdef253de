"""Names and batches as MLflow takes them, and what its errors mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from permllm.observers.mlflow_store import (
    Store,
    StoreError,
    first_line,
    in_parts,
    key,
    passing,
    sqlite_file,
    sqlite_uri,
)


def test_names_are_made_acceptable() -> None:
    assert key("perplexity/python-docs") == "perplexity/python-docs"
    assert key("a/../b") == "a/_/b"
    assert key("a//b/") == "a/_/b/_"
    assert len(key("x" * 1000)) == 250
    assert list(in_parts(range(5), 2)) == [[0, 1], [2, 3], [4]]


def test_of_an_error_the_line_that_says_what_is_wrong() -> None:
    flush = "(raised as a result of Query-invoked autoflush; consider using a block)\n"
    error = RuntimeError(flush + "(sqlite3.OperationalError) database or disk is full\n[SQL: …]")
    assert first_line(error, "x") == "(sqlite3.OperationalError) database or disk is full"
    assert first_line(RuntimeError(), "x") == "RuntimeError"


def test_which_errors_may_pass() -> None:
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE

    away = MlflowException("API request failed")
    away.__context__ = requests.exceptions.ConnectionError("refused")
    assert passing(away)
    assert passing(MlflowException("busy", TEMPORARILY_UNAVAILABLE))
    assert passing(RuntimeError("(sqlite3.OperationalError) database is locked"))
    assert not passing(MlflowException("no such run", RESOURCE_DOES_NOT_EXIST))
    assert not passing(FileNotFoundError("no file"))


def test_a_store_whose_first_process_died_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.db import utils

    database = tmp_path / "mlflow.db"
    # Versions before began in the place itself.
    database.touch()
    store = Store(sqlite_uri(database))
    with monkeypatch.context() as patch:

        def half(engine: Any) -> None:
            with engine.begin() as connection:
                connection.exec_driver_sql("create table runs (a)")
            raise RuntimeError("killed")

        patch.setattr(utils, "_initialize_tables", half)
        with pytest.raises(StoreError, match="killed"):
            store.open()
    assert database.stat().st_size == 0
    store.open()
    store.choose_experiment("first")
    assert store.begin("a run", {})


def test_the_file_of_a_store() -> None:
    assert sqlite_file("sqlite:////runs/mlflow.db") == Path("/runs/mlflow.db")
    odd = Path("/a?b/100%25 #1/mlflow.db")
    assert sqlite_file(sqlite_uri(odd)) == odd
    for other in ("http://host:5000", "sqlite://", "sqlite:///:memory:", "postgresql://h/db"):
        assert sqlite_file(other) is None


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
