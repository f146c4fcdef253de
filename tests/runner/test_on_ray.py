"""Studies on a Ray cluster: those of one machine, whatever becomes of the workers."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import psutil
import pytest

from permllm.errors import NoSpace, RunFailed, UserError
from permllm.files import listing, read_sealed
from permllm.pipeline.reading import dump_yaml, resolved, study_of_text
from permllm.registry import Registry
from permllm.results import Results
from permllm.runner.caching.keys import own_code
from permllm.runner.on_ray import (
    Answer,
    Event,
    Failure,
    Forwarding,
    Heard,
    Letter,
    Order,
    RayCluster,
    pipeline_text,
    work,
)
from permllm.runs.events import read_events
from permllm.runs.lock import OWNER
from permllm.runs.plan import make_plan

Call = Callable[..., "subprocess.CompletedProcess[str]"]

with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="permllm[ray] is not installed")

# --- without a cluster ------------------------------------------------------------------


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


def test_what_a_worker_hears_goes_out_in_letters_and_none_is_needed() -> None:
    letters: list[Letter] = []
    hook = Forwarding("a", letters.append)
    hook.permllm_run_started(run=RUN, reused=False)
    hook.permllm_progress(run=None, stage="s", done=0, total=1)
    hook.permllm_warning(message="w")
    assert [len(letter.events) for letter in letters] == [1]
    hook.due = 0
    hook.permllm_warning(message="w")
    assert letters[-1].progress == Event(
        "permllm_progress", {"stage": "s", "done": 0, "total": 1}, False
    )
    assert hook.letter().events == (
        Event("permllm_run_started", {"reused": False}, True),
        Event("permllm_warning", {"message": "w"}, None),
        Event("permllm_warning", {"message": "w"}, None),
    )

    def lost(letter: Letter) -> None:
        raise ConnectionError

    broken = Forwarding("a", lost)
    broken.permllm_warning(message="w")
    assert len(broken.letter().events) == 1
    with pytest.raises(AttributeError):
        broken.something_else  # noqa: B018


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UserError("no", hint="do"), UserError, "no"),
        (RunFailed("broke\nmore"), RunFailed, "broke"),
        (ZeroDivisionError("not today"), RunFailed, "ZeroDivisionError: not today"),
        (OSError(errno.ENOSPC, "No space left on device"), NoSpace, "No space left"),
    ],
)
def test_what_broke_a_run_is_said_as_on_one_machine(
    error: Exception, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        Answer(failure=Failure.of(error)).taken()
    assert type(caught.value) is kind
    assert getattr(caught.value, "hint", None) == getattr(error, "hint", None)


@pytest.fixture
def order(write_pipeline: Callable[..., Path], tmp_path: Path) -> Order:
    """What the worker of a dense run is told."""
    registry = Registry.load()
    matrix = {"layers.permutation": ["none"]}
    path = write_pipeline(matrix=matrix, evaluate=["sparsity"], export=[])
    out = tmp_path / "out"
    out.mkdir()
    (out / OWNER).write_text("mine")
    return Order(
        pipeline=pipeline_text(make_plan(path, registry, (), out), registry),
        label="dense",
        out=str(out),
        owner=b"mine",
        cache=str(tmp_path / "cache"),
        cache_limit=10**9,
        disabled=(),
        plugin_files={},
        threads=1,
        alike={"permllm": own_code()[:12], "number of threads": 1},
        dense=None,
        versions={},
    )


def test_a_worker_does_runs_with_what_it_is_told_alone(order: Order, tmp_path: Path) -> None:
    dense = work(order, lambda letter: None)
    assert dense.taken().figures == {"sparsity": 0.0}
    pruned = work(attrs.evolve(order, label="none", dense=dense.result), lambda letter: None)
    assert pruned.taken().figures["sparsity"] == 0.5
    names = [event.hook.removeprefix("permllm_") for event in pruned.letter.events]
    assert (names[0], names[-1]) == ("run_started", "run_finished")
    assert "window_finished" in names
    again = work(attrs.evolve(order, label="none", dense=dense.result), lambda letter: None)
    assert again.result == pruned.result
    assert again.letter.events[0].facts == {"reused": True}


def test_a_worker_that_sees_another_folder_is_refused(order: Order) -> None:
    for out, owner in ((order.out, b"another"), (order.out + "-not-there", b"mine")):
        answer = work(attrs.evolve(order, out=out, owner=owner), lambda letter: None)
        assert answer.refused
        with pytest.raises(UserError, match=rf"on {socket.gethostname()} does not see .* {out}"):
            answer.taken()


@pytest.mark.parametrize("what", ["permllm", "model", "pipeline", "torch", "device"])
def test_a_worker_that_would_come_to_other_figures_is_refused(order: Order, what: str) -> None:
    answer = work(attrs.evolve(order, alike={what: "other"}), lambda letter: None)
    assert answer.refused
    with pytest.raises(UserError, match=f"has another {what} than .*, and not other"):
        answer.taken()


def test_a_plugin_file_that_is_another_there_does_not_run(order: Order, tmp_path: Path) -> None:
    path = tmp_path / "runs.py"
    path.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    named = order.pipeline.replace('"plugins": []', f'"plugins": ["{path}"]')
    assert named != order.pipeline
    changed = attrs.evolve(order, pipeline=named, plugin_files={str(path): "0" * 64})
    with pytest.raises(UserError, match="changed"):
        work(changed, lambda letter: None).taken()
    assert not (tmp_path / "ran").exists()


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


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("permllm.extras.find_spec", lambda name: None)
    cluster: Any = RayCluster().connected(None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--on ray needs permllm\[ray\]") as caught, cluster:
        pass
    assert "pip install" in (caught.value.hint or "")


# --- with one ---------------------------------------------------------------------------

TOKEN = secrets.token_hex(16)

PIPELINE = """\
permllm: 1
name: tiny
model: {source: directory, path: model}
calibration: {dataset: {name: text, path: text.txt}, sequences: 4, length: 16, held_out: 2}
pattern: "2:4"
layers: {window: 1}
resources: {cpus: 1}
matrix:
  layers.permutation: [none, cp]
  layers.pruner: [mask, sparsegpt]
evaluate:
  - {name: perplexity, dataset: {name: text, path: text.txt}, length: 16, max_tokens: 128}
  - fidelity
export: [masked]
track: {mlflow: {}}
"""

SLOW = """\
import time
import attrs
import permllm
from permllm.components import PermutationLearner
from permllm.hooks import hookimpl


@attrs.frozen
class Slow(PermutationLearner):
    '''Waits, and then leaves everything as it is.'''

    name = "slow"
    only_scores = True

    def learn(self, window):
        import torch

        time.sleep(5)
        return {
            name: torch.arange(group.channels) for name, group in window.groups.items()
        }


@hookimpl
def permllm_permutations():
    return [Slow]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_project: Callable[..., Path]) -> Path:
    place = tiny_project(tmp_path_factory.mktemp("ray"), PIPELINE)
    (place / "slow.py").write_text(SLOW)
    return place


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a cluster of one machine with two CPUs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Paths of sockets are short.
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    words = ["start", "--head", "--block", f"--port={port}", "--num-cpus=2"]
    words += ["--include-dashboard=false", "--node-ip-address=127.0.0.1"]
    head = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), *words, f"--temp-dir={temporary}"],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield f"127.0.0.1:{port}"
    head.terminate()
    head.wait(timeout=60)
    shutil.rmtree(temporary, ignore_errors=True)


def environment() -> dict[str, str]:
    """The variables of a user and of a cluster with a token of its own."""
    own = {"OMP_NUM_THREADS": "1", "COLUMNS": "160", "RAY_USAGE_STATS_ENABLED": "0"}
    return os.environ | own | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


def begin(*words: str | Path, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "permllm", "run", *map(str, words)],
        cwd=cwd,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*words: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    process = begin(*words, cwd=cwd, **variables)
    try:
        said = process.communicate(timeout=400)
    finally:
        process.kill()
    return subprocess.CompletedProcess(words, process.returncode, *said)


def figures(out: Path) -> list[Any]:
    results = Results.from_dict(read_sealed(out / "results.json"))
    return [(one.label, one.figures, one.layers, one.exports, one.error) for one in results.runs]


def keys(cache: Path) -> list[str]:
    """Kind and key of each entry; what was computed twice is there twice, for its cost differs."""
    return sorted(str(path.relative_to(cache)).partition(".")[0] for path in cache.glob("*/*.*.*"))


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


@with_ray
def test_a_run_whose_worker_is_killed_is_done_by_another(folder: Path, address: str) -> None:
    matrix = "matrix={layers.permutation: [none, slow]}"
    words = ["--set", matrix, "--set", "plugins=[slow.py]", "--set", "track={}"]
    process = begin("tiny.yaml", *words, "--out", "killed", "--on", f"ray:{address}", cwd=folder)
    deadline = time.monotonic() + 300
    while not (leases := list(folder.glob("killed/cache/leases/permutations-*"))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    psutil.Process(json.loads(leases[0].read_text())["pid"]).kill()
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


@with_ray
def test_more_than_the_cluster_has_is_refused_before_anything_begins(
    folder: Path, address: str
) -> None:
    words = ["--set", "resources={gpus: 1, cpus: 3}", "--out", "much", "--on", f"ray:{address}"]
    done = run("tiny.yaml", *words, cwd=folder)
    assert done.returncode == 2
    assert (
        "error: a run takes 3 CPUs and 1 GPUs, and no machine of the Ray cluster has as many: "
        "2 CPUs, 0 GPUs" in done.stderr
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
