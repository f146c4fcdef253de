"""Zero-shot multiple choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch

from permllm.components import Evaluator
from permllm.contexts.evaluation import EvaluationContext
from permllm.datasets.local_files import label_of, matching_files
from permllm.datasets.rows import is_whole, read_json
from permllm.datasets.streams import check_encoding
from permllm.errors import RunFailed, UserError, did_you_mean
from permllm.evaluators.likelihood import Request, log_likelihoods
from permllm.models.checks import check_tokens, positions_of
from permllm.option import option

TOKENS_PER_SEQUENCE = 256
"""How many tokens of a forward pass stand for one sequence of the batch size."""


@attrs.frozen
class Item:
    """A question.

    Attributes:
        query: the text before the choices.
        choices: the possible continuations; a blank goes between.
        gold: the index of the right one.
    """

    query: str
    choices: tuple[str, ...]
    gold: int


@attrs.frozen
class Choices(Evaluator):
    """Zero-shot accuracy on multiple-choice questions in JSON lines.

    Each line holds ``query``, ``choices`` and ``gold``, the index of the right choice. The
    model's choice is the one with the highest log-likelihood after the query and a blank
    (``accuracy``), or the highest per character of the choice (``accuracy_norm``); of
    equal ones, the first. Query and choice are tokenised together without special tokens.
    These are ``acc`` and ``acc_norm`` of lm-evaluation-harness with ``add_bos_token=False``.
    The standard error is that of the mean over the questions.
    """

    name: ClassVar[str] = "choices"
    parallel: ClassVar[bool] = True
    compares: ClassVar[bool] = False

    path: Path = option(help="a file of JSON lines with query, choices and gold")
    limit: int | None = option(None, help="use the first questions only; null for all", minimum=1)
    encoding: str = option("utf-8", help="of the file, such as latin-1 or utf-16")

    def __attrs_post_init__(self) -> None:
        check_encoding(self.encoding)

    def check(self) -> None:
        """Whether the file is there and begins with a question."""
        read_items(self.path, limit=1, encoding=self.encoding)

    def evaluate(self, model: Any, tokenizer: Any, context: EvaluationContext) -> dict[str, float]:
        """``accuracy/<stem>``, ``accuracy_norm/<stem>``, and each with ``/stderr``.

        Raises:
            UserError: the file is missing, or a line is no question.
            RunFailed: the model's logits are not finite.
        """
        items = read_items(self.path, self.limit, self.encoding)
        limit = positions_of(model.config)
        requests = [request for item in items for request in requests_of(item, tokenizer, limit)]
        for request in requests:
            whole = torch.tensor([[*request.context, *request.continuation]])
            # The last token is only scored.
            check_tokens(f"choices on '{self.path.name}'", whole[:, :-1], model, tokenizer)
        try:
            scores = log_likelihoods(
                model,
                requests,
                device=context.device,
                tokens=context.batch_size * TOKENS_PER_SEQUENCE,
                progress=context.progress,
                world=context.world,
            )
        except RunFailed as error:
            raise RunFailed(f"choices on '{self.path.name}': {error}") from error
        remaining = iter(scores)
        right, right_norm = [], []
        for item in items:
            own = [next(remaining) for _ in item.choices]
            per_character = [
                score / len(choice) for score, choice in zip(own, item.choices, strict=True)
            ]
            right.append(own.index(max(own)) == item.gold)
            right_norm.append(per_character.index(max(per_character)) == item.gold)
        label = label_of(self.path)
        return _mean(f"accuracy/{label}", right) | _mean(f"accuracy_norm/{label}", right_norm)


def read_items(path: Path, limit: int | None = None, encoding: str = "utf-8") -> list[Item]:
    """The questions of a file of JSON lines.

    Raises:
        UserError: there is no file, a line is no question, or there is none.
    """
    items: list[Item] = []
    for file in matching_files(path):
        for line, entry in read_json(file, encoding):
            if limit is not None and len(items) >= limit:
                return items
            items.append(_item(entry, file, line))
    if not items:
        raise UserError(f"'{path}' has no questions in it")
    return items


def requests_of(item: Item, tokenizer: Any, positions: int | None = None) -> list[Request]:
    """What the model is asked for each choice of a question.

    A continuation's tokens are those of query and choice together, after as many as
    the query alone has: tokens may reach over the border.

    Args:
        item: the question.
        tokenizer: the model's.
        positions: how many tokens the model can take; the start of a longer query is cut.
    """
    query = item.query.rstrip()
    blanks = item.query[len(query) :]
    texts = [f"{query}{blanks} {choice}" for choice in item.choices]
    context, *wholes = tokenizer([query, *texts], add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    requests = []
    for whole in wholes:
        border = min(len(context), len(whole) - 1)
        # Something has to stand before the first token that is scored.
        before, after = whole[:border] or [_first_token(tokenizer)], whole[border:]
        if positions is not None:
            before = before[-max(1, positions + 1 - len(after)) :]
        requests.append(Request(tuple(before), tuple(after)))
    return requests


def _first_token(tokenizer: Any) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _item(entry: dict[str, Any], path: Path, line: int) -> Item:
    def refuse(message: str, hint: str | None = None) -> UserError:
        return UserError(message, file=str(path), line=line, hint=hint)

    for key in ("query", "choices", "gold"):
        if key not in entry:
            raise refuse(f"no field '{key}' in this line", did_you_mean(key, entry))
    query, choices, gold = entry["query"], entry["choices"], entry["gold"]
    if not isinstance(query, str):
        raise refuse("query must be a text")
    if not isinstance(choices, list) or len(choices) < 2:
        raise refuse("choices must be a list of two texts or more")
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise refuse("every choice must be a text that is not blank")
    if not all(map(is_whole, (query, *choices))):
        raise refuse("a text holds half of a character (a lone surrogate such as \\ud800)")
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        raise refuse(f"gold must be a whole number from 0 to {len(choices) - 1}, not {gold!r}")
    return Item(query, tuple(choices), gold)


def _mean(name: str, right: Sequence[bool]) -> dict[str, float]:
    """The share of True, and its standard error with n - 1 degrees of freedom."""
    share = sum(right) / len(right)
    error = math.sqrt(share * (1 - share) / max(1, len(right) - 1))
    return {name: share, f"{name}/stderr": error}
