"""Files of xz, decompressed in bounded memory."""

from __future__ import annotations

import io
import lzma
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAGIC = b"\xfd7zXZ\0"
"""The first bytes of every stream."""

MOST_MEMORY = 2**28
"""Bytes that decompressing may take, four times what ``xz -9`` asks for.

A file may ask for 4 GiB in a few bytes, which ``lzma.open`` allocates at once.
"""

CHUNK = 2**16


class XzFile(io.RawIOBase):
    """What is in a file of xz, in one stream or in several.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decompressor = _decompressor()

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Decompress as much as there is room for; 0 at the end.

        Raises:
            EOFError: the file is cut short.
            lzma.LZMAError: it is damaged, or asks for more than :data:`MOST_MEMORY`.
        """
        room, data = memoryview(buffer).cast("B"), b""
        while room and not data:
            packed = b""
            if self._decompressor.eof:
                packed = self._decompressor.unused_data + self._file.read(CHUNK)
                # Zeros may fill up the last stream's place.
                if not packed.startswith(MAGIC):
                    return 0
                self._decompressor = _decompressor()
            elif self._decompressor.needs_input:
                packed = self._file.read(CHUNK)
                if not packed:
                    raise EOFError("it is cut short")
            data = self._decompressor.decompress(packed, len(room))
        room[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _decompressor() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MOST_MEMORY)
