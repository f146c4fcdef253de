"""Studies on a Ray cluster: those of one machine, whatever becomes of the workers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from on_cluster import SLOW, begin, figures, keys, run, with_ray

from permllm.errors import UserError
from permllm.files import listing
from permllm.pipeline.reading import dump_yaml, resolved, study_of_text
from permllm.registry import Registry
from permllm.runner.on_ray.driver import Heard, RayCluster, pipeline_text
from permllm.runner.on_ray.messages import Letter
from permllm.runner.reporting import Event
from permllm.runs.events import read_events
from permllm.runs.plan import make_plan
from permllm.world import ALONE, World


class Listener:
    """Hooks that note what they are told, and of which run."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda **facts: self.told.append((name, facts))


RUN: Any = SimpleNamespace(label="a")
EVENTS = tuple(Event("permllm_evaluated", {"figures": {"x": n}}, True) for n in range(4))


def told(heard: Heard) -> list[Any]:
    listener = Listener()
    heard.tell(listener, RUN)
    return [facts.get("figures", {}).get("x", name) for name, facts in listener.told]


def test_events_reach_observers_once_and_in_order_though_letters_are_lost() -> None:
    heard = Heard()
    heard.take(Letter("a", "1st", 0, EVENTS[:1]))
    assert told(heard) == [0]
    heard.take(Letter("a", "1st", 2, EVENTS[2:3]))  # that before it was lost
    assert told(heard) == []
    heard.take(Letter("a", "1st", 0, EVENTS))
    assert told(heard) == [1, 2, 3]
    heard.take(Letter("a", "1st", 0, EVENTS))
    assert told(heard) == []


def test_a_run_that_is_done_again_is_told_anew_with_a_warning() -> None:
    heard = Heard()
    heard.take(Letter("a", "1st", 0, EVENTS[:3]))
    assert told(heard) == [0, 1, 2]
    heard.take(Letter("a", "2nd", 1, EVENTS[1:2]))  # its first letter was lost
    assert told(heard) == []
    heard.take(Letter("a", "2nd", 0, EVENTS[:2]))
    assert told(heard) == ["permllm_warning", 0, 1]
    assert told(heard) == []


def test_how_far_a_stage_is_is_told_once_the_run_has_begun() -> None:
    heard = Heard()
    heard.take(Letter("a", "1st", 0, (), Event("permllm_progress", {"stage": "s"}, False)))
    assert told(heard) == []
    heard.take(Letter("a", "1st", 0, EVENTS[:1]))
    assert told(heard) == [0, "permllm_progress"]
    assert told(heard) == []


def test_passwords_of_tracking_stores_stay_with_the_driver(
    write_pipeline: Callable[..., Path], tmp_path: Path
) -> None:
    registry = Registry.load()
    track = {"mlflow": {"uri": "https://me:secret@host/"}}
    glob = "https://me:other@host/*"
    path = write_pipeline(track=track, layers={"skip": [glob]})
    plan = make_plan(path, registry, (), tmp_path / "out")
    text = pipeline_text(plan, registry)
    assert "secret" not in text
    assert "https://***@host/" in text
    again = study_of_text(text, "pipeline.yaml", tmp_path, registry).pipeline
    assert again.layers.skip == (glob,)
    assert dump_yaml(resolved(again, registry)) == dump_yaml(resolved(plan.pipeline, registry))


@pytest.mark.parametrize(
    ("on", "world", "said"),
    [
        ("slurm", ALONE, "ray or ray:ADDRESS, not slurm"),
        ("ray", World(size=2), "torchrun has started several"),
    ],
)
def test_what_is_no_cluster_is_refused(on: str, world: World, said: str) -> None:
    with pytest.raises(UserError, match=said):
        RayCluster.named(on, world)


@with_ray
def test_a_cluster_is_named_by_its_address() -> None:
    assert RayCluster.named("ray").address is None
    assert RayCluster.named("ray:auto").address == "auto"
    assert RayCluster.named("ray:host:6379").address == "host:6379"


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("permllm.extras.find_spec", lambda name: None)
    cluster: Any = RayCluster().connected(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--on ray needs permllm\[ray\]") as caught, cluster:
        pass
    assert "pip install" in (caught.value.hint or "")


@with_ray
def test_a_study_on_ray_is_that_of_one_machine(folder: Path, address: str) -> None:
    alone = run("tiny.yaml", "--out", "alone", cwd=folder)
    assert alone.returncode == 0, alone.stderr
    done = run("tiny.yaml", "--out", "ray", "--on", f"ray:{address}", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    mine, other = folder / "ray", folder / "alone"
    labels = ["dense", "none mask", "none sparsegpt", "cp mask", "cp sparsegpt"]
    assert [one["label"] for one in json.loads(done.stdout)["runs"]] == labels
    assert figures(mine) == figures(other)
    exported = {name: value for name, value in listing(mine).items() if "/exports/" in name}
    assert exported
    assert exported.items() <= listing(other).items()
    # Runs at the same time computed what they share once.
    assert keys(mine / "cache") == keys(other / "cache")
    assert len(set(keys(mine / "cache"))) == len(keys(mine / "cache"))
    # Observers heard of one run after the other, and Ray of nobody's business.
    told = [event for event in read_events(mine) if event["event"] == "run_started"]
    assert [event["run"] for event in told] == labels
    kept = json.loads((mine / "mlflow.json").read_text())["runs"]
    assert set(kept) == {"", *labels}
    assert "ray" not in done.stderr.lower().replace("worker of ray", "").replace("folder: ray", "")
    again = run("tiny.yaml", "--out", "ray", "--on", f"ray:{address}", "--resume", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("done before") == len(labels)


def at_work(cache: Path) -> int | None:
    """A process that has looked for an order for a while; others do so for a moment."""
    for path in cache.glob("leases/permutations-*"):
        with suppress(OSError, ValueError):
            owner = json.loads(path.read_text())
            time.sleep(0.5)
            if json.loads(path.read_text()) == owner:
                return int(owner["pid"])
    return None


@with_ray
def test_a_run_whose_worker_is_killed_is_done_by_another(folder: Path, address: str) -> None:
    matrix = "matrix={layers.permutation: [none, slow]}"
    words = ["--set", matrix, "--set", "plugins=[slow.py]", "--set", "track={}"]
    process = begin("tiny.yaml", *words, "--out", "killed", "--on", f"ray:{address}", cwd=folder)
    deadline = time.monotonic() + 300
    while (worker := at_work(folder / "killed" / "cache")) is None:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    psutil.Process(worker).kill()
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "was lost: another goes on" in said
    plain, slow = figures(folder / "killed")[1:]
    assert slow[1] == plain[1]
    assert slow[4] is None


@with_ray
def test_a_run_that_breaks_by_itself_is_marked_and_not_tried_again(
    folder: Path, address: str
) -> None:
    breaks = f"open({str(folder / 'tries')!r}, 'a').write('x'); 1 / 0"
    (folder / "broken.py").write_text(SLOW.replace("time.sleep(5)", breaks).replace("slow", "bad"))
    matrix = "matrix={layers.permutation: [none, bad]}"
    words = ["--set", matrix, "--set", "plugins=[broken.py]", "--set", "track={}"]
    done = run("tiny.yaml", *words, "--out", "broken", "--on", f"ray:{address}", cwd=folder)
    assert done.returncode == 1, done.stderr
    assert "1 of 2 runs failed; the others are done" in done.stderr
    assert figures(folder / "broken")[2][4] == "ZeroDivisionError: division by zero"
    assert (folder / "tries").read_text() == "x"
