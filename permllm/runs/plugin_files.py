"""Plugins of one file as a run found them, so that no other code runs when it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from permllm.runs import folder


def recorded(out: Path | None, name: str) -> Mapping[str, str] | None:
    """The SHA-256 of plugin files by path, as they were when the run in a folder began.

    None where it ended before that was written, and so before anything was done.

    Args:
        out: the folder; the latest unfinished one of the pipeline where it is None.
        name: the pipeline's name.

    Raises:
        UserError: there is no such folder, or what it holds cannot be read.
    """
    out = out or folder.latest_unfinished(name)
    return folder.began_with(out).plugin_files if (out / folder.ENVIRONMENT).exists() else None
