from __future__ import annotations

import json
import logging
import os
import random
import re
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from permllm_lm_eval import evaluator
from permllm_lm_eval.evaluator import LmEval

from permllm.contexts.evaluation import EvaluationContext
from permllm.errors import RunFailed, UserError
from permllm.testing import check_evaluator
from permllm.testing.models import tiny_model
from permllm.testing.tokenizers import byte_tokenizer


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama-gqa")


def figures(model: Any, folder: Path, *tasks: str, **options: Any) -> dict[str, float]:
    return LmEval(tasks or ("quiz",), (folder,), **options).evaluate(
        model, byte_tokenizer(), EvaluationContext()
    )


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The contexts that the harness asks the model about."""
    from permllm_lm_eval.model import InMemoryModel

    seen: list[str] = []
    real = InMemoryModel._in_parts

    def spy(self: Any, answer: Any, requests: list[Any]) -> list[Any]:
        seen.extend(request.args[0] for request in requests)
        return real(self, answer, requests)

    monkeypatch.setattr(InMemoryModel, "_in_parts", spy)
    return seen


def test_contract(quiz: Path, no_network: list[Any]) -> None:
    check_evaluator(LmEval(("quiz",), (quiz,)))
    assert no_network == []


def test_names_limit_and_metrics(model: Any, quiz: Path, prompts: list[str]) -> None:
    found = figures(model, quiz, limit=5, metrics=("acc_norm",))
    assert list(found) == ["lm-eval/quiz/acc_norm", "lm-eval/quiz/acc_norm/stderr"]
    assert len(set(prompts)) == 5
    # One question has no standard error.
    assert list(figures(model, quiz, limit=1)) == ["lm-eval/quiz/acc", "lm-eval/quiz/acc_norm"]


def test_the_batch_size_is_used(model: Any, quiz: Path) -> None:
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args: sizes.append(len(args[0])) if args else None
    )
    figures(model, quiz, batch_size=7)
    assert max(sizes) == 7
    sizes.clear()
    figures(model, quiz)
    assert max(sizes) == EvaluationContext().batch_size
    hook.remove()


def test_few_shot(model: Any, quiz: Path, prompts: list[str]) -> None:
    found = figures(model, quiz, few_shot=2, metrics=("acc",))
    assert list(found) == ["lm-eval/quiz/2-shot/acc", "lm-eval/quiz/2-shot/acc/stderr"]
    assert {prompt.count("Question:") for prompt in prompts} == {3}
    first = list(prompts)
    prompts.clear()
    figures(model, quiz, few_shot=2, metrics=("acc",))
    assert prompts == first
    prompts.clear()
    figures(model, quiz, few_shot=2, metrics=("acc",), seed=1234)
    assert prompts == first
    prompts.clear()
    figures(model, quiz, few_shot=2, metrics=("acc",), seed=1)
    assert prompts != first


def test_a_tasks_own_number_of_examples(
    model: Any, quiz: Path, write_task: Any, prompts: list[str]
) -> None:
    write_task(num_fewshot=1)
    assert "lm-eval/quiz/acc" in figures(model, quiz, limit=2)
    assert {prompt.count("Question:") for prompt in prompts} == {2}
    write_task(num_fewshot=0)
    with pytest.raises(UserError, match="'quiz' says num_fewshot: 0"):
        figures(model, quiz, few_shot=1)
    assert "lm-eval/quiz/0-shot/acc" in figures(model, quiz, few_shot=0, limit=2)
    write_task()
    with pytest.raises(UserError, match=r"few_shot: 25 is too much .* 24 questions"):
        figures(model, quiz, few_shot=25)


def test_groups_and_tags(model: Any, quiz: Path, write_task: Any) -> None:
    for name in ("one", "two"):
        write_task(f"{name}.yaml", task=name, tag=["both"], num_fewshot=None)
    (quiz / "averaged.yaml").write_text(
        "group: averaged\ntask: [one, two]\naggregate_metric_list: [{metric: acc}]\n"
    )
    (quiz / "listed.yaml").write_text("group: listed\ntask: [quiz, averaged]\n")
    each = figures(model, quiz, "both", metrics=("acc",), limit=6)
    assert list(each)[::2] == ["lm-eval/one/acc", "lm-eval/two/acc"]
    mean = figures(model, quiz, "averaged", metrics=("acc",), limit=6)
    assert list(mean)[:1] == ["lm-eval/averaged/acc"]
    assert mean["lm-eval/averaged/acc"] == pytest.approx(each["lm-eval/one/acc"])
    names = list(figures(model, quiz, "listed", metrics=("acc",), limit=6))
    assert names[::2] == ["lm-eval/quiz/acc", "lm-eval/averaged/acc"]
    with pytest.raises(UserError, match="'one' is asked for twice, the second time by 'both'"):
        figures(model, quiz, "one", "both")


def test_perplexity_of_texts(model: Any, quiz: Path, write_task: Any) -> None:
    write_task(
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="query",
        doc_to_choice=None,
        metric_list=[{"metric": "byte_perplexity"}, {"metric": "word_perplexity"}],
    )
    found = figures(model, quiz, limit=3)
    assert list(found) == ["lm-eval/quiz/word_perplexity", "lm-eval/quiz/byte_perplexity"]
    tokenizer = byte_tokenizer()
    lines = (quiz.parent / "quiz.jsonl").read_text().splitlines()[:3]
    texts = [json.loads(line)["query"] for line in lines]
    total, count = 0.0, 0
    for text in texts:
        tokens = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            likely = model(tokens).logits[0, :-1].double().log_softmax(-1)
        total += float(likely.gather(1, tokens[0, 1:, None]).sum())
        count += len(text.encode())
    assert found["lm-eval/quiz/byte_perplexity"] == pytest.approx(np.exp(-total / count), rel=1e-4)


GENERATE = {
    "output_type": "generate_until",
    "doc_to_target": "{{choices[gold]}}",
    "doc_to_choice": None,
    "generation_kwargs": {
        "do_sample": True,
        "temperature": 1.5,
        "max_gen_toks": 6,
        "until": ["\n"],
    },
    "filter_list": [
        {"name": "first", "filter": [{"function": "take_first"}]},
        {
            "name": "letters",
            "filter": [
                {"function": "regex", "regex_pattern": "([a-z]+)"},
                {"function": "take_first"},
            ],
        },
    ],
    "metric_list": [{"metric": "chrf", "aggregation": "chrf", "higher_is_better": True}],
}


def test_generation_is_seeded(
    model: Any, quiz: Path, write_task: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    write_task(**GENERATE)
    found = figures(model, quiz, limit=4)
    assert list(found) == [
        "lm-eval/quiz/chrf/first",
        "lm-eval/quiz/chrf/first/stderr",
        "lm-eval/quiz/chrf/letters",
        "lm-eval/quiz/chrf/letters/stderr",
    ]
    torch.rand(3), random.random()
    assert figures(model, quiz, limit=4) == found
    assert figures(model, quiz, limit=4, seed=5) != found
    # Its standard error is bootstrapped, with a bar and with prints.
    assert capfd.readouterr() == ("", "")


def test_what_the_harness_changes_is_restored(
    model: Any, quiz: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def state() -> list[Any]:
        loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers")]
        return [
            dict(os.environ),
            random.getstate(),
            str(np.random.get_state()),
            torch.get_rng_state().tolist(),
            torch.is_grad_enabled(),
            [(one.level, list(one.handlers), one.propagate) for one in loggers],
        ]

    tokenizer, before = byte_tokenizer(), state()
    assert tokenizer.pad_token is None
    LmEval(("quiz",), (quiz,), few_shot=1).evaluate(model, tokenizer, EvaluationContext())
    assert state() == before
    assert tokenizer.pad_token is None
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_its_end(model: Any, quiz: Path) -> None:
    steps: list[tuple[int, int]] = []
    context = EvaluationContext(batch_size=1, progress=lambda *step: steps.append(step))
    LmEval(("quiz",), (quiz,)).evaluate(model, byte_tokenizer(), context)
    total = steps[0][1]
    assert total > 24
    assert steps[0] == (0, total)
    assert steps[-1] == (total, total)
    assert len(steps) > 3
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_logits_that_are_not_finite_fail(quiz: Path) -> None:
    model = tiny_model("llama-gqa")
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(RunFailed, match="lm-eval: the model's logits are not finite"):
        figures(model, quiz)


def test_changed_data_are_read_anew(model: Any, quiz: Path, prompts: list[str]) -> None:
    questions = quiz.parent / "quiz.jsonl"
    questions.write_text('{"query": "one?", "choices": ["a", "b"], "gold": 0}\n')
    figures(model, quiz)
    questions.write_text('{"query": "two?", "choices": ["a", "b"], "gold": 0}\n')
    figures(model, quiz)
    assert list(dict.fromkeys(prompts)) == ["one?", "two?"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ()}, "tasks must name a task"),
        ({"tasks": ("a", "b", "a")}, "tasks names 'a' twice"),
        ({"tasks": ("a",), "limit": 0}, "limit"),
        ({"tasks": ("a",), "few_shot": -1}, "few_shot"),
        ({"tasks": ("a",), "seed": 2**32}, "seed"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LmEval(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_to_text": "{{qery}}"}, r"quiz\.yaml: .*'qery' is undefined"),
        ({"test_split": "test"}, r"quiz\.yaml: the harness cannot load the task 'quiz': .*test"),
        ({"output_type": "choice"}, r"quiz\.yaml: .*Got invalid output_type 'choice'"),
        ({"metric_list": [{"metric": "ac"}]}, r"quiz\.yaml: .*ac not found in the evaluate lib"),
        (
            {"metric_list": [{"metric": "ac", "aggregation": "mean", "higher_is_better": True}]},
            "'quiz' has the metric 'ac', which is none of the harness's",
        ),
        ({"unsafe_code": True}, "'quiz' runs code that the model writes"),
        ({"doc_to_image": "query"}, "'quiz' has images or sounds"),
        ({"doc_to_target": "{{1 // (index - 20)}}"}, "cannot run 'quiz': ZeroDivisionError"),
    ],
)
def test_tasks_that_are_wrong(
    model: Any,
    quiz: Path,
    write_task: Any,
    changes: dict[str, Any],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_task(**changes)
    with pytest.raises(UserError) as caught:
        figures(model, quiz)
    assert re.search(message, str(caught.value)), caught.value
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")


def test_a_task_that_needs_the_network(
    model: Any, quiz: Path, write_task: Any, no_network: list[Any]
) -> None:
    write_task(dataset_path="owner/data", dataset_kwargs=None, tag=["remote"])
    hub = LmEval(("quiz",), (quiz,))
    with pytest.raises(UserError, match=r"quiz\.yaml: .*'owner/data' of the hub"):
        hub.check()
    # Of a tag's tasks, the harness finds it out.
    remote = LmEval(("remote",), (quiz,))
    remote.check()
    with pytest.raises(UserError, match="'remote' reads data that are not on this machine"):
        remote.evaluate(model, byte_tokenizer(), EvaluationContext())
    assert no_network == []


def test_a_tag_of_the_harness_that_needs_the_network(
    model: Any, everything: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from permllm_lm_eval import harness

    asked: list[dict[str, Any]] = []

    def manager(**options: Any) -> Any:
        asked.append(options)
        return everything

    monkeypatch.setattr(harness, "TaskManager", manager)
    tag = LmEval(("ai2_arc",))
    with pytest.raises(
        UserError, match=r"'ai2_arc' reads .* not on this machine: .*ai2_arc' on th"
    ):
        tag.evaluate(model, byte_tokenizer(), EvaluationContext())
    assert asked == [{"include_path": [], "include_defaults": True}]


@pytest.mark.parametrize("download", [True, False])
def test_the_network_is_switched_off_unless_allowed(
    model: Any, quiz: Path, monkeypatch: pytest.MonkeyPatch, download: bool
) -> None:
    seen: list[bool] = []
    real = datasets.load_dataset

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        seen.append(datasets.config.HF_HUB_OFFLINE)
        return real(*arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
    figures(model, quiz, limit=1, download=download)
    assert seen == [not download]


def test_metrics_are_checked_before_anything_runs(quiz: Path) -> None:
    with pytest.raises(UserError, match="none of the tasks has the metric 'acc_nrm'") as caught:
        LmEval(("quiz",), (quiz,), metrics=("acc_nrm",)).check()
    assert "did you mean 'acc_norm'?" in str(caught.value.hint)


def test_a_harness_that_cannot_be_imported(
    model: Any, quiz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "permllm_lm_eval.model", None)
    with pytest.raises(UserError, match="lm-eval cannot be imported") as caught:
        figures(model, quiz)
    assert caught.value.hint == "pip install --upgrade permllm-lm-eval"


def test_a_harness_that_does_not_fit(quiz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "version", lambda name: "0.4.3")
    with pytest.raises(UserError, match=r"needs lm-eval>=0\.4\.12,<0\.5, not 0\.4\.3") as caught:
        LmEval(("quiz",), (quiz,)).check()
    assert caught.value.hint == "pip install 'lm-eval>=0.4.12,<0.5'"

    def missing(name: str) -> str:
        raise evaluator.PackageNotFoundError(name)

    monkeypatch.setattr(evaluator, "version", missing)
    with pytest.raises(UserError, match="needs the package lm-eval"):
        LmEval(("quiz",), (quiz,)).check()
