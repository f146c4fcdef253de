"""MLflow: a parent run for the pipeline, and a nested run for each of its runs."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from permllm.commands import program
from permllm.components import Observer
from permllm.errors import UserError
from permllm.files import converted, read_json, read_sealed, write_json
from permllm.hooks import hookimpl
from permllm.observers.events import FILE as EVENTS
from permllm.observers.mlflow_store import Store, StoreError, sqlite_uri
from permllm.observers.outbox import Outbox
from permllm.option import option
from permllm.redaction import redacted
from permllm.runs.layers import by_layer, mean

if TYPE_CHECKING:
    from permllm.results import LayerReport, Results, RunResult
    from permllm.runs.plan import Plan, Run

IDS = "mlflow.json"
"""In the folder of the run: MLflow's run ids by label, so that a resumed run goes on in them."""

STUDY, RUN = "permllm.study", "permllm.run"
"""Tags by which a run is found again that was begun, and whose id did not get here."""

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

    What cannot be recorded at once, since a server is away or a store busy, waits and follows in
    order. A store that fails loses nothing but itself: there is one warning, the run goes on,
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
        recorder.attempt("everything", recorder.store.open)
        # What is wrong from the start is better said at the start.
        recorder.outbox.deliver(wait=True)
        return recorder

    def store_uri(self, out: Path) -> str:
        """The tracking URI for a run in the folder ``out``."""
        chosen = self.uri or os.environ.get("MLFLOW_TRACKING_URI")
        return chosen or sqlite_uri(out.absolute().parent / "mlflow.db")

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
        return program("mlflow", "ui", "--backend-store-uri", str(redacted(uri)))


@attrs.frozen
class Ids:
    """What :data:`IDS` holds.

    Attributes:
        uri: of the store, without secrets.
        runs: the ids of its runs, by label.
        study: by which the store itself knows them; empty where an older version wrote it.
    """

    uri: str
    runs: dict[str, str]
    study: str = ""


@attrs.define(eq=False)
class Recorder:
    """Sends what happens to the store, in order, and gives up on what it cannot do for good.

    Attributes:
        observer, out, warn, store: what it was made from.
        ids: the store's runs by label.
        study: by which the store itself knows them.
        asked_before: whether the store may have runs whose ids did not get here.
        buffer: metrics that wait: name, value, milliseconds since 1970, step.
        current: the label of the run that is being done.
        ended: when runs were finished that an earlier attempt finished, by label.
        settled: labels of those of them that stay as they are.
        outbox: does things with the store in order.
    """

    observer: Mlflow
    out: Path
    warn: Callable[[str], None]
    store: Store
    ids: dict[str, str] = attrs.field(factory=dict)
    study: str = ""
    asked_before: bool = False
    buffer: list[tuple[str, float, int, int]] = attrs.field(factory=list)
    current: str | None = None
    ended: dict[str, int] = attrs.field(factory=dict)
    settled: set[str] = attrs.field(factory=set)
    outbox: Outbox = attrs.field()

    @outbox.default
    def _new_outbox(self) -> Outbox:
        return Outbox(self._give_up, (StoreError, OSError, ValueError))

    def attempt(self, what: str, work: Callable[..., None], *arguments: Any) -> None:
        """Do something with the store once all before it is done; ``what`` names it."""
        self.outbox.add(what, work, *arguments)

    def _give_up(self, error: Exception, missing: str) -> None:
        self.warn(
            f"MLflow at {redacted(self.store.uri)} failed: {error}. The run goes on "
            f"without it; missing there: {missing}, and what follows. {EVENTS} and the run's "
            "folder keep everything"
        )

    # --- the pipeline ---------------------------------------------------------------

    @hookimpl
    def permllm_plan_started(self, plan: Plan) -> None:
        """Begin the parent run, or go on in that of an interrupted attempt."""
        self.attempt("the study", self._begin_parent, plan, milliseconds())
        self.outbox.deliver(wait=True)

    @hookimpl
    def permllm_plan_finished(self, plan: Plan, results: Results) -> None:
        """Add documents and plots, and end the parent run."""
        self.attempt("documents and plots", self._log_everything, plan)
        failed = any(run.error for run in results.runs)
        status = "FAILED" if failed else "FINISHED"
        self.attempt("the end of the study", self._end_parent, plan, status, milliseconds())
        self.outbox.close()

    @hookimpl
    def permllm_plan_failed(self, run: Run | None, error: BaseException) -> None:
        """End what is open as failed, or as killed where the user stopped it."""
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        self._end_current(status)
        self.attempt("documents", self._log_failure, reason(error))
        self.attempt("the end of the study", self._end, PARENT, status, milliseconds())
        self.outbox.close()

    # --- one run --------------------------------------------------------------------

    @hookimpl
    def permllm_run_started(self, run: Run, reused: bool) -> None:
        """Begin the run under the parent run, unless it is there and finished."""
        self.attempt(f"the run '{run.label}'", self._begin_nested, run, reused, milliseconds())
        self.current = run.label

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
        self._flush()

    @hookimpl
    def permllm_progress(self, done: int, total: int) -> None:
        """Send what a stage measured before its result is kept: nobody measures it again then."""
        if done == total and self.buffer:
            self._flush()

    @hookimpl
    def permllm_run_finished(self, run: Run, result: RunResult) -> None:
        """Log the figures and end the run."""
        cost = {"seconds": result.seconds, "peak_memory_bytes": float(result.peak_memory_bytes)}
        self._log(result.figures | cost, 0)
        self._end_current("FINISHED")

    @hookimpl
    def permllm_run_failed(self, run: Run, error: Exception) -> None:
        """End the run as failed."""
        tags = {"permllm.error": reason(error)}
        self.attempt(f"the run '{run.label}'", self._tag, run.label, tags)
        self._end_current("FAILED")

    def _log(self, figures: dict[str, float], step: int) -> None:
        now = milliseconds()
        if self.outbox.closed or self.current is None:
            return
        self.buffer += [(name, value, now, step) for name, value in figures.items()]
        if len(self.buffer) >= BUFFERED or now - self.buffer[0][2] > 1000 * SECONDS_BUFFERED:
            self._flush()

    def _flush(self) -> None:
        """Send what was measured of the current run; or have what waits tried again."""
        if self.current and self.buffer:
            what = f"figures of '{self.current}'"
            self.attempt(what, self._log_metrics, self.current, self.buffer)
        else:
            self.outbox.deliver()
        self.buffer = []

    def _end_current(self, status: str) -> None:
        self._flush()
        if self.current is not None:
            what = f"the end of '{self.current}'"
            self.attempt(what, self._end, self.current, status, milliseconds())
        self.current = None

    # --- what is attempted, once or several times ---------------------------------------

    def _begin_parent(self, plan: Plan, at: int) -> None:
        name = self.observer.experiment or plan.pipeline.name
        self.store.choose_experiment(name)
        if not self.study:
            self._remember()
        if self.asked_before:
            # Of labels that are no more, or that a killed process had begun.
            self.store.end_left_over(STUDY, self.study)
            self._finished_before(PARENT)
        self._begin(PARENT, self.observer.run_name or self.out.absolute().name, {}, at)
        self.store.log_params(self.ids[PARENT], flattened(plan.pipeline))
        if (self.out / PIPELINE).exists():
            self.store.log_artifact(self.ids[PARENT], self.out / PIPELINE)

    def _begin_nested(self, run: Run, reused: bool, at: int) -> None:
        if reused and self._finished_before(run.label):
            self.settled.add(run.label)
            return
        self._begin(run.label, run.label, {"mlflow.parentRunId": self.ids[PARENT]}, at)
        self.store.log_params(self.ids[run.label], flattened(run.pipeline))
        self.store.set_tags(self.ids[run.label], self._origin())

    def _finished_before(self, key: str) -> bool:
        """Whether the store has a run that an earlier attempt finished; notes when that was."""
        known = self.ids.get(key)
        at = self.store.finished_at(known) if known else None
        if at is not None:
            self.ended[key] = at
        return at is not None

    def _begin(self, key: str, name: str, tags: dict[str, str], at: int) -> None:
        known = self.ids.get(key)
        own = {STUDY: self.study, RUN: key or "(study)"}
        if known is None and self.asked_before:
            known = self.store.find(own)
        # Until the id is here, and in the folder, it may have begun without our knowing.
        asked_before, self.asked_before = self.asked_before, True
        if known is None or not self.store.reopen(known):
            known = self.store.begin(name, {"mlflow.source.name": "permllm"} | own | tags, at)
        if self.ids.get(key) != known:
            self.ids[key] = known
            self._keep_ids()
        self.asked_before = asked_before

    def _log_metrics(self, key: str, metrics: list[tuple[str, float, int, int]]) -> None:
        if key not in self.settled:
            self.store.log_metrics(self.ids[key], metrics)

    def _tag(self, key: str, tags: dict[str, str]) -> None:
        self.store.set_tags(self.ids[key], tags)

    def _end(self, key: str, status: str, at: int) -> None:
        if key in self.ids and key not in self.settled:
            self.store.end(self.ids[key], status, at)

    def _end_parent(self, plan: Plan, status: str, at: int) -> None:
        # A study of which nothing was left to do took no longer than it did.
        nothing_new = self.settled.issuperset(run.label for run in (plan.dense, *plan.runs))
        self._end(PARENT, status, self.ended.get(PARENT, at) if nothing_new else at)

    def _log_everything(self, plan: Plan) -> None:
        self._log_documents()
        self.store.log_folder(self.ids[PARENT], self.out / "plots", "plots")
        for run in plan.runs:
            self.store.log_folder(self.ids[run.label], run.directory / "plots", "plots")

    def _log_failure(self, reason: str) -> None:
        if PARENT not in self.ids:
            # It ended before anything had begun.
            return
        self._tag(PARENT, {"permllm.error": reason})
        self._log_documents()

    def _log_documents(self) -> None:
        parent = self.ids[PARENT]
        self.store.set_tags(parent, self._origin())
        for name in DOCUMENTS:
            if (self.out / name).exists():
                self.store.log_artifact(parent, self.out / name)

    def _origin(self) -> dict[str, str]:
        """Tags that say which code and which model it was."""
        environment: dict[str, Any] = {}
        # It is missing or damaged where a run ended before it was written.
        with suppress(UserError):
            environment = read_sealed(self.out / ENVIRONMENT, older=True)
        named = {
            "mlflow.source.git.commit": environment.get("git_commit"),
            "model_fingerprint": environment.get("model_fingerprint"),
            "model": environment.get("model"),
        }
        return {tag: str(value) for tag, value in named.items() if value}

    def _remember(self) -> None:
        """What an interrupted attempt knew that wrote to the same store; else a new study."""
        path = self.out / IDS
        kept = None
        if path.exists():
            try:
                kept = converted(read_json(path), Ids, str(path))
            except UserError as error:
                self.warn(f"{error}: MLflow's runs are begun anew")
        if kept is not None and kept.uri == redacted(self.store.uri):
            self.ids = dict(kept.runs)
            self.study = kept.study
        self.asked_before = bool(self.study)
        self.study = self.study or uuid.uuid4().hex
        # Before anything begins that nobody would find again.
        self._keep_ids()

    def _keep_ids(self) -> None:
        write_json(
            self.out / IDS, attrs.asdict(Ids(redacted(self.store.uri), self.ids, self.study))
        )


def milliseconds() -> int:
    """Now, since 1970."""
    return int(time.time() * 1000)


def reason(error: BaseException) -> str:
    """An error for the tag of a run."""
    return str(redacted(f"{type(error).__name__}: {error}"))


def flattened(pipeline: Any) -> dict[str, Any]:
    """A pipeline's dotted keys and values, every default spelled out, without secrets."""
    from permllm.pipeline.plain import dotted, walk
    from permllm.pipeline.reading import resolved

    return {dotted(place): value for place, value in walk(redacted(resolved(pipeline)))}
