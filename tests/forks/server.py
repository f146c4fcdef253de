"""Runs `permllm` in forks of one process, and kills them at chosen file operations.

To import torch, transformers and MLflow takes seconds, and the tests call hundreds of commands.
This process imports them once, and forks for every call that it is told of on standard input,
one JSON object a line; see :func:`main`. It has one thread, so that forks are whole.

An operation is what Python announces to its auditors (a file opened to be written, a name that
is made, moved or removed), an ``fsync``, or a statement by which SQLite changes its file, of
something below a watched folder. A process is killed before the operation, so that what went
before is just there. What safetensors writes from Rust, and the single writes within an open
file, are no operations of their own; kills at random moments meet these.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import sqlite3
import sys
import threading
import traceback
import warnings
from functools import partial
from pathlib import Path
from typing import Any

# Beside this script.
from forks import sketched

IMPORTED = (
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "permllm.api",
    "permllm.cli.main",
    "permllm.runner.exporting",
    "permllm.testing.models",
    "transformers.models.llama.modeling_llama",
)

NAMES = {"os.rename": 2, "os.link": 2, "os.symlink": 2, "os.remove": 1, "os.mkdir": 1,
         "os.rmdir": 1, "os.truncate": 1}  # fmt: skip
"""Events of auditors, and how many paths they begin with."""

CHANGING = ("COMMIT", "CREATE", "ALTER", "DROP")
"""What statements that change the file of a database begin with."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Operations:
    """Counts the file operations of this process, and ends it before one of them.

    Args:
        watched: folders; what is elsewhere does not count.
        kill_at: the number of the operation, from 0, before which to die; None never.
    """

    def __init__(self, watched: list[str], kill_at: int | None) -> None:
        self.watched = [os.path.realpath(folder) for folder in watched]
        self.kill_at = kill_at
        self.seen: list[str] = []
        fsync = os.fsync

        def counted(descriptor: int) -> None:
            self.meet("fsync", _path_of(descriptor))
            fsync(descriptor)

        os.fsync = counted
        self.watch_statements()
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Of an auditor's events those that change something."""
        if event in NAMES:
            directories = [one for one in arguments[NAMES[event] :] if isinstance(one, int)]
            within = directories[-1] if event != "os.mkdir" and directories else -1
            paths = [_absolute(path, within) for path in arguments[: NAMES[event]]]
            if event != "os.mkdir" or not os.path.lexists(paths[0]):
                self.meet(event, *paths)
        elif event == "open":
            path, mode, flags = arguments
            changes = mode.strip("rbt") if isinstance(mode, str) else (flags or 0) & WRITING
            if changes and not isinstance(path, int):
                self.meet("open", _absolute(path, -1))

    def watch_statements(self) -> None:
        """Count the statements of every connection to a database, too."""
        connect = sqlite3.dbapi2.connect

        def connected(database: Any, *more: Any, **options: Any) -> sqlite3.Connection:
            connection = connect(database, *more, **options)
            path = _absolute(database, -1)
            connection.set_trace_callback(partial(self.hear_of_statement, path))
            return connection

        sqlite3.dbapi2.connect = connected  # type: ignore[assignment]

    def hear_of_statement(self, database: str, text: str) -> None:
        """Of the statements those that change the file: what is not committed is not there."""
        if text.lstrip().upper().startswith(CHANGING):
            self.meet("sql", database, text[:60])

    def meet(self, event: str, *paths: str) -> None:
        """Count an operation, or die of it."""
        if not any(path.startswith(top + os.sep) for path in paths for top in self.watched):
            return
        if len(self.seen) == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(" ".join([event, *paths]))


def _absolute(path: Any, directory: int) -> str:
    name = os.fsdecode(path)
    folder = _path_of(directory) if directory >= 0 else str(Path.cwd())
    # The names alone: what they lead to is being changed.
    return os.path.normpath(os.path.join(folder, name))  # noqa: PTH118


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115


def call(order: dict[str, Any]) -> int:
    """The id of a new process that runs ``python -m permllm …`` as an order says.

    Args:
        order: ``words`` of the command line; ``cwd``; ``environment``; the files ``stdin``,
            ``stdout`` and ``stderr``; ``seconds`` after which it is ended; ``watched`` folders,
            ``kill_at`` and ``operations`` (the file of their names), if operations are counted;
            ``sketch``, where plots need not be drawn; the text of a ``program`` in place of
            ``permllm``.
    """
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        code = _in_the_fork(order)
    finally:
        os._exit(code)


def _in_the_fork(order: dict[str, Any]) -> int:
    os.setpgid(0, 0)
    signal.alarm(order.get("seconds", 0))
    os.chdir(order["cwd"])
    _redirect(order)
    _surround(order["environment"])
    sys.argv[1:] = order["words"]
    if order.get("sketch"):
        _sketch()
    operations = None
    if "watched" in order:
        operations = Operations(order["watched"], order.get("kill_at"))
    code = _ended(order.get("program"))
    if operations is not None and "operations" in order:
        Path(order["operations"]).write_text(json.dumps(operations.seen))
    return code


def _redirect(order: dict[str, Any]) -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND if number else os.O_RDONLY
        os.dup2(os.open(order[name], flags, 0o666), number)
    sys.stdin = os.fdopen(0)


def _surround(environment: dict[str, str]) -> None:
    """What a new Python makes of its environment and of the folder that it is started in."""
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(environment)
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [str(Path.cwd()), *(place for place in path if place and place not in known)]
    importlib.invalidate_caches()
    if action := os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(action)  # type: ignore[arg-type]


def _sketch() -> None:
    """Have plots written without drawing them."""
    from matplotlib.figure import Figure

    Figure.savefig = sketched  # type: ignore[method-assign, assignment]


def _ended(program: str | None) -> int:
    """Run ``permllm`` as ``python -m`` does, or a program, to its very end, for its exit code."""
    code: Any = 0
    try:
        if program is None:
            runpy.run_module("permllm", run_name="__main__", alter_sys=True)
        else:
            exec(program, {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 71
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code if isinstance(code, int) else int(code is not None)


def _warm(words: list[str]) -> None:
    """What a call compiles and imports late is there in every fork then."""
    with contextlib.suppress(SystemExit):
        importlib.import_module("permllm.cli.main").main(words)


def main() -> None:
    """Answer orders: ``{"words": …}`` with ``{"pid": …}``, ``{"wait": pid}`` with its code.

    The code is that of :class:`subprocess.Popen`: negative where a signal ended the process, and
    null where it has not ended and nobody wants to ``block``.
    """
    answers = os.fdopen(os.dup(1), "w")
    # What libraries print is no answer.
    os.dup2(2, 1)
    for module in IMPORTED:
        importlib.import_module(module)
    if warm := sys.argv[1:]:
        _warm(warm)
    gc.collect()
    # What is there by now is not looked through, and so not copied, in every fork.
    gc.freeze()
    print(json.dumps({"ready": os.getpid()}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            ended, status = os.waitpid(order["wait"], 0 if order["block"] else os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if ended else None}
        else:
            answer = {"pid": call(order)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
