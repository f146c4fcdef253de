"""Pipeline files and parts of them, read for the tests of plugins."""

from __future__ import annotations

from pathlib import Path

import pytest

from permllm.core.patterns import Pattern
from permllm.errors import UserError
from permllm.permutations.cp import Cp
from permllm.testing.pipelines import read_pipeline


def test_a_part_of_a_file_is_enough() -> None:
    layers = read_pipeline("layers: {permutation: {name: cp, rounds: 3}}").layers
    assert layers.permutation == Cp(rounds=3)
    assert read_pipeline({"layers": {"permutation": Cp.name}}).layers.permutation == Cp()


def test_what_the_file_says_counts(tmp_path: Path) -> None:
    pipeline = read_pipeline('{pattern: "1:4", model: {source: directory, path: m}}', tmp_path)
    assert pipeline.pattern == Pattern(1, 4)
    assert pipeline.model.path == tmp_path / "m"


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="roundz"):
        read_pipeline("layers: {permutation: {name: cp, roundz: 3}}")
