"""Memory that is left: of the machine, its containers and their limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from permllm import available_memory as memory


def test_available_memory_is_that_of_this_machine() -> None:
    assert 10**7 < memory.available_memory() < 10**14


def test_memory_of_a_container(tmp_path: Path) -> None:
    assert memory.container_memory(tmp_path) is None
    (tmp_path / "memory.current").write_text("6000\n")
    (tmp_path / "memory.stat").write_text("anon 5000\ninactive_file 1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("10000\n")
    assert memory.container_memory(tmp_path) == 5000


def limit(folder: Path, version: int, limit: int | str, used: int, cached: int) -> None:
    names = {2: ("max", "current", ""), 1: ("limit_in_bytes", "usage_in_bytes", "total_")}[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"memory.{names[0]}").write_text(f"{limit}\n")
    (folder / f"memory.{names[1]}").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"cache 1\n{names[2]}inactive_file {cached}\n")


@pytest.mark.parametrize(("version", "none"), [(1, 9223372036854771712), (2, "max")])
def test_limits_of_both_versions_of_control_groups(
    tmp_path: Path, version: int, none: int | str
) -> None:
    root = tmp_path / "memory" if version == 1 else tmp_path
    limit(root, version, none, 6000, 1000)
    assert memory.container_memory(tmp_path) is None
    limit(root, version, 10000, 6000, 1000)
    assert memory.container_memory(tmp_path) == 5000
    # Of a batch system: the group of the job is the limited one, that of the step is within it.
    job = root / "slurm/job_7"
    limit(job, version, 3000, 1000, 500)
    limit(job / "step_0", version, none, 1000, 500)
    line = {1: "5:cpuset,memory:", 2: "0::"}[version] + "/slurm/job_7/step_0"
    assert memory.container_memory(tmp_path, f"3:pids:/other\n{line}\n") == 2500
    # Within a container the path is that of outside.
    assert memory.container_memory(tmp_path, line.replace("slurm", "docker")) == 5000
