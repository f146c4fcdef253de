"""The folder of a pipeline's run: what it is called, what is in it, whom it belongs to."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from permllm.commands import own
from permllm.errors import UserError
from permllm.fields.errors import shown
from permllm.files import is_unfinished, read_record, write_text
from permllm.pipeline.reading import differences, dump_yaml, load_plain_yaml
from permllm.runs.lock import LOCK, OWNER
from permllm.runs.records import Environment

PIPELINE, RESULTS, ENVIRONMENT = "pipeline.yaml", "results.json", "environment.json"
RESULT = "result.json"
"""What the record of one finished run is called in its folder."""

CACHE = "cache"
"""The folder of kept results within a run's folder."""

VERSIONS_OF = ("permllm", "torch", "transformers", "safetensors", "datasets", "mlflow", "numpy",
               "numba")  # fmt: skip


def new_folder(name: str, runs: Path = Path("runs")) -> Path:
    """A fresh folder's path, ``runs/NAME-YYYYmmdd-HHMMSS``."""
    return runs / f"{slug(name)}-{datetime.now():%Y%m%d-%H%M%S}"


def made(path: Path) -> Path:
    """A new folder at a path, or beside it with a number: another process may be as quick.

    Raises:
        UserError: it cannot be made.
    """
    for place in numbered(path):
        try:
            place.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _unusable(path, error) from error
        return place
    raise AssertionError("numbers do not end")


def numbered(path: Path) -> Iterator[Path]:
    """A path, and then the same with ``-2``, ``-3``, … at its end."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))


def latest_unfinished(name: str, runs: Path = Path("runs")) -> Path:
    """The newest folder of the pipeline of this name that has no results yet.

    Raises:
        UserError: there is none.
    """
    unfinished = [
        ((began[1], int(began[2] or 0)), path)
        for path in runs.glob(f"{slug(name)}-*")
        if (began := _BEGAN.fullmatch(path.name.removeprefix(slug(name))))
        and not (path / RESULTS).exists()
        and _pipeline_in(path) == name
    ]
    if not unfinished:
        raise UserError(
            f"there is no unfinished run of '{name}' in {runs}/",
            hint="leave --resume out to start one, or name its folder with --out",
        )
    return max(unfinished)[1]


_BEGAN = re.compile(r"-(\d{8}-\d{6})(?:-(\d+))?")
"""What follows the name in that of a folder: when it was made, and a number to tell it apart."""


def _pipeline_in(path: Path) -> str | None:
    """The name of the pipeline that a folder belongs to; None if it is no run's folder."""
    kept = path / PIPELINE
    try:
        data = load_plain_yaml(kept) if kept.exists() else {}
    except UserError:
        return None
    return data.get("name") if isinstance(data, dict) else None


LONGEST_SLUG = 120
"""Characters of the longest name that a label becomes: file systems have 255."""


def slug(label: str) -> str:
    """``label`` as a folder's name: letters, digits, dots and hyphens; cut and hashed if long."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-.") or "run"
    if len(name) <= LONGEST_SLUG:
        return name
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_SLUG - len(digest) - 1].rstrip('-.')}-{digest}"


def unique_slugs(labels: Sequence[str]) -> list[str]:
    """Folder names for labels, numbered where two would be the same."""
    names: list[str] = []
    for label in labels:
        name = slug(label)
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        names.append(name if name not in names else next(n for n in numbered if n not in names))
    return names


def check_free(folder: Path) -> None:
    """Refuse a folder with files that are no run of permllm.

    Raises:
        UserError: it has some.
    """
    inside = [
        path
        for path in folder.iterdir()
        if path.name not in (".gitignore", LOCK, OWNER) and not is_unfinished(path)
    ]
    if inside and not (folder / PIPELINE).exists():
        raise UserError(
            f"the output folder {folder} holds files that are no run of permllm",
            hint="choose an empty or a new folder with --out",
        )


def opened(folder: Path) -> Path:
    """A folder that is there by now, and can be written to.

    Raises:
        UserError: it cannot, or something else stands there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"the folder {folder} cannot be written to")
    return folder


def _unusable(folder: Path, error: OSError) -> UserError:
    why = error.strerror
    if folder.is_symlink() and not folder.exists():
        why = f"it is a link to {folder.readlink()}, which is not there"
    elif isinstance(error, FileExistsError):
        why = "a file of this name is there"
    return UserError(f"the folder {folder} cannot be used: {why}")


def kept_shards(folder: Path) -> int | None:
    """Into how many shards the run in a folder cuts sums, if it says so."""
    kept = folder / PIPELINE
    data = load_plain_yaml(kept) if kept.exists() else {}
    shards = data.get("shards") if isinstance(data, dict) else None
    return shards if isinstance(shards, int) else None


def claim(folder: Path, mine: dict[str, Any], *, resume: bool) -> None:
    """Make the folder the own of the resolved pipeline ``mine``, and keep that in it.

    A study that goes on may have grown, or be done elsewhere: its matrix alone may differ, and what
    it takes of a cluster.

    Raises:
        UserError: it belongs to another pipeline (which says what differs).
    """
    kept = folder / PIPELINE
    if not kept.exists():
        write_text(kept, dump_yaml(mine))
        return
    before = load_plain_yaml(kept)
    if not isinstance(before, dict):
        raise UserError(
            f"this holds no pipeline, but {shown(before)}: it is damaged",
            file=str(kept),
            hint="choose another --out",
        )
    changed = differences(before, mine)
    if resume and all(change.startswith(("matrix", "resources")) for change in changed):
        write_text(kept, dump_yaml(mine))
        return
    if changed:
        listing = "\n    ".join(changed)
        raise UserError(
            f"the output folder {folder} belongs to another pipeline, which differs in\n"
            f"    {listing}",
            hint="choose another --out; with --resume the matrix alone may differ"
            if all(change.startswith("matrix") for change in changed)
            else "choose another --out",
        )
    if not resume:
        raise UserError(
            f"the output folder {folder} already holds a run of this pipeline",
            hint=f"choose another --out, or go on with it: {going_on(folder)}",
        )


def going_on(folder: Path) -> str:
    """The command that goes on with the run in a folder, by the pipeline file that it keeps."""
    return own("run", folder / PIPELINE, "--out", folder, "--resume")


def pruned_anew(run: Path) -> str:
    """What has the windows that one run of a pipeline has lost made again.

    Args:
        run: its folder. A run that has a result is not looked through: people delete windows.
    """
    result = run / RESULT
    first = f"delete '{result}', and " if result.is_file() else ""
    return f"{first}it is pruned anew by: {going_on(run.parent.parent)}"


def began_with(folder: Path) -> Environment:
    """The environment that the run in a folder began in; an empty one if it has none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / ENVIRONMENT
    return read_record(path, Environment, older=True) if path.exists() else Environment()


def check_same_inputs(folder: Path, began: Environment, environment: dict[str, Any]) -> None:
    """Refuse to resume with another model, text or plugin file than the run began with.

    Raises:
        UserError: names what changed.
    """
    changed = [
        what
        for what, before, key in (
            ("model's weights", began.model_fingerprint, "model_fingerprint"),
            ("calibration text", began.calibration_fingerprint, "calibration_fingerprint"),
        )
        if before not in (None, environment[key])
    ]
    digests = environment["plugin_files"]
    changed += [
        f"plugin '{path}'"
        for path, digest in began.plugin_files.items()
        if digests.get(path) != digest
    ]
    for what in changed:
        raise UserError(
            f"the {what} changed since the run in {folder} began",
            hint="start again in another --out",
        )


def environment(**inputs: Any) -> dict[str, Any]:
    """What the results depend on besides the pipeline: versions, machine, commit, ``inputs``."""
    import torch

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": {name: version(name) for name in VERSIONS_OF},
        "python": sys.version.partition(" ")[0],
        "platform": sys.platform,
        "threads": torch.get_num_threads(),
        "cuda_device": cuda,
        "git_commit": git_commit(),
        "command": sys.argv,
        **inputs,
    }


def version(distribution: str) -> str:
    """An installed distribution's version, or ``"not installed"``."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def git_commit() -> str | None:
    """The commit of the current directory's repository, if it is in one."""
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return git.stdout.strip()


_SET_ASIDE = re.compile(r"\.before-\d{4}-\d\d-\d\d(-\d+)?$")


def set_aside(path: Path) -> Path:
    """Give a folder a name that says until when it counted: ``lcp.before-2026-11-28``."""
    name = f"{path.name}.before-{date.today().isoformat()}"
    return path.rename(next(free for free in numbered(path.with_name(name)) if not free.exists()))


def is_set_aside(path: Path) -> bool:
    """Whether a folder's name is one that :func:`set_aside` gives."""
    return _SET_ASIDE.search(path.name) is not None


def finished_runs(out: Path) -> list[Path]:
    """The folders of the runs in a plan's folder that are finished, in order of their names."""
    folders = (path.parent for path in out.glob(f"runs/*/{RESULT}"))
    return sorted(path for path in folders if not is_set_aside(path))
