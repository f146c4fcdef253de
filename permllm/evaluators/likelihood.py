"""Log-likelihoods of continuations, where many continuations share a context."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.models.checks import not_finite
from permllm.world import ALONE, World


@attrs.frozen
class Request:
    """A continuation whose log-likelihood after a context is wanted.

    Attributes:
        context: token ids, at least one.
        continuation: token ids, at least one.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@torch.no_grad()
def log_likelihoods(
    model: Any,
    requests: Sequence[Request],
    *,
    device: str,
    tokens: int,
    progress: Callable[[int, int], None],
    world: World = ALONE,
) -> list[float]:
    """The summed log-likelihood of each continuation, in nats.

    A context is read once for all its continuations where the model has a cache of keys
    and values, and with each of them where it has none.

    Args:
        model: a causal language model of transformers.
        requests: what is wanted.
        device: where the model's inputs go.
        tokens: how many tokens a forward pass may have, at least one sequence.
        progress: is told how many requests are done, of how many.
        world: the processes that read them, each some; all get all.

    Raises:
        RunFailed: the logits are not finite; a UserError where that is for float16.
    """
    scores: dict[Request, float] = {}
    wanted: dict[tuple[int, ...], list[Request]] = {}
    for request in dict.fromkeys(requests):
        wanted.setdefault(request.context, []).append(request)
    batches = list(_batches_of_equal_length(wanted, tokens))
    lengths = [float(len(contexts) * len(contexts[0])) for contexts in batches]
    own = [batches[place] for place in world.fair(lengths)]
    total = sum(len(wanted[context]) for contexts in own for context in contexts)
    progress(0, total)
    for contexts in own:
        after = [request for context in contexts for request in wanted[context]]
        scores |= _score(model, contexts, after, device, tokens)
        if not all(torch.tensor([scores[request] for request in after]).isfinite()):
            raise not_finite("the model's logits are not finite", model)
        progress(len(scores), total)
    scores = dict(world.gathered(list(scores.items())))
    return [scores[request] for request in requests]


def _score(
    model: Any,
    contexts: list[tuple[int, ...]],
    requests: list[Request],
    device: str,
    tokens: int,
) -> dict[Request, float]:
    """The log-likelihoods of all continuations of some contexts of one length."""
    output = _forward(model, torch.tensor(contexts, device=device), keep=1, use_cache=True)
    # The context's last token says how likely each continuation's first one is.
    first = output.logits[:, -1].float().log_softmax(-1)
    place = {context: index for index, context in enumerate(contexts)}
    scores = {r: float(first[place[r.context], r.continuation[0]]) for r in requests}
    longer = [request for request in requests if len(request.continuation) > 1]
    cache = _cache(model, output)
    for part in _batches_by_length(longer, tokens, len(contexts[0]) if cache is None else 0):
        rows = [place[request.context] for request in part]
        for request, rest in zip(part, _rest(model, part, rows, cache, device), strict=True):
            scores[request] += rest
    return scores


def _rest(
    model: Any, requests: list[Request], rows: list[int], cache: Any, device: str
) -> list[float]:
    """The log-likelihoods of the continuations without their first tokens.

    Args:
        model: the model.
        requests: with contexts of one length.
        rows: each request's row in the cache.
        cache: keys and values of the contexts, or None to read these anew.
        device: where the model's inputs go.
    """
    inputs = [request.continuation[:-1] for request in requests]
    options: dict[str, Any] = {"use_cache": False}
    keep = max(map(len, inputs))
    if cache is None:
        inputs = [request.context + request.continuation[:-1] for request in requests]
    else:
        # The model appends to a cache, and others need this one as it is.
        own = copy.deepcopy(cache)
        own.batch_select_indices(torch.tensor(rows, device=device))
        options = {"use_cache": True, "past_key_values": own}
    output = _forward(model, _padded(inputs, device), keep=keep, **options)
    results = []
    for request, logits in zip(requests, output.logits[:, -keep:], strict=True):
        targets = torch.tensor(request.continuation[1:], device=device)
        likely = logits[: len(targets)].float().log_softmax(-1)
        results.append(float(likely.gather(1, targets[:, None]).sum()))
    return results


def _forward(model: Any, inputs: Tensor, *, keep: int, **options: Any) -> Any:
    """The model's output, with the logits of the last ``keep`` positions at least."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = keep
    return model(input_ids=inputs, **options)


def _cache(model: Any, output: Any) -> Any:
    """The output's keys and values if rows can be picked from all of them, else None."""
    cache = getattr(output, "past_key_values", None)
    # Layers that are no attention keep a state of another kind in some caches.
    parts = [cache, *getattr(cache, "layers", ())]
    picks = all(hasattr(part, "batch_select_indices") for part in parts)
    return cache if picks and not getattr(model, "_is_stateful", False) else None


def _padded(rows: Sequence[tuple[int, ...]], device: str) -> Tensor:
    """Rows of tokens padded on the right, where causal attention never looks."""
    longest = max(map(len, rows))
    return torch.tensor([row + (0,) * (longest - len(row)) for row in rows], device=device)


def _batches_of_equal_length(
    contexts: dict[tuple[int, ...], list[Request]], tokens: int
) -> Iterator[list[tuple[int, ...]]]:
    """Contexts of one length each, the longest first."""
    ordered = sorted(contexts, key=len, reverse=True)
    for length, group in groupby(ordered, key=len):
        alike, size = list(group), max(1, tokens // length)
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _batches_by_length(
    requests: list[Request], tokens: int, context: int
) -> Iterator[list[Request]]:
    """Requests of like length, as many as keep to ``tokens`` when padded."""
    ordered = sorted(requests, key=lambda request: len(request.continuation), reverse=True)
    while ordered:
        size = max(1, tokens // (context + len(ordered[0].continuation) - 1))
        yield ordered[:size]
        ordered = ordered[size:]
