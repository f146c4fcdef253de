"""A tracking store of MLflow behind a few calls that print nothing and fail in one way."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import attrs

from permllm.errors import causes
from permllm.files import replacing
from permllm.observers.outbox import AwayError
from permllm.redaction import redacted_of

T = TypeVar("T")

MAX_METRICS, MAX_PARAMS, MAX_VALUE, MAX_KEY = 1000, 100, 6000, 250
"""MLflow's limits: metrics and parameters of a batch, lengths of values and of names."""

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # As it is, a server that is away would hold the run for four minutes. It is tried again later.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    # It would print the tracking URI with all that is in it.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Environment variables for MLflow, each unless it is set."""

LOGGERS = ("mlflow", "alembic", "urllib3")
"""They tell of database migrations and retries; what fails is told by the failure."""


BUSY = frozenset({429, 500, 502, 503, 504})
"""HTTP's codes, which MLflow has for databases as well, of what may be otherwise in a moment."""

CREATION_SECONDS = 60.0
"""How long one process waits for another to make the tables of a new SQLite store."""


class StoreError(Exception):
    """The store did not do what was asked; the message is one line."""


class StoreAwayError(StoreError, AwayError):
    """The store cannot be reached, or is busy; it may be otherwise in a moment."""


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
        """Connect; a new SQLite file gets its tables, which takes some seconds.

        MLflow has nothing against two processes that make the same tables at once, and cannot
        go on with tables that were half made.
        """
        with _quiet(self.uri), _alone(self.uri):
            from mlflow.tracking import MlflowClient

            database = sqlite_file(self.uri)
            if database is not None and not _has_tables(database):
                _make_tables(database)
            self.client = MlflowClient(tracking_uri=self.uri)
            self.client.search_experiments(max_results=1)

    def choose_experiment(self, name: str) -> None:
        """Use the experiment of this name, new or not."""
        with _quiet(self.uri):
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                self.experiment_id = self._create(name)
            elif experiment.lifecycle_stage != "active":
                raise StoreError(f"the experiment '{name}' was deleted; restore it or rename")
            else:
                self.experiment_id = experiment.experiment_id

    def _create(self, name: str) -> str:
        try:
            return str(self.client.create_experiment(name, artifact_location=self.artifacts))
        except Exception:
            # Another process may have made it in this moment.
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def begin(self, name: str, tags: Mapping[str, str], at: int | None = None) -> str:
        """Begin a run, or have it begun ``at`` milliseconds since 1970; its id."""
        with _quiet(self.uri):
            run = self.client.create_run(
                self.experiment_id, start_time=at, run_name=name, tags=dict(tags)
            )
            return str(run.info.run_id)

    def find(self, tags: Mapping[str, str]) -> str | None:
        """The id of a run that was begun with these tags; None if there is none."""
        with _quiet(self.uri):
            # Values with quotes cannot be asked for, so only the first is.
            (first, value), *_ = tags.items()
            runs = self.client.search_runs([self.experiment_id], f"tags.`{first}` = '{value}'")
            wanted = {name: text[:MAX_VALUE] for name, text in tags.items()}
            alike = [run for run in runs if wanted.items() <= run.data.tags.items()]
            return str(alike[0].info.run_id) if alike else None

    def reopen(self, run_id: str) -> bool:
        """Go on with a run of an earlier attempt; False if the store has it no more."""
        try:
            with _quiet(self.uri):
                info = self.client.get_run(run_id).info
                if info.lifecycle_stage != "active":
                    return False
                _remove_half_copied(info.artifact_uri)
                self.client.update_run(run_id, status="RUNNING")
        except StoreAwayError:
            raise
        except StoreError:
            return False
        return True

    def finished_at(self, run_id: str) -> int | None:
        """When a run was finished, in milliseconds since 1970; None if it was not."""
        try:
            with _quiet(self.uri):
                info = self.client.get_run(run_id).info
        except StoreAwayError:
            raise
        except StoreError:
            return None
        done = info.status == "FINISHED" and info.lifecycle_stage == "active"
        return int(info.end_time) if done and info.end_time is not None else None

    def end_left_over(self, tag: str, value: str) -> None:
        """End the runs with a tag that nobody ended as killed, when they were last heard of."""
        with _quiet(self.uri):
            asked = f"attributes.status = 'RUNNING' and tags.`{tag}` = '{value}'"
            for run in self.client.search_runs([self.experiment_id], asked):
                self.client.set_terminated(
                    run.info.run_id, "KILLED", end_time=self._last_heard_of(run)
                )

    def _last_heard_of(self, run: Any) -> int:
        courses = (
            self.client.get_metric_history(run.info.run_id, name) for name in run.data.metrics
        )
        times = [metric.timestamp for course in courses for metric in course]
        return max([*times, run.info.start_time])

    def end(self, run_id: str, status: str, at: int | None = None) -> None:
        """End a run as FINISHED, FAILED or KILLED, or have it ended ``at`` a time (ms)."""
        with _quiet(self.uri):
            self.client.set_terminated(run_id, status, end_time=at)

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
            kind = StoreAwayError if passing(error) else StoreError
            raise kind(first_line(error, uri)) from error
        finally:
            for name, level in levels.items():
                loggers[name].setLevel(level)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Keep other processes out that open the same SQLite file, as long as that is to be had."""
    from filelock import FileLock, Timeout

    database = sqlite_file(uri)
    if database is None:
        yield
        return
    lock = FileLock(database.with_name(f".{database.name}.lock"), timeout=CREATION_SECONDS)
    with ExitStack() as held:
        # A folder that cannot be written to, or a process that hangs, is the store's affair.
        with suppress(OSError, Timeout):
            held.enter_context(lock)
        yield


def _has_tables(database: Path) -> bool:
    """Whether a SQLite file is there; an empty one is what a killed process has left."""
    return database.exists() and database.stat().st_size > 0


def _make_tables(database: Path) -> None:
    """Make a new SQLite store, whose file takes its place once it has all tables."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with replacing(database) as unfinished:
        uri = sqlite_uri(unfinished)
        SqlAlchemyStore(uri, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()


def _remove_half_copied(artifacts: str) -> None:
    """Remove what a killed process left of copies among the artefacts of its run."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    if artifacts.startswith("file:"):
        for path in Path(local_file_uri_to_path(artifacts)).rglob(".artifact.uploading.*"):
            path.unlink(missing_ok=True)


def sqlite_uri(path: Path) -> str:
    """The URI of a SQLite file, whatever characters its path has.

    >>> sqlite_uri(Path("/runs/mlflow.db"))
    'sqlite:////runs/mlflow.db'
    """
    plain = f"sqlite:///{path.as_posix()}"
    if not set("?%#") & set(plain):
        return plain
    from sqlalchemy import URL

    # Under the plain name MLflow makes the folder of the path as it stands in the URI.
    url = URL.create("sqlite+pysqlite", database=path.as_posix())
    return url.render_as_string(hide_password=False)


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for other stores, and for one in memory."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        database = make_url(uri).database
    except ArgumentError:
        return None
    return Path(database) if database and not database.startswith((":", "file:")) else None


def passing(error: Exception) -> bool:
    """Whether an error may be none in a moment: nobody answers, or somebody is busy."""
    for cause in causes(error):
        status = getattr(cause, "get_http_status_code", None)
        if status is not None and status() in BUSY:
            return True
        # Those of the HTTP library are OSErrors, too, of whatever kind.
        if isinstance(cause, ConnectionError | TimeoutError):
            return True
        if type(cause).__module__.startswith("requests.") and isinstance(cause, OSError):
            return True
        if re.search("database (table )?is locked", str(cause)):
            return True
    return False


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
    lines = str(error).strip().splitlines()
    # SQLAlchemy begins with how it came to the statement that failed.
    wrong = (line for line in lines if not line.startswith("(raised as a result of"))
    text = next(wrong, "") or type(error).__name__
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
