"""What a worker does: one run, of which the driver hears."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from permllm.core.threads import threads
from permllm.errors import UserError
from permllm.pipeline.reading import study_of_text
from permllm.registry import Registry
from permllm.results import RunResult
from permllm.runner.caching.object_store import ObjectStore
from permllm.runner.caching.store import Cache
from permllm.runner.determinism import deterministic
from permllm.runner.on_ray.messages import Answer, Failure, Letter, Order, Refused
from permllm.runner.one_run import OneRun
from permllm.runner.reporting import Event, Reporter
from permllm.runner.shared import Shared
from permllm.runner.study import done, seen_by
from permllm.runs.folder import PIPELINE
from permllm.runs.lock import OWNER
from permllm.runs.plan import plan_of
from permllm.world import SEEING_SECONDS, World

POST_SECONDS = 0.3
"""Between two letters."""


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
        event = Event.of(name, facts)
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
    store = _store(order.store)
    cache = Cache(Path(order.cache), order.cache_limit, Reporter(hook, None).warn, store)
    _check_shares(cache, order.witness)
    with deterministic(plan.pipeline.deterministic):
        world = World(shards=plan.pipeline.shards or 1)
        shared = Shared(plan, registry, cache, world, hook)
        seen |= seen_by(shared)
        _check_alike(seen, order.alike)
        [run] = [one for one in (plan.dense, *plan.runs) if one.label == order.label]
        return done(OneRun(shared, run), order.dense, order.versions)


def _store(url: str | None) -> ObjectStore | None:
    """The store behind the cache, which can be used here as where the study was started.

    Raises:
        Refused: it cannot.
    """
    if url is None:
        return None
    try:
        store = ObjectStore.at(url)
        store.check()
    except UserError as error:
        where = f"the Ray worker on {socket.gethostname()}"
        raise Refused(f"{where}: {error.message}", hint=error.hint) from error
    return store


def _check_shares(cache: Cache, witness: tuple[str, bytes] | None) -> None:
    """Refuse a worker whose cache is another one of the same name.

    Raises:
        Refused: it is; file systems of a network take some seconds to show what is new.
    """
    if witness is None:
        return
    name, content = witness
    deadline = time.monotonic() + SEEING_SECONDS
    while (sign := cache.leases.place.read(name)) is None or sign[0] != content:
        if time.monotonic() > deadline:
            raise Refused(
                f"the Ray worker on {socket.gethostname()} has another cache at "
                f"{cache.store or cache.folder} than there is where the study was started",
                hint="all machines of the cluster have to share it: name one with --cache that "
                "they do, or none",
            )
        time.sleep(0.1)


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
