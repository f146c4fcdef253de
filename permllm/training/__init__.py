"""Training through a window: what learners and pruners that train have in common."""
