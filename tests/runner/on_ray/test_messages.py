"""What workers say of a run that broke is what one machine says."""

from __future__ import annotations

import errno

import pytest

from permllm.errors import NoSpace, RunFailed, UserError
from permllm.runner.on_ray.messages import Answer, Failure


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UserError("no", hint="do"), UserError, "no"),
        (RunFailed("broke\nmore"), RunFailed, "broke"),
        (ZeroDivisionError("not today"), RunFailed, "ZeroDivisionError: not today"),
        (OSError(errno.ENOSPC, "No space left on device"), NoSpace, "No space left"),
    ],
)
def test_what_broke_a_run_is_said_as_on_one_machine(
    error: Exception, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        Answer(failure=Failure.of(error)).taken()
    assert type(caught.value) is kind
    assert getattr(caught.value, "hint", None) == getattr(error, "hint", None)
