"""Machines: this one, those that are known, and those that are described."""

from __future__ import annotations

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
