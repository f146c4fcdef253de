"""What keeps runs of several folders from being comparable."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from permllm.errors import UserError
from permllm.report.across import compare
from permllm.report.comparable import Difference, with_options

VERSIONS = {"permllm": "0.1.0", "torch": "2.4.0", "transformers": "5.0.0", "numpy": "2.0"}
"""Those of the folders that ``keep`` writes."""


def warnings(*arguments: str) -> list[str]:
    return [warned.message for warned in compare(arguments).warnings]


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
            {"versions": VERSIONS | {"torch": "2.5.0"}},
            "torch's version: 2.4.0 in a; 2.5.0 in b",
        ),
        ({"versions": VERSIONS | {"numpy": "2.1"}}, None),
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


@given(st.dictionaries(st.text("abc", min_size=1), st.sampled_from(["x", "y"]), min_size=1))
def test_messages_name_every_folder_once(values: dict[str, str]) -> None:
    said = Difference("threads", values).message()
    assert said.startswith("threads: ")
    named = [name for part in said[9:].split("; ") for name in part.split(" in ")[1].split(" and ")]
    assert sorted(named) == sorted(values)


@pytest.mark.parametrize("key", ["pattern.a.b", "evaluate.9.length", "evaluate.x", "9" * 5000])
def test_an_option_that_the_pipeline_has_no_place_for_is_damage(key: str) -> None:
    pipeline = {"pattern": "2:4", "evaluate": [{"name": "sparsity"}]}
    assert with_options(pipeline, {"pattern": "4:8"})["pattern"] == "4:8"
    with pytest.raises(UserError, match=r"no place: results\.json or pipeline\.yaml is damaged"):
        with_options(pipeline, {key: 1})
