"""Whose the folder of a run is: what its results depend on, and what has changed since.

A folder that was begun under other circumstances is never removed. It is set aside under a
name that says when, and the user is told what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from permllm.errors import UserError
from permllm.files import read_record, write_sealed
from permllm.results import RunResult
from permllm.runner.caching.keys import Unhashable, digest, own_code
from permllm.runner.one_run import OneRun
from permllm.runs import exports, folder
from permllm.runs.records import State, read_results

STATE = "state.json"
"""Says which run the folder of a run belongs to."""

NAMES = {
    "model": "the model's files",
    "code": "the code of permllm",
    "options": "the run's options, plugins or text",
    "device": "the device",
    "dtype": "the dtype",
    "processor": "the processor",
    "python": "Python",
    "matmul": "the precision of float32 products",
}
"""What the parts of an identity are called in messages."""


@attrs.frozen(eq=False)
class RunIdentity:
    """What the results of a run depend on.

    Attributes:
        key: the hash of all of it; empty where that cannot be told.
        parts: the same part by part, as plain data: hashes, or what a person can read.
        threads: how many threads compute. That changes the last digits of results, and not
            what they are: a run goes on with another number.
    """

    key: str
    parts: Mapping[str, Any]
    threads: int

    @classmethod
    def of(cls, one: OneRun) -> RunIdentity:
        """The identity that a run has now."""
        import torch

        shared = one.shared
        try:
            depends_on = one.depends_on()
        except Unhashable:
            return cls("", {}, torch.get_num_threads())
        parts = {
            "model": shared.fingerprint,
            "code": own_code(),
            "options": digest(depends_on),
            **shared.machine,
        }
        return cls(digest(parts), parts, torch.get_num_threads())

    def write(self, directory: Path) -> None:
        """Make the folder of a run this run's own."""
        state = State(self.key, self.threads, dict(self.parts))
        write_sealed(directory / STATE, attrs.asdict(state))


def believed(
    directory: Path, identity: RunIdentity, warn: Callable[[str], None]
) -> RunResult | None:
    """The result that an earlier attempt left in a run's folder, if it is this run's and whole.

    What another run left there is set aside; so is an export that is no longer what was
    written. A damaged result is found anew.

    Args:
        directory: the folder, which need not exist.
        identity: of the run now.
        warn: is told, in one sentence, what was set aside or is damaged and why, or that
            threads differ.
    """
    try:
        before = _state(directory / STATE)
    except UserError as error:
        _start_anew(directory, f"{STATE}: {error.message}", warn)
        return None
    if before is not None and before.key != identity.key:
        _start_anew(directory, ", ".join(_changes(before.parts, identity.parts)), warn)
        return None
    path = directory / folder.RESULT
    threads = before.threads if before else identity.threads
    if threads != identity.threads:
        began = "finished" if path.exists() else "begun"
        goes_on = "its results are kept" if path.exists() else "it goes on"
        warn(
            f"'{directory.name}' was {began} with {_counted(threads)}, and there "
            f"{'is' if identity.threads == 1 else 'are'} {_counted(identity.threads)} now: "
            f"{goes_on}, and the last digits of figures may differ from those of a new run"
        )
    if not path.exists():
        return None
    try:
        result = read_results(path).runs[0]
    except UserError as error:
        warn(f"{error}: '{directory.name}' is looked at again")
        return None
    return result if exports.are_whole(directory, result.exports, warn) else None


def _state(path: Path) -> State | None:
    return read_record(path, State, older=True) if path.exists() else None


def _start_anew(directory: Path, why: str, warn: Callable[[str], None]) -> None:
    aside = folder.set_aside(directory)
    warn(
        f"'{directory.name}' was begun otherwise ({why}): what it left is kept in '{aside}', "
        "and it starts anew"
    )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs, in words: ``torch 2.12.0 → 2.13.0``."""
    if not before or not now:
        yield "what it depends on cannot be told"
        return
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new)
        elif name in ("model", "code", "options"):
            yield f"{NAMES[name]} changed"
        else:
            yield f"{NAMES.get(name, name)} {_shown(old)} → {_shown(new)}"


def _shown(value: Any) -> str:
    return " ".join(map(str, filter(None, value))) if isinstance(value, list) else str(value)


def _counted(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"
