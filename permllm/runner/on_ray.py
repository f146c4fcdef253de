"""Does the runs of a study on a Ray cluster, each as one machine would do it.

A run is a task. What goes to its worker is plain data: the resolved pipeline as text, the run's
label and the study's folder, which all machines see. The worker reads the plan from that, and does
the run as :func:`permllm.runner.study.done` does it everywhere; its result is in the run's folder
before anybody hears of it. Workers share the study's cache, and so compute nothing twice.

Observers are the driver's. They hear of one run at a time, in the order of the plan, as from one
machine: what others have to tell waits meanwhile.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import attrs
import torch

from permllm.core.threads import threads
from permllm.errors import NoSpace, PermllmError, RunFailed, UserError
from permllm.exhaustion import cannot_write
from permllm.extras import need_ray
from permllm.meeting import knock
from permllm.pipeline.reading import resolved, study_of_text
from permllm.redaction import redacted
from permllm.registry import Registry
from permllm.results import RunResult
from permllm.runner.caching.store import Cache
from permllm.runner.determinism import deterministic
from permllm.runner.one_run import OneRun
from permllm.runner.reporting import Reporter
from permllm.runner.shared import Shared
from permllm.runner.study import done, seen_by
from permllm.runs.folder import PIPELINE
from permllm.runs.lock import OWNER
from permllm.runs.plan import Plan, Run, plan_of
from permllm.world import World

CONNECTING_SECONDS = 15.0
"""So long an address is tried."""

RETRIES = 2
"""How often a run is done again whose worker was killed or whose machine died."""

LOOK_SECONDS, POST_SECONDS = 0.3, 0.3
"""Between two looks of the driver, and between two letters of a worker."""

BY_MACHINE = ("processor", "device", "dtype", "matmul", "deterministic")
"""Facts in which the driver, which computes nothing, may differ from the workers."""

NO_STATISTICS = "RAY_USAGE_STATS_ENABLED"
"""The variable that has Ray send its makers nothing, unless somebody has set it."""


@attrs.frozen
class Order:
    """What a worker is told of a run; plain data.

    Attributes:
        pipeline: the resolved one, as text; its paths are absolute.
        label: of the run.
        out: the study's folder.
        owner: what stands in the folder, by which it is known to be the same.
        cache, cache_limit: the cache, and the bytes that it may take.
        disabled: plugins that are not loaded.
        plugin_files: the SHA-256 of each file that the pipeline names; no other is run.
        threads: so many compute.
        alike: what has to be the same as everywhere, by what it is called.
        dense: the dense model's figures; None where that is the run.
        versions: of permllm, torch and so on, where the study was started.
    """

    pipeline: str
    label: str
    out: str
    owner: bytes
    cache: str
    cache_limit: int
    disabled: tuple[str, ...]
    plugin_files: Mapping[str, str]
    threads: int
    alike: Mapping[str, Any]
    dense: RunResult | None
    versions: Mapping[str, str]


@attrs.frozen
class Event:
    """A call of a hook, without its run.

    Attributes:
        hook: its name.
        facts: its arguments.
        of_run: whether the run is one of them; None where it has no such argument.
    """

    hook: str
    facts: dict[str, Any]
    of_run: bool | None

    def tell(self, hook: Any, run: Run) -> None:
        """Call the hook, for this run."""
        whose = {} if self.of_run is None else {"run": run if self.of_run else None}
        getattr(hook, self.hook)(**whose, **self.facts)


@attrs.frozen
class Letter:
    """What a worker has to tell so far.

    Attributes:
        label: of its run.
        attempt: a run that is done again begins anew.
        first: how many events were in letters before.
        events: what happened since.
        progress: how far it is.
    """

    label: str
    attempt: str
    first: int
    events: tuple[Event, ...]
    progress: Event | None = None


@attrs.frozen
class Failure:
    """What broke a run, as plain data: nobody else may have its class.

    Attributes:
        message: in a line, with the class where it is not one of permllm's own.
        hint: what to do about it.
        users: whether the user has to mend it.
        full: why nothing more can be written, if that is it.
    """

    message: str
    hint: str | None = None
    users: bool = False
    full: str | None = None

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """What an error says."""
        first = str(error).strip().partition("\n")[0]
        own = first if isinstance(error, PermllmError) else f"{type(error).__name__}: {first}"
        hint = error.hint if isinstance(error, UserError) else None
        return cls(own, hint, isinstance(error, UserError), cannot_write(error))

    def error(self) -> PermllmError:
        """The error to be raised in its place."""
        if self.full:
            return NoSpace(self.message)
        return UserError(self.message, hint=self.hint) if self.users else RunFailed(self.message)


@attrs.frozen
class Answer:
    """What became of a run.

    Attributes:
        result: its result, or None.
        failure: what broke it.
        refused: whether that is so for all runs on this machine.
        seen: what the worker saw of all that has to be the same.
        letter: all that there was to tell.
    """

    result: RunResult | None = None
    failure: Failure | None = None
    refused: bool = False
    seen: Mapping[str, Any] = attrs.field(factory=dict)
    letter: Letter | None = None

    def taken(self) -> RunResult:
        """The result.

        Raises:
            PermllmError: the run broke.
        """
        if self.failure is not None:
            raise self.failure.error()
        assert self.result is not None
        return self.result


class Refused(UserError):
    """A worker that cannot take part."""


def pipeline_text(plan: Plan, registry: Registry) -> str:
    """A plan's resolved pipeline, as a worker reads it.

    Whole, unlike what is written to files: a data set may be read with a password. Those of
    tracking stores stay here.
    """
    plain = resolved(plan.pipeline, registry)
    return json.dumps(plain | {"track": redacted(plain["track"])}, ensure_ascii=False)


# --- in a worker ----------------------------------------------------------------------


@attrs.define(eq=False)
class Forwarding:
    """The life-cycle hooks in a worker, which go to the driver.

    Attributes:
        label: of the run.
        post: sends a letter; whatever that raises, the answer brings what was in it, too.
        attempt: tells this attempt at the run from others.
        events: all that happened, but how far stages were.
        progress: how far the stage is, if that has not gone.
        begun: whether the run has; what was found for all runs before that, the driver has said.
        sent: how many of them have gone.
        due: when the next letter goes.
    """

    label: str
    post: Callable[[Letter], None]
    attempt: str = attrs.field(factory=partial(secrets.token_hex, 8))
    events: list[Event] = attrs.field(factory=list)
    progress: Event | None = None
    begun: bool = False
    sent: int = 0
    due: float = 0.0

    def __getattr__(self, name: str) -> Callable[..., list[Any]]:
        if not name.startswith("permllm_"):
            raise AttributeError(name)
        return partial(self._heard, name)

    def letter(self) -> Letter:
        """One with all events."""
        return Letter(self.label, self.attempt, 0, tuple(self.events))

    def _heard(self, name: str, **facts: Any) -> list[Any]:
        self.begun |= name == "permllm_run_started"
        if name == "permllm_stage_reused" and not self.begun:
            return []
        of_run = facts.pop("run") is not None if "run" in facts else None
        event = Event(name, facts, of_run)
        if name == "permllm_progress":
            self.progress = event
        else:
            self.events.append(event)
        if time.monotonic() >= self.due:
            news = tuple(self.events[self.sent :])
            with suppress(Exception):
                self.post(Letter(self.label, self.attempt, self.sent, news, self.progress))
            self.sent, self.progress = len(self.events), None
            self.due = time.monotonic() + POST_SECONDS
        return []


def work(order: Order, post: Callable[[Letter], None]) -> Answer:
    """Do a run as one machine would, and say what became of it."""
    hook = Forwarding(order.label, post)
    seen: dict[str, Any] = {}
    try:
        with threads(order.threads):
            return Answer(_result(order, hook, seen), seen=seen, letter=hook.letter())
    except Exception as error:
        refused = isinstance(error, Refused)
        return Answer(None, Failure.of(error), refused, seen, hook.letter())


def _result(order: Order, hook: Forwarding, seen: dict[str, Any]) -> RunResult:
    out = Path(order.out)
    _check_sees(out, order.owner)
    registry = Registry.load(order.disabled)
    study = study_of_text(
        order.pipeline, PIPELINE, out, registry, recorded=lambda name: order.plugin_files
    )
    plan = plan_of(study, out)
    cache = Cache(Path(order.cache), order.cache_limit, Reporter(hook, None).warn)
    with deterministic(plan.pipeline.deterministic):
        world = World(shards=plan.pipeline.shards or 1)
        shared = Shared(plan, registry, cache, world, hook)
        seen |= seen_by(shared)
        _check_alike(seen, order.alike)
        [run] = [one for one in (plan.dense, *plan.runs) if one.label == order.label]
        return done(OneRun(shared, run), order.dense, order.versions)


def _check_sees(out: Path, owner: bytes) -> None:
    """Refuse a worker that does not see the study's folder, or another one of its name.

    Raises:
        Refused: it does not.
    """
    try:
        same = (out / OWNER).read_bytes() == owner
    except OSError:
        same = False
    if not same:
        raise Refused(
            f"the Ray worker on {socket.gethostname()} does not see the study's folder {out}",
            hint="all machines of the cluster have to share it: choose an --out that they do",
        )


def _check_alike(seen: Mapping[str, Any], alike: Mapping[str, Any]) -> None:
    """Refuse a worker that would come to other figures.

    Raises:
        Refused: names the machine, what differs, and how.
    """
    for what, value in alike.items():
        if seen.get(what) != value:
            raise Refused(
                f"the Ray worker on {socket.gethostname()} has another {what} than there is "
                f"elsewhere in this study: {seen.get(what)}, and not {value}",
                hint="all machines of the cluster need the same files, versions and devices",
            )


# --- in the driver --------------------------------------------------------------------


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
            _connect(self.address or os.environ.get("RAY_ADDRESS") or "local")
        try:
            _check_room(plan)
            yield
        finally:
            if own:
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

        gpus, cpus = _taken_by(shared.plan)
        task = ray.remote(work).options(
            num_cpus=cpus, num_gpus=gpus, max_retries=self.retries, name="permllm"
        )
        mailbox = _Mailbox.new()
        order = partial(self._order, shared, dense, versions, cpus)
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
            for reference in waiting if ray.is_initialized() else ():
                ray.cancel(reference, force=True)

    def _order(
        self,
        shared: Shared,
        dense: RunResult | None,
        versions: Mapping[str, str],
        cpus: int,
        run: Run,
    ) -> Order:
        plan, cache = shared.plan, shared.stages.cache
        assert cache is not None
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
        """
        import ray

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
                answer = Answer(failure=Failure(f"{lost}: {_first_line(error)}"))
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


def _connect(address: str) -> None:
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
            why = "it asks for another token" if asks else _first_line(error)
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


def _taken_by(plan: Plan) -> tuple[int, int]:
    """GPUs and CPUs of a run."""
    import ray

    asked = plan.pipeline.resources
    some = plan.pipeline.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
    gpus = int(some) if asked.gpus is None else asked.gpus
    return gpus, asked.cpus or torch.get_num_threads()


def _check_room(plan: Plan) -> None:
    """Refuse a cluster without a machine that a run fits on, where it would wait for ever.

    Raises:
        UserError: there is none.
    """
    import ray

    gpus, cpus = _taken_by(plan)
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


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _last_line(error: BaseException) -> str:
    return str(error).strip().rpartition("\n")[2]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
