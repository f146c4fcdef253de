"""Streams of the simulated device: who may use what another stream has made.

All work is done at once, so no order is simulated. What is simulated is what may be relied on: with
CUDA, a tensor that one stream makes is not there for others until they waited, and its memory may
be given to somebody else while they use it unless the allocator knows of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor

from permllm.testing.simulation.ledger import Ledger

DEFAULT = 0
"""The number of the stream that computes where nobody names another."""


@attrs.frozen
class Stream:
    """A stream of the simulated device.

    Attributes:
        ledger: of the device.
        number: tells it from others.
    """

    ledger: Ledger = attrs.field(eq=False, repr=False)
    number: int = DEFAULT

    @property
    def device(self) -> torch.device:
        """The device."""
        return torch.device("cuda", 0)

    def synchronize(self) -> None:
        """Wait until all that the stream was asked for is there."""
        self.ledger.finish(self.number)

    def record_event(self) -> Event:
        """What others wait for by it."""
        return Event(self)

    def wait_event(self, event: Event) -> None:
        """Wait before anything else for what an event stands for."""
        event.synchronize()

    def wait_stream(self, stream: Stream) -> None:
        """Wait before anything else for what another stream was asked for."""
        stream.synchronize()


@attrs.frozen
class Event:
    """All that a stream was asked for when it was recorded.

    Attributes:
        stream: the stream.
    """

    stream: Stream

    def synchronize(self) -> None:
        """Wait for it."""
        self.stream.synchronize()


def cuda_streams(ledger: Ledger) -> dict[str, Any]:
    """Functions of ``torch.cuda``, by name."""

    @contextmanager
    def stream(within: Stream | None) -> Iterator[None]:
        if within is None:
            yield
            return
        with ledger.streaming(within.number):
            yield

    def made(device: Any = None, priority: int = 0) -> Stream:
        ledger.streams += 1
        return Stream(ledger, ledger.streams)

    return {
        "Stream": made,
        "stream": stream,
        "current_stream": lambda _=None: Stream(ledger, ledger.stream),
        "default_stream": lambda _=None: Stream(ledger),
    }


def record_stream(tensor: Tensor, stream: Stream) -> None:
    """As :meth:`torch.Tensor.record_stream`."""
    stream.ledger.share(tensor, stream.number)
