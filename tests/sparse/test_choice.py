"""The fastest way is found in spite of single times, and kept for the machine."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from permllm.sparse import choice
from permllm.sparse.choice import COUNTS, Choices, best_in_turn, fastest, of_tokens

NAMES = ("few", "some", "many")


@given(st.lists(st.tuples(*[st.floats(0.01, 100)] * 3), min_size=1, max_size=5))
def test_the_best_in_turn_is_the_best_of_all_that_never_go_back(
    times: list[tuple[float, ...]],
) -> None:
    named = [dict(zip(NAMES, one, strict=True)) for one in times]

    def product(chosen: tuple[str, ...]) -> float:
        return math.prod(one[name] for one, name in zip(named, chosen, strict=True))

    rising = [
        chosen
        for chosen in itertools.product(NAMES, repeat=len(times))
        if list(chosen) == sorted(chosen, key=NAMES.index)
    ]
    found = best_in_turn(NAMES, named)
    assert found in rising
    assert product(found) == pytest.approx(min(map(product, rising)))


def test_one_disturbed_time_does_not_count() -> None:
    clear = {"few": 1.0, "some": 2.0, "many": 9.0}
    assert best_in_turn(NAMES, [clear, clear | {"few": 3.0}, clear, clear]) == ("few",) * 4


def test_ways_are_timed_with_as_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = [0.0], []

    def way(seconds: Callable[[int], float]) -> choice.Product:
        def product(x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            clock[0] += seconds(len(x))
            return x

        return product

    monkeypatch.setattr(choice.time, "perf_counter", lambda: clock[0])
    ways = {"few": way(lambda tokens: tokens), "many": way(lambda tokens: 10 + tokens / 4)}
    assert fastest(ways, torch.zeros(COUNTS[-1], 3)) == ("few",) * 4 + ("many",) * 5
    assert set(seen) == set(COUNTS)


@pytest.mark.parametrize(
    ("tokens", "place"), [(0, 0), (1, 0), (2, 1), (3, 2), (33, 6), (128, 7), (5000, 8)]
)
def test_numbers_between_go_by_the_next_that_was_measured(tokens: int, place: int) -> None:
    names = tuple(map(str, range(len(COUNTS))))
    assert of_tokens(names, tokens) == str(place)


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    measured = []

    def measure() -> tuple[str, ...]:
        measured.append(1)
        return ("few",) * len(COUNTS)

    first = Choices(path)
    for _ in range(2):
        assert first.of("one", NAMES, measure) == ("few",) * len(COUNTS)
    assert Choices(path).of("one", NAMES, measure) == ("few",) * len(COUNTS)
    assert len(measured) == 1
    Choices(path).of("two", NAMES, measure)
    assert set(json.loads(path.read_text())) == {"one", "two"}
    assert [one.name for one in tmp_path.iterdir()] == ["kept.json"]


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]", '{"one": 3}', '{"one": ["few"]}', '{"one": ["gone"]}']
)
def test_a_damaged_file_is_measured_anew(tmp_path: Path, damaged: str) -> None:
    path = tmp_path / "kept.json"
    path.write_text(damaged.replace('"gone"', ", ".join(['"gone"'] * len(COUNTS))))
    names = ("some",) * len(COUNTS)
    assert Choices(path).of("one", NAMES, lambda: names) == names
    assert json.loads(path.read_text())["one"] == list(names)


def test_a_folder_that_is_not_there_is_done_without(tmp_path: Path) -> None:
    names = ("some",) * len(COUNTS)
    assert Choices(tmp_path / "gone" / "kept.json").of("one", NAMES, lambda: names) == names
