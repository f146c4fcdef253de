"""The errors that permllm raises on purpose.

A :class:`UserError` says that the input is wrong; the command line prints it
without a traceback and exits with 2. A :class:`RunFailed` says that a run broke
although its input was right; the exit code is 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator


class PermllmError(Exception):
    """Base of all errors that permllm raises on purpose."""


class UserError(PermllmError):
    """Something that the user gave is wrong and only the user can mend it.

    Args:
        message: what is wrong and what was expected, in one or two sentences.
        file, line, column: where it stands, 1-based, where that is known.
        hint: what to do about it, in one sentence or one command.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        column: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.line = line
        self.column = column
        self.hint = hint

    @property
    def where(self) -> str:
        """``file:line:column`` as far as it is known, else an empty string."""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part)

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class NoSpace(UserError):
    """A disk has no room for what is to be written there."""


class RunFailed(PermllmError):
    """A run broke although its input was accepted."""


class DeprecatedWarning(FutureWarning):
    """Something works still that a later version of permllm, or of a plugin, will not have.

    A ``FutureWarning``, since those who write pipeline files are to see it, too.
    """


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on to the first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that ``word`` most likely meant, or None where nothing is near."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return close[0] if close else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A hint for a misspelt ``word``: the nearest choice, and all the choices."""
    choices = sorted(choices)
    near = nearest(word, choices)
    listing = ", ".join(choices) or "(none)"
    return f"did you mean '{near}'? known: {listing}" if near else f"known: {listing}"
