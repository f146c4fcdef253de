"""MLflow: a parent run for the pipeline, and a nested run for each of its runs."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from permllm.components import Observer
from permllm.files import write_json
from permllm.hooks import hookimpl
from permllm.observers.events import FILE as EVENTS
from permllm.observers.mlflow_store import Store, StoreError
from permllm.option import option
from permllm.redaction import redacted
from permllm.runs.layers import by_layer, mean

if TYPE_CHECKING:
    from permllm.results import LayerReport, Results, RunResult
    from permllm.runs.plan import Plan, Run

IDS = "mlflow.json"
"""In the folder of the run: MLflow's run ids by label, so that a resumed run goes on in them."""

PIPELINE, ENVIRONMENT = "pipeline.yaml", "environment.json"
DOCUMENTS = (PIPELINE, ENVIRONMENT, "results.json", "report.md", EVENTS)
"""Files of the run's folder that become artefacts of the parent run."""

PARENT = ""
"""The key of the parent run among the ids; no run has this label."""

BUFFERED, SECONDS_BUFFERED = 200, 10.0
"""Metrics are sent when so many wait, or the oldest waits so long."""

LAYER_FIGURES: dict[str, Callable[[LayerReport], float]] = {
    "layer/retained_before": lambda report: report.retained_before,
    "layer/retained": lambda report: report.retained,
    "layer/error": lambda report: report.error,
}
"""Per-layer metrics: means over the layer's linears, the layer's number being the step."""


@attrs.frozen
class Mlflow(Observer):
    """Records the runs in MLflow: a local SQLite store, or a server.

    A store that fails loses nothing but itself: there is one warning, the run goes on,
    and everything is still in the run's folder.
    """

    name: ClassVar[str] = "mlflow"

    experiment: str | None = option(None, help="MLflow experiment; the pipeline's name if null")
    uri: str | None = option(
        None,
        help="tracking store, such as http://localhost:5000; if null, the environment variable "
        "MLFLOW_TRACKING_URI, else the SQLite file mlflow.db beside the run's folder",
    )
    run_name: str | None = option(None, help="name of the parent run; the run folder's if null")

    def watch(self, out: Path, warn: Callable[[str], None]) -> object:
        """The recorder of one pipeline's run; opens the store."""
        recorder = Recorder(self, out, warn, Store(self.store_uri(out), self.artifacts(out)))
        recorder.attempt(recorder.store.open)
        return recorder

    def store_uri(self, out: Path) -> str:
        """The tracking URI for a run in the folder ``out``."""
        chosen = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        return chosen or f"sqlite:///{(out.absolute().parent / 'mlflow.db').as_posix()}"

    def artifacts(self, out: Path) -> str | None:
        """Where a new experiment's artefacts go; None leaves it to a store that was chosen."""
        if self.uri or os.environ.get("MLFLOW_TRACKING_URI"):
            return None
        return (out.absolute().parent / "mlartifacts").as_uri()

    def where(self, out: Path) -> str:
        """The server's address, or the command that shows a local store in a browser."""
        uri = self.store_uri(out)
        if uri.startswith("http"):
            return str(redacted(uri))
        return shlex.join(["mlflow", "ui", "--backend-store-uri", redacted(uri)])


@attrs.define(eq=False)
class Recorder:
    """Sends what happens to the store, and gives up on the store's first failure."""

    observer: Mlflow
    out: Path
    warn: Callable[[str], None]
    store: Store
    failed: bool = False
    ids: dict[str, str] = attrs.field(factory=dict)
    buffer: list[tuple[str, float, int, int]] = attrs.field(factory=list)
    current: str | None = None

    def attempt(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do something with the store; the first failure is a warning and the last attempt."""
        if self.failed:
            return
        try:
            work(*arguments)
        except (StoreError, OSError, ValueError) as error:
            self.failed = True
            self.warn(
                f"MLflow at {redacted(self.store.uri)} failed: {error}. The run goes on "
                f"without it; {EVENTS} and the run's folder keep everything"
            )

    # --- the pipeline ---------------------------------------------------------------

    @hookimpl
    def permllm_plan_started(self, plan: Plan) -> None:
        """Begin the parent run, or go on in that of an interrupted attempt."""
        self.attempt(self._begin_parent, plan)

    @hookimpl
    def permllm_plan_finished(self, plan: Plan, results: Results) -> None:
        """Add documents and plots, and end the parent run."""
        self.attempt(self._end_parent, plan, results)

    @hookimpl
    def permllm_plan_failed(self, run: Run | None, error: BaseException) -> None:
        """End what is open as failed, or as killed where the user stopped it."""
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        self.attempt(self._end_early, status, reason(error))

    # --- one run --------------------------------------------------------------------

    @hookimpl
    def permllm_run_started(self, run: Run) -> None:
        """Begin the run under the parent run."""
        self.attempt(self._begin_nested, run)

    @hookimpl
    def permllm_training_step(
        self, run: Run, window: int, stage: str, step: int, total: int, figures: dict[str, float]
    ) -> None:
        """Log loss, temperature and so on; steps count on from window to window."""
        if stage == "pruner":
            # A learner may have trained in the same window.
            figures = {f"pruner_{name}": value for name, value in figures.items()}
        self._log(figures, window * total + step)

    @hookimpl
    def permllm_window_finished(
        self, run: Run, window: int, reports: tuple[LayerReport, ...], seconds: float
    ) -> None:
        """Log the figures of each layer of the window."""
        for layer, linears in by_layer(reports).items():
            self._log({key: mean(linears, value) for key, value in LAYER_FIGURES.items()}, layer)
        self.attempt(self._flush)

    @hookimpl
    def permllm_run_finished(self, run: Run, result: RunResult) -> None:
        """Log the figures and end the run."""
        cost = {"seconds": result.seconds, "peak_memory_bytes": float(result.peak_memory_bytes)}
        self._log(result.figures | cost, 0)
        self.attempt(self._end_nested, "FINISHED")

    @hookimpl
    def permllm_run_failed(self, run: Run, error: Exception) -> None:
        """End the run as failed."""
        self.attempt(self._tag_failure, run, error)
        self.attempt(self._end_nested, "FAILED")

    # --- what is attempted ------------------------------------------------------------

    def _begin_parent(self, plan: Plan) -> None:
        name = self.observer.experiment or plan.pipeline.name
        self.store.choose_experiment(name)
        self.ids = self._remembered_ids()
        self._begin(PARENT, self.observer.run_name or self.out.absolute().name, {})
        self.store.log_params(self.ids[PARENT], flattened(plan.pipeline))
        if (self.out / PIPELINE).exists():
            self.store.log_artifact(self.ids[PARENT], self.out / PIPELINE)

    def _begin_nested(self, run: Run) -> None:
        self._begin(run.label, run.label, {"mlflow.parentRunId": self.ids[PARENT]})
        self.current = self.ids[run.label]
        self.store.log_params(self.current, flattened(run.pipeline))
        self.store.set_tags(self.current, self._origin())

    def _begin(self, key: str, name: str, tags: dict[str, str]) -> None:
        known = self.ids.get(key)
        if known is None or not self.store.reopen(known):
            self.ids[key] = self.store.begin(name, {"mlflow.source.name": "permllm"} | tags)
            write_json(self.out / IDS, {"uri": redacted(self.store.uri), "runs": self.ids})

    def _tag_failure(self, run: Run, error: Exception) -> None:
        if self.current:
            self.store.set_tags(self.current, {"permllm.error": reason(error)})

    def _end_nested(self, status: str) -> None:
        self._flush()
        if self.current:
            self.store.end(self.current, status)
        self.current = None

    def _end_parent(self, plan: Plan, results: Results) -> None:
        parent = self.ids[PARENT]
        self._log_documents()
        self.store.log_folder(parent, self.out / "plots", "plots")
        for run in plan.runs:
            self.store.log_folder(self.ids[run.label], run.directory / "plots", "plots")
        failed = any(run.error for run in results.runs)
        self.store.end(parent, "FAILED" if failed else "FINISHED")

    def _end_early(self, status: str, reason: str) -> None:
        self._flush()
        parent = self.ids.get(PARENT)
        if self.current:
            self.store.end(self.current, status)
        self.current = None
        if parent:
            self.store.set_tags(parent, {"permllm.error": reason})
            self._log_documents()
            self.store.end(parent, status)

    def _log_documents(self) -> None:
        parent = self.ids[PARENT]
        self.store.set_tags(parent, self._origin())
        for name in DOCUMENTS:
            if (self.out / name).exists():
                self.store.log_artifact(parent, self.out / name)

    def _log(self, figures: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        if self.failed or self.current is None:
            return
        self.buffer += [(name, value, now, step) for name, value in figures.items()]
        if len(self.buffer) >= BUFFERED or now - self.buffer[0][2] > 1000 * SECONDS_BUFFERED:
            self.attempt(self._flush)

    def _flush(self) -> None:
        if self.current:
            self.store.log_metrics(self.current, self.buffer)
        self.buffer = []

    def _origin(self) -> dict[str, str]:
        """Tags that say which code and which model it was."""
        path = self.out / ENVIRONMENT
        environment = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        named = {
            "mlflow.source.git.commit": environment.get("git_commit"),
            "model_fingerprint": environment.get("model_fingerprint"),
            "model": environment.get("model"),
        }
        return {tag: str(value) for tag, value in named.items() if value}

    def _remembered_ids(self) -> dict[str, str]:
        """The ids of an interrupted attempt that wrote to the same store."""
        path = self.out / IDS
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        same = kept.get("uri") == redacted(self.store.uri)
        return dict(kept["runs"]) if same else {}


def reason(error: BaseException) -> str:
    """An error for the tag of a run."""
    return str(redacted(f"{type(error).__name__}: {error}"))


def flattened(pipeline: Any) -> dict[str, Any]:
    """A pipeline's dotted keys and values, every default spelled out, without secrets."""
    from permllm.pipeline.document import dotted, walk
    from permllm.pipeline.reading import resolved

    return {dotted(place): value for place, value in walk(redacted(resolved(pipeline)))}
