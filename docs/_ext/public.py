"""What is public, by ``docs/stability.md`` and the sources alone: nothing is imported.

The table of that page names modules, packages and single names; of a module what has a
docstring and no underscore is public. ``docs/api.md`` lists it, and tests see to it that
the plugins of the repository import nothing else.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]
STABILITY = ROOT / "docs/stability.md"

Definition = ast.FunctionDef | ast.ClassDef


@attrs.frozen
class Row:
    """A row of the table of public modules.

    Attributes:
        places: dotted names of modules, packages or what is in a module.
        meaning: what they are for, in Markdown.
    """

    places: tuple[str, ...]
    meaning: str


@attrs.frozen
class Name:
    """A public name.

    Attributes:
        name: within its module, such as ``Window.scores``.
        call: the same with its arguments, if it takes some.
        summary: the first paragraph of its docstring in one line, as Markdown.
    """

    name: str
    call: str
    summary: str


def table() -> list[Row]:
    """The rows of the table of public modules."""
    _, _, rest = STABILITY.read_text(encoding="utf-8").partition("| module | what it is for |\n")
    lines = rest.partition("\n\n")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [Row(tuple(re.findall("`([^`]+)`", places)), meaning) for places, meaning in cells]


def contents(place: str) -> dict[str, list[Name]]:
    """The public names of a place of the table, by module; modules without any are left out."""
    module = place
    while path_of(module) is None:
        module = module.rpartition(".")[0]
    wanted = place.removeprefix(module).removeprefix(".")
    modules = [module] if wanted or module == "permllm" else [module, *submodules(module)]
    found = {each: [name for name in names(each) if is_of(name, wanted)] for each in modules}
    if wanted and not found[module]:
        raise ValueError(f"docs/stability.md names {place}, which has no docstring")
    return {each: chosen for each, chosen in found.items() if chosen}


def is_of(name: Name, wanted: str) -> bool:
    """Whether a name is the wanted one or a member of it; all are where nothing is wanted."""
    return not wanted or name.name == wanted or name.name.startswith(f"{wanted}.")


def path_of(module: str) -> Path | None:
    """The source of a module or package; None if there is none of this name."""
    base = ROOT / module.replace(".", "/")
    candidates = (base / "__init__.py", base.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


def submodules(package: str) -> list[str]:
    """The modules of a package, those with an underscore left out."""
    paths = sorted((ROOT / package.replace(".", "/")).glob("*.py"))
    return [f"{package}.{path.stem}" for path in paths if not path.stem.startswith("_")]


@cache
def tree(module: str) -> ast.Module:
    """The syntax tree of a module."""
    path = path_of(module)
    assert path is not None, f"there is no module {module}"
    return ast.parse(path.read_text(encoding="utf-8"))


def names(module: str) -> list[Name]:
    """What is public in a module, in its order; what it passes on comes last."""
    found = list(defined(module))
    for name, source in passed_on(module).items():
        found += [one for one in names(source) if is_of(one, name)]
    return found


def passed_on(module: str) -> dict[str, str]:
    """What ``__all__`` names that other modules define, and which."""
    sources = imported(module)
    return {name: sources[name] for name in listed(module) if name in sources}


def listed(module: str) -> list[str]:
    """What a module's ``__all__`` holds."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def imported(module: str) -> dict[str, str]:
    """The modules that names are imported from."""
    return {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def defined(module: str) -> Iterator[Name]:
    """The documented functions, classes with what is in them, and constants of a module."""
    body = tree(module).body
    for node, following in zip_longest(body, body[1:]):
        if isinstance(node, Definition):
            yield from described(node)
        else:
            yield from assigned([node, following])


def assigned(body: Sequence[ast.stmt | None], owner: str = "") -> Iterator[Name]:
    """The constants of a module or a class that have text below them."""
    for node, following in zip_longest(body, body[1:]):
        if isinstance(node, ast.Assign | ast.AnnAssign) and (said := text_of(following)):
            for name in targets(node):
                if not name.startswith("_"):
                    yield Name(f"{owner}{name}", f"{owner}{name}", summary(said))


def described(node: Definition, owner: str = "") -> Iterator[Name]:
    """A function, or a class and what is in it, where it has a docstring and no underscore."""
    said = ast.get_docstring(node)
    if not said or node.name.startswith("_"):
        return
    name = f"{owner}{node.name}"
    yield Name(name, name + arguments(node, method=bool(owner)), summary(said))
    if isinstance(node, ast.ClassDef):
        yield from attributes(name, said)
        yield from assigned(node.body, f"{name}.")
        for inner in node.body:
            if isinstance(inner, Definition):
                yield from described(inner, f"{name}.")


def attributes(owner: str, docstring: str) -> Iterator[Name]:
    """What the section on the attributes of a class says of each."""
    section = docstring.partition("Attributes:\n")[2].partition("\n\n")[0]
    for together, said in re.findall(r"^    (\w[\w, ]*): (.*(?:\n     .*)*)", section, re.M):
        for attribute in together.split(", "):
            name = f"{owner}.{attribute}"
            yield Name(name, name, summary(f"{said[0].upper()}{said[1:]}"))


def arguments(node: Definition, *, method: bool) -> str:
    """The names of a function's arguments in brackets; nothing for what is not called."""
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    if isinstance(node, ast.ClassDef) or decorators & {"property", "cached_property"}:
        return ""
    taken = node.args
    parts = [argument.arg for argument in (*taken.posonlyargs, *taken.args)]
    parts = parts[1:] if method and "staticmethod" not in decorators else parts
    if taken.vararg or taken.kwonlyargs:
        parts.append(f"*{taken.vararg.arg if taken.vararg else ''}")
    parts += [argument.arg for argument in taken.kwonlyargs]
    parts += [f"**{taken.kwarg.arg}"] if taken.kwarg else []
    return f"({', '.join(parts)})"


def targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    """The names that an assignment gives a value."""
    places = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [one for at in places for one in (at.elts if isinstance(at, ast.Tuple) else [at])]
    return [one.id for one in flat if isinstance(one, ast.Name)]


def text_of(node: ast.stmt | None) -> str:
    """What a statement says that is nothing but text, as below a constant; else nothing."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return str(node.value.value)
    return ""


def summary(docstring: str) -> str:
    """The first paragraph of a text in one line, as Markdown."""
    line = " ".join(docstring.strip().partition("\n\n")[0].split()).replace("``", "`")
    line = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", line)
    return line.removesuffix("::").replace("|", r"\|")
