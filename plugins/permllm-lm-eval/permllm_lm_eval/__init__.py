"""The evaluator ``lm-eval``: tasks of EleutherAI's lm-evaluation-harness."""
