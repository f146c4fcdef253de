"""A store that is away: what waits is done later, in order, and waiting has an end."""

from __future__ import annotations

import signal
import threading

import pytest

from permllm.observers.outbox import (
    LONGEST_ABSENCE,
    LONGEST_PAUSE,
    MOST_WAITING,
    PATIENCE,
    AwayError,
    Outbox,
)


class Shop:
    """A store that takes so many seconds to say that it is away, on a clock of its own."""

    def __init__(self, slow: float = 0.0) -> None:
        self.time, self.slow, self.away = 100.0, slow, False
        self.done: list[int] = []
        self.tries: list[float] = []
        self.given_up: list[str] = []
        self.outbox = Outbox(
            lambda error, missing: self.given_up.append(f"{error}: {missing}"),
            (AwayError, ValueError),
            now=lambda: self.time,
            sleep=self.pass_time,
        )

    def pass_time(self, seconds: float) -> None:
        self.time += seconds

    def take(self, number: int) -> None:
        self.tries.append(self.time)
        if self.away:
            self.time += self.slow
            raise AwayError("nobody answers")
        self.done.append(number)

    def add(self, number: int, what: str | None = None) -> None:
        self.outbox.add(what or f"number {number}", self.take, number)


def test_what_can_be_done_is_done_at_once() -> None:
    shop = Shop()
    for number in range(3):
        shop.add(number)
        assert shop.done == list(range(number + 1))


def test_the_run_goes_on_while_a_store_is_away_and_all_follows_in_order() -> None:
    shop = Shop()
    shop.add(0)
    shop.away = True
    for number in range(1, 20):
        shop.add(number)
        shop.pass_time(0.2)
    # 0.25 s, 0.5 s, 1 s after the one before, or a little later.
    assert shop.tries[1:] == pytest.approx([100.0, 100.4, 101.0, 102.0])
    shop.away = False
    shop.pass_time(2.0)
    shop.add(20)
    assert shop.done == list(range(21))
    assert (shop.given_up, shop.outbox.lost) == ([], 0.0)
    shop.away = True
    before = len(shop.tries)
    shop.add(21)
    shop.pass_time(0.25)
    shop.add(22)
    assert len(shop.tries) == before + 2


def test_at_the_end_it_is_waited_for_as_long_as_patience_lasts() -> None:
    shop = Shop(slow=0.5)
    shop.away = True
    shop.add(0)
    shop.add(1)
    shop.outbox.deliver(wait=True)
    assert shop.time - 100.0 == pytest.approx(PATIENCE, abs=0.5)
    assert shop.given_up == ["nobody answers: number 0, number 1"]
    shop.away = False
    shop.add(2)
    shop.outbox.deliver(wait=True)
    assert shop.done == []


def test_a_store_that_comes_back_while_it_is_waited_for() -> None:
    shop = Shop()
    shop.away = True
    shop.add(0)
    shop.add(1)

    def comes_back(seconds: float) -> None:
        shop.pass_time(seconds)
        shop.away = shop.time < 103.0

    shop.outbox.sleep = comes_back
    shop.outbox.deliver(wait=True)
    assert shop.done == [0, 1]
    assert shop.time < 104.0
    assert shop.given_up == []


def test_all_failures_together_cost_no_more_than_patience() -> None:
    shop = Shop(slow=2.0)
    shop.away, spent = True, 0.0
    for number in range(100):
        before = shop.time
        shop.add(number)
        spent += shop.time - before
        shop.pass_time(60.0)
    assert spent <= PATIENCE + 2.0
    assert len(shop.given_up) == 1


def test_a_store_that_stays_away_is_given_up() -> None:
    shop = Shop()
    shop.away = True
    while not shop.given_up:
        shop.add(0, "figures")
        shop.pass_time(1.0)
    assert LONGEST_ABSENCE < shop.time - 100.0 < LONGEST_ABSENCE + 2 * LONGEST_PAUSE
    assert shop.given_up == ["nobody answers: figures"]


def test_no_more_waits_than_there_is_room_for() -> None:
    shop = Shop()
    shop.away = True
    for number in range(MOST_WAITING + 10):
        shop.add(number)
    shop.pass_time(LONGEST_PAUSE)
    shop.add(0)
    assert len(shop.given_up) == 1
    assert shop.given_up[0].endswith(f"number 3 and {MOST_WAITING + 6} more")
    assert not shop.outbox.waiting


def test_what_is_wrong_for_good_is_given_up_at_once() -> None:
    shop = Shop()

    def refuses() -> None:
        raise ValueError("no such experiment")

    shop.outbox.add("the study", refuses)
    shop.add(1)
    assert shop.given_up == ["no such experiment: the study"]
    assert shop.done == []


def test_other_errors_get_through_and_the_work_is_tried_again() -> None:
    shop = Shop()
    errors: list[BaseException] = [KeyboardInterrupt(), KeyError("bug")]

    def interrupted() -> None:
        if errors:
            raise errors.pop(0)
        shop.done.append(0)

    with pytest.raises(KeyboardInterrupt):
        shop.outbox.add("the study", interrupted)
    with pytest.raises(KeyError):
        shop.add(1)
    shop.add(2)
    assert shop.done == [0, 1, 2]


def test_who_is_interrupted_stops_waiting_and_the_work_is_done_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    shop, told, main = Shop(), threading.Event(), threading.main_thread().ident

    def slow() -> None:
        signal.pthread_kill(main or 0, signal.SIGINT)
        assert told.wait(60)
        shop.done.append(0)

    try:
        with pytest.raises(KeyboardInterrupt):
            shop.outbox.add("the study", slow)
    finally:
        signal.signal(signal.SIGINT, before)
    assert shop.done == []
    told.set()
    shop.add(1)
    assert shop.done == [0, 1]


def test_a_closed_outbox_has_done_what_waits_and_keeps_no_thread() -> None:
    shop = Shop()
    shop.away = True
    shop.add(0)
    shop.away = False
    (worker,) = shop.outbox.worker._threads
    shop.outbox.close()
    assert shop.done == [0]
    worker.join(60)
    assert not worker.is_alive()
    shop.add(1)
    assert shop.done == [0]
