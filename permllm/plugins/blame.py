"""Which plugin an error comes from."""

from __future__ import annotations

import traceback

from permllm.plugins.info import BUILT_IN, normal
from permllm.plugins.loading import plugin_entry_points
from permllm.plugins.requirements import missing_dependency
from permllm.plugins.single_file import MODULE_PREFIX


def blamed(error: BaseException) -> tuple[str, str | None] | None:
    """The plugin whose code an error went through last, and what to install if it misses something.

    Returns:
        its package and version, or its file, and an installer's command or None; None
        where no plugin's code took part.
    """
    owners = {point.module.partition(".")[0]: point.dist for point in plugin_entry_points()}
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        name = frame.f_globals.get("__name__", "")
        if name.startswith(MODULE_PREFIX):
            return frame.f_globals["__file__"], None
        dist = owners.get(name.partition(".")[0])
        if dist and normal(dist.name) != BUILT_IN:
            return f"{dist.name} {dist.version}", missing_dependency(dist.name, error)
    return None
