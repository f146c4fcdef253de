"""Local files of rows, of which one field holds the documents: JSON and CSV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import attrs

from permllm.components import Dataset, Document
from permllm.datasets.local_files import content_digest, label_of, matching_files
from permllm.datasets.rows import Rows, document_of, is_blank, read_json, read_table
from permllm.datasets.streams import check_encoding
from permllm.errors import UserError
from permllm.option import option


@attrs.frozen
class JsonLines(Dataset):
    """JSON lines or a JSON array, compressed or not; one field of each object is a document.

    A document is a text, or a list of messages with ``role`` and ``content`` that the
    tokenizer's chat template makes a text of. Null and blank ones are left out.
    """

    name: ClassVar[str] = "jsonl"

    path: Path = option(help="a file, or a glob, taken in sorted order")
    field: str = option("text", help="what holds the text or the messages; if nested, meta.text")
    encoding: str = option("utf-8", help="of the files, such as latin-1 or utf-16")

    def __attrs_post_init__(self) -> None:
        check_encoding(self.encoding)

    def check(self) -> None:
        """Whether the file is there and its first row has the field."""
        for file in matching_files(self.path):
            for line, row in self._read(file):
                document_of(row, self.field, str(file), line)
                break

    def texts(self, split: str) -> Iterator[Document]:
        """One document per row where it is not blank; there are no splits.

        Raises:
            UserError: no file matches, a row is broken or lacks the field, or none has
                text.
        """
        empty = True
        for document in self.rows(split):
            if not is_blank(document):
                empty = False
                yield document
        if empty:
            raise UserError(f"'{self.path}' has no text in its field '{self.field}'")

    def rows(self, split: str) -> Iterator[Document]:
        """One document per row, blank ones too."""
        for file in matching_files(self.path):
            for line, row in self._read(file):
                yield document_of(row, self.field, str(file), line)

    def fingerprint(self, split: str) -> str:
        """The hash of the files' bytes, and how they are read."""
        return " ".join((content_digest(self.path), self.field, self.encoding))

    def label(self) -> str:
        """The file's stem, or a glob's folder."""
        return label_of(self.path)

    def _read(self, file: Path) -> Rows:
        return read_json(file, self.encoding)


@attrs.frozen
class Csv(JsonLines):
    """CSV or TSV, compressed or not; one column holds the documents, named in the first row.

    Blank cells are left out.
    """

    name: ClassVar[str] = "csv"

    delimiter: str | None = option(
        None, help="what stands between cells; null for a tab in .tsv and a comma else"
    )

    def __attrs_post_init__(self) -> None:
        check_encoding(self.encoding)
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ValueError(f"delimiter must be one character, not {self.delimiter!r}")

    def fingerprint(self, split: str) -> str:
        """The hash of the files' bytes, and how they are read."""
        return f"{JsonLines.fingerprint(self, split)} {self.delimiter}"

    def _read(self, file: Path) -> Rows:
        return read_table(file, self.encoding, self.delimiter)
