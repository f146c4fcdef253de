"""Saved models whose weights are N:M in stored order: how they are laid out, read and checked."""
