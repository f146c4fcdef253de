"""Commands that are printed, as they run when they are pasted where they were printed."""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import sys
from pathlib import Path

BORROWED = ("TOX_ENV_DIR", "NOX_CURRENT_SESSION", "UV_RUN_RECURSION_DEPTH")
"""Variables of what sets PATH for a single command: the user's own shell knows another."""


def own(*words: str | Path) -> str:
    """A command of permllm, called as it was called this time.

    By its name where the shell finds this very program under it, by its path where not, and as
    ``python -m permllm`` where that is how it was called.
    """
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return _joined([*_python("permllm"), *words])
    # Within another program, such as a notebook, the one that is installed beside Python.
    script = called if called.stem == "permllm" else _beside("permllm")
    return _joined([*(_script(script) if script.exists() else _python("permllm")), *words])


def program(name: str, *words: str | Path) -> str:
    """A command of a program that is installed with permllm."""
    script = _beside(name)
    return _joined([*(_script(script) if script.exists() else _python(name)), *words])


def pip_install(*words: str) -> str:
    """The command that installs packages where permllm is installed."""
    if not _has_pip() and shutil.which("uv"):
        return _joined(["uv", "pip", "install", *words, "--python", sys.executable])
    if _finds(_beside("pip")):
        return _joined(["pip", "install", *words])
    return _joined([*_python("pip"), "install", *words])


def _has_pip() -> bool:
    """Whether pip is installed; to look for the module would have setuptools swap distutils."""
    try:
        importlib.metadata.distribution("pip")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _joined(words: list[str | Path]) -> str:
    return shlex.join(map(str, words))


def _beside(name: str) -> Path:
    """The program of this name beside the Python that runs."""
    return Path(sys.executable).with_name(name + (".exe" if os.name == "nt" else ""))


def _python(module: str) -> list[str]:
    return [*_script(Path(sys.executable)), "-m", module]


def _script(path: Path) -> list[str]:
    """What calls the program at a path: its name, or the path as it holds in any folder."""
    return [path.stem if os.name == "nt" else path.name] if _finds(path) else [str(path.absolute())]


def _finds(path: Path) -> bool:
    """Whether the user's shell finds this program under its name."""
    found = shutil.which(path.name)
    if found is None or any(os.environ.get(name) for name in BORROWED):
        return False
    # Pythons of several environments are links to one: what counts is the folder.
    return Path(found).parent.resolve() == path.absolute().parent.resolve()
