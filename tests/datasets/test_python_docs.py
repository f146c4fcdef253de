from __future__ import annotations

import re

from permllm.datasets.python_docs import LONG, PythonDocs


def paragraphs(split: str) -> set[str]:
    found = set()
    for text in PythonDocs().texts(split):
        found |= {" ".join(part.split()) for part in re.split(r"\n\s*\n", text)}
    return {text for text in found if len(text) >= LONG}


def test_splits_share_no_long_paragraph() -> None:
    assert paragraphs("train").isdisjoint(paragraphs("test"))


def test_no_long_paragraph_comes_twice_within_a_split() -> None:
    parts = [part for text in PythonDocs().texts("train") for part in re.split(r"\n\s*\n", text)]
    long = [" ".join(part.split()) for part in parts if len(" ".join(part.split())) >= LONG]
    assert len(long) == len(set(long))


def test_both_splits_are_large_enough() -> None:
    train, test = (sum(map(len, PythonDocs().texts(split))) for split in ("train", "test"))
    assert train > 200_000
    # 16,384 tokens at a bit more than four characters each.
    assert test > 80_000
    assert test < train / 2


def test_the_texts_are_the_same_every_time() -> None:
    assert list(PythonDocs().texts("train")) == list(PythonDocs().texts("train"))
