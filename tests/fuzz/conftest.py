"""Changes valid files at random, and watches how they are read.

A file may be refused by a :class:`~permllm.errors.UserError`, or be read. Nothing else may come of
it: no other exception, nothing that takes more than seconds or a gigabyte, and no damaged file
that is taken for a whole one.

``PERMLLM_FUZZ=full`` (`tox run -e fuzz`) tries all inputs that a test asks for, others at each
time; without it, the same small share every time.
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import random
import signal
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import load

from permllm.errors import UserError
from permllm.files import SEAL, sealed
from permllm.formats.export_files import tensor_hash
from permllm.printing import plain
from permllm.redaction import redacted

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

FULL = os.environ.get("PERMLLM_FUZZ") == "full"

SEED = int(os.environ.get("PERMLLM_FUZZ_SEED") or (random.getrandbits(32) if FULL else 0))
"""Decides which inputs those are."""

SHARE = 0.08
"""Of the inputs of a kind, those that the ordinary tests try."""

LEAST = 4
"""Inputs that they try of any kind."""

CPU_SECONDS, SECONDS = 5, 60
"""What one input may take. The second is for what sleeps: the machine may be busy otherwise."""

MEMORY = 2**30
"""Bytes of address space that the inputs of a test may take beside what was there."""

MOST_STEPS = 4
"""Changes of one input."""


class TooSlow(BaseException):
    """One input took too long; no error that anything may catch."""


# --- changes of bytes ------------------------------------------------------------------

Step = tuple[str, int, int]
"""What is done to a file, and two numbers that say where and how."""

PIECES: tuple[bytes, ...] = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[31m", b"[/b]", b'"', b"{", b"}", b"[", b"]", b":",
    b",", b"\n", b"\r\n", b"\t", b"- ", b": ", b"&a ", b"*a", b"<<: *a", b"!!python/name:a.b ",
    b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"null", b"true", b"\\ud800", b"\\u0000", b"#",
    b"9" * 5000, b"[" * 3000, b'{"a":' * 1500, b"../", b"/etc/passwd", b"0:4", b"\xe2\x80\xae",
)  # fmt: skip


def _bytes_changed(data: bytes, step: Step, sample: bytes) -> bytes:
    what, where, how = step
    at = where % (len(data) + 1)
    length = 1 + how % max(1, min(len(data), 200))
    if what == "flip":
        at = where % max(1, len(data))
        return data[:at] + bytes(b ^ (1 << how % 8) for b in data[at : at + 1]) + data[at + 1 :]
    if what == "cut":
        return data[:at] + data[at + length :]
    if what == "end":
        return data[:at]
    if what == "insert":
        return data[:at] + PIECES[how % len(PIECES)] + data[at:]
    if what == "repeat":
        return data[: at + length] + data[at:]
    if what == "digit":
        places = [place for place, byte in enumerate(data) if byte in b"0123456789"]
        at = places[where % len(places)] if places else len(data)
        return data[:at] + b"%d" % (how % 10) + data[at + 1 :]
    if what == "splice":
        start = how * 7919 % max(1, len(sample))
        return data[:at] + sample[start : start + length] + data[at + length :]
    piece = PIECES[how % len(PIECES)][:8]
    return data[:at] + piece * (1 + how % 5000) + data[at:]


BYTES = ("flip", "cut", "end", "insert", "repeat", "digit", "splice", "run")


# --- changes of structure --------------------------------------------------------------


def _nested(depth: int, mapping: bool) -> Any:
    data: Any = 0
    for _ in range(depth):
        data = {"a": data} if mapping else [data]
    return data


STRANGE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63) - 1, 10**30, 10**5000, 0.5, -0.0, 1e308,
    math.nan, math.inf, -math.inf, "", " ", "a", "0:4", "4:2", "2:0", "2:4", "-1:4", "1e9:1e9",
    "n" * 300, "n" * 300 + ".safetensors", "evil [/b]", "[red]", "\x1b[31mred\x07", "\ud800",
    "a\ud800b.safetensors", "\0", "a\0b", "\u202eabc", "..", "../../etc/passwd", "/etc/passwd",
    "C:\\x", "file:///etc/passwd", "https://me:secret@host/?token=abcd", "NaN", ".nan", "null",
    "9" * 5000, "${HOME}", "~", "*", "[", "{", "%s", "{0}", [], {}, [[]], [{}], {"": None},
    {"[/b]": "\x1b"}, [None], [1, "a", None], {"name": "cp"}, {"name": None}, {"name": ["a"]},
    _nested(63, True), _nested(70, False), _nested(900, True), _nested(900, False), ["a"] * 3000,
)  # fmt: skip

STRANGE_NUMBERS = (0, 1, 2, 3, 4, 8, 9, 10, 12, 32, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**63,
                   2**64 - 1)  # fmt: skip

KEYS = ("", " ", "n" * 300, "[/b]", "\x1b[31m", "\ud800", "a.b", "../x", "/x", "sha256", "0", "-1",
        "name", "__class__", "<<")  # fmt: skip

# Most values of another type are refused at once; what is only another value must be, too.
STRUCTURE = (
    "nudge", "nudge", "nudge", "replace", "replace", "drop", "double", "rename", "add", "swap",
    "negate", "text", "wrap",
)  # fmt: skip


def _places(data: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys or indices, not deeper than 8."""
    found: list[tuple[Any, Any]] = []
    level = [data]
    for _ in range(8):
        below = []
        for one in level:
            keys = one if isinstance(one, dict) else range(len(one))
            found += [(one, key) for key in keys]
            below += [one[key] for key in keys if isinstance(one[key], dict | list)]
        level = below
    return found


def _nudged(value: Any, how: int) -> Any:
    """Another value of the same type, which nothing but a hash can tell from the right one."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + 1 + how % 3
    if isinstance(value, float):
        return value * (1.5 + how % 3)
    if isinstance(value, str):
        at = how % (len(value) + 1)
        return value[:at] + "0123456789abcdef"[how % 16] + value[at + 1 :]
    if isinstance(value, list):
        return value[:-1] if how % 2 else list(reversed(value))
    return dict(list(value.items())[1:])


def _structure_changed(data: Any, step: Step) -> Any:
    what, where, how = step
    places = _places(data) if isinstance(data, dict | list) else []
    if not places or (what == "replace" and where % 50 == 0):
        return copy.deepcopy(STRANGE[how % len(STRANGE)])
    container, key = places[where % len(places)]
    value = container[key]
    if what == "replace":
        container[key] = copy.deepcopy(STRANGE[how % len(STRANGE)])
    elif what == "nudge":
        container[key] = _nudged(value, how)
    elif what == "drop":
        del container[key]
    elif what == "double" and isinstance(container, list):
        container.insert(key, copy.deepcopy(value))
    elif what in ("rename", "add", "double") and isinstance(container, dict):
        new = copy.deepcopy(value) if what != "add" else copy.deepcopy(STRANGE[how % len(STRANGE)])
        if what == "rename":
            del container[key]
        name = KEYS[how % len(KEYS)] if how % 3 else f"{key}{how % 10}"
        container[name] = new
    elif what == "swap":
        other, its = places[how * 7919 % len(places)]
        container[key], other[its] = copy.deepcopy(other[its]), copy.deepcopy(value)
    elif what == "negate" and isinstance(value, int | float):
        container[key] = -value - how % 2 if how % 3 else value * 10 ** (how % 25)
    elif what == "text":
        container[key] = str(value)[:2000]
    else:
        container[key] = [value] if how % 2 else {"a": value}
    return data


def as_text(data: Any, how: int = 0) -> str:
    """JSON, also of what JSON has no numbers for; in one of its spellings."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(data, ensure_ascii=how % 2 == 0, indent=None if how % 3 else 1)
    finally:
        sys.set_int_max_str_digits(limit)


@attrs.frozen
class Change:
    """What is done to a valid file.

    Attributes:
        sample: which of the valid files, counted round and round.
        structure: the changes of its structure; none where its bytes are changed.
        bytes: the changes of its bytes.
        reseal: whether the hash is made to fit, where there is one.
        spelling: of what is written.
    """

    sample: int
    structure: tuple[Step, ...]
    bytes: tuple[Step, ...]
    reseal: bool
    spelling: int

    def data(self, data: Any, *, seal: bool) -> Any:
        """Plain data with the changes of structure."""
        data = copy.deepcopy(data)
        for step in self.structure:
            data = _structure_changed(data, step)
        if seal and self.reseal and isinstance(data, dict):
            data = _sealed({key: value for key, value in data.items() if key != SEAL})
        return data

    def text(self, data: Any, *, seal: bool = False) -> bytes:
        """The file of changed plain data, as JSON."""
        if not self.structure:
            return self.raw(as_text(data).encode())
        text = as_text(self.data(data, seal=seal), self.spelling)
        return self.raw(text.encode("utf-8", "surrogatepass"))

    def raw(self, data: bytes) -> bytes:
        """A file with the changes of bytes."""
        sample = data
        for step in self.bytes:
            data = _bytes_changed(data, step, sample)
        return data

    def spelled(self, data: Any) -> bytes:
        """Plain data as a line of JSON."""
        text = as_text(data, 1 + self.spelling % 2)
        return text.encode("utf-8", "surrogatepass")

    def weights(self, data: bytes, *, seal: bool = False) -> bytes:
        """A safetensors file; changes of structure are those of its header."""
        length = struct.unpack("<Q", data[:8])[0]
        if not self.structure and self.spelling % 2:
            # The header is the smallest part.
            return self.raw(data[: 8 + length]) + data[8 + length :]
        if not self.structure:
            return self.raw(data)
        whole = json.loads(data[8 : 8 + length])
        own = whole.get("__metadata__", {})
        fields = [key for key in own if key not in ("format", SEAL)]
        if seal and self.spelling % 2:
            # What the metadata says, itself in JSON.
            field = fields[self.sample % len(fields)]
            own[field] = as_text(self.data(json.loads(own[field]), seal=False))
        else:
            whole = self.data(whole, seal=False)
        inner = whole.get("__metadata__") if isinstance(whole, dict) else None
        if seal and self.reseal and isinstance(inner, dict):
            inner.pop(SEAL, None)
            whole["__metadata__"] = _sealed(inner)
        header = as_text(whole, self.spelling).encode("utf-8", "surrogatepass")
        claimed = len(header) if self.sample % 8 else len(header) + self.sample - 400
        return self.raw(struct.pack("<Q", max(0, claimed)) + header + data[8 + length :])

    def same_tensors(self, one: bytes, other: bytes) -> bool:
        """Whether two safetensors files hold the same tensors."""
        ours, theirs = load(one), load(other)
        return ours.keys() == theirs.keys() and all(
            ours[name].dtype == theirs[name].dtype
            and tensor_hash(ours[name]) == tensor_hash(theirs[name])
            and ours[name].shape == theirs[name].shape
            for name in ours
        )

    def gguf(self, data: bytes) -> bytes:
        """A GGUF file; changes of structure put numbers in the place of others."""
        whole = bytearray(data)
        for what, where, how in self.structure:
            number = STRANGE_NUMBERS[how % len(STRANGE_NUMBERS)]
            code = "<Q" if len(what) % 2 else "<I"
            at = where % max(1, min(len(whole) - 8, 600))
            struct.pack_into(code, whole, at, number % 2 ** (64 if code == "<Q" else 32))
        return self.raw(bytes(whole))

    @property
    def is_resealed(self) -> bool:
        """Whether a changed file may have the hash of what it holds."""
        return bool(self.structure) and self.reseal


def _sealed(data: dict[str, Any]) -> dict[str, Any]:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return sealed(data)
    finally:
        sys.set_int_max_str_digits(limit)


_NUMBERS = st.integers(0, 2**20)


def _steps(names: tuple[str, ...]) -> st.SearchStrategy[tuple[Step, ...]]:
    step = st.tuples(st.sampled_from(names), _NUMBERS, _NUMBERS)
    # Most that is wrong in two ways is refused for the first.
    return st.one_of(st.tuples(step), st.lists(step, min_size=1, max_size=MOST_STEPS).map(tuple))


def _change(structure: Any, changed: Any) -> Any:
    return st.builds(Change, st.integers(0, 1000), structure, changed, st.booleans(),
                     st.integers(0, 5))  # fmt: skip


NONE: st.SearchStrategy[tuple[Step, ...]] = st.just(())
CHANGES: st.SearchStrategy[Change] = st.one_of(
    _change(NONE, _steps(BYTES)),
    _change(_steps(STRUCTURE), NONE),
    _change(_steps(STRUCTURE), NONE),
    _change(_steps(STRUCTURE), _steps(BYTES)),
)


# --- watching --------------------------------------------------------------------------


@contextmanager
def watched() -> Iterator[None]:
    """Give up on a block that takes too long."""

    def stop(number: int, frame: Any) -> None:
        raise TooSlow(f"one input took more than {CPU_SECONDS} s")

    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    timers = ((signal.ITIMER_PROF, signal.SIGPROF, CPU_SECONDS),
              (signal.ITIMER_REAL, signal.SIGALRM, SECONDS))  # fmt: skip
    before = [signal.signal(number, stop) for _, number, _ in timers]
    try:
        for timer, _, seconds in timers:
            signal.setitimer(timer, seconds)
        yield
    finally:
        for timer, _, _ in timers:
            signal.setitimer(timer, 0)
        for (_, number, _), handler in zip(timers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def limited() -> Iterator[None]:
    """Let nothing in a block take much more memory than there is in use before it."""
    statm = Path("/proc/self/statm")
    if resource is None or not statm.exists():
        yield
        return
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@attrs.define
class Tally:
    """How many inputs a test tried, how many of them were refused, and the seconds."""

    tried: int = 0
    refused: int = 0
    seconds: float = 0.0


TALLIES: dict[str, Tally] = {}

Fuzz = Callable[..., None]


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """Tries many changes on a function that reads a changed file.

    Its arguments: the function, which gets a :class:`Change`, lets UserErrors through and
    asserts what else is to hold; how many changes are tried at full size; and the share of them
    that the ordinary tests try.
    """

    def run(read: Callable[[Change], Any], count: int, share: float = SHARE) -> None:
        tally = TALLIES.setdefault(request.node.nodeid.removeprefix("tests/fuzz/"), Tally())

        def once(change: Change) -> None:
            tally.tried += 1
            try:
                with watched():
                    read(change)
            except UserError:
                tally.refused += 1
            except TooSlow as error:
                # As a failure, which comes with its input.
                raise AssertionError(str(error)) from error

        limits = settings(
            max_examples=count if FULL else max(LEAST, round(count * share)),
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        # Its own inputs for every test: the same each time, or others.
        name = request.node.nodeid.encode()
        number = zlib.crc32(name) ^ SEED
        began = time.process_time()
        try:
            # What is loaded late is not the files' doing.
            with_none = Change(0, (), (), False, 0)
            try:
                read(with_none)
            except UserError as error:
                raise AssertionError(f"the valid file is refused: {error}") from error
            with limited():
                seed(number)(limits(given(CHANGES)(once)))()
        finally:
            tally.seconds += time.process_time() - began

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many inputs were tried."""
    if FULL and TALLIES:
        terminalreporter.section("inputs tried")
        terminalreporter.write_line(f"PERMLLM_FUZZ_SEED={SEED} tries the same ones again")
        for name, tally in TALLIES.items():
            terminalreporter.write_line(
                f"{name}: {tally.tried} inputs, {tally.refused} of them refused, in "
                f"{tally.seconds:.0f} s of CPU time"
            )


# --- the command line ------------------------------------------------------------------


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Calls the command line; what it prints, whatever comes of it, checked for what it may be."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words: object, codes: tuple[int, ...] = (0, 2)) -> str:
        from permllm.cli import errors
        from permllm.cli.main import cli

        # As a terminal's: what cannot be written as UTF-8 is an error there.
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with redirect_stdout(out), redirect_stderr(out):
            code = errors.call(cli, [str(word) for word in words])
        said = out.buffer.getvalue().decode()  # type: ignore[attr-defined]
        assert code in codes, said
        # An exception that nobody expected is no traceback either, but says how to get one.
        assert "Traceback" not in said, said
        assert "--debug" not in said, said
        assert plain(said.replace("\\", "/")) == redacted(said.replace("\\", "/"))
        assert code == 0 or "error: " in said or "Usage: " in said, said
        return said

    return call


# --- valid files -----------------------------------------------------------------------

PIPELINE = """\
permllm: 1
name: tiny
model: {source: directory, path: model}
calibration: {dataset: {name: text, path: text.txt}, sequences: 4, length: 16, held_out: 2}
pattern: "2:4"
layers: {permutation: none, window: 1}
matrix:
  layers.permutation: [none, {name: lcp, start: none, block: 8, steps: 3, batch: 2}]
evaluate:
  - {name: perplexity, dataset: {name: text, path: text.txt}, length: 16, max_tokens: 160}
  - sparsity
export: [masked, permuted]
track: {}
"""


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_project: Callable[..., Path]) -> Path:
    """A folder with a tiny model, a text, a pipeline file, and what it gave in ``out``."""
    from permllm.api import run_plan
    from permllm.registry import Registry
    from permllm.runs.plan import make_plan

    folder = tiny_project(tmp_path_factory.mktemp("project"), PIPELINE)
    registry = Registry.load()
    run_plan(make_plan(folder / "tiny.yaml", registry, out=folder / "out"), registry)
    return folder


@pytest.fixture
def attempt() -> Callable[..., None]:
    """Calls all functions, and raises the first UserError of theirs, if there was one."""

    def call(*functions: Callable[[], Any]) -> None:
        wrong: list[UserError] = []
        for function in functions:
            try:
                function()
            except UserError as error:
                wrong.append(error)
        if wrong:
            raise wrong[0]

    return call
