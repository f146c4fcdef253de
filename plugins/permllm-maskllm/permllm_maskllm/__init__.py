"""Learned N:M masks for permllm (MaskLLM, arXiv 2409.17481)."""
