"""A cluster that cannot do the runs is refused in a line, before anything begins."""

from __future__ import annotations

import time
from pathlib import Path

from on_cluster import run, with_ray


@with_ray
def test_more_than_the_cluster_has_is_refused_before_anything_begins(
    folder: Path, address: str
) -> None:
    words = ["--set", "resources={gpus: 1, cpus: 2}", "--out", "much", "--on", f"ray:{address}"]
    done = run("tiny.yaml", *words, cwd=folder)
    assert done.returncode == 2
    assert (
        "error: a run takes 2 CPUs and 1 GPUs, and no machine of the Ray cluster has as many: "
        "1 CPUs, 0 GPUs" in done.stderr
    )
    assert not (folder / "much").exists()


@with_ray
def test_a_cluster_that_asks_for_another_token_is_said_in_a_line(
    folder: Path, address: str
) -> None:
    words = ["--out", "token", "--on", f"ray:{address}"]
    done = run("tiny.yaml", *words, cwd=folder, RAY_AUTH_TOKEN="another")
    assert done.returncode == 2
    assert "gcs_client" not in done.stderr
    assert f"no Ray cluster can be reached at {address}: it asks for another token" in done.stderr


@with_ray
def test_an_address_that_does_not_answer_is_said_in_a_line(folder: Path) -> None:
    began = time.monotonic()
    done = run("tiny.yaml", "--out", "nobody", "--on", "ray:127.0.0.1:9", cwd=folder)
    assert done.returncode == 2
    assert "error: no Ray cluster can be reached at 127.0.0.1:9: " in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 120
    assert not (folder / "nobody").exists()
