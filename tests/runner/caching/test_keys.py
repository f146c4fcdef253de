"""Keys: whatever a result depends on changes them, and nothing else does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from permllm.components import Metric, option
from permllm.core.patterns import Pattern
from permllm.core.statistics import GRAM, SQUARE_SUM, TOKENS, Statistic
from permllm.datasets.jsonl import JsonLines
from permllm.datasets.python_docs import PythonDocs
from permllm.datasets.text import Text
from permllm.evaluators.choices import Choices
from permllm.evaluators.perplexity import Perplexity
from permllm.metrics.ria import Ria
from permllm.permutations.cp import Cp
from permllm.permutations.lcp import Lcp
from permllm.pipeline.schema import Calibration, Override
from permllm.runner.caching import keys
from permllm.runner.caching.keys import (
    Unhashable,
    component_key,
    digest,
    statistic_key,
)


@attrs.frozen
class Powers(Metric):
    """Has an option of each type that a file can spell."""

    name = "powers"

    number: float = option(2.0, help="a number")
    count: int | None = option(None, help="a whole number")
    text: str = option("a", help="a text")
    flag: bool = option(False, help="yes or no")
    several: tuple[int, ...] = option((), help="numbers")
    pattern: Pattern | None = option(None, help="a pattern")
    file: Path | None = option(None, help="a file")
    inner: Metric | None = option(None, help="another metric")

    def scores(self, weight: Any, statistics: Any) -> Any:
        return weight.abs()


PARTS = st.builds(
    Powers,
    number=st.floats(allow_nan=False, allow_infinity=False),
    count=st.none() | st.integers(),
    text=st.text(),
    flag=st.booleans(),
    several=st.lists(st.integers(), max_size=3).map(tuple),
    pattern=st.sampled_from([None, Pattern(2, 4), Pattern(1, 4)]),
    inner=st.sampled_from([None, Ria(), Ria(exponent=1.0)]),
)


@given(PARTS, PARTS)
def test_components_have_one_key_exactly_if_they_are_equal(one: Powers, other: Powers) -> None:
    same = attrs.asdict(one) == attrs.asdict(other) and repr(one) == repr(other)
    assert (digest(component_key(one)) == digest(component_key(other))) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Lcp(), Lcp(block=32)),
        (Lcp(), Lcp(start=Cp(rounds=3))),
        (Cp(), Lcp()),
        (Perplexity(), Perplexity(length=128)),
        (Perplexity(), Perplexity(split="train")),
        (Calibration(dataset=PythonDocs()), Calibration(dataset=PythonDocs(), seed=1)),
        (Override(match="*"), Override(match="*", skip=True)),
    ],
)
def test_options_within_options_count(one: Any, other: Any) -> None:
    assert component_key(one) == component_key(type(one)(**attrs.asdict(one, recurse=False)))
    assert component_key(one) != component_key(other)


@pytest.mark.parametrize("read", [lambda path: Text(path), lambda path: JsonLines(path)])
def test_the_content_of_files_counts(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    path = tmp_path / "a.txt"
    path.write_text('{"text": "one"}\n')
    before = component_key(Perplexity(dataset=read(path)))
    path.touch()
    assert component_key(Perplexity(dataset=read(path))) == before
    path.write_text('{"text": "two"}\n')
    assert component_key(Perplexity(dataset=read(path))) != before


def test_files_and_globs_of_other_components_count(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text("1")
    before = component_key(Choices(path=path)), component_key(Choices(path=tmp_path / "*.jsonl"))
    path.write_text("2")
    after = component_key(Choices(path=path)), component_key(Choices(path=tmp_path / "*.jsonl"))
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert component_key(Choices(path=tmp_path / "none")) != after[0]


def test_the_field_that_is_read_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    assert component_key(JsonLines(path)) != component_key(JsonLines(path, field="body"))


def powers(exponent: float) -> Statistic:
    return Statistic("powers", lambda x: (x**exponent).sum(0))


def power_sum(x: Any, exponent: float) -> Any:
    return (x**exponent).sum(0)


def test_statistics_of_one_name_differ_by_what_they_sum() -> None:
    assert len({digest(statistic_key(s)) for s in (TOKENS, SQUARE_SUM, GRAM)}) == 3
    assert statistic_key(powers(2)) == statistic_key(powers(2))
    assert statistic_key(powers(2)) != statistic_key(powers(3))
    bound = [Statistic("p", functools.partial(power_sum, exponent=e)) for e in (2, 2, 3)]
    assert statistic_key(bound[0]) == statistic_key(bound[1]) != statistic_key(bound[2])


def test_what_cannot_be_told_apart_has_no_key() -> None:
    class Local(Ria):
        """Made within a function."""

    with pytest.raises(Unhashable):
        component_key(Local())
    with pytest.raises(Unhashable):
        statistic_key(Statistic("built in", len))
    with pytest.raises(Unhashable):
        component_key(object())


def test_the_code_of_a_plugin_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some_plugin_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "metric.py").write_text("from permllm.metrics.ria import Ria\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    importlib.import_module("some_plugin_package.metric")

    def code() -> str:
        keys.code_of.cache_clear()
        return keys.code_of("some_plugin_package.metric")

    before = code()
    assert code() == before
    (folder / "helper.py").write_text("x = 1\n")
    with_helper = code()
    assert with_helper != before
    (folder / "helper.py").write_text("x = 2\n")
    assert code() != with_helper


def test_the_machine_counts() -> None:
    cpu = torch.device("cpu")
    assert keys.machine(cpu, torch.float32) == keys.machine(cpu, torch.float32)
    assert keys.machine(cpu, torch.float32) != keys.machine(cpu, torch.bfloat16)
    assert set(keys.machine(cpu, None)["libraries"]) >= {"torch", "transformers", "tokenizers"}


def test_own_code_leaves_out_what_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(keys, "_hashed", lambda paths: str(seen.extend(paths)))
    keys.own_code.__wrapped__()
    package = Path(keys.__file__).parents[2]
    folders = {path.relative_to(package).parts[0] for path in seen}
    assert {"core", "models", "permutations", "pruners"} <= folders
    assert not folders & {"cli", "observers", "report", "testing"}
