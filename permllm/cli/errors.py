"""What the command line says, and with which code it ends, when something goes wrong.

====  ======================================================================
code  meaning
====  ======================================================================
0     done
1     the run failed, although its input was accepted
2     the user's input is wrong
130   interrupted (Ctrl-C, SIGINT); what was finished is kept and can be resumed
143   the same by SIGTERM, as batch systems and containers end it
129   the same by SIGHUP, as a closed terminal ends it
====  ======================================================================

A second signal ends the process at once, and it then has died of the signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import click

from permllm.cli.interrupts import Interrupted, interruptible
from permllm.commands import own
from permllm.errors import DeprecatedWarning, PermllmError, RunFailed, UserError, causes
from permllm.exhaustion import too_many_files
from permllm.given import GivenWrong
from permllm.printing import echo

FAILED, WRONG_INPUT = 1, 2

BY_SIGNAL = 128
"""What shells add to the number of the signal that ended a process."""


class StoppedError(PermllmError):
    """A run ended early and can be resumed.

    Attributes:
        resume: the command that goes on where it ended; None where it would meet the same again.
        anew: the command that starts again with what the cache holds, for runs with plugin
            files: they go on with the same files only.
    """

    def __init__(self, resume: str | None, anew: str | None = None) -> None:
        super().__init__(resume or anew)
        self.resume, self.anew = resume, anew


def _set_debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().obj["debug"] = True


def debug_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--debug`` for a command: errors come with their traceback."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_debug,
        help="Show the traceback of an error.",
    )(command)


def needs_prune(command: Callable[..., Any]) -> Callable[..., Any]:
    """For a command that wants more than what opens exports: where that is missing, it says so."""

    @wraps(command)
    def checked(*words: Any, **options: Any) -> Any:
        # Late: it reads what is installed, and many commands do without.
        from permllm.extras import need_prune

        context = click.get_current_context()
        # The group around a command only leads there.
        if context.invoked_subcommand is None:
            need_prune(context.command_path)
        return command(*words, **options)

    return checked


def call(group: click.Group, arguments: list[str] | None) -> int:
    """Run the command line and say what went wrong, if something did.

    Returns:
        the exit code.
    """
    # Around the report, too: a second signal must not end it in a traceback.
    with interruptible():
        code = _called(group, arguments)
        _flush()
        return code


def _called(group: click.Group, arguments: list[str] | None) -> int:
    state = {"debug": False}
    try:
        # Click returns a command's exit code (of --help, say) only as the result.
        with _plain_warnings():
            result = group.main(
                arguments,
                prog_name=own(),
                complete_var="_PERMLLM_COMPLETE",
                obj=state,
                standalone_mode=False,
            )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BrokenPipeError as error:
        if interrupted_by(error):
            return report(error, debug=False)
        # The reader of our output went away: `permllm show … | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (Exception, KeyboardInterrupt) as error:
        if state["debug"]:
            with contextlib.suppress(OSError):
                echo("".join(traceback.format_exception(error)), err=True, nl=False)
        return report(error, debug=state["debug"])
    return result if isinstance(result, int) else 0


def report(error: BaseException, *, debug: bool) -> int:
    """Say on standard error what went wrong, in a line or two.

    Returns:
        the exit code that belongs to the error.
    """
    resume = error.resume if isinstance(error, StoppedError) else None
    cause = (error.__cause__ or error) if isinstance(error, StoppedError) else error
    by = interrupted_by(error)
    if by is not None:
        how = "interrupted" if by == signal.SIGINT else f"interrupted by {by.name}"
        _say(how, f"state kept; go on with: {resume}" if resume else None)
        return BY_SIGNAL + by
    if isinstance(cause, UserError):
        where = f"{cause.where}: " if cause.where else ""
        _say(f"error: {where}{cause.message}", cause.hint and f"hint: {cause.hint}")
        return WRONG_INPUT
    kept = list(_ways_on(error, cause))
    if isinstance(cause, RunFailed):
        blame = _blame(cause) if isinstance(cause, GivenWrong) else ()
        _say(f"error: {cause}", *blame, *kept)
        return FAILED
    if too_many_files(cause):
        how = "allow it more: ulimit -n 1024"
        _say("error: too many open files: this process may open no more", f"hint: {how}", *kept)
        return FAILED
    first_line = str(cause).strip().partition("\n")[0]
    again = None if debug else "run again with --debug for the traceback"
    _say(f"error: {type(cause).__name__}: {first_line}", *_blame(cause), *kept, again)
    return FAILED


def _ways_on(error: BaseException, cause: BaseException) -> Iterator[str]:
    """How to go on after a failure; not in a way that will be refused."""
    if not isinstance(error, StoppedError):
        return
    from permllm.plugins.diagnosis import blames_a_file

    if error.resume and (error.anew is None or not blames_a_file(cause)):
        yield f"state kept; go on with: {error.resume}"
    if error.anew is not None:
        yield f"with a changed plugin file, start anew with what is kept: {error.anew}"


def interrupted_by(error: BaseException) -> signal.Signals | None:
    """The signal that ended the command; None where something else did.

    Whatever went wrong while it ended, such as writing to a terminal that is gone.
    """
    for cause in causes(error):
        if isinstance(cause, Interrupted):
            return cause.signal
        if isinstance(cause, KeyboardInterrupt):
            return signal.SIGINT
    return signal.SIGINT if isinstance(error, click.Abort) else None


def _blame(error: BaseException) -> tuple[str | None, ...]:
    """Whose code broke, if it is a plugin's, and how to install what it misses."""
    # Late: it takes a moment, and most commands end well.
    from permllm.plugins.diagnosis import blamed

    blame = blamed(error)
    if blame is None:
        return ()
    plugin, way = blame
    return f"it comes from the plugin {plugin}", way


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Say what is deprecated as commands say their own warnings."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *at: Any, **more: Any) -> None:
            if issubclass(category, DeprecatedWarning):
                echo(f"warning: {message}", err=True)
            else:
                others(message, category, *at, **more)

        warnings.showwarning = show
        yield


def _say(first: str, *more: str | None) -> None:
    # A terminal that is gone, say: the exit code still tells.
    with contextlib.suppress(OSError):
        echo(first, err=True)
        for line in more:
            if line:
                echo(f"  {line}", err=True)


def _flush() -> None:
    """Write what is left; where nobody is there any more, Python must not try it again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
