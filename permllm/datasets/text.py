"""Plain text files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import attrs

from permllm.components import Dataset
from permllm.datasets.local_files import content_digest, label_of, matching_files
from permllm.datasets.rows import unix_lines
from permllm.datasets.streams import check_encoding, whole
from permllm.errors import UserError
from permllm.option import option


@attrs.frozen
class Text(Dataset):
    """Plain text files, compressed or not; each file is one document."""

    name: ClassVar[str] = "text"

    path: Path = option(help="a file, or a glob such as texts/**/*.txt, taken in sorted order")
    encoding: str = option("utf-8", help="of the files, such as latin-1 or utf-16")

    def __attrs_post_init__(self) -> None:
        check_encoding(self.encoding)

    def check(self) -> None:
        """Whether the file is there, or the glob matches one."""
        matching_files(self.path)

    def texts(self, split: str) -> Iterator[str]:
        """One text per file that is not blank, with Unix line ends; there are no splits.

        Raises:
            UserError: no file matches, one is in another encoding, or none has text.
        """
        empty = True
        for file in matching_files(self.path):
            text = unix_lines(whole(file, self.encoding))
            if text.strip():
                empty = False
                yield text
        if empty:
            raise UserError(f"'{self.path}' has no text in it")

    def fingerprint(self, split: str) -> str:
        """The hash of the files' bytes, and their encoding."""
        return f"{content_digest(self.path)} {self.encoding}"

    def label(self) -> str:
        """The file's stem, or a glob's folder."""
        return label_of(self.path)
