"""Lines for a log, and a live area for a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from permllm.observers.console import Narrator
from permllm.observers.displays import LineDisplay
from permllm.testing.observers import toy_plan


def test_log_lines_of_a_long_stage_come_every_ten_seconds(
    tmp_path: Path, narrate_plain, texts
) -> None:
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


def test_short_stage_gets_one_line(tmp_path: Path, narrate_plain, texts) -> None:
    narrator, lines, _ = narrate_plain()
    narrator.permllm_progress(None, "tracing the model", 0, 1)
    narrator.permllm_progress(None, "tracing the model", 1, 1)
    assert texts(lines) == ["  tracing the model"]


def test_live_area_fits_eighty_columns_however_long_the_stage(tmp_path: Path, live) -> None:
    display, _, clock = live()
    narrator = Narrator(display, clock)
    run = toy_plan(tmp_path).runs[0]
    try:
        narrator.permllm_progress(run, "learning, " + "a long name " * 20, 0, 1000)
        clock.time = 100.0
        narrator.permllm_training_step(250, {"loss": 0.5, "x" * 200: 1.0}, replayed=False)
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


def test_live_display_stops_when_a_run_fails(tmp_path: Path, live) -> None:
    display, screen, clock = live()
    narrator = Narrator(display, clock)
    plan = toy_plan(tmp_path)
    narrator.permllm_plan_started(plan)
    narrator.permllm_progress(None, "loading the model", 0, 1)
    assert display.live is not None
    narrator.permllm_plan_failed(None, RuntimeError("x"))
    assert display.live is None
    assert "failed: loading the model" in screen.getvalue()


@pytest.mark.parametrize("style", ["", "red"])
def test_names_are_no_commands_to_the_terminal(live, style: str) -> None:
    display, screen, _ = live()
    try:
        display.line("a \x1b]0;title\x07 [/b]", style)
    finally:
        display.close()
    assert r"a \x1b]0;title\x07 [/b]" in screen.getvalue()
    assert "\x1b]0" not in screen.getvalue()
    written: list[str] = []
    LineDisplay(written.append).line("a \x1b[2J")
    assert written[0].endswith(r" a \x1b[2J" + "\n")
