"""What tests of contracts share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def fails():
    """Expects a contract to fail and to say why."""

    def call(check: Callable[..., None], component: object, message: str, **options: Any) -> None:
        with pytest.raises(AssertionError, match=message):
            check(component, **options)

    return call
