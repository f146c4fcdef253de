"""Made-up folders of runs, and pages taken apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser

import pytest

from permllm.results import Results
from permllm.testing.studies import Made, write_study


@pytest.fixture
def study() -> Callable[..., Results]:
    """Writes a made-up folder: ``study(out, runs, layers=…)``."""
    return write_study


@pytest.fixture
def made() -> type[Made]:
    return Made


def markdown_rows(results: Results) -> list[list[str]]:
    """The cells of permllm's own table in Markdown, heading and labels included."""
    head, _, *rows = results.table().splitlines()
    return [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in (head, *rows)
    ]


@pytest.fixture
def expected() -> Callable[[Results], list[list[str]]]:
    return markdown_rows


VOID = frozenset({"meta", "link", "br", "wbr", "hr", "img", "input"})


class Element:
    """An element of a page: its tag, attributes, and what is in it."""

    def __init__(self, tag: str, attributes: dict[str, str | None], parent: Element | None) -> None:
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.children: list[Element | str] = []

    def all(self, tag: str | None = None, class_: str | None = None) -> list[Element]:
        """The elements within, in order, with a tag, a class or both."""
        return [
            element
            for element in self._below()
            if tag in (None, element.tag)
            and (class_ is None or class_ in (element.attributes.get("class") or "").split())
        ]

    def one(self, tag: str | None = None, class_: str | None = None) -> Element:
        """The only such element."""
        (found,) = self.all(tag, class_)
        return found

    def id(self, wanted: str) -> Element:
        """The only element with an id."""
        (found,) = [e for e in self._below() if e.attributes.get("id") == wanted]
        return found

    @property
    def text(self) -> str:
        """All text in it, white space made single blanks."""
        return " ".join("".join(self._texts()).split())

    def _below(self) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child._below()

    def _texts(self) -> Iterator[str]:
        for child in self.children:
            yield from (child,) if isinstance(child, str) else child._texts()


class _Parser(HTMLParser):
    """Builds elements, and fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.root = self.current = Element("", {}, None)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        element = Element(tag, dict(attrs), self.current)
        self.current.children.append(element)
        if tag not in VOID:
            self.current = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.current.children.append(Element(tag, dict(attrs), self.current))

    def handle_endtag(self, tag: str) -> None:
        assert self.current.tag == tag, f"</{tag}> ends <{self.current.tag}>"
        assert self.current.parent is not None
        self.current = self.current.parent

    def handle_data(self, data: str) -> None:
        self.current.children.append(data)


def parse(html: str) -> Element:
    """The page as elements; AssertionError if it is not well-formed."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert parser.current is parser.root, f"<{parser.current.tag}> is not closed"
    return parser.root


@pytest.fixture
def page() -> Callable[[str], Element]:
    return parse
