"""What components are given: a window, an export, an evaluation."""
