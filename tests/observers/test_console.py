"""What the console shows, on a terminal and in a log."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from permllm.observers.console import Console, Narrator
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


def test_contract(capfd: pytest.CaptureFixture[str]) -> None:
    check_observer(Console())
    assert capfd.readouterr().out == ""


def test_log_tells_runs_windows_figures_and_warnings(
    tell, tmp_path: Path, capsys: pytest.CaptureFixture[str], texts
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


def test_interruption_says_where_it_was(tmp_path: Path, narrate_plain, texts) -> None:
    narrator, lines, _ = narrate_plain()
    plan = toy_plan(tmp_path)
    narrator.permllm_plan_started(plan)
    narrator.permllm_run_started(plan.runs[0], reused=False)
    narrator.permllm_progress(plan.runs[0], "learning, layers 0 to 29", 23, 64)
    narrator.permllm_plan_failed(plan.runs[0], KeyboardInterrupt())
    last = texts(lines)[-1]
    assert last == "stopped: run 2 of 3: seed=1, learning, layers 0 to 29 (23 of 64)"


def test_log_line_has_the_training_figures(tmp_path: Path, narrate_plain, texts) -> None:
    narrator, lines, clock = narrate_plain()
    run = toy_plan(tmp_path).runs[0]
    for step, figures in enumerate(({"loss": 0.5, "held_out_loss": 0.75}, {"loss": 0.25}), 1):
        narrator.permllm_training_step(step, figures, replayed=False)
        narrator.permllm_progress(run, "learning", step, 4)
        clock.time += 20
    assert texts(lines)[-1].endswith("(loss 0.25, held-out loss 0.75 at step 1)")
    narrator.permllm_progress(run, "pruning", 0, 1)
    assert narrator.note == ""


def test_a_replayed_course_says_nothing_of_the_stage_after_it(
    tmp_path: Path, narrate_plain, texts
) -> None:
    narrator, lines, clock = narrate_plain()
    run = toy_plan(tmp_path).runs[0]
    narrator.permllm_run_started(run, reused=True)
    narrator.permllm_training_step(1, {"loss": 0.5}, replayed=True)
    for done in (0, 1):
        narrator.permllm_progress(run, "pruning", done, 2)
        clock.time += 20
    assert texts(lines)[-1] == "  pruning: 50 %, 1 of 2, about 0:20 left"
    assert texts(lines)[0] == "seed=1, done before"


def test_interrupted_plan_leaves_no_live_area(tmp_path: Path, live) -> None:
    display, screen, clock = live()
    narrator = Narrator(display, clock)
    told = narrator_hooks(narrator)
    lead_to_an_interruption(toy_plan(tmp_path), told)
    assert display.live is None
    assert "stopped: run 2 of 3: seed=1" in screen.getvalue()


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
