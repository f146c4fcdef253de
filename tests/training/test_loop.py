"""The training loop: which sequences a step sees, and which result is kept."""

from __future__ import annotations

import math
from itertools import islice

import attrs
import pytest
import torch
from torch import Tensor

from permllm.contexts.window import Window
from permllm.core.durations import Duration
from permllm.errors import RunFailed
from permllm.pruners.distil import Distil
from permllm.testing.windows import toy_window
from permllm.training.loop import StepCount, batches, cosine_decay, train
from permllm.training.losses import LOSSES, WindowLoss


class Course:
    """Its result is the number of steps done, and its held-out losses are given."""

    def __init__(self, losses: dict[int, float], loss: float = 1.0) -> None:
        self.losses, self.loss, self.done, self.rows = losses, loss, 0, [Tensor()]
        self.total = 0

    def step(self, rows: Tensor, step: int) -> dict[str, float]:
        self.done = step
        self.rows.append(rows)
        return {"loss": self.loss}

    def snapshot(self, step: int) -> tuple[int, float]:
        return self.done, self.losses.get(self.done, math.nan)


def run(
    course: Course, window: Window, *, steps: int = 6, best: bool = True
) -> tuple[int, list[float | None]]:
    seen: list[float | None] = []
    window.on_step = lambda step, total, figures: seen.append(figures.get("held_out_loss"))
    count = StepCount(steps)
    return train(course, window, count=count, batch=2, fresh=True, best=best), seen


def test_the_best_on_held_out_sequences_is_kept() -> None:
    window = toy_window(sequences=8)  # a pass is two steps
    kept, seen = run(Course({0: 3.0, 2: 1.0, 4: 0.5, 6: 0.7}), window)
    assert kept == 4
    assert seen == [None, 1.0, None, 0.5, None, 0.7]


def test_a_long_training_does_not_look_after_every_pass() -> None:
    window = toy_window(sequences=8)  # a pass is two steps
    looks = {steps: run(Course({}), window, steps=steps)[1] for steps in (100, 350)}
    found = {n: [i for i, x in enumerate(seen, 1) if x is not None] for n, seen in looks.items()}
    assert found == {100: list(range(2, 101, 2)), 350: list(range(7, 351, 7))}


def test_the_beginning_may_be_the_best() -> None:
    assert run(Course({0: 0.1, 2: 1.0, 4: 0.5, 6: 0.7}), toy_window(sequences=8))[0] == 0


@pytest.mark.parametrize(("best", "held_out"), [(False, 2), (True, 0)])
def test_without_a_choice_the_last_is_kept(best: bool, held_out: int) -> None:
    window = toy_window(sequences=8, held_out=held_out)
    kept, seen = run(Course({0: 0.1, 6: 0.7}), window, best=best)
    assert kept == 6
    assert seen == [None] * 6


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run(loss: float) -> None:
    message = f"the loss of layers 0 to 1 is {loss} at step 1; a smaller learning_rate"
    with pytest.raises(RunFailed, match=message):
        run(Course({}, loss), toy_window(sequences=8))


def test_fresh_sequences_are_not_repeated() -> None:
    window = toy_window(sequences=8)
    drawn = batches(window, 2, fresh=True)
    rows = torch.cat(list(islice(drawn, 4)))
    assert rows.tolist() == window.learning[:8].tolist()
    assert not set(rows.tolist()) & set(window.held_out.tolist())
    again = torch.cat(list(islice(drawn, 4)))
    assert sorted(again.tolist()) == sorted(rows.tolist())
    assert again.tolist() != rows.tolist()
    window.sequences = attrs.evolve(window.sequences, calibration=3)
    assert set(torch.cat(list(islice(batches(window, 2, fresh=False), 4))).tolist()) == {0, 1, 2}


def test_cosine_decay_goes_from_the_rate_towards_zero() -> None:
    rates = [cosine_decay(0.1, step, 5) for step in range(1, 6)]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 5)) for i in range(5)])


@pytest.mark.parametrize("name", LOSSES)
def test_losses_flow_back_to_the_weights(name: str) -> None:
    window = toy_window()
    loss = WindowLoss.of(window, name, "model")
    linear = window.linears[0]
    weight = (window.weight(linear) * 0.5).requires_grad_()
    loss({linear: weight}, window.learning[:2]).backward()
    assert weight.grad is not None
    assert bool(weight.grad.count_nonzero())
    if name != "next-token":
        assert float(loss({}, window.learning[:2])) == pytest.approx(0, abs=1e-6)
        assert loss.held_out({linear: weight.detach()}, 2) > 1e-6


def test_next_token_is_the_models_own_loss() -> None:
    window = toy_window()
    rows = window.learning[:2]
    tokens = window.tokens[rows]
    own = window.decoder.model(input_ids=tokens, labels=tokens).loss.item()
    assert WindowLoss.of(window, "next-token", "model")({}, rows).item() == pytest.approx(own)


def test_a_window_without_logits_takes_the_cosine() -> None:
    loss = WindowLoss.of(toy_window(layers=range(1)), "kl", "model")
    assert loss.distance is LOSSES["cosine"]


def test_a_number_of_steps_stays() -> None:
    count = StepCount(7)
    assert [count.total(done) for done in (0, 1, 6, 7)] == [7, 7, 7, 7]


def test_a_time_holds_as_many_steps_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("permllm.training.loop.time.monotonic", lambda: clock[0])
    count = StepCount(3, seconds=20.0)
    clock[0] = 105.0  # what comes before the first step counts
    assert count.total(0) == 3
    clock[0] = 107.0
    assert count.total(1) == 1 + 6  # 13 s left, 2 s each
    clock[0] = 111.0
    assert count.total(2) == 2 + 3  # 9 s left, 3 s each
    clock[0] = 121.0
    assert count.total(3) == 3


class OnTheClock(Course):
    """A training in which a look takes 2 s, and a step 3 s for every sequence."""

    def __init__(self, losses: dict[int, float], patch: pytest.MonkeyPatch) -> None:
        super().__init__(losses)
        self.now = 100.0
        self.totals: list[int] = []
        self.sizes: list[int] = []
        patch.setattr("permllm.training.loop.time.monotonic", lambda: self.now)

    def step(self, rows: Tensor, step: int) -> dict[str, float]:
        self.now += 3.0 * len(rows)
        self.totals.append(self.total)
        self.sizes.append(len(rows))
        return super().step(rows, step)

    def snapshot(self, step: int) -> tuple[int, float]:
        self.now += 2.0
        return super().snapshot(step)


def test_before_the_first_step_a_look_at_held_out_text_tells_the_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    course = OnTheClock({}, monkeypatch)
    # Two of two held-out sequences take 2 s, so a step is taken to last 6 s: 38 s are left.
    train(course, toy_window(), count=StepCount(1, 40.0), batch=2, fresh=True, best=True)
    assert course.totals[0] == 6


def test_a_short_time_makes_smaller_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    course = OnTheClock({}, monkeypatch)
    # After the first look 27 s are left: four steps of 2 sequences and a look, but two of 4.
    train(course, toy_window(), count=StepCount(1, 29.0), batch=4, fresh=True, best=True)
    assert course.sizes == [2, 2, 2, 2]


def test_a_time_without_room_for_two_steps_leaves_the_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    course = OnTheClock({0: 1.0, 1: 0.5}, monkeypatch)
    # A step of one sequence is taken to last 3 s, and 5 s are left.
    window = toy_window()
    warnings: list[str] = []
    window.on_warning = warnings.append
    kept = train(course, window, count=StepCount(9, 7.0), batch=2, fresh=True, best=True)
    assert (kept, course.done) == (0, 0)
    (warning,) = warnings
    assert warning == (
        "layers 0 to 1: no training: a step takes about 3 s here, and the budget has no room "
        "for 2; what training starts from is kept"
    )


def test_schedules_follow_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step is the schedule's last, however the speed changes."""
    clock = [0.0]
    monkeypatch.setattr("permllm.training.loop.time.monotonic", lambda: clock[0])
    seen: list[tuple[int, int]] = []

    class Slow(Course):
        def step(self, rows: Tensor, step: int) -> dict[str, float]:
            clock[0] += 1.0 if step < 5 else 2.0
            seen.append((step, self.total))
            return super().step(rows, step)

    window = toy_window(sequences=8)
    train(Slow({}), window, count=StepCount(1, 12.0), batch=2, fresh=True, best=False)
    assert [step for step, _ in seen] == list(range(1, len(seen) + 1))
    assert 6 <= len(seen) <= 9
    assert seen[-1][0] == seen[-1][1]


def test_a_window_has_its_share_of_a_budget() -> None:
    learner = Distil(budget=Duration(60.0))
    assert learner.count(toy_window()).seconds == 60.0
    assert learner.count(toy_window(layers=range(1))).seconds == 30.0
    assert Distil(steps=5).count(toy_window()).seconds is None


@pytest.mark.parametrize("loss", LOSSES)
def test_recomputed_losses_have_the_same_gradients(loss: str) -> None:
    window = toy_window()
    rows = window.learning[:3]
    found = []
    for recompute in (False, True):
        weights = {name: window.weight(name).mul(0.9).requires_grad_() for name in window.linears}
        value = WindowLoss.of(window, loss, "model", recompute=recompute)(weights, rows)
        value.backward()
        found.append((value.detach(), [weight.grad for weight in weights.values()]))
    (one, slopes), (other, others) = found
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(slopes, others)


def test_recomputing_keeps_less_for_the_backward_pass() -> None:
    window = toy_window()
    weights = {name: window.weight(name).requires_grad_() for name in window.linears}
    kept: dict[bool, int] = {}
    for recompute in (False, True):
        seen: dict[int, int] = {}

        def pack(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            WindowLoss.of(window, "kl", "model", recompute=recompute)(weights, window.learning)
        kept[recompute] = sum(seen.values())
    assert kept[True] < kept[False] / 3
