"""Runs of several folders in one table, and what keeps them from being comparable."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import attrs
import pytest

from permllm.comparing.table import markdown_of
from permllm.errors import UserError
from permllm.report.across import compare, options, to_csv, to_json

FIGURE = "perplexity/python-docs"


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


def test_csv_is_plain_numbers(keep, study, results, pruned, failed) -> None:
    keep("a", study(none=[100.0, 120.0], cp=[80.0, None]))
    keep("b", results(failed(pruned("x, y", 1.0), "two\nlines")))
    rows = list(csv.DictReader(io.StringIO(to_csv(compare(["a", "b"]).rows))))
    methods = [(row["method"], row["repeat"]) for row in rows]
    assert methods == [
        ("dense", "0"),
        ("none", "0"),
        ("none", "1"),
        ("cp", "0"),
        ("cp", "1"),
        ("x, y", "0"),
    ]
    assert rows[0]["from"] == "a b"
    assert [row["layers.permutation"] for row in rows[:4]] == ["", "none", "none", "cp"]
    assert [float(row[FIGURE]) for row in rows[1:4]] == [100.0, 120.0, 80.0]
    assert float(rows[3][f"{FIGURE} gap closed"]) == 0.25
    assert (rows[0]["seconds"], float(rows[3]["seconds"])) == ("", 83.2)
    assert (rows[4][FIGURE], rows[4]["error"][:10]) == ("", "Arithmetic")
    assert (rows[5][FIGURE], rows[5]["error"]) == ("", "two lines")


def test_options_that_tell_runs_apart_are_columns(keep, results, pruned) -> None:
    start = {"name": "cp", "rounds": 2, "seed": 0}
    for folder, rounds in (("a", 2), ("b", 3)):
        run = attrs.evolve(
            pruned("cp", 50.0), options={"layers.permutation": start | {"rounds": rounds}}
        )
        keep(folder, results(run))
    head, *_ = to_csv(compare(["a", "b"]).rows).splitlines()
    assert head.startswith("method,from,repeat,layers.permutation,layers.permutation.rounds,")
    assert "seed" not in head
    assert "sparsity gap" not in head


def test_options_are_flat_and_as_they_are_written(pruned) -> None:
    run = attrs.evolve(
        pruned("cp", 1.0),
        options={
            "layers.permutation": {"name": "cp", "start": {"name": "none"}, "rounds": 3},
            "layers.skip": ["a", "b"],
            "layers.foldable": True,
            "pattern": "2:4",
            "evaluate.0.length": None,
        },
    )
    assert options(run) == {
        "layers.permutation": "cp",
        "layers.permutation.start": "none",
        "layers.permutation.rounds": "3",
        "layers.skip.0": "a",
        "layers.skip.1": "b",
        "layers.foldable": "true",
        "pattern": "2:4",
        "evaluate.0.length": "null",
    }


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
        ("broken", "broken/results.json:1:2: this is no JSON"),
        ("foreign", "foreign/results.json: this is damaged: runs[0]: object missing required"),
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
