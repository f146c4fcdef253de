"""What README and the docs show works: code runs, pipeline files are read, commands exist."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import click
import pytest

from permllm.cli.main import cli
from permllm.pipeline.reading import read_text
from permllm.plugins.scaffold import NewPlugin, rendered, write_package
from permllm.registry import Registry
from permllm.testing.models import save_tiny

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

FENCE = re.compile(
    r"(?:<!-- skip: (?P<skip>.+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

TINY = """
model: {source: directory, path: ../my-model}
pattern: "2:4"
calibration: {sequences: 2, length: 16, held_out: 1}
matrix:
  layers.permutation: [none, {name: cp, rounds: 2, steps: 2}]
evaluate: [{name: perplexity, length: 16, max_tokens: 64}]
track: {}
"""
"""Stands in for the quickstart, which takes minutes, where README runs it."""

NEW_PLUGIN = NewPlugin("power", "metric")
"""The plugin that the docs start with ``permllm plugins new power``."""


@attrs.frozen
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    skip: str | None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        yield Block(page, line, match["language"], match["text"], match["skip"])


def all_blocks(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


PYTHON_PAGES = sorted({block.page for block in all_blocks("python") if not block.skip})


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.name)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("llama", tmp_path / "my-model")
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines/quickstart.yaml").write_text(TINY, encoding="utf-8")
    monkeypatch.syspath_prepend(write_package(NEW_PLUGIN, tmp_path))
    # The blocks of a page follow each other as in one session.
    namespace: dict[str, object] = {"__name__": "page"}
    shown = [block for block in blocks(page) if block.language == "python" and not block.skip]
    for block in shown:
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), namespace)
    assert len(namespace) > 2
    for module in [name for name in sys.modules if name.partition(".")[0] == NEW_PLUGIN.module]:
        del sys.modules[module]


@pytest.mark.parametrize(
    "path", ["permllm_power/metric.py", "permllm_power/plugin.py", "tests/test_metric.py"]
)
def test_new_plugins_are_shown_as_they_are_written(path: str) -> None:
    shown = [block.text for block in blocks(ROOT / "docs/write-a-plugin.md")]
    assert rendered(NEW_PLUGIN)[path] in shown


def my_metric() -> str:
    """The plugin of one file that the docs show and that their pipeline files name."""
    (block,) = (block for block in all_blocks("python") if block.text.startswith("# my_metric.py"))
    return block.text


def base() -> str:
    """The pipeline file that another one in the docs extends."""
    (block,) = (block for block in all_blocks("yaml") if block.text.startswith("# base.yaml"))
    return block.text


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_pipeline_file_is_read(block: Block, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(base(), encoding="utf-8")
    (tmp_path / "my_metric.py").write_text(my_metric(), encoding="utf-8")
    pipeline = read_text(block.text, "shown.yaml", tmp_path, Registry.load())
    assert pipeline.name


def test_pages_show_something_of_each_kind() -> None:
    assert len(all_blocks("python")) >= 4
    assert len(all_blocks("yaml")) >= 4
    assert list(commands())


def commands() -> Iterator[tuple[Block, list[str]]]:
    """Every call of ``permllm`` that a page shows, as its words."""
    for block in all_blocks("sh", "console"):
        for line in block.text.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words and words[0] == "permllm":
                yield block, words[1:]


@pytest.mark.parametrize(("block", "words"), list(commands()), ids=lambda value: str(value))
def test_command_exists(block: Block, words: list[str]) -> None:
    words = words[: words.index(">")] if ">" in words else words
    if words == ["--help"]:
        return
    context = click.Context(cli, info_name="permllm", obj={"debug": False})
    name, command, rest = cli.resolve_command(context, words)
    assert command is not None, f"{block}: no command {name}"
    # Parses the options without running anything.
    assert command.make_context(name, rest, parent=context).params is not None


def test_ci_runs_the_tests_as_readme_prints_them() -> None:
    (command,) = re.findall(
        r"^python3 .*tox run -e py311$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M
    )
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q tox && ")
    assert "tox run -e py311$' README.md" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_committed_schema_is_current() -> None:
    """Renew it with ``permllm schema > docs/pipeline.schema.json``."""
    import json

    from permllm.pipeline.jsonschema import pipeline_schema

    foreign = [info.name for info in Registry.load().plugins if info.distribution != "permllm"]
    current = pipeline_schema(Registry.load(disabled=foreign))
    kept = json.loads((ROOT / "docs/pipeline.schema.json").read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(current))


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").rglob("*.yaml")), ids=lambda p: p.stem)
def test_pipelines_of_the_repository(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    comment = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert comment is not None
    assert (path.parent / comment[1]).resolve() == ROOT / "docs/pipeline.schema.json"
    assert read_text(text, str(path), path.parent, Registry.load()).name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("generated/"):
            assert (page.parent / target).exists(), target
