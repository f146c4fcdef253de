"""What the driver does: it hands out runs, and tells observers what their workers say."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import attrs

from permllm.errors import UserError
from permllm.extras import need_ray
from permllm.pipeline.reading import resolved
from permllm.redaction import redacted
from permllm.registry import Registry
from permllm.results import RunResult
from permllm.runner.caching.leases import Lease
from permllm.runner.caching.store import Cache
from permllm.runner.on_ray.connecting import (
    NO_STATISTICS,
    Head,
    check_room,
    connect,
    first_line,
    taken_by,
)
from permllm.runner.on_ray.messages import Answer, Failure, Letter, Order
from permllm.runner.on_ray.worker import work
from permllm.runner.reporting import Event
from permllm.runner.shared import Shared
from permllm.runner.study import seen_by
from permllm.runs.lock import OWNER
from permllm.runs.plan import Plan, Run
from permllm.world import ALONE, World

RETRIES = 2
"""How often a run is done again whose worker was killed or whose machine died."""

LOOK_SECONDS = 0.3
"""Between two looks at what is done."""

BY_MACHINE = ("processor", "device", "dtype", "matmul", "deterministic")
"""Facts in which the driver, which computes nothing, may differ from the workers."""


@attrs.define(eq=False)
class Heard:
    """What a run's worker has told so far.

    Attributes:
        attempt: which attempt at the run it tells of.
        events: what happened in it.
        told: how many of them observers know.
        progress: how far it is, if they do not know.
        lost: whether a worker was lost before this one, and nobody has been told.
    """

    attempt: str = ""
    events: list[Event] = attrs.field(factory=list)
    told: int = 0
    progress: Event | None = None
    lost: bool = False

    def take(self, letter: Letter) -> None:
        """Take up what is new in a letter; one that was lost leaves that to the answer."""
        if letter.attempt != self.attempt:
            if letter.first:
                return
            self.lost |= bool(self.attempt)
            self.attempt, self.events, self.told = letter.attempt, [], 0
        self.progress = letter.progress or self.progress
        if letter.first <= len(self.events):
            self.events += letter.events[len(self.events) - letter.first :]

    def tell(self, hook: Any, run: Run) -> None:
        """Tell observers what they do not know."""
        if self.lost:
            self.lost = False
            hook.permllm_warning(message=f"the worker of '{run.label}' was lost: another goes on")
        while self.told < len(self.events):
            self.told += 1
            self.events[self.told - 1].tell(hook, run)
        if self.progress is not None and self.told:
            progress, self.progress = self.progress, None
            progress.tell(hook, run)


@attrs.define(eq=False)
class RayCluster:
    """A Ray cluster that does runs; see :data:`permllm.runner.study.Execute`.

    Attributes:
        address: ``host:port``, or ``auto`` for one that runs on this machine; None starts one here.
        retries: how often a run is done again whose worker was lost.
    """

    address: str | None = None
    retries: int = RETRIES
    _alike: dict[str, Any] = attrs.field(factory=dict)
    _head: Head = attrs.field(init=False)

    @classmethod
    def named(cls, on: str, world: World = ALONE) -> RayCluster:
        """The cluster that ``ray`` or ``ray:ADDRESS`` names.

        Args:
            on: the name.
            world: the processes that want its runs done.

        Raises:
            UserError: it names none, Ray is missing, or there are several processes already.
        """
        where, _, address = on.partition(":")
        if where != "ray":
            raise UserError(f"--on says where runs are done: ray or ray:ADDRESS, not {on}")
        if world.size > 1:
            raise UserError(
                "--on ray gives each run to one process, and torchrun has started several"
            )
        need_ray("--on ray")
        return cls(address or None)

    @contextmanager
    def connected(self, plan: Plan) -> Iterator[None]:
        """Be connected for the block.

        Args:
            plan: what is to be done.

        Raises:
            UserError: Ray is missing or does not answer, or no machine has what a run takes.
        """
        need_ray("--on ray")
        os.environ.setdefault(NO_STATISTICS, "0")
        import ray

        # Somebody who calls from Python may be connected already, and wants to stay so.
        own = not ray.is_initialized()
        if own:
            connect(self.address or os.environ.get("RAY_ADDRESS") or "local")
        self._head = Head(ray.get_runtime_context().gcs_address)
        try:
            check_room(plan)
            yield
        finally:
            # To take leave of a head that is gone would end the process before it has said so.
            if own and not self._head.lost:
                ray.shutdown()

    def __call__(
        self,
        shared: Shared,
        runs: Sequence[Run],
        dense: RunResult | None,
        versions: Mapping[str, str],
    ) -> Iterator[tuple[Run, Callable[[], RunResult]]]:
        """Do runs, and give each once it is done and all is told of it."""
        import ray

        gpus, cpus = taken_by(shared.plan)
        task = ray.remote(work).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=self.retries, name="permllm"
        )
        mailbox = _Mailbox.new()
        cache = shared.stages.cache
        assert cache is not None
        witness = cache.leases.of("study", secrets.token_hex(32))
        if cache.opened():
            witness.asked(0, lambda whose, over: None)
        order = partial(self._order, shared, cache, witness, dense, versions, cpus)
        waiting = {task.remote(order(run), mailbox.post): run for run in runs}
        answers: dict[str, Answer] = {}
        heard = {run.label: Heard() for run in runs}
        try:
            for run in runs:
                shared.turn_to(run)
                mine, hook = heard[run.label], shared.reporter.hook
                while run.label not in answers:
                    for letter in mailbox.letters():
                        heard[letter.label].take(letter)
                    mine.tell(hook, run)
                    if not mine.told:
                        shared.reporter.progress("waiting for a worker of Ray", 0, 1)
                    answers |= self._answers(waiting)
                answer = answers[run.label]
                if answer.letter is not None:
                    mine.take(answer.letter)
                # How far it was before that, nobody wants to know any more.
                mine.progress = None
                mine.tell(hook, run)
                yield run, answer.taken
        finally:
            # Nobody would hear of those that are still at work. Where the connection is gone, they
            # are, too, and Ray would start anew.
            for reference in waiting if ray.is_initialized() and not self._head.lost else ():
                ray.cancel(reference, force=True)
            witness.release()

    def _order(
        self,
        shared: Shared,
        cache: Cache,
        witness: Lease,
        dense: RunResult | None,
        versions: Mapping[str, str],
        cpus: int,
        run: Run,
    ) -> Order:
        plan = shared.plan
        out = plan.out.absolute()
        if not self._alike:
            seen = seen_by(shared) | {"number of threads": cpus}
            self._alike = {what: value for what, value in seen.items() if what not in BY_MACHINE}
        return Order(
            pipeline=pipeline_text(plan, shared.registry),
            label=run.label,
            out=str(out),
            owner=(out / OWNER).read_bytes(),
            cache=str(cache.folder.absolute()),
            cache_limit=cache.limit,
            store=None if cache.store is None else cache.store.url,
            witness=(witness.name, witness.leases.me) if witness.mine else None,
            disabled=shared.registry.disabled,
            plugin_files=shared.registry.digests(plan.pipeline.plugins),
            threads=cpus,
            alike=self._alike,
            dense=dense,
            versions=dict(versions),
        )

    def _answers(self, waiting: dict[Any, Run]) -> dict[str, Answer]:
        """What became of runs that are done by now, by label; they are no longer waited for.

        Raises:
            UserError: a worker cannot take part.
            RunFailed: the cluster's head is gone.
        """
        import ray

        self._head.check()
        # Asleep in Ray, a process forgets which signal woke it.
        time.sleep(LOOK_SECONDS)
        ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        answers = {}
        for reference in ready:
            run = waiting.pop(reference)
            try:
                answer = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                # It did not get so far as to do anything: permllm is missing there, say.
                raise UserError(
                    f"a Ray worker cannot do '{run.label}': {_last_line(error)}",
                    hint="all machines of the cluster need the same permllm[ray]",
                ) from error
            except ray.exceptions.RayError as error:
                lost = f"its worker on Ray was lost {_times(self.retries + 1)}"
                answer = Answer(failure=Failure(f"{lost}: {first_line(error)}"))
            if answer.refused:
                answer.taken()
            # What the first has seen of its machine counts for all others.
            self._alike = {**answer.seen, **self._alike}
            answers[run.label] = answer
        return answers


@attrs.frozen(eq=False)
class _Mailbox:
    """Letters of workers, which wait in an actor on the driver's machine.

    Attributes:
        queue: Ray's.
    """

    queue: Any

    @classmethod
    def new(cls) -> _Mailbox:
        import ray
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(node, soft=True)
        return cls(Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here}))

    def post(self, letter: Letter) -> None:
        self.queue.put_nowait(letter)

    def letters(self) -> list[Letter]:
        """Those that have come; none where the actor was lost, since answers bring all again."""
        with suppress(Exception):
            return list(self.queue.get_nowait_batch(self.queue.qsize()))
        return []


def pipeline_text(plan: Plan, registry: Registry) -> str:
    """A plan's resolved pipeline, as a worker reads it.

    Whole, unlike what is written to files: a data set may be read with a password. Those of
    tracking stores stay here.
    """
    plain = resolved(plan.pipeline, registry)
    return json.dumps(plain | {"track": redacted(plain["track"])}, ensure_ascii=False)


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
