"""What MLflow holds after a run, read back through its client."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import attrs
import pytest
from forks import Forks

from permllm.observers.events import Events
from permllm.observers.mlflow import IDS, Mlflow, Recorder, milliseconds
from permllm.results import Results, RunResult
from permllm.runs.events import read_events
from permllm.testing.observers import lead_through, lead_to_an_interruption, toy_plan


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def runs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder whose runs share one store: to make its tables takes seconds."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def client(runs_folder: Path) -> Iterator[Any]:
    """Reads the store; MLflow's own deprecation warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        yield MlflowClient(tracking_uri=f"sqlite:///{runs_folder / 'mlflow.db'}")


def prepare(out: Path) -> Any:
    """The files that the runner writes, in place; the plan."""
    plan = toy_plan(out)
    environment = {"model_fingerprint": "abc123", "git_commit": "f" * 40, "versions": {}}
    (out / "environment.json").write_text(json.dumps(environment))
    (out / "pipeline.yaml").write_text("name: toy\n")
    (out / "results.json").write_text("{}")
    for folder in (out / "plots", *(run.directory / "plots" for run in plan.runs)):
        folder.mkdir(parents=True)
        (folder / "retained.png").write_bytes(b"x")
    return plan


@pytest.fixture(scope="module")
def finished(runs_folder: Path) -> tuple[Path, list[str]]:
    """A recorded run in the default store, and its warnings."""
    from permllm.testing.observers import watched

    out = runs_folder / "first"
    out.mkdir()
    lead_through(prepare(out), watched(Mlflow(), out))
    return out, []


def runs_of(client: Any, experiment: str) -> dict[str, Any]:
    found = client.get_experiment_by_name(experiment)
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


def artifacts(client: Any, run: Any, folder: str | None = None) -> set[str]:
    return {item.path for item in client.list_artifacts(run.info.run_id, folder)}


def test_runs_are_nested_under_the_pipelines(finished, client: Any) -> None:
    runs = runs_of(client, "toy")
    assert set(runs) == {"first", "dense", "seed=1", "seed=2"}
    parent = runs.pop("first")
    assert parent.info.status == "FINISHED"
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["model_fingerprint"] == "abc123"
        assert run.data.tags["mlflow.source.git.commit"] == "f" * 40
        assert run.info.status == "FINISHED"


def test_parameters_are_the_resolved_pipeline(finished, client: Any) -> None:
    runs = runs_of(client, "toy")
    assert runs["first"].data.params["layers.permutation.name"] == "none"
    assert runs["seed=2"].data.params["seed"] == "2"
    assert runs["dense"].data.params["calibration.sequences"] == "16"


def test_metrics_per_step_per_layer_and_at_the_end(finished, client: Any) -> None:
    run = runs_of(client, "toy")["seed=1"]
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    (held_out,) = client.get_metric_history(run.info.run_id, "held_out_loss")
    assert (held_out.step, held_out.value) == (3, 0.4)
    (layer,) = client.get_metric_history(run.info.run_id, "layer/retained")
    assert (layer.step, layer.value) == (0, pytest.approx(0.775))
    assert run.data.metrics["layer/retained_before"] == pytest.approx(0.705)
    assert run.data.metrics["layer/error"] == pytest.approx(0.215)
    assert run.data.metrics["perplexity/toy"] == 59.2
    assert run.data.metrics["peak_memory_bytes"] == 2**30


def test_artifacts_are_the_documents_and_plots(finished, client: Any, runs_folder: Path) -> None:
    runs = runs_of(client, "toy")
    documents = artifacts(client, runs["first"])
    assert {"pipeline.yaml", "results.json", "environment.json", "plots"} <= documents
    assert artifacts(client, runs["first"], "plots") == {"plots/retained.png"}
    assert artifacts(client, runs["seed=1"], "plots") == {"plots/retained.png"}
    assert runs["first"].info.artifact_uri.startswith((runs_folder / "mlartifacts").as_uri())


def test_resumed_run_goes_on_in_its_runs(tell, client: Any, runs_folder: Path, finished) -> None:
    out = runs_folder / "second"
    observer = Mlflow(experiment="again", run_name="a study")
    told = tell(out, observer)
    plan = prepare(out)
    lead_to_an_interruption(plan, told.hook)
    runs = runs_of(client, "again")
    assert {name: run.info.status for name, run in runs.items()} == {
        "a study": "KILLED",
        "seed=1": "KILLED",
    }
    told = tell(out, observer)
    lead_through(plan, told.hook)
    again = runs_of(client, "again")
    assert set(again) == {"a study", "dense", "seed=1", "seed=2"}
    assert again["seed=1"].info.run_id == runs["seed=1"].info.run_id
    assert {run.info.status for run in again.values()} == {"FINISHED"}
    assert told.warnings == []


def test_what_was_finished_keeps_its_time_and_what_is_left_over_is_ended(
    tell, client: Any, runs_folder: Path, finished
) -> None:
    out = runs_folder / "grown"
    out.mkdir()
    observer = Mlflow(experiment="grown")
    plan = prepare(out)
    lead_through(plan, tell(out, observer).hook)
    before = runs_of(client, "grown")
    # An attempt that is killed in a run whose label is another one later.
    told = tell(out, observer)
    old = attrs.evolve(plan.runs[1], label="seed=2, old")
    told.hook.permllm_plan_started(plan=attrs.evolve(plan, runs=(plan.runs[0], old)))
    told.hook.permllm_run_started(run=old, reused=False)
    told.hook.permllm_training_step(
        run=old,
        window=0,
        stage="permutation",
        step=1,
        total=1,
        figures={"loss": 0.3},
        replayed=False,
    )
    told.hook.permllm_progress(run=old, stage="learning", done=1, total=1)
    at = milliseconds()
    time.sleep(0.01)
    # Everything is there already.
    told = tell(out, observer)
    told.hook.permllm_plan_started(plan=plan)
    figures = {"perplexity/toy": 59.2}
    for run in (plan.dense, *plan.runs):
        told.hook.permllm_run_started(run=run, reused=True)
        result = RunResult(run.label, figures, 2.0, 2**30)
        told.hook.permllm_run_finished(run=run, result=result)
    told.hook.permllm_plan_finished(plan=plan, results=Results("toy", str(out), ()))
    after = runs_of(client, "grown")
    left = after.pop("seed=2, old").info
    assert left.status == "KILLED"
    assert left.start_time <= left.end_time <= at
    for name in ("dense", "seed=1", "seed=2"):
        assert after[name].info == before[name].info
        history = client.get_metric_history(after[name].info.run_id, "perplexity/toy")
        assert len(history) == 1
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    assert told.warnings == []


class Unused:
    """A store that only says where it is."""

    uri = "sqlite:///a.db"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"uri": "sqlite:///a.db"}',
        '{"uri": "sqlite:///a.db", "runs": ["a"]}',
        '{"uri": "sqlite:///a.db", "runs": {"a": 3}}',
        '{"uri": 3, "runs": {}}',
    ],
)
def test_damaged_ids_and_environments_are_passed_over(tmp_path: Path, text: str) -> None:
    warnings: list[str] = []

    def recorder() -> Recorder:
        made = Recorder(Mlflow(), tmp_path, warnings.append, Unused())  # type: ignore[arg-type]
        made._remember()
        return made

    (tmp_path / IDS).write_text('{"uri": "sqlite:///a.db", "runs": {"a": "b"}}')
    (tmp_path / "environment.json").write_text('{"model": "x"}')
    assert (recorder().ids, warnings) == ({"a": "b"}, [])
    assert recorder()._origin() == {"model": "x"}
    for name in (IDS, "environment.json"):
        (tmp_path / name).write_text(text)
    damaged = recorder()
    assert damaged.ids == {}
    assert damaged.study
    assert "mlflow.json" in warnings[0]
    assert "MLflow's runs are begun anew" in warnings[0]
    assert damaged._origin() == {}


def test_a_run_whose_id_was_lost_is_found_again(
    tell, client: Any, runs_folder: Path, finished
) -> None:
    """As when the process dies between beginning a run and writing its id down."""
    out = runs_folder / "lost"
    observer = Mlflow(experiment="lost")
    told = tell(out, observer)
    plan = prepare(out)
    lead_to_an_interruption(plan, told.hook)
    runs = runs_of(client, "lost")
    kept = json.loads((out / IDS).read_text())
    copies = runs_folder / "mlartifacts" / kept["runs"][""] / "artifacts"
    (copies / ".artifact.uploading.abc").touch()
    (out / IDS).write_text(json.dumps(kept | {"runs": {}}))
    told = tell(out, observer)
    lead_through(plan, told.hook)
    again = client.search_runs([client.get_experiment_by_name("lost").experiment_id])
    assert len(again) == 4
    assert {run.info.run_id for run in runs.values()} <= {run.info.run_id for run in again}
    assert {run.info.status for run in again} == {"FINISHED"}
    assert told.warnings == []
    # What it was copying at that moment is no artefact.
    assert "pipeline.yaml" in {path.name for path in copies.iterdir()}
    assert not list(copies.glob(".artifact.*"))


def test_what_a_stage_measured_is_there_before_its_result_is(
    tell, client: Any, runs_folder: Path, finished
) -> None:
    """Where the process dies after that, nobody measures it again."""
    told = tell(runs_folder / "stage", Mlflow(experiment="stage"))
    plan = prepare(runs_folder / "stage")
    run = plan.runs[0]
    told.hook.permllm_plan_started(plan=plan)
    told.hook.permllm_run_started(run=run, reused=False)
    told.hook.permllm_training_step(
        run=run,
        window=0,
        stage="permutation",
        step=1,
        total=1,
        figures={"loss": 0.3},
        replayed=False,
    )
    told.hook.permllm_progress(run=run, stage="learning", done=1, total=1)
    assert runs_of(client, "stage")["seed=1"].data.metrics == {"loss": 0.3}


def test_names_and_numbers_that_mlflow_refuses(
    tell, client: Any, runs_folder: Path, finished
) -> None:
    out = runs_folder / "third"
    told = tell(out, Mlflow(experiment="odd"))
    plan = toy_plan(out)
    told.hook.permllm_plan_started(plan=plan)
    run = attrs.evolve(plan.runs[0], label="lcp (α=½) | 'x'")
    told.hook.permllm_run_started(run=run, reused=False)
    figures = {"loss": float("nan"), "odd (name)/α": 1.0}
    told.hook.permllm_training_step(
        run=run,
        window=0,
        stage="permutation",
        step=1,
        total=1,
        figures=figures,
        replayed=False,
    )
    told.hook.permllm_window_finished(run=run, window=0, reports=(), seconds=1.0)
    assert told.warnings == []
    kept = runs_of(client, "odd")["lcp (α=½) | 'x'"]
    assert kept.data.metrics["odd _name_/_"] == 1.0


def test_nothing_is_printed(tell, runs_folder: Path, finished, capfd: Any) -> None:
    out = runs_folder / "fourth"
    lead_through(toy_plan(out), tell(out, Mlflow(experiment="quiet")).hook)
    assert capfd.readouterr() == ("", "")


def bad_uris(folder: Path) -> dict[str, str]:
    (folder / "file").write_text("")
    return {
        "unknown scheme": "bogus://nowhere",
        "no folder": f"sqlite:///{folder}/file/mlflow.db",
        "no database": f"sqlite:///{folder / 'text.db'}",
        "nobody answers": "http://user:secret@127.0.0.1:9",
    }


@pytest.mark.parametrize("kind", ["unknown scheme", "no folder", "no database", "nobody answers"])
def test_failing_store_is_one_warning_and_the_run_goes_on(
    tell: Callable[..., Any], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("permllm.observers.outbox.PATIENCE", 0.1)
    (tmp_path / "text.db").write_text("this is no database, whatever it is called\n" * 50)
    out = tmp_path / "run"
    told = tell(out, Events(), Mlflow(uri=bad_uris(tmp_path)[kind]))
    lead_through(toy_plan(out), told.hook)
    assert len(told.warnings) == 1
    assert "MLflow" in told.warnings[0]
    assert "secret" not in told.warnings[0]
    assert read_events(out)[-1]["event"] == "plan_finished"
    assert not (out / IDS).exists()


def test_store_that_breaks_in_the_middle_is_one_warning(
    tell, runs_folder: Path, finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    def locked(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("(sqlite3.OperationalError) database is locked\nBackground: …")

    out = runs_folder / "fifth"
    told = tell(out, Events(), Mlflow(experiment="breaks"))
    monkeypatch.setattr(MlflowClient, "log_batch", locked)
    monkeypatch.setattr("permllm.observers.outbox.PATIENCE", 0.1)
    lead_through(toy_plan(out), told.hook)
    assert len(told.warnings) == 1
    assert "database is locked" in told.warnings[0]
    assert "Background" not in told.warnings[0]
    warned = [event for event in read_events(out) if event["event"] == "warning"]
    assert told.warnings[0] in [event["message"] for event in warned]


def test_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert Mlflow().where(out) == f"mlflow ui --backend-store-uri {store}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    assert Mlflow().where(out) == "http://***@host:5000"
    assert Mlflow(uri="http://other").where(out) == "http://other"


# --- stores that many use, and stores that are away --------------------------------------

RECORDS = """\
import sys, time
from pathlib import Path
from permllm.observers.mlflow import Mlflow
from permllm.testing.observers import lead_through, toy_plan
import pluggy
from permllm import hookspecs
out = Path(sys.argv[1])
out.mkdir()
Path(str(out) + ".ready").touch()
while len(list(out.parent.glob("*.ready"))) < int(sys.argv[2]):
    time.sleep(0.001)
manager = pluggy.PluginManager(hookspecs.PROJECT)
manager.add_hookspecs(hookspecs)
manager.register(Mlflow().watch(out, lambda message: print(message, flush=True)))
lead_through(toy_plan(out), manager.hook)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="for Linux")
def test_processes_that_start_together_on_a_new_store_lose_nothing(
    tmp_path: Path, forks: Forks
) -> None:
    outs = [tmp_path / f"study{number}" for number in range(3)]
    here = forks.at(tmp_path)
    three = [here.start(out, "3", program=RECORDS, stderr=os.devnull) for out in outs]
    ended = [(one.wait(), one.printed) for one in three]
    assert ended == [(0, "")] * 3
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        found = dict(database.execute("SELECT name, status FROM runs WHERE name LIKE 'study%'"))
        (count,) = database.execute(
            "SELECT count(*) FROM runs WHERE status = 'FINISHED'"
        ).fetchone()
    database.close()
    assert found == dict.fromkeys((out.name for out in outs), "FINISHED")
    assert count == 3 * 4


@pytest.mark.parametrize("name", ["a?b=c", "100%", "a%20b", "no #1", "a b"])
def test_the_store_is_in_the_folder_whatever_it_is_called(
    tell, tmp_path: Path, name: str, runs_folder: Path, finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    folder = tmp_path / name
    folder.mkdir()
    # A store with tables: to make them takes seconds.
    shutil.copy(runs_folder / "mlflow.db", folder / "mlflow.db")
    out = folder / "odd"
    told = tell(out, Mlflow(experiment="of its own"))
    lead_through(prepare(out), told.hook)
    assert told.warnings == []
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["elsewhere", name])
    assert list(elsewhere.iterdir()) == []
    with sqlite3.connect(folder / "mlflow.db") as database:
        (status,) = database.execute("SELECT status FROM runs WHERE name = 'odd'").fetchone()
    database.close()
    assert status == "FINISHED"
    assert list((folder / "mlartifacts").rglob("pipeline.yaml"))


# Processes for jobs of its own are not wanted, which import everything, too.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class Server:
    """A tracking server of MLflow, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        words += ["--artifacts-destination", str(self.folder / "artifacts")]
        self.process = subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | QUIET,
            start_new_session=True,
        )

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urlopen(f"{self.uri}/health"):
                    return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


@pytest.fixture
def server(tmp_path: Path, runs_folder: Path, finished) -> Iterator[Server]:
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(runs_folder / "mlflow.db", folder / "mlflow.db")
    server = Server(folder)
    server.start()
    server.wait_until_up()
    yield server
    server.stop()


def test_a_server_that_is_away_for_a_while_gets_everything_in_order(
    tell, tmp_path: Path, server: Server
) -> None:
    from mlflow.tracking import MlflowClient

    out = tmp_path / "run"
    told = tell(out, Mlflow(uri=server.uri, experiment="away"))
    plan = toy_plan(out)
    told.hook.permllm_plan_started(plan=plan)
    first, second = plan.runs
    for number, run in enumerate((first, second)):
        if number == 1:
            server.stop()
        told.hook.permllm_run_started(run=run, reused=False)
        for step in range(1, 1001):
            told.hook.permllm_training_step(
                run=run, window=0, stage="permutation", step=step, total=0,
                figures={"loss": 1.0 / step}, replayed=False,
            )  # fmt: skip
        if number == 1:
            server.start()
            server.wait_until_up()
        told.hook.permllm_run_finished(run=run, result=RunResult(run.label, {}, 1.0, 1))
    results = Results("toy", str(out), ())
    told.hook.permllm_plan_finished(plan=plan, results=results)
    assert told.warnings == []
    client = MlflowClient(tracking_uri=server.uri)
    runs = runs_of(client, "away")
    assert {name: run.info.status for name, run in runs.items()} == dict.fromkeys(
        ("run", first.label, second.label), "FINISHED"
    )
    for run in (first, second):
        history = client.get_metric_history(runs[run.label].info.run_id, "loss")
        assert [metric.step for metric in history] == list(range(1, 1001))


def test_a_server_that_stays_away_is_one_warning_that_says_what_is_missing(
    tell, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    told = tell(out, Mlflow(uri=server.uri, experiment="gone"))
    plan = toy_plan(out)
    told.hook.permllm_plan_started(plan=plan)
    server.stop()
    monkeypatch.setattr("permllm.observers.outbox.PATIENCE", 0.5)
    run = plan.runs[0]
    told.hook.permllm_run_started(run=run, reused=False)
    told.hook.permllm_run_finished(run=run, result=RunResult(run.label, {}, 1.0, 1))
    told.hook.permllm_plan_failed(run=run, error=KeyboardInterrupt())
    (warning,) = told.warnings
    assert (
        "missing there: the run 'seed=1', figures of 'seed=1', the end of 'seed=1', documents "
        "and 1 more, and what follows." in warning
    )
