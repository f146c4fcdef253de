"""Processes that share work: what each has, and that all get the same to the bit."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrun import torchrun

from permllm.core.digest import tensor_digest
from permllm.errors import RunFailed, UserError
from permllm.world import ALONE, Place, ProcessLost, World, cut

SCRIPT = Path(__file__).parent / "many" / "shared_work.py"


@given(st.integers(0, 50), st.integers(1, 12))
def test_a_cut_has_every_piece_once_and_parts_of_like_size(count: int, parts: int) -> None:
    found = cut(count, parts)
    assert [piece for part in found for piece in part] == list(range(count))
    assert len(found) == parts
    sizes = [len(part) for part in found]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(st.integers(0, 40), st.integers(1, 9))
def test_every_piece_is_some_process_s_own(count: int, size: int) -> None:
    own = [piece for rank in range(size) for piece in World(rank, size).own(count)]
    assert own == list(range(count))


@given(st.lists(st.floats(0, 1e6), max_size=30), st.integers(1, 6))
def test_a_fair_deal_has_every_piece_once_and_no_process_idle(
    costs: list[float], size: int
) -> None:
    shares = [World(rank, size).fair(costs) for rank in range(size)]
    assert sorted(piece for share in shares for piece in share) == list(range(len(costs)))
    loads = [sum(costs[piece] for piece in share) for share in shares]
    # As of any list schedule: none has more than another by more than its last piece.
    assert max(loads) - min(loads) <= max(costs, default=0.0) + 1e-6


@given(st.integers(1, 40), st.integers(1, 12))
def test_no_shard_is_empty(count: int, shards: int) -> None:
    found = World(shards=shards).cut(count)
    assert len(found) == min(count, shards)
    assert all(found)


def test_one_process_has_all_and_agrees_with_itself() -> None:
    assert ALONE.leads
    assert not ALONE.many
    assert ALONE.own(5) == range(5)
    assert ALONE.agreed(lambda: 3) == 3
    assert ALONE.gathered([1, 2]) == [1, 2]
    assert ALONE.followed(lambda: 4, str, int) == 4
    ALONE.check_alike({"a": 1})
    sums = ALONE.summed(3, lambda shard: {"x": torch.tensor([float(shard)])})
    assert sums["x"].item() == 3


def test_neighbours_are_those_on_the_same_machine() -> None:
    places = (Place("a", 1), Place("b", 2), Place("b", 3))
    assert [World(rank, 3, places=places).neighbours for rank in range(3)] == [1, 2, 2]
    assert World(1, 3, places=places).named(0) == "process 0 of 3 on a"
    assert ALONE.neighbours == 1


def test_a_process_by_itself_leads_and_shares_the_machine_as_before() -> None:
    places = (Place("a", 1), Place("b", 2), Place("b", 3))
    world = World(2, 3, shards=4, places=places)
    own = world.apart()
    assert own.leads
    assert not own.many
    assert own.own(5) == range(5)
    assert own.cut(8) == world.cut(8)
    assert own.neighbours == 2
    assert own.agreed(lambda: 3) == 3
    assert world.many
    assert not world.leads


class Counting:
    """A store that counts as that of processes does."""

    def __init__(self, **counts: int) -> None:
        self.counts = counts

    def add(self, key: str, more: int) -> int:
        self.counts[key] = self.counts.get(key, 0) + more
        return self.counts[key]


def test_those_who_meet_wait_until_all_are_there() -> None:
    store = Counting()
    places = (Place("a", os.getpid()), Place("b", 2))
    later = threading.Timer(0.3, store.add, ("met at the gate", 1))
    later.start()
    began = time.monotonic()
    World(0, 2, places=places, store=store).met("the gate")
    assert time.monotonic() - began > 0.2
    assert store.counts == {"met at the gate": 2}


def test_those_who_meet_do_not_wait_for_one_that_has_ended() -> None:
    places = (Place("here", os.getpid()), Place("here", 2**22 + 1))
    with pytest.raises(ProcessLost, match=r"process 1 of 2 on here .* has ended"):
        World(0, 2, places=places, store=Counting()).met("the gate")


def test_one_gpu_for_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    world = World(1, 2)
    with pytest.raises(UserError, match="cuda:1 names one device, and there are 2 processes"):
        world.take_gpu("cuda:1")
    with pytest.raises(UserError, match="wants GPU 1, and there are 1 there"):
        world.take_gpu("auto")
    world.take_gpu("cpu")
    monkeypatch.setenv("LOCAL_RANK", "0")
    world.take_gpu("cuda")
    assert chosen == [0]


def test_a_process_that_has_ended_is_named() -> None:
    places = (Place("here", os.getpid()), Place("here", 2**22 + 1), Place("there", 2**22 + 1))
    world = World(0, 3, places=places)
    assert world.ended() == [f"process 1 of 3 on here (process id {2**22 + 1}) has ended"]


def test_a_file_that_is_not_shared_is_named() -> None:
    error = World(1, 2, places=(Place("a", 1), Place("b", 2))).blind(Path("x/y"))
    assert isinstance(error, RunFailed)
    assert str(error).startswith("process 1 of 2 on b does not see x/y")


def test_a_file_is_waited_for_a_while(tmp_path: Path) -> None:
    late = tmp_path / "late"
    threading.Timer(0.3, late.touch).start()
    ALONE.look_for(late, patience=30)
    with pytest.raises(RunFailed, match="does not see"):
        ALONE.look_for(tmp_path / "never", patience=0.2)


@pytest.fixture(scope="module")
def alone() -> dict[str, object]:
    """What one process finds."""
    import shared_work

    return shared_work.found(World(shards=shared_work.SHARDS))


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_finds_the_same(processes: int, alone: dict[str, object]) -> None:
    done = torchrun(processes, SCRIPT)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(said) == processes
    for one in said:
        assert one == alone


def test_shards_decide_the_bits() -> None:
    import shared_work

    first, second = (
        tensor_digest(shared_work.total(World(shards=shards))) for shards in (1, shared_work.SHARDS)
    )
    assert first != second
    torch.testing.assert_close(
        shared_work.total(World(shards=1)), shared_work.total(World(shards=3)), rtol=1e-4, atol=1e-5
    )
