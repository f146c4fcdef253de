"""Linears that really run sparse: packed on the CPU, semi-structured on CUDA."""
