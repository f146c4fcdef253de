from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import attrs
import pytest
import torch

from permllm.contexts.evaluation import EvaluationContext
from permllm.errors import RunFailed, UserError
from permllm.evaluators.fidelity import Fidelity
from permllm.testing import check_evaluator
from permllm.testing.models import tiny_model
from permllm.testing.tokenizers import byte_tokenizer


def test_contract() -> None:
    check_evaluator(Fidelity())


def context_of(model: Any, dense: Any, **options: Any) -> EvaluationContext:
    """A context whose dense model is ``dense``; ``model`` is the pruned one."""

    @contextmanager
    def swapped() -> Iterator[None]:
        kept = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(dense.state_dict())
        try:
            yield
        finally:
            model.load_state_dict(kept)

    tokens = torch.randint(257, (5, 12), generator=torch.Generator().manual_seed(0))
    return EvaluationContext(held_out=tokens, dense=swapped, **options)


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_definitions(batch_size: int) -> None:
    model, dense = tiny_model("llama-gqa", seed=1), tiny_model("llama-gqa", seed=0)
    context = context_of(model, dense, batch_size=batch_size)
    assert context.held_out is not None
    ours = model(input_ids=context.held_out, output_hidden_states=True)
    theirs = dense(input_ids=context.held_out, output_hidden_states=True)
    likely = theirs.logits.double().log_softmax(-1)
    kl = (likely.exp() * (likely - ours.logits.double().log_softmax(-1))).sum(-1).mean()
    cosine = torch.cosine_similarity(ours.hidden_states[-1], theirs.hidden_states[-1], dim=-1)
    found = Fidelity().evaluate(model, byte_tokenizer(), context)
    assert found["fidelity/kl"] == pytest.approx(float(kl), rel=1e-4)
    assert found["fidelity/cosine"] == pytest.approx(float(cosine.mean()), rel=1e-4)


def test_a_model_equals_itself() -> None:
    model = tiny_model("llama-gqa")
    found = Fidelity().evaluate(model, byte_tokenizer(), context_of(model, tiny_model("llama-gqa")))
    assert found == {"fidelity/kl": 0, "fidelity/cosine": pytest.approx(1)}


def test_what_it_needs_is_asked_for() -> None:
    model, tokenizer = tiny_model("llama-gqa"), byte_tokenizer()
    context = EvaluationContext(held_out=torch.zeros(0, 8, dtype=torch.long), dense=nullcontext)
    with pytest.raises(UserError, match=r"set calibration\.held_out"):
        Fidelity().evaluate(model, tokenizer, context)
    tokens = torch.zeros(1, 8, dtype=torch.long)
    with pytest.raises(UserError, match="which only a pipeline has"):
        Fidelity().evaluate(model, tokenizer, attrs.evolve(context, held_out=tokens, dense=None))


def test_logits_that_are_not_finite_fail() -> None:
    model = tiny_model("llama-gqa")
    context = context_of(model, tiny_model("llama-gqa"))
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(RunFailed, match="fidelity: the model's logits"):
        Fidelity().evaluate(model, byte_tokenizer(), context)
