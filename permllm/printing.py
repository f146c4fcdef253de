"""Text of somebody else on a terminal: nothing in it is a command to the terminal.

Labels, names of files, and what stands in manifests and models are data. Printed as they are,
control characters in them move the cursor, set colours and titles, or hide what is said.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from permllm.redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console

UNBOUNDED = 100_000
"""Columns of what is no terminal."""

KEPT = "\n\t"
"""Control characters that a text may have."""

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what steers a terminal, turns the direction of text, or has no bytes."""

_JOINERS = "\u200c\u200d"
"""They belong to the spelling of some languages, and to emoji."""


def plain(text: object) -> str:
    r"""A text as it may be printed: control characters spelled out, secrets of URIs hidden.

    >>> plain("a\x1b[31mb"), plain("mysql://me:secret@host")
    ('a\\x1b[31mb', 'mysql://***@host')
    """
    return "".join(map(_seen, str(redacted(str(text)))))


def marked(text: object) -> str:
    """The same for where rich reads markup, as a whole: brackets stay brackets.

    >>> marked("[/b]")
    '\\\\[/b]'
    """
    # Late: most commands print no tables.
    from rich.markup import escape

    shown = plain(text)
    escaped = escape(shown)
    # Rich doubles a single backslash at the end, lest it hide a tag after it: here is none.
    doubled = shown.endswith("\\") and not shown.endswith("\\\\")
    return escaped[:-1] if doubled else escaped


def console() -> Console:
    """Where tables are printed: standard output, which has an end of the line on a terminal only.

    What reads a pipe gets each line whole, unless ``COLUMNS`` says how long it may be.
    """
    # Late: most commands print no tables.
    from rich.console import Console

    bounded = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return Console(soft_wrap=False, width=None if bounded else UNBOUNDED)


def longest_word(texts: Iterable[str]) -> int:
    """The room that texts need at least if none of their words is to be cut."""
    return max((len(word) for text in texts for word in text.split()), default=0)


def at_dots(name: str, room: int) -> str:
    r"""A dotted name in lines of at most so many characters, where its parts are no longer.

    >>> at_dots("model.layers.0.self_attn.q_proj", 20)
    'model.layers.0.\nself_attn.q_proj'
    """
    lines = [""]
    for part in re.findall(r"[^.]*\.|[^.]+", name):
        if lines[-1] and len(lines[-1]) + len(part) > room:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def echo(text: object = "", *, err: bool = False, nl: bool = True, **more: Any) -> None:
    """``click.echo`` of a plain text."""
    click.echo(plain(text), err=err, nl=nl, **more)


def _seen(character: str) -> str:
    if character.isprintable() or character in KEPT or character in _JOINERS:
        return character
    if unicodedata.category(character) in _UNSEEN:
        code = ord(character)
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else "\ufffd"
    return character
