"""Runs of several folders in one table, and what keeps them from being comparable."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.errors import UserError
from permllm.pipeline.reading import dump_yaml
from permllm.report.across import compare, to_csv, to_json
from permllm.report.comparable import Difference, with_options
from permllm.report.table import markdown_of
from permllm.results import Results

FIGURE = "perplexity/python-docs"

PIPELINE: dict[str, Any] = {
    "permllm": 1,
    "pattern": "2:4",
    "dtype": "auto",
    "calibration": {
        "dataset": {"name": "text", "path": "/a.txt"},
        "sequences": 16,
        "length": 256,
        "held_out": 4,
        "batch_size": 4,
        "seed": 0,
    },
    "evaluate": [
        {"name": "perplexity", "dataset": {"name": "python-docs"}, "length": 256, "max_tokens": 64},
        {"name": "perplexity", "dataset": {"name": "text", "path": "/b/wiki.txt"}, "length": 128},
        {"name": "choices", "path": "/b/arc.jsonl", "limit": 100},
    ],
    "matrix": None,
}

ENVIRONMENT: dict[str, Any] = {
    "versions": {"permllm": "0.1.0", "torch": "2.4.0", "transformers": "5.0.0", "numpy": "2.0"},
    "threads": 2,
    "cuda_device": None,
    "model": "SmolLM2",
    "model_fingerprint": "a" * 64,
    "calibration_fingerprint": "c" * 64,
}


@pytest.fixture
def keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a run's folder; keywords change its pipeline, dotted ones with ``__``."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, results: Results, environment: Any = (), **changes: Any) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(results.to_dict()))
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        (folder / "pipeline.yaml").write_text(dump_yaml(with_options(PIPELINE, dotted)))
        kept = ENVIRONMENT | dict(environment)
        (folder / "environment.json").write_text(json.dumps(kept))

    return write


def warnings(*arguments: str) -> list[str]:
    return [warned.message for warned in compare(arguments).warnings]


def labels(*arguments: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(row.setting.label, row.sources) for row in compare(arguments).rows]


def test_one_dense_row_for_one_dense_result(keep, results, pruned) -> None:
    keep("a", results())
    keep("b", results(pruned("lcp", 39.0)))
    assert labels("a", "b") == [
        ("dense", ("a", "b")),
        ("none", ("a",)),
        ("cp", ("a",)),
        ("lcp", ("a",)),
        ("lcp", ("b",)),
    ]
    assert warnings("a", "b") == []


def test_other_dense_results_have_rows_of_their_own(keep, results) -> None:
    made = results()
    dense = attrs.evolve(made.runs[0], figures={FIGURE: 21.0})
    keep("a", made)
    keep("b", attrs.evolve(made, runs=(dense, *made.runs[1:])))
    assert labels("a", "b")[:2] == [("dense", ("a",)), ("dense", ("b",))]


def test_one_run_of_a_folder_keeps_its_gap(keep, results) -> None:
    keep("a", results())
    found = compare(["a:lcp", "a:cp", "./a:cp"])
    assert [row.setting.label for row in found.rows] == ["dense", "cp", "lcp"]
    *_, last = markdown_of(found.rows).splitlines()
    assert last.startswith("| lcp | a | 40.00 | 75.0 % |")


def test_colons_in_labels_and_folders(keep, results, pruned) -> None:
    keep("a:b", results(pruned("2:4 cp", 50.0), pruned("4:8 cp", 40.0)))
    assert [label for label, _ in labels("a:b:2:4 cp")] == ["dense", "2:4 cp"]
    assert [label for label, _ in labels("a:b")] == ["dense", "2:4 cp", "4:8 cp"]


def test_unfinished_folder_in_the_order_of_its_plan(keep, results, tmp_path: Path) -> None:
    keep("a", results())
    made, folder = results(), tmp_path / "a"
    (folder / "results.json").unlink()
    for number, run in enumerate((*made.runs[2:], made.runs[0])):
        place = folder / "runs" / f"{number}"
        place.mkdir(parents=True)
        alone = attrs.evolve(made, runs=(run,))
        (place / "result.json").write_text(json.dumps(alone.to_dict()))
    (folder / "events.jsonl").write_text(
        json.dumps({"event": "plan_started", "runs": ["dense", "none", "lcp", "cp"]}) + "\n"
    )
    assert [label for label, _ in labels("a")] == ["dense", "lcp", "cp"]


def test_repeats_are_means_and_single_ones_are_named(keep, study) -> None:
    keep("a", study(none=[100.0, 120.0], cp=[80.0, 100.0]), matrix={"repeat": 2})
    found = to_json(compare(["a"]))
    cp = found["rows"][2]
    assert (cp["label"], cp["n"], cp["figures"][FIGURE]) == ("cp", 2, 90.0)
    assert cp["difference"]["from"] == "none"
    assert cp["difference"]["figures"][FIGURE] == {
        "mean": -20.0,
        "error": 0.0,
        "lower": 2,
        "higher": 0,
        "count": 2,
    }
    assert compare(["a"]).warnings == ()
    found = compare(["a:cp #2", "a:none #2"])
    assert [row.setting.label for row in found.rows] == ["dense", "none #2", "cp #2"]
    assert [warned.message for warned in found.warnings] == [
        "'none #2' in a is one of 2 repeats",
        "'cp #2' in a is one of 2 repeats",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pattern": "4:8"}, "pattern: 2:4 in a; 4:8 in b"),
        ({"calibration__length": 8}, "calibration.length: 256 in a; 8 in b"),
        ({"calibration__sequences": 8}, "calibration.sequences: 16 in a; 8 in b"),
        ({"calibration__seed": 3}, "calibration.seed: 0 in a; 3 in b"),
        (
            {"calibration__dataset": {"name": "python-docs"}},
            "calibration.dataset: name=text, path=/a.txt in a; name=python-docs in b",
        ),
        ({"dtype": "bfloat16"}, "dtype: auto in a; bfloat16 in b"),
        ({"evaluate__0__length": 32}, "perplexity/python-docs: length: 256 in a; 32 in b"),
        ({"evaluate__0__max_tokens": None}, "perplexity/python-docs: max_tokens: 64 in a; none in"),
        ({"evaluate__1__length": 32}, "perplexity/wiki: length: 128 in a; 32 in b"),
        ({"evaluate__1__dataset__path": "/c/wiki.txt"}, "dataset.path: /b/wiki.txt in a; /c/"),
        ({"evaluate__2__limit": 5}, "accuracy/arc: limit: 100 in a; 5 in b"),
    ],
)
def test_other_pipelines_are_warned_of(keep, results, pruned, change, message: str) -> None:
    run = pruned("cp", 50.0)
    run = attrs.evolve(run, figures=run.figures | {"perplexity/wiki": 3.0, "accuracy/arc": 0.5})
    keep("a", results(run))
    keep("b", results(run), **change)
    keep("c", results(run))
    (said,) = warnings("a", "b")
    assert message in said
    assert " in a and c; " in warnings("a", "b", "c")[0]
    assert warnings("a", "c") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_fingerprint": "b" * 64}, "model: SmolLM2 (aaaaaaaaaaaa) in a; SmolLM2 (bbbbbbbb"),
        ({"calibration_fingerprint": "d" * 64}, "calibration text: cccccccccccc in a; dddddddd"),
        ({"threads": 8}, "threads: 2 in a; 8 in b"),
        ({"cuda_device": "H100"}, "CUDA device: none in a; H100 in b"),
        (
            {"versions": ENVIRONMENT["versions"] | {"torch": "2.5.0"}},
            "torch's version: 2.4.0 in a; 2.5.0 in b",
        ),
        ({"versions": ENVIRONMENT["versions"] | {"numpy": "2.1"}}, None),
    ],
)
def test_other_environments_are_warned_of(keep, results, change, message: str | None) -> None:
    keep("a", results())
    keep("b", results(), change)
    said = warnings("a", "b")
    assert [message in one for one in said] == [True] if message else said == []


def test_another_text_is_no_news_with_other_options(keep, results) -> None:
    keep("a", results())
    keep("b", results(), {"calibration_fingerprint": "d" * 64}, calibration__sequences=8)
    assert warnings("a", "b") == ["calibration.sequences: 16 in a; 8 in b"]


def test_what_a_matrix_varies_is_no_difference(keep, results, pruned) -> None:
    runs = [
        attrs.evolve(pruned(f"{pattern} cp", 50.0), options={"pattern": pattern})
        for pattern in ("2:4", "4:8")
    ]
    keep("a", results(*runs))
    keep("b", results(*runs))
    assert warnings("a") == warnings("a", "b") == []
    assert warnings("a:2:4 cp", "b:4:8 cp") == ["pattern: 2:4 in a; 4:8 in b"]
    assert warnings("a", "b:4:8 cp") == ["pattern: 2:4 and 4:8 in a; 4:8 in b"]


def test_seeds_of_repeats_are_no_difference(keep, study) -> None:
    keep("a", study(cp=[80.0, 100.0]), matrix={"repeat": 2})
    made = study(cp=[80.0, 100.0, 90.0])
    runs = [
        attrs.evolve(run, options=run.options | {"calibration.seed": 7 * run.repeat})
        for run in made.runs
    ]
    keep("b", attrs.evolve(made, runs=tuple(runs)), matrix={"repeat": 3})
    assert warnings("a", "b") == []


def test_csv_is_plain_numbers(keep, study, results, pruned, failed) -> None:
    keep("a", study(none=[100.0, 120.0], cp=[80.0, None]))
    keep("b", results(failed(pruned("x, y", 1.0), "two\nlines")))
    rows = list(csv.DictReader(io.StringIO(to_csv(compare(["a", "b"]).rows))))
    assert [row["method"] for row in rows] == ["dense", "none", "cp", "x, y"]
    assert rows[0]["from"] == "a b"
    assert float(rows[1][FIGURE]) == 110.0
    assert float(rows[1][f"{FIGURE} deviation"]) == pytest.approx(200**0.5)
    assert float(rows[2][f"{FIGURE} gap closed"]) == 0.25
    assert (rows[2]["n"], rows[2]["failed"], rows[2]["error"][:10]) == ("1", "1", "Arithmetic")
    assert (rows[3]["n"], rows[3][FIGURE], rows[3]["error"]) == ("0", "", "two lines")


def test_json_takes_what_is_not_finite(keep, results, pruned) -> None:
    keep("a", results(pruned("cp", float("inf"))))
    found = json.loads(json.dumps(to_json(compare(["a"])), allow_nan=False))
    assert found["rows"][1]["figures"][FIGURE] is None
    assert found["rows"][0]["seconds"] is None


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nowhere", "there is no folder 'nowhere'"),
        ("stuyd", "did you mean 'study'?"),
        ("study:lpc", "study has no run 'lpc'\n  hint: did you mean 'lcp'? known: cp, dense, lcp"),
        ("study:", "study has no run ''"),
        ("empty", "empty is no run's folder\n  hint: a run's folder has results.json or"),
        ("begun", "begun holds no run that is done"),
        (".", "there is one in study"),
        ("study/results.json", "is a file\n  hint: give the folder"),
        ("broken", "broken/results.json: this is not valid JSON"),
        ("foreign", "foreign/results.json: this holds no results of permllm"),
    ],
)
def test_mistakes(keep, results, tmp_path: Path, argument: str, message: str) -> None:
    keep("study", results())
    for name in ("empty", "begun", "broken", "foreign"):
        (tmp_path / name).mkdir()
    (tmp_path / "begun" / "pipeline.yaml").write_text("pattern: 2:4")
    if argument != ".":
        (tmp_path / "broken" / "results.json").write_text("{")
        (tmp_path / "foreign" / "results.json").write_text('{"runs": [{"x": 1}]}')
    with pytest.raises(UserError) as caught:
        compare([argument])
    assert message in str(caught.value)


def test_a_folder_that_lost_its_pipeline_is_still_shown(keep, results, tmp_path: Path) -> None:
    keep("a", results())
    keep("b", results(), pattern="4:8")
    for name in ("pipeline.yaml", "environment.json"):
        (tmp_path / "b" / name).unlink()
    assert len(labels("a", "b")) == 1 + 6
    assert warnings("a", "b") == []


@given(st.dictionaries(st.text("abc", min_size=1), st.sampled_from(["x", "y"]), min_size=1))
def test_messages_name_every_folder_once(values: dict[str, str]) -> None:
    said = Difference("threads", values).message()
    assert said.startswith("threads: ")
    named = [name for part in said[9:].split("; ") for name in part.split(" in ")[1].split(" and ")]
    assert sorted(named) == sorted(values)
