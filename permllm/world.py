"""The processes that share one run, and what they tell each other.

``torchrun`` starts them; without it there is one. Each holds the whole model and does the same
steps in the same order. What takes long is dealt out: batches, groups, blocks, and the rows of a
training step; or whole windows, where these do not depend on each other, in which a process is by
itself. Nothing of a model is ever cut between processes.

**The same bits for any number of processes.** Sums are what rounding could tell apart. So work
whose results are added up is cut into a fixed number of shards: each is summed by itself, by
whichever process has it, and then all of them in their order. The number of shards decides the
bits, and the number of processes does not.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from permllm.errors import RunFailed, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
P = TypeVar("P")
K = TypeVar("K", bound=Hashable)

FAILED = "permllm/failed"
"""Where processes count their failures, so that the first of them says what happened."""


SEEING_SECONDS = 20.0
"""So long what one machine has written may take to be seen by another."""


class ProcessLost(RunFailed):
    """Another process has ended, or does not answer."""


@attrs.frozen
class Place:
    """Where a process runs."""

    host: str
    pid: int


@attrs.define(eq=False)
class World:
    """The processes of a run; by default this one alone.

    Attributes:
        rank: which of them this is, from 0. The first writes, and speaks for all.
        size: how many there are.
        shards: into how many parts work is cut whose results are added up.
        places: where each process runs, by rank.
        store: what all processes can write to, the living ones included when others are dead.
        alone: whether this process works by itself; the others wait, or do so as well.
    """

    rank: int = 0
    size: int = 1
    shards: int = 1
    places: tuple[Place, ...] = ()
    store: Any = None
    alone: bool = False

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks; by itself, each is."""
        return self.rank == 0 or self.alone

    @property
    def many(self) -> bool:
        """Whether others take part in what is done now."""
        return self.size > 1 and not self.alone

    @property
    def neighbours(self) -> int:
        """How many processes share this one's machine, itself included."""
        hosts = [place.host for place in self.places]
        return hosts.count(hosts[self.rank]) if hosts else 1

    def apart(self) -> World:
        """This process by itself, with shards and neighbours as they are."""
        return attrs.evolve(self, alone=True)

    def own(self, count: int) -> range:
        """Which of ``count`` pieces of work are this process's, in their order."""
        return cut(count, self.size)[self.rank] if self.many else range(count)

    def fair(self, costs: Sequence[float]) -> list[int]:
        """Which pieces of work of unlike costs are this process's, of several the dearest first."""
        if not self.many:
            return list(range(len(costs)))
        dearest_first = sorted(range(len(costs)), key=lambda piece: -costs[piece])
        loads, own = [0.0] * self.size, []
        for piece in dearest_first:
            rank = loads.index(min(loads))
            loads[rank] += costs[piece]
            own += [piece] if rank == self.rank else []
        return own

    def cut(self, count: int) -> list[range]:
        """The shards of ``count`` pieces of work whose results are added up; none is empty."""
        return [part for part in cut(count, self.shards) if part]

    def agreed(self, find: Callable[[], T]) -> T:
        """What the first process finds, for all of them; plain data.

        Others wait for it. Whatever it calls meanwhile is done as by one process.

        Raises:
            Exception: what ``find`` raises, in the first process.
            ProcessLost: it did so, in the others.
        """
        if not self.many:
            return find()
        if self.leads:
            try:
                with self._alone():
                    found = find()
            except BaseException:
                with suppress(ProcessLost):
                    self._told((False, None))
                raise
            self._told((True, found))
            return found
        well, found = self._told(None)
        if not well:
            raise ProcessLost(f"{self.named(0)} failed")
        return found

    def followed(
        self,
        find: Callable[[], T | None],
        described: Callable[[T], P],
        again: Callable[[P], T],
    ) -> T | None:
        """What the first process finds, and the others make from a description of it.

        Args:
            find: finds it, or None.
            described: plain data that says what it is.
            again: makes it from that.
        """
        found: T | None = None

        def look() -> P | None:
            nonlocal found
            found = find()
            return None if found is None else described(found)

        description = self.agreed(look)
        if description is None or self.leads:
            return found
        return again(description)

    def met(self, where: str) -> None:
        """Wait until all processes are here, however long they work by themselves before.

        Args:
            where: a name for it that is used once.

        Raises:
            ProcessLost: one of this machine has ended.
        """
        with self._connected():
            self.store.add(f"met at {where}", 1)
            while self.store.add(f"met at {where}", 0) < self.size:
                for loss in self.ended(patience=0):
                    raise ProcessLost(loss)
                time.sleep(0.05)

    def gathered(self, own: Sequence[T]) -> list[T]:
        """What all processes have, plain data, in the order of their ranks."""
        if not self.many:
            return list(own)
        import torch.distributed as dist

        parts: list[Any] = [None] * self.size
        with self._connected():
            dist.all_gather_object(parts, list(own))
        return [item for part in parts for item in part]

    def joined(self, own: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of all processes, in the order of their ranks, where each has its own.

        Args:
            own: this process's, any number, on the CPU.
        """
        if not self.many:
            return list(own)
        import torch
        import torch.distributed as dist

        shapes = self.gathered([(self.rank, one.shape, one.dtype) for one in own])
        mine = iter(own)
        found = []
        for rank, shape, dtype in shapes:
            one = next(mine).contiguous() if rank == self.rank else torch.empty(shape, dtype=dtype)
            with self._connected():
                dist.broadcast(one, src=rank)
            found.append(one)
        return found

    def summed(self, count: int, make: Callable[[int], Mapping[K, Tensor]]) -> dict[K, Tensor]:
        """The sum of what shards give, in their order: the same bits for any number of processes.

        Args:
            count: how many shards there are, at least one.
            make: gives what a shard comes to, by name; the same names, shapes and dtypes for all.
        """
        if not self.many:
            return _added(make(shard) for shard in range(count))
        shares = [make(shard) for shard in self.own(count)]
        kinds = (
            {name: (one.shape, one.dtype, one.device.type) for name, one in shares[0].items()}
            if shares
            else {}
        )
        # The first process has a shard in any case.
        kinds = self.agreed(lambda: kinds)
        return {
            name: self._sum([share[name] for share in shares], count, *kind)
            for name, kind in kinds.items()
        }

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        """Refuse processes that see something else than the first one does.

        Args:
            facts: what has to be the same, plain data by what it is called in the message.

        Raises:
            UserError: it is not: names the process, what differs, and how.
        """
        first, *others = self.gathered([dict(facts)])
        for rank, theirs in enumerate(others, 1):
            for what, value in theirs.items():
                if value != first.get(what):
                    raise UserError(
                        f"{self.named(rank)} has another {what} than the first one: "
                        f"{value}, and not {first.get(what)}",
                        hint="all processes of a run need the same files, versions and devices",
                    )

    def named(self, rank: int) -> str:
        """A process as messages call it."""
        where = f" on {self.places[rank].host}" if self.places else ""
        return f"process {rank} of {self.size}{where}"

    def look_for(self, path: Path, patience: float = SEEING_SECONDS) -> None:
        """Wait until this process sees what the first one has written.

        Raises:
            RunFailed: it does not, for so many seconds: file systems of a network take some.
        """
        deadline = time.monotonic() + patience
        while not path.exists():
            if time.monotonic() > deadline:
                raise self.blind(path)
            time.sleep(0.1)

    def blind(self, path: Path) -> RunFailed:
        """The error of a process that does not see a file of the run."""
        return RunFailed(
            f"{self.named(self.rank)} does not see {path}, which the first process does: the run's "
            "folder has to be shared by all machines"
        )

    def ended(self, patience: float = 1.0) -> list[str]:
        """Says of each process on this machine that has ended that it has.

        Args:
            patience: seconds to wait for one: its connections are gone before it is.
        """
        deadline = time.monotonic() + patience
        while True:
            found = [
                f"{self.named(rank)} (process id {place.pid}) has ended"
                for rank, place in enumerate(self.places)
                if place.host == self.places[self.rank].host and _has_ended(place.pid)
            ]
            if found or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def fails_first(self) -> bool:
        """Whether no other process has failed before; True where that cannot be told."""
        try:
            return int(self.store.add(FAILED, 1)) == 1
        except RuntimeError:  # the store is gone with the process that kept it
            return True

    def take_gpu(self, device: str) -> None:
        """Have ``cuda`` mean this process's own GPU.

        Raises:
            UserError: there are fewer than processes, or ``device`` names one for all.
        """
        import torch

        if self.size == 1 or device == "cpu" or not torch.cuda.is_available():
            return
        if ":" in device:
            raise UserError(
                f"device: {device} names one device, and there are {self.size} processes",
                hint=f"say device: {device.partition(':')[0]}, and each takes its own",
            )
        local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= count:
            raise UserError(
                f"{self.named(self.rank)} wants GPU {local}, and there are {count} there",
                hint=f"start as many processes on a machine: torchrun --nproc-per-node {count}",
            )
        torch.cuda.set_device(local)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.alone = True
        try:
            yield
        finally:
            self.alone = False

    def _told(self, what: Any) -> Any:
        """What the first process says."""
        import torch
        import torch.distributed as dist

        box = [what]
        with self._connected():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def _sum(
        self, own: list[Tensor], count: int, shape: torch.Size, dtype: torch.dtype, device: str
    ) -> Tensor:
        """The sum over all shards of one tensor.

        Every process adds up its slice of all of them, and then all get all slices: what goes
        over the wire does not grow with the number of processes.
        """
        import torch
        import torch.distributed as dist

        entries = shape.numel()
        slice_size = -(-entries // self.size)
        given = torch.zeros(len(own), self.size * slice_size, dtype=dtype, device=device)
        for row, one in zip(given, own, strict=True):
            row[:entries] = one.reshape(-1)
        # By who adds it up, and then by shard.
        given = given.view(len(own), self.size, slice_size).transpose(0, 1).contiguous()
        shards = [len(part) for part in cut(count, self.size)]
        arrived = torch.empty(count, slice_size, dtype=dtype, device=device)
        total = torch.empty(self.size * slice_size, dtype=dtype, device=device)
        with self._connected():
            dist.all_to_all_single(
                arrived.view(-1),
                given.view(-1),
                [shard * slice_size for shard in shards],
                [len(own) * slice_size] * self.size,
            )
            part = _added({"": row} for row in arrived)[""]
            dist.all_gather(list(total.split(slice_size)), part.contiguous())
        return total[:entries].view(shape)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Say of what a broken connection raises which process is gone, where that can be told."""
        try:
            yield
        except RuntimeError as error:
            raise ProcessLost(self._loss()) from error

    def _loss(self) -> str:
        others = f"another process than {self.named(self.rank)} has ended, or does not answer"
        return next(iter(self.ended()), others)


ALONE = World()
"""One process by itself."""


def cut(count: int, parts: int) -> list[range]:
    """``range(count)`` in so many runs, as even as can be, the longer ones first."""
    size, longer = divmod(count, parts)
    starts = [part * size + min(part, longer) for part in range(parts + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(starts)]


def _has_ended(pid: int) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _added(shares: Any) -> dict[Any, Any]:
    """The sums of tensors by name, in order."""
    shares = iter(shares)
    totals = dict(next(shares))
    for share in shares:
        for name, one in share.items():
            totals[name] = totals[name] + one
    return totals
