"""What every source of text must do."""

from __future__ import annotations

from itertools import islice

from permllm.components import Conversation, Dataset
from permllm.testing.expect import expect


def check_dataset(dataset: Dataset, *, documents: int = 100) -> None:
    """Fail unless a source of text keeps to its interface.

    Each split gives texts that are not blank, in the same order every time, and the label
    is a short name.

    Args:
        dataset: one that has text.
        documents: how many of each split to read.
    """
    name = f"dataset '{dataset.name}'"
    dataset.check()
    label = dataset.label()
    expect(
        isinstance(label, str) and label.strip() and "\n" not in label and len(label) <= 100,
        f"{name}: label() must be a short name, not {label!r}",
    )
    for split in ("train", "test"):
        texts = list(islice(dataset.texts(split), documents))
        expect(texts, f"{name}: the split '{split}' has no texts")
        for index, text in enumerate(texts):
            expect(
                isinstance(text, Conversation) or (isinstance(text, str) and text.strip()),
                f"{name}: text {index} of '{split}' must be a str that is not blank",
            )
        again = list(islice(dataset.texts(split), documents))
        expect(again == texts, f"{name}: the split '{split}' comes in another order each time")
