"""Parts of documents keep the places that they were read at."""

from __future__ import annotations

from permllm.pipeline.document import Document, Origin
from permllm.pipeline.parsing import parse_yaml

FILE = Origin(file="a.yaml")


def test_parts_keep_their_places() -> None:
    document = parse_yaml("a: {b: [1, 2]}", FILE)
    part = document.part(("a", "b"))
    assert (part.data, part.origin((1,)).column) == ([1, 2], 12)
    moved = Document({}, {(): FILE}).with_part(("c",), part, FILE)
    assert (moved.data, moved.origin(("c", 1)).column) == ({"c": [1, 2]}, 12)
    assert document.data == {"a": {"b": [1, 2]}}
