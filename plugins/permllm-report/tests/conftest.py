"""Made-up folders of runs, written as permllm writes them, and pages taken apart."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from permllm.files import write_json
from permllm.report.table import markdown
from permllm.results import Cost, LayerReport, Results, RunResult
from permllm.runs.folder import unique_slugs
from permllm.runs.windows import PrunedWindow, save_window, window_path

PERPLEXITY = "perplexity/toy"
LINEARS = {
    "self_attn.q_proj": "self_attn.q_proj,self_attn.k_proj",
    "self_attn.k_proj": "self_attn.q_proj,self_attn.k_proj",
    "mlp.down_proj": "mlp.down_proj",
}


@attrs.frozen
class Made:
    """A made-up run.

    Attributes:
        label: its label.
        order: ``"same"`` or ``"random"``.
        perplexity: its figure.
        seconds: its time.
        steps: how many steps it trained.
        error: what broke it.
        result: whether it has one; without, it is unfinished.
        windows: how many of its layers have a window; all if None.
        setting, repeat: as in RunResult.
    """

    label: str
    order: str = "random"
    perplexity: float = 40.0
    seconds: float = 60.0
    steps: int = 0
    error: str | None = None
    result: bool = True
    windows: int | None = None
    setting: str = ""
    repeat: int = 0


QUICKSTART = (
    Made("none", order="same", perplexity=100.0, seconds=2.0),
    Made("cp", perplexity=80.0, seconds=20.0),
    Made("lcp", perplexity=50.0, seconds=300.0, steps=12),
)


def write_study(
    out: Path,
    runs: Sequence[Made] = QUICKSTART,
    *,
    layers: int = 4,
    channels: int = 32,
    finished: bool = True,
    failure: tuple[str, str] | None = None,
) -> Results:
    """Write a folder as of a pipeline with one window a layer.

    Args:
        out: the folder.
        runs: the pruned ones.
        layers, channels: of the model.
        finished: whether there is a results.json.
        failure: the run and the error class that ended an unfinished pipeline.
    """
    generator = torch.Generator().manual_seed(0)
    dense = RunResult("dense", {PERPLEXITY: 20.0, "sparsity": 0.0}, 0.0, 2**30)
    results = [dense]
    events = [
        _event("plan_started", None, pipeline="toy", runs=["dense", *(r.label for r in runs)])
    ]
    slugs = unique_slugs(["dense", *(made.label for made in runs)])
    _write_result(out / "runs" / slugs[0], dense)
    for made, slug in zip(runs, slugs[1:], strict=True):
        directory = out / "runs" / slug
        reports = _write_windows(directory, made, layers, channels, generator)
        if made.windows != 0:
            events += [_event("run_started", made.label, options=_options(made))]
        events += _training(made)
        if not made.result:
            continue
        result = _result(made, reports)
        results.append(result)
        _write_result(directory, result)
    if failure:
        events += [_event("run_failed", failure[0], error=failure[1], message="it <broke>")]
    whole = Results("toy", str(out), tuple(results))
    if finished:
        write_json(out / "results.json", whole.to_dict())
        events += [_event("plan_finished", None, pipeline="toy")]
    (out / "pipeline.yaml").write_text("permllm: 1\nname: toy\npattern: '2:4'\n")
    write_json(
        out / "environment.json",
        {
            "versions": {"permllm": "0.1.0"},
            "python": "3.11.7",
            "model": "a toy",
            "command": ["a b"],
        },
    )
    lines = [json.dumps(event) for event in events]
    (out / "events.jsonl").write_text("\n".join(lines) + "\n")
    return whole


def _event(kind: str, run: str | None, **said: Any) -> dict[str, Any]:
    return {"time": "2026-01-31T12:34:56.000+00:00", "event": kind, "run": run, **said}


def _options(made: Made) -> dict[str, Any]:
    return {"layers.permutation": {"name": made.label.split()[0]}}


def _result(made: Made, reports: tuple[LayerReport, ...]) -> RunResult:
    broke = made.error is not None
    figures = {PERPLEXITY: made.perplexity, "retained": 0.8, "sparsity": 0.5}
    return RunResult(
        made.label,
        {} if broke else figures,
        0.0 if broke else made.seconds,
        0 if broke else 2**30,
        exports={} if broke else {"masked": f"runs/{made.label}/exports/masked"},
        layers=() if broke else reports,
        options=_options(made),
        setting=made.setting or made.label,
        repeat=made.repeat,
        error=made.error,
    )


def _write_result(directory: Path, result: RunResult) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "result.json", Results("toy", "", (result,)).to_dict())


def _write_windows(
    directory: Path, made: Made, layers: int, channels: int, generator: torch.Generator
) -> tuple[LayerReport, ...]:
    found: list[LayerReport] = []
    for layer in range(layers if made.windows is None else made.windows):
        reports = []
        for linear, group in LINEARS.items():
            before, gain, error = torch.rand(3, generator=generator).tolist()
            before, gain = 0.7 + 0.1 * before, 0.05 * gain if made.order != "same" else 0.0
            prefix = f"model.layers.{layer}"
            reports.append(
                LayerReport(
                    f"{prefix}.{linear}",
                    f"{prefix}:{group}",
                    (16, channels),
                    "2:4",
                    before,
                    before + gain,
                    0.5,
                    0.2 * error,
                )
            )
        groups = dict.fromkeys(report.group for report in reports)
        permutations = {
            group: torch.arange(channels)
            if made.order == "same"
            else torch.randperm(channels, generator=generator)
            for group in groups
        }
        importance = {group: torch.rand(channels, generator=generator) ** -1 for group in groups}
        weights = {report.linear: torch.zeros(report.shape) for report in reports}
        window = PrunedWindow(weights, permutations, importance, tuple(reports), Cost(1.0))
        save_window(window_path(directory / "windows", layer), window)
        found += reports
    return tuple(found)


def _training(made: Made) -> Iterator[dict[str, Any]]:
    for step in range(1, made.steps + 1):
        figures = {"loss": 0.3 * math.exp(-step / 5) + 0.1, "temperature": 1.0}
        if step % 4 == 0:
            figures["held_out_loss"] = figures["loss"] + 0.05
        yield _event(
            "training_step", made.label, window=0, step=step, total=made.steps, figures=figures
        )


@pytest.fixture
def study() -> Callable[..., Results]:
    """Writes a made-up folder: ``study(out, runs, layers=…)``."""
    return write_study


@pytest.fixture
def made() -> type[Made]:
    return Made


def markdown_rows(results: Results) -> list[list[str]]:
    """The cells of permllm's own table in Markdown, heading and labels included."""
    head, _, *rows = markdown(results).splitlines()
    return [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in (head, *rows)
    ]


@pytest.fixture
def expected() -> Callable[[Results], list[list[str]]]:
    return markdown_rows


VOID = frozenset({"meta", "link", "br", "wbr", "hr", "img", "input"})


class Element:
    """An element of a page: its tag, attributes, and what is in it."""

    def __init__(self, tag: str, attributes: dict[str, str | None], parent: Element | None) -> None:
        self.tag, self.attributes, self.parent = tag, attributes, parent
        self.children: list[Element | str] = []

    def all(self, tag: str | None = None, class_: str | None = None) -> list[Element]:
        """The elements within, in order, with a tag, a class or both."""
        return [
            element
            for element in self._below()
            if tag in (None, element.tag)
            and (class_ is None or class_ in (element.attributes.get("class") or "").split())
        ]

    def one(self, tag: str | None = None, class_: str | None = None) -> Element:
        """The only such element."""
        (found,) = self.all(tag, class_)
        return found

    def id(self, wanted: str) -> Element:
        """The only element with an id."""
        (found,) = [e for e in self._below() if e.attributes.get("id") == wanted]
        return found

    @property
    def text(self) -> str:
        """All text in it, white space made single blanks."""
        return " ".join("".join(self._texts()).split())

    def _below(self) -> Iterator[Element]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child._below()

    def _texts(self) -> Iterator[str]:
        for child in self.children:
            yield from (child,) if isinstance(child, str) else child._texts()


class _Parser(HTMLParser):
    """Builds elements, and fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.root = self.current = Element("", {}, None)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        element = Element(tag, dict(attrs), self.current)
        self.current.children.append(element)
        if tag not in VOID:
            self.current = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.current.children.append(Element(tag, dict(attrs), self.current))

    def handle_endtag(self, tag: str) -> None:
        assert self.current.tag == tag, f"</{tag}> ends <{self.current.tag}>"
        assert self.current.parent is not None
        self.current = self.current.parent

    def handle_data(self, data: str) -> None:
        self.current.children.append(data)


def parse(html: str) -> Element:
    """The page as elements; AssertionError if it is not well-formed."""
    parser = _Parser()
    parser.feed(html)
    parser.close()
    assert parser.current is parser.root, f"<{parser.current.tag}> is not closed"
    return parser.root


@pytest.fixture
def page() -> Callable[[str], Element]:
    return parse
