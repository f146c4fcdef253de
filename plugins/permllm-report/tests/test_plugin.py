"""The plugin in permllm: its observer in a real run, its command, and what they refuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from permllm_report.observer import Report
from permllm_report.plugin import permllm_commands

import permllm
from permllm import UserError
from permllm.results import Results
from permllm.testing import check_observer, read_pipeline
from permllm.testing.models import save_tiny
from permllm.testing.observers import lead_through, toy_plan, watched

PIPELINE = """\
permllm: 1
name: tiny
model: {source: directory, path: model}
calibration: {dataset: {name: text, path: text.txt}, sequences: 4, length: 16, held_out: 2}
pattern: "2:4"
layers: {window: 1}
matrix:
  layers.permutation:
    - {name: cp, refine: false}
    - {name: lcp, passes: 2, block: 8, start: {name: cp, refine: false}}
evaluate:
  - {name: perplexity, dataset: {name: text, path: text.txt}, length: 16, max_tokens: 128}
track: {report: {layers: [1]}}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """The folder and the results of a real pipeline on a tiny model."""
    folder = tmp_path_factory.mktemp("project")
    save_tiny("llama-gqa", folder / "model")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 200)
    (folder / "tiny.yaml").write_text(PIPELINE)
    return folder / "out", permllm.run(folder / "tiny.yaml", out=folder / "out")


@pytest.fixture
def call() -> Callable[..., Result]:
    """Calls ``permllm report …`` within this process; errors are raised."""
    group = click.Group()
    permllm_commands(group)

    def run(*words: str | Path) -> Result:
        arguments = ["report", *map(str, words)]
        return CliRunner().invoke(group, arguments, catch_exceptions=False)

    return run


def test_contract() -> None:
    check_observer(Report())
    check_observer(Report(layers=(0,)))


def test_a_run_ends_with_a_page(ran: tuple[Path, Results], page, expected) -> None:
    out, results = ran
    root = page((out / "report.html").read_text(encoding="utf-8"))
    _, *rows = root.one("table", "figures").all("tr")
    said = [[cell.text for cell in row.all("td")] for row in rows]
    assert said == [row[1:] for row in expected(results)[1:]]
    titles = [e.text for e in root.id("run-2").all("h5")]
    assert titles
    assert all(title.startswith("Layer 1, ") for title in titles)
    assert root.id("learning").one("h3").text == "lcp"
    maps = root.id("run-1").all("figure", "heat")
    retained = [cell.text for cell in maps[0].all("td")]
    wanted = [f"{100 * r.retained:.1f}" for r in results["cp"].layers]
    assert sorted(retained) == sorted(wanted)
    assert "name: tiny" in root.id("setup").one("pre").text


def test_the_command_writes_the_same_page(ran: tuple[Path, Results], call, tmp_path: Path) -> None:
    out, _ = ran
    done = call(out, "--out", tmp_path / "page.html", "--layers", "1")
    assert (done.exit_code, done.output.strip()) == (0, str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_bytes() == (out / "report.html").read_bytes()


def test_by_default_the_command_writes_into_the_folder(study, call, page, tmp_path: Path) -> None:
    study(tmp_path)
    assert call(tmp_path).exit_code == 0
    root = page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(root.id("run-2").all("h5")) == 6


def test_what_the_command_refuses(study, call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run"):
        call(tmp_path / "empty")
    study(tmp_path / "run")
    with pytest.raises(UserError, match="no pruned decoder layer 9"):
        call(tmp_path / "run", "--layers", "0,9")
    with pytest.raises(UserError, match="cannot be written"):
        call(tmp_path / "run", "--out", tmp_path / "run" / "pipeline.yaml" / "x.html")
    for layers in ("-1", "first", "0,", "1.5"):
        done = call(tmp_path / "run", "--layers", layers)
        assert done.exit_code == 2
        assert "is not a list of layers such as 0,14,29" in done.output
    assert not (tmp_path / "run" / "report.html").exists()


def test_exit_code_of_wrong_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "permllm", "report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the folder {tmp_path} holds no run of permllm\n")


def test_negative_layers_are_refused_by_the_pipeline() -> None:
    with pytest.raises(UserError, match="from 0"):
        read_pipeline("track: {report: {layers: [-1]}}")


def test_a_page_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    said: list[str] = []
    plan = toy_plan(tmp_path)
    (tmp_path / "report.html").mkdir()
    watcher = Report().watch(tmp_path, said.append)
    results = Results("toy", str(tmp_path), ())
    watcher.permllm_plan_finished(plan, results)  # type: ignore[attr-defined]
    (message,) = said
    assert message.startswith(f"{tmp_path / 'report.html'} could not be written")


def test_results_need_not_be_on_disk(tmp_path: Path, page) -> None:
    lead_through(toy_plan(tmp_path), watched(Report(), tmp_path))
    root = page((tmp_path / "report.html").read_text(encoding="utf-8"))
    _, *rows = root.one("table", "figures").all("tr")
    assert [row.one("th").text for row in rows] == ["1dense", "2seed=1", "3seed=2"]
    assert len(root.id("run-2").all("figure", "heat")) == 3
