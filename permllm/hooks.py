"""The markers of hooks, by which plugins and permllm know each other's."""

from __future__ import annotations

import pluggy

PROJECT = "permllm"
"""The pluggy project, and the entry-point group of plugins."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
