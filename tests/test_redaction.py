"""Passwords and tokens do not get into what is written."""

from __future__ import annotations

import doctest
import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm import redaction
from permllm.redaction import redacted, redacted_of


def test_the_examples() -> None:
    found = doctest.testmod(redaction)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://host:5000/x", "https://host:5000/x"),
        ("https://host:5000/x#part", "https://host:5000/x#part"),
        ("sqlite:///runs/a@b.db", "sqlite:///runs/a@b.db"),
        ("sqlite:////abs/mlflow.db", "sqlite:////abs/mlflow.db"),
        ("file:///C:/a@b", "file:///C:/a@b"),
        ("https://me@host/x", "https://***@host/x"),
        ("https://me:secret@host/x", "https://***@host/x"),
        ("https://:secret@host", "https://***@host"),
        ("https://me:sec@ret@host", "https://***@host"),
        ("mysql+pymysql://me:sec/r?e#t@host/db", "mysql+pymysql://***@host/db"),
        ("https://me:two words@host", "https://***@host"),
        ("sqlite:///a.db?token=secret", "sqlite:///a.db?token=***"),
        ("sqlite:///a.db?a=1&token=secret;b", "sqlite:///a.db?a=***&token=***;***"),
        ("https://host/?secret", "https://host/?***"),
        ("https://host/?c2VjcmV0==", "https://host/?***"),
        ("https://host/?t=a=b", "https://host/?t=***"),
        ("https://host/x#access_token=secret", "https://host/x#***"),
        ("HTTPS://me:secret@HOST", "HTTPS://***@HOST"),
        ("no uri at all: a@b?c", "no uri at all: a@b?c"),
    ],
)
def test_uris(uri: str, shown: str) -> None:
    assert redacted(uri) == shown
    # As it is in the second place that it is written to.
    assert redacted(shown) == shown
    assert redacted(f"track.mlflow.uri={uri}") == f"track.mlflow.uri={shown}"


def test_data_of_all_kinds_keeps_its_form() -> None:
    data = {"a": ["https://me:pw@h", 3, None, True], "b": ("x?y", {"c": 1.5}), 4: b"https://a@b"}
    assert redacted(data) == {
        "a": ["https://***@h", 3, None, True], "b": ("x?y", {"c": 1.5}), 4: b"https://a@b"
    }  # fmt: skip


def test_within_a_text() -> None:
    command = shlex.join(["permllm", "run", "--set", "a=https://me:p'w@h/?t=s", "--resume"])
    assert "p'" not in redacted(command)
    assert redacted(command).endswith(" --resume")
    assert redacted("see (https://me:pw@h/x), or 'https://h?a=b'.") == (
        "see (https://***@h/x), or 'https://h?a=***'."
    )


SECRET = st.text(st.characters(min_codepoint=33, max_codepoint=0x24F), min_size=5, max_size=20)


@given(SECRET.filter(lambda text: text[0] not in "/?#@"))
def test_no_password_is_left(secret: str) -> None:
    # A password that is looked for must not be one of the words around it.
    secret = f"Ω{secret}Ω"
    assert "Ω" not in redacted(f"https://me:{secret}@host/x")
    assert "Ω" not in redacted(f"it said: https://me:{secret}@host/x is away")


@given(SECRET.filter(lambda text: not set(text) & set("&;#@=")))
def test_no_value_of_a_query_is_left(secret: str) -> None:
    assert "Ω" not in redacted(f"https://host/x?token=Ω{secret}Ω")
    assert "Ω" not in json.dumps(redacted({"a": [f"sqlite:///x?Ω{secret}Ω"]}), ensure_ascii=False)


def test_parts_of_a_uri_that_an_error_names() -> None:
    uri = "https://me:pa%24word@host:1?token=s3cret&n=1"
    for text in ("/?token=s3cret/api", "password 'pa$word'", "pa%24word", uri, uri + "/api"):
        said = redacted_of(f"it failed: {text} (1 of 1)", uri)
        assert "s3cret" not in said
        assert "word'" not in said.replace("password '***'", "")
        assert "pa%24word" not in said
        assert said.endswith("(1 of 1)")
