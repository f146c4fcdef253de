"""What one stream makes, another uses only once it has waited and is known to the allocator."""

from __future__ import annotations

from threading import Thread

import pytest
import torch

from permllm.testing.device import DeviceFault, simulated_device


def test_what_was_waited_for_and_recorded_may_be_used() -> None:
    with simulated_device() as simulated:
        side, computing = torch.cuda.Stream(), torch.cuda.current_stream()
        with torch.cuda.stream(side):
            assert torch.cuda.current_stream() == side
            there = torch.ones(4).to("cuda", non_blocking=True) * 2
        assert torch.cuda.current_stream() == computing == torch.cuda.default_stream()
        there.record_stream(computing)
        computing.wait_event(side.record_event())
        assert (there + 1).tolist() == [3.0] * 4
        assert simulated.faults == []


def test_what_may_not_be_there_yet_is_refused() -> None:
    with simulated_device() as simulated:
        side, other = torch.cuda.Stream(), torch.cuda.Stream()
        with torch.cuda.stream(side):
            there = torch.ones(4).to("cuda")
        there.record_stream(torch.cuda.current_stream())
        other.synchronize()
        with pytest.raises(DeviceFault, match="may not have made yet"):
            there + 1
        assert len(simulated.faults) == 1


def test_memory_that_may_be_given_away_is_refused() -> None:
    with simulated_device():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            there = torch.ones(4).to("cuda")
        torch.cuda.current_stream().wait_stream(side)
        with pytest.raises(DeviceFault, match="may be given away"):
            there + 1


def test_threads_see_the_device_and_have_streams_of_their_own() -> None:
    made = []

    def work() -> None:
        made.append(torch.cuda.current_stream())
        made.append(torch.ones(4).to("cuda"))

    with simulated_device() as simulated:
        with torch.cuda.stream(torch.cuda.Stream()):
            thread = Thread(target=work)
            thread.start()
            thread.join()
        assert made[0] == torch.cuda.default_stream()
        assert made[1].is_cuda
        assert simulated.live_bytes == simulated.copied_to_device == 16


def test_what_is_on_the_device_cannot_be_pinned() -> None:
    with simulated_device(), pytest.raises(DeviceFault, match="cannot pin"):
        torch.ones(4, device="cuda").pin_memory()
