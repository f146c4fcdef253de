"""What driver and workers tell each other: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from permllm.errors import NoSpace, PermllmError, RunFailed, UserError
from permllm.exhaustion import cannot_write
from permllm.results import RunResult
from permllm.runner.reporting import Event


@attrs.frozen
class Order:
    """What a worker is told of a run; plain data.

    Attributes:
        pipeline: the resolved one, as text; its paths are absolute.
        label: of the run.
        out: the study's folder.
        owner: what stands in the folder, by which it is known to be the same.
        cache, cache_limit: the cache's folder, and the bytes that it may take.
        store: the URL of what is behind it, if something is.
        witness: the name of a lease that is there, and what it holds, by which the cache is known
            to be the same; None where it cannot be written.
        disabled: plugins that are not loaded.
        plugin_files: the SHA-256 of each file that the pipeline names; no other is run.
        threads: so many compute.
        alike: what has to be the same as everywhere, by what it is called.
        dense: the dense model's figures; None where that is the run.
        versions: of permllm, torch and so on, where the study was started.
    """

    pipeline: str
    label: str
    out: str
    owner: bytes
    cache: str
    cache_limit: int
    store: str | None
    witness: tuple[str, bytes] | None
    disabled: tuple[str, ...]
    plugin_files: Mapping[str, str]
    threads: int
    alike: Mapping[str, Any]
    dense: RunResult | None
    versions: Mapping[str, str]


@attrs.frozen
class Letter:
    """What a worker has to tell so far.

    Attributes:
        label: of its run.
        attempt: a run that is done again begins anew.
        first: how many events were in letters before.
        events: what happened since.
        progress: how far it is.
    """

    label: str
    attempt: str
    first: int
    events: tuple[Event, ...]
    progress: Event | None = None


@attrs.frozen
class Failure:
    """What broke a run, as plain data: nobody else may have its class.

    Attributes:
        message: in a line, with the class where it is not one of permllm's own.
        hint: what to do about it.
        users: whether the user has to mend it.
        full: why nothing more can be written, if that is it.
    """

    message: str
    hint: str | None = None
    users: bool = False
    full: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """What an error says."""
        first = str(error).strip().partition("\n")[0]
        own = first if isinstance(error, PermllmError) else f"{type(error).__name__}: {first}"
        hint = error.hint if isinstance(error, UserError) else None
        return cls(own, hint, isinstance(error, UserError), cannot_write(error))

    def error(self) -> PermllmError:
        """The error to be raised in its place."""
        if self.full:
            return NoSpace(self.message)
        return UserError(self.message, hint=self.hint) if self.users else RunFailed(self.message)


@attrs.frozen
class Answer:
    """What became of a run.

    Attributes:
        result: its result, or None.
        failure: what broke it.
        refused: whether that is so for all runs on this machine.
        seen: what the worker saw of all that has to be the same.
        letter: all that there was to tell.
    """

    result: RunResult | None = None
    failure: Failure | None = None
    refused: bool = False
    seen: Mapping[str, Any] = attrs.field(factory=dict)
    letter: Letter | None = None

    def taken(self) -> RunResult:
        """The result.

        Raises:
            PermllmError: the run broke.
        """
        if self.failure is not None:
            raise self.failure.error()
        assert self.result is not None
        return self.result


class Refused(UserError):
    """A worker that cannot take part."""
