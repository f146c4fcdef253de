"""The processes of a command, of which the first speaks for all."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator

from permllm.cli.errors import BY_SIGNAL, FAILED, interrupted_by
from permllm.errors import causes
from permllm.meeting import world_of_processes
from permllm.printing import echo
from permllm.world import ProcessLost, World

HEAD_START = 1.0
"""Seconds that the first process has to say what has gone wrong in all of them alike."""


@contextlib.contextmanager
def processes() -> Iterator[World]:
    """The processes that were started together; one alone where they were not.

    What the others print goes nowhere. One that fails by itself says so, unless another one has:
    then it ends without a word.
    """
    with world_of_processes() as world:
        if world.size == 1:
            yield world
            return
        if world.leads:
            try:
                yield world
            except BaseException as error:
                world.fails_first()
                if interrupted_by(error) is not None:
                    # It may be why the others are asked to end.
                    for loss in world.ended():
                        echo(loss, err=True)
                raise
            return
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                yield world
        except (Exception, KeyboardInterrupt) as error:
            by = interrupted_by(error)
            if by is not None:
                raise SystemExit(BY_SIGNAL + by) from error
            time.sleep(HEAD_START)
            lost = any(isinstance(cause, ProcessLost) for cause in causes(error))
            if lost or not world.fails_first():
                raise SystemExit(FAILED) from error
            echo(f"{world.named(world.rank)} fails:", err=True)
            raise
