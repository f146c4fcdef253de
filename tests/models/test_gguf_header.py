"""Headers of GGUF files: what they claim is compared with what the file holds."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from permllm.errors import UserError
from permllm.models.gguf_header import MOST_VALUES, read_header
from permllm.models.sources import GgufSource

WriteGguf = Callable[[Path], Path]

STRING, ARRAY, UINT32, BOOL = 8, 9, 4, 7


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def field(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def header(tensors: int, fields: int, *parts: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + b"".join(parts)


HUGE = 2**40
BOMBS = {
    "fields": header(0, HUGE, field("a", UINT32, b"abcd")),
    "tensors": header(HUGE, 0),
    "a text": header(0, 1, field("a", STRING, struct.pack("<Q", HUGE))),
    "a name": header(0, 1, struct.pack("<Q", HUGE), bytes(64)),
    "an array": header(0, 1, field("a", ARRAY, struct.pack("<IQ", UINT32, HUGE)), bytes(800)),
    "texts": header(0, 1, field("a", ARRAY, struct.pack("<IQ", STRING, HUGE)), bytes(800)),
    "arrays in arrays": header(0, 1, field("a", ARRAY, struct.pack("<IQ", ARRAY, 60)), bytes(900)),
    "small values": header(
        0,
        1,
        field("a", ARRAY, struct.pack("<IQ", BOOL, 2 * MOST_VALUES) + bytes(2 * MOST_VALUES)),
    ),
    "blocks": header(0, 1, field("llama.block_count", UINT32, struct.pack("<I", 10**6))),
    "dimensions": header(1, 0, text("t"), struct.pack("<I", 2**31), bytes(64)),
    "a shape": header(1, 0, text("t"), struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0), bytes(64)),
    "a shape without a number": header(
        1, 0, text("t"), struct.pack("<IQQIQ", 2, 0, HUGE, 0, 0), bytes(64)
    ),
    "rows that are no blocks": header(
        1, 0, text("t"), struct.pack("<IQIQ", 1, 33, 8, 0), bytes(99)
    ),
    "an offset": header(1, 0, text("t"), struct.pack("<IQIQ", 1, 1, 0, HUGE), bytes(64)),
    "a type": header(1, 0, text("t"), struct.pack("<IQIQ", 1, 1, 999, 0), bytes(64)),
    "a name that is no text": header(
        0, 1, struct.pack("<Q", 2) + b"\xed\xa0" + struct.pack("<II", UINT32, 1), bytes(64)
    ),
    "a tensor's name": header(
        1, 0, struct.pack("<Q", 1) + b"\xff", struct.pack("<IQIQ", 1, 1, 0, 0), bytes(64)
    ),
    "a version": b"GGUF" + struct.pack("<IQQ", 77, 0, 0),
}


@pytest.mark.parametrize("what", BOMBS)
def test_what_the_file_cannot_hold_is_refused_at_once(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(BOMBS[what])
    began = time.monotonic()
    with pytest.raises(UserError, match=r"a\.gguf' is no complete GGUF file: "):
        GgufSource(path).check()
    assert time.monotonic() - began < 1


def test_the_names_are_those_that_the_reader_of_gguf_finds(
    tmp_path: Path, write_gguf: WriteGguf
) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    found = {name for name in gguf.GGUFReader(path).fields if not name.startswith("GGUF.")}
    assert read_header(path) == found
    assert found > {"general.architecture", "tokenizer.ggml.tokens"}


def test_files_of_the_other_byte_order_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "nonesuch", endianess=gguf.GGUFEndian.BIG)
    writer.add_block_count(2)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "nonesuch.block_count" in read_header(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_a_byte_costs_time(
    tmp_path: Path, write_gguf: WriteGguf, data: st.DataObject
) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(4, len(whole) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed.gguf"
    path.write_bytes(changed)
    began = time.monotonic()
    with suppress(UserError):
        GgufSource(path).check()
    assert time.monotonic() - began < 1
