"""The compiled kernel: for this machine and for lesser ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from permllm.sparse import cpu

MACHINES = {"native": "-march=native", "AVX2": "-march=haswell", "plain": "-march=x86-64"}

Had = Callable[[cpu.Kernel | str], cpu.Kernel]


@pytest.fixture(scope="session")
def had() -> Had:
    """Gives the kernel that was built; skips without a compiler, and fails on an error of it."""

    def kernel_of(built: cpu.Kernel | str) -> cpu.Kernel:
        if isinstance(built, str):
            assert "could not be compiled" not in built, built
            pytest.skip(built)
        return built

    return kernel_of


@pytest.fixture(scope="module", params=list(MACHINES))
def kernel(request: pytest.FixtureRequest, had: Had) -> cpu.Kernel:
    """The kernel, compiled for this machine and, where that runs here, for lesser ones."""
    if request.param == "native":
        return had(cpu.load_kernel())
    if torch.backends.cpu.get_cpu_capability() not in {"AVX2", "AVX512"}:
        pytest.skip("this processor does not run code for AVX2")
    built = had(cpu.build_kernel([MACHINES[request.param]]))
    assert built.instructions == request.param
    return built
