from __future__ import annotations

from typing import Any

import pytest
from permllm_lm_eval.figures import figures_of

from permllm.errors import UserError
from permllm.results import Results, RunResult

RESULTS: dict[str, dict[str, Any]] = {
    "quiz": {
        "name": "quiz",
        "alias": "quiz",
        "sample_len": 20,
        "acc,none": 0.25,
        "acc_stderr,none": 0.1,
        "f1,none": 1,
        "f1_stderr,none": "N/A",
    },
    "maths": {
        "alias": "maths",
        "exact_match,strict-match": 0.5,
        "exact_match_stderr,strict-match": 0.2,
        "exact_match,flexible": 0.75,
        "exact_match_stderr,flexible": 0.3,
    },
}


def named(*tasks: str, shots: int | None = None, metrics: tuple[str, ...] = ()) -> dict[str, float]:
    return figures_of(RESULTS, tasks, shots=shots, metrics=metrics)


def test_names() -> None:
    assert named("quiz") == {
        "lm-eval/quiz/acc": 0.25,
        "lm-eval/quiz/acc/stderr": 0.1,
        "lm-eval/quiz/f1": 1.0,
    }
    assert named("maths") == {
        "lm-eval/maths/exact_match/strict-match": 0.5,
        "lm-eval/maths/exact_match/strict-match/stderr": 0.2,
        "lm-eval/maths/exact_match/flexible": 0.75,
        "lm-eval/maths/exact_match/flexible/stderr": 0.3,
    }
    assert all(type(value) is float for value in named("quiz", "maths").values())


def test_a_number_of_examples_stands_in_the_name() -> None:
    assert list(named("quiz", shots=5))[:2] == [
        "lm-eval/quiz/5-shot/acc",
        "lm-eval/quiz/5-shot/acc/stderr",
    ]
    assert "lm-eval/quiz/0-shot/acc" in named("quiz", shots=0)


def test_only_some_metrics() -> None:
    assert named("quiz", "maths", metrics=("f1", "acc")) == named("quiz")
    with pytest.raises(UserError, match="none of the tasks has the metric 'exact-match'") as caught:
        named("quiz", "maths", metrics=("acc", "exact-match"))
    assert "did you mean 'exact_match'?" in str(caught.value.hint)


def test_a_metric_that_is_no_number() -> None:
    results = {"quiz": {"acc,none": 0.5, "parts,none": {"a": 1}}}
    with pytest.raises(UserError, match="'parts' of the task 'quiz' is no number but"):
        figures_of(results, ["quiz"], shots=None, metrics=())
    assert figures_of(results, ["quiz"], shots=None, metrics=("acc",)) == {"lm-eval/quiz/acc": 0.5}


def test_standard_errors_are_not_in_the_table() -> None:
    run = RunResult("dense", named("quiz", "maths"), 0.0, 0)
    heading = Results("toy", "", (run,)).table().splitlines()[0]
    assert heading.count("lm-eval") == 4
    assert "stderr" not in heading
