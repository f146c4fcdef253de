"""Deprecated: :mod:`permllm.contexts.export`."""

from permllm.deprecation import moved

__getattr__ = moved(__name__, "permllm.contexts.export")
