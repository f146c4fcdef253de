"""``permllm compare`` on a small study, and ``permllm run`` of one that is large."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import time
from pathlib import Path

import pytest

ORDERS = "{plain: none, found: {name: cp, rounds: 1, steps: 0}}"
MATRIX = f"matrix={{layers.permutation: {ORDERS}, repeat: 2}}"


@pytest.fixture(scope="module")
def folders(permllm, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study ``a``, and ``b``, which says that it was measured on other sequences."""
    here = tmp_path_factory.mktemp("runs")
    words = ("--set", MATRIX, "--set", "export=[]", "--out", here / "a")
    done = permllm("run", "tiny.yaml", *words, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "for 4 pruned runs and the dense model" in done.stderr
    assert "found" in done.stdout
    assert "(better in)" in done.stdout
    shutil.copytree(here / "a", here / "b")
    kept = here / "b" / "pipeline.yaml"
    kept.write_text(kept.read_text().replace("length: 16\n  stride", "length: 32\n  stride"))
    return here


def test_repeats_have_their_own_seeds(folders: Path) -> None:
    runs = json.loads((folders / "a" / "results.json").read_text())["runs"]
    assert [run["label"] for run in runs] == ["dense", "plain", "plain #2", "found", "found #2"]
    assert [run["setting"] for run in runs[1:]] == ["plain", "plain", "found", "found"]
    assert [run["repeat"] for run in runs[1:]] == [0, 1, 0, 1]
    figures = [run["figures"]["perplexity/text"] for run in runs]
    assert figures[1] != figures[2]
    seeds = [run["options"]["calibration.seed"] for run in runs[1:]]
    assert seeds[0] == 0
    assert seeds == seeds[:2] * 2


def test_table_and_warning(permllm, folders: Path) -> None:
    done = permllm("compare", "a", "b:found", cwd=folders)
    assert done.returncode == 0, done.stderr
    for word in ("method", "from", "dense", "a, b", "plain", "found"):
        assert word in done.stdout
    assert "warning: perplexity/text: length: 16 in a; 32 in b\n" in done.stderr
    assert "warning: 'found' in b is one of 2 repeats\n" in done.stderr


def test_formats(permllm, folders: Path) -> None:
    said = json.loads(permllm("compare", "a", "b", "--json", cwd=folders).stdout)
    assert [row["label"] for row in said["rows"]] == ["dense", *["plain", "found"] * 2]
    assert [row["from"] for row in said["rows"]] == [["a", "b"], ["a"], ["a"], ["b"], ["b"]]
    assert said["warnings"][0]["values"] == {"a": "16", "b": "32"}
    markdown = permllm("compare", "a", "--markdown", cwd=folders).stdout.splitlines()
    assert markdown[0].startswith("| method | from | n | perplexity text | gap closed |")
    assert len(markdown) == 2 + 3
    text = permllm("compare", "a", "--csv", cwd=folders).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["method"] for row in rows] == ["dense", "plain", "plain", "found", "found"]
    assert [row["layers.permutation"] for row in rows] == ["", "none", "none", "cp", "cp"]
    assert rows[1]["calibration.seed"] == rows[3]["calibration.seed"] == "0"
    figures = said["rows"][2]["figures"]["perplexity/text"]
    each = [float(row["perplexity/text"]) for row in rows[3:]]
    assert sum(each) / 2 == pytest.approx(figures)
    latex = permllm("compare", "a", "--latex", cwd=folders).stdout
    assert latex.startswith("\\begin{tabular}{llr")
    assert latex.endswith("\\end{tabular}\n")


def test_a_pipe_gets_whole_lines(permllm, folders: Path) -> None:
    lines = permllm("compare", "a", "b", cwd=folders, COLUMNS="").stdout.splitlines()
    assert sum(line.startswith("dense") for line in lines) == 1
    assert max(map(len, lines)) > 80


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "there is no folder 'nowhere'"),
        (("a:fuond",), "did you mean 'found'?"),
        (("a", "--csv", "--json"), "exclude each other"),
        ((), "Missing argument"),
    ],
)
def test_mistakes_exit_with_2(permllm, folders: Path, words: tuple[str, ...], message: str) -> None:
    done = permllm("compare", *words, cwd=folders)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_many_runs_need_yes(permllm, project: Path, tmp_path: Path) -> None:
    words = ("tiny.yaml", "--set", f"matrix={{seed: {list(range(51))}}}")
    done = permllm("run", *words, "--out", tmp_path / "run", cwd=project)
    assert done.returncode == 2
    assert "asks for 51 pruned runs and the dense model, which take about" in done.stderr
    assert "--yes" in done.stderr
    assert not (tmp_path / "run").exists()
    for command in (("run", *words, "--dry-run"), ("check", *words)):
        assert permllm(*command, cwd=project).returncode == 0


def test_yes_starts_many_runs_and_stays_in_the_command(
    start, project: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ("--set", f"matrix={{seed: {list(range(51))}}}", "--yes", "--out", out)
    process = start("run", "tiny.yaml", *words, cwd=project)
    deadline = time.monotonic() + 120
    while not (out / "events.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "for 51 pruned runs and the dense model" in said
    assert f"--out {out} --resume" in said
    assert " --yes " in said.rpartition("go on with: ")[2]
