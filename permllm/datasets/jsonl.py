"""JSON lines: one object with a text in each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import attrs

from permllm.components import Dataset
from permllm.datasets.local_files import content_digest, decode, label_of, matching_files
from permllm.errors import UserError, did_you_mean
from permllm.option import option


@attrs.frozen
class JsonLines(Dataset):
    """JSON lines; one field of each line is a document."""

    name: ClassVar[str] = "jsonl"

    path: Path = option(help="a file of JSON lines, or a glob, taken in sorted order")
    field: str = option("text", help="the key of each line's text")

    def check(self) -> None:
        """Whether the file is there and its first line has the field."""
        for file in matching_files(self.path):
            for line, entry in read_json_lines(file):
                text_of(entry, self.field, file, line)
                break

    def texts(self, split: str) -> Iterator[str]:
        """One text per line where it is not blank; there are no splits.

        Raises:
            UserError: no file matches, a line is broken or lacks the field, or none has
                text.
        """
        empty = True
        for file in matching_files(self.path):
            for line, entry in read_json_lines(file):
                text = text_of(entry, self.field, file, line)
                if text.strip():
                    empty = False
                    yield text
        if empty:
            raise UserError(f"'{self.path}' has no text in its field '{self.field}'")

    def fingerprint(self, split: str) -> str:
        """The hash of the files' bytes and the field's name."""
        return content_digest(self.path) + self.field

    def label(self) -> str:
        """The file's stem, or a glob's folder."""
        return label_of(self.path)


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines with their line numbers; blank lines are left out.

    Raises:
        UserError: a line is not UTF-8, not JSON or no object.
    """
    start = 0
    with _opened(path) as file:
        for line, data in enumerate(file, start=1):
            text = decode(data, path, start=start, line=line)
            start += len(data)
            if text.strip():
                yield line, _parse(text, path, line)


def text_of(entry: dict[str, Any], field: str, path: Path, line: int) -> str:
    """The text in a line's ``field``.

    Raises:
        UserError: there is no such field, or it holds something else than characters.
    """
    if field not in entry:
        raise UserError(
            f"no field '{field}' in this line",
            file=str(path),
            line=line,
            hint=did_you_mean(field, entry),
        )
    value = entry[field]
    if not isinstance(value, str):
        raise UserError(
            f"the field '{field}' must hold a text, not {json.dumps(value)[:60]}",
            file=str(path),
            line=line,
        )
    if not is_whole(value):
        raise UserError(
            f"the field '{field}' holds half of a character (a lone surrogate such as \\ud800)",
            file=str(path),
            line=line,
        )
    return value


def is_whole(text: str) -> bool:
    """Whether a text has no half of a character, which JSON may escape, and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error


def _parse(text: str, path: Path, line: int) -> dict[str, Any]:
    try:
        entry = json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        raise UserError(
            f"this line is not JSON: {error.msg}", file=str(path), line=line, column=error.colno
        ) from error
    except RecursionError as error:
        raise UserError("this line is nested too deeply", file=str(path), line=line) from error
    except ValueError as error:
        raise UserError("a number is too long", file=str(path), line=line) from error
    if not isinstance(entry, dict):
        raise UserError(
            f'expected an object such as {{"text": …}}, not {text.strip()[:60]}',
            file=str(path),
            line=line,
        )
    return entry
