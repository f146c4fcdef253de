"""The files that measurements are taken on, where they are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from permllm.datasets.jsonl import JsonLines
from permllm.datasets.sequences import calibration_sequences
from permllm.datasets.text import Text
from permllm.evaluators.choices import read_items
from permllm.testing.tokenizers import byte_tokenizer

DATA = Path(__file__).parents[2].parent / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the data for measurements (../shared/data) is not there"
)


def test_c4_gives_calibration_sequences() -> None:
    dataset = JsonLines(DATA / "c4-sample.jsonl")
    learning, held_out = calibration_sequences(
        dataset, byte_tokenizer(), length=256, sequences=16, held_out=4, seed=0
    )
    assert learning.shape == (16, 256)
    assert held_out.shape == (4, 256)
    assert len(list(dataset.texts("train"))) == 1000


def test_wikitext_is_one_document() -> None:
    (text,) = Text(DATA / "wikitext2-valid.txt").texts("test")
    assert len(text.split()) == 213_886


@pytest.mark.parametrize(("name", "count"), [("arc-easy", 2376), ("openbookqa", 500)])
def test_questions(name: str, count: int) -> None:
    assert len(read_items(DATA / f"{name}.jsonl")) == count
