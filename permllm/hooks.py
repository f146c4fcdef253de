"""The markers of hooks, by which plugins and permllm know each other's."""

from __future__ import annotations

import pluggy

PROJECT = "permllm"
"""The pluggy project, and the entry-point group of plugins."""

hookspec = pluggy.HookspecMarker(PROJECT)
"""Marks a function as the specification of a hook."""

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's function or method as the implementation of the hook of its name."""
