"""Copies to a CUDA device that a thread makes while the device computes.

They go from pinned memory over a stream of their own, so that no kernel waits for them. They are
begun once the device has done all that was asked of it before, and whoever takes them waits until
they are there: so no more than one set of copies is on its way, and none is used before it is
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Event
from typing import Generic, TypeVar

import attrs
import torch
from torch import Tensor

K = TypeVar("K", bound=Hashable)


@attrs.frozen(eq=False)
class Fetch(Generic[K]):
    """Copies on their way; make one with :func:`fetch`.

    Attributes:
        made: the copies, once the thread has ended.
        unwanted: set where nobody will take them.
    """

    made: Future[dict[K, Tensor]]
    unwanted: Event

    def take(self) -> dict[K, Tensor]:
        """The copies, which are waited for; none where they could not be made.

        Whoever makes them then meets the fault where it is expected, or finds room by now.
        """
        # Raised here, an error would hold this frame, and so itself and what was copied.
        return {} if self.made.exception() else self.made.result()

    def drop(self) -> None:
        """Have no more copies made; the thread has ended when this returns."""
        self.unwanted.set()
        wait([self.made])


def fetch(
    homes: Mapping[K, Tensor], copy: Callable[[Tensor], Tensor], side: torch.cuda.Stream
) -> Fetch[K]:
    """Begin to copy tensors to where the current stream of a device will compute with them.

    Args:
        homes: the tensors, on the host, of any types and shapes.
        copy: makes the copy of one that is pinned; the device may have it later.
        side: a stream of the device on which nothing but copies runs.
    """
    unwanted = Event()
    computing = torch.cuda.current_stream(side.device)
    before = computing.record_event()

    def copies() -> dict[K, Tensor]:
        # What used copies that are gone by now may be at work yet, and hold their memory.
        before.synchronize()
        made: dict[K, Tensor] = {}
        with torch.cuda.stream(side):
            for key, home in homes.items():
                if unwanted.is_set():
                    break
                made[key] = copy(home.pin_memory())
                # Its memory is of the side stream, which does not know who computes with it.
                made[key].record_stream(computing)
        side.synchronize()
        return made

    worker = ThreadPoolExecutor(1, "fetch")
    made = worker.submit(copies)
    # The thread ends with its work, whatever becomes of those who wait for it.
    worker.shutdown(wait=False)
    return Fetch(made, unwanted)
