"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[None]:
    """A cache folder for the tests, also in the processes that they start.

    What is compiled outlives the session: it takes a minute and is named by its content.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        cache = getattr(pytestconfig, "cache", None)
        if cache is not None:
            patch.setenv("TORCH_EXTENSIONS_DIR", str(cache.mkdir("kernels")))
        yield
