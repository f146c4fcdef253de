"""Calibration sequences: how many are wished for, and which are which."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from permllm.datasets.text import Text
from permllm.errors import UserError
from permllm.pipeline.schema import Calibration
from permllm.runner.calibration import read_sequences, sequences_of, wished_sequences
from permllm.testing.tokenizers import byte_tokenizer


@pytest.fixture
def calibration(tmp_path: Path) -> Calibration:
    """Of a text of ten sequences."""
    (tmp_path / "a.txt").write_text("0123456789abcdef" * 10)
    text = Text(tmp_path / "a.txt")
    return Calibration(dataset=text, sequences=4, length=16, held_out=2, batch_size=3)


def test_the_greediest_component_is_heard(loop_of) -> None:
    asked = loop_of().pipeline
    assert wished_sequences(asked) == asked.calibration.sequences
    learner = {"name": "lcp", "steps": 40, "batch": 8}
    eager = loop_of(permutation=learner).pipeline
    wish = eager.layers.permutation.sequences(eager.calibration.sequences)
    assert wished_sequences(eager) == wish > eager.calibration.sequences


def test_learning_and_held_out_rows_are_apart(calibration: Calibration) -> None:
    sequences = sequences_of(calibration, torch.arange(7)[:, None])
    assert sequences.learning.tolist() == [0, 1, 2, 3, 4]
    assert sequences.held_out.tolist() == [5, 6]
    assert (sequences.calibration, sequences.batch_size) == (4, 3)


@pytest.mark.parametrize(("wish", "learning"), [(4, 4), (6, 6), (100, 8)])
def test_a_wish_is_met_as_far_as_the_text_goes(
    calibration: Calibration, wish: int, learning: int
) -> None:
    sequences = read_sequences(calibration, byte_tokenizer(), wish)
    assert len(sequences.learning) == learning
    assert len(sequences.held_out) == 2
    assert sequences.tokens.shape == (learning + 2, 16)


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(UserError, match="tokens"):
        read_sequences(Calibration(dataset=Text(tmp_path / "a.txt")), byte_tokenizer(), 1)
