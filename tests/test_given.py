"""What components give: mistakes are said in the component's own terms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from permllm.components import Conversation, documents
from permllm.errors import RunFailed
from permllm.given import Giver, by_name, permutation_fault, plain_figures, pruned_weight


class Mine:
    name = "mine"


METRIC, PRUNER, EVALUATOR = (Giver(kind, Mine()) for kind in ("metric", "pruner", "evaluator"))


def test_what_is_wrong_says_who_gave_it_and_where_that_is_defined() -> None:
    error = PRUNER.wrong("gave nothing")
    assert str(error) == "pruner 'mine' gave nothing"
    assert error.module == __name__


def test_a_mapping_is_given_back() -> None:
    given = {"q_proj": 1}
    assert by_name(given, METRIC, "scores") is given
    assert by_name(given, METRIC, "scores", ["q_proj", "k_proj"]) is given


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (None, "gave scores as None, where a dict by name is expected"),
        ([1], "gave scores as a list, where a dict by name is expected"),
        ({"q_porj": 1}, "gave scores for 'q_porj', which it was not asked for; did you mean 'q_pr"),
        ({3: 1}, "gave scores for 3, which it was not asked for$"),
    ],
)
def test_what_is_no_mapping_of_what_is_wanted_is_refused(given: Any, fault: str) -> None:
    with pytest.raises(RunFailed, match=f"^pruner 'mine' {fault}"):
        by_name(given, PRUNER, "scores", ["q_proj"])


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (torch.tensor([2, 0, 1]), None),
        (None, "it is None"),
        ([2, 0, 1], "it is a list, not a tensor"),
        (torch.tensor([1, 0]), "it is of shape (2,)"),
        (torch.tensor(1), "it is of shape ()"),
        (torch.tensor([2.0, 0.0, 1.0]), "it is of torch.float32, not of whole numbers"),
        (torch.tensor([2, 0, 0]), "it does not hold each of 0 to 2 once"),
    ],
)
def test_permutation_faults(given: Any, fault: str | None) -> None:
    assert permutation_fault(given, 3) == fault


DENSE = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (DENSE, r"a Tensor, where \(weight, mask\) is expected"),
        (None, r"None, where \(weight, mask\) is expected"),
        (([1.0], DENSE), "a list as its weight, where a tensor is expected"),
        ((DENSE[1:], DENSE), r"a weight of shape \(1, 4\), where the dense one has \(2, 4\)"),
        ((DENSE.double(), DENSE), "a weight of torch.float64, where the dense one is torch.float"),
        ((DENSE * torch.nan, DENSE), "NaN or infinite weights"),
    ],
)
def test_what_is_no_pruned_weight_is_refused(given: Any, fault: str) -> None:
    with pytest.raises(RunFailed, match=f"^pruner 'mine' gave q_proj {fault}"):
        pruned_weight(given, DENSE, PRUNER, "q_proj")


def test_the_pruned_weight_is_the_first_of_the_pair() -> None:
    assert pruned_weight((DENSE, DENSE > 0), DENSE, PRUNER, "q_proj") is DENSE


def test_figures_become_plain_numbers() -> None:
    given = {"a": 1, "b": torch.tensor(2.5), "c": torch.tensor([0.5]).numpy()[0], "d": True}
    plain = plain_figures(given, EVALUATOR)
    assert plain == {"a": 1.0, "b": 2.5, "c": 0.5, "d": 1.0}
    assert all(type(value) is float for value in plain.values())


@pytest.mark.parametrize("value", ["3", None, torch.ones(2), 1j])
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(RunFailed, match=r"^evaluator 'mine' gave 'a' as .*, where a number is exp"):
        plain_figures({"a": value}, EVALUATOR)


def test_no_figures_are_refused() -> None:
    with pytest.raises(RunFailed, match=r"^evaluator 'mine' gave figures as None, where a dict"):
        plain_figures(None, EVALUATOR)


def test_documents_are_passed_on_one_by_one() -> None:
    chat = Conversation(())
    given = documents(iter(["a", chat, 3]), Mine())
    assert [next(given), next(given)] == ["a", chat]
    with pytest.raises(RunFailed, match=r"^dataset 'mine' gave an int as a document, where a str"):
        next(given)


@pytest.mark.parametrize("given", [None, "text", b"text", 3])
def test_what_is_no_source_of_documents_is_refused(given: Any) -> None:
    with pytest.raises(RunFailed, match=r"^dataset 'mine' gave .*, where texts are expected$"):
        next(documents(given, Mine()))
