"""A registry with small components, so that these tests stand on the reader alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

import permllm
from permllm.components import (
    Dataset,
    Evaluator,
    Exporter,
    Metric,
    Observer,
    PermutationLearner,
    Pruner,
    option,
)
from permllm.errors import UserError
from permllm.pipeline.reading import Study, study_of_text
from permllm.pipeline.schema import Pipeline
from permllm.registry import Registry

MODEL = "model: {source: directory, path: model}\n"
HEAD = MODEL + "pattern: 2:4\n"
"""The shortest pipeline: what stands after it starts in line 3."""


@attrs.frozen
class Wanda(Metric):
    """Weight times input norm."""

    name = "wanda"

    def scores(self, weight: Any, statistics: Any) -> Any:
        return weight


@attrs.frozen
class Ria(Metric):
    """Relative importance."""

    name = "ria"
    exponent: float = option(0.5, help="exponent of the input norm", minimum=0, maximum=4)

    def scores(self, weight: Any, statistics: Any) -> Any:
        return weight


@attrs.frozen
class Nothing(PermutationLearner):
    """The order that there is."""

    name = "none"

    def learn(self, window: Any) -> dict[str, Any]:
        return {}


@attrs.frozen
class Cp(PermutationLearner):
    """Assignment rounds."""

    name = "cp"
    rounds: int = option(3, help="rounds", minimum=0)
    verbose: bool = option(False, help="say more")

    def learn(self, window: Any) -> dict[str, Any]:
        return {}


@attrs.frozen
class Lcp(PermutationLearner):
    """Learned order."""

    name = "lcp"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"passes": 50, "start": "none", "dropout": 0}
    }
    passes: int = option(4, help="passes over the text", minimum=1, maximum=1000)
    block: int = option(64, help="channels of a block", minimum=2)
    start: str = option("cp", help="first order", choices=("none", "cp"))
    dropout: float | None = option(None, help="share of dropped logits", minimum=0, maximum=1)

    def learn(self, window: Any) -> dict[str, Any]:
        return {}


@attrs.frozen
class Mask(Pruner):
    """Zeroes."""

    name = "mask"

    def prune(self, weight: Any, scores: Any, pattern: Any, statistics: Any) -> Any:
        return weight, scores


@attrs.frozen
class SparseGpt(Pruner):
    """Zeroes and mends."""

    name = "sparsegpt"
    dampening: float = option(0.01, help="share of the mean diagonal")

    @dampening.validator
    def _check(self, attribute: Any, value: float) -> None:
        if value == 0.5:
            raise ValueError("dampening must not be one half")
        if value == 0.25:
            raise UserError("a quarter needs an extra", hint="pip install 'permllm[quarter]'")
        if value == 0.125:
            raise KeyError("an eighth")

    def prune(self, weight: Any, scores: Any, pattern: Any, statistics: Any) -> Any:
        return weight, scores


@attrs.frozen
class Docs(Dataset):
    """Documentation."""

    name = "python-docs"

    def texts(self, split: str) -> Iterator[str]:
        return iter(())


@attrs.frozen
class Text(Dataset):
    """A file."""

    name = "text"
    path: Path = option(help="the file")

    def texts(self, split: str) -> Iterator[str]:
        return iter(())


@attrs.frozen
class Perplexity(Evaluator):
    """Perplexity."""

    name = "perplexity"
    dataset: Dataset = option(factory=Docs, help="the text")
    length: int = option(256, help="tokens of a window", minimum=2)
    sizes: tuple[int, ...] = option((), help="more lengths")

    def evaluate(self, model: Any, tokenizer: Any, context: Any) -> dict[str, float]:
        return {}


@attrs.frozen
class Masked(Exporter):
    """A folder."""

    name = "masked"

    def export(self, context: Any, directory: Path) -> None:
        return None


@attrs.frozen
class Mlflow(Observer):
    """MLflow."""

    name = "mlflow"
    experiment: str | None = option(None, help="its experiment")

    def watch(self, out: Path, warn: Any) -> object:
        return self


@attrs.frozen
class Events(Observer):
    """Events."""

    name = "events"

    def watch(self, out: Path, warn: Any) -> object:
        return self


class Toys:
    """The plugin that adds them."""

    @permllm.hookimpl
    def permllm_metrics(self) -> list[type]:
        return [Wanda, Ria]

    @permllm.hookimpl
    def permllm_permutations(self) -> list[type]:
        return [Nothing, Cp, Lcp]

    @permllm.hookimpl
    def permllm_pruners(self) -> list[type]:
        return [Mask, SparseGpt]

    @permllm.hookimpl
    def permllm_datasets(self) -> list[type]:
        return [Docs, Text]

    @permllm.hookimpl
    def permllm_evaluators(self) -> list[type]:
        return [Perplexity]

    @permllm.hookimpl
    def permllm_exporters(self) -> list[type]:
        return [Masked]

    @permllm.hookimpl
    def permllm_observers(self) -> list[type]:
        return [Mlflow, Events]


@pytest.fixture(scope="session")
def toys() -> Registry:
    registry = Registry()
    info = registry.add(Toys(), "toys")
    assert registry.warnings == []
    assert info.status == "loaded"
    return registry


@pytest.fixture
def study(toys: Registry) -> Callable[..., Study]:
    """Reads ``HEAD`` and the given YAML (or, with ``whole``, only that) with settings."""

    def reader(text: str = "", *settings: str, whole: bool = False) -> Study:
        whole_text = text if whole else HEAD + text
        return study_of_text(whole_text, "p.yaml", Path("/base"), toys, settings)

    return reader


@pytest.fixture
def read(study: Callable[..., Study]) -> Callable[..., Pipeline]:
    """The pipeline of the same."""

    def reader(text: str = "", *settings: str, whole: bool = False) -> Pipeline:
        return study(text, *settings, whole=whole).pipeline

    return reader


@pytest.fixture
def refused(read: Callable[..., Pipeline]) -> Callable[..., str]:
    """The error that reading the same gives, as text."""

    def reader(text: str = "", *settings: str, whole: bool = False) -> str:
        with pytest.raises(UserError) as caught:
            read(text, *settings, whole=whole)
        return str(caught.value)

    return reader
