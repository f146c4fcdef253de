"""A pruned model as it would be served: in stored order, with gathers, its weights packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from permllm.contexts.evaluation import LinearReport
from permllm.core.patterns import Pattern
from permllm.folding.plan import StoragePlan
from permllm.formats.gathers import gathering
from permllm.formats.stored import in_stored_order
from permllm.models.decoder import Decoder
from permllm.sparse.models import packed


@contextmanager
def as_served(
    decoder: Decoder, storage: Callable[[], StoragePlan], patterns: Mapping[str, Pattern]
) -> Iterator[Sequence[LinearReport]]:
    """Have a model run as ``permllm.load(export, sparse=True)`` would, for the block.

    Its logits are those of the masked model but for rounding. Afterwards it is as it was, to
    the bit. Meanwhile its weights are held in both orders.

    Args:
        decoder: the model, holding the pruned weights in original order.
        storage: gives how it is stored in its permutations.
        patterns: of the pruned linears.

    Raises:
        UserError: a permutation can be neither folded nor gathered, or no linear can run packed.
    """
    plan = storage()
    with (
        in_stored_order(decoder, plan),
        gathering(decoder.model, plan),
        packed(decoder.model, patterns) as reports,
    ):
        yield reports
