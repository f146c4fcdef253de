"""Permutations that need no gather: which fold into the rows before, and how that is proved."""
