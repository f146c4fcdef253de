"""The language reference that comes with every Python."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from typing import ClassVar

import attrs

from permllm.components import Dataset

TEST_SHARE = 0.25
"""Share of the characters that goes to the test split."""

LONG = 80
"""Characters from which a paragraph is too long to stand twice by chance."""


@attrs.frozen
class PythonDocs(Dataset):
    """Python's own documentation, as in ``help()``: English text that needs no download.

    Its topics repeat whole sections of each other. A long paragraph is kept only where
    it stands first, so that no split, and no two sequences, share one. The topics
    are then dealt to a train and a test split by the hash of their names.
    """

    name: ClassVar[str] = "python-docs"

    def texts(self, split: str) -> Iterator[str]:
        """The topics of a split, in alphabetical order."""
        for topic, text in _topics().items():
            if (topic in _test_topics()) == (split == "test"):
                yield text


@cache
def _topics() -> dict[str, str]:
    """The text of each topic without what an earlier topic has said already."""
    # Late: half a megabyte that most commands do not need.
    from pydoc_data.topics import topics

    seen: set[str] = set()
    kept = {}
    for topic, text in sorted(topics.items()):
        paragraphs = []
        for paragraph in re.split(r"\n\s*\n", text):
            words = " ".join(paragraph.split())
            if words not in seen:
                paragraphs.append(paragraph)
            if len(words) >= LONG:
                seen.add(words)
        if "".join(paragraphs).strip():
            kept[topic] = "\n\n".join(paragraphs)
    return kept


@cache
def _test_topics() -> frozenset[str]:
    """Topics in the order of their names' hashes, until they make up the test share."""
    topics = _topics()
    wanted = TEST_SHARE * sum(len(text) for text in topics.values())
    chosen, size = set(), 0
    for topic in sorted(topics, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if size >= wanted:
            break
        chosen.add(topic)
        size += len(topics[topic])
    return frozenset(chosen)
