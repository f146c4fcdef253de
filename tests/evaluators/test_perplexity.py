from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import cross_entropy

from permllm.components import Dataset
from permllm.contexts.evaluation import EvaluationContext
from permllm.datasets.huggingface import HuggingFace
from permllm.datasets.jsonl import JsonLines
from permllm.errors import RunFailed, UserError
from permllm.evaluators.perplexity import Perplexity
from permllm.testing import check_evaluator
from permllm.testing.models import tiny_model
from permllm.testing.tokenizers import byte_tokenizer


@attrs.frozen
class Poem(Dataset):
    """Two short texts."""

    name: ClassVar[str] = "poem"

    def texts(self, split: str) -> Iterator[str]:
        yield "the cat sat on the mat and the mat was flat"
        yield "so it got up and went away to find a hat"


def reference(model: Any, tokens: list[int], length: int, stride: int) -> float:
    """Perplexity token by token: each is scored once, after what its window holds before it."""
    losses, scored = [], set()
    for start in range(0, len(tokens) - length + 1, stride):
        window = torch.tensor([tokens[start : start + length]])
        logits = model(input_ids=window).logits[0].double()
        for place in range(1, length):
            if start + place not in scored:
                scored.add(start + place)
                losses.append(float(cross_entropy(logits[place - 1], window[0, place])))
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize(("length", "stride"), [(10, None), (10, 10), (10, 4), (10, 1), (16, 9)])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_it_is_the_exponential_of_the_mean_loss(
    length: int, stride: int | None, batch_size: int
) -> None:
    model, tokenizer = tiny_model("llama-gqa"), byte_tokenizer()
    first, second = Poem().texts("test")
    tokens = tokenizer(first)["input_ids"] + [256] + tokenizer(second)["input_ids"]
    perplexity = Perplexity(dataset=Poem(), length=length, stride=stride)
    found = perplexity.evaluate(model, tokenizer, EvaluationContext(batch_size=batch_size))
    with torch.no_grad():
        expected = reference(model, tokens, length, stride or length)
    assert found == {"perplexity/poem": pytest.approx(expected, rel=1e-4)}


def test_max_tokens_takes_the_first() -> None:
    model, tokenizer = tiny_model("llama-gqa"), byte_tokenizer()
    tokens = tokenizer(next(Poem().texts("test")))["input_ids"][:25]
    found = Perplexity(dataset=Poem(), length=10, max_tokens=25).evaluate(
        model, tokenizer, EvaluationContext()
    )
    with torch.no_grad():
        assert found["perplexity/poem"] == pytest.approx(reference(model, tokens, 10, 10), rel=1e-4)


def test_contract() -> None:
    check_evaluator(Perplexity(dataset=Poem(), length=12, stride=5))
    check_evaluator(Perplexity(length=64, max_tokens=512))


@attrs.frozen
class Rows(Dataset):
    """Lines as WikiText has them: with blanks around them, and blank ones between."""

    name: ClassVar[str] = "rows"

    def rows(self, split: str) -> Iterator[str]:
        for number in range(9):
            yield from ("", f" = Title {number} = \n", "", " It goes on and on . \n")

    def texts(self, split: str) -> Iterator[str]:
        return (row for row in self.rows(split) if row)


@torch.no_grad()
def published_loop(model: Any, tokenizer: Any, rows: list[str], seqlen: int) -> float:
    """The evaluation of GPTQ and Wanda, written down from their code.

    It keeps what is odd in it: each window's mean over its seqlen - 1 scored tokens counts
    seqlen times.
    """
    testenc = tokenizer("\n\n".join(rows), return_tensors="pt").input_ids
    nsamples = testenc.numel() // seqlen
    nlls = []
    for i in range(nsamples):
        batch = testenc[:, (i * seqlen) : ((i + 1) * seqlen)]
        lm_logits = model(batch).logits
        shift_logits = lm_logits[:, :-1, :].contiguous()
        shift_labels = batch[:, 1:]
        loss = torch.nn.CrossEntropyLoss()(
            shift_logits.view(-1, shift_logits.size(-1)), shift_labels.reshape(-1)
        )
        nlls.append(loss.float() * seqlen)
    return float(torch.exp(torch.stack(nlls).sum() / (nsamples * seqlen)))


def beginning_tokenizer() -> Any:
    """One that puts a token before each text by itself, as those of Llama do."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "!"})
    first = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer._tokenizer.post_processor = TemplateProcessing("!:0 $A:0", special_tokens=[first])
    assert tokenizer("a")["input_ids"] == [tokenizer.bos_token_id, *byte_tokenizer()("a").input_ids]
    return tokenizer


@pytest.mark.parametrize("make", [byte_tokenizer, beginning_tokenizer])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_published_protocol_is_that_of_the_papers(make: Any, batch_size: int) -> None:
    model, tokenizer = tiny_model("llama-gqa"), make()
    perplexity = Perplexity(dataset=Rows(), protocol="published", length=48)
    found = perplexity.evaluate(model, tokenizer, EvaluationContext(batch_size=batch_size))
    expected = published_loop(model, tokenizer, list(Rows().rows("test")), 48)
    assert found == {"perplexity/rows/published": pytest.approx(expected, rel=1e-5)}


def test_published_rows_of_a_file_are_joined_with_the_blank_ones(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama-gqa"), byte_tokenizer()
    rows = list(Rows().rows("test"))
    path = tmp_path / "wiki.jsonl"
    path.write_text("\n".join(json.dumps({"text": row}) for row in rows))
    for dataset in (JsonLines(path), HuggingFace(path=path)):
        perplexity = Perplexity(dataset=dataset, protocol="published", length=48)
        found = perplexity.evaluate(model, tokenizer, EvaluationContext())
        expected = published_loop(model, tokenizer, rows, 48)
        assert found == {"perplexity/wiki/published": pytest.approx(expected, rel=1e-5)}


def test_the_published_protocol_takes_the_whole_text_in_windows_of_2048() -> None:
    with pytest.raises(UserError, match="where 2,048 are needed"):
        Perplexity(dataset=Poem(), protocol="published").evaluate(
            tiny_model("llama-gqa"), byte_tokenizer(), EvaluationContext()
        )
    for options in ({"stride": 64}, {"max_tokens": 4096}):
        with pytest.raises(ValueError, match="must be left out with protocol: published"):
            Perplexity(protocol="published", **options)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stride \(20\) must not be more than length \(10\)"):
        Perplexity(length=10, stride=20)
    with pytest.raises(ValueError, match=r"max_tokens \(5\) must be at least length \(10\)"):
        Perplexity(length=10, max_tokens=5)


def test_a_short_text_and_a_short_model_are_refused() -> None:
    model, tokenizer = tiny_model("llama-gqa"), byte_tokenizer()
    with pytest.raises(UserError, match="'poem' has 84 tokens where 100 are needed"):
        Perplexity(dataset=Poem(), length=100).evaluate(model, tokenizer, EvaluationContext())
    with pytest.raises(UserError, match="length 500 is more than the 128 positions"):
        Perplexity(length=500).evaluate(model, tokenizer, EvaluationContext())


def test_logits_that_are_not_finite_fail() -> None:
    model = tiny_model("llama-gqa")
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(RunFailed, match="perplexity on 'poem': the model's logits"):
        Perplexity(dataset=Poem(), length=10).evaluate(model, byte_tokenizer(), EvaluationContext())
