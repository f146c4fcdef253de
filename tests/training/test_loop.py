"""The training loop: which sequences a step sees, and which result is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice, pairwise

import attrs
import pytest
import torch
from torch import Tensor

from permllm.contexts.window import Window
from permllm.errors import DeprecatedWarning, RunFailed
from permllm.testing.windows import toy_window
from permllm.training.budget import StepCount
from permllm.training.loop import Step, Trainee, batches, cosine_decay, train, train_step


class Course(Trainee[int]):
    """Its result is the number of steps done, and its held-out losses are given."""

    def __init__(self, losses: dict[int, float], loss: float = 1.0) -> None:
        self.losses, self.value, self.steps = losses, loss, [Step(0, 0)]
        self.parameter = torch.zeros((), requires_grad=True)
        self.optimiser = torch.optim.SGD([self.parameter], lr=0.0)
        self.rows: list[Tensor] = []
        self.looks: list[Step] = []
        self.judged_by: list[int] = []

    @property
    def done(self) -> int:
        return self.steps[-1].number

    def weights(self, at: Step) -> dict[str, Tensor]:
        self.steps.append(at)
        return {}

    def result(self, at: Step) -> tuple[int, dict[str, Tensor]]:
        assert not torch.is_grad_enabled()
        self.looks.append(at)
        return self.done, {}

    def __call__(self, weights: dict[str, Tensor], rows: Tensor) -> Tensor:
        """The loss of a step."""
        self.rows.append(rows)
        return self.value + 0 * self.parameter

    def held_out(self, weights: dict[str, Tensor], batch: int) -> float:
        self.judged_by.append(batch)
        return self.losses.get(self.done, math.nan)


def trained(course: Course, window: Window, count: StepCount, *, batch: int = 2, best: bool) -> int:
    """Train a course, which is its own loss."""
    return train(
        course,
        window,
        course,
        rate=lambda step, steps: 0.1 * step,
        count=count,
        batch=batch,
        fresh=True,
        best=best,
    )


def run(
    course: Course, window: Window, *, steps: int = 6, best: bool = True
) -> tuple[int, list[float | None]]:
    seen: list[float | None] = []
    window.on_step = lambda step, total, figures: seen.append(figures.get("held_out_loss"))
    return trained(course, window, StepCount(steps), best=best), seen


def test_a_step_sets_the_rate_and_moves_the_parameters_down_the_gradient() -> None:
    window, parameter = toy_window(), torch.tensor(3.0, requires_grad=True)

    class Square(Trainee[float]):
        optimiser = torch.optim.SGD([parameter], lr=99.0)

        def weights(self, at: Step) -> dict[str, Tensor]:
            return {"square": parameter.square()}

        def figures(self, at: Step) -> dict[str, float]:
            return {"number": float(at.number)}

    def loss(weights: dict[str, Tensor], rows: Tensor) -> Tensor:
        return weights["square"]

    for number, expected in ((1, 3.0 - 0.1 * 6.0), (2, 2.4 - 0.1 * 4.8)):
        figures = train_step(Square(), loss, window.learning[:1], Step(number, 2), 0.1)
        assert parameter.item() == pytest.approx(expected)
        assert figures["number"] == number
        assert figures["learning_rate"] == 0.1
    assert figures["loss"] == pytest.approx(2.4**2)


def test_every_step_has_its_rate_and_is_told_of() -> None:
    window, rates = toy_window(sequences=8), []
    window.on_step = lambda step, total, figures: rates.append((step, figures["learning_rate"]))
    trained(Course({}), window, StepCount(3), best=False)
    assert rates == [(1, 0.1), (2, 0.2), (3, pytest.approx(0.3))]


def test_the_best_on_held_out_sequences_is_kept() -> None:
    window = toy_window(sequences=8)  # a pass is two steps
    kept, seen = run(Course({0: 3.0, 2: 1.0, 4: 0.5, 6: 0.7}), window)
    assert kept == 4
    assert seen == [None, 1.0, None, 0.5, None, 0.7]


def test_looks_come_closer_together_towards_the_end() -> None:
    window = toy_window(sequences=8)  # a pass is two steps
    looks = {steps: run(Course({}), window, steps=steps)[1] for steps in (8, 40, 350)}
    found = {n: [i for i, x in enumerate(seen, 1) if x is not None] for n, seen in looks.items()}
    assert found[8] == [2, 4, 6, 8]
    assert found[40] == [8, 14, 19, 23, 26, 29, 31, 33, 35, 37, 39, 40]
    assert found[350][0] == 70
    gaps = [b - a for a, b in pairwise(found[350])]
    assert gaps == sorted(gaps, reverse=True)
    assert min(gaps[:-1]) == 7, "at most fifty in all"
    assert found[350][-1] == 350, "the last step is looked at"


def test_one_held_out_sequence_is_enough() -> None:
    window = toy_window(sequences=8, held_out=1)
    assert run(Course({0: 3.0, 2: 1.0, 4: 0.5, 6: 0.7}), window)[0] == 4


def test_the_beginning_may_be_the_best() -> None:
    assert run(Course({0: 0.1, 2: 1.0, 4: 0.5, 6: 0.7}), toy_window(sequences=8))[0] == 0


@pytest.mark.parametrize(("best", "held_out"), [(False, 2), (True, 0)])
def test_without_a_choice_the_last_is_kept(best: bool, held_out: int) -> None:
    window = toy_window(sequences=8, held_out=held_out)
    kept, seen = run(Course({0: 0.1, 6: 0.7}), window, best=best)
    assert kept == 6
    assert seen == [None] * 6


def test_of_equally_good_results_the_first_is_kept() -> None:
    kept, _ = run(Course({0: 3.0, 2: 1.0, 4: 1.0, 6: 1.0}), toy_window(sequences=8))
    assert kept == 2


def test_the_last_step_is_looked_at_though_no_pass_ends_with_it() -> None:
    window = toy_window(sequences=8)  # a pass is two steps
    course = Course({0: 3.0, 2: 1.0, 3: 0.5})
    kept, seen = run(course, window, steps=3)
    assert (kept, seen) == (3, [None, 1.0, 0.5])
    assert course.looks == [Step(0, 3), Step(2, 3), Step(3, 3)]
    assert [at for at in course.steps if at.number] == [Step(1, 3), Step(2, 3), Step(3, 3)]


def test_without_held_out_losses_there_is_one_look_at_the_end() -> None:
    course = Course({})
    assert run(course, toy_window(sequences=8), steps=3, best=False)[0] == 3
    assert course.looks == [Step(3, 3)]
    assert course.judged_by == []


@pytest.mark.parametrize(("batch", "a_pass"), [(1, 4), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_a_pass_is_looked_at_when_all_its_sequences_were_seen(batch: int, a_pass: int) -> None:
    window, course = toy_window(sequences=8), Course({})
    trained(course, window, StepCount(8), batch=batch, best=True)
    assert [at.number for at in course.looks] == list(range(0, 9, a_pass))
    assert set(course.judged_by) == {batch}


def test_progress_is_told_before_the_first_step() -> None:
    window, seen = toy_window(sequences=8), []
    window.on_progress = lambda stage, done, total: seen.append((stage, done, total))
    trained(Course({}), window, StepCount(3), best=True)
    assert seen == [("learning, layers 0 to 1", 0, 3)] * 2


class Troubled(Trainee[float]):
    """A number that goes down the gradient of itself; what is given befalls its steps."""

    def __init__(self, befalls: Mapping[int, Exception | float], gradient: bool = False) -> None:
        self.befalls, self.gradient = dict(befalls), gradient
        self.parameter = torch.tensor(10.0, requires_grad=True)
        self.optimiser = torch.optim.SGD([self.parameter], lr=99.0, momentum=0.5)
        self.number, self.made, self.sizes = 0, 0, []

    def weights(self, at: Step) -> dict[str, Tensor]:
        self.number, self.made = at.number, self.made + 1
        return {"weight": self.parameter * 1.0}

    def result(self, at: Step) -> tuple[float, dict[str, Tensor]]:
        return self.parameter.item(), {}

    def __call__(self, weights: dict[str, Tensor], rows: Tensor) -> Tensor:
        """The loss of a step."""
        self.sizes.append(len(rows))
        trouble = self.befalls.get(self.number, 1.0)
        if isinstance(trouble, Exception):
            raise trouble
        if self.gradient and not math.isfinite(trouble):
            # The value is finite where the slope is not.
            return (weights["weight"] * 0).sqrt() + 1.0
        return weights["weight"] * trouble


def overcome(
    troubled: Troubled, steps: int = 8, batch: int = 4
) -> tuple[float, list[str], list[dict[str, float]]]:
    """The number, the warnings and the figures of its steps, at a rate of 1."""
    window, warnings, seen = toy_window(sequences=8), [], []
    window.on_warning = warnings.append
    window.on_step = lambda step, total, figures: seen.append(figures)
    number = train(
        troubled,
        window,
        troubled,
        rate=lambda step, steps: 1.0,
        count=StepCount(steps),
        batch=batch,
        fresh=True,
        best=False,
    )
    return number, warnings, seen


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_the_rate_halved(
    bad: float, gradient: bool
) -> None:
    troubled = Troubled({2: bad, 4: bad}, gradient)
    number, warnings, seen = overcome(troubled, steps=5)
    plain = torch.tensor(10.0, requires_grad=True)
    optimiser = torch.optim.SGD([plain], lr=99.0, momentum=0.5)
    for rate in (1.0, 0.5, 0.25):
        optimiser.param_groups[0]["lr"] = rate
        plain.grad = torch.tensor(1.0)
        optimiser.step()
    assert number == pytest.approx(plain.item())
    assert [figures["learning_rate"] for figures in seen] == [1.0, 1.0, 0.5, 0.5, 0.25]
    what = "gradient" if gradient else "loss"
    assert warnings == [
        f"layers 0 to 1: the {what} is not finite at step {step} of 5; the step is skipped, and "
        "the learning rate halved from now on"
        for step in (2, 4)
    ]


def test_the_fourth_step_that_is_not_finite_ends_the_run() -> None:
    troubled = Troubled(dict.fromkeys((1, 3, 5, 6), math.nan))
    message = (
        r"^the loss of layers 0 to 1 is not finite at step 6 of 8, after 3 others that were "
        r"skipped; a smaller learning_rate or float32 may help$"
    )
    with pytest.raises(RunFailed, match=message):
        overcome(troubled)
    assert math.isfinite(troubled.parameter.item())


def test_a_training_without_any_step_is_no_training() -> None:
    with pytest.raises(RunFailed, match=r"^no step of layers 0 to 1 had a finite loss"):
        overcome(Troubled({1: math.nan, 2: math.nan}), steps=2)


class Tight(Troubled):
    """Memory has room for so many sequences at a time."""

    def __init__(self, most: int) -> None:
        super().__init__({})
        self.most = most

    def __call__(self, weights: dict[str, Tensor], rows: Tensor) -> Tensor:
        if len(rows) > self.most:
            self.sizes.append(len(rows))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")
        return super().__call__(weights, rows) * (1 + rows.double().mean())


def test_a_step_without_room_is_made_in_parts() -> None:
    wide, tight = Tight(4), Tight(1)
    number, warnings, seen = overcome(wide, steps=3)
    assert warnings == []
    again, warnings, figures = overcome(tight, steps=3)
    assert again == pytest.approx(number)
    assert [one["loss"] for one in figures] == pytest.approx([one["loss"] for one in seen])
    assert (wide.sizes, tight.sizes) == ([4] * 3, [4, 2] + [1] * 12)
    # Weights may be made of random numbers: once a step.
    assert tight.made == 3
    assert warnings == [
        "layers 0 to 1: 4 sequences at once do not fit into memory (2.50 GiB were asked for); a "
        "learning step adds up the gradients of parts of 1, which is the same step up to rounding"
    ]


def test_a_step_without_room_for_one_sequence_ends_the_run() -> None:
    message = (
        "^no room in memory for step 1 of 3 of layers 0 to 1, even with one sequence at a time "
        r"\(2\.50 GiB were asked for\)$"
    )
    with pytest.raises(RunFailed, match=message):
        overcome(Tight(0), steps=3)


def test_other_errors_of_a_step_stay_as_they_are() -> None:
    error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError) as caught:
        overcome(Troubled({1: error}))
    assert caught.value is error


def test_held_out_sequences_are_looked_at_in_parts_where_memory_is_short() -> None:
    class Look(Course):
        def held_out(self, weights: dict[str, Tensor], batch: int) -> float:
            value = super().held_out(weights, batch)
            if batch > 1:
                raise MemoryError
            return value

    course = Look({0: 3.0, 2: 1.0, 4: 0.5, 6: 0.7})
    assert run(course, toy_window(sequences=8))[0] == 4
    assert course.judged_by == [2, 1, 1, 1, 1]


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


@pytest.mark.parametrize("batch", [1, 3, 4, 10])
@pytest.mark.parametrize("fresh", [True, False])
def test_passes_follow_one_another_without_a_gap(batch: int, fresh: bool) -> None:
    """The first as the sequences come, the others drawn from the window's seed."""
    window = toy_window(sequences=6, seed=5)
    learning = torch.tensor([7, 0, 3, 2, 6, 1])
    window.sequences = attrs.evolve(window.sequences, learning=learning, calibration=4)
    rng, pool = torch.Generator().manual_seed(6), 6 if fresh else 4
    passes = [torch.arange(pool), *(torch.randperm(pool, generator=rng) for _ in range(20))]
    expected = learning[torch.cat(passes)].split(batch)
    for rows, order in zip(islice(batches(window, batch, fresh=fresh), 8), expected, strict=False):
        assert torch.equal(rows, order)


def test_what_a_step_does_not_use_does_not_move() -> None:
    """Zero gradients were no substitute: Adam goes on for a while."""
    first, second = (torch.ones((), requires_grad=True) for _ in range(2))

    class Turns(Trainee[float]):
        optimiser = torch.optim.Adam([first, second], lr=99.0)

        def weights(self, at: Step) -> dict[str, Tensor]:
            return {"used": first if at.number == 1 else second}

    for number in (1, 2):
        before = first.item()
        rows = torch.arange(1)
        train_step(Turns(), lambda weights, rows: weights["used"], rows, Step(number, 2), 0.1)
        assert (first.item() == before) == (number == 2)
    assert second.item() == pytest.approx(0.9)


def test_an_old_trainee_works_with_a_warning() -> None:
    window = toy_window(sequences=8)

    class Old:
        total = 0

        def __init__(self) -> None:
            self.steps: list[tuple[int, int, list[int]]] = []
            self.snapshots: list[tuple[int, int]] = []

        def step(self, rows: Tensor, number: int) -> dict[str, float]:
            self.steps.append((number, self.total, rows.tolist()))
            return {"loss": 1.0}

        def snapshot(self, number: int) -> tuple[str, float]:
            self.snapshots.append((number, self.total))
            return f"after {len(self.steps)}", {0: 3.0, 2: 1.0}.get(len(self.steps), 2.0)

    old = Old()
    warning = (
        r"^a trainee with step\(\) and snapshot\(\) is deprecated: "
        r"use permllm\.training\.loop\.Trainee$"
    )
    with pytest.warns(DeprecatedWarning, match=warning):
        kept = trained(old, window, StepCount(4), best=True)  # type: ignore[arg-type]
    assert kept == "after 2"
    assert old.steps == [(1, 4, [0, 1]), (2, 4, [2, 3]), (3, 4, [4, 5]), (4, 4, [6, 7])]
    assert old.snapshots == [(1, 4), (2, 4), (4, 4)]


def test_cosine_decay_goes_from_the_rate_towards_zero() -> None:
    rates = [cosine_decay(0.1, step, 5) for step in range(1, 6)]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * i / 5)) for i in range(5)])


class OnTheClock(Course):
    """A training in which a look takes 2 s, and a step 3 s for every sequence."""

    def __init__(self, losses: dict[int, float], patch: pytest.MonkeyPatch) -> None:
        super().__init__(losses)
        self.now = 100.0
        for module in ("loop", "budget"):
            patch.setattr(f"permllm.training.{module}.time.monotonic", lambda: self.now)

    def __call__(self, weights: dict[str, Tensor], rows: Tensor) -> Tensor:
        self.now += 3.0 * len(rows)
        return super().__call__(weights, rows)

    def held_out(self, weights: dict[str, Tensor], batch: int) -> float:
        self.now += 2.0
        return super().held_out(weights, batch)


def test_before_the_first_step_a_look_at_held_out_text_tells_the_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    course = OnTheClock({}, monkeypatch)
    # Two of two held-out sequences take 2 s, so a step is taken to last 6 s: 38 s are left.
    trained(course, toy_window(), StepCount(1, 40.0), best=True)
    assert course.steps[1].total == 6


def test_a_short_time_makes_smaller_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    course = OnTheClock({}, monkeypatch)
    # After the first look 27 s are left: four steps of 2 sequences and a look, but two of 4.
    trained(course, toy_window(), StepCount(1, 29.0), batch=4, best=True)
    assert [len(rows) for rows in course.rows] == [2, 2, 2, 2]
    assert set(course.judged_by) == {4}  # results are compared with the start's


def test_a_time_without_room_for_two_steps_leaves_the_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    course = OnTheClock({0: 1.0, 1: 0.5}, monkeypatch)
    # A step of one sequence is taken to last 3 s, and 5 s are left.
    window = toy_window()
    warnings: list[str] = []
    window.on_warning = warnings.append
    kept = trained(course, window, StepCount(9, 7.0), best=True)
    assert (kept, course.done) == (0, 0)
    (warning,) = warnings
    assert warning == (
        "layers 0 to 1: no training: a step takes about 3 s here, and the budget has no room "
        "for 2; what training starts from is kept"
    )


def test_schedules_follow_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step is the schedule's last, however the speed changes."""
    clock = [0.0]
    monkeypatch.setattr("permllm.training.budget.time.monotonic", lambda: clock[0])

    class Slow(Course):
        def weights(self, at: Step) -> dict[str, Tensor]:
            clock[0] += 1.0 if at.number < 5 else 2.0
            return super().weights(at)

    course = Slow({})
    trained(course, toy_window(sequences=8), StepCount(1, 12.0), best=False)
    seen = [(at.number, at.total) for at in course.steps[1:]]
    assert [step for step, _ in seen] == list(range(1, len(seen) + 1))
    assert 6 <= len(seen) <= 9
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("number", [0, 1])
def test_a_schedule_of_one_step_is_at_its_start(number: int) -> None:
    assert Step(number, 1).between(1.0, 0.0) == 1.0
    assert Step(2, 2).between(1.0, 0.25) == 0.25


@pytest.mark.parametrize(("number", "expected"), [(0, 1.0), (1, 1.0), (3, 0.5), (5, 0.0)])
def test_a_schedule_goes_from_the_first_step_to_the_last(number: int, expected: float) -> None:
    assert Step(number, 5).between(1.0, 0.0) == pytest.approx(expected)
