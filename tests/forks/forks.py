"""Calls of the command line, each in a fork of one process that has imported everything.

What a call is given and what it leaves are those of a process of its own: its words, folder,
variables, input, output and exit code. How Python starts, what it imports and which threads it
has are not; tests of these start processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from copy import copy
from pathlib import Path
from typing import Any

import attrs

SERVER = Path(__file__).with_name("server.py")

SECONDS = 300
"""What no call takes."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    # GNU OpenMP, the usual layer, ends forks.
    "NUMBA_THREADING_LAYER": "workqueue",
    "COLUMNS": "160",
}


class Processes:
    """Calls of ``permllm`` in new processes, where they do not fork."""

    def run(
        self,
        *words: str | Path,
        cwd: Path | None,
        environment: dict[str, str],
        said: str = "",
        sketch: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """A call to its end, with ``said`` as its input; plots are drawn."""
        return subprocess.run(
            [sys.executable, "-m", "permllm", *map(str, words)],
            cwd=cwd,
            env=environment,
            input=said,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )


def sketched(figure: Any, path: Path, *, metadata: Any = None, **options: Any) -> None:
    """In place of ``Figure.savefig``: to draw takes longer than all else of a small study."""
    path.write_text(f"a plot of {metadata}", encoding="utf-8")


class Forks:
    """Calls of ``permllm`` in forks of one process.

    Args:
        folder: where calls are made unless they say otherwise, with the files of what they print.
        warm: the words of a first call, within that process.
    """

    def __init__(self, folder: Path, warm: list[str]) -> None:
        self.environment = os.environ | ENVIRONMENT
        self.environment.pop("MLFLOW_TRACKING_URI", None)
        self.folder, self.calls = folder, 0
        with (folder / "server.log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, SERVER, *warm],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=self.environment,
                text=True,
            )
        if not self._answer().get("ready"):
            raise RuntimeError((folder / "server.log").read_text())

    def at(self, folder: Path) -> Forks:
        """The same, with calls made in another folder."""
        other = copy(self)
        other.folder, other.calls = folder, 0
        return other

    def start(self, *words: str | Path, **order: Any) -> Called:
        """Begin a call; the keywords are those of an order to the server."""
        self.calls += 1
        log = self.folder / f"{self.calls}.log"
        defaults = {
            "words": [*map(str, words)],
            "cwd": str(self.folder),
            "environment": self.environment,
            "stdin": os.devnull,
            "stdout": str(log),
            "stderr": str(log),
        }
        return Called(self, int(self._ask(defaults | order)["pid"]), log)

    def call(self, *words: str | Path, **order: Any) -> Called:
        """A call to its end."""
        called = self.start(*words, **order)
        called.wait()
        return called

    def run(
        self,
        *words: str | Path,
        cwd: Path | None,
        environment: dict[str, str],
        said: str = "",
        sketch: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """What :class:`Processes` do, without the imports; a sketch of plots may be enough."""
        folder = self.folder / f"call-{self.calls}"
        folder.mkdir()
        files = {name: folder / name for name in ("stdin", "stdout", "stderr")}
        files["stdin"].write_text(said, encoding="utf-8")
        called = self.call(
            *words,
            cwd=str(cwd or Path.cwd()),
            environment=environment,
            seconds=SECONDS,
            sketch=sketch,
            **{name: str(path) for name, path in files.items()},
        )
        assert called.code is not None
        out, err = (files[name].read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(words, called.code, out, err)

    def wait(self, pid: int, block: bool) -> int | None:
        """The exit code of a call; None if it has not ended."""
        code: int | None = self._ask({"wait": pid, "block": block})["code"]
        return code

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")
        return answer


@attrs.define(eq=False)
class Called:
    """A call: its process, what it prints, and its exit code once it was waited for."""

    forks: Forks
    pid: int
    log: Path
    code: int | None = None

    def wait(self, block: bool = True) -> int | None:
        if self.code is None:
            self.code = self.forks.wait(self.pid, block)
        return self.code

    def is_running(self) -> bool:
        return self.wait(block=False) is None

    def kill(self) -> int | None:
        """End it, however far it is."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    @property
    def printed(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")
