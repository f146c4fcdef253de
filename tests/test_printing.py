"""Text of somebody else does nothing to a terminal."""

from __future__ import annotations

import doctest
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from permllm import printing
from permllm.printing import echo, marked, plain


def test_the_examples() -> None:
    found = doctest.testmod(printing)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("perplexity/python-docs: 16.8 ± 0.1", "perplexity/python-docs: 16.8 ± 0.1"),
        ("naïve 模型 🦊 \u200d", "naïve 模型 🦊 \u200d"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("over\rwritten", "over\\x0dwritten"),
        ("\x9b31m", "\\x9b31m"),
        ("\x7f\x00\x08", "\\x7f\\x00\\x08"),
        ("right\u202eleft", "right\\u202eleft"),
        ("line\u2028end", "line\\u2028end"),
        ("no bytes \udc80", "no bytes \\udc80"),
        ("tag \U000e0001", "tag \ufffd"),
        ("https://me:secret@host/", "https://***@host/"),
    ],
)
def test_what_is_seen(text: str, shown: str) -> None:
    assert plain(text) == shown


@example("\\")
@example("a\\[b]\\")
@given(st.text())
def test_a_text_reaches_the_terminal_as_it_is_read(text: str) -> None:
    console = Console(file=io.StringIO(), width=10_000, color_system=None, highlight=False)
    console.print(marked(text), soft_wrap=True)
    console.print(Text(plain(text)), soft_wrap=True)
    one, two = console.file.getvalue()[:-1], plain(text)  # type: ignore[attr-defined]
    assert one == f"{two}\n{two}".expandtabs(8) or "\t" in two
    assert not [c for c in one if c < " " and c not in "\n\t"]
    one.encode()


def test_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    echo("a\x1b[2J")
    echo("b", err=True, nl=False)
    assert capsys.readouterr() == ("a\\x1b[2J\n", "b")
