"""Deprecated: :mod:`permllm.contexts.evaluation`."""

from permllm.deprecation import moved

__getattr__ = moved(__name__, "permllm.contexts.evaluation")
