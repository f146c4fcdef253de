"""Whether what a plugin brings fits permllm: its hooks, and the classes that they offer."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import pluggy

from permllm import hookspecs
from permllm.components import KINDS, Component
from permllm.errors import nearest
from permllm.plugins.single_file import MODULE_PREFIX

HOOKS = tuple(name for name in vars(hookspecs) if name.startswith("permllm_"))
"""All hooks."""

COMPONENT_HOOKS = {kind: f"permllm_{kind}s" for kind in KINDS}
"""The hook through which each kind of component comes in."""

METHODS: dict[str, tuple[tuple[str, ...], ...]] = {
    "metric": (("scores", "window_scores"),),
    "allocation": (("figures",), ("allocate",)),
    "permutation": (("learn",),),
    "pruner": (("prune",),),
    "evaluator": (("evaluate",),),
    "dataset": (("texts",),),
    "exporter": (("export",),),
    "observer": (("watch",),),
}
"""The methods that each kind of component has to have: of every set of names at least one."""

RESERVED = {"name", "preset", "source"}
"""Keys of a component's mapping in a pipeline file that cannot be options."""


def wrong_hooks(manager: pluggy.PluginManager, plugin: object) -> str | None:
    """What is wrong with the hooks of a registered plugin; None if nothing is."""
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        if not caller.has_spec():
            return f"there is no hook '{caller.name}'{_nearest(caller.name, HOOKS)}"
    if callers:
        return None
    example = next((name for name in dir(plugin) if name in HOOKS), HOOKS[0])
    return f"it has no hooks; mark its {example}() with @permllm.hookimpl"


def wrong_component(kind: str, offered: object) -> str | None:
    """What keeps ``offered`` from being a component of this kind; None if nothing does."""
    if not inspect.isclass(offered):
        return f"{offered!r} is no class"
    shown, base = f"{offered.__module__}.{offered.__qualname__}", KINDS[kind]
    if shown.startswith(MODULE_PREFIX):
        shown = offered.__qualname__
    if not issubclass(offered, base):
        return f"{shown} does not inherit from permllm.components.{base.__name__}"
    try:
        flaw = next(_flaws(offered, base, METHODS[kind]), None)
    except Exception as error:
        # Looking at a class runs its metaclass and properties: somebody else's code.
        flaw = f"cannot be used: {type(error).__name__}: {error}"
    return flaw and f"{shown} {flaw}"


def _flaws(
    cls: type[Component], base: type[Component], methods: tuple[tuple[str, ...], ...]
) -> Iterator[str]:
    """What is wrong with a class; each check relies on those before it."""
    frozen = getattr(cls.__setattr__, "__name__", "") == "_frozen_setattrs"
    if not frozen or "__attrs_attrs__" not in vars(cls):
        yield "is not a frozen attrs class; put @attrs.frozen before it"
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        yield f"needs a class variable 'name' of letters, digits and .-_, not {name!r}"
    if not (cls.__doc__ or "").strip():
        yield "needs a docstring that sums it up"
    yield from _needs_flaws(cls)
    yield from _option_flaws(cls)
    yield from _preset_flaws(cls)
    yield from _method_flaws(cls, base, methods)


def _needs_flaws(cls: type[Component]) -> Iterator[str]:
    needs = getattr(cls, "needs", ())
    if isinstance(needs, property):
        # It depends on the options, such as on another component among them.
        return
    if not isinstance(needs, tuple) or not all(hasattr(need, "partial") for need in needs):
        yield f"needs 'needs' to be a tuple of statistics, not {needs!r}"


def _option_flaws(cls: type[Component]) -> Iterator[str]:
    # Late: this module is imported where torch must not be, and these bring it in.
    from permllm.fields.declared import default_of, option_fields
    from permllm.fields.errors import FieldError, shown
    from permllm.fields.options import check_range, option_types
    from permllm.fields.reading import STRICT
    from permllm.fields.types import holds

    hints = option_types(cls)
    for taken in RESERVED & set(hints):
        yield f"has an option '{taken}', a name that pipeline files need"
    for field in option_fields(cls):
        key, default = field.alias or field.name, default_of(field)
        if default is attrs.NOTHING or getattr(field.default, "takes_self", False):
            continue
        if kind := _kind_left_out(default, hints[key]):
            base = KINDS[kind].__name__
            yield (
                f"has the option '{key}' with a default that is no {kind} but {shown(default)}; "
                f"give one that is made: option(factory=My{base}, help=…)"
            )
        try:
            STRICT.get(hints[key], lambda value, hint: value)(default, hints[key])
            check_range("it", default, field.metadata)
        except FieldError as error:
            yield f"has the option '{key}' with a default that no file could give: {error}"
        if not holds(default, hints[key]):
            yield (
                f"has the option '{key}' with the default {default!r}, which is no "
                f"{inspect.formatannotation(hints[key])}"
            )


def _kind_left_out(default: Any, hint: Any) -> str | None:
    """The kind of component of which a default should be one, but is its name, class or mapping.

    Only pipeline files know components by name: in Python the option would be that name.
    """
    from permllm.fields.types import component_kind, kind_of, members

    row = kind_of(hint)
    if isinstance(default, (list, tuple)) and row is not None:
        inner = [part for part in row.parts(hint) if part is not hint]
        wrong = (_kind_left_out(item, part) for item in default for part in inner)
        return next(filter(None, wrong), None)
    # Any is a class as well.
    classes = (member for member in members(hint) if isinstance(member, type))
    fitting = tuple(member for member in classes if member is not Any)
    kind = next(filter(None, map(component_kind, fitting)), None)
    return None if isinstance(default, fitting) or default is None else kind


def _preset_flaws(cls: type[Component]) -> Iterator[str]:
    from permllm.fields.options import option_types

    options = option_types(cls)
    for preset, values in getattr(cls, "presets", {}).items():
        for unknown in values.keys() - options.keys():
            near = _nearest(unknown, options)
            yield f"has a preset '{preset}' with an unknown option '{unknown}'{near}"


def _method_flaws(
    cls: type[Component], base: type[Component], ways: tuple[tuple[str, ...], ...]
) -> Iterator[str]:
    for names in ways:
        lacking = [
            name
            for name in names
            if inspect.getattr_static(cls, name) is inspect.getattr_static(base, name)
        ]
        if len(lacking) == len(names):
            yield f"lacks the method {_wanted(base, names[0])}"
        for name in names:
            yield from _signature_flaws(cls, base, name)


def _wanted(base: type[Component], name: str) -> str:
    return f"{name}({', '.join(inspect.signature(getattr(base, name)).parameters)})"


def _signature_flaws(cls: type[Component], base: type[Component], name: str) -> Iterator[str]:
    # Names alone: types may be written in many ways.
    arguments = list(inspect.signature(getattr(base, name)).parameters)
    wanted = _wanted(base, name)
    method, signature = inspect.getattr_static(cls, name), inspect.signature(getattr(cls, name))
    try:
        # Static methods and those of the class are given no self.
        signature.bind(*arguments[0 if isinstance(method, types.FunctionType) else 1 :])
    except TypeError:
        bare = [part.replace(annotation=part.empty) for part in signature.parameters.values()]
        shown = signature.replace(parameters=bare, return_annotation=signature.empty)
        yield f"has {name}{shown} where {wanted} is expected"


def _nearest(name: str, names: Iterable[str]) -> str:
    near = nearest(name, names)
    return f"; did you mean '{near}'?" if near else ""
