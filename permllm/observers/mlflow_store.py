"""A tracking store of MLflow behind a few calls that print nothing and fail in one way."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import attrs

from permllm.redaction import redacted_of

T = TypeVar("T")

MAX_METRICS, MAX_PARAMS, MAX_VALUE, MAX_KEY = 1000, 100, 6000, 250
"""MLflow's limits: metrics and parameters of a batch, lengths of values and of names."""

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # As it is, a server that is away would hold the run for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # It would print the tracking URI with all that is in it.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Environment variables for MLflow, each unless it is set."""

LOGGERS = ("mlflow", "alembic", "urllib3")
"""They tell of database migrations and retries; what fails is told by the failure."""


class StoreError(Exception):
    """The store did not do what was asked; the message is one line."""


@attrs.define(eq=False)
class Store:
    """One experiment of a tracking store. No global state of MLflow is touched.

    Every method raises StoreError for whatever goes wrong.

    Attributes:
        uri: the tracking URI.
        artifacts: where a new experiment's artefacts go; None leaves it to the store.
    """

    uri: str
    artifacts: str | None = None
    client: Any = None
    experiment_id: str = ""

    def open(self) -> None:
        """Connect; a new SQLite file gets its tables, which takes some seconds."""
        with _quiet(self.uri):
            from mlflow.tracking import MlflowClient

            self.client = MlflowClient(tracking_uri=self.uri)
            self.client.search_experiments(max_results=1)

    def choose_experiment(self, name: str) -> None:
        """Use the experiment of this name, new or not."""
        with _quiet(self.uri):
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                made = self.client.create_experiment(name, artifact_location=self.artifacts)
                self.experiment_id = made
            elif experiment.lifecycle_stage != "active":
                raise StoreError(f"the experiment '{name}' was deleted; restore it or rename")
            else:
                self.experiment_id = experiment.experiment_id

    def begin(self, name: str, tags: Mapping[str, str]) -> str:
        """Begin a run; its id."""
        with _quiet(self.uri):
            run = self.client.create_run(self.experiment_id, run_name=name, tags=dict(tags))
            return str(run.info.run_id)

    def reopen(self, run_id: str) -> bool:
        """Go on with a run of an earlier attempt; False if the store has it no more."""
        try:
            with _quiet(self.uri):
                if self.client.get_run(run_id).info.lifecycle_stage != "active":
                    return False
                self.client.update_run(run_id, status="RUNNING")
        except StoreError:
            return False
        return True

    def end(self, run_id: str, status: str) -> None:
        """End a run as FINISHED, FAILED or KILLED."""
        with _quiet(self.uri):
            self.client.set_terminated(run_id, status)

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log parameters, with names and values cut to what MLflow takes.

        Those that the run has already stay as they are: MLflow has no way to change them.
        """
        with _quiet(self.uri):
            from mlflow.entities import Param

            known = self.client.get_run(run_id).data.params
            entities = [
                Param(key(name), str(value)[:MAX_VALUE])
                for name, value in params.items()
                if key(name) not in known
            ]
            for part in in_parts(entities, MAX_PARAMS):
                self.client.log_batch(run_id, params=part)

    def log_metrics(self, run_id: str, metrics: Sequence[tuple[str, float, int, int]]) -> None:
        """Log metrics: name, value, milliseconds since 1970, step."""
        with _quiet(self.uri):
            from mlflow.entities import Metric

            entities = [Metric(key(name), value, at, step) for name, value, at, step in metrics]
            for part in in_parts(entities, MAX_METRICS):
                self.client.log_batch(run_id, metrics=part)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        with _quiet(self.uri):
            for name, value in tags.items():
                self.client.set_tag(run_id, name, value[:MAX_VALUE])

    def log_artifact(self, run_id: str, path: Path) -> None:
        """Keep a file."""
        with _quiet(self.uri):
            self.client.log_artifact(run_id, str(path))

    def log_folder(self, run_id: str, folder: Path, name: str) -> None:
        """Keep the files of a folder, if there is one."""
        if folder.is_dir():
            with _quiet(self.uri):
                self.client.log_artifacts(run_id, str(folder), name)


@contextmanager
def _quiet(uri: str) -> Iterator[None]:
    """Let MLflow work in silence, and turn whatever it raises into a StoreError."""
    loggers = {name: logging.getLogger(name) for name in LOGGERS}
    with warnings.catch_warnings(), _settings():
        # Of MLflow's own doing, such as its use of deprecated parts of SQLAlchemy.
        warnings.simplefilter("ignore")
        # The first import sets the levels anew.
        _import_mlflow()
        levels = {name: logger.level for name, logger in loggers.items()}
        for logger in loggers.values():
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            # Database drivers, HTTP libraries and artefact stores each raise their own.
            raise StoreError(first_line(error, uri)) from error
        finally:
            for name, level in levels.items():
                loggers[name].setLevel(level)


def _import_mlflow() -> None:
    try:
        import mlflow.tracking  # noqa: F401
    except Exception as error:
        # A broken or unfitting installation may fail in any way.
        raise StoreError(f"it cannot be imported ({error})") from error


@contextmanager
def _settings() -> Iterator[None]:
    """Set the environment variables of SETTINGS that are not set, for the block."""
    missing = [name for name in SETTINGS if name not in os.environ]
    os.environ.update({name: SETTINGS[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


def first_line(error: Exception, uri: str) -> str:
    """What an error says, in one line of bearable length and without secrets."""
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    text = redacted_of(text, uri).removesuffix(".")
    return text if len(text) <= 300 else text[:299] + "…"


def key(name: str) -> str:
    """A name that MLflow takes: characters that it refuses become underscores.

    >>> key("perplexity/wiki (test)"), key("../x")
    ('perplexity/wiki _test_', '_/x')
    """
    allowed = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
    # It also refuses what would not stay the same as a path.
    parts = [part if part.strip(".") else "_" for part in allowed.split("/")]
    return "/".join(parts)[:MAX_KEY] or "_"


def in_parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Consecutive lists of at most ``size`` items."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
