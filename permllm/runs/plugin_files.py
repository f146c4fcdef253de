"""Plugins of one file as a run found them, so that no other code runs when it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from permllm.errors import UserError
from permllm.models.checkpoint_files import read_json
from permllm.runs import folder

KEY = "plugin_files"
"""In a run's ``environment.json``: the SHA-256 of each plugin file by its path."""


def recorded(out: Path | None, name: str) -> Mapping[str, str] | None:
    """The SHA-256 of plugin files by path, as they were when the run in a folder began.

    None where it ended before that was written, and so before anything was done.

    Args:
        out: the folder; the latest unfinished one of the pipeline where it is None.
        name: the pipeline's name.

    Raises:
        UserError: there is no such folder, or what it holds cannot be read.
    """
    path = (out or folder.latest_unfinished(name)) / folder.ENVIRONMENT
    if not path.exists():
        return None
    files = read_json(path).get(KEY, {})
    if not isinstance(files, dict) or not all(isinstance(one, str) for one in files.values()):
        raise UserError(f"'{KEY}' must map paths to SHA-256 hashes", file=str(path))
    return files
