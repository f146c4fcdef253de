"""The contract of datasets lets good ones pass, and says what is wrong with bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import attrs

from permllm.components import Dataset
from permllm.testing import check_dataset


@attrs.frozen(eq=False)
class AnyDataset(Dataset):
    """Texts by a function."""

    name: ClassVar[str] = "any"
    function: Any

    def texts(self, split: str) -> Iterator[str]:
        yield from self.function()


def test_bad_datasets(fails) -> None:
    check_dataset(AnyDataset(lambda: ["one", "two"]))
    fails(check_dataset, AnyDataset(list), "the split 'train' has no texts")
    fails(check_dataset, AnyDataset(lambda: ["one", " "]), "text 1 of 'train' must be a str")
    counter = iter(range(100))
    fails(check_dataset, AnyDataset(lambda: [str(next(counter))]), "in another order each time")
