"""The hooks of a plugin: which there are, and whether those of a plugin fit."""

from __future__ import annotations

import pluggy

from permllm import hookspecs
from permllm.components import KINDS
from permllm.errors import nearest

KNOWN = tuple(name for name in vars(hookspecs) if name.startswith("permllm_"))
"""All hooks."""

COMPONENT_HOOKS = {kind: f"permllm_{kind}s" for kind in KINDS}
"""The hook through which each kind of component comes in."""

LIFE_CYCLE = frozenset(KNOWN) - {*COMPONENT_HOOKS.values(), "permllm_commands"}
"""The hooks that tell observers how a run goes."""


def wrong_hooks(manager: pluggy.PluginManager, plugin: object) -> str | None:
    """What is wrong with the hooks of a registered plugin; None if nothing is."""
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        if not caller.has_spec():
            near = nearest(caller.name, KNOWN)
            hint = f"; did you mean '{near}'?" if near else ""
            return f"there is no hook '{caller.name}'{hint}"
    if callers:
        return None
    unmarked = [name for name in dir(plugin) if name in KNOWN]
    example = unmarked[0] if unmarked else KNOWN[0]
    return f"it has no hooks; mark its {example}() with @permllm.hookimpl"
