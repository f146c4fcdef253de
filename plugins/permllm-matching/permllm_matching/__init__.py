"""Learnable permutation by bipartite matching (arXiv 2601.22980), as a plugin of permllm."""
