"""YAML, read with the place of every key and value."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import attrs
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from permllm.errors import UserError
from permllm.fields.errors import Keys
from permllm.pipeline.document import Document, Origin, plain_document

MAX_NODES = 20_000
"""The most values a file may hold once its aliases are written out."""

MAX_DEPTH = 50
"""The deepest nesting of lists and mappings."""

MAX_DIGITS = 400
"""The longest number. The largest floating-point number has 309 digits, and Python takes a
time that grows with the square for whole numbers of other bases."""

MAX_BYTES = 2**20
"""The largest pipeline file; larger ones are surely something else."""

_TAG = "tag:yaml.org,2002:"


def parse_yaml(text: str, origin: Origin) -> Document:
    """Read one YAML document.

    Args:
        text: the YAML.
        origin: the file, or the setting, that it is from.

    Raises:
        UserError: broken YAML, duplicate keys, keys that are no text, aliases that
            contain themselves or blow up, more than one document, tags.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _Composer
    try:
        with warnings.catch_warnings():
            # An anchor that is defined twice is allowed by YAML.
            warnings.simplefilter("ignore")
            node = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = origin if mark is None else _at(origin, mark.line, mark.column)
        if isinstance(error, _TooMuch):
            raise place.error(str(error.problem)) from None
        opened = _opened(text, error.context_mark)
        hint = _yaml_hint(text, mark, error.context_mark, opened)
        reason = _reason(error, opened, in_file=origin.setting is None)
        raise place.error(f"this is not valid YAML: {reason}", hint) from error
    except YAMLError as error:
        raise origin.error(f"this is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise origin.error(_TOO_DEEP) from None
    if node is None:
        return plain_document(None, _at(origin, 0, 0))
    return _Reader(yaml, origin).read(node)


def parse_file(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        UserError: it cannot be read, or as for :func:`parse_yaml`.
    """
    return parse_yaml(_file_text(path), Origin(file=str(path)))


def _file_text(path: Path) -> str:
    file = str(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError("there is no such file", file=file) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=file) from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{len(data)} bytes are too many for a pipeline file", file=file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError("this is not UTF-8 text", file=file, line=line) from None


def _at(origin: Origin, line: int, column: int) -> Origin:
    """``origin`` at a place that ruamel counts from 0."""
    if origin.setting is not None:
        return origin
    return attrs.evolve(origin, line=line + 1, column=column + 1)


CLOSING = {"[": "]", "{": "}", '"': '"', "'": "'"}
"""What ends a list, a mapping or a text, by what opens it."""


def _opened(text: str, mark: Any) -> str | None:
    """The bracket or quote at a place, if one is there."""
    lines = text.splitlines()
    if mark is None or mark.line >= len(lines):
        return None
    bracket = lines[mark.line][mark.column : mark.column + 1]
    return bracket if bracket in CLOSING else None


def _reason(error: MarkedYAMLError, opened: str | None, *, in_file: bool) -> str:
    context = error.context
    if opened and error.context_mark:
        # What was left open is noticed at the next key, or at the end of the file.
        mark = error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if in_file else ""
        context = f"within what {opened} opens{where}"
    # The scanner's word for an item.
    problem = (error.problem or "").replace("'<scalar>'", "another item")
    parts = [part for part in (context, problem) if part]
    return " ".join(", ".join(parts).split()) or type(error).__name__


def _yaml_hint(text: str, mark: Any, start: Any, opened: str | None) -> str | None:
    lines = text.splitlines()
    if mark is not None and mark.line < len(lines) and "\t" in lines[mark.line]:
        return "indent with blanks, not with tabs"
    if opened is None:
        return None
    closing = CLOSING[opened]
    # Within one line items run together; a bracket that is not closed swallows the next line.
    together = mark is not None and mark.line == start.line and opened in "[{"
    return f"perhaps a {'comma' if together else closing} is missing"


def _is_merge(key: Node) -> bool:
    return str(key.tag) == f"{_TAG}merge"


def _name(key: Node) -> Hashable:
    """What two keys share exactly if they are the same; others than texts are refused later."""
    return key.value if isinstance(key, ScalarNode) else id(key)


class _TooMuch(MarkedYAMLError):
    """There are more nodes than are read, or they are nested too deep."""


class _Composer(Composer):
    """Composes no more nodes, and none deeper, than are read.

    A megabyte of a list takes half a minute to be composed.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.level = 0
        self.composed = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node; keys are composed without an index, and not counted."""
        if not (index is None and isinstance(parent, MappingNode)):
            self.composed += 1
        mark = self.parser.peek_event().start_mark
        if self.composed > MAX_NODES:
            raise _TooMuch(problem=_TOO_MANY, problem_mark=mark)
        if self.level > MAX_DEPTH:
            raise _TooMuch(problem=_TOO_DEEP, problem_mark=mark)
        self.level += 1
        node = super().compose_node(parent, index)
        self.level -= 1
        return node


_TOO_MANY = f"more than {MAX_NODES} values once the aliases are written out"
_TOO_DEEP = f"lists and mappings are nested deeper than {MAX_DEPTH}"


class _Reader:
    """Turns ruamel's nodes into plain data, once for every use of an alias."""

    def __init__(self, yaml: YAML, origin: Origin) -> None:
        self.constructor = yaml.constructor
        self.origin = origin
        self.values: dict[Keys, Origin] = {}
        self.keys: dict[Keys, Origin] = {}
        self.open: list[Node] = []
        self.seen = 0

    def read(self, node: Node) -> Document:
        return Document(self.value(node, ()), self.values, self.keys)

    def place(self, node: Node) -> Origin:
        return _at(self.origin, node.start_mark.line, node.start_mark.column)

    def value(self, node: Node, place: Keys) -> Any:
        self.values[place] = here = self.place(node)
        if isinstance(node, ScalarNode):
            self.count(here)
            return self.scalar(node, here)
        self.enter(node, here)
        if isinstance(node, SequenceNode):
            self.refuse_tag(node, "seq", here)
            data: Any = [self.value(item, (*place, i)) for i, item in enumerate(node.value)]
        else:
            data = self.mapping(node, place)
        self.open.pop()
        return data

    def mapping(self, node: MappingNode, place: Keys) -> dict[str, Any]:
        self.refuse_tag(node, "map", self.place(node))
        data: dict[str, Any] = {}
        for key_node, value_node in self.pairs(node):
            at = self.place(key_node)
            key = self.key(key_node, at)
            if key in data:
                first = self.keys[(*place, key)].line
                where = f" (first in line {first})" if first else ""
                raise at.error(f"the key '{key}' is there twice{where}")
            self.keys[(*place, key)] = at
            data[key] = self.value(value_node, (*place, key))
        return data

    def pairs(self, node: MappingNode) -> list[tuple[Node, Node]]:
        """A mapping's pairs, and by YAML's ``<<: *anchor`` what it lacks of others."""
        pairs = [pair for pair in node.value if not _is_merge(pair[0])]
        names = {_name(key) for key, _ in pairs}
        for source in (value for key, value in node.value if _is_merge(key)):
            for other in source.value if isinstance(source, SequenceNode) else [source]:
                here = self.place(other)
                if not isinstance(other, MappingNode):
                    raise here.error("'<<' takes a mapping or a list of mappings")
                self.enter(other, here)
                more = [pair for pair in self.pairs(other) if _name(pair[0]) not in names]
                self.open.pop()
                pairs += more
                names |= {_name(key) for key, _ in more}
        return pairs

    def enter(self, node: Node, here: Origin) -> None:
        """Go into a list or mapping; ``self.open.pop()`` goes out again."""
        if any(node is outer for outer in self.open):
            raise here.error("this alias contains itself")
        if len(self.open) >= MAX_DEPTH:
            raise here.error(_TOO_DEEP)
        self.count(here)
        self.open.append(node)

    def count(self, here: Origin) -> None:
        self.seen += 1
        if self.seen > MAX_NODES:
            raise here.error(_TOO_MANY)

    def key(self, node: Node, here: Origin) -> str:
        if not isinstance(node, ScalarNode):
            raise here.error("a key must be a text, not a list or a mapping")
        key = self.scalar(node, here)
        if not isinstance(key, str):
            raise here.error(f"a key must be a text, not {node.value or 'empty'}", "quote it")
        return key

    def scalar(self, node: ScalarNode, here: Origin) -> Any:
        kind = str(node.tag).removeprefix(_TAG)
        if kind in ("str", "timestamp") or (kind in ("int", "float") and ":" in node.value):
            # YAML 1.1 reads 2:4 as a number of base 60 and 2024-01-01 as a date.
            return node.value
        if kind == "null":
            return None
        convert = {
            "int": self.constructor.construct_yaml_int,
            "float": self.constructor.construct_yaml_float,
            "bool": self.constructor.construct_yaml_bool,
        }.get(kind)
        if convert is None:
            raise here.error(f"the tag {node.tag} is not allowed here")
        if kind in ("int", "float") and len(node.value) > MAX_DIGITS:
            raise here.error(f"'{node.value[:20]}…' is too long for a number")
        try:
            value = convert(node)
        except (ValueError, KeyError):
            raise here.error(f"'{node.value[:40]}' is not a readable {kind}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise here.error(f"expected a finite number, not {node.value}")
        return value

    def refuse_tag(self, node: Node, kind: str, here: Origin) -> None:
        if str(node.tag) != f"{_TAG}{kind}":
            raise here.error(f"the tag {node.tag} is not allowed here")
