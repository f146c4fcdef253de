"""``python -m permllm``: the command line."""

from __future__ import annotations

from permllm.cli.main import main

if __name__ == "__main__":
    main()
