"""Plain text files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import attrs

from permllm.components import Dataset
from permllm.datasets.local_files import content_digest, decode, label_of, matching_files, read
from permllm.errors import UserError
from permllm.option import option


@attrs.frozen
class Text(Dataset):
    """Plain text files in UTF-8; each file is one document."""

    name: ClassVar[str] = "text"

    path: Path = option(help="a file, or a glob such as texts/**/*.txt, taken in sorted order")

    def check(self) -> None:
        """Whether the file is there, or the glob matches one."""
        matching_files(self.path)

    def texts(self, split: str) -> Iterator[str]:
        """One text per file that is not blank; there are no splits.

        Raises:
            UserError: no file matches, one is not UTF-8, or none has text.
        """
        empty = True
        for file in matching_files(self.path):
            text = decode(read(file), file)
            if text.strip():
                empty = False
                yield text
        if empty:
            raise UserError(f"'{self.path}' has no text in it")

    def fingerprint(self, split: str) -> str:
        """The hash of the files' bytes."""
        return content_digest(self.path)

    def label(self) -> str:
        """The file's stem, or a glob's folder."""
        return label_of(self.path)
