"""Serves permllm's exports with vLLM, their N:M weights packed.

vLLM calls :func:`register` when it starts, in each of its processes.
"""

from __future__ import annotations


def register() -> None:
    """Make the quantisation method ``permllm`` known to vLLM."""
    from permllm_vllm import method  # noqa: F401
