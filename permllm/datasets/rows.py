"""Rows of local files (JSON lines, JSON arrays, CSV, TSV), and the documents in their fields."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from permllm.components import Conversation, Document
from permllm.datasets.streams import CHUNK, LONGEST_LINE, check_length, chunks, lines
from permllm.datasets.streams import uncompressed_name as uncompressed
from permllm.errors import UserError, did_you_mean

DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""What stands between the cells of a table, by its name's suffix."""

Rows = Iterable[tuple[int, Mapping[str, Any]]]
"""Rows with the lines that they begin in."""


def read_json(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of JSON lines or of a JSON array, with the lines that they begin in.

    Blank lines are left out.

    Raises:
        UserError: the file cannot be read, or one is not JSON or no object.
    """
    start = next(chunks(path, encoding), "").lstrip()
    values = _items(path, encoding) if start.startswith("[") else _lines(path, encoding)
    for line, value in values:
        if not isinstance(value, dict):
            raise UserError(
                f'expected an object such as {{"text": …}}, not {json.dumps(value)[:60]}',
                file=str(path),
                line=line,
            )
        yield line, value


def read_table(
    path: Path, encoding: str = "utf-8", delimiter: str | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV or TSV file by the names in its first, with the lines they begin in.

    Args:
        path: the file.
        encoding: of the file.
        delimiter: what stands between cells; None for what the file's name says.

    Raises:
        UserError: the file cannot be read, or a row has other cells than the first.
    """
    delimiter = delimiter or DELIMITERS.get(uncompressed(path).suffix, ",")
    # The module has one limit for all, which is far below a long document.
    csv.field_size_limit(LONGEST_LINE)
    table = csv.reader(
        (text for _, text in lines(path, encoding)), delimiter=delimiter, strict=True
    )
    header: list[str] | None = None
    line = 1
    try:
        for cells in table:
            if header is None:
                header = cells
            elif cells and len(cells) != len(header):
                raise UserError(
                    f"{len(cells)} cells in this row, where the first row names {len(header)}",
                    file=str(path),
                    line=line,
                )
            elif cells:
                yield line, dict(zip(header, cells, strict=True))
            line = table.line_num + 1
    except csv.Error as error:
        raise UserError(f"this is no CSV: {error}", file=str(path), line=line) from error


def document_of(row: Mapping[str, Any], field: str, file: str, line: int | None = None) -> Document:
    """The text or the conversation in a row's field; an empty text where it is null.

    Windows line ends become Unix ones: they make other tokens of the same text.

    Args:
        row: values by name.
        field: a name, or a path of names and indices within (``meta.text``).
        file, line: where the row stands.

    Raises:
        UserError: there is no such field, or it holds something else.
    """
    value = _value_at(row, field, file, line)
    if value is None or value == []:
        return ""
    if isinstance(value, list):
        messages = [message for message in map(_message, value) if message is not None]
        if len(messages) == len(value):
            return Conversation(tuple(messages), file, line)
    if not isinstance(value, str):
        raise UserError(
            f"the field '{field}' must hold a text, not {json.dumps(value, default=str)[:60]}",
            file=file,
            line=line,
            hint="a list of messages, each with role and content or from and value, is taken",
        )
    if not is_whole(value):
        raise UserError(
            f"the field '{field}' holds half of a character (a lone surrogate such as \\ud800)",
            file=file,
            line=line,
        )
    return unix_lines(value)


def is_blank(document: Document) -> bool:
    """Whether a document has no text."""
    return isinstance(document, str) and not document.strip()


def unix_lines(text: str) -> str:
    """A text with Unix line ends in place of Windows ones."""
    return text.replace("\r\n", "\n")


def is_whole(text: str) -> bool:
    """Whether a text has no half of a character, which JSON may escape, and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
"""What chat templates call those whom ShareGPT's files name otherwise."""


def _message(value: Any) -> Mapping[str, Any] | None:
    """A message with role and content; None where the value is none.

    ShareGPT and its kin have ``from`` and ``value`` in their place.
    """
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("role"), str) and "content" in value:
        return value
    if isinstance(value.get("from"), str) and "value" in value:
        return {"role": ROLES.get(value["from"], value["from"]), "content": value["value"]}
    return None


def _value_at(row: Mapping[str, Any], field: str, file: str, line: int | None) -> Any:
    """The value of a field, or at a path; null where something on the path is."""
    value: Any = row
    for key in [field] if field in row else field.split("."):
        if value is None:
            return None
        index = int(key) if key.isdecimal() and len(key) < 10 else None
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, list) and index is not None and index < len(value):
            value = value[index]
        else:
            where = "this line" if line else "this data set"
            hint = did_you_mean(field, _paths(row))
            raise UserError(f"no field '{field}' in {where}", file=file, line=line, hint=hint)
    return value


def _paths(row: Mapping[str, Any]) -> list[str]:
    """The fields of a row, and of what is nested in it, as one writes them."""
    paths = []
    for key, value in row.items():
        nested = _paths(value) if isinstance(value, Mapping) else []
        paths += [f"{key}.{inner}" for inner in nested] or [str(key)]
    return paths


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """The value of each line that is not blank."""
    hint = "dataset 'csv' reads tables" if uncompressed(path).suffix in DELIMITERS else None
    for line, text in lines(path, encoding):
        if text.strip():
            value, end = _decoded(text, path, line, hint)
            if rest := text[end:].strip():
                column = end + 1 + text[end:].index(rest)
                raise _no_json("Extra data", path, line, column, hint)
            yield line, value


def _items(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """The values of an array one by one, with the lines that they begin in."""
    text, parts, line, expected = "", chunks(path, encoding), 1, "["
    while True:
        stripped = text.lstrip()
        line += text.count("\n", 0, len(text) - len(stripped))
        text = stripped
        if not text:
            text = next(parts, "")
            if not text:
                raise UserError("this JSON array does not end", file=str(path), line=line)
        elif text[0] == "]" and expected != "[":
            return
        elif expected:
            if text[0] != expected:
                raise _no_json(f"expected '{expected}'", path, line)
            text, expected = text[1:], ""
        else:
            try:
                value, end = _DECODER.raw_decode(text)
            except (ValueError, RecursionError):
                # Perhaps it goes on: twice as much each time, so that little is read again.
                more = _more(parts, len(text))
                if not more:
                    _decoded(text, path, line)
                    raise
                text += more
                check_length(text, path, line)
                continue
            yield line, value
            line += text.count("\n", 0, end)
            text, expected = text[end:], ","


_DECODER = json.JSONDecoder()


def _more(parts: Iterator[str], size: int) -> str:
    """The next chunks, of about so many characters together."""
    return "".join(part for _, part in zip(range(size // CHUNK + 1), parts, strict=False))


def _decoded(text: str, path: Path, line: int, hint: str | None = None) -> tuple[Any, int]:
    """The JSON value that a text begins with after blanks, and where it ends."""
    start = len(text) - len(text.lstrip())
    try:
        return _DECODER.raw_decode(text.rstrip(), start)
    except json.JSONDecodeError as error:
        raise _no_json(error.msg, path, line + error.lineno - 1, error.colno, hint) from error
    except RecursionError as error:
        raise UserError("this is nested too deeply", file=str(path), line=line) from error
    except ValueError as error:
        raise UserError("a number is too long", file=str(path), line=line) from error


def _no_json(
    what: str, path: Path, line: int, column: int | None = None, hint: str | None = None
) -> UserError:
    return UserError(
        f"this line is not JSON: {what}", file=str(path), line=line, column=column, hint=hint
    )
