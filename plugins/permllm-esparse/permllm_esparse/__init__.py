"""E-Sparse (arXiv 2310.15929) for permllm: an importance metric and a channel shuffle."""

__version__ = "0.1.0"
