"""Text as token sequences of one length, cut and chosen the same way every time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from permllm.components import Conversation, Dataset, Document, documents
from permllm.errors import UserError

CHAPTER_TOKENS = 1_000_000
"""How much text is read at least, and shuffled together, where there is as much."""

PIECE = 4_000_000
"""Characters from which a document is tokenised in pieces, cut at ends of lines."""


def calibration_sequences(
    dataset: Dataset,
    tokenizer: Any,
    *,
    length: int,
    sequences: int,
    held_out: int,
    seed: int,
    wish: int = 0,
) -> tuple[Tensor, Tensor]:
    """Sequences to learn from, and others to choose by, from the train split.

    The held-out ones are taken first: they stay the same, and stay apart, however
    many are asked for to learn from.

    Args:
        dataset, tokenizer, length, seed: as for :func:`cut`.
        sequences: how many to learn from.
        held_out: how many others.
        wish: how many to learn from if the text has so many, at least ``sequences``.

    Returns:
        ``LongTensor[n, length]`` with n from ``sequences`` to ``wish``, and
        ``LongTensor[held_out, length]``.

    Raises:
        UserError: the text is missing or too short.
    """
    tokens = cut(
        dataset,
        "train",
        tokenizer,
        length=length,
        count=held_out + max(sequences, wish),
        enough=held_out + sequences,
        seed=seed,
    )
    return tokens[held_out:], tokens[:held_out]


def cut(
    dataset: Dataset,
    split: str,
    tokenizer: Any,
    *,
    length: int,
    count: int,
    seed: int,
    enough: int | None = None,
) -> Tensor:
    """``count`` sequences of ``length`` tokens: ``LongTensor[count, length]``.

    Where the text has fewer, ``enough`` of them will do, and all that it has are given.

    The documents' tokens, joined by the end-of-text token where the tokenizer has one,
    are cut into consecutive sequences without overlap. These are taken in chapters of
    about a million tokens; within a chapter their order is shuffled. So the first
    sequences of a larger request are those of a smaller one with the same seed, and
    of a large dataset only the first chapters that are needed get read.

    Raises:
        UserError: the text is missing or too short.
    """
    generator = torch.Generator().manual_seed(seed)
    size = max(1, CHAPTER_TOKENS // length) * length
    chosen: list[Tensor] = [torch.empty(0, length, dtype=torch.long)]
    missing, available = count, 0
    if missing:
        texts = documents(dataset.texts(split), dataset)
        for tokens in _chapters(token_stream(texts, tokenizer), size):
            cuts = tokens[: len(tokens) // length * length].view(-1, length)
            chosen.append(cuts[torch.randperm(len(cuts), generator=generator)[:missing]])
            missing, available = missing - len(chosen[-1]), available + len(tokens)
            if not missing:
                break
        else:
            enough = count if enough is None else enough
            if count - missing < enough:
                raise too_short(dataset, available, enough * length, f"{enough} × {length}")
    return torch.cat(chosen)


def token_stream(texts: Iterable[Document], tokenizer: Any) -> Iterator[list[int]]:
    """Token ids, document by document, with the end-of-text token between documents.

    No beginning-of-text or other special token is added, but those of a chat template.

    Raises:
        UserError: as for :func:`plain_text`.
    """
    end = tokenizer.eos_token_id
    for index, text in enumerate(texts):
        if index and end is not None:
            yield [end]
        for piece in _pieces(plain_text(text, tokenizer)):
            yield tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]


def first_tokens(texts: Iterable[Document], tokenizer: Any, limit: int | None) -> Tensor:
    """The first ``limit`` tokens of some texts, or all of them: ``LongTensor[tokens]``."""
    tokens: list[int] = []
    for ids in token_stream(texts, tokenizer):
        tokens += ids
        if limit is not None and len(tokens) >= limit:
            break
    return torch.tensor(tokens[:limit], dtype=torch.long)


def plain_text(document: Document, tokenizer: Any) -> str:
    """A document as text; a conversation as the tokenizer's chat template writes it.

    Raises:
        UserError: the tokenizer has no chat template, or it does not take the messages.
    """
    if not isinstance(document, Conversation):
        return document
    try:
        text = str(tokenizer.apply_chat_template(list(document.messages), tokenize=False))
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _no_chat(
            document, "a message holds half of a character (a lone surrogate)"
        ) from error
    except Exception as error:
        # Templates are programs of their own, which say in errors of any kind what they refuse.
        if not getattr(tokenizer, "chat_template", None):
            hint = "calibrate a model with one, or name one text: field: messages.0.content"
            raise _no_chat(
                document, "these are messages, and the tokenizer has no chat template", hint
            ) from error
        first = str(error).partition("\n")[0]
        raise _no_chat(document, f"the chat template refuses these messages: {first}") from error
    return text.replace("\r\n", "\n")


def _no_chat(document: Conversation, what: str, hint: str | None = None) -> UserError:
    return UserError(what, file=document.file, line=document.line, hint=hint)


def too_short(dataset: Dataset, available: int, needed: int, wanted: str) -> UserError:
    """The error for a text with fewer tokens than asked for."""
    return UserError(
        f"dataset '{dataset.label()}' has {available:,} tokens where {needed:,} are needed "
        f"({wanted})",
        hint="ask for fewer or shorter sequences, or give it more text",
    )


def _chapters(stream: Iterable[list[int]], size: int) -> Iterator[Tensor]:
    """A stream of tokens in tensors of ``size``; the last holds what is left."""
    tokens: list[int] = []
    for ids in stream:
        tokens += ids
        while len(tokens) >= size:
            yield torch.tensor(tokens[:size], dtype=torch.long)
            tokens = tokens[size:]
    yield torch.tensor(tokens, dtype=torch.long)


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces that a tokenizer can hold, each up to the end of a line."""
    start = 0
    while len(text) - start > PIECE:
        end = text.rfind("\n", start, start + PIECE) + 1
        end = end if end > start else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]
