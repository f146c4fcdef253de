"""The page of the Python interface, and the reference that Sphinx makes of the same.

``python docs/_ext/api_page.py`` renews ``docs/api.md``, which is kept so that it can be
read in the repository; a test tells when that is due.
"""

from __future__ import annotations

from collections.abc import Iterator

from public import ROOT, Name, contents, passed_on, path_of, table

PAGE = ROOT / "docs/api.md"

INTRODUCTION = """\
<!-- Made by docs/_ext/api_page.py from stability.md and the docstrings: do not edit. -->

# The Python interface

All that is public ([what that means](stability.md) for plugins), with the first words of its
docstring. Each module's name leads to its source. The built documentation has a
[reference](reference.md) of the same, with all that the docstrings say.
"""

ELSEWHERE = "permllm.hookspecs"
"""Has a page of its own, and no place in the reference."""


def page() -> str:
    """``docs/api.md``."""
    return "\n".join([INTRODUCTION, *(f"{part}\n" for part in parts())])


def parts() -> Iterator[str]:
    """For each row of the table of public modules a heading, and a table for each module."""
    for row in table():
        yield f"## {heading(row.places)}"
        yield f"{row.meaning[0].upper()}{row.meaning[1:]}."
        yield from (listing(module, names) for module, names in by_module(row.places).items())


def by_module(places: tuple[str, ...]) -> dict[str, list[Name]]:
    """The public names of some places by module; what a package passes on is not said again."""
    modules: dict[str, list[Name]] = {}
    said: set[Name] = set()
    for place in places:
        for module, names in contents(place).items():
            if fresh := [name for name in names if name not in said]:
                modules.setdefault(module, []).extend(fresh)
                said.update(fresh)
    return modules


def heading(places: tuple[str, ...]) -> str:
    """The places of a row, the first with its module."""
    first, *others = places
    return ", ".join(f"`{place}`" for place in (first, *(one.split(".")[-1] for one in others)))


def listing(module: str, names: list[Name]) -> str:
    """The public names of a module as a table."""
    path = path_of(module)
    assert path is not None
    head = f"| [`{module}`](../{path.relative_to(ROOT).as_posix()}) | |\n| --- | --- |"
    return "\n".join([head, *(f"| `{name.call}` | {name.summary} |" for name in names)])


def reference() -> str:
    """A section for each public module or name, with a directive that shows its docstrings."""
    shown = [
        module if path_of(place) else place
        for row in table()
        for place in row.places
        for module in contents(place)
        if module != ELSEWHERE
    ]
    modules = {place for place in shown if path_of(place)}
    return "\n".join(
        f"## `{place}`\n\n```{{eval-rst}}\n{directive(place, modules)}\n```\n" for place in shown
    )


def directive(place: str, modules: set[str]) -> str:
    """How Sphinx is asked for a place; what other public modules define has its place there."""
    if not path_of(place):
        kind = "autoclass" if place.rpartition(".")[2][0].isupper() else "autofunction"
        return f".. {kind}:: {place}" + "\n   :members:" * (kind == "autoclass")
    others = [name for name, source in passed_on(place).items() if source in modules]
    left_out = f"\n   :exclude-members: {', '.join(others)}" if others else ""
    return f".. automodule:: {place}\n   :members:{left_out}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
