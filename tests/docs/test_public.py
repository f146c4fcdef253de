"""What is public: the plugins of the repository use nothing else, and its page lists it all."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from permllm.components import KINDS
from permllm.plugins.scaffold import NewPlugin, rendered

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path for path in (ROOT / "plugins").rglob("*.py") if "build" not in path.parts)

sys.path.insert(0, str(ROOT / "docs/_ext"))
try:
    import api_page
    import public
finally:
    del sys.path[0]


def public_names() -> set[str]:
    """Every public name and the modules that have some, in full."""
    found: set[str] = set()
    for row in public.table():
        for place in row.places:
            for module, names in public.contents(place).items():
                found |= {f"{module}.{name.name}" for name in names}
                found |= {module} if public.path_of(place) else set()
    return found | {"permllm.__version__"}


PUBLIC = public_names()


def used(text: str) -> Iterator[str]:
    """What a source imports of permllm, and what it takes from ``permllm`` itself, in full."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and is_permllm(node.module or ""):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_permllm(alias.name))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "permllm":
            yield f"permllm.{node.attr}"


def is_permllm(module: str) -> bool:
    """Whether a module is of this package, rather than of a plugin called ``permllm_…``."""
    return module.partition(".")[0] == "permllm"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_shipped_plugins_and_their_tests_use_what_is_public(path: Path) -> None:
    assert set(used(path.read_text(encoding="utf-8"))) <= PUBLIC


@pytest.mark.parametrize("kind", KINDS)
def test_new_plugins_use_what_is_public(kind: str) -> None:
    files = rendered(NewPlugin("power", kind))
    sources = [text for name, text in files.items() if name.endswith(".py")]
    assert sources
    assert {name for text in sources for name in used(text)} <= PUBLIC


@pytest.mark.parametrize("page", ["write-a-plugin.md", "hooks.md", "stability.md"])
def test_pages_for_plugins_show_what_is_public(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = text.split("```python\n")[1:]
    assert {name for block in blocks for name in used(block.partition("```")[0])} <= PUBLIC


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from permllm.units import number", {"permllm.units.number"}),
        ("def f():\n    import permllm.files", {"permllm.files"}),
        ("import permllm\npermllm.api.run", {"permllm", "permllm.api"}),
        ("from permllm.core import packing", {"permllm.core.packing"}),
        ("import permllm_report, torch", set()),
    ],
)
def test_what_a_source_uses(source: str, found: set[str]) -> None:
    assert set(used(source)) == found


def test_only_what_is_documented_and_has_no_underscore_is_public(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy.py").write_text(
        'A, B = 1, 2\n"""Two."""\nC = 3\n_D = 4\n"""Hidden."""\n'
        'def f(x, *, y=1, **z):\n    """Does\n    it.\n\n    At length."""\n'
        "def g():\n    pass\n"
        'class K:\n    """Is.\n\n    Attributes:\n        a: it is\n            long.\n'
        '        b, c: others.\n    """\n'
        '    @property\n    def p(self):\n        """Has."""\n'
        '    def m(self, n):\n        """Does."""\n    def _h(self):\n        """Hides."""\n'
    )
    monkeypatch.setattr(public, "ROOT", tmp_path)
    found = {name.call: name.summary for name in public.names("toy")}
    assert found == {
        "A": "Two.",
        "B": "Two.",
        "f(x, *, y, **z)": "Does it.",
        "K": "Is.",
        "K.a": "It is long.",
        "K.b": "Others.",
        "K.c": "Others.",
        "K.p": "Has.",
        "K.m(n)": "Does.",
    }


def test_public_names_are_there() -> None:
    for name in sorted(PUBLIC):
        module, _, rest = name.rpartition(".")
        if public.path_of(name) or not public.path_of(module):
            continue
        if module == "permllm.core.triton_kernels" and not find_spec("triton"):
            continue
        assert hasattr(importlib.import_module(module), rest), name


def test_the_page_of_the_interface_is_current() -> None:
    """Renew it with ``python docs/_ext/api_page.py``."""
    assert api_page.PAGE.read_text(encoding="utf-8") == api_page.page()


def test_the_page_of_the_interface_lists_every_public_name() -> None:
    page = api_page.PAGE.read_text(encoding="utf-8")
    for row in public.table():
        for place in row.places:
            for names in public.contents(place).values():
                assert {name.call for name in names if f"| `{name.call}` |" not in page} == set()
