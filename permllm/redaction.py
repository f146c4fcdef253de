"""Keeps passwords and tokens out of everything that is written and printed.

A tracking store may be named by a URI with a password in it. Connecting wants all of it;
files, logs and terminals get it without.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

HIDDEN = "***"
"""What stands in place of a secret."""

SHORTEST = 4
"""Characters of the shortest secret that is looked for alone: shorter ones are in any text."""

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
_WHOLE = re.compile(rf"(?P<before>[\w.-]+=)?(?P<uri>{_SCHEME}[^\r\n]+)")
_WITHIN = re.compile(rf"{_SCHEME}[^ \t\r\n]+")
_ENDS = "'\"`)>]},.;:…"

# A password may hold slashes and @ where nobody escaped them.
_USER = re.compile(r"[^/?#@]*:.*@|[^/?#]*@")


def redacted(value: Any) -> Any:
    """Plain data whose texts have no secrets in their URIs any more.

    User names, passwords and all values of a query are hidden, since nobody can tell which of
    them is a token. What is hidden already stays as it is.

    Args:
        value: a text, or lists, tuples and mappings of texts and other values.

    >>> redacted("uri=https://me:secret@host:5000/x?token=abc")
    'uri=https://***@host:5000/x?token=***'
    >>> redacted(["sqlite:///a@b.db", "see https://host/a?b, please", 3])
    ['sqlite:///a@b.db', 'see https://host/a?***, please', 3]
    """
    if isinstance(value, str):
        whole = _WHOLE.fullmatch(value)
        if whole:
            return f"{whole['before'] or ''}{_without_secrets(whole['uri'])}"
        return _WITHIN.sub(lambda match: _within_text(match[0]), value)
    if isinstance(value, Mapping):
        return {key: redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redacted(item) for item in value) if _is_plain(value) else value
    return value


def redacted_of(text: str, uri: str) -> str:
    """A text about a URI without secrets, also where it has parts of the URI alone.

    >>> redacted_of("no route to /x?token=abcd of a", "https://me:pass@host/x?token=abcd")
    'no route to /x?token=*** of a'
    """
    text = redacted(text.replace(uri, redacted(uri)))
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _is_plain(value: list[Any] | tuple[Any, ...]) -> bool:
    return type(value) in (list, tuple)


def _within_text(text: str) -> str:
    """A URI within a text, which has no end of its own."""
    uri = text.rstrip(_ENDS)
    return _without_secrets(uri) + text[len(uri) :]


def _without_secrets(uri: str) -> str:
    scheme, mark, rest = uri.partition("://")
    rest = _USER.sub(f"{HIDDEN}@", rest, count=1) if _USER.match(rest) else rest
    rest, hash_mark, fragment = rest.partition("#")
    if "=" in fragment:
        fragment = HIDDEN
    rest, question, query = rest.partition("?")
    parts = [_without_value(part) for part in re.split("([&;])", query)]
    return f"{scheme}{mark}{rest}{question}{''.join(parts)}{hash_mark}{fragment}"


def _without_value(part: str) -> str:
    if part in ("", "&", ";"):
        return part
    name, _, value = part.partition("=")
    # Without a value, the name may be a token, which may end in = itself.
    return f"{name}={HIDDEN}" if value.strip("=") else HIDDEN


def _secrets(uri: str) -> set[str]:
    """What is hidden of a URI, as it stands there and with its escapes read and written."""
    rest = uri.partition("://")[2]
    user = _USER.match(rest)
    secrets = {value for _, value in parse_qsl(rest.partition("?")[2])}
    secrets |= set(re.findall(r"=([^&;#\s]+)", rest.partition("?")[2]))
    if user:
        secrets.add(user[0].removesuffix("@").partition(":")[2])
    forms = ((secret, unquote(secret), quote(secret, safe="")) for secret in secrets)
    every = {form for some in forms for form in some}
    return {secret for secret in every if len(secret) >= SHORTEST and secret != HIDDEN}
