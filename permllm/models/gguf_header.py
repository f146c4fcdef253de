"""Walks through the header of a GGUF file, and believes no count and no length in it.

The reader of ``gguf`` makes an array for every value that a header claims, whether or not the
file has it: of a kilobyte it may make gigabytes. What passes here it can read.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from permllm.extras import need_prune

MAGIC = b"GGUF"
VERSIONS = (2, 3)

STRING, ARRAY = 8, 9
CODES = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIifBQqd", strict=True))
"""How ``struct`` calls the types of single values, by their numbers."""

MOST_VALUES, BYTES_OF_VALUE = 10_000, 16
"""Arrays hold at most so many values, and one more for so many bytes of the file.

A vocabulary has four values for a token, whose row of the embeddings alone is larger. The
reader of ``gguf`` takes 20 µs and a kilobyte for each.
"""

MOST_LAYERS = 1000
"""More blocks than any model has."""

MOST_DIMENSIONS = 4
"""As ``ggml`` has it."""


def read_header(path: Path) -> frozenset[str]:
    """The names of a GGUF file's fields, if the file can hold what its header claims.

    Raises:
        ValueError: it is no GGUF file, or a count, a length, a size or an offset does not fit
            the file's size; in words that go on after "is no complete GGUF file:".
        UserError: the package that knows their types is missing.
    """
    need_prune("reading GGUF files", "gguf")
    if path.stat().st_size < len(MAGIC):
        raise ValueError("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Header(data).walk()


class _Header:
    """A place in the header that moves on with every value.

    Args:
        data: all of the file.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.size = len(data)
        self.at = 0
        self.order = "<"
        self.values = 0
        self.alignment = 32

    def walk(self) -> frozenset[str]:
        """Go through all of it; the names of its fields."""
        if self.data[:4] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version = self.number("I")
        if version & 0xFFFF == 0:
            # Of a machine of the other byte order.
            self.order, self.at = ">", 4
            version = self.number("I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, and those that can be read are 2 and 3")
        tensors, fields = self.number("Q"), self.number("Q")
        # A name's length, its type and a value; and a name's length, dimensions, type, offset.
        self.fits(fields, 8 + 4 + 1, "fields")
        self.fits(tensors, 8 + 4 + 4 + 8, "tensors")
        names = frozenset(self.field() for _ in range(fields))
        ends = [self.tensor() for _ in range(tensors)]
        start = self.at + -self.at % self.alignment
        if ends and start + max(ends) > self.size:
            raise ValueError(
                f"it has {self.size} bytes, and its tensors end at {start + max(ends)}"
            )
        return names

    def field(self) -> str:
        """Go over one field; its name."""
        name = self.name()
        kind = self.number("I")
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            self.array(inner, count, name)
        elif kind in CODES:
            self.single(name, self.number(CODES[kind]))
        else:
            raise ValueError(f"'{_shown(name)}' has the unknown type {kind}")
        return name.decode("utf-8", "replace")

    def single(self, name: bytes, value: int) -> None:
        """Look at a number on which depends how much is built or skipped."""
        if name.endswith(b".block_count") and value > MOST_LAYERS:
            raise ValueError(f"'{_shown(name)}' is {value}; {MOST_LAYERS} blocks are the most")
        if name == b"general.alignment":
            if value < 1 or value & (value - 1):
                raise ValueError(f"its alignment is {value}, which is no power of two")
            self.alignment = value

    def array(self, kind: int, count: int, name: bytes) -> None:
        """Go over the values of an array."""
        if kind not in CODES and kind != STRING:
            raise ValueError(f"'{_shown(name)}' is an array of the unknown type {kind}")
        size = 8 if kind == STRING else struct.calcsize("=" + CODES[kind])
        self.fits(count, size, f"values in '{_shown(name)}'")
        self.values += count
        if self.values > MOST_VALUES + self.size // BYTES_OF_VALUE:
            raise ValueError(
                f"its arrays hold {self.values} values or more, which a model of {self.size} "
                "bytes has not"
            )
        if kind == STRING:
            for _ in range(count):
                self.text()
        else:
            self.skip(size * count)

    def tensor(self) -> int:
        """Go over what is said of one tensor; where it ends, in bytes after the header."""
        import gguf

        name = self.name()
        dimensions = self.number("I")
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"the tensor '{_shown(name)}' has {dimensions} dimensions")
        shape = [self.number("Q") for _ in range(dimensions)]
        kind, offset = self.number("I"), self.number("Q")
        try:
            block, bytes_of_block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise ValueError(f"the tensor '{_shown(name)}' has the unknown type {kind}") from None
        # Without any number, the other dimensions might be anything.
        if 0 in shape:
            raise ValueError(f"the tensor '{_shown(name)}' of {shape} holds no number")
        if shape and shape[0] % block:
            rows = f"rows of {shape[0]}, which are no blocks of {block}"
            raise ValueError(f"the tensor '{_shown(name)}' has {rows}")
        return offset + math.prod(shape) * bytes_of_block // block

    def name(self) -> bytes:
        """Go over the name of a field or of a tensor; its bytes, which are UTF-8."""
        name = self.text()
        try:
            name.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the name '{_shown(name)}' is not UTF-8") from None
        return name

    def text(self) -> bytes:
        """Go over a text; its bytes."""
        length = self.number("Q")
        begin = self.at
        self.skip(length)
        return self.data[begin : self.at]

    def number(self, code: str) -> int:
        """Go over a number; ``code`` is its type as ``struct`` calls it."""
        begin = self.at
        self.skip(struct.calcsize("=" + code))
        number: int = struct.unpack_from(self.order + code, self.data, begin)[0]
        return number

    def skip(self, count: int) -> None:
        """Go over bytes that have to be there."""
        if count > self.size - self.at:
            raise ValueError(f"it ends at {self.size} bytes, within its header")
        self.at += count

    def fits(self, count: int, least: int, what: str) -> None:
        """Refuse a count of things of which the rest of the file cannot hold so many."""
        if count * least > self.size - self.at:
            raise ValueError(f"its header claims {count} {what}, more than its bytes can hold")


def _shown(name: bytes) -> str:
    return name[:100].decode("utf-8", "replace")
