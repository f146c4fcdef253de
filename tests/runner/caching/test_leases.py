"""Nobody computes what another is computing; whoever died or stands still keeps nobody waiting."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from s3_server import with_s3
from stores import empty_store

from permllm.files import ABANDONED_SECONDS
from permllm.runner.caching.leases import (
    LEASES,
    TURNS,
    Lease,
    LeaseFolder,
    LeasePlace,
    Leases,
)
from permllm.runner.caching.memo import Stages
from permllm.runner.caching.store import Cache
from permllm.runs.lock import Owner

KEY = "a" * 64

WORKER = """
import sys, time
from pathlib import Path
from permllm.runner.caching.leases import LeaseFolder, Leases
from permllm.runner.caching.memo import Stages
from permllm.runner.caching.store import Cache

folder, name, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])

def compute():
    (folder.parent / f"computed by {name}").touch()
    time.sleep(seconds)
    return {"x": 1.5}

place = LeaseFolder(folder / "leases")
cache = Cache(folder, leases=Leases(place, ttl=float(sys.argv[4]), beat=0.1))
print("ready", flush=True)
sys.stdin.readline()
assert Stages(cache).figures("figures", "a" * 64, compute, stage="a stage") == {"x": 1.5}
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def start(cache: Cache) -> Iterator[Start]:
    """Starts a process that wants the figures of :data:`KEY`, and has imported everything."""
    begun: list[subprocess.Popen[str]] = []

    def begin(name: str, seconds: float, ttl: float = 600.0) -> subprocess.Popen[str]:
        words = [str(cache.folder), name, str(seconds), str(ttl)]
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WORKER, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def ended(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def computed(cache: Cache) -> list[str]:
    """Who has begun to compute."""
    return sorted(path.name.split()[-1] for path in cache.folder.parent.glob("computed by *"))


def wait_for(fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def figures(cache: Cache, told: list[tuple[str, int]] | None = None) -> dict[str, float]:
    """The figures as this process finds or computes them, with a value of its own."""
    note = [] if told is None else told
    stages = Stages(cache, on_wait=lambda *what: note.append(what))
    return stages.figures("figures", KEY, lambda: {"x": 2.5}, stage="a stage")


def left(cache: Cache) -> list[Path]:
    return list((cache.folder / LEASES).iterdir())


def test_two_processes_compute_what_both_want_once(cache: Cache, start: Start) -> None:
    processes = [start("one", 0.5), start("two", 0.5)]
    for process in processes:
        go(process)
    for process in processes:
        ended(process)
    assert len(computed(cache)) == 1
    assert [entry.kind for entry in cache.entries()] == ["figures"]
    assert left(cache) == []


def test_who_waits_says_for_whom_and_finds_what_the_other_computed(
    cache: Cache, start: Start
) -> None:
    other, told = start("other", 3.0), []
    go(other)
    wait_for(lambda: computed(cache))
    assert figures(cache, told) == {"x": 1.5}
    ended(other)
    whose = f"a stage: waiting for process {other.pid} on {socket.gethostname()}"
    assert [(stage.partition(" (")[0], over) for stage, over in told] == [(whose, 0), (whose, 1)]


def test_nobody_waits_for_a_process_that_was_killed(cache: Cache, start: Start) -> None:
    other = start("other", 600)
    go(other)
    wait_for(lambda: computed(cache))
    assert len(left(cache)) == 1
    other.kill()
    other.wait()
    assert figures(cache) == {"x": 2.5}
    assert left(cache) == []


def test_a_process_that_stands_still_keeps_others_waiting_for_a_while(
    cache: Cache, start: Start
) -> None:
    other, quick = start("other", 1.0), Leases(cache.leases.place, ttl=1.5)
    go(other)
    wait_for(lambda: computed(cache))
    other.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert figures(attrs.evolve(cache, leases=quick)) == {"x": 2.5}
    assert time.monotonic() - began >= 1.5
    # It goes on as if nothing had been, and takes nothing away from whoever came after it.
    with_lease = quick.of("figures", KEY)
    assert with_lease.asked(0, silent)
    other.send_signal(signal.SIGCONT)
    ended(other)
    assert left(cache) == [cache.folder / LEASES / with_lease.name]


def test_waiting_can_be_interrupted(cache: Cache, foreign: Lease) -> None:
    me = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    me.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            figures(cache)
    finally:
        me.join()
        signal.signal(signal.SIGINT, before)
    assert left(cache) == [cache.folder / LEASES / foreign.name]


def silent(whose: str, over: bool) -> None:
    pass


def leases_of(place: LeasePlace, host: str, pid: int, beat: float = 0.05) -> Leases:
    """The leases of another process."""
    leases = Leases(place, ttl=600.0, beat=beat)
    owner = Owner(host, pid, "2026-01-01 00:00:00")
    object.__setattr__(leases, "me", json.dumps(attrs.asdict(owner)).encode())
    return leases


@pytest.fixture
def foreign(cache: Cache) -> Iterator[Lease]:
    """The lease of the figures of a process on another machine."""
    cache.opened()
    lease = leases_of(cache.leases.place, "elsewhere", 1).of("figures", Stages(cache)._kept_as(KEY))
    assert lease.asked(0, silent)
    yield lease
    lease.release()


@pytest.fixture(params=["folder", "memory", "file", pytest.param("s3", marks=with_s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> LeasePlace:
    """Where leases may be, none of which is there."""
    if request.param == "folder":
        return LeaseFolder(tmp_path)
    if request.param == "s3":
        request.getfixturevalue("s3")
    return empty_store(request.param, tmp_path)


def test_a_lease_is_taken_once_and_given_back(place: LeasePlace) -> None:
    mine, other = Leases(place), leases_of(place, "elsewhere", 1)
    lease, again, others = (
        mine.of("windows", KEY),
        mine.of("windows", KEY),
        other.of("windows", KEY),
    )
    assert lease.asked(0, silent)
    # Within what is computed under it, nobody waits for oneself.
    assert again.asked(0, silent)
    assert not others.asked(0.1, silent)
    again.release()
    others.release()
    assert place.read(lease.name) is not None
    assert mine.of("states", KEY).asked(0, silent)
    lease.release()
    assert others.asked(0, silent)


def test_a_living_owner_of_another_machine_is_waited_for(place: LeasePlace) -> None:
    foreign = leases_of(place, "elsewhere", 1).of("tokens", KEY)
    assert foreign.asked(0, silent)
    mine = Leases(place, ttl=0.5)
    # By its touches: that is three times as long as one that stands still is waited for.
    assert not mine.of("tokens", KEY).asked(1.5, silent)
    foreign._released.set()  # as if its machine had lost power
    assert mine.of("tokens", KEY).asked(60, silent)
    sign = place.read(foreign.name)
    assert sign is not None
    assert sign[0] == mine.me
    foreign.release()
    assert place.read(foreign.name) == sign


@pytest.mark.parametrize("content", [b"", b"\xff", b"[", b"[]", b'{"host": 3}', b"x" * 9999])
def test_a_lease_of_nobody_runs_out(place: LeasePlace, content: bytes) -> None:
    lease = Leases(place, ttl=0.3).of("tokens", KEY)
    place.create(lease.name, content)
    assert not lease.asked(0.1, silent)
    assert lease.asked(60, silent)
    assert lease.mine


def test_who_waits_for_nothing_time_and_again_goes_on_without(place: LeasePlace) -> None:
    waiting = Leases(place).of("tokens", KEY)
    for pid in range(TURNS):
        owner = leases_of(place, "elsewhere", pid, beat=600.0).of("tokens", KEY)
        place.remove(waiting.name)
        assert owner.asked(0, silent)
        assert not waiting.asked(0, silent)
    place.remove(waiting.name)
    place.create(waiting.name, b"yet another")
    assert waiting.asked(0, silent)
    assert not waiting.mine
    waiting.release()
    assert place.read(waiting.name) is not None


def test_one_alone_breaks_the_lease_of_a_dead_owner(tmp_path: Path) -> None:
    place = LeaseFolder(tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    place.create(f"tokens-{KEY}.lease", leases_of(place, socket.gethostname(), dead.pid).me)
    inside, most = [], []

    def want(number: int) -> None:
        # Each as a process by itself.
        lease = Leases(place).of("tokens", KEY)
        assert lease.asked(60, silent)
        if lease.mine:
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)
        lease.release()

    threads = [threading.Thread(target=want, args=(number,)) for number in range(TURNS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert list(tmp_path.iterdir()) == []


def test_one_taken_anew_while_it_was_to_be_broken_stays(place: LeasePlace) -> None:
    other = leases_of(place, "elsewhere", 1)
    lease = other.of("tokens", KEY)
    assert lease.asked(0, silent)
    place.take_away(lease.name, b"what stood there before")
    sign = place.read(lease.name)
    assert sign is not None
    assert sign[0] == other.me
    lease.release()
    assert place.read(lease.name) is None
    if isinstance(place, LeaseFolder):
        assert list(place.folder.iterdir()) == []


def test_without_a_place_for_leases_work_goes_on(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.opened()
    (cache.folder / LEASES).write_text("in the way")
    lease = cache.leases.of("tokens", KEY)
    assert lease.asked(0, silent)
    assert not lease.mine
    assert figures(cache) == {"x": 2.5}
    assert (cache.folder / LEASES).read_text() == "in the way"


def test_no_lease_is_taken_where_there_can_be_no_cache(tmp_path: Path) -> None:
    mine = tmp_path / "holiday.jpg"
    mine.write_text("mine")
    said: list[str] = []
    assert figures(Cache(tmp_path, warn=said.append)) == {"x": 2.5}
    assert list(tmp_path.iterdir()) == [mine]
    assert len(said) == 1


def test_what_is_given_back_stays_so_though_it_was_just_being_touched(place: LeasePlace) -> None:
    for _ in range(20):
        lease = leases_of(place, "elsewhere", 1, beat=0.001).of("tokens", KEY)
        assert lease.asked(0, silent)
        time.sleep(0.01)
        lease.release()
    time.sleep(0.1)
    assert place.read(lease.name) is None


def test_several_are_taken_in_one_order_and_all_given_back(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []
    asked = Lease.asked
    monkeypatch.setattr(
        Lease, "asked", lambda self, *more: taken.append(self.name) or asked(self, *more)
    )
    stages = Stages(cache)
    for keys in (["a", None, "b", "c"], ["c", "b", "a", "b"]):
        with stages.leased("statistics", keys, stage="statistics"):
            assert len(left(cache)) == 3
        assert left(cache) == []
    assert taken[:3] == taken[3:] == sorted(taken[:3])


def test_leases_are_no_entries_and_go_with_what_dead_processes_left(cache: Cache) -> None:
    figures(cache)
    folder, place = cache.folder / LEASES, cache.leases.place
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = socket.gethostname()
    owners = {
        "0": (here, dead.pid, 0.0, True),
        "1": (here, os.getppid(), 0.0, False),
        "2": (here, os.getpid(), 0.0, False),
        "3": ("elsewhere", dead.pid, 0.0, False),
        "4": ("elsewhere", 1, ABANDONED_SECONDS + 60, True),
    }
    for digit, (host, pid, age, _) in owners.items():
        path = folder / f"states-{digit * 64}.lease"
        path.write_bytes(leases_of(place, host, pid).me)
        os.utime(path, (time.time() - age,) * 2)
    broken = folder / f"states-{'5' * 64}.lease.{'0' * 16}.broken"
    broken.write_bytes(leases_of(place, here, dead.pid).me)
    mine = folder / "new flat.lease"
    mine.write_bytes(leases_of(place, here, dead.pid).me)
    os.utime(mine, (0, 0))
    cache.check()
    assert [entry.kind for entry in cache.entries()] == ["figures"]
    assert len(cache.make_room(0)) == 1
    assert cache.sweep() == 3
    assert sorted(path.name[7] for path in folder.glob("states-*")) == ["1", "2", "3"]
    assert mine.exists()


def test_an_owner_that_fails_keeps_nobody_waiting(cache: Cache) -> None:
    def fail() -> dict[str, float]:
        raise ArithmeticError("not today")

    with pytest.raises(ArithmeticError):
        Stages(cache).figures("figures", KEY, fail, stage="a stage")
    assert left(cache) == []
