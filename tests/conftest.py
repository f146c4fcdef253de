"""What all tests share."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import attrs
import pytest
from forks import Forks, Processes
from hypothesis import HealthCheck, Phase, settings

from permllm.commands import BORROWED
from permllm.results import LayerReport, Results, RunResult

# No test may fail because the machine is slow.
settings.register_profile("permllm", deadline=None)
settings.load_profile("permllm")
# Of `tox run -e mutants`: that a test fails is enough, and it must not fail by chance.
settings.register_profile(
    "mutants",
    phases=(Phase.explicit, Phase.generate),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=(HealthCheck.too_slow,),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of `tox run -e mutants`: the tests of the mutant's own folder, the quick ones first."""
    package, _, mutant = os.environ.get("MUTANT_UNDER_TEST", "").partition(".")
    if package == "permllm":
        folder = f"tests/{mutant.partition('.')[0]}/"
        seconds = json.loads(Path("mutmut-stats.json").read_text())["duration_by_test"]
        items[:] = [item for item in items if item.nodeid.startswith(folder)]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


def pytest_collection_finish() -> None:
    """What is imported by now is no garbage, and is not looked through for any.

    Every pruned run looks for some, which takes longer than the rest of a tiny one where all of
    torch is among it; and a fork would copy what it only looks through.
    """
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[None]:
    """A cache folder for the tests, also in the processes that they start.

    What is compiled outlives the session: it takes a minute and is named by its content.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        cache = getattr(pytestconfig, "cache", None)
        if cache is not None:
            patch.setenv("TORCH_EXTENSIONS_DIR", str(cache.mkdir("kernels")))
        yield


Write = Callable[[Path, str], Path]


@pytest.fixture(scope="session")
def tiny_project() -> Write:
    """Writes a tiny model, a text and a pipeline file, ``tiny.yaml``, to a folder."""

    def write(folder: Path, pipeline: str) -> Path:
        # Late: the tests of --help need no torch.
        from permllm.testing.models import save_tiny

        save_tiny("llama", folder / "model")
        (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 200)
        (folder / "tiny.yaml").write_text(pipeline)
        return folder

    return write


@pytest.fixture(autouse=True, scope="session")
def users_shell() -> Iterator[None]:
    """Programs are found beside Python, as in an activated environment, and not lent by tox."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        for name in BORROWED:
            patch.delenv(name, raising=False)
        yield


WARM = """\
permllm: 1
name: warm
model: {source: directory, path: model}
calibration: {dataset: {name: text, path: text.txt}, sequences: 4, length: 16, held_out: 2}
pattern: "2:4"
layers:
  permutation: {name: lcp, steps: 2, batch: 2, block: 8, start: {name: cp, rounds: 2, steps: 2}}
evaluate:
  - {name: perplexity, dataset: {name: text, path: text.txt}, length: 16, max_tokens: 128}
export: [masked, permuted]
track: {}
"""


@pytest.fixture(scope="session")
def forks(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_project: Write,
    own_cache: None,
    users_shell: None,
) -> Iterator[Forks | Processes]:
    """Calls of ``permllm`` without waiting for its imports, in forks of one process.

    What is compiled and cached while the first study runs is there in all of them.
    """
    if sys.platform != "linux":
        yield Processes()
        return
    folder = tiny_project(tmp_path_factory.mktemp("forks").resolve(), WARM)
    begun = Forks(folder, ["run", "tiny.yaml", "--out", "warm"])
    yield begun
    begun.close()


# --- packages as they lie in an installed environment, without building any --------

Package = Callable[..., Distribution]


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """Writes a package that announces a plugin to a folder for ``sys.path``."""

    def write(
        name: str,
        source: str = "",
        *,
        version: str = "1.5",
        requires: Iterable[str] = (),
        extras: Iterable[str] = (),
    ) -> Distribution:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Provides-Extra: {extra}" for extra in extras]
        lines += [f"Requires-Dist: {need}" for need in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        entry_point = f"[permllm]\n{name.removeprefix('permllm-')} = {module}\n"
        (info / "entry_points.txt").write_text(entry_point, encoding="utf-8")
        return Distribution.at(info)

    return write


# --- made-up results of pipelines ----------------------------------------------------

PERPLEXITY = "perplexity/python-docs"


def reports(gain: float, layers: int = 4) -> tuple[LayerReport, ...]:
    """Figures of the linears of a few decoder layers."""
    linears = {"q_proj": "attn", "k_proj": "attn", "up_proj": "mlp"}
    return tuple(
        LayerReport(
            linear=f"model.layers.{layer}.{group}.{linear}",
            group=f"model.layers.{layer}.{group}",
            shape=(16, 32),
            pattern="2:4",
            retained_before=0.7 + layer / 100,
            retained=0.7 + layer / 100 + gain,
            sparsity=0.5,
            error=0.1,
        )
        for layer in range(layers)
        for linear, group in linears.items()
    )


def run(label: str, perplexity: float, **options: Any) -> RunResult:
    """A pruned run; ``permutation=…`` stands for ``layers.permutation``."""
    dotted = {f"layers.{key}": value for key, value in options.items()}
    figures = {PERPLEXITY: perplexity, "sparsity": 0.5, "retained": 0.8125}
    return RunResult(label, figures, 83.2, 2**30 * 3, layers=reports(0.05), options=dotted)


def repeat(result: RunResult, number: int) -> RunResult:
    """The same run as a repeat of its setting."""
    label = result.label if number == 0 else f"{result.label} #{number + 1}"
    return attrs.evolve(result, label=label, setting=result.label, repeat=number)


def fail(result: RunResult, error: str = "ArithmeticError: not today") -> RunResult:
    """The same run, had it broken."""
    return attrs.evolve(result, figures={}, layers=(), error=error)


def dense(perplexity: float = 20.0) -> RunResult:
    return RunResult("dense", {PERPLEXITY: perplexity, "sparsity": 0.0}, 0.0, 2**30)


@pytest.fixture
def results() -> Callable[..., Results]:
    """Results of the given runs after the dense one; the quickstart's by default."""

    def make(*runs: RunResult, before: RunResult | None = None) -> Results:
        default = (
            run("none", 100.0, permutation={"name": "none"}),
            run("cp", 80.0, permutation={"name": "cp"}),
            run("lcp", 40.0, permutation={"name": "lcp", "block": 64}),
        )
        return Results("quickstart", "runs/x", (before or dense(), *(runs or default)))

    return make


@pytest.fixture
def study(results: Callable[..., Results]) -> Callable[..., Results]:
    """Results of settings that were repeated, by the perplexities of their repeats.

    A repeat without a perplexity failed.
    """

    def make(**perplexities: list[float | None]) -> Results:
        runs = []
        for name, values in perplexities.items():
            for number, value in enumerate(values):
                one = repeat(run(name, value or 0.0, permutation={"name": name}), number)
                runs.append(one if value is not None else fail(one))
        return results(*runs)

    return make


@pytest.fixture
def failed() -> Callable[..., RunResult]:
    return fail


@pytest.fixture
def pruned() -> Callable[..., RunResult]:
    return run


@pytest.fixture
def without() -> Callable[..., RunResult]:
    """A run without some figures."""

    def drop(result: RunResult, *names: str) -> RunResult:
        kept = {name: value for name, value in result.figures.items() if name not in names}
        return attrs.evolve(result, figures=kept)

    return drop
