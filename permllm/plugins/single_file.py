"""Plugins of one file, which a pipeline file names under ``plugins:``."""

from __future__ import annotations

import hashlib
import sys
import traceback
import types
from pathlib import Path

from permllm.errors import UserError, nearest

MODULE_PREFIX = "permllm_file_"
"""What the modules' names start with."""


def load_file(path: Path, expected: str | None = None) -> tuple[types.ModuleType, str]:
    """The module that a file holds, run once in a process for each content, and its SHA-256.

    Exactly the bytes that are hashed are run: no compiled copy of an earlier content is
    looked for, and none is left beside the file.

    Args:
        path: the file.
        expected: the SHA-256 of what alone may run, where not anything may.

    Raises:
        UserError: there is no such file, it is another than expected, or it fails to run; it
            names the file's line.
    """
    source = _read(path)
    digest = hashlib.sha256(source).hexdigest()
    if expected is not None and digest != expected:
        raise changed(path)
    place = hashlib.sha256(str(path).encode()).hexdigest()
    name = f"{MODULE_PREFIX}{place[:8]}_{digest[:16]}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__file__ = str(path)
        # While it runs: attrs and dataclasses look a class's module up by its name.
        sys.modules[name] = module
        try:
            exec(compile(source, str(path), "exec"), vars(module))
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, Exception | SystemExit):
                raise UserError(f"'{path}' cannot be imported: {_where(path, error)}") from error
            raise
    return sys.modules[name], digest


def changed(path: Path) -> UserError:
    """The error for a file that is another than it was when a run began; it is not run."""
    return UserError(
        f"the plugin '{path}' changed since the run began",
        hint="give the file back what it held, or start again in another --out",
    )


def digest_of(path: Path) -> str:
    """The SHA-256 of a file as it is now; a ``UserError`` if it cannot be read."""
    return hashlib.sha256(_read(path)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        near = nearest(path.name, [file.name for file in path.parent.glob("*.py")])
        hint = f"did you mean '{path.with_name(near)}'?" if near else None
        raise UserError(f"there is no file '{path}'", hint=hint) from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error


def _where(path: Path, error: BaseException) -> str:
    """``line 3: NameError: …``, the line being the file's own."""
    frames = traceback.extract_tb(error.__traceback__)
    lines, text = [frame.lineno for frame in frames if frame.filename == str(path)], str(error)
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines, text = [error.lineno], error.msg
    where = f"line {lines[-1]}: " if lines and lines[-1] else ""
    return f"{where}{type(error).__name__}: {text}"
