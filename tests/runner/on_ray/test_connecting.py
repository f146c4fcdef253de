"""A cluster that cannot do the runs is refused in a line, before anything begins."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from on_cluster import run, with_ray

from permllm.errors import RunFailed
from permllm.runner.on_ray.connecting import Head


def test_a_head_that_is_silent_for_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("KNOCK_SECONDS", 0.0), ("SILENT_SECONDS", 0.5)):
        monkeypatch.setattr(f"permllm.runner.on_ray.connecting.{name}", value)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        head = Head(address)
        time.sleep(0.6)
        head.check()
    head = Head(address)
    head.check()
    time.sleep(0.6)
    with pytest.raises(RunFailed, match=f"head of the Ray cluster at {address} does not answer"):
        head.check()
    assert head.lost


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
