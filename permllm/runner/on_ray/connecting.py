"""A connection to a Ray cluster, and whether a run fits on one of its machines."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import attrs
import torch

from permllm.errors import RunFailed, UserError
from permllm.meeting import knock
from permllm.runs.plan import Plan

CONNECTING_SECONDS = 15.0
"""So long an address is tried."""

SILENT_SECONDS, KNOCK_SECONDS = 30.0, 5.0
"""So long a cluster's head may be silent, and between two tries. After 60 seconds Ray itself ends
the process, which says neither why nor how the study goes on."""

NO_STATISTICS = "RAY_USAGE_STATS_ENABLED"
"""The variable that has Ray send its makers nothing, unless somebody has set it."""


@attrs.define(eq=False)
class Head:
    """The head of a cluster, as seen from the driver.

    Attributes:
        address: ``host:port``.
        lost: whether it has been given up.
    """

    address: str
    lost: bool = False
    _heard: float = attrs.field(factory=time.monotonic)
    _due: float = 0.0

    def check(self) -> None:
        """Knock at it, unless that was just done.

        Raises:
            RunFailed: it has not answered for :data:`SILENT_SECONDS`.
        """
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + KNOCK_SECONDS
        host, _, port = self.address.rpartition(":")
        try:
            knock(host, port, 1.0)
            self._heard = now
        except OSError as error:
            self.lost = now - self._heard > SILENT_SECONDS
            if self.lost:
                raise RunFailed(
                    f"the head of the Ray cluster at {self.address} does not answer any more: "
                    f"{first_line(error)}"
                ) from error


def connect(address: str) -> None:
    """Connect to a cluster, or start one on this machine.

    Raises:
        UserError: nobody answers, or not to this process.
    """
    import ray

    alone: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    with tempfile.TemporaryFile() as said:
        try:
            if ":" in address:
                host, _, port = address.rpartition(":")
                knock(host, port, CONNECTING_SECONDS)
            with _own_handlers(), _saying_to(said):
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **alone)
        except (OSError, ValueError, RuntimeError) as error:
            # Ray's ConnectionError is an OSError.
            said.seek(0)
            asks = b"Unauthenticated" in said.read()
            why = "it asks for another token" if asks else first_line(error)
            raise UserError(
                f"no Ray cluster can be reached at {address}: {why}",
                hint="Ray finds its token by RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
                if asks
                else "--on ray:HOST:PORT names a cluster that was begun with ray start --head, and "
                "--on ray alone begins one on this machine",
            ) from error


@contextmanager
def _saying_to(file: IO[bytes]) -> Iterator[None]:
    """Have what is written to standard error, by whichever language, go to a file."""
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        os.close(before)


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep this process's way to end: Ray puts its own in the place of it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


def taken_by(plan: Plan) -> tuple[int, int]:
    """GPUs and CPUs of a run."""
    import ray

    asked = plan.pipeline.resources
    some = plan.pipeline.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
    gpus = int(some) if asked.gpus is None else asked.gpus
    return gpus, asked.cpus or torch.get_num_threads()


def check_room(plan: Plan) -> None:
    """Refuse a cluster without a machine that a run fits on, where it would wait for ever.

    Raises:
        UserError: there is none.
    """
    import ray

    gpus, cpus = taken_by(plan)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(one.get("GPU", 0) >= gpus and one.get("CPU", 0) >= cpus for one in machines):
        return
    has = "; ".join(
        sorted({f"{one.get('CPU', 0):g} CPUs, {one.get('GPU', 0):g} GPUs" for one in machines})
    )
    raise UserError(
        f"a run takes {cpus} CPUs and {gpus} GPUs, and no machine of the Ray cluster has as many: "
        f"{has}",
        hint="ask for less: resources: {gpus: …, cpus: …}",
    )


def first_line(error: BaseException) -> str:
    """What is said of an error in one line."""
    return str(error).strip().partition("\n")[0]
