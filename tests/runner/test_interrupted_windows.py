"""A window that is interrupted goes on within itself, with the same bits."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forks import Forks

from permllm.api import run_plan
from permllm.hookspecs import hookimpl
from permllm.registry import Registry
from permllm.results import Results
from permllm.runner import finished_layers
from permllm.runs.plan import make_plan
from permllm.runs.windows import load_window
from permllm.training import loop, resuming

Write = Callable[..., Path]

SEARCH = {"name": "cp", "rounds": 2, "steps": 2}

PLUGIN = '''\
"""Components that note what they do, and break where the environment says so."""

import os
import signal
from pathlib import Path

import attrs
import permllm
import torch
from permllm.components import PermutationLearner, Pruner
from permllm.core.statistics import GRAM
from permllm.pruners.sparsegpt import SparseGpt


def note(what):
    """Note a step of the work; break at the step that is wanted."""
    log = Path(os.environ["WORK_LOG"])
    done = log.read_text().splitlines() if log.exists() else []
    if os.environ.get("BREAK_AT") == str(len(done)):
        if os.environ.get("BREAK_BY") == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt
    log.write_text("\\n".join([*done, what]) + "\\n")


@attrs.frozen
class Noted(Pruner):
    """SparseGPT, noted."""

    name = "noted"
    needs = (GRAM,)
    sequential = True

    def prune(self, weight, scores, pattern, statistics):
        note("prune")
        return SparseGpt().prune(weight, scores, pattern, statistics)


@attrs.frozen
class Tuned(Noted):
    """Then doubles the weights of the first linears, one after the other, and keeps them."""

    name = "tuned"
    keeps: bool = True

    def refine(self, window, permutations):
        note("refine")
        return {name: window.scores(name) * 2 for name in window.linears_of(self)[:1]}

    def update(self, window, weights):
        made = window.kept("updated") or {}
        for name in window.linears_of(self)[:5]:
            if name not in made:
                note("update")
                made[name] = weights[name] * 2
                window.keep("updated", made)
        return made


@attrs.frozen
class Learner(PermutationLearner):
    """Random orders, group by group, kept."""

    name = "random"

    def learn(self, window):
        made = window.kept("orders") or {}
        generator = torch.Generator().manual_seed(window.seed)
        for name, group in window.groups.items():
            order = torch.randperm(group.channels, generator=generator)
            if name not in made:
                note("learn")
                made[name] = order
                window.keep("orders", made)
        return made


@permllm.hookimpl
def permllm_pruners():
    return [Noted, Tuned]


@permllm.hookimpl
def permllm_permutations():
    return [Learner]
'''


@pytest.fixture(autouse=True)
def every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are kept however quick they are."""
    monkeypatch.setattr(finished_layers, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(finished_layers, "SHARE", 1e9)


class Study:
    """A pipeline of the plugin, run to its end or as far as it comes."""

    def __init__(self, folder: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.path, self.patch = folder, path, monkeypatch

    def run(self, out: str, *, stop: int | None = None, resume: bool = False) -> Results:
        self.at(stop)
        registry = Registry.load()
        plan = make_plan(self.path, registry, out=self.folder / out, resume=resume)
        return run_plan(plan, registry, resume=resume)

    def at(self, stop: int | None) -> None:
        """Break at a step of the next run; its notes begin anew."""
        self.log.unlink(missing_ok=True)
        self.patch.setenv("WORK_LOG", str(self.log))
        self.patch.setenv("BREAK_AT", str(stop))

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def done(self) -> list[str]:
        return self.log.read_text().split()

    def unfinished(self, out: str) -> list[Path]:
        return sorted((self.folder / out).rglob("*.unfinished/*.safetensors"))

    def same(self, one: str, other: str) -> None:
        """Whether two runs gave the same bits, and nothing unfinished is left."""
        (first,) = (self.folder / one).glob("runs/*/windows/*.safetensors")
        (second,) = (self.folder / other).glob("runs/*/windows/*.safetensors")
        a, b = load_window(first), load_window(second)
        assert a.weights.keys() == b.weights.keys()
        assert all(torch.equal(weight, b.weights[name]) for name, weight in a.weights.items())
        assert all(torch.equal(order, b.permutations[n]) for n, order in a.permutations.items())
        assert a.reports == b.reports
        assert not list((self.folder / other).rglob("*unfinished*"))


@pytest.fixture
def study(write_pipeline: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    (tmp_path / "work.py").write_text(PLUGIN)

    def make(**layers: object) -> Study:
        chosen = {"permutation": "none", "window": "all"} | layers
        path = write_pipeline(plugins=["./work.py"], layers=chosen, evaluate=[], export=[])
        return Study(tmp_path, path, monkeypatch)

    return make


def test_finished_layers_are_not_pruned_again(study: Callable[..., Study]) -> None:
    work = study(pruner="noted")
    whole = work.run("whole")
    assert work.done == ["prune"] * 14
    with pytest.raises(KeyboardInterrupt):
        work.run("broken", stop=10)
    # The first of the two layers, of seven linears.
    assert len(work.unfinished("broken")) == 1
    resumed = work.run("broken", resume=True)
    assert work.done == ["prune"] * 7
    work.same("whole", "broken")
    (label,) = [one.label for one in whole.runs if one.label != "dense"]
    assert resumed[label].figures == whole[label].figures
    assert resumed[label].layers == whole[label].layers


def test_a_damaged_layer_is_pruned_again(study: Callable[..., Study]) -> None:
    work = study(pruner="noted")
    work.run("whole")
    with pytest.raises(KeyboardInterrupt):
        work.run("broken", stop=10)
    (path,) = work.unfinished("broken")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    work.run("broken", resume=True)
    assert work.done == ["prune"] * 14
    assert "is damaged" in (work.folder / "broken/events.jsonl").read_text()
    work.same("whole", "broken")


def test_another_run_s_layers_are_never_taken(study: Callable[..., Study]) -> None:
    work = study(pruner="noted")
    with pytest.raises(KeyboardInterrupt):
        work.run("broken", stop=10)
    (path,) = work.unfinished("broken")
    # As if it had been made with another version of the plugin.
    plugin = work.folder / "work.py"
    plugin.write_text(plugin.read_text() + "\n# Another version.\n")
    with pytest.raises(KeyboardInterrupt):
        work.run("other", stop=10)
    (other,) = work.unfinished("other")
    assert other.name != path.name
    path.replace(other)
    work.run("other", resume=True)
    assert work.done == ["prune"] * 14


def test_a_pruner_goes_on_where_it_was(study: Callable[..., Study]) -> None:
    work = study(pruner="tuned")
    work.run("whole")
    assert work.done == ["refine", *["prune"] * 14, *["update"] * 5]
    with pytest.raises(KeyboardInterrupt):
        work.run("broken", stop=18)
    work.run("broken", resume=True)
    assert work.done == ["update"] * 2
    work.same("whole", "broken")


def test_a_learner_goes_on_where_it_was(study: Callable[..., Study]) -> None:
    work = study(permutation="random")
    work.run("whole")
    assert work.done == ["learn"] * 8
    with pytest.raises(KeyboardInterrupt):
        work.run("broken", stop=5)
    work.run("broken", resume=True)
    assert work.done == ["learn"] * 3
    work.same("whole", "broken")


class StopAt:
    """Interrupts a run once a training step is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def permllm_training_step(self, step: int) -> None:
        if step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "layers",
    [
        {"permutation": {"name": "lcp", "block": 8, "steps": 6, "batch": 2, "start": SEARCH}},
        {"pruner": {"name": "distil", "steps": 6, "batch": 2, "mask": "sparsegpt"}},
    ],
    ids=["lcp", "distil"],
)
def test_a_training_goes_on_where_it_was(
    layers: dict[str, object], study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "KEEP_SECONDS", 0.0)
    monkeypatch.setattr(resuming, "TIMES_WRITING", 0.0)
    made: list[int] = []
    step = loop.train_step
    monkeypatch.setattr(
        loop, "train_step", lambda *args: (made.append(args[3].number), step(*args))[1]
    )
    work = study(**layers)
    work.run("whole")
    assert made == [1, 2, 3, 4, 5, 6]
    registry = Registry.load()
    registry.manager.register(StopAt(4))
    with pytest.raises(KeyboardInterrupt):
        run_plan(make_plan(work.path, registry, out=work.folder / "broken"), registry)
    made.clear()
    work.run("broken", resume=True)
    # The fourth step was made, but the run was interrupted before it was kept.
    assert made == [4, 5, 6]
    work.same("whole", "broken")


@pytest.mark.skipif(sys.platform != "linux", reason="for Linux")
def test_a_killed_process_goes_on_within_a_window(
    study: Callable[..., Study], forks: Forks
) -> None:
    work = study(pruner="noted", permutation="random")
    work.run("whole")
    work.at(8 + 10)
    program = (
        "from permllm.runner import finished_layers as f; f.KEEP_SECONDS, f.SHARE = 0, 1e9\n"
        "from permllm.cli.main import cli; cli()"
    )
    killed = forks.at(work.folder).call(
        "run",
        work.path,
        "--out",
        "killed",
        program=program,
        environment=forks.environment | os.environ | {"BREAK_BY": "SIGKILL"},
    )
    assert killed.code == -signal.SIGKILL, killed.printed
    work.run("killed", resume=True)
    assert work.done == ["prune"] * 7
    work.same("whole", "killed")


def test_quick_layers_leave_nothing(
    study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finished_layers, "KEEP_SECONDS", 60.0)
    work = study(pruner="noted")
    with pytest.raises(KeyboardInterrupt):
        work.run("broken", stop=10)
    assert not work.unfinished("broken")
    assert not list(work.folder.rglob("*unfinished*"))
