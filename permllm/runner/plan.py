"""Deprecated: :mod:`permllm.runs.plan`."""

from permllm.deprecation import moved

__getattr__ = moved(__name__, "permllm.runs.plan")
