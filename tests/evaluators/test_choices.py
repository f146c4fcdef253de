from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from permllm.contexts.evaluation import EvaluationContext
from permllm.errors import RunFailed, UserError
from permllm.evaluators.choices import Choices, Item, read_items, requests_of
from permllm.testing import check_evaluator
from permllm.testing.models import tiny_model
from permllm.testing.tokenizers import byte_tokenizer

QUESTIONS = [
    {"query": "Question: What is a cat?\nAnswer:", "choices": ["an animal", "red"], "gold": 0},
    {"query": "Question: What is two?\nAnswer:", "choices": ["a number", "up", "at"], "gold": 2},
    {"query": "Question: What is it?\nAnswer:", "choices": ["a", "b", "c", "dd"], "gold": 1},
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "quiz.jsonl"
    path.write_text("\n".join(json.dumps(question) for question in QUESTIONS))
    return path


def test_the_figures(path: Path, reference) -> None:
    model, tokenizer = tiny_model("llama-gqa"), byte_tokenizer()
    right, right_norm = [], []
    for question in QUESTIONS:
        context = tuple(tokenizer(question["query"])["input_ids"])
        scores = [
            reference(model, context, tuple(tokenizer(f" {choice}")["input_ids"]))
            for choice in question["choices"]
        ]
        norm = [s / len(c) for s, c in zip(scores, question["choices"], strict=True)]
        right.append(scores.index(max(scores)) == question["gold"])
        right_norm.append(norm.index(max(norm)) == question["gold"])
    found = Choices(path).evaluate(model, tokenizer, EvaluationContext())
    share, share_norm = sum(right) / 3, sum(right_norm) / 3
    assert found == {
        "accuracy/quiz": pytest.approx(share),
        "accuracy/quiz/stderr": pytest.approx(math.sqrt(share * (1 - share) / 2)),
        "accuracy_norm/quiz": pytest.approx(share_norm),
        "accuracy_norm/quiz/stderr": pytest.approx(math.sqrt(share_norm * (1 - share_norm) / 2)),
    }


def test_the_limit_takes_the_first_questions(path: Path) -> None:
    assert len(read_items(path, limit=2)) == 2
    found = Choices(path, limit=1).evaluate(
        tiny_model("llama-gqa"), byte_tokenizer(), EvaluationContext()
    )
    assert found["accuracy/quiz"] in (0.0, 1.0)
    assert found["accuracy/quiz/stderr"] == 0


def test_the_encoding_of_the_file(tmp_path: Path) -> None:
    question = '{"query": "Où?", "choices": ["là", "ici"], "gold": 0}'
    path = tmp_path / "quiz.jsonl"
    path.write_bytes(question.encode("latin-1"))
    with pytest.raises(UserError, match=r"not UTF-8.*\n.*encoding: latin-1"):
        Choices(path).check()
    Choices(path, encoding="latin-1").check()
    (item,) = read_items(path, encoding="latin-1")
    assert (item.query, item.choices) == ("Où?", ("là", "ici"))
    with pytest.raises(ValueError, match="encoding 'latin1x' is not known"):
        Choices(path, encoding="latin1x")


def test_contract(path: Path) -> None:
    check_evaluator(Choices(path))


def test_query_and_choice_are_tokenised_together() -> None:
    class Greedy:
        """A tokenizer whose token for 'a b' reaches over the border."""

        bos_token_id, eos_token_id = None, 9

        def __call__(self, texts: list[str], **options: object) -> dict[str, list[list[int]]]:
            known = {"": [], " b": [4, 2], " c": [4, 3], "a": [1], "a b": [12], "a c": [1, 4, 3]}
            return {"input_ids": [known[text] for text in texts]}

    one, two = requests_of(Item("a", ("b", "c"), 0), Greedy())
    # Nothing is left of the query where the first token covers both.
    assert (two.context, two.continuation) == ((1,), (4, 3))
    assert (one.context, one.continuation) == ((9,), (12,))
    alone, _ = requests_of(Item("", ("b", "c"), 0), Greedy())
    assert (alone.context, alone.continuation) == ((9,), (4, 2))


def test_blanks_after_the_query_belong_to_the_choice() -> None:
    tokenizer = byte_tokenizer()
    (request, _) = requests_of(Item("why  ", ("b", "c"), 0), tokenizer)
    assert tokenizer.decode(request.context) == "why"
    assert tokenizer.decode(request.continuation) == "   b"


def test_a_query_beyond_the_models_positions_loses_its_start() -> None:
    tokenizer = byte_tokenizer()
    (request, _) = requests_of(Item("0123456789", ("ab", "c"), 0), tokenizer, positions=8)
    assert tokenizer.decode(request.context) == "456789"
    assert tokenizer.decode(request.continuation) == " ab"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": 2}, "gold must be a whole number from 0 to 1, not 2"),
        ({"gold": True}, "gold must be a whole number"),
        ({"gold": "0"}, "gold must be a whole number"),
        ({"choices": ["one"]}, "choices must be a list of two"),
        ({"choices": ["one", " "]}, "every choice must be a text"),
        ({"query": 3}, "query must be a text"),
        ({"query": "\ud800"}, "a text holds half of a character"),
        ({"choices": ["one", "\udfff"]}, "a text holds half of a character"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text(json.dumps(QUESTIONS[0]) + "\n" + json.dumps(QUESTIONS[0] | change) + "\n")
    Choices(path).check()
    with pytest.raises(UserError, match=rf"quiz\.jsonl:2: {message}"):
        read_items(path)


def test_other_json_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "quiz.jsonl"
    path.write_text('{"question": "why?", "choices": ["a", "b"], "gold": 0}\n')
    with pytest.raises(UserError, match=r"quiz\.jsonl:1: no field 'query'"):
        Choices(path).check()
    path.write_text("\n")
    with pytest.raises(UserError, match="has no questions"):
        Choices(path).check()


def test_logits_that_are_not_finite_fail(path: Path) -> None:
    model = tiny_model("llama-gqa")
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(RunFailed, match=r"choices on 'quiz\.jsonl': the model's logits"):
        Choices(path).evaluate(model, byte_tokenizer(), EvaluationContext())
