"""YAML as plain data that remembers where every key and value stands."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from permllm.errors import UserError
from permllm.fields.errors import Keys

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


@attrs.frozen
class Origin:
    """Where a piece of a pipeline came from: a place in a file, or a ``--set``."""

    file: str | None = None
    line: int | None = None
    column: int | None = None
    setting: str | None = None

    def error(self, message: str, hint: str | None = None) -> UserError:
        """An error at this place."""
        if self.setting is not None:
            return UserError(f"--set {self.setting}: {message}", hint=hint)
        return UserError(message, file=self.file, line=self.line, column=self.column, hint=hint)

    @property
    def order(self) -> tuple[bool, int, int]:
        """Sorts places as they are read: the file top to bottom, then settings."""
        return (self.setting is not None, self.line or 0, self.column or 0)


ABSENT: Any = object()
"""What stands where there is no value."""


@attrs.frozen
class Document:
    """Plain data (mappings with string keys, lists, scalars) and the origins of its parts.

    Attributes:
        data: the data.
        values: the origin of each value that was read, by where it stood; ``()`` is the root.
        keys: the origin of each mapping's key, by where its value stood.
        root: where ``data`` stands among these.
        grafts: parts that were put in later, the latest first: where, what, and the origin
            of its key. To look them up costs little, and mistakes are rare; copies of
            ``values`` for every run of a matrix cost much.
    """

    data: Any
    values: Mapping[Keys, Origin]
    keys: Mapping[Keys, Origin] = attrs.field(factory=dict)
    root: Keys = ()
    grafts: tuple[tuple[Keys, Document, Origin], ...] = ()

    def origin(self, place: Keys, *, key: bool = False) -> Origin:
        """The origin of a value (or its key), or of the nearest thing that surrounds it."""
        place = (*self.root, *place)
        for at, part, its_key in self.grafts:
            if place[: len(at)] == at:
                inside = place[len(at) :]
                return its_key if key and not inside else part.origin(inside, key=key)
        if key and place in self.keys:
            return self.keys[place]
        while place not in self.values:
            place = place[:-1]
        return self.values[place]

    def at(self, place: Keys) -> Any:
        """The value at a place, or :data:`ABSENT`."""
        return value_at(self.data, place)

    def part(self, place: Keys) -> Document:
        """The document below a place."""
        return attrs.evolve(self, data=self.at(place), root=(*self.root, *place))

    def without(self, key: str) -> Document:
        """A copy that lacks one key of the root."""
        data = {other: value for other, value in self.data.items() if other != key}
        return attrs.evolve(self, data=data)

    def with_part(self, place: Keys, part: Document, key: Origin) -> Document:
        """A copy with another part at a place, whose surroundings have to exist.

        What is not on the way to the place is shared with the copy.

        Args:
            place: where it goes.
            part: what goes there.
            key: the origin of the key that it gets.
        """
        if not place:
            return part
        data = copy.copy(self.data)
        inner = data
        for step in place[:-1]:
            inner[step] = copy.copy(inner[step])
            inner = inner[step]
        inner[place[-1]] = part.data
        graft = ((*self.root, *place), part, key)
        return attrs.evolve(self, data=data, grafts=(graft, *self.grafts))


def plain_document(data: Any, origin: Origin) -> Document:
    """Plain data that all has one origin."""
    return Document(data, {(): origin})


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


def walk(data: Any, place: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every scalar (and empty list or mapping) of plain data with where it stands."""
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from walk(value, (*place, key))
    elif isinstance(data, list) and data:
        for index, value in enumerate(data):
            yield from walk(value, (*place, index))
    else:
        yield place, data


def value_at(data: Any, place: Iterable[str | int]) -> Any:
    """The value of plain data at a place, or :data:`ABSENT`; indices may be texts."""
    for key in place:
        if isinstance(data, dict) and key in data:
            data = data[key]
        elif isinstance(data, list) and str(key).isdecimal() and int(key) < len(data):
            data = data[int(key)]
        else:
            return ABSENT
    return data


def identity(value: Any) -> Hashable:
    """What two plain values share exactly if they are the same, types included."""
    if isinstance(value, dict):
        return frozenset((key, identity(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(identity(item) for item in value)
    if isinstance(value, str):
        # A base's texts know their folder.
        return str, str(value)
    return type(value), value


def dotted(place: Keys) -> str:
    """A place as it is written in ``--set``: ``evaluate.0.length``."""
    return ".".join(str(key) for key in place)
