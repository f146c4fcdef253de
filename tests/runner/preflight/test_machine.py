"""Machines: this one, those that are known, and those that are described."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from permllm.errors import UserError
from permllm.runner.preflight import machine
from permllm.runner.preflight.machine import KNOWN, machine_named


def test_speed_is_measured_briefly() -> None:
    assert 1e7 < machine.measured_speed(torch.device("cpu"), seconds=0.02) < 1e14


def test_this_machine_computes_in_its_own_memory() -> None:
    here = machine_named("cpu")
    assert here.device is None
    assert here.host is not None
    assert here.free == here.host


def test_known_machines_and_descriptions() -> None:
    assert machine_named("h100") is KNOWN["h100"]
    assert machine_named("h100").free == 80 * 10**9
    own = machine_named("flops=2e14, memory=48e9")
    assert (own.device, own.link, own.host) == (48 * 10**9, machine.LINK, None)
    assert own.speed == pytest.approx(machine.UTILISATION * 2e14)
    assert machine_named("memory=48e9,flops=2e14,link=6e10").link == 6e10


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("h10", "no machine 'h10' is known, but cpu, rtx4090", "did you mean 'h100'?"),
        ("gpu=1", "described by flops, memory, link, and not by 'gpu'", None),
        ("flop=1e15,memory=1e10", "not by 'flop'", "did you mean 'flops'?"),
        ("flops=1e15", "memory is a number of bytes, at least 1e\\+09, such as", None),
        ("flops=1e15,memory=80", "it is 80", None),
        ("flops=fast,memory=80e9", "flops is a number of operations per second", None),
        ("flops=nan,memory=80e9", "it is nan", None),
        ("flops=inf,memory=80e9", "it is inf", None),
    ],
)
def test_what_is_no_machine_is_refused(text: str, message: str, hint: str | None) -> None:
    with pytest.raises(UserError, match=message) as caught:
        machine_named(text)
    assert caught.value.hint == hint


def test_available_memory_is_that_of_this_machine() -> None:
    assert 10**7 < machine.available_memory() < 10**14


def test_memory_of_a_container(tmp_path: Path) -> None:
    assert machine.container_memory(tmp_path) is None
    (tmp_path / "memory.current").write_text("6000\n")
    (tmp_path / "memory.stat").write_text("anon 5000\ninactive_file 1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.container_memory(tmp_path) is None
    (tmp_path / "memory.max").write_text("10000\n")
    assert machine.container_memory(tmp_path) == 5000


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
    assert machine.container_memory(tmp_path) is None
    limit(root, version, 10000, 6000, 1000)
    assert machine.container_memory(tmp_path) == 5000
    # Of a batch system: the group of the job is the limited one, that of the step is within it.
    job = root / "slurm/job_7"
    limit(job, version, 3000, 1000, 500)
    limit(job / "step_0", version, none, 1000, 500)
    line = {1: "5:cpuset,memory:", 2: "0::"}[version] + "/slurm/job_7/step_0"
    assert machine.container_memory(tmp_path, f"3:pids:/other\n{line}\n") == 2500
    # Within a container the path is that of outside.
    assert machine.container_memory(tmp_path, line.replace("slurm", "docker")) == 5000
