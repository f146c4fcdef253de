"""Deprecated: :mod:`permllm.contexts.window`."""

from permllm.deprecation import moved

__getattr__ = moved(__name__, "permllm.contexts.window")
