"""Datasets of Hugging Face, from the hub or from local files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs

from permllm.components import Dataset
from permllm.datasets.local_files import content_digest, label_of, matching_files
from permllm.errors import UserError, did_you_mean
from permllm.option import option

FORMATS = {
    ".arrow": "arrow",
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
}
"""The builder of ``datasets`` for each suffix of local files."""


@attrs.frozen
class HuggingFace(Dataset):
    """A dataset of the Hugging Face hub, or local files in its formats.

    Text is streamed: no more of a large dataset is fetched than is used.
    """

    name: ClassVar[str] = "huggingface"

    id: str | None = option(None, help="name on the hub, such as allenai/c4")
    revision: str | None = option(None, help="branch, tag or commit on the hub")
    config: str | None = option(None, help="configuration of the dataset, such as en")
    path: Path | None = option(
        None, help="in place of id: an Arrow, Parquet or JSON file, or a save_to_disk folder"
    )
    field: str = option("text", help="the column that holds the text")

    def __attrs_post_init__(self) -> None:
        if (self.id is None) == (self.path is None):
            raise ValueError("huggingface needs either id (a name on the hub) or path, not both")
        if self.path is not None and (self.revision or self.config):
            raise ValueError("huggingface: revision and config belong to id, not to path")

    def check(self) -> None:
        """Whether local files are there and of a known format; says nothing about the hub."""
        if self.path is not None and not self.path.is_dir():
            _builder(matching_files(self.path))

    def texts(self, split: str) -> Iterator[str]:
        """The column's texts that are not blank.

        Raises:
            UserError: the dataset, the split or the column is not there, or it has no
                text.
        """
        empty = True
        for row in self._rows(split):
            if self.field not in row:
                raise UserError(
                    f"{self._described()} has no column '{self.field}'",
                    hint=did_you_mean(self.field, row),
                )
            text = row[self.field]
            if text is not None and not isinstance(text, str):
                raise UserError(
                    f"the column '{self.field}' of {self._described()} must hold text, "
                    f"not {type(text).__name__}"
                )
            if text and text.strip():
                empty = False
                yield text
        if empty:
            raise UserError(f"{self._described()} has no text in its column '{self.field}'")

    def fingerprint(self, split: str) -> str:
        """The hash of the local files, or the commit that the hub has now.

        Raises:
            UserError: the hub does not answer.
        """
        if self.path is not None:
            return f"{content_digest(self.path)} {self.field} {split}"
        return f"{self.id} {self._commit()} {self.config} {self.field} {split}"

    def _commit(self) -> str:
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(str(self.id), revision=self.revision).sha)
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(
                f"cannot read {self._described()}: {first}",
                hint="check the name, the revision and the connection",
            ) from error

    def label(self) -> str:
        """The last part of the name on the hub, or the file's stem."""
        return label_of(self.path) if self.path else str(self.id).rpartition("/")[2]

    def _described(self) -> str:
        return f"'{self.path or self.id}'"

    def _rows(self, split: str) -> Iterator[Mapping[str, Any]]:
        # Late: datasets takes a second to import.
        import pyarrow
        from datasets.exceptions import DatasetsError

        try:
            yield from self._open(split)
        except (OSError, ValueError, RuntimeError, DatasetsError, pyarrow.ArrowException) as error:
            first = str(error).partition("\n")[0] or type(error).__name__
            hint = "check the name, the revision and the connection" if self.id else None
            raise UserError(f"cannot read {self._described()}: {first}", hint=hint) from error

    def _open(self, split: str) -> Any:
        """The rows of a split, streamed where that is possible."""
        import datasets

        if self.path is None:
            return datasets.load_dataset(
                self.id, self.config, split=split, revision=self.revision, streaming=True
            )
        if self.path.is_dir():
            dataset = datasets.load_from_disk(str(self.path))
            return _pick(dataset, split, self.path) if isinstance(dataset, dict) else dataset
        files = matching_files(self.path)
        # Streamed, so that datasets writes no copy of the files to its cache.
        return datasets.load_dataset(
            _builder(files), data_files=[str(file) for file in files], split="train", streaming=True
        )


def _pick(splits: Mapping[str, Any], split: str, path: Path) -> Any:
    if split not in splits:
        raise UserError(
            f"'{path}' has no split '{split}'",
            hint=f"it has {', '.join(splits)}; name the folder of one of them as the path",
        )
    return splits[split]


def _builder(files: list[Path]) -> str:
    """The builder for some files, by their suffix."""
    for file in files:
        if file.suffix not in FORMATS:
            raise UserError(
                f"'{file}' has no known format",
                hint=f"known: {', '.join(FORMATS)}, and folders written by save_to_disk",
            )
    builders = sorted({FORMATS[file.suffix] for file in files})
    if len(builders) > 1:
        raise UserError(f"the files are of more than one format: {', '.join(builders)}")
    return builders[0]
