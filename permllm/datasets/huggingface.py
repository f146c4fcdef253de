"""Datasets of Hugging Face, from the hub or from local files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs

from permllm.components import Dataset, Document
from permllm.datasets.local_files import content_digest, label_of, matching_files
from permllm.datasets.rows import Rows, document_of, is_blank, read_json, read_table
from permllm.datasets.streams import check_encoding, uncompressed_name
from permllm.errors import UserError
from permllm.option import option

FORMATS = {
    ".arrow": "arrow",
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
"""The format of local files by their names' suffix, compression left aside."""

READERS: dict[str, Callable[[Path, str], Rows]] = {"json": read_json, "csv": read_table}
"""What reads formats with lines, which errors can name; ``datasets`` reads the others."""


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
        None, help="in place of id: a Parquet, Arrow, JSON or CSV file, or a save_to_disk folder"
    )
    field: str = option("text", help="what holds the text or the messages; if nested, meta.text")
    encoding: str = option("utf-8", help="of local JSON and CSV files")

    def __attrs_post_init__(self) -> None:
        check_encoding(self.encoding)
        if (self.id is None) == (self.path is None):
            raise ValueError("huggingface needs either id (a name on the hub) or path, not both")
        if self.path is not None and (self.revision or self.config):
            raise ValueError("huggingface: revision and config belong to id, not to path")

    def check(self) -> None:
        """Whether local files are there and of a known format; says nothing about the hub."""
        if self.path is not None and not self.path.is_dir():
            _format_of(matching_files(self.path))

    def texts(self, split: str) -> Iterator[Document]:
        """The column's documents that are not blank.

        Raises:
            UserError: the dataset, the split or the column is not there, or it has no
                text.
        """
        empty = True
        for document in self.rows(split):
            if not is_blank(document):
                empty = False
                yield document
        if empty:
            raise UserError(f"{self._described()} has no text in its field '{self.field}'")

    def rows(self, split: str) -> Iterator[Document]:
        """The column's documents, blank ones too."""
        for file, line, row in self._rows(split):
            yield document_of(row, self.field, file, line)

    def fingerprint(self, split: str) -> str:
        """The hash of the local files, or the commit that the hub has now.

        Raises:
            UserError: the hub does not answer.
        """
        if self.path is not None:
            return f"{content_digest(self.path)} {self.field} {self.encoding} {split}"
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

    def _rows(self, split: str) -> Iterator[tuple[str, int | None, Mapping[str, Any]]]:
        """The rows of a split, with the file and the line of each where it has one."""
        files = matching_files(self.path) if self.path and not self.path.is_dir() else []
        read = READERS.get(_format_of(files)) if files else None
        if read is None:
            for row in self._streamed(split, files):
                yield str(self.path or self.id), None, row
        else:
            for file in files:
                for line, row in read(file, self.encoding):
                    yield str(file), line, row

    def _streamed(self, split: str, files: list[Path]) -> Iterator[Mapping[str, Any]]:
        # Late: datasets takes a second to import.
        import pyarrow
        from datasets.exceptions import DatasetsError

        try:
            yield from self._open(split, files)
        except (OSError, ValueError, RuntimeError, DatasetsError, pyarrow.ArrowException) as error:
            first = str(error).partition("\n")[0] or type(error).__name__
            hint = "check the name, the revision and the connection" if self.id else None
            raise UserError(f"cannot read {self._described()}: {first}", hint=hint) from error

    def _open(self, split: str, files: list[Path]) -> Any:
        """The rows of a split, streamed where that is possible."""
        import datasets

        if self.path is None:
            return datasets.load_dataset(
                self.id, self.config, split=split, revision=self.revision, streaming=True
            )
        if self.path.is_dir():
            dataset = datasets.load_from_disk(str(self.path))
            return _pick(dataset, split, self.path) if isinstance(dataset, dict) else dataset
        # Streamed, so that datasets writes no copy of the files to its cache.
        return datasets.load_dataset(
            _format_of(files),
            data_files=[str(file) for file in files],
            split="train",
            streaming=True,
        )


def _pick(splits: Mapping[str, Any], split: str, path: Path) -> Any:
    if split not in splits:
        raise UserError(
            f"'{path}' has no split '{split}'",
            hint=f"it has {', '.join(splits)}; name the folder of one of them as the path",
        )
    return splits[split]


def _format_of(files: list[Path]) -> str:
    """The format of some files, by their names."""
    suffixes = {file: uncompressed_name(file).suffix for file in files}
    for file, suffix in suffixes.items():
        if suffix not in FORMATS:
            raise UserError(
                f"'{file}' has no known format",
                hint=f"known: {', '.join(FORMATS)}, and folders written by save_to_disk",
            )
    formats = sorted({FORMATS[suffix] for suffix in suffixes.values()})
    if len(formats) > 1:
        raise UserError(f"the files are of more than one format: {', '.join(formats)}")
    return formats[0]
