"""The stand-in is like the real vLLM, where that is installed: `tox run -e vllm`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from typing import Any

import pytest
import standin

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),
]


def parameters(function: Any) -> dict[str, Any]:
    return {name: one.kind for name, one in inspect.signature(function).parameters.items()}


def made_by(function: Any) -> type:
    """Whether it is a method of the class or of no one."""
    return type(function) if isinstance(function, staticmethod | classmethod) else type(None)


def test_it_is_the_version_that_the_plugin_was_tried_with() -> None:
    import vllm

    tried = standin.plugin().TRIED
    assert vllm.__version__.startswith(f"{tried}.")
    assert standin.__version__.startswith(f"{tried}.")


def test_its_names_and_signatures_are_those_of_vllm() -> None:
    for place, things in standin.PLACES.items():
        module = importlib.import_module(place)
        for thing in things:
            real = getattr(module, thing.__name__)
            assert inspect.isclass(real) == inspect.isclass(thing), thing
            if not inspect.isclass(thing):
                assert parameters(real) == parameters(thing), thing
                continue
            above = {base.__name__ for base in real.__mro__}
            assert {base.__name__ for base in thing.__mro__} <= above, thing
            for name, own in vars(thing).items():
                if inspect.isfunction(own) or isinstance(own, staticmethod | classmethod):
                    assert_like(inspect.getattr_static(real, name), own, f"{thing}.{name}")


def assert_like(real: Any, own: Any, name: str) -> None:
    """A method takes what the real one takes; of keywords those that the plugin gives suffice."""
    assert made_by(real) == made_by(own), name
    ours = parameters(getattr(own, "__func__", own))
    theirs = parameters(getattr(real, "__func__", real))
    if inspect.Parameter.KEYWORD_ONLY in ours.values():
        assert ours.keys() <= theirs.keys(), name
    else:
        assert theirs == ours, name


def test_what_the_plugin_hands_over_is_there() -> None:
    from vllm.model_executor.layers.linear import WEIGHT_LOADER_V2_SUPPORTED
    from vllm.model_executor.layers.quantization import get_quantization_config

    importlib.import_module("permllm_vllm").register()
    assert get_quantization_config("permllm").get_name() == "permllm"
    assert "PackedLinearMethod" in WEIGHT_LOADER_V2_SUPPORTED
