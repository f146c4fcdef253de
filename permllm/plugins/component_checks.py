"""Whether a class that a plugin offers is a component that a pipeline can use."""

from __future__ import annotations

import inspect
import re
import types

import attrs

from permllm.components import KINDS, Component
from permllm.errors import nearest

METHODS = {
    "metric": "scores",
    "permutation": "learn",
    "pruner": "prune",
    "evaluator": "evaluate",
    "dataset": "texts",
    "exporter": "export",
    "observer": "watch",
}
"""The method that each kind of component has to have."""

RESERVED = ("name", "preset", "source")
"""Keys of a component's mapping in a pipeline file that cannot be options."""


def problem(kind: str, offered: object) -> str | None:
    """What keeps ``offered`` from being a component of this kind; None if nothing does."""
    base = KINDS[kind]
    if not inspect.isclass(offered):
        return f"{offered!r} is no class"
    shown = f"{offered.__module__}.{offered.__qualname__}"
    if not issubclass(offered, base):
        return f"{shown} does not inherit from permllm.components.{base.__name__}"
    try:
        flaws = (check(offered) for check in CHECKS)
        flaw = next(filter(None, flaws), None) or _bad_method(offered, base, METHODS[kind])
    except Exception as error:
        # Looking at a class runs its metaclass and properties: somebody else's code.
        return f"{shown} cannot be used: {type(error).__name__}: {error}"
    return f"{shown} {flaw}" if flaw else None


def _not_frozen(cls: type[Component]) -> str | None:
    frozen = getattr(cls.__setattr__, "__name__", "") == "_frozen_setattrs"
    if "__attrs_attrs__" in vars(cls) and frozen:
        return None
    return "is not a frozen attrs class; put @attrs.frozen before it"


def _bad_name(cls: type[Component]) -> str | None:
    name = getattr(cls, "name", None)
    if isinstance(name, str) and re.fullmatch(r"[A-Za-z][\w.-]*", name):
        return None
    return f"needs a class variable 'name' of letters, digits and .-_, not {name!r}"


def _no_summary(cls: type[Component]) -> str | None:
    return None if (cls.__doc__ or "").strip() else "needs a docstring that sums it up"


def _bad_needs(cls: type[Component]) -> str | None:
    needs = getattr(cls, "needs", ())
    # A property depends on the options, such as on another component among them.
    if isinstance(needs, property):
        return None
    if isinstance(needs, tuple) and all(hasattr(need, "partial") for need in needs):
        return None
    return f"needs 'needs' to be a tuple of statistics, not {needs!r}"


def _bad_options(cls: type[Component]) -> str | None:
    # Late: this module is imported where torch must not be, and Pattern brings it in.
    from permllm.pipeline.options import option_types

    taken = sorted(set(option_types(cls)) & set(RESERVED))
    return f"has an option '{taken[0]}', a name that pipeline files need" if taken else None


def _bad_defaults(cls: type[Component]) -> str | None:
    from permllm.pipeline.field_errors import FieldError
    from permllm.pipeline.options import default_of, option_fields, option_types
    from permllm.pipeline.scalars import STRICT, check_range

    hints = option_types(cls)
    for field in option_fields(cls):
        key, default = field.alias or field.name, default_of(field)
        if default is attrs.NOTHING or getattr(field.default, "takes_self", False):
            continue
        try:
            STRICT.get(hints[key], lambda value, hint: value)(default, hints[key])
            check_range("it", default, field.metadata)
        except FieldError as error:
            return f"has the option '{key}' with a default that no file could give: {error}"
    return None


def _bad_presets(cls: type[Component]) -> str | None:
    from permllm.pipeline.options import option_types

    known = set(option_types(cls))
    for preset, options in getattr(cls, "presets", {}).items():
        for unknown in set(options) - known:
            near = nearest(unknown, known)
            hint = f"; did you mean '{near}'?" if near else ""
            return f"has a preset '{preset}' with an unknown option '{unknown}'{hint}"
    return None


CHECKS = (
    _not_frozen,
    _bad_name,
    _no_summary,
    _bad_needs,
    _bad_options,
    _bad_defaults,
    _bad_presets,
)
"""What is wrong with a class of any kind, or None; each relies on those before it."""


def _bad_method(cls: type[Component], base: type[Component], name: str) -> str | None:
    # Names alone: types may be written in many ways.
    arguments = list(inspect.signature(getattr(base, name)).parameters)
    wanted = f"{name}({', '.join(arguments)})"
    method = inspect.getattr_static(cls, name)
    if method is inspect.getattr_static(base, name):
        return f"lacks the method {wanted}"
    signature = inspect.signature(getattr(cls, name))
    try:
        # Static methods and those of the class are given no self.
        signature.bind(*arguments[0 if isinstance(method, types.FunctionType) else 1 :])
    except TypeError:
        bare = [part.replace(annotation=part.empty) for part in signature.parameters.values()]
        shown = signature.replace(parameters=bare, return_annotation=signature.empty)
        return f"has {name}{shown} where {wanted} is expected"
    return None
