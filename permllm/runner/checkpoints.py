"""Deprecated: :mod:`permllm.runs.windows`."""

from permllm.deprecation import moved

__getattr__ = moved(__name__, "permllm.runs.windows")
