"""What the console shows, on a terminal and in a log."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from permllm.observers.console import Console, Narrator
from permllm.observers.displays import LineDisplay, LiveDisplay
from permllm.testing import check_observer
from permllm.testing.observers import lead_through, lead_to_an_interruption, toy_plan

DRIVER = """\
import sys
from pathlib import Path
from permllm.observers.console import Console
from permllm.testing.observers import lead_through, toy_plan, watched
out = Path(sys.argv[1])
lead_through(toy_plan(out), watched(Console(), out))
print("a table")
"""


class Clock:
    """A clock that tests move."""

    time = 0.0

    def __call__(self) -> float:
        return self.time


def narrate_plain() -> tuple[Narrator, list[str], Clock]:
    lines: list[str] = []
    clock = Clock()
    return Narrator(LineDisplay(lines.append, clock), clock), lines, clock


def texts(lines: list[str]) -> list[str]:
    """Lines without their time of day."""
    assert all(re.match(r"\d\d:\d\d:\d\d .*\n$", line) for line in lines)
    return [line[9:-1] for line in lines]


def test_contract(capfd: pytest.CaptureFixture[str]) -> None:
    check_observer(Console())
    assert capfd.readouterr().out == ""


def test_log_tells_runs_windows_figures_and_warnings(
    tell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lead_through(toy_plan(tmp_path), tell(tmp_path, Console()).hook)
    out, err = capsys.readouterr()
    assert out == ""
    said = texts(err.splitlines(keepends=True))
    assert said[0] == "toy: 3 runs (dense, seed=1, seed=2)"
    assert "run 2 of 3: seed=1" in said
    assert "warning: model.layers.0.mlp.gate stays dense: it is a router" in said
    window = "  model.layers.0 to 1: pruned in 2.0 s, retained score 70.5 % → 77.5 %"
    assert said.count(window) == 2
    assert "  perplexity/toy 59.20, sparsity 0.5, retained 0.8" in said
    assert not any("\x1b" in line for line in said)


def test_interruption_says_where_it_was(tmp_path: Path) -> None:
    narrator, lines, _ = narrate_plain()
    plan = toy_plan(tmp_path)
    narrator.permllm_plan_started(plan)
    narrator.permllm_run_started(plan.runs[0])
    narrator.permllm_progress(plan.runs[0], "learning, layers 0 to 29", 23, 64)
    narrator.permllm_plan_failed(plan.runs[0], KeyboardInterrupt())
    last = texts(lines)[-1]
    assert last == "interrupted: run 2 of 3: seed=1, learning, layers 0 to 29 (23 of 64)"


def test_log_lines_of_a_long_stage_come_every_ten_seconds(tmp_path: Path) -> None:
    narrator, lines, clock = narrate_plain()
    run = toy_plan(tmp_path).runs[0]
    for done in range(101):
        narrator.permllm_progress(run, "perplexity", done, 100)
        clock.time += 1.0
    said = texts(lines)
    assert said[0] == "  perplexity"
    assert said[1] == "  perplexity: 10 %, 10 of 100, about 1:30 left"
    assert said[-1] == "  perplexity: done in 1 min 40 s"
    assert len(said) == 11


def test_short_stage_gets_one_line(tmp_path: Path) -> None:
    narrator, lines, _ = narrate_plain()
    narrator.permllm_progress(None, "tracing the model", 0, 1)
    narrator.permllm_progress(None, "tracing the model", 1, 1)
    assert texts(lines) == ["  tracing the model"]


def test_log_line_has_the_training_figures(tmp_path: Path) -> None:
    narrator, lines, clock = narrate_plain()
    run = toy_plan(tmp_path).runs[0]
    for step, figures in enumerate(({"loss": 0.5, "held_out_loss": 0.75}, {"loss": 0.25}), 1):
        narrator.permllm_training_step(run, 0, step, 4, figures)
        narrator.permllm_progress(run, "learning", step, 4)
        clock.time += 20
    assert texts(lines)[-1].endswith("(loss 0.25, held-out loss 0.75)")
    narrator.permllm_progress(run, "pruning", 0, 1)
    assert narrator.note == ""


def live(width: int = 80) -> tuple[LiveDisplay, io.StringIO, Clock]:
    clock = Clock()
    screen = io.StringIO()
    console = RichConsole(file=screen, force_terminal=True, width=width, color_system=None)
    return LiveDisplay(console, clock), screen, clock


def test_live_area_fits_eighty_columns_however_long_the_stage(tmp_path: Path) -> None:
    display, _, clock = live()
    narrator = Narrator(display, clock)
    run = toy_plan(tmp_path).runs[0]
    try:
        narrator.permllm_progress(run, "learning, " + "a long name " * 20, 0, 1000)
        clock.time = 100.0
        narrator.permllm_training_step(run, 0, 250, 1000, {"loss": 0.5, "x" * 200: 1.0})
        narrator.permllm_progress(run, "learning, " + "a long name " * 20, 250, 1000)
        shown = display.console.render_lines(display.render())
    finally:
        display.close()
    rows = ["".join(segment.text for segment in row) for row in shown]
    assert len(rows) == 2
    assert all(len(row) <= 80 for row in rows)
    assert "…" in rows[0]
    assert "250/1000" in rows[0]
    assert "1:40, 5:00 left" in rows[0]
    assert "loss 0.5" in rows[1]


def test_live_display_stops_when_a_run_fails(tmp_path: Path) -> None:
    display, screen, clock = live()
    narrator = Narrator(display, clock)
    plan = toy_plan(tmp_path)
    narrator.permllm_plan_started(plan)
    narrator.permllm_progress(None, "loading the model", 0, 1)
    assert display.live is not None
    narrator.permllm_plan_failed(None, RuntimeError("x"))
    assert display.live is None
    assert "failed: loading the model" in screen.getvalue()


def test_interrupted_plan_leaves_no_live_area(tmp_path: Path) -> None:
    display, screen, clock = live()
    narrator = Narrator(display, clock)
    told = narrator_hooks(narrator)
    lead_to_an_interruption(toy_plan(tmp_path), told)
    assert display.live is None
    assert "interrupted: run 2 of 3: seed=1" in screen.getvalue()


def narrator_hooks(narrator: Narrator):
    import pluggy

    from permllm import hookspecs

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(narrator)
    return manager.hook


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_real_terminal_gets_a_bar_and_its_cursor_back(tmp_path: Path) -> None:
    main, end = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=end,
            env=os.environ | {"COLUMNS": "80", "TERM": "xterm", "OMP_NUM_THREADS": "1"},
            timeout=120,
            check=True,
        )
        said = os.read(main, 1_000_000).decode()
    finally:
        os.close(main)
        os.close(end)
    assert done.stdout == b"a table\n"
    assert "run 3 of 3: seed=2" in said
    assert "━" in said
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")
